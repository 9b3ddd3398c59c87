"""The model behind `plan`: figures from a sample, and a night from figures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_mlc.scoring.forecast import (
    BLOCK_S,
    Estimate,
    Kind,
    Load,
    Probed,
    actors_for,
    forecast,
    imbalance,
    mean_of,
    pick_rows,
    work_of,
)

NODE = Kind(actors_per_node=2, cores_per_node=2, threads=1)
PROBED = Probed(
    tokens_per_s=1000.0, error=0.01, actor_bytes=10**9, load_s=2.0, begin_s=4.0, choose_s=9.0
)


def load_of(tokens: float, *, blocks: int = 1000) -> Load:
    sizes = np.full(blocks, 1000.0)
    return Load(10_000, 1000 * blocks, Estimate.exact(tokens), lambda _: sizes, 1000)


rows_of_units = st.lists(st.integers(1, 300), min_size=1, max_size=40).map(
    lambda rows: np.array(rows, np.int64)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows_U=rows_of_units, strata=st.integers(1, 16), rows=st.integers(1, 200))
def test_rows_are_drawn_of_the_units_that_have_them(
    rows_U: NDArray[np.int64], strata: int, rows: int
) -> None:
    picks = pick_rows(rows_U, strata=strata, rows=rows, seed=1)
    assert picks
    assert [pick.unit for pick in picks] == sorted(pick.unit for pick in picks)
    for pick in picks:
        assert len(np.unique(pick.rows)) == len(pick.rows) > 0
        assert 0 <= pick.rows.min() <= pick.rows.max() < rows_U[pick.unit]
    drawn = sum(len(pick.rows) for pick in picks)
    assert drawn <= rows or drawn == rows_U.sum()
    if rows_U.sum() > rows:
        assert len(picks) <= strata


def test_a_small_corpus_is_looked_at_whole() -> None:
    picks = pick_rows(np.array([3, 2]), strata=4, rows=5, seed=0)
    assert [(pick.unit, pick.rows.tolist()) for pick in picks] == [(0, [0, 1, 2]), (1, [0, 1])]


def test_every_row_has_about_the_same_chance() -> None:
    rows_U = np.array([10, 200, 50, 1, 139])
    counts = np.zeros(rows_U.sum())
    first_U = np.append(0, np.cumsum(rows_U))
    for seed in range(3000):
        for pick in pick_rows(rows_U, strata=4, rows=40, seed=seed):
            counts[first_U[pick.unit] + pick.rows] += 1
    chance_U = [counts[low:high].mean() for low, high in itertools.pairwise(first_U)]
    # units that a stratum's bound cuts are drawn a little too often or too seldom
    assert np.allclose(np.average(chance_U, weights=rows_U), 300, rtol=0.05)
    assert np.allclose(chance_U[1:3], 300, rtol=0.1)


@pytest.mark.parametrize("trend", [0.0, 2.0])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(trend: float) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        rows_U = np.full(60, 100)
        # units differ, as files do; lengths within them are lognormal
        level_U = rng.normal(4.5, 0.2, 60) + np.linspace(0, trend, 60)
        lengths = np.exp(rng.normal(np.repeat(level_U, 100), 0.8))
        picks = pick_rows(rows_U, strata=30, rows=600, seed=seed)
        found = mean_of([lengths[pick.unit * 100 + pick.rows] for pick in picks], whole=False)
        held += found.low <= lengths.mean() <= found.high
    assert held > 180


def test_all_rows_leave_nothing_to_chance() -> None:
    found = mean_of([np.array([1.0, 2.0]), np.array([]), np.array([6.0])], whole=True)
    assert found == Estimate.exact(3.0)
    assert mean_of([], whole=False) == Estimate.exact(0.0)


def test_one_stratum_has_an_interval_all_the_same() -> None:
    found = mean_of([np.array([10.0, 12.0, 14.0])], whole=False)
    assert found.low < 12 < found.high


@pytest.mark.parametrize(
    ("reads", "actors", "expected"),
    [([1, 1, 1, 1], 2, 1.0), ([1], 2, 2.0), ([3, 1, 1, 1], 2, 1.0), ([], 4, 1.0), ([2, 1], 1, 1.0)],
)
def test_reads_are_dealt_to_who_is_free_first(
    reads: list[int], actors: int, expected: float
) -> None:
    assert imbalance(np.array(reads, np.float64), actors) == pytest.approx(expected)


def test_of_long_rows_only_what_is_read_is_work() -> None:
    rows_U, bytes_U = np.array([10, 10, 10, 0]), np.array([0, 2000, 10**6, 0])
    assert work_of(rows_U, bytes_U, max_tokens=100).tolist() == [10, 2000, 5000, 0]


def test_a_night_is_its_start_its_tokens_and_its_end() -> None:
    night = forecast(load_of(3_600_000.0), PROBED, NODE, actors=2)
    scoring = 3_600_000 / (2 * 1000 * NODE.share(2))
    assert 0.9 < NODE.share(2) < 0.95
    assert night.until_scoring_s == pytest.approx(1 + 4 + 9 + 2 + 3)
    assert night.seconds.value == pytest.approx(scoring + night.until_scoring_s + 3)
    assert night.seconds.low < night.seconds.value < night.seconds.high
    assert night.node_hours.value == pytest.approx(night.seconds.value / 3600)
    assert night.memory_bytes > 2 * 10**9


def test_twice_the_actors_take_about_half_the_time_on_twice_the_nodes() -> None:
    nights = [forecast(load_of(1e8), PROBED, NODE, actors=actors) for actors in (2, 4, 8, 16)]
    assert [night.nodes for night in nights] == [1, 2, 4, 8]
    for one, two in itertools.pairwise(nights):
        assert 0.45 < two.seconds.value / one.seconds.value < 0.6
        assert two.node_hours.value > 0.95 * one.node_hours.value


def test_a_report_takes_its_time_at_the_end() -> None:
    load = load_of(1e6)
    with_report = forecast(replace(load, report_scores=10**8), PROBED, NODE, actors=2)
    without = forecast(load, PROBED, NODE, actors=2)
    assert with_report.seconds.value - without.seconds.value == pytest.approx(12.0)
    assert with_report.until_scoring_s == without.until_scoring_s


def test_cores_that_are_spare_run_what_is_beside_the_actors() -> None:
    assert Kind(actors_per_node=1, cores_per_node=8, threads=4).share(1) == 1.0
    assert Kind(actors_per_node=1, cores_per_node=8, threads=8).share(1) < 1.0
    assert Kind(actors_per_node=1, cores_per_node=2, threads=2, ray=False).share(1) == 1.0


def test_tiny_blocks_are_bound_by_the_driver() -> None:
    night = forecast(load_of(1000.0, blocks=10_000), PROBED, NODE, actors=64)
    assert night.seconds.value > 10_000 * BLOCK_S


def test_nothing_to_do_costs_no_choice_of_an_engine() -> None:
    load = Load(0, 0, Estimate.exact(0.0), lambda _: np.zeros(0), 0)
    assert forecast(load, PROBED, NODE, actors=2).until_scoring_s == 5.0


@pytest.mark.parametrize("seconds", [600.0, 3600.0, 20_000.0])
def test_the_fewest_actors_are_found_that_are_done_in_time(seconds: float) -> None:
    load = load_of(3e7, blocks=100_000)
    load = replace(load, reads=lambda actors: np.full(20 * actors, 10.0))
    found = actors_for(load, PROBED, NODE, seconds=seconds)
    assert found is not None
    actors, night = found
    assert night.seconds.high <= seconds
    if actors > 1:
        assert forecast(load, PROBED, NODE, actors=actors - 1).seconds.high > seconds


@pytest.mark.parametrize("kind", [NODE, replace(NODE, ray=False)])
def test_no_number_of_actors_shortens_a_start(kind: Any) -> None:
    assert actors_for(load_of(1e6), PROBED, kind, seconds=10.0) is None
