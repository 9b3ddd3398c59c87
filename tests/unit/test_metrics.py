"""Metrics: scikit-learn's figures, None where undefined, and no trace of unannotated cells."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn import metrics as sk

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.metrics import (
    METRIC_NAMES,
    dummy_scores,
    evaluate_scores,
    is_better,
    per_label,
)

Cells = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]

bounded = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def cells(draw: st.DrawFn, values: tuple[float, ...] = (0, 1)) -> Cells:
    """Targets, scores with many ties (and the ends 0 and 1), and decisions of any kind."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 6)))
    steps = draw(st.sampled_from([1, 4, 1_000]))
    scores_NL = draw(arrays(np.float32, shape, elements=st.integers(0, steps))) / np.float32(steps)
    targets_NL = draw(arrays(np.float32, shape, elements=st.sampled_from(values)))
    return targets_NL, scores_NL, draw(arrays(np.bool_, shape))


def random_cells(documents: int, labels: int, seed: int = 0, masked: float = 0.0) -> Cells:
    """Cells whose scores rank positives higher, with label rates from common to rare."""
    rng = np.random.default_rng(seed)
    rates_L = np.geomspace(0.5, 2 / documents, labels)
    targets_NL = (rng.random((documents, labels)) < rates_L).astype(np.float32)
    scores_NL = (1 / (1 + np.exp(-rng.normal(2 * targets_NL - 1)))).astype(np.float32)
    targets_NL[rng.random(targets_NL.shape) < masked] = np.nan
    return targets_NL, scores_NL, scores_NL >= np.float32(0.6)


def reference(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    predictions_NL: NDArray[np.bool_],
) -> dict[str, float | None]:
    """The same figures from scikit-learn, label by label, without a gap in the targets."""
    y_NL = targets_NL.astype(int)
    p_NL = predictions_NL.astype(int)
    columns = range(y_NL.shape[1])
    aps = [
        sk.average_precision_score(y_NL[:, j], scores_NL[:, j]) for j in columns if y_NL[:, j].any()
    ]
    aucs = [
        sk.roc_auc_score(y_NL[:, j], scores_NL[:, j]) for j in columns if len(set(y_NL[:, j])) == 2
    ]
    y_K, s_K = y_NL.ravel(), scores_NL.ravel()
    clipped_K = s_K.astype(np.float64).clip(1e-7, 1 - 1e-7)
    # one label is a binary task to scikit-learn, so F1 is asked for label by label there
    f1_L = [sk.f1_score(y_NL[:, j], p_NL[:, j], zero_division=0) for j in columns]
    f1_N = [sk.f1_score(y, p, zero_division=0) for y, p in zip(y_NL, p_NL, strict=True)]
    return {
        "accuracy": sk.accuracy_score(y_NL, p_NL),
        "binary_accuracy": sk.accuracy_score(y_K, p_NL.ravel()),
        "loss": sk.log_loss(y_K, clipped_K, labels=[0, 1]),
        "average_precision_macro": float(np.mean(aps)) if aps else None,
        "average_precision_micro": sk.average_precision_score(y_K, s_K) if y_K.any() else None,
        "f1_micro": sk.f1_score(y_K, p_NL.ravel(), zero_division=0),
        "f1_macro": float(np.mean(f1_L)),
        "f1_samples": float(np.mean(f1_N)),
        "roc_auc_macro": float(np.mean(aucs)) if aucs else None,
        "roc_auc_micro": sk.roc_auc_score(y_K, s_K) if len(set(y_K)) == 2 else None,
    }


@bounded
@given(cells())
def test_every_metric_is_what_scikit_learn_says(given_cells: Cells) -> None:
    ours = evaluate_scores(*given_cells)
    assert tuple(ours) == METRIC_NAMES
    assert ours == pytest.approx(reference(*given_cells), abs=1e-9)


def test_the_averages_are_those_that_scikit_learn_names() -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(500, 8)
    assert targets_NL.any(axis=0).all()
    y_NL = targets_NL.astype(int)
    ours = evaluate_scores(targets_NL, scores_NL, predictions_NL)
    for average in ("macro", "micro"):
        theirs = sk.average_precision_score(y_NL, scores_NL, average=average)
        assert ours[f"average_precision_{average}"] == pytest.approx(theirs)
        theirs = sk.roc_auc_score(y_NL, scores_NL, average=average)
        assert ours[f"roc_auc_{average}"] == pytest.approx(theirs)
    for average in ("macro", "micro", "samples"):
        theirs = sk.f1_score(y_NL, predictions_NL, average=average, zero_division=0)
        assert ours[f"f1_{average}"] == pytest.approx(theirs)


