"""How well scores and decisions agree with the labels that people gave.

Three arrays of shape [N, L] say it all: targets (1, 0, or NaN where nobody annotated), scores in
[0, 1], and the 0/1 decisions made from them. A cell without annotation counts nowhere. A figure
that is undefined (the ROC-AUC of a label without positives) is None: JSON has no NaN.

Ranking figures need no argsort. With the scores of all cells sorted, and those of the positives,
two binary searches per positive give the cells above it, tied with it, and below it; average
precision and ROC-AUC are means of simple fractions of these counts. Sorting bare float32 is the
whole cost: 6,000 documents × 4,271 labels take about a second on one core and, beside the inputs,
the memory of two to three copies of the scores.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.blocks import label_cells, row_blocks

METRIC_NAMES: tuple[str, ...] = (
    "accuracy",
    "binary_accuracy",
    "loss",
    "average_precision_macro",
    "average_precision_micro",
    "f1_micro",
    "f1_macro",
    "f1_samples",
    "roc_auc_macro",
    "roc_auc_micro",
)
"""Keys of `evaluate_scores`, in the order in which tables show them."""

LOWER_IS_BETTER: frozenset[str] = frozenset({"loss"})
"""The metrics that improve by falling; all others improve by rising."""

LOSS_CLIP = 1e-7
"""Scores this near to 0 and 1 count as that far away: a surely wrong one costs 16.1 nats."""


def is_better(name: str, new: float | None, old: float | None) -> bool:
    """Whether `new` improves on `old` in the metric `name`; equal is not better.

    An undefined value (None or NaN) is worse than any defined one.

    Raises:
        ConfigError: If `name` is not in `METRIC_NAMES`.
    """
    if name not in METRIC_NAMES:
        near = difflib.get_close_matches(name, METRIC_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(METRIC_NAMES)}"
        raise ConfigError(f"unknown metric {name}: {hint}")
    if new is None or math.isnan(new):
        return False
    if old is None or math.isnan(old):
        return True
    return new < old if name in LOWER_IS_BETTER else new > old


def evaluate_scores(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    predictions_NL: NDArray[np.bool_],
) -> dict[str, float | None]:
    """Every metric of `METRIC_NAMES`, as a fraction (loss: nats per cell).

    On data without gaps the figures are scikit-learn's: `accuracy_score`, `log_loss` over all
    cells, `average_precision_score`, `f1_score(zero_division=0)` and `roc_auc_score`. With gaps:

    - `accuracy` (all labels of a document right) and `f1_samples` leave out documents without
      any annotation; an unannotated cell of another document agrees with any decision.
    - `average_precision_macro` is the mean over labels with a positive, `roc_auc_macro` over
      labels with both classes, `f1_macro` over all labels.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        predictions_NL: The decisions, shape [N, L].

    Returns:
        A value per metric; None where it is undefined, as all are without an annotated cell.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    _check_shape("predictions", predictions_NL, scores_NL)
    cells = int(np.count_nonzero(annotated_NL))
    if cells == 0:
        return dict.fromkeys(METRIC_NAMES)

    # from here on a masked cell is a true negative: harmless to every count but `cells`
    predicted_NL = predictions_NL & annotated_NL
    wrong_N = np.count_nonzero(predicted_NL != positive_NL, axis=1)
    rows_N = annotated_NL.any(axis=1)
    hits_NL = predicted_NL & positive_NL
    hits_L, hits_N = np.count_nonzero(hits_NL, axis=0), np.count_nonzero(hits_NL, axis=1)
    # F1 = 2 hits / (predicted + positive): van Rijsbergen 1979, in the counts of each average
    marked_L = np.count_nonzero(predicted_NL, axis=0) + np.count_nonzero(positive_NL, axis=0)
    marked_N = np.count_nonzero(predicted_NL, axis=1) + np.count_nonzero(positive_NL, axis=1)
    precision_L, auc_L = _ranking_per_label(annotated_NL, positive_NL, scores_NL)
    precision_micro, auc_micro = _ranking(scores_NL[annotated_NL], scores_NL[positive_NL])
    return {
        "accuracy": float(np.mean(wrong_N[rows_N] == 0)),
        "binary_accuracy": 1.0 - int(wrong_N.sum()) / cells,
        "loss": float(document_losses(annotated_NL, positive_NL, scores_NL).sum()) / cells,
        "average_precision_macro": _mean_of_defined(precision_L),
        "average_precision_micro": precision_micro,
        "f1_micro": _ratio(2 * int(hits_L.sum()), int(marked_L.sum())),
        "f1_macro": float(_ratios(2 * hits_L, marked_L).mean()),
        "f1_samples": float(_ratios(2 * hits_N, marked_N)[rows_N].mean()),
        "roc_auc_macro": _mean_of_defined(auc_L),
        "roc_auc_micro": auc_micro,
    }


