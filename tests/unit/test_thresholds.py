"""Thresholds: the exact best one, and the very decisions that were counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.thresholds import (
    NOTHING,
    SHRINKAGES,
    Objective,
    fit_global_threshold,
    fit_thresholds,
)

TINY = float(np.float32(1e-45))  # the float32 next to 0
NEXT_TO_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
NEXT_TO_HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))

Cells = tuple[NDArray[np.float32], NDArray[np.float32]]


@st.composite
def cells(draw: st.DrawFn) -> Cells:
    """Targets with gaps, and scores with ties, neighbouring floats and both ends."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 4)))
    edges = st.sampled_from([0.0, TINY, 0.25, 0.5, NEXT_TO_HALF, NEXT_TO_ONE, 1.0])
    scores = st.one_of(edges, st.floats(0, 1, width=32))
    targets = st.sampled_from([0.0, 0.0, 1.0, np.nan])
    return (
        draw(arrays(np.float32, shape, elements=targets)),
        draw(arrays(np.float32, shape, elements=scores)),
    )


def f1_at(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], threshold: float
) -> float:
    """Micro-F1 of the annotated cells, decided as scoring decides: in float32."""
    predicted_NL = (scores_NL >= np.float32(threshold)) & ~np.isnan(targets_NL)
    marked = np.count_nonzero(predicted_NL) + np.count_nonzero(targets_NL == 1)
    return 2 * np.count_nonzero(predicted_NL & (targets_NL == 1)) / marked if marked else 0.0


def column(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cells())
@example((column(0, 1), column(0.5, NEXT_TO_HALF)))
@example((column(0, 1), column(NEXT_TO_ONE, 1)))
@example((column(0, 1), column(0, TINY)))
@example((column(1, 1), column(1, 0)))
def test_no_threshold_gives_a_better_f1(given_cells: Cells) -> None:
    targets_NL, scores_NL = given_cells
    threshold = fit_global_threshold(targets_NL, scores_NL)
    assert 0 < threshold < 1
    assert threshold == float(np.float32(threshold))
    # between 0 and 1, decisions only change at the scores seen
    candidates = {float(s) for s in scores_NL.ravel() if 0 < s < 1} | {0.5, TINY, NEXT_TO_ONE}
    best = max(f1_at(targets_NL, scores_NL, candidate) for candidate in candidates)
    assert f1_at(targets_NL, scores_NL, threshold) == best


def test_the_threshold_lies_midway_between_two_scores() -> None:
    threshold = fit_global_threshold(column(0, 0, 1, 1), column(0.1, 0.25, 0.75, 0.9))
    assert threshold == 0.5
    threshold = fit_global_threshold(column(1, 1), column(0.5, 0.9))
    assert threshold == 0.25


def test_cells_of_one_score_are_decided_together() -> None:
    targets_NL = column(1, 0, 0, 0, 0, 1)
    scores_NL = column(0.5, 0.5, 0.5, 0.5, 0.5, 0.9)
    assert 0.5 < fit_global_threshold(targets_NL, scores_NL) < 0.9


def test_unannotated_cells_have_no_say() -> None:
    targets_NL = column(0, 1, np.nan, np.nan)
    scores_NL = column(0.25, 0.75, 0.5, 0.9)
    assert fit_global_threshold(targets_NL, scores_NL) == 0.5
    assert fit_global_threshold(targets_NL[:2], scores_NL[:2]) == 0.5


def test_of_equally_good_thresholds_the_highest_is_taken() -> None:
    # 1 of 1 and 2 of 4 found: 2 / (1 + 2) both times
    targets_NL = column(1, 0, 0, 1)
    scores_NL = column(0.75, 0.5, 0.5, 0.25)
    assert f1_at(targets_NL, scores_NL, 0.6) == f1_at(targets_NL, scores_NL, 0.2)
    assert fit_global_threshold(targets_NL, scores_NL) == 0.625


@pytest.mark.parametrize(
    ("target", "score"), [(0, 0.9), (np.nan, 0.9), (1, 0.0)], ids=["negative", "unknown", "zero"]
)
def test_without_a_positive_to_find_the_threshold_is_a_half(target: float, score: float) -> None:
    assert fit_global_threshold(column(target, 0), column(score, 0.1)) == 0.5


