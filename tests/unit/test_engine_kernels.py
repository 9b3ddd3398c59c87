"""However many shapes a process meets in a night, it keeps the kernels of a few."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest

from ray_mlc.api import actor
from ray_mlc.config import TrainingConfig
from ray_mlc.model.engines import openvino_engine
from ray_mlc.model.engines.kernels import KEPT, keep_few_kernels
from ray_mlc.model.folder import open_model
from ray_mlc.runtime import ray_data, train

VARIABLES = (
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "DNNL_PRIMITIVE_CACHE_CAPACITY",
    "LRU_CACHE_CAPACITY",
)
GROWTH = """
import sys
import numpy as np, psutil
from pathlib import Path
from ray_mlc.model.engines.kernels import keep_few_kernels
from ray_mlc.runtime import heap

name, folder, digest = sys.argv[1:]
keep_few_kernels()
if name == "torch":
    from ray_mlc.model.engines.torch_engine import TorchEngine
    engine = TorchEngine.load(Path(folder), pad_id=0, device="cpu", dtype="float32")
else:
    from ray_mlc.model.engines.openvino_engine import OpenVinoEngine
    engine = OpenVinoEngine.load(Path(folder), digest=digest, pad_id=0, dtype="float32", threads=1)

def memory(lengths):
    for length in lengths:
        for documents in range(1, 11):
            engine.logits([np.ones(length, np.int32)] * documents)
    heap.trim()
    return psutil.Process().memory_info().rss / 2**20

before = memory(range(4, 16))
print(memory(range(16, 48)) - before)
"""
SHAPES = 320
LAST_WORD = """
import atexit, os, sys
from ray_mlc.cli import main

atexit.register(lambda: print(os.environ.get("LRU_CACHE_CAPACITY")))
sys.argv = ["ray-mlc", "--version"]
main()
"""


def run(code: str, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """What a process prints that nobody has told how many kernels to keep."""
    bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=bare | dict(environment or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test leaves is taken away
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(
                not openvino_engine.available(), reason="OpenVINO is not installed"
            ),
        ),
    ],
)
def test_memory_does_not_grow_with_the_shapes_of_batches(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    digest = open_model(str(tiny_model)).digest
    grown = run(
        GROWTH, name, str(tiny_model), digest, environment={"XDG_CACHE_HOME": str(tmp_path)}
    )
    # kept for each shape it would be at least a fifth of a megabyte
    assert float(grown) < 0.1 * SHAPES


def test_what_the_environment_says_of_the_caches_holds(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("DNNL_PRIMITIVE_CACHE_CAPACITY", "7")
    keep_few_kernels()
    assert os.environ["DNNL_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
    assert os.environ["LRU_CACHE_CAPACITY"] == str(KEPT)


def test_commands_keep_few_kernels() -> None:
    assert run(LAST_WORD).splitlines()[-1] == str(KEPT)


class Loading(Exception):
    """A process begins to load its model, in which its first kernels are compiled."""


def load(*arguments: object, **options: object) -> None:
    raise Loading(os.environ.get("LRU_CACHE_CAPACITY"))


def test_what_scores_in_a_pipeline_keeps_few_kernels(
    unset: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    unset.setattr(actor.Classifier, "from_pretrained", load)
    with pytest.raises(Loading, match=str(KEPT)):
        actor.ScoreActor(str(tiny_model))


def test_actors_of_a_run_keep_few_kernels(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("RAYON_NUM_THREADS", "1")  # which they set too
    unset.setattr(ray_data, "ScoreStep", load)
    with pytest.raises(Loading, match=str(KEPT)):
        ray_data.ScoreActor([], threads=1, tokenizes=False, reporter=Mock())


def test_training_workers_keep_few_kernels(unset: pytest.MonkeyPatch) -> None:
    unset.setattr(train, "fetch", load)  # of the encoder
    with pytest.raises(Loading, match=str(KEPT)):
        train.new_fitter(TrainingConfig(), Mock(), device="cpu", wrap=Mock())


def test_an_openvino_without_the_property_compiles_all_the_same(tmp_path: Path) -> None:
    class Core:
        def compile_model(self, path: str, device: str, options: Mapping[str, object]) -> str:
            if openvino_engine.OPENVINO_PROPERTY in options:
                raise RuntimeError(f"Unsupported property {openvino_engine.OPENVINO_PROPERTY}")
            return f"{path} on {device}"

    assert openvino_engine._compile(Core(), tmp_path, {}) == f"{tmp_path} on CPU"
