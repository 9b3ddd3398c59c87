"""Calibration: strictly rising whatever it is fitted on; rare labels are drawn together."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.calibration import (
    Cells,
    _fit_curve,
    calibration_error,
    curves_to_fit,
    describe_fit,
    fit_calibration,
)
from ray_mlc.labels import LabelSet
from ray_mlc.model.calibration import METHODS, STEEPEST, TILT, Calibration, Curve, log_odds, sigmoid
from ray_mlc.model.decisions import Rules, decide

TINY = float(np.float32(1e-45))  # the float32 next to 0
NEXT_TO_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
EDGES = [0.0, TINY, 1e-38, 0.25, 0.5, 0.75, NEXT_TO_ONE, 1.0]
SCORES = st.one_of(st.sampled_from(EDGES), st.floats(0, 1, width=32))
ONE = LabelSet(("x",))
Cells_ = tuple[NDArray[np.float32], NDArray[np.float32]]


def labels_of(count: int) -> LabelSet:
    return LabelSet(tuple(f"label {number}" for number in range(count)))


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Lines from flat to steep, and knots with levels, cliffs and neighbours on a float's edge."""
    slope = draw(st.sampled_from([TILT, 0.02, 1.0, STEEPEST]))
    intercept = draw(st.floats(-100, 100))
    logits = sorted(draw(st.sets(st.floats(-104, 18).map(lambda x: round(x, 6)), max_size=6)))
    values = sorted(draw(st.floats(-20, 20)) for _ in logits)
    if draw(st.booleans()):
        values = [value if index % 2 else values[0] for index, value in enumerate(values)]
        values = sorted(values)
    weight = draw(st.sampled_from([0.001, 0.5, 1.0]))
    return Curve(slope=slope, intercept=intercept, logits=logits, calibrated=values, weight=weight)


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    own = {"x": draw(curves())} if draw(st.booleans()) else {}
    method: Any = draw(st.sampled_from(METHODS))
    return Calibration(method=method, pooled=draw(curves()), per_label=own)