def per_label(
    label_names: Sequence[str],
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    predictions_NL: NDArray[np.bool_],
) -> list[dict[str, str | int | float | None]]:
    """One row per label, in column order, for tables and reports.

    Args:
        label_names: L names in column order.
        targets_NL: As in `evaluate_scores`, as are the other two.
        scores_NL: Probabilities in [0, 1], shape [N, L].
        predictions_NL: The decisions, shape [N, L].

    Returns:
        Rows with `label`, `precision`, `recall`, `f1` (0 where nothing was predicted or there
        was nothing to find, as in scikit-learn), `support` (positives), `predicted` (a count),
        `average_precision` (None without a positive), `roc_auc` (None without both classes).

    Raises:
        DataError: If shapes or the number of names differ, or a value is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    _check_shape("predictions", predictions_NL, scores_NL)
    if len(label_names) != scores_NL.shape[1]:
        raise DataError(f"{len(label_names)} label names for {scores_NL.shape[1]} score columns")
    predicted_NL = predictions_NL & annotated_NL
    hits_L = np.count_nonzero(predicted_NL & positive_NL, axis=0)
    predicted_L = np.count_nonzero(predicted_NL, axis=0)
    support_L = np.count_nonzero(positive_NL, axis=0)
    average_precision_L, auc_L = _ranking_per_label(annotated_NL, positive_NL, scores_NL)
    columns: Mapping[str, NDArray[np.float64] | NDArray[np.intp]] = {
        "precision": _ratios(hits_L, predicted_L),
        "recall": _ratios(hits_L, support_L),
        "f1": _ratios(2 * hits_L, predicted_L + support_L),
        "support": support_L,
        "predicted": predicted_L,
        "average_precision": average_precision_L,
        "roc_auc": auc_L,
    }
    values = {
        key: [_or_none(value) for value in column.tolist()] for key, column in columns.items()
    }
    return [
        {"label": name, **{key: column[label] for key, column in values.items()}}
        for label, name in enumerate(label_names)
    ]


def dummy_scores(rates_L: NDArray[np.floating], count: int) -> NDArray[np.float32]:
    """The baseline that knows label rates only: each document gets the rates as its scores.

    Args:
        rates_L: Share of positives per label in training, shape [L], each in [0, 1].
        count: Documents, N.

    Returns:
        Scores of shape [N, L]: a read-only view on one row, which costs no memory.

    Raises:
        DataError: If a rate is outside [0, 1].
    """
    row_L = np.asarray(rates_L, dtype=np.float32)
    if row_L.ndim != 1 or not _in_unit_interval(row_L):
        raise DataError("label rates: expected one number from 0 to 1 per label")
    return np.broadcast_to(row_L, (count, len(row_L)))


def annotated_cells(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which cells count, and which of them are positive.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].

    Returns:
        Two masks of shape [N, L]; a positive cell is always an annotated one.

    Raises:
        DataError: If shapes differ, a target is none of 0, 1, NaN, or a score is not in [0, 1].
    """
    if scores_NL.ndim != 2:
        raise DataError(f"scores have shape {scores_NL.shape}: expected documents × labels")
    _check_shape("targets", targets_NL, scores_NL)
    positive_NL = targets_NL == 1
    annotated_NL = positive_NL | (targets_NL == 0)
    known = np.count_nonzero(annotated_NL) + np.count_nonzero(np.isnan(targets_NL))
    if known != targets_NL.size:
        raise DataError("targets hold another value than 1, 0 and NaN (not annotated)")
    if not _in_unit_interval(scores_NL):
        raise DataError(
            "scores hold a value that is not in [0, 1]: leave out documents that could not be "
            "scored, and pass probabilities, not logits"
        )
    return annotated_NL, positive_NL


