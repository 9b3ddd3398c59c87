"""int8: made on request, measured, kept only if it agrees, and the same bytes ever after."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig, LongConfig
from ray_mlc.errors import ConfigError, GateError, ModelError, RunMismatchError
from ray_mlc.model.decisions import Rules
from ray_mlc.model.engines import int8
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.quantize import agreement, quantize_model

needs_nncf = pytest.mark.skipif(
    find_spec("nncf") is None or find_spec("openvino") is None, reason="NNCF is not installed"
)
TEXTS = synthetic.documents(60, seed=9)["text"].to_pylist()
LOOSE = {"max_flips": 10.0, "max_loss": 1.0}
"""An untrained model is decided by rounding: what is tested here is not its quality."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("examples")
    for name, seed in (("train", 1), ("validation", 2)):
        pq.write_table(synthetic.documents(80, seed=seed), folder / f"{name}.parquet")
    return {name: [str(folder / f"{name}.parquet")] for name in ("train", "validation")}


@pytest.fixture(scope="module")
def original(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model without an int8 form."""
    folder = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(tiny_model, folder)
    return folder


@pytest.fixture(scope="module")
def quantized(
    original: Path, data: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("int8-done") / "model"
    shutil.copytree(original, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "openvino-cache"))
        made = make(folder, data)
    assert made["calibration_documents"] == 16
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "openvino-cache"))


def make(folder: Path, data: dict[str, list[str]], **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "calibration": data["train"],
        "validation": data["validation"],
        "text": "text",
        "labels": "labels",
        "documents": 16,
        "seed": 0,
        "display": Display(quiet=True),
        **LOOSE,
        **options,
    }
    return quantize_model(str(folder), **settings)


def resolved(folder: Path, **options: Any) -> Any:
    asked: dict[str, Any] = {"cuda": False, **options}
    return resolve(open_model(str(folder)), EngineConfig(dtype="int8"), BatchingConfig(), **asked)


@needs_nncf
def test_an_int8_form_scores_near_float32_and_is_recorded_by_its_bytes(quantized: Path) -> None:
    chosen = resolved(quantized)
    info = int8.read_int8(open_model(str(quantized)))
    assert (chosen.name, chosen.dtype, chosen.weights) == ("openvino", "int8", info.weights)
    scores_NL = load_classifier(open_model(str(quantized)), chosen).predict_proba(TEXTS)
    folder = open_model(str(quantized))
    options = {"cuda": False}
    exact = resolve(folder, EngineConfig(dtype="float32"), BatchingConfig(), **options)
    assert exact.weights is None
    exact_NL = load_classifier(folder, exact).predict_proba(TEXTS)
    difference = np.abs(scores_NL - exact_NL)
    assert 0 < difference.max() < 0.5
    assert difference.mean() < 0.05


@needs_nncf
def test_a_head_on_the_mean_is_quantized_too(
    make_model: Callable[..., Path], data: dict[str, list[str]]
) -> None:
    path = make_model(pooling="mean")
    make(path, data)
    folder = open_model(str(path))
    exact = resolve(folder, EngineConfig(dtype="float32"), BatchingConfig(), cuda=False)
    scores_NL, exact_NL = (
        load_classifier(folder, chosen).predict_proba(TEXTS) for chosen in (resolved(path), exact)
    )
    assert exact_NL.std(axis=0).max() > 0.05
    difference = np.abs(scores_NL - exact_NL)
    assert 0 < difference.max() < 0.5
    assert difference.mean() < 0.05


@needs_nncf
def test_quantizing_again_gives_the_same_weights(
    quantized: Path, original: Path, data: dict[str, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    make(folder, data)
    # not the same file of layers: their names count up within a process
    weights = [(path / "int8/openvino_model.bin").read_bytes() for path in (folder, quantized)]
    assert weights[0] == weights[1]
    assert sorted(
        path.name for path in folder.iterdir() if path.name.startswith((".", "int8"))
    ) == ["int8"]


@needs_nncf
def test_what_does_not_agree_is_not_kept(
    original: Path, data: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(original.rglob("*"))
    with pytest.raises(
        GateError, match=r"does not agree .*--max-flips.*nothing is kept$"
    ) as caught:
        make(original, data, max_flips=0.0)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert sorted(original.rglob("*")) == before
    from ray_mlc.runtime import quantize

    wrong = int8.Agreement(
        documents=1, flips=0, flips_of_given=0, max_difference=0, f1_micro=0.4, f1_micro_float32=0.5
    )
    monkeypatch.setattr(quantize, "agreement", lambda *_: wrong)
    with pytest.raises(GateError, match=r"a loss of 0.05 \(--max-loss\)"):
        make(original, data, max_loss=0.05)
    assert sorted(original.rglob("*")) == before


@needs_nncf
def test_scores_that_are_not_finite_are_not_kept(
    original: Path, data: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_mlc.runtime import quantize

    class Broken:
        def __init__(self, *_: Any) -> None:
            pass

        def predict_proba(self, texts: Any, **_: Any) -> Any:
            return np.full((len(texts), 4), np.nan, np.float32)

    monkeypatch.setattr(quantize, "Classifier", Broken)
    with pytest.raises(GateError, match=r"int8 gives scores that are not finite; nothing is kept"):
        make(original, data)
    assert not list(original.glob("*int8*"))


@needs_nncf
def test_other_bytes_than_those_measured_are_refused(quantized: Path, tmp_path: Path) -> None:
    chosen = resolved(quantized)
    damaged = tmp_path / "damaged"
    shutil.copytree(quantized, damaged)
    weights = bytearray((damaged / "int8" / "openvino_model.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (damaged / "int8" / "openvino_model.bin").write_bytes(weights)
    with pytest.raises(ModelError, match=r"files in int8 are damaged: run `ray-mlc quantize"):
        load_classifier(open_model(str(damaged)), chosen)
    (damaged / "int8" / "openvino_model.bin").unlink()
    with pytest.raises(ModelError, match=r"openvino_model.bin: cannot be read"):
        resolved(damaged)
    (damaged / "int8" / "int8.json").write_text("{")
    with pytest.raises(ModelError, match=r"int8/int8.json is damaged"):
        resolved(damaged)


@needs_nncf
def test_an_int8_form_of_other_weights_is_refused(quantized: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(quantized, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "note": "trained again"}))
    with pytest.raises(ModelError, match=r"its int8 form is of other weights"):
        resolved(other)


@needs_nncf
def test_a_run_does_not_go_on_with_a_model_that_was_quantized_again(quantized: Path) -> None:
    folder = open_model(str(quantized))
    chosen = resolved(quantized).model_copy(update={"weights": "0" * 64})
    with pytest.raises(ModelError, match=r"was quantized again since this run began"):
        load_classifier(folder, chosen)


@needs_nncf
def test_an_actor_that_scores_otherwise_than_measured_is_refused(
    quantized: Path, tmp_path: Path
) -> None:
    chosen = resolved(quantized)
    wrong = tmp_path / "wrong"
    shutil.copytree(quantized, wrong)
    file = wrong / "int8" / "int8.json"
    info = json.loads(file.read_text())
    info["canaries"]["scores"][3][0] += 0.2
    file.write_text(json.dumps(info))
    with pytest.raises(ModelError, match=r"does not reproduce the canaries here"):
        load_classifier(open_model(str(wrong)), chosen)


@needs_nncf
def test_a_form_that_replaces_another_while_an_actor_loads_is_noticed(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_mlc.model.engines import choose

    folder = tmp_path / "model"
    shutil.copytree(quantized, folder)
    chosen = resolved(folder)
    real = choose.load_int8_engine

    def replaced_meanwhile(place: Path, **options: Any) -> Any:
        engine = real(place, **options)
        layers = place / "openvino_model.xml"
        layers.write_text(layers.read_text() + "\n")
        info = json.loads((place / "int8.json").read_text())
        info["weights"] = int8.weights_digest(place)
        (place / "int8.json").write_text(json.dumps(info))
        return engine

    monkeypatch.setattr(choose, "load_int8_engine", replaced_meanwhile)
    with pytest.raises(ModelError, match=r"was quantized again since this run began"):
        load_classifier(open_model(str(folder)), chosen)


@needs_nncf
def test_thresholds_that_were_fitted_since_ask_for_another_measurement(
    quantized: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(quantized, folder)
    info = json.loads((folder / "ray_mlc.json").read_text())
    info["decision"]["threshold"] = 0.123
    (folder / "ray_mlc.json").write_text(json.dumps(info))
    with pytest.raises(ModelError, match=r"measured with another decision: run `ray-mlc quantize"):
        resolved(folder)


@needs_nncf
def test_a_plain_folder_is_held_to_the_int8_canaries_at_any_limit(
    original: Path, data: dict[str, list[str]], tmp_path: Path
) -> None:
    """Without `ray_mlc.json` there are no other canaries, and no limit but the tokenizer's."""
    folder = tmp_path / "plain"
    shutil.copytree(original, folder)
    for name in ("ray_mlc.json", "canaries.json", "history.jsonl"):
        (folder / name).unlink()
    make(folder, data)
    chosen = resolved(folder, long=LongConfig(max_tokens=9))
    assert chosen.max_tokens == 9
    assert load_classifier(open_model(str(folder)), chosen).tokenizer.max_tokens == 9
    file = folder / "int8" / "int8.json"
    info = json.loads(file.read_text())
    info["canaries"]["scores"][3][0] += 0.2
    file.write_text(json.dumps(info))
    with pytest.raises(ModelError, match=r"does not reproduce the canaries here"):
        load_classifier(open_model(str(folder)), chosen)


@needs_nncf
def test_a_run_goes_on_only_with_the_form_that_it_was_begun_with(
    quantized: Path, tmp_path: Path, tiny_corpus: Path
) -> None:
    from ray_mlc.config import ScoreJob
    from ray_mlc.job_files import load_job
    from ray_mlc.runtime.local import LocalBackend
    from ray_mlc.runtime.score import score

    folder, corpus, output = tmp_path / "model", tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(quantized, folder)
    corpus.mkdir()
    files = sorted(tiny_corpus.glob("*.parquet"))
    shutil.copy(files[0], corpus)
    options = {"model": str(folder), "input": str(corpus), "output": str(output)}
    job = load_job(ScoreJob, options=options, overrides=["engine.dtype=int8", "units.rows=30"])
    summary = score(job, LocalBackend(), Display(quiet=True))
    assert summary["engine"]["dtype"] == "int8"
    own = (folder / "ray_mlc.json").read_text()
    fitted = json.loads(own)
    fitted["decision"]["threshold"] = 0.123
    (folder / "ray_mlc.json").write_text(json.dumps(fitted))
    shutil.copy(files[2], corpus)
    summary = score(job, LocalBackend(), Display(quiet=True), add_new=True)
    assert summary["rows"]["written"] == 160  # by the decision that the form was measured with
    (folder / "ray_mlc.json").write_text(own)
    shutil.copy(files[1], corpus)
    layers = folder / "int8" / "openvino_model.xml"
    layers.write_text(layers.read_text() + "\n")
    info = json.loads((folder / "int8" / "int8.json").read_text())
    info["weights"] = int8.weights_digest(folder / "int8")
    (folder / "int8" / "int8.json").write_text(json.dumps(info))
    before = sorted(path.name for path in (output / "_ray_mlc").rglob("*"))
    with pytest.raises(RunMismatchError, match=r"another int8 form of .*choose another output"):
        score(job, LocalBackend(), Display(quiet=True), add_new=True)
    assert (output / "_SUCCESS").exists()
    assert sorted(path.name for path in (output / "_ray_mlc").rglob("*")) == before


@needs_nncf
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    original: Path, data: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ModelError, match=r"the int8 form cannot be written there .*Permission"):
        make(original, data)