@bounded
@given(cells(values=(0, 1, np.nan)), st.integers(0, 3))
def test_what_stands_in_an_unannotated_cell_changes_nothing(given_cells: Cells, seed: int) -> None:
    targets_NL, scores_NL, predictions_NL = given_cells
    masked_NL = np.isnan(targets_NL)
    rng = np.random.default_rng(seed)
    other_scores_NL = np.where(masked_NL, rng.random(masked_NL.shape, dtype=np.float32), scores_NL)
    other_predictions_NL = predictions_NL ^ (masked_NL & (rng.random(masked_NL.shape) < 0.5))
    before = evaluate_scores(targets_NL, scores_NL, predictions_NL)
    assert evaluate_scores(targets_NL, other_scores_NL, other_predictions_NL) == before
    names = [str(label) for label in range(masked_NL.shape[1])]
    rows = per_label(names, targets_NL, scores_NL, predictions_NL)
    assert per_label(names, targets_NL, other_scores_NL, other_predictions_NL) == rows


def test_documents_that_nobody_annotated_count_nowhere() -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(200, 8)
    expected = evaluate_scores(targets_NL[::2], scores_NL[::2], predictions_NL[::2])
    targets_NL[1::2] = np.nan
    assert evaluate_scores(targets_NL, scores_NL, predictions_NL) == pytest.approx(expected)


def test_a_label_with_gaps_is_measured_on_its_annotated_documents() -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(400, 3, masked=0.3)
    for label, row in enumerate(per_label(["a", "b", "c"], targets_NL, scores_NL, predictions_NL)):
        known_N = ~np.isnan(targets_NL[:, label])
        y, s, p = (array[known_N, label] for array in (targets_NL, scores_NL, predictions_NL))
        assert row["precision"] == pytest.approx(sk.precision_score(y, p, zero_division=0))
        assert row["recall"] == pytest.approx(sk.recall_score(y, p, zero_division=0))
        assert row["f1"] == pytest.approx(sk.f1_score(y, p, zero_division=0))
        assert row["support"] == int(y.sum())
        assert row["predicted"] == int(p.sum())
        if y.any():
            assert row["average_precision"] == pytest.approx(sk.average_precision_score(y, s))
            assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(y, s))


def test_an_unannotated_cell_agrees_with_any_decision() -> None:
    targets_NL = np.array([[1, np.nan], [0, 0], [np.nan, np.nan]], dtype=np.float32)
    predictions_NL = np.array([[True, True], [False, True], [True, False]])
    figures = evaluate_scores(targets_NL, np.full((3, 2), 0.5, np.float32), predictions_NL)
    assert figures["accuracy"] == 0.5
    assert figures["binary_accuracy"] == pytest.approx(2 / 3)


def test_roc_auc_looks_at_scores_and_not_at_decisions() -> None:
    targets_NL = np.array([[0], [0], [1], [1]], dtype=np.float32)
    scores_NL = np.array([[0.1], [0.2], [0.3], [0.4]], dtype=np.float32)
    figures = evaluate_scores(targets_NL, scores_NL, scores_NL >= 0.5)
    assert figures["roc_auc_macro"] == figures["average_precision_micro"] == 1.0
    assert figures["f1_micro"] == 0.0


def test_a_surely_wrong_score_has_a_finite_loss() -> None:
    targets_NL = np.array([[1, 0]], dtype=np.float32)
    scores_NL = np.array([[0, 1]], dtype=np.float32)
    loss = evaluate_scores(targets_NL, scores_NL, scores_NL >= 0.5)["loss"]
    assert loss == pytest.approx(-np.log(1e-7))


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_without_an_annotation_all_figures_are_undefined(shape: tuple[int, int]) -> None:
    targets_NL, scores_NL = np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)
    figures = evaluate_scores(targets_NL, scores_NL, scores_NL >= 0.5)
    assert figures == dict.fromkeys(METRIC_NAMES)