@st.composite
def cells(draw: st.DrawFn) -> Cells_:
    """Targets with gaps, and scores with ties, neighbouring floats and both ends."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 4)))
    targets = st.sampled_from([0.0, 0.0, 1.0, np.nan])
    return (
        draw(arrays(np.float32, shape, elements=targets)),
        draw(arrays(np.float32, shape, elements=SCORES)),
    )


def with_neighbours(scores: list[float]) -> NDArray[np.float32]:
    """Scores and the float32 on either side of each, rising, each once."""
    values = np.array([*scores, *EDGES], np.float32)
    values = np.concatenate(
        [values, np.nextafter(values, np.float32(1)), np.nextafter(values, np.float32(0))]
    )
    return np.unique(values)


def drawn(rates: list[float], count: int, *, slope: float, intercept: float, seed: int) -> Cells_:
    """Cells for which `slope * z + intercept` are the true log-odds."""
    rng = np.random.default_rng(seed)
    base_L = np.log(np.array(rates)) - np.log1p(-np.array(rates))
    true_NL = base_L + 1.5 * rng.standard_normal((count, len(rates)))
    targets_NL = (rng.random(true_NL.shape) < sigmoid(true_NL)).astype(np.float32)
    return targets_NL, sigmoid((true_NL - intercept) / slope).astype(np.float32)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(calibrations(), st.lists(SCORES, max_size=20))
@example(
    Calibration(
        method="isotonic", pooled=Curve(slope=TILT, logits=[-1e-6, 1e-6], calibrated=[-20, 20])
    ),
    [0.5],
)
def test_no_two_float32_scores_are_joined_or_change_places(
    calibration: Calibration, scores: list[float]
) -> None:
    rising_N = with_neighbours(scores)
    z_N = calibration.log_odds(rising_N[:, None], ONE)[:, 0]
    assert np.isfinite(z_N).all()
    assert (np.diff(z_N) > 0).all()
    probabilities_N = calibration.probabilities(rising_N[:, None], ONE)[:, 0]
    assert (np.diff(probabilities_N) >= 0).all()
    assert 0 <= probabilities_N[0] <= probabilities_N[-1] <= 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(calibrations(), st.lists(SCORES, min_size=1, max_size=20), st.integers(0, 19))
def test_labels_are_the_same_by_scores_and_by_what_the_calibration_makes_of_them(
    calibration: Calibration, scores: list[float], at: int
) -> None:
    threshold = np.array([[scores[at % len(scores)]]], np.float32)
    scores_N1 = with_neighbours(scores)[:, None]
    by_scores = decide(scores_N1, Rules(threshold[0]))
    by_log_odds = calibration.log_odds(scores_N1, ONE) >= calibration.log_odds(threshold, ONE)
    np.testing.assert_array_equal(by_scores, by_log_odds)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(calibrations())
def test_a_calibration_is_the_same_after_json(calibration: Calibration) -> None:
    again = Calibration.model_validate_json(calibration.model_dump_json())
    assert again == calibration
    scores_N1 = with_neighbours([0.1, 0.9])[:, None]
    np.testing.assert_array_equal(
        again.log_odds(scores_N1, ONE), calibration.log_odds(scores_N1, ONE)
    )


def test_a_score_that_is_not_a_number_has_no_probability() -> None:
    calibration = Calibration(method="platt", pooled=Curve(slope=2.0))
    scores_NL = np.array([[np.nan, 0.5]], np.float32)
    found = calibration.probabilities(scores_NL, LabelSet(("a", "b")))
    assert np.isnan(found[0, 0])
    assert found[0, 1] == 0.5
    assert calibration.probabilities(scores_NL[:0], LabelSet(("a", "b"))).shape == (0, 2)


def test_a_label_mixes_its_own_curve_with_that_of_all_by_log_odds() -> None:
    calibration = Calibration(
        method="isotonic",
        pooled=Curve(slope=1.0),
        per_label={
            "b": Curve(slope=TILT, logits=[0.0], calibrated=[2.0], weight=0.25),
            "d": Curve(slope=2.0, intercept=1.0),
        },
    )
    found = calibration.log_odds(np.full((2, 4), 0.5, np.float32), LabelSet(("a", "b", "c", "d")))
    np.testing.assert_allclose(found, [[0, 0.5, 0, 1]] * 2, atol=1e-12)


def test_many_rows_are_calibrated_in_blocks_as_one() -> None:
    scores_NL = np.random.default_rng(0).random((3_000, 700), np.float32)  # more than one block
    calibration = Calibration(
        method="platt", pooled=Curve(slope=0.5), per_label={"label 3": Curve(slope=2.0)}
    )
    found_NL = calibration.probabilities(scores_NL, labels_of(700))
    expected_NL = sigmoid(0.5 * log_odds(scores_NL))
    expected_NL[:, 3] = sigmoid(2 * log_odds(scores_NL[:, 3]))
    np.testing.assert_allclose(found_NL, expected_NL, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cells(), st.sampled_from(METHODS))
@example(
    (np.array([[1], [0], [1]], np.float32), np.array([[0.5]] * 3, np.float32)), "platt"
)  # all the same
@example((np.array([[1], [0], [1]], np.float32), np.array([[0.5]] * 3, np.float32)), "isotonic")
@example((np.array([[1], [0]], np.float32), np.array([[0], [1]], np.float32)), "temperature")
@example((np.array([[1], [0]], np.float32), np.array([[1], [0]], np.float32)), "platt")
def test_whatever_the_cells_what_is_fitted_is_a_calibration(
    given_cells: Cells_, method: str
) -> None:
    targets_NL, scores_NL = given_cells
    label_set = labels_of(targets_NL.shape[1])
    classes = set(targets_NL[~np.isnan(targets_NL)].tolist())
    if classes != {0.0, 1.0}:
        with pytest.raises(DataError, match="there is nothing to calibrate on"):
            fit_calibration(targets_NL, scores_NL, method=method, label_set=label_set)
        return
    told: list[int] = []
    options = {"method": method, "label_set": label_set, "progress": told.append}
    found = fit_calibration(targets_NL, scores_NL, **options)
    assert sum(told) == curves_to_fit(len(label_set), len(targets_NL))
    assert max(told) == 1  # label by label, and not all at the end
    assert Calibration.model_validate_json(found.calibration.model_dump_json())
    rising_NL = np.repeat(with_neighbours([])[:, None], len(label_set), axis=1)
    assert (np.diff(found.calibration.log_odds(rising_NL, label_set), axis=0) > 0).all()
    assert ((found.held_out_NL >= 0) & (found.held_out_NL <= 1)).all()
    json.dumps(describe_fit(targets_NL, scores_NL, found, label_set), allow_nan=False)
    one_class = [
        name
        for name, column in zip(label_set.names, targets_NL.T, strict=True)
        if not {0.0, 1.0} <= set(column.tolist())
    ]
    assert not set(one_class) & set(found.calibration.per_label)


def test_a_temperature_is_found_again() -> None:
    cells_ = drawn([0.3] * 4, 4_000, slope=0.4, intercept=0.0, seed=0)
    found = fit_calibration(*cells_, method="temperature", label_set=labels_of(4))
    for curve in (found.calibration.pooled, *found.calibration.per_label.values()):
        assert curve.slope == pytest.approx(0.4, abs=0.03)
        assert curve.intercept == 0


def test_slope_and_intercept_are_found_again_label_by_label() -> None:
    low = drawn([0.3], 6_000, slope=0.5, intercept=-1.0, seed=1)
    high = drawn([0.2], 6_000, slope=2.0, intercept=1.0, seed=2)
    targets_NL, scores_NL = (np.hstack(pair) for pair in zip(low, high, strict=True))
    found = fit_calibration(targets_NL, scores_NL, method="platt", label_set=labels_of(2))
    assert found.shrinkage < 32
    z_NL = found.calibration.log_odds(np.full((1, 2), 0.3, np.float32), labels_of(2))
    z = log_odds(np.array([0.3], np.float32))[0]
    np.testing.assert_allclose(z_NL[0], [0.5 * z - 1, 2 * z + 1], atol=0.2)


def test_a_line_is_the_one_that_logistic_regression_finds() -> None:
    from sklearn.linear_model import LogisticRegression

    targets_NL, scores_NL = drawn([0.3], 20_000, slope=0.6, intercept=-0.5, seed=3)
    theirs = LogisticRegression(C=1e9, tol=1e-9).fit(log_odds(scores_NL), targets_NL[:, 0])
    ours = fit_calibration(targets_NL, scores_NL, method="platt", label_set=ONE).calibration.pooled
    # Platt's targets are not quite 0 and 1
    assert ours.slope == pytest.approx(float(theirs.coef_[0, 0]), abs=2e-3)
    assert ours.intercept == pytest.approx(float(theirs.intercept_[0]), abs=2e-3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cells(), st.sampled_from(["temperature", "platt"]))
def test_no_other_line_is_likelier(given_cells: Cells_, method: str) -> None:
    """Whatever the scores: all on one side, all but the same, or at both ends of float32."""
    found = Cells.of(*given_cells)
    if len(found.z_K) == 0 or not found.rarer:
        return
    line = _fit_curve(found, method)
    share = found.count_K / found.count_K.sum()

    def loss(slope: float, intercept: float) -> float:
        z = slope * found.z_K + intercept
        return float((share * (np.logaddexp(0, z) - found.smoothed_K * z)).sum())

    best = loss(line.slope, line.intercept)
    for factor in (0.5, 0.9, 0.999, 1.0, 1.001, 1.1, 2.0):
        slope = min(max(line.slope * factor, 0.02), STEEPEST)
        for shift in (-1.0, -0.01, 0.0, 0.01, 1.0) if method == "platt" else (0.0,):
            assert best <= loss(slope, line.intercept + shift) + 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_of_new_documents_are_nearer_to_the_truth(method: str) -> None:
    rates = [0.3, 0.1, 0.05, 0.02]
    seen, unseen = (drawn(rates, 3_000, slope=0.4, intercept=0.0, seed=seed) for seed in (4, 5))
    label_set = labels_of(4)
    found = fit_calibration(*seen, method=method, label_set=label_set)
    before = calibration_error(*unseen)
    after = calibration_error(unseen[0], found.calibration.probabilities(unseen[1], label_set))
    for name in ("ece", "ece_macro", "log_loss"):
        assert after[name] < before[name]
    shown = describe_fit(*seen, found, label_set)["error"]
    assert shown["held_out"]["log_loss"] >= shown["fitted"]["log_loss"]
    assert shown["held_out"]["log_loss"] == pytest.approx(after["log_loss"], rel=0.1)


def test_a_step_that_no_line_can_follow_is_followed_by_knots() -> None:
    rng = np.random.default_rng(6)
    scores_NL = rng.random((8_000, 1), np.float32)
    truth_NL = np.where(scores_NL < 0.5, 0.1, 0.4)
    targets_NL = (rng.random(scores_NL.shape) < truth_NL).astype(np.float32)
    found = {
        method: fit_calibration(
            targets_NL, scores_NL, method=method, label_set=ONE
        ).calibration.probabilities(scores_NL, ONE)
        for method in METHODS
    }
    assert np.abs(found["isotonic"] - truth_NL).mean() < 0.03
    assert np.abs(found["platt"] - truth_NL).mean() > 0.04


def test_rare_labels_are_drawn_toward_the_curve_of_all() -> None:
    """150 labels of about four positives each, all of one kind: their own say is noise."""
    seen, unseen = (
        drawn([0.004] * 150, 1_000, slope=0.5, intercept=-1.0, seed=seed) for seed in (7, 8)
    )
    label_set = labels_of(150)
    for method in ("platt", "isotonic"):
        found = fit_calibration(*seen, method=method, label_set=label_set)
        assert found.shrinkage >= 32
        kept = found.calibration.per_label
        alone = found.calibration.model_copy(
            update={"per_label": {name: own_alone(*seen, method, index)
                                  for index, name in enumerate(label_set.names)
                                  if seen[0][:, index].any()}}
        )  # fmt: skip
        losses = [
            calibration_error(unseen[0], which.probabilities(unseen[1], label_set))["log_loss"]
            for which in (found.calibration, alone)
        ]
        assert losses[0] < losses[1]
        assert all(curve.weight < 0.3 for curve in kept.values())


def own_alone(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], method: str, column: int
) -> Curve:
    return _fit_curve(Cells.of(targets_NL[:, [column]], scores_NL[:, [column]]), method)


def test_labels_that_lie_apart_keep_curves_of_their_own() -> None:
    parts = [
        drawn([0.3], 3_000, slope=0.5, intercept=intercept, seed=seed)
        for seed, intercept in enumerate((-2.0, 2.0))
    ]
    targets_NL, scores_NL = (np.hstack(pair) for pair in zip(*parts, strict=True))
    found = fit_calibration(targets_NL, scores_NL, method="platt", label_set=labels_of(2))
    assert set(found.calibration.per_label) == {"label 0", "label 1"}
    assert all(curve.weight > 0.9 for curve in found.calibration.per_label.values())


def test_labels_of_one_class_keep_to_the_curve_of_all() -> None:
    targets_NL, scores_NL = drawn([0.3] * 4, 500, slope=0.5, intercept=-1.0, seed=9)
    targets_NL[:, 1], targets_NL[:, 2], targets_NL[:, 3] = 0, 1, np.nan
    for method in METHODS:
        found = fit_calibration(targets_NL, scores_NL, method=method, label_set=labels_of(4))
        assert set(found.calibration.per_label) <= {"label 0"}
        json.dumps(describe_fit(targets_NL, scores_NL, found, labels_of(4)), allow_nan=False)


def test_scores_that_mean_the_contrary_are_flattened_but_not_turned() -> None:
    targets_NL, scores_NL = drawn([0.5], 2_000, slope=1.0, intercept=0.0, seed=10)
    for method in METHODS:
        found = fit_calibration(1 - targets_NL, scores_NL, method=method, label_set=ONE)
        z_N = found.calibration.log_odds(np.array([[0.01], [0.5], [0.99]], np.float32), ONE)[:, 0]
        assert (np.diff(z_N) > 0).all()
        assert z_N[-1] - z_N[0] < 0.2


def test_unannotated_cells_have_no_say() -> None:
    targets_NL, scores_NL = drawn([0.3], 400, slope=0.5, intercept=0.0, seed=11)
    gaps_NL = np.where(np.arange(800)[:, None] < 400, np.vstack([targets_NL] * 2), np.nan)
    other_NL = np.vstack([scores_NL, 1 - scores_NL])
    one, other = Cells.of(targets_NL, scores_NL), Cells.of(gaps_NL.astype(np.float32), other_NL)
    for name in ("z_K", "positives_K", "count_K"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert calibration_error(targets_NL, scores_NL) == pytest.approx(
        calibration_error(gaps_NL.astype(np.float32), other_NL)
    )


def test_bins_keep_every_cell_and_the_mean_of_its_log_odds() -> None:
    targets_NL, scores_NL = drawn([0.1] * 50, 30_000, slope=0.5, intercept=0.0, seed=12)
    found = Cells.of(targets_NL, scores_NL)  # more than one block of rows
    assert found.count_K.sum() == targets_NL.size
    assert found.positives_K.sum() == targets_NL.sum()
    assert (np.diff(found.z_K) > 0).all()
    mean = float(found.z_K @ found.count_K) / targets_NL.size
    assert mean == pytest.approx(float(log_odds(scores_NL).mean()), rel=1e-9)


def test_nothing_annotated_has_no_error() -> None:
    empty = np.full((3, 2), np.nan, np.float32)
    assert calibration_error(empty, np.ones((3, 2), np.float32)) == {
        "ece": None,
        "ece_macro": None,
        "log_loss": None,
    }


def test_errors_of_labels_that_lean_to_either_side_do_not_cancel() -> None:
    targets_NL = np.tile(np.array([[1, 0], [0, 0], [1, 1], [1, 0]], np.float32), (100, 1))
    scores_NL = np.full(targets_NL.shape, 0.5, np.float32)
    found = calibration_error(targets_NL, scores_NL)
    assert found["ece"] == pytest.approx(0)
    assert found["ece_macro"] == pytest.approx(0.25)
    assert found["log_loss"] == pytest.approx(np.log(2))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown calibration beta: expected none, temperature"):
        fit_calibration(
            np.ones((1, 1), np.float32),
            np.ones((1, 1), np.float32),
            method="beta",
            label_set=ONE,
        )


def test_seeds_decide_only_the_folds() -> None:
    cells_ = drawn([0.2, 0.02], 600, slope=0.5, intercept=0.0, seed=13)
    one, again, other = (
        fit_calibration(*cells_, method="platt", label_set=labels_of(2), seed=seed)
        for seed in (5, 5, 6)
    )
    assert one.calibration == again.calibration
    np.testing.assert_array_equal(one.held_out_NL, again.held_out_NL)
    assert other.calibration.pooled == one.calibration.pooled
    assert not np.array_equal(other.held_out_NL, one.held_out_NL)


def test_four_thousand_labels_most_of_them_never_seen() -> None:
    rates = [0.02] * 100 + [1e-6] * 3_900
    cells_ = drawn(rates, 300, slope=0.5, intercept=0.0, seed=14)
    label_set = labels_of(4_000)
    started = time.perf_counter()
    found = fit_calibration(*cells_, method="isotonic", label_set=label_set)
    assert time.perf_counter() - started < 100  # eight seconds on an idle core
    assert len(found.calibration.per_label) <= 110
    assert len(found.calibration.model_dump_json()) < 100_000
    assert found.calibration.probabilities(cells_[1], label_set).shape == (300, 4_000)
