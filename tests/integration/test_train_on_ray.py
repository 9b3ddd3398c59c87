"""Training on Ray: a whole model folder, the same for any number of workers, even killed ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.curves import events

from ray_mlc import synthetic
from ray_mlc.config import TrainJob, WindowsConfig
from ray_mlc.errors import ModelError, ResourceError
from ray_mlc.job_files import load_job
from ray_mlc.model.folder import open_model
from ray_mlc.model.windows import AGGREGATES
from ray_mlc.runtime.progress import Display

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

EPOCHS = 8


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainJob]:
    """A job on 300 examples and a tiny encoder without dropout: `make_job(output, overrides…)`."""
    folder = tmp_path_factory.mktemp("training")
    synthetic.write_examples(folder / "examples", train=300, validation=80, test=1, seed=0)
    synthetic.write_encoder(
        folder / "encoder",
        texts=synthetic.documents(100, seed=2)["text"].to_pylist(),
        vocab_size=256,
        hidden_size=16,
        intermediate_size=16,
        dropout=0.0,
        seed=0,
    )

    def make(output: Path, *overrides: str) -> TrainJob:
        options = {
            "data.train": str(folder / "examples" / "train.parquet"),
            "data.validation": str(folder / "examples" / "validation.parquet"),
            "encoder": str(folder / "encoder"),
            "output": str(output),
            "training": {
                "epochs": EPOCHS,
                "batch_size": 16,
                "max_batch_tokens": 512,
                "learning_rate": 3e-3,
                "max_tokens": 48,
                "windows": {"overlap": 8, "max_windows": 3},
                "dtype": "float32",
            },
            "workers.cpus": 1.0,
        }
        return load_job(TrainJob, options=options, overrides=overrides)

    return make


@pytest.fixture(scope="module")
def trained(
    ray_local: Any, make_job: Callable[..., TrainJob], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainJob, dict[str, Any]]:
    """The job and result of an undisturbed training on two workers."""
    job = make_job(tmp_path_factory.mktemp("two") / "model", "workers.count=2")
    return job, run(job)


def run(job: TrainJob) -> dict[str, Any]:
    from ray_mlc.runtime.ray_train import train

    return train(job, Display(quiet=True))


def assert_same_history(found: list[Any], expected: list[Any]) -> None:
    assert [record["epoch"] for record in found] == [record["epoch"] for record in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-3)
        assert one["decision"]["loss"] == pytest.approx(other["decision"]["loss"], abs=1e-3)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"])


def test_the_model_folder_is_whole_and_nothing_else_is_left(
    trained: tuple[TrainJob, dict[str, Any]],
) -> None:
    job, result = trained
    model = open_model(job.output)
    canaries = model.canaries()
    assert model.label_set == synthetic.LABELS
    assert np.shape(canaries.scores) == (len(canaries.texts), len(synthetic.LABELS))
    assert model.info.decision.threshold == result["threshold"]
    assert model.info.decision.objective == "f1_micro"
    assert model.max_tokens == 48
    # how windows are joined was left to validation
    [kept] = [item for item in result["history"] if item["epoch"] == result["best_epoch"]]
    assert model.windows == WindowsConfig(overlap=8, max_windows=3, aggregate=kept["aggregate"])
    assert {record["aggregate"] for record in result["history"]} <= set(AGGREGATES)
    lines = (model.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result["history"]
    losses = [record["train_loss"] for record in result["history"]]
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.97 * losses[0]
    best = max(result["history"], key=lambda record: record["decision"]["f1_micro"])
    assert result["best_epoch"] == best["epoch"]
    assert result["metrics"]["decision"] == best["decision"]
    assert not (model.path / "_checkpoints").exists()


def test_tensorboard_finds_every_step_and_epoch_beside_the_model(
    trained: tuple[TrainJob, dict[str, Any]],
) -> None:
    job, result = trained
    fingerprint = open_model(job.output).info.training["fingerprint"]
    found = events(Path(job.output) / "_tensorboard" / fingerprint[:16])
    steps = math.ceil(300 / 16)
    for tag in ("train/loss", "train/learning_rate"):
        assert [step for name, step, _ in found if name == tag] == [*range(1, EPOCHS * steps + 1)]
    f1 = [(step, value) for name, step, value in found if name == "validation/f1_micro"]
    assert f1 == [
        (record["epoch"] * steps, pytest.approx(record["decision"]["f1_micro"]))
        for record in result["history"]
    ]


def test_the_model_folder_loads_in_pipeline_and_proves_itself(
    trained: tuple[TrainJob, dict[str, Any]],
) -> None:
    from transformers import pipeline

    from ray_mlc.config import BatchingConfig, EngineConfig
    from ray_mlc.model.engines.choose import load_classifier, resolve

    model = open_model(trained[0].output)
    engine = EngineConfig(dtype="float32")
    resolved = resolve(model, engine, BatchingConfig(), cuda=False)
    # of longer texts pipeline reads the first window only
    texts = [text[:40] for text in synthetic.documents(8, seed=3)["text"].to_pylist()]
    ours_NL = load_classifier(model, resolved).predict_proba(texts)
    classify = pipeline("text-classification", model=str(model.path), top_k=None, device="cpu")
    for text, ours in zip(texts, ours_NL, strict=True):
        theirs = {item["label"]: item["score"] for item in classify([text], truncation=True)[0]}
        expected = [theirs[name] for name in synthetic.LABELS.names]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_the_same_command_finds_it_trained_and_another_is_refused(
    trained: tuple[TrainJob, dict[str, Any]], make_job: Callable[..., TrainJob]
) -> None:
    job, result = trained
    before = {path: path.stat().st_mtime_ns for path in Path(job.output).iterdir()}
    again = run(job)
    for key in ("model", "best_epoch", "threshold", "metrics"):
        assert again[key] == result[key]
    with pytest.raises(ModelError, match="other data, encoder or settings"):
        run(make_job(Path(job.output), "training.seed=1"))
    assert {path: path.stat().st_mtime_ns for path in Path(job.output).iterdir()} == before


@pytest.mark.slow
def test_one_worker_has_the_history_of_two(
    trained: tuple[TrainJob, dict[str, Any]], make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    alone = run(make_job(tmp_path / "model", "workers.count=1"))
    assert_same_history(alone["history"], trained[1]["history"])


@pytest.mark.slow  # `make cluster-test` kills whole nodes besides
def test_a_killed_worker_changes_nothing_in_the_history(
    trained: tuple[TrainJob, dict[str, Any]],
    make_job: Callable[..., TrainJob],
    killer: Any,
    tmp_path: Path,
) -> None:
    output = tmp_path / "model"

    def epochs_saved() -> int:
        return len(list(output.glob("_checkpoints/**/state.json")))

    with killer.kill("RayTrainWorker", when=epochs_saved):
        result = run(make_job(output, "workers.count=2"))
    assert len(killer.killed) == 1
    assert killer.seen[0] < EPOCHS - 1
    assert_same_history(result["history"], trained[1]["history"])
    assert open_model(str(output)).digest


@pytest.mark.slow
def test_patience_ends_a_still_training_and_of_equal_epochs_the_first_is_kept(
    ray_local: Any, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    still = ("training.learning_rate=1e-12", "training.head_learning_rate=1e-12")
    result = run(make_job(tmp_path / "model", *still, "training.patience=2"))
    assert [record["epoch"] for record in result["history"]] == [1, 2, 3]
    assert len({record["decision"]["f1_micro"] for record in result["history"]}) == 1
    assert result["best_epoch"] == 1
    assert open_model(result["model"]).info.training["best_epoch"] == 1


def test_too_many_workers_are_refused_at_once(
    ray_local: Any, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=r"9 worker\(s\) of 1 CPU .* free"):
        run(make_job(tmp_path / "model", "workers.count=9"))