def document_losses(
    annotated_NL: NDArray[np.bool_],
    positive_NL: NDArray[np.bool_],
    scores_NL: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Sum of the binary cross-entropies of each document's annotated cells, in nats, shape [N]."""
    losses_N = np.zeros(len(scores_NL))
    for rows in row_blocks(scores_NL.shape):
        # float64 before clipping: 1 - 1e-7 has no exact float32
        scores_BL = scores_NL[rows].astype(np.float64).clip(LOSS_CLIP, 1 - LOSS_CLIP)
        of_target_BL = np.where(positive_NL[rows], scores_BL, 1 - scores_BL)
        of_target_BL[~annotated_NL[rows]] = 1
        losses_N[rows] = -np.log(of_target_BL).sum(axis=1)
    return losses_N


def _check_shape(what: str, array_NL: NDArray[np.generic], scores_NL: NDArray[np.generic]) -> None:
    if array_NL.shape != scores_NL.shape:
        raise DataError(f"{what} have shape {array_NL.shape}, scores {scores_NL.shape}")


def _in_unit_interval(values: NDArray[np.floating]) -> bool:
    # a NaN makes min and max NaN, and each comparison with it False
    return values.size == 0 or bool(values.min() >= 0 and values.max() <= 1)


def _ranking(
    scores_K: NDArray[np.float32], positive_scores_P: NDArray[np.float32]
) -> tuple[float | None, float | None]:
    """Average precision and ROC-AUC of K cells, P of which are positive; None where undefined.

    Cells of one score are one step of the curve, as in scikit-learn. So average precision, Σ of
    recall gained × precision there, is the mean over positives of (positives scored at least as
    high) / (cells scored at least as high), and ROC-AUC is the Mann-Whitney statistic: the share
    of pairs of a positive and a negative ranked rightly, ties counting one half.

    Args:
        scores_K: Scores of all cells, in any order; sorted in place.
        positive_scores_P: Scores of the positives among them; sorted in place.
    """
    cells, positives = len(scores_K), len(positive_scores_P)
    if positives == 0:
        return None, None
    scores_K.sort()
    positive_scores_P.sort()
    below_P = np.searchsorted(scores_K, positive_scores_P, side="left")
    positives_below_P = np.searchsorted(positive_scores_P, positive_scores_P, side="left")
    average_precision = float(np.mean((positives - positives_below_P) / (cells - below_P)))
    negatives = cells - positives
    if negatives == 0:
        return average_precision, None
    not_above_P = np.searchsorted(scores_K, positive_scores_P, side="right")
    positives_not_above_P = np.searchsorted(positive_scores_P, positive_scores_P, side="right")
    # negatives below plus negatives not above: twice the pairs ranked rightly, an exact integer
    twice_right = int((below_P - positives_below_P).sum())
    twice_right += int((not_above_P - positives_not_above_P).sum())
    return average_precision, twice_right / (2 * positives * negatives)


def _ranking_per_label(
    annotated_NL: NDArray[np.bool_],
    positive_NL: NDArray[np.bool_],
    scores_NL: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision and ROC-AUC of each label, both of shape [L]; NaN where undefined."""
    labels = scores_NL.shape[1]
    average_precision_L, auc_L = np.full(labels, np.nan), np.full(labels, np.nan)
    for label, scores_K, positive_scores_P in label_cells(annotated_NL, positive_NL, scores_NL):
        average_precision, auc = _ranking(scores_K, positive_scores_P)
        average_precision_L[label] = np.nan if average_precision is None else average_precision
        auc_L[label] = np.nan if auc is None else auc
    return average_precision_L, auc_L


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0


def _ratios(numerator: NDArray[np.intp], denominator: NDArray[np.intp]) -> NDArray[np.float64]:
    """Element by element, 0 where the denominator is."""
    return numerator / np.maximum(denominator, 1) * (denominator > 0)


def _mean_of_defined(values_L: NDArray[np.float64]) -> float | None:
    defined = values_L[~np.isnan(values_L)]
    return float(defined.mean()) if defined.size else None


def _or_none(value: int | float) -> int | float | None:
    return None if math.isnan(value) else value