def test_figures_are_plain_numbers_or_null_in_json() -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(50, 4)
    targets_NL[:, 1], targets_NL[:, 2] = 0, 1
    rows = per_label(["a", "b", "c", "d"], targets_NL, scores_NL, predictions_NL)
    assert rows[1]["average_precision"] is None
    assert rows[1]["roc_auc"] is None
    assert rows[2]["average_precision"] == 1.0
    assert rows[2]["roc_auc"] is None
    figures = evaluate_scores(targets_NL, scores_NL, predictions_NL)
    assert json.loads(json.dumps([figures, rows], allow_nan=False)) == [figures, rows]


def test_per_label_rows_average_to_the_macro_figures() -> None:
    arrays_NL = random_cells(300, 130, masked=0.1)  # more labels than are copied together
    figures = evaluate_scores(*arrays_NL)
    rows = per_label([f"l{label}" for label in range(130)], *arrays_NL)
    assert [row["label"] for row in rows] == [f"l{label}" for label in range(130)]
    for metric, key in [
        ("f1_macro", "f1"),
        ("average_precision_macro", "average_precision"),
        ("roc_auc_macro", "roc_auc"),
    ]:
        defined = [row[key] for row in rows if row[key] is not None]
        assert figures[metric] == pytest.approx(np.mean(defined))


def test_inputs_are_left_as_they_were() -> None:
    arrays_NL = random_cells(40, 5, masked=0.2)
    copies_NL = [array.copy() for array in arrays_NL]
    evaluate_scores(*arrays_NL)
    per_label(list("abcde"), *arrays_NL)
    for array, copy in zip(arrays_NL, copies_NL, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_dummy_scores_rank_like_chance() -> None:
    targets_NL, _, _ = random_cells(500, 5)
    scores_NL = dummy_scores(targets_NL.mean(axis=0), 500)
    assert scores_NL.shape == (500, 5)
    assert scores_NL.dtype == np.float32
    figures = evaluate_scores(targets_NL, scores_NL, scores_NL >= np.float32(0.5))
    assert figures["roc_auc_macro"] == 0.5
    assert figures["average_precision_macro"] == pytest.approx(targets_NL.mean())


def test_only_a_lower_loss_is_better() -> None:
    assert is_better("loss", 0.1, 0.2)
    assert not is_better("loss", 0.2, 0.1)
    for name in METRIC_NAMES:
        assert is_better(name, 0.2, 0.1) == (name != "loss")
        assert not is_better(name, 0.1, 0.1)


def test_an_undefined_figure_is_worse_than_any_defined_one() -> None:
    for nothing in (None, float("nan")):
        assert is_better("f1_micro", 0.0, nothing)
        assert is_better("loss", 9.0, nothing)
        assert not is_better("f1_micro", nothing, 0.0)
        assert not is_better("loss", nothing, 9.0)
        assert not is_better("loss", nothing, None)


def test_an_unknown_metric_is_refused_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean f1_micro"):
        is_better("f1_mirco", 0.1, 0.2)


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_scores_that_are_no_probabilities_are_refused(bad: float) -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(5, 2)
    scores_NL[3, 1] = bad
    with pytest.raises(DataError, match=r"not in \[0, 1\]"):
        evaluate_scores(targets_NL, scores_NL, predictions_NL)


def test_targets_other_than_zero_and_one_are_refused() -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(5, 2)
    targets_NL[0, 0] = -1
    with pytest.raises(DataError, match="another value"):
        evaluate_scores(targets_NL, scores_NL, predictions_NL)


def test_arrays_of_different_shapes_are_refused() -> None:
    targets_NL, scores_NL, predictions_NL = random_cells(5, 2)
    with pytest.raises(DataError, match="targets have shape"):
        evaluate_scores(targets_NL[:4], scores_NL, predictions_NL)
    with pytest.raises(DataError, match="predictions have shape"):
        evaluate_scores(targets_NL, scores_NL, predictions_NL[:, :1])
    with pytest.raises(DataError, match="3 label names for 2"):
        per_label(["a", "b", "c"], targets_NL, scores_NL, predictions_NL)
    with pytest.raises(DataError, match="documents × labels"):
        evaluate_scores(targets_NL[0], scores_NL[0], predictions_NL[0])
    with pytest.raises(DataError, match="label rates"):
        dummy_scores(np.array([0.5, np.nan]), 3)
