"""Thresholds: the exact best one, and the very decisions that were counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.thresholds import fit_global_threshold

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
    with pytest.raises(ConfigError, match="expected f1_micro"):
        fit_global_threshold(column(1), column(0.5), objective="accuracy")


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="not in"):
        fit_global_threshold(column(1), column(1.5))
