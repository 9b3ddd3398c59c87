"""A search on Ray: one folder, the model that `train` would give; interrupted ones go on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from support.curves import events

from ray_mlc import synthetic
from ray_mlc.config import TuneJob
from ray_mlc.errors import InterruptedRunError, RayMlcError, RunMismatchError
from ray_mlc.job_files import load_job, with_values
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.progress import Display

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

RATES = [3e-3, 1e-3, 1e-4]


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TuneJob]:
    """A search of three rates over two epochs on 300 examples: `make_job(output, overrides…)`."""
    folder = tmp_path_factory.mktemp("tuning")
    synthetic.write_examples(folder / "examples", train=300, validation=80, test=1, seed=0)
    synthetic.write_encoder(
        folder / "encoder",
        texts=synthetic.documents(100, seed=2)["text"].to_pylist(),
        vocab_size=256,
        hidden_size=16,
        intermediate_size=16,
        seed=0,
    )

    def make(output: Path, *overrides: str) -> TuneJob:
        options = {
            "train": {
                "data": {
                    "train": str(folder / "examples" / "train.parquet"),
                    "validation": str(folder / "examples" / "validation.parquet"),
                },
                "encoder": str(folder / "encoder"),
                "output": str(output),
                "training": {
                    "epochs": 2,
                    "batch_size": 16,
                    "max_batch_tokens": 512,
                    "max_tokens": 48,
                    "dtype": "float32",
                },
                "workers": {"cpus": 1.0, "max_failures": 0},
            },
            "search.training.learning_rate": RATES,
            "trials": 3,
            "concurrent": 2,
            "scheduler": "none",
        }
        return load_job(TuneJob, options=options, overrides=overrides)

    return make


def run(job: TuneJob) -> dict[str, Any]:
    from ray_mlc.runtime.ray_tune import tune

    return tune(job, Display(quiet=True))


@pytest.fixture(scope="module")
def tuned(
    ray_local: Any, make_job: Callable[..., TuneJob], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TuneJob, dict[str, Any]]:
    """The job and result of a search that nothing disturbed."""
    job = make_job(tmp_path_factory.mktemp("tuned") / "model")
    printed = StringIO()
    with redirect_stdout(printed):
        result = run(job)
    assert printed.getvalue() == ""  # stdout is for data
    return job, result


def test_the_best_trial_is_the_model_that_train_gives(
    tuned: tuple[TuneJob, dict[str, Any]], tmp_path: Path
) -> None:
    job, result = tuned
    rows = result["trials"]
    assert sorted(row["values"]["training.learning_rate"] for row in rows) == sorted(RATES)
    assert [row["state"] for row in rows] == ["finished"] * 3
    best = max(rows, key=lambda row: row["metrics"]["f1_micro"])
    assert (result["best_trial"], result["values"]) == (best["trial"], best["values"])
    assert result["metrics"]["decision"] == pytest.approx(best["metrics"])
    from ray_mlc.runtime.ray_train import train

    values = {**result["values"], "output": str(tmp_path / "model")}
    alone = train(with_values(job.train, values), Display(quiet=True))
    found, expected = open_model(job.train.output), open_model(str(tmp_path / "model"))
    assert alone["best_epoch"] == result["best_epoch"]
    weights = [load_file(model.path / "model.safetensors") for model in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        assert array == pytest.approx(weights[1][name], abs=1e-6), name
    assert found.info.decision.threshold == pytest.approx(expected.info.decision.threshold)
    assert found.info.training["fingerprint"] == expected.info.training["fingerprint"]
    assert found.info.training["settings"] == expected.info.training["settings"]
    assert found.canaries() is not None


def test_nothing_but_the_model_its_table_and_curves_is_left(
    tuned: tuple[TuneJob, dict[str, Any]],
) -> None:
    job, result = tuned
    output = Path(job.train.output)
    assert not (output / "_tune").exists()
    lines = (output / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result["trials"]
    for row in result["trials"]:
        [folder] = (output / "_tensorboard").glob(f"trial-{row['trial']:04d}-*")
        shown = [step for tag, step, _ in events(folder) if tag == "validation/f1_micro"]
        assert shown == [19, 38]


def test_the_same_command_finds_it_tuned_and_another_is_refused(
    tuned: tuple[TuneJob, dict[str, Any]], make_job: Callable[..., TuneJob]
) -> None:
    job, result = tuned
    before = {path: path.stat().st_mtime_ns for path in Path(job.train.output).iterdir()}
    assert run(make_job(Path(job.train.output), "concurrent=1")) == result
    with pytest.raises(RunMismatchError, match=r"train\.training\.epochs 2, not 3"):
        run(make_job(Path(job.train.output), "train.training.epochs=3"))
    assert {path: path.stat().st_mtime_ns for path in Path(job.train.output).iterdir()} == before


def test_an_interrupted_search_goes_on_after_the_epochs_that_were_saved(
    tuned: tuple[TuneJob, dict[str, Any]], make_job: Callable[..., TuneJob], tmp_path: Path
) -> None:
    job = make_job(tmp_path / "model", "concurrent=1", "trials=2")
    events_file = tmp_path / "model" / "_tune" / "events.jsonl"
    done = threading.Event()

    def interrupt() -> None:
        while not done.is_set():
            if events_file.exists() and '"epoch"' in events_file.read_text():
                os.kill(
                    os.getpid(), signal.SIGTERM
                )  # as Ctrl-C; a script in the background ignores that
                return
            time.sleep(0.02)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(InterruptedRunError, match="run the same command to continue"):
            run(job)
    finally:
        done.set()
        thread.join()
    before = [json.loads(line) for line in events_file.read_text().splitlines()]
    epochs = [
        (event["trial"], event["record"]["epoch"]) for event in before if event["event"] == "epoch"
    ]
    assert 1 <= len(epochs) < 4
    assert len((tmp_path / "model" / "trials.jsonl").read_text().splitlines()) >= 1
    result = run(job)
    for row, other in zip(result["trials"], tuned[1]["trials"][:2], strict=True):
        assert row["values"] == other["values"]
        assert row["metrics"] == pytest.approx(other["metrics"], abs=1e-3)
        assert row["epochs"] == 2
    best = max(result["trials"], key=lambda row: row["metrics"]["f1_micro"])
    assert (
        open_model(str(tmp_path / "model")).info.training["settings"]["learning_rate"]
        == (best["values"]["training.learning_rate"])
    )


def test_a_trial_that_fails_is_named_and_others_go_on(
    ray_local: Any, make_job: Callable[..., TuneJob], tmp_path: Path
) -> None:
    # a rate that makes weights infinite
    wild = ("search.training.learning_rate=[1e30, 1e-3]", "search.training.seed=[0]", "trials=2")
    result = run(make_job(tmp_path / "model", *wild, "train.training.epochs=1"))
    states = {row["values"]["training.learning_rate"]: row for row in result["trials"]}
    assert states[1e-3]["state"] == "finished"
    assert states[1e30]["state"] == "failed"
    assert states[1e30]["error"]
    assert result["values"]["training.learning_rate"] == 1e-3


def test_where_all_trials_fail_the_first_reason_is_said_and_nothing_is_in_the_way(
    ray_local: Any, make_job: Callable[..., TuneJob], tmp_path: Path
) -> None:
    with pytest.raises(RayMlcError, match="all 1 trials failed, the first one: ") as caught:
        run(make_job(tmp_path / "none", "search.training.learning_rate=[1e30]"))
    assert "\n" not in str(caught.value)
    # so that what was wrong can be put right
    assert not (tmp_path / "none" / "tune.json").exists()