def test_a_large_set_gets_its_best_threshold_and_keeps_its_arrays() -> None:
    rng = np.random.default_rng(0)
    targets_NL = (rng.random((2_000, 200)) < 0.02).astype(np.float32)
    scores_NL = (1 / (1 + np.exp(4 - rng.normal(3 * targets_NL)))).astype(np.float32)
    before_NL = scores_NL.copy()
    threshold = fit_global_threshold(targets_NL, scores_NL)
    np.testing.assert_array_equal(scores_NL, before_NL)
    grid = np.quantile(scores_NL, np.linspace(0.9, 1, 200))
    best = max(f1_at(targets_NL, scores_NL, candidate) for candidate in grid)
    assert f1_at(targets_NL, scores_NL, threshold) >= best


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected f1, fbeta=2, precision"):
        fit_global_threshold(column(1), column(0.5), objective="accuracy")


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="not in"):
        fit_global_threshold(column(1), column(1.5))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cells(), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_no_threshold_gives_a_better_fbeta(given_cells: Cells, beta: float) -> None:
    targets_NL, scores_NL = given_cells
    threshold = fit_global_threshold(targets_NL, scores_NL, objective=f"fbeta={beta:g}")
    candidates = {float(s) for s in scores_NL.ravel() if 0 < s < 1} | {0.5, TINY, NEXT_TO_ONE}

    def fbeta(candidate: float) -> float:
        hits, given, positives = counts_at(targets_NL, scores_NL, candidate)
        weight = beta**2
        sums = given + weight * positives
        return (1 + weight) * hits / sums if hits else 0.0

    best = max(fbeta(candidate) for candidate in candidates)
    assert fbeta(threshold) == pytest.approx(best, abs=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cells(), st.sampled_from([0.1, 0.5, 0.75, 0.9, 1.0]))
def test_a_precision_is_kept_with_as_many_hits_as_it_allows(
    given_cells: Cells, precision: float
) -> None:
    targets_NL, scores_NL = given_cells
    # the two scores next to 1 are one to a threshold below 1
    scores_NL = np.where(scores_NL >= NEXT_TO_ONE, np.float32(0.99), scores_NL)
    threshold = fit_global_threshold(targets_NL, scores_NL, objective=f"precision>={precision}")
    hits, given, _ = counts_at(targets_NL, scores_NL, threshold)
    if not any(counts_at(targets_NL, scores_NL, TINY)[:1]):
        assert threshold == 0.5
        return
    assert hits >= precision * given
    for candidate in {float(s) for s in scores_NL.ravel() if s > 0}:
        other, others, _ = counts_at(targets_NL, scores_NL, candidate)
        assert other <= hits or other < precision * others


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cells(), st.sampled_from([0.05, 0.25, 0.5, 1.0]))
def test_a_rate_is_kept_with_as_many_labels_as_it_allows(given_cells: Cells, rate: float) -> None:
    targets_NL, scores_NL = given_cells
    scores_NL = np.where(scores_NL >= NEXT_TO_ONE, np.float32(0.99), scores_NL)
    threshold = fit_global_threshold(targets_NL, scores_NL, objective=f"rate<={rate}")
    cells_seen = int((~np.isnan(targets_NL)).sum())
    given_now = counts_at(targets_NL, scores_NL, threshold)[1]
    assert given_now <= rate * cells_seen
    for candidate in {float(s) for s in scores_NL.ravel() if 0 < s < threshold}:
        more = counts_at(targets_NL, scores_NL, candidate)[1]
        assert more > rate * cells_seen or more == given_now


def counts_at(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], threshold: float
) -> tuple[int, int, int]:
    """Hits, labels given, and positives among annotated cells."""
    given_NL = (scores_NL >= np.float32(threshold)) & ~np.isnan(targets_NL)
    positive_NL = targets_NL == 1
    return int((given_NL & positive_NL).sum()), int(given_NL.sum()), int(positive_NL.sum())


def test_a_precision_that_no_threshold_reaches_gives_nothing() -> None:
    targets_NL, scores_NL = column(0, 1, 0, 0), column(0.9, 0.5, 0.5, 0.1)
    assert fit_global_threshold(targets_NL, scores_NL, objective="precision>=0.9") == NOTHING


@pytest.mark.parametrize(
    "text",
    ["fbeta=0", "fbeta=", "fbeta=x", "precision>=0", "precision>=1.1", "rate<=nan", "rate<1"],
)
def test_an_objective_out_of_range_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"objective") as caught:
        Objective.parse(text)
    assert "\n" not in str(caught.value)


def labelled(
    rng: np.random.Generator, count: int, rates: list[float], shifts: list[float]
) -> Cells:
    """Labels of given rates whose positives score three logits higher, from a base of their own."""
    targets_NL = (rng.random((count, len(rates))) < np.array(rates)).astype(np.float32)
    logits_NL = rng.normal(size=targets_NL.shape) + 3 * targets_NL + np.array(shifts)
    return targets_NL, (1 / (1 + np.exp(-logits_NL))).astype(np.float32)


