"""A training from examples to model folder in one process: what options make of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.displays import Spoken

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig, TrainJob
from ray_mlc.errors import DataError, ModelError
from ray_mlc.evaluation.evaluate import evaluate_scores_at
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.job_files import load_job
from ray_mlc.model.encoder import output_layer, pooling_of
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.folder import ModelFolder, open_model, write_decision
from ray_mlc.runtime import train
from ray_mlc.runtime.prepare import Prepared, about_head, prepare
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.train import (
    VALIDATION_SCORES,
    first_state,
    new_fitter,
    run_epochs,
    write_trained,
)
from ray_mlc.training.linear_probe import fit_head
from ray_mlc.training.loop import Fitter

MARKED = "<url>"
QUIET = Display(quiet=True)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def make_job(
    tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainJob]:
    """A job on few examples, every third of which names a URL: `make_job(output, overrides…)`."""
    folder = tmp_path_factory.mktemp("examples")
    synthetic.write_examples(folder, train=60, validation=30, test=1, seed=0)
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        texts = [
            f"{MARKED} see{MARKED}{text}" if row % 3 == 0 else text
            for row, text in enumerate(table["text"].to_pylist())
        ]
        place = table.schema.get_field_index("text")
        pq.write_table(table.set_column(place, "text", [texts]), file)

    def make(output: Path, *overrides: str) -> TrainJob:
        options = {
            "data.train": str(folder / "train.parquet"),
            "data.validation": str(folder / "validation.parquet"),
            "encoder": str(tiny_encoder),
            "output": str(output),
            "training": {"epochs": 2, "batch_size": 8, "dtype": "float32", "max_tokens": 32},
        }
        return load_job(TrainJob, options=options, overrides=overrides)

    return make


def train_here(job: TrainJob, checkpoint: Path) -> tuple[Prepared, Fitter, ModelFolder]:
    """What the workers of a training do, by one, without Ray."""
    display, settings = Display(quiet=True), job.training
    prepared = prepare(job, display)
    identity: Callable[[Any], Any] = lambda model: model  # noqa: E731
    shares: list[float] = []
    fitter = new_fitter(settings, prepared.material, device=torch.device("cpu"), wrap=identity)
    run_epochs(
        fitter,
        first_state(),
        prepared.material,
        on_step=lambda *_: None,
        on_epoch=lambda *_: None,
        on_head=shares.append,
    )
    assert shares == ([0, 1] if settings.head_init == "linear_probe" else [])
    checkpoint.mkdir()
    scores_NL = fitter.predict(prepared.validation)["max"]
    fitter.save(checkpoint, {"epoch": settings.epochs, "step": 0})
    np.save(checkpoint / VALIDATION_SCORES, scores_NL)
    latest: dict[str, Any] = {"epoch": settings.epochs, "best_epoch": 2, "history": [{"epoch": 2}]}
    write_trained(job, prepared, checkpoint, latest, Path(job.output), display)
    return prepared, fitter, open_model(job.output)


ALL = (
    "training.pooling=mean",
    f"training.special_tokens=['{MARKED}', '[unused9]']",
    "training.layer_decay=0.8",
    "training.head_init=linear_probe",
    "training.head_warmup=0.2",
    "training.average=ema",
)


@pytest.mark.parametrize("overrides", [(), ALL], ids=["defaults", "options"])
def test_the_folder_scores_as_training_measured(
    overrides: tuple[str, ...], make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    job = make_job(tmp_path / "model", *overrides)
    prepared, fitter, folder = train_here(job, tmp_path / "checkpoint")
    engine = EngineConfig(dtype="float32")
    chosen = resolve(folder, engine, BatchingConfig(), cuda=False)
    classifier = load_classifier(folder, chosen)
    texts = pq.read_table(job.data.validation)["text"].to_pylist()
    scores_NL = classifier.predict_proba(texts)
    np.testing.assert_allclose(
        scores_NL, fitter.predict(prepared.validation)["max"], rtol=0, atol=1e-5
    )
    targets = prepared.validation_targets
    threshold = fit_global_threshold(targets, scores_NL)
    assert folder.info.metrics["decision"]["f1_micro"] == pytest.approx(
        evaluate_scores_at(targets, scores_NL, np.float32(threshold))["f1_micro"], abs=0.02
    )
    assert (seen := folder.distribution()) is not None
    given_L = (scores_NL >= np.float32(folder.info.decision.threshold)).sum(axis=0)
    assert np.abs(seen.counts.given_L - given_L).max() <= 1
    assert pooling_of(folder.path) == ("mean" if overrides else None)
    canaries = folder.canaries()
    assert canaries is not None
    assert sum(MARKED in text for text in canaries.texts) == bool(overrides)
    marker = classifier.tokenizer.encode([MARKED]).window(0).tolist()
    assert (len(marker) == 3) == bool(overrides)
    if overrides:
        assert prepared.train.ids.values.tolist().count(marker[1]) == 40
    assert folder.info.training["settings"]["pooling"] == ("mean" if overrides else "auto")


@pytest.mark.parametrize("head_init", ["random", "linear_probe"])
def test_a_head_is_fitted_before_the_first_step_if_it_is_to_be(
    head_init: str,
    make_job: Callable[..., TrainJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untrained: list[bool] = []

    def fit_head(fitter: Fitter, told: Callable[[float], None]) -> None:
        untrained.append(not fitter.optimizer.state)
        told(1)

    monkeypatch.setattr(train, "fit_head", fit_head)
    job = make_job(tmp_path / "model", f"training.head_init={head_init}")
    train_here(job, tmp_path / "checkpoint")
    assert untrained == [True] * (head_init == "linear_probe")


@pytest.mark.parametrize("overrides", [(), ALL], ids=["defaults", "options"])
def test_a_training_goes_on_where_the_model_it_is_given_stands(
    overrides: tuple[str, ...], make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    first = make_job(tmp_path / "first", *overrides)
    _, before, folder = train_here(first, tmp_path / "checkpoint")
    job = make_job(tmp_path / "second", *overrides, f"encoder={first.output}")
    prepared = prepare(job, QUIET)
    fitter = new_fitter(job.training, prepared.material, device=CPU, wrap=lambda model: model)
    if job.training.head_init == "linear_probe":  # for labels that are new
        assert fit_head(fitter) == 0
    np.testing.assert_allclose(
        fitter.predict(prepared.validation)["max"],
        before.predict(prepared.validation)["max"],
        rtol=0,
        atol=1e-6,
    )
    count = len(folder.info.labels)
    said = f"the head of {count} of {count} label(s) is {first.output}'s"
    assert about_head(job, prepared) == said


def test_labels_that_come_or_go_leave_the_others_as_they_were(
    make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    first = make_job(tmp_path / "first")
    _, before, folder = train_here(first, tmp_path / "checkpoint")
    lost, *kept = folder.info.labels
    files = {}
    for split in ("train", "validation"):
        table = pq.read_table(getattr(first.data, split))
        labels = [
            [name for name in names if name != lost] + ["0 new"] * (row % 4 == 0)
            for row, names in enumerate(table["labels"].to_pylist())
        ]
        files[split] = tmp_path / f"{split}.parquet"
        pq.write_table(pa.table({"text": table["text"], "labels": labels}), files[split])
    changes = [f"data.{split}={file}" for split, file in files.items()]
    changes += [f"encoder={first.output}"]
    job = make_job(tmp_path / "second", *changes)
    prepared = prepare(job, QUIET)
    assert prepared.label_set.names == ("0 new", *kept)
    count = len(kept)
    assert about_head(job, prepared) == (
        f"the head of {count} of {count + 1} label(s) is {first.output}'s; "
        f"1 that are not among the examples' are lost, such as {lost!r}"
    )
    fitter = new_fitter(job.training, prepared.material, device=CPU, wrap=lambda model: model)
    drawn = output_layer(fitter.model, count + 1).weight[0].detach().clone()
    assert fit_head(fitter) == 1
    assert not torch.equal(output_layer(fitter.model, count + 1).weight[0], drawn)
    np.testing.assert_allclose(
        fitter.predict(prepared.validation)["max"][:, 1:],
        before.predict(prepared.validation)["max"][:, 1:],
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(("asked", "read"), [(48, 48), (100, 64)])
def test_a_model_of_short_texts_goes_on_with_longer_ones_up_to_its_positions(
    asked: int, read: int, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    first = make_job(tmp_path / "first")  # reads 32
    train_here(first, tmp_path / "checkpoint")
    longer = f"training.max_tokens={asked}"
    job = make_job(tmp_path / "second", f"encoder={first.output}", longer)
    display = Spoken()
    prepared = prepare(job, display)
    assert prepared.tokenizer.max_tokens == read
    assert prepared.train.ids.lengths.max() == read
    (note,) = [line for line in display.said if "are cut" in line]
    assert f"longer than {read} tokens" in note
    assert ("its encoder takes no more at once" in note) == (asked > read)


def test_a_head_that_is_not_kept_is_told_so(
    make_job: Callable[..., TrainJob], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(pooling="mean")
    job = make_job(tmp_path / "model", f"encoder={model}", "training.pooling=cls")
    assert about_head(job, prepare(job, QUIET)) == (
        f"note: nothing of the head of {model} is kept: it pools otherwise than "
        "training.pooling=cls"
    )
    bare = make_job(tmp_path / "model")
    assert about_head(bare, prepare(bare, QUIET)) is None


def test_every_option_has_a_fingerprint_of_its_own_and_curves_have_none(
    make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    display = Display(quiet=True)
    changes = (*ALL, "training.pooling=cls", "tracking.mlflow=http://host", "training.seed=0")
    prints = {
        change: prepare(make_job(tmp_path / "model", change), display).fingerprint
        for change in changes
    }
    assert prints["tracking.mlflow=http://host"] == prints["training.seed=0"]
    assert len(set(prints.values())) == len(changes) - 1


def test_another_decision_of_the_model_it_goes_on_from_is_the_same_run(
    make_job: Callable[..., TrainJob], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(make_model(), tmp_path / "first"))
    job = make_job(tmp_path / "second", f"encoder={model}")
    before = prepare(job, QUIET).fingerprint
    folder = open_model(str(model))
    decision = folder.info.decision.model_copy(update={"threshold": 0.123})
    write_decision(folder, decision, folder.info.metrics)
    assert open_model(str(model)).info.decision.threshold == 0.123
    assert prepare(job, QUIET).fingerprint == before
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("classifier.bias"))
    weights[name] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert prepare(job, QUIET).fingerprint != before


def test_what_an_encoder_cannot_do_is_refused_before_ray_is_started(
    make_job: Callable[..., TrainJob], tiny_encoder: Path, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "model", "training.pooling=cls")
    assert prepare(job, Display(quiet=True)).vocabulary_size is None
    # a tokenizer that puts no token before the text
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"] = None
    file.write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64})
    )
    other = make_job(tmp_path / "model", "training.pooling=cls", f"encoder={folder}")
    with pytest.raises(ModelError, match="puts no token before the text") as caught:
        prepare(other, Display(quiet=True))
    assert "\n" not in str(caught.value)


def test_a_head_that_cannot_be_fitted_is_refused_before_ray_is_started(
    make_job: Callable[..., TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.training.linear_probe.output_layer", lambda model, count: None)
    prepare(make_job(tmp_path / "model"), Display(quiet=True))
    job = make_job(tmp_path / "model", "training.head_init=linear_probe")
    with pytest.raises(ModelError, match=r"head_init is linear_probe.*set it to random"):
        prepare(job, Display(quiet=True))


def test_validation_without_a_label_of_the_training_rows_is_refused(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    for name, label in (("train", "a"), ("validation", "b")):
        rows = {"id": ["1", "2"], "text": ["one text", "another"], "labels": [[label], []]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    options = {
        "data.train": str(tmp_path / "train.parquet"),
        "data.validation": str(tmp_path / "validation.parquet"),
        "encoder": str(tiny_encoder),
        "output": str(tmp_path / "model"),
    }
    job = load_job(TrainJob, options=options)
    with pytest.raises(DataError, match=r"none of its labels, such as 'b', is in a training row"):
        prepare(job, Display(quiet=True))


@pytest.mark.parametrize(
    ("overrides", "lower"),
    [
        (("training.windows={max_windows: 5, overlap: 0}",), "training.windows.max_windows"),
        ((), "training.max_tokens"),
    ],
)
def test_documents_beyond_the_batch_budget_are_counted_and_what_bounds_them_is_named(
    make_job: Callable[..., TrainJob], tmp_path: Path, overrides: tuple[str, ...], lower: str
) -> None:
    display = Spoken()
    for budget in (31, 10_000):
        display.said.clear()
        job = make_job(tmp_path / "model", f"training.max_batch_tokens={budget}", *overrides)
        costs_N = prepare(job, display).train.ids.costs
        notes = [line for line in display.said if "training.max_batch_tokens" in line]
        if budget > costs_N.max():
            assert notes == []
            continue
        (note,) = notes
        beyond = int((costs_N > budget).sum())
        assert note.startswith(f"note: {beyond:,} of the training texts have more tokens")
        assert f"(up to {costs_N.max():,}) than training.max_batch_tokens (31)" in note
        assert note.endswith(f"; {lower} bounds it")


def test_freed_memory_is_given_back_now_and_then_and_each_step_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[object] = []
    monkeypatch.setattr(train.heap, "trim", lambda: events.append("trim"))
    for step in range(2 * train.TRIM_STEPS):
        train._step_done({"epoch": 1}, lambda *told: events.append(told), step, 0.5)
    assert events.count("trim") == 2
    assert [told for told in events if told != "trim"] == [
        ({"epoch": 1}, step, 0.5) for step in range(2 * train.TRIM_STEPS)
    ]
