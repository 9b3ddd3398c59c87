"""Curves and sweeps: scikit-learn's points, and what the metrics say at each threshold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from ray_mlc.evaluation.curves import label_curves, micro_curve, sweep, sweep_thresholds
from ray_mlc.evaluation.metrics import evaluate_scores, per_label


def cells(steps: int = 0, masked: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(steps)
    targets_NL = (rng.random((300, 70)) < np.geomspace(0.5, 0.004, 70)).astype(np.float32)
    scores_NL = 1 / (1 + np.exp(-rng.normal(2 * targets_NL - 1)))
    if steps:
        scores_NL = np.round(scores_NL * steps) / steps
    targets_NL[rng.random(targets_NL.shape) < masked] = np.nan
    return targets_NL, scores_NL.astype(np.float32)


@pytest.mark.parametrize("steps", [0, 10])
def test_every_point_is_one_of_scikit_learns_and_none_of_the_corners_is_missing(
    steps: int,
) -> None:
    targets_NL, scores_NL = cells(steps)
    curves = [*label_curves(targets_NL, scores_NL, points=10_000)]
    pairs = [(targets_NL[:, label], scores_NL[:, label]) for label in range(70)]
    curves.append(micro_curve(targets_NL, scores_NL, points=100_000))
    pairs.append((targets_NL.ravel(), scores_NL.ravel()))
    for curve, (target, score) in zip(curves, pairs, strict=True):
        if not target.any():
            assert curve is None
            continue
        assert curve is not None
        precision, recall, threshold = sk.precision_recall_curve(target, score)
        theirs = dict(zip(threshold.tolist(), zip(precision, recall, strict=False), strict=False))
        for ours in zip(curve.threshold_C, curve.precision_C, curve.recall_C, strict=True):
            assert theirs[float(ours[0])] == pytest.approx(ours[1:])
        assert set(recall[recall > 0].round(9)) == set(curve.recall_C.round(9))
        area = (np.diff(curve.recall_C, prepend=0) * curve.precision_C).sum()
        assert area == pytest.approx(sk.average_precision_score(target, score))


def test_a_thinned_curve_keeps_its_ends_and_few_points() -> None:
    targets_NL, scores_NL = cells()
    whole, thin = (micro_curve(targets_NL, scores_NL, points=points) for points in (100_000, 20))
    assert whole is not None
    assert thin is not None
    assert len(thin.recall_C) == 20 < len(whole.recall_C)
    for end in (0, -1):
        assert thin.recall_C[end] == whole.recall_C[end]
        assert thin.threshold_C[end] == whole.threshold_C[end]
    assert set(thin.threshold_C) <= set(whole.threshold_C)
    assert np.diff(thin.recall_C).max() < 0.06


def test_cells_that_nobody_annotated_are_not_on_the_curve() -> None:
    targets_NL, scores_NL = cells(masked=0.4)
    known_N = ~np.isnan(targets_NL[:, 0])
    first = next(iter(label_curves(targets_NL, scores_NL, points=1_000)))
    alone = micro_curve(targets_NL[known_N][:, :1], scores_NL[known_N][:, :1], points=1_000)
    assert first is not None
    assert alone is not None
    np.testing.assert_array_equal(first.precision_C, alone.precision_C)


@pytest.mark.parametrize("masked", [0.0, 0.3])
def test_a_sweep_says_what_the_metrics_say_at_each_threshold(masked: float) -> None:
    targets_NL, scores_NL = cells(steps=40, masked=masked)
    thresholds_T = np.array([0.0, 0.2, 0.25, 0.5, 1.0], np.float32)  # some are scores themselves
    found = sweep(targets_NL, scores_NL, thresholds_T)
    names = [str(label) for label in range(70)]
    for row in found.rows():
        given_NL = scores_NL >= np.float32(row["threshold"])
        figures = evaluate_scores(targets_NL, scores_NL, given_NL)
        assert row["f1_micro"] == pytest.approx(figures["f1_micro"])
        assert row["f1_macro"] == pytest.approx(figures["f1_macro"])
        labels = per_label(names, targets_NL, scores_NL, given_NL)
        for name in ("precision", "recall"):
            assert row[f"{name}_macro"] == pytest.approx(np.mean([x[name] for x in labels]))
        known = ~np.isnan(targets_NL)
        y, p = targets_NL[known], given_NL[known]
        assert row["precision_micro"] == pytest.approx(sk.precision_score(y, p, zero_division=0))
        assert row["recall_micro"] == pytest.approx(sk.recall_score(y, p, zero_division=0))


def test_the_sweep_passes_one_half_exactly() -> None:
    thresholds_T = sweep_thresholds(np.zeros(0, np.float32))
    assert np.float32(0.5) in thresholds_T
    assert (np.diff(thresholds_T) > 0).all()


def test_without_a_positive_there_is_no_curve_and_a_sweep_of_zeros() -> None:
    targets_NL, scores_NL = np.zeros((4, 2), np.float32), np.full((4, 2), 0.5, np.float32)
    assert micro_curve(targets_NL, scores_NL, points=10) is None
    assert list(label_curves(targets_NL, scores_NL, points=10)) == [None, None]
    rows = sweep(targets_NL, scores_NL, sweep_thresholds(np.zeros(0, np.float32))).rows()
    assert {value for row in rows for name, value in row.items() if name != "threshold"} == {0.0}


def test_scores_are_left_as_they_were() -> None:
    targets_NL, scores_NL = cells()
    before = scores_NL.copy()
    list(label_curves(targets_NL, scores_NL, points=10))
    micro_curve(targets_NL, scores_NL, points=10)
    sweep(targets_NL, scores_NL, sweep_thresholds(np.zeros(0, np.float32)))
    np.testing.assert_array_equal(scores_NL, before)


def test_a_threshold_that_all_labels_share_is_in_the_sweep_and_others_are_not() -> None:
    shared, several = np.full(3, 0.27471, np.float32), np.array([0.1234, 0.4321], np.float32)
    assert shared[0] in sweep_thresholds(shared)
    assert (np.diff(sweep_thresholds(shared)) > 0).all()
    assert not set(several) & set(sweep_thresholds(several))
