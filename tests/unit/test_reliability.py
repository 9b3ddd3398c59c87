"""Calibration error by bins."""

from __future__ import annotations

import numpy as np
import pytest

from ray_mlc.evaluation.reliability import reliability


def test_scores_that_are_drawn_from_themselves_have_almost_no_error() -> None:
    rng = np.random.default_rng(0)
    scores_NL = rng.random((50_000, 3), np.float32)
    targets_NL = (rng.random(scores_NL.shape) < scores_NL).astype(np.float32)
    assert reliability(targets_NL, scores_NL).ece < 0.01
    assert reliability(targets_NL, scores_NL**3).ece > 0.2


def test_the_error_is_the_weighted_gap_of_each_bin_and_empty_bins_are_left_out() -> None:
    targets = np.array([[1, 0, 1, 0, np.nan]], np.float32)
    scores = np.array([[0.95, 0.95, 1.0, 0.0, 0.4]], np.float32)
    found = reliability(targets, scores, bins=10)
    assert found.count_K.tolist() == [1, 3]
    assert found.positive_share_K.tolist() == [0, pytest.approx(2 / 3)]
    assert found.ece == pytest.approx(abs(2 / 3 - 2.9 / 3) * 3 / 4, abs=1e-6)


def test_nothing_annotated_has_no_error_at_all() -> None:
    assert reliability(np.full((2, 2), np.nan, np.float32), np.ones((2, 2), np.float32)).ece is None
