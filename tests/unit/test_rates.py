"""How far two rates are apart, in standard errors."""

from __future__ import annotations

import numpy as np
import pytest

from ray_mlc.scoring.drift import rates_apart


def test_of_no_rows_nothing_is_known() -> None:
    assert rates_apart(np.zeros(2), 0, np.ones(2), 10).tolist() == [0, 0]
    assert rates_apart(np.zeros(2), 10, np.ones(2), 0).tolist() == [0, 0]


def test_differences_of_chance_stay_within_a_few_standard_errors() -> None:
    generator = np.random.default_rng(0)
    true = generator.random(2_000) * 0.5
    ours, others = (generator.binomial(n, true) / n for n in (5_000, 800))
    errors = rates_apart(ours, 5_000, others, 800)
    assert np.abs(errors).max() < 4.5
    assert errors.std() == pytest.approx(1, abs=0.06)
    # a rate that doubles is found
    assert rates_apart(np.array([0.1]), 5_000, np.array([0.05]), 800)[0] > 4
    assert rates_apart(np.array([0.05]), 5_000, np.array([0.1]), 800)[0] < -4
    exact = rates_apart(ours, 5_000, true, None)
    assert exact.std() == pytest.approx(1, abs=0.06)


def test_a_label_that_was_never_seen_is_far_from_one_that_is_given_often() -> None:
    errors = rates_apart(np.array([0.0, 0.2, 0.0]), 1_000, np.array([0.0, 0.0, 0.2]), None)
    assert errors[0] == 0
    assert np.isfinite(errors).all()
    assert errors[1] > 10
    assert errors[2] < -10
