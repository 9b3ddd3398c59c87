"""Spaces over the keys of a training: what they give, and what is refused before it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.config import TuneJob
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import dump_job, load_job
from ray_mlc.training.search import (
    MOST_POINTS,
    Optuna,
    axes_of,
    draw_trials,
    points_in,
    trial_job,
)

OPTIONS = {"train.data.train": "a", "train.data.validation": "b", "train.output": "o"}


def tune(*overrides: str) -> TuneJob:
    return load_job(TuneJob, options=OPTIONS, overrides=overrides)


def refused(*overrides: str) -> str:
    """The line with which a search is refused."""
    with pytest.raises(ConfigError) as caught:
        axes_of(tune(*overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def drawn(*overrides: str, trials: int = 50, seed: int = 0) -> list[dict[str, Any]]:
    return draw_trials(axes_of(tune(*overrides)), trials=trials, seed=seed)


def column(trials: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [values[key] for values in trials]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rte=[1.0]", "unknown key training.learning_rte: did you mean lea"),
        ("trainig.learning_rate=[1.0]", "unknown key trainig: did you mean training?"),
        ("training.learning_rate={low: 1, hihg: 2}", "unknown key hihg: expected low, high"),
        ("training.learning_rate={low: 2, high: 1}", "expected low (2) below high (1)"),
        ("training.learning_rate={low: 1, high: 1}", "expected low (1) below high (1)"),
        ("training.learning_rate={low: 0, high: 1}", "is 0: expected greater than 0"),
        ("training.learning_rate={low: 0, high: 1, log: true}", "low above 0 with log: true"),
        ("training.learning_rate={low: .nan, high: 1}", "expected a finite number"),
        ("training.learning_rate={low: 0.1, high: .inf}", "expected a finite number"),
        ("training.learning_rate={low: 1, high: 2, log: true, step: 1}", "log: true or a step"),
        ("training.learning_rate={low: 1, high: 2, step: 0}", "expected greater than 0"),
        ("training.learning_rate={low: 1, high: 2, step: 1e-9}", "expected at most 10,000"),
        ("training.learning_rate.x=[1]", "learning_rate is 5e-05, which has no keys"),
        ("training.warmup={low: 0, high: 1}", "warmup is 1: expected less than 1"),
        ("training.epochs={low: 1.5, high: 3}", "expected whole numbers"),
        ("training.epochs={low: 1, high: 3, step: 0.5}", "expected a whole number"),
        ("training.max_tokens={low: 1, high: 30}", "max_tokens is 1: expected greater than"),
        ("training.epochs=[]", "is empty"),
        ("training.epochs=[1, 2, 1]", "has a value twice"),
        ("training.epochs=3", "is 3: expected"),
        ("training.loss=[bce, fokal]", "'fokal': expected 'bce', 'focal'"),
        ("training.loss.gamma=[1.0]", "gamma has no meaning with name: bce"),
        ("encoder={low: 1, high: 2}", "expected a valid string"),
        ("training.best_metric=[loss]", "cannot be varied, trials are compared by it"),
        ("data.validation=[a]", "cannot be varied, trials are compared on it"),
        ("workers.cpus=[1.0]", "cannot be varied, it changes nothing"),
        ("output=[a, b]", "cannot be varied"),
    ],
)
def test_what_the_training_would_refuse_is_refused_before_anything_starts(
    override: str, said: str
) -> None:
    assert said in refused(f"search.{override}")
    assert refused(f"search.{override}").count("search") >= 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search={}"], "expected keys to vary"),
        (["search=[1]"], "expected a valid dictionary"),
        (["train.training.epoch=3"], "unknown key train.training.epoch"),
        (["search.training.seed=[1]", "train.workers.count=2"], "trained by one worker"),
        (["search.training.seed=[1]", "train.workers.count={max: 2}"], "trained by one worker"),
        (["search.training.seed=[1]", "train.checkpoints.every_steps=5"], "after each epoch"),
        (["search.training.seed=[1]", "scheduler=asah"], "expected 'asha' or 'none'"),
        (["search.training.seed=[1]", "scheduler.reduction=1"], "expected greater than 1"),
        (["search.training.seed=[1]", "algorithm=bayes"], "expected 'random' or 'optuna'"),
        (["search.training.seed=[1]", "trials=0"], "trials is 0"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(overrides: list[str], said: str) -> None:
    assert said in refused(*overrides)


def test_a_key_within_another_one_is_refused() -> None:
    search = "search={training.loss: [bce, focal], training.loss.name: [bce]}"
    assert "holds search.training.loss.name: vary one of them" in refused(search)


def test_keys_may_be_nested_as_in_a_job() -> None:
    nested = tune("search={training: {epochs: [1, 2], loss: {name: [bce]}}, encoder: [x]}")
    dotted = tune(
        "search.training.epochs=[1, 2]", "search.training.loss.name=[bce]", "search.encoder=[x]"
    )
    assert nested == dotted
    assert list(nested.search) == ["training.epochs", "training.loss.name", "encoder"]


def test_a_dumped_search_loads_as_the_same_search(tmp_path: Any) -> None:
    job = tune(
        "search.training.learning_rate={low: 1e-5, high: 1e-3, log: true}",
        "search.training.loss=[bce, {name: focal, gamma: 1.0}]",
        "scheduler=none",
    )
    file = tmp_path / "job.yaml"
    file.write_text(dump_job(job))
    assert load_job(TuneJob, file) == job


def test_whole_numbers_are_drawn_where_the_key_takes_no_others() -> None:
    epochs = column(drawn("search.training.epochs={low: 2, high: 5}"), "training.epochs")
    assert sorted(epochs) == [2, 3, 4, 5]
    assert all(isinstance(value, int) for value in epochs)
    sizes = drawn("search.training.batch_size={low: 8, high: 512, log: true}")
    assert all(isinstance(value, int) for value in column(sizes, "training.batch_size"))
    decays = column(
        drawn("search.training.weight_decay={low: 0, high: 1}"), "training.weight_decay"
    )
    assert any(not value.is_integer() for value in decays)


def test_a_logarithmic_range_gives_each_power_of_ten_its_share() -> None:
    rates = column(
        drawn("search.training.learning_rate={low: 1e-6, high: 1e-2, log: true}", trials=400),
        "training.learning_rate",
    )
    shares = [sum(10**-p <= rate < 10 ** (1 - p) for rate in rates) / 400 for p in (3, 4, 5, 6)]
    assert all(0.15 < share < 0.35 for share in shares)


def test_steps_reach_both_ends_as_they_are_written() -> None:
    found = drawn("search.training.weight_decay={low: 0, high: 0.3, step: 0.1}")
    assert sorted(column(found, "training.weight_decay")) == [0.0, 0.1, 0.2, 0.3]
    found = drawn("search.training.weight_decay={low: 0, high: 0.35, step: 0.1}")
    assert max(column(found, "training.weight_decay")) == 0.3


def test_no_two_trials_are_alike_and_a_small_space_is_tried_whole() -> None:
    space = ("search.training.epochs=[1, 2, 3]", "search.training.pooling=[cls, mean]")
    found = drawn(*space, trials=20)
    assert points_in(axes_of(tune(*space))) == 6
    assert len(found) == len({json.dumps(values) for values in found}) == 6
    big = drawn("search.training.learning_rate={low: 1e-5, high: 1e-3}", trials=300)
    assert len({json.dumps(values) for values in big}) == 300


@pytest.mark.parametrize("trials", [1, 5, 30])
@pytest.mark.parametrize(
    "space",
    [
        "search.training.learning_rate={low: 1e-5, high: 1e-3, log: true}",
        "search.training.seed={low: 0, high: 900}",
        f"search.training.seed={{low: 0, high: {10 * MOST_POINTS}}}",
    ],
)
def test_the_seed_decides_and_more_trials_begin_with_the_same_ones(space: str, trials: int) -> None:
    first, again = drawn(space, trials=trials, seed=3), drawn(space, trials=40, seed=3)
    assert first == again[:trials]
    assert drawn(space, trials=40, seed=4) != again


@given(st.floats(1e-7, 1e3), st.floats(1e-7, 1e3), st.booleans(), st.integers(0, 2**31 - 1))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_is_drawn_is_a_training_and_lies_between_the_ends(
    one: float, other: float, log: bool, seed: int
) -> None:
    low, high = sorted((one, other))
    if low == high:
        return
    job = tune(f"search.training.learning_rate={{low: {low}, high: {high}, log: {log}}}".lower())
    axes = axes_of(job)
    for values in draw_trials(axes, trials=5, seed=seed):
        assert low <= values["training.learning_rate"] <= high
        settings_ = trial_job(job.train, values).training
        assert settings_.learning_rate == values["training.learning_rate"]


def test_values_that_do_not_go_together_are_named() -> None:
    job = tune("search.training.average=[null, ema]", "search.training.epochs=[2, 3]")
    values = {"training.average_decay": 0.9, "training.average": None}
    with pytest.raises(ConfigError, match=r"training\.average_decay=0\.9.* do not go together"):
        trial_job(job.train, values)


def test_a_choice_may_be_a_whole_section() -> None:
    job = tune("search.training.loss=[bce, {name: focal, gamma: 1.0}]")
    losses = [trial_job(job.train, values).training.loss for values in drawn_of(job)]
    assert {(loss.name, loss.gamma) for loss in losses} == {("bce", 2.0), ("focal", 1.0)}


def drawn_of(job: TuneJob) -> list[dict[str, Any]]:
    return draw_trials(axes_of(job), trials=job.trials, seed=job.seed)


MIXED = (
    "search.training.learning_rate={low: 1e-5, high: 1e-2, log: true}",
    "search.training.batch_size={low: 8, high: 100, log: true}",
    "search.training.loss=[bce, {name: focal, gamma: 1.0}]",
    "search.training.special_tokens=[[], ['<url>']]",
)


def closeness(values: dict[str, Any]) -> float:
    """The higher, the nearer to a rate of 1e-3."""
    return -abs(values["training.learning_rate"] - 1e-3)


def test_optuna_proposes_trainings_and_comes_nearer_to_what_served() -> None:
    pytest.importorskip("optuna")
    job = tune(*MIXED, "algorithm=optuna")
    proposals = Optuna(axes_of(job), seed=0)
    found = []
    for trial in range(60):
        values = proposals.ask(trial)
        trial_job(job.train, values)
        json.dumps(values)
        proposals.tell(trial, values, None if trial == 3 else closeness(values))
        found.append(closeness(values))
    assert sum(found[40:]) / 20 > sum(found[:10]) / 10


def test_optuna_goes_on_from_what_it_is_told_and_draws_nothing_twice() -> None:
    pytest.importorskip("optuna")
    axes = axes_of(tune(*MIXED, "algorithm=optuna"))
    first = Optuna(axes, seed=0)
    tried = [first.ask(trial) for trial in range(4)]
    again = Optuna(axes, seed=0)
    for trial, values in enumerate(tried[:3]):
        again.tell(trial, values, closeness(values))
    following = [again.ask(trial) for trial in (4, 5, 6)]
    again.tell(3, tried[3], closeness(tried[3]))  # begun by the first, ended by the second
    everything = [json.dumps(values) for values in (*tried, *following)]
    assert len(set(everything)) == len(everything)
    assert len(again._study.trials) == 7