def macro_f1(cells_: Cells, thresholds_L: NDArray[np.float32]) -> float:
    targets_NL, scores_NL = cells_
    columns = range(targets_NL.shape[1])
    return float(
        np.mean([f1_at(targets_NL[:, [i]], scores_NL[:, [i]], thresholds_L[i]) for i in columns])
    )


def test_labels_whose_scores_lie_apart_get_thresholds_of_their_own() -> None:
    rates, shifts = [0.2, 0.2, 0.2], [-4.0, -1.5, 1.0]
    rng = np.random.default_rng(0)
    seen, unseen = (labelled(rng, 2000, rates, shifts) for _ in range(2))
    found = fit_thresholds(*seen, objective="f1")
    assert found.own_L[0] < 0.2 < 0.5 < found.own_L[2]
    one_L = np.full(3, found.all_labels, np.float32)
    assert macro_f1(unseen, found.own_L) > macro_f1(unseen, one_L) + 0.1


def test_rare_labels_are_drawn_toward_the_threshold_of_all() -> None:
    """200 labels of about three positives each, all of one kind: their own say is noise."""
    rng = np.random.default_rng(1)
    seen, unseen = (labelled(rng, 1500, [0.002] * 200, [-3.0] * 200) for _ in range(2))
    found = fit_thresholds(*seen, objective="f1")
    assert found.shrinkage is not None
    assert found.shrinkage >= 8
    alone_L = np.array(
        [fit_global_threshold(seen[0][:, [i]], seen[1][:, [i]]) for i in range(200)], np.float32
    )
    assert macro_f1(seen, alone_L) > macro_f1(seen, found.own_L)
    assert macro_f1(unseen, found.own_L) > macro_f1(unseen, alone_L) + 0.02


def test_what_is_held_out_is_less_flattering_than_what_was_fitted() -> None:
    cells_ = labelled(np.random.default_rng(2), 300, [0.02] * 30, [-3.0] * 30)
    found = fit_thresholds(*cells_, objective="f1")
    assert found.held_out_NL is not None
    objective = Objective.parse("f1")
    fitted = objective.worth(cells_[0], cells_[1] >= found.own_L)
    assert objective.worth(cells_[0], found.held_out_NL) < fitted


def test_one_threshold_for_all_is_the_global_one_and_seeds_decide_only_folds() -> None:
    cells_ = labelled(np.random.default_rng(3), 400, [0.1, 0.01, 0.3], [-2.0, -2.0, 0.0])
    one = fit_thresholds(*cells_, objective="f1", per_label=False)
    assert set(one.own_L.tolist()) == {fit_global_threshold(*cells_)}
    assert one.shrinkage is None
    first, again = (fit_thresholds(*cells_, objective="f1", seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.own_L, again.own_L)


def test_a_label_that_nobody_annotated_shares_the_threshold_of_all() -> None:
    targets_NL, scores_NL = labelled(np.random.default_rng(6), 200, [0.2, 0.2], [0.0, 0.0])
    targets_NL[:, 1] = np.nan
    for objective in ("rate<=0.1", "f1", "precision>=0.5"):
        found = fit_thresholds(targets_NL, scores_NL, objective=objective)
        assert found.own_L[1] == np.float32(found.all_labels)
        assert found.own_L[1] < NOTHING


def test_a_rate_holds_for_each_label_and_is_not_shrunk() -> None:
    cells_ = labelled(np.random.default_rng(4), 1000, [0.1, 0.3], [0.0, 2.0])
    found = fit_thresholds(*cells_, objective="rate<=0.05")
    given_L = (cells_[1] >= found.own_L).mean(axis=0)
    assert given_L.tolist() == [0.05, 0.05]
    assert found.shrinkage is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cells(), st.sampled_from(["f1", "fbeta=0.5", "precision>=0.8", "rate<=0.3"]), st.booleans())
def test_thresholds_are_float32_above_0_and_at_most_1_whatever_the_cells(
    given_cells: Cells, objective: str, per_label: bool
) -> None:
    found = fit_thresholds(*given_cells, objective=objective, per_label=per_label)
    assert found.own_L.shape == (given_cells[0].shape[1],)
    assert found.own_L.dtype == np.float32
    assert (found.own_L > 0).all()
    assert (found.own_L <= 1).all()
    assert found.shrinkage is None or found.shrinkage in SHRINKAGES
