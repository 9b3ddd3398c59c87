"""However many shapes a process meets in a night, it keeps the kernels of a few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mlc.model.engines import openvino_engine
from ray_mlc.model.engines.kernels import KEPT, keep_few_kernels
from ray_mlc.model.folder import open_model

GROWTH = """
import sys
import numpy as np, psutil
from pathlib import Path
from ray_mlc.runtime import heap

name, folder, digest = sys.argv[1:]
if name == "torch":
    from ray_mlc.model.engines.torch_engine import TorchEngine
    engine = TorchEngine.load(Path(folder), pad_id=0, device="cpu", dtype="float32")
else:
    from ray_mlc.model.engines.openvino_engine import OpenVinoEngine
    engine = OpenVinoEngine.load(
        Path(folder), digest=digest, pad_id=0, dtype="float32", threads=1
    )

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
    words = [sys.executable, "-c", GROWTH, name, str(tiny_model), digest]
    own = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(words, env=own, capture_output=True, text=True, check=True)
    # kept for each shape it would be at least a fifth of a megabyte
    assert float(done.stdout) < 0.1 * SHAPES


def test_what_the_user_says_of_the_caches_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "")  # so that it is put back
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == str(KEPT)
