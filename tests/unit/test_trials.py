"""The ledger of a search: nothing that was done is lost or done twice, and no two are mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.config import TuneJob
from ray_mlc.errors import RunMismatchError
from ray_mlc.job_files import load_job
from ray_mlc.runtime.session import NodeResources
from ray_mlc.runtime.trials import (
    WORST,
    Ledger,
    best_trial,
    check_identity,
    comparable,
    how_it_ended,
    read_table,
    score_of,
    write_identity,
    write_table,
)

OPTIONS = {
    "train.data.train": "a",
    "train.data.validation": "b",
    "train.output": "o",
    "search.training.learning_rate": [1e-3, 1e-4],
}


def tune(*overrides: str) -> TuneJob:
    return load_job(TuneJob, options=OPTIONS, overrides=overrides)


def record(epoch: int, f1: float | None, loss: float = 1.0) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "seconds": 2.0,
        "threshold": 0.5,
        "decision": {"f1_micro": f1, "loss": loss},
    }


def filled(file: Path) -> Ledger:
    """A trial that is done, one that failed, and one in its second epoch."""
    ledger = Ledger(file)
    ledger.session()
    for number in range(3):
        ledger.begin(number, {"training.learning_rate": 10.0**-number})
    ledger.epoch(0, record(1, 0.4), 1, "zero-1")
    ledger.epoch(1, record(1, 0.9), 1, "one-1")
    ledger.epoch(0, record(2, 0.3), 1, "zero-2")
    ledger.end(0, "finished")
    ledger.end(1, "failed", "out of memory")
    ledger.epoch(2, record(1, 0.4), 1, "two-1")
    return ledger


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "events.jsonl")
    again = Ledger(tmp_path / "events.jsonl")
    assert again.trials == ledger.trials
    assert again.sessions == 1
    assert [trial.over for trial in again.trials.values()] == [True, True, False]
    assert again.trials[2].latest_checkpoint == "two-1"
    assert again.trials[0].best == record(1, 0.4)


def test_a_kill_at_any_byte_leaves_a_ledger_that_goes_on(tmp_path: Path) -> None:
    filled(tmp_path / "events.jsonl")
    content = (tmp_path / "events.jsonl").read_bytes()
    for length in range(0, len(content), 7):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(content[:length])
        ledger = Ledger(cut)
        number = len(ledger.trials)
        ledger.begin(number, {"training.learning_rate": 5.0})
        ledger.epoch(number, record(1, 0.5), 1, "new")
        again = Ledger(cut)
        assert again.trials == ledger.trials
        assert again.trials[number].training["epoch"] == 1
        lines = content[:length].count(b"\n") + 2
        assert len(cut.read_bytes().splitlines()) == lines


def test_an_epoch_that_is_done_again_replaces_the_first(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "events.jsonl")
    ledger.epoch(2, record(2, 0.5), 2, "two-2")
    ledger.epoch(2, record(2, 0.6), 2, "two-2-again")
    trial = ledger.trials[2]
    assert [item["epoch"] for item in trial.training["history"]] == [1, 2]
    assert trial.metric("f1_micro") == 0.6
    assert trial.latest_checkpoint == "two-2-again"


def test_the_best_trial_is_the_first_of_equal_ones_and_none_that_failed(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "events.jsonl")
    trials = list(ledger.trials.values())
    for order in (trials, trials[::-1]):
        best = best_trial(order, "f1_micro")
        assert best is not None
        assert best.number == 0
    ledger.epoch(2, record(2, None, loss=0.1), 1, "two-2")
    assert best_trial(trials, "f1_micro") is trials[0]
    assert best_trial([trials[1]], "f1_micro") is None
    assert best_trial([], "f1_micro") is None


def test_of_a_loss_the_lower_is_better(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    for number, loss in enumerate((0.5, 0.2, 0.9)):
        ledger.begin(number, {})
        ledger.epoch(number, record(1, 0.1, loss=loss), 1, "x")
    best = best_trial(list(ledger.trials.values()), "loss")
    assert best is not None
    assert best.number == 1
    assert score_of("loss", 0.2) > score_of("loss", 0.5)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_has_no_metric_is_worse_than_anything(value: float | None) -> None:
    assert score_of("f1_micro", value) == score_of("loss", value) == WORST
    assert score_of("loss", 1e6) > WORST
    assert score_of("f1_micro", 0.0) > WORST


def test_a_trial_is_finished_at_its_last_epoch_or_without_patience(tmp_path: Path) -> None:
    trial = filled(tmp_path / "events.jsonl").trials[0]
    settings = tune("train.training.epochs=2").train.training
    assert how_it_ended(trial, settings) == "finished"
    longer = tune("train.training.epochs=3").train.training
    assert how_it_ended(trial, longer) == "stopped"
    patient = tune("train.training.epochs=3", "train.training.patience=1").train.training
    assert how_it_ended(trial, patient) == "finished"


def test_the_table_has_a_line_per_trial(tmp_path: Path) -> None:
    rows = write_table(tmp_path, filled(tmp_path / "events.jsonl").trials)
    assert read_table(tmp_path) == rows
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert [row["state"] for row in rows] == ["finished", "failed", "running"]
    assert rows[0]["metrics"] == {"f1_micro": 0.4, "loss": 1.0}
    assert (rows[0]["epochs"], rows[0]["best_epoch"], rows[0]["seconds"]) == (2, 1, 4.0)
    assert rows[1]["error"] == "out of memory"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.training.learning_rate=[0.01]", "search.training.learning_rate [0.001, 0.0001]"),
        ("trials=7", "trials 20, not 7"),
        ("train.training.epochs=9", "train.training.epochs 3, not 9"),
        ("train.data.train=c", 'train.data.train "a", not "c"'),
        ("scheduler=none", 'scheduler.name "asha", not "none"'),
        ("search.training.pooling=[cls]", 'search.training.pooling null, not ["cls"]'),
    ],
)
def test_another_search_in_a_folder_is_refused_with_the_difference(
    override: str, said: str, tmp_path: Path
) -> None:
    write_identity(tmp_path, tune(), "digest")
    check_identity(tmp_path, tune(), "digest")
    with pytest.raises(RunMismatchError) as caught:
        check_identity(tmp_path, tune(override), None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_examples_under_the_same_name_are_refused(tmp_path: Path) -> None:
    write_identity(tmp_path, tune(), "digest")
    check_identity(tmp_path, tune(), None)
    with pytest.raises(RunMismatchError, match="they were changed since"):
        check_identity(tmp_path, tune(), "other")
    (tmp_path / "tune.json").write_text("{")
    with pytest.raises(RunMismatchError, match="cannot be read as a search"):
        check_identity(tmp_path, tune(), None)


@pytest.mark.parametrize(
    "override",
    [
        "concurrent=3",
        "train.workers.cpus=2.0",
        "train.ray.address=auto",
        "train.tracking.mlflow=http://host",
        "train.output=elsewhere",
    ],
)
def test_a_search_may_go_on_with_other_machines(override: str, tmp_path: Path) -> None:
    write_identity(tmp_path, tune(), "digest")
    check_identity(tmp_path, tune(override), "digest")
    assert comparable(tune(override)) == comparable(tune())


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        ([], [(8, 0)], (1, 8.0, 0.0)),  # all cores: memory holds one for sure
        ([], [(8, 0), (8, 0)], (2, 8.0, 0.0)),
        (["train.workers.cpus=2.0"], [(8, 0)], (4, 2.0, 0.0)),
        (["train.workers.cpus=2.0"], [(64, 0)], (20, 2.0, 0.0)),  # no more than trials
        ([], [(16, 4)], (4, 4.0, 1.0)),
        ([], [(16, 4), (16, 0)], (4, 4.0, 1.0)),
        (["train.workers.gpus=0.5"], [(16, 2)], (4, 4.0, 0.5)),
        (["concurrent=4"], [(8, 0)], (4, 2.0, 0.0)),
    ],
)
def test_trials_take_what_the_machines_have(
    overrides: list[str], nodes: list[tuple[float, float]], expected: tuple[Any, ...]
) -> None:
    from ray_mlc.runtime.ray_tune import plan_trials

    found = [NodeResources(float(cpus), float(gpus)) for cpus, gpus in nodes]
    free = NodeResources(sum(n.cpus for n in found), sum(n.gpus for n in found))
    plan = plan_trials(tune(*overrides), 20, found, free)
    assert (plan.count, plan.cpus, plan.gpus) == expected


def test_halving_knows_the_trials_of_earlier_sessions(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from ray_mlc.runtime.ray_tune import Halving

    ledger = Ledger(tmp_path / "events.jsonl")
    for number, f1 in enumerate((0.8, 0.7, 0.6)):
        ledger.begin(number, {})
        ledger.epoch(number, record(1, f1), 1, "x")
        if number:
            ledger.end(number, "stopped")
    options: dict[str, Any] = {"time_attr": "epoch", "max_t": 9, "reduction_factor": 3}

    def decide(known: Ledger, f1: float) -> str:
        scheduler = Halving(known, "f1_micro", **options)
        begun = SimpleNamespace(trial_id="a", config={"trial": 0})
        new = SimpleNamespace(trial_id="b", config={"trial": 3})
        for trial in (begun, new):
            scheduler.on_trial_add(None, trial)
        # an epoch after the one that was compared: no second vote at that one
        assert scheduler.on_trial_result(None, begun, {"epoch": 2, "score": 0.1}) == "CONTINUE"
        return str(scheduler.on_trial_result(None, new, {"epoch": 1, "score": f1}))

    assert decide(ledger, 0.9) == "CONTINUE"
    assert decide(ledger, 0.65) == "STOP"
    empty = Ledger(tmp_path / "none.jsonl")
    assert Halving(empty, "f1_micro", **options)._num_stopped == 0


def test_rows_are_json_without_a_search(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    ledger.begin(0, {"training.loss": {"name": "focal"}})
    ledger.end(0, "failed", "first\u2028line")
    [row] = write_table(tmp_path, ledger.trials)
    assert row["metrics"] is None
    assert json.loads((tmp_path / "trials.jsonl").read_text(encoding="utf-8")) == row


def test_optuna_is_prepared_for_whatever_it_may_put_together() -> None:
    from ray_mlc.runtime.ray_tune import Search, preparation_key

    job = tune(
        "algorithm=optuna",
        "trials=3",
        "search.training.learning_rate={low: 1e-5, high: 1e-3}",
        "search.encoder=[a, b]",
        "search.training.max_tokens={low: 64, high: 256, step: 64}",
        "search.training.pooling=[cls, mean]",
        "search.training.layer_decay={low: 0.5, high: 1}",
        "search.training.head_init=[random, linear_probe]",
    )
    trainings = Search.of(job).trainings()
    assert len({preparation_key(training) for training in trainings}) == 2 * 4
    assert {training.training.pooling for training in trainings} == {"cls", "mean"}
    assert {training.training.layer_decay for training in trainings} == {0.5}
    assert {training.training.head_init for training in trainings} == {"random", "linear_probe"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.training.max_tokens={low: 64, high: 512, log: true}", "give a list of values"),
        ("search.training.max_tokens={low: 64, high: 512}", "asks for 449 ways to tokenize"),
    ],
)
def test_endless_preparation_is_refused(override: str, said: str) -> None:
    from ray_mlc.errors import ConfigError
    from ray_mlc.runtime.ray_tune import Search

    job = tune("algorithm=optuna", "search.training.learning_rate={low: 1, high: 2}", override)
    with pytest.raises(ConfigError, match=said):
        Search.of(job).trainings()


def test_trials_that_tokenize_alike_share_what_is_prepared() -> None:
    from ray_mlc.runtime.ray_tune import Search, preparation_key

    job = tune("search.training.pooling=[cls, mean]", "search.training.loss=[bce, focal]")
    search = Search.of(job)
    assert search.trials == 8
    assert len({preparation_key(training) for training in search.trainings()}) == 1


@pytest.mark.parametrize(("trials", "drawn"), [(1, False), (2, True), (5, True)])
def test_a_space_that_is_tried_whole_is_drawn_also_with_optuna(trials: int, drawn: bool) -> None:
    from ray_mlc.runtime.ray_tune import Search

    search = Search.of(tune("algorithm=optuna", f"trials={trials}"))
    assert (search.drawn is not None) == drawn
    assert search.trials == min(trials, 2)