@needs_nncf
def test_what_a_killed_command_left_goes_and_a_form_is_replaced_whole(
    quantized: Path, data: dict[str, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(quantized, folder)
    (folder / ".int8-old").mkdir()
    os.utime(folder / ".int8-old", (1, 1))
    (folder / "int8" / "stray").write_text("of the form before")
    make(folder, data)
    assert [path.name for path in folder.glob(".int8*")] == []
    assert sorted(path.name for path in (folder / "int8").iterdir()) == [
        "int8.json",
        "openvino_model.bin",
        "openvino_model.xml",
    ]


def test_a_model_without_an_int8_form_names_the_command_that_makes_it(original: Path) -> None:
    with pytest.raises(ModelError, match=r"has no int8 form: run `ray-mlc quantize .*model`$"):
        resolved(original)
    with pytest.raises(ModelError, match=r"int8, which runs on CPUs, but actors have GPUs"):
        resolved(original, cuda=True)


def test_int8_is_named_with_openvino_alone() -> None:
    assert EngineConfig(dtype="int8", name="openvino").dtype == "int8"
    with pytest.raises(ValidationError, match="only name: openvino"):
        EngineConfig(dtype="int8", name="torch")


def test_calibration_and_comparison_use_different_examples(
    original: Path, data: dict[str, list[str]]
) -> None:
    folder = str(Path(data["train"][0]).parent)
    around = f"{folder}/../{Path(folder).name}/train.parquet"
    for same in (data["train"], [folder], [around]):
        with pytest.raises(ConfigError, match=r"names examples that are calibrated with"):
            make(original, data, validation=same)
    with pytest.raises(ConfigError, match=r"does not say what it was trained on: give --calibr"):
        make(original, data, calibration=[])


def test_agreement_counts_flips_over_all_cells_and_over_labels_given() -> None:
    targets = np.array([[1, 0], [0, np.nan], [1, 1], [0, 0]], np.float32)
    exact = np.array([[0.9, 0.1], [0.2, 0.9], [0.8, 0.4], [0.1, 0.1]], np.float32)
    scores = np.array([[0.9, 0.1], [0.2, 0.9], [0.4, 0.6], [0.1, 0.2]], np.float32)
    found = agreement(targets, exact, scores, Rules(np.float32([0.5, 0.5])))
    assert found.documents == 4
    assert found.flips == 2 / 8
    assert found.flips_of_given == pytest.approx(2 / 3)
    # float32: hits 2 of 3, none wrong; int8: hits 2 of 3, none wrong
    assert found.f1_micro_float32 == pytest.approx(0.8)
    assert found.loss == pytest.approx(0.0)


@needs_nncf
def test_nncf_does_not_report_its_use_to_its_makers() -> None:
    code = (
        "from ray_mlc.model.engines.int8 import _import_nncf; _import_nncf(); "
        "from nncf.telemetry import wrapper; "
        "print(isinstance(wrapper.telemetry, wrapper.NNCFTelemetryStub))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@needs_nncf
def test_nncf_is_quiet_and_handlers_of_others_stay_as_they_are() -> None:
    handler = logging.StreamHandler()
    logging.getLogger("nncf").addHandler(handler)
    try:
        int8._import_nncf()
        assert handler.level == logging.NOTSET
    finally:
        logging.getLogger("nncf").removeHandler(handler)
    assert not logging.getLogger("nncf").isEnabledFor(logging.INFO)
