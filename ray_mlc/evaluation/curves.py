"""What every threshold would do: precision against recall, and figures against one threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation.blocks import label_cells
from ray_mlc.evaluation.metrics import annotated_cells


@dataclass(frozen=True)
class PrecisionRecall:
    """C points of a curve, recall rising.

    A point is what the threshold at a positive's score gives. Between two of them precision falls
    at the same recall, so these are the curve's upper corners, and points of scikit-learn's
    `precision_recall_curve`.
    """

    recall_C: NDArray[np.float64]
    """Share of the positives that are found."""
    precision_C: NDArray[np.float64]
    """Share of what is given that is right."""
    threshold_C: NDArray[np.float32]
    """The lowest score that gets a label."""


def precision_recall(
    scores_K: NDArray[np.float32], positive_scores_P: NDArray[np.float32], *, points: int
) -> PrecisionRecall | None:
    """The curve of K cells, P of which are positive; None without a positive.

    Args:
        scores_K: Scores of all cells, in any order; sorted in place.
        positive_scores_P: Scores of the positives among them; sorted in place.
        points: The most points to keep, at least 2, at about even steps of recall; the first and
            the last are among them.
    """
    if not len(positive_scores_P):
        return None
    scores_K.sort()
    positive_scores_P.sort()
    thresholds_C = np.unique(positive_scores_P)[::-1]
    if len(thresholds_C) > points:
        steps = np.linspace(0, len(positive_scores_P) - 1, points).astype(np.intp)
        thresholds_C = np.unique(positive_scores_P[steps])[::-1]
    hits_C = len(positive_scores_P) - np.searchsorted(positive_scores_P, thresholds_C)
    given_C = len(scores_K) - np.searchsorted(scores_K, thresholds_C)
    return PrecisionRecall(hits_C / len(positive_scores_P), hits_C / given_C, thresholds_C)


def micro_curve(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], *, points: int
) -> PrecisionRecall | None:
    """The curve of all cells together.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    return precision_recall(scores_NL[annotated_NL], scores_NL[positive_NL], points=points)


def label_curves(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], *, points: int
) -> Iterator[PrecisionRecall | None]:
    """The curve of each label, in column order.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    for _, scores_K, positive_scores_P in label_cells(annotated_NL, positive_NL, scores_NL):
        yield precision_recall(scores_K, positive_scores_P, points=points)


@dataclass(frozen=True)
class Sweep:
    """Figures if all labels had one threshold, for T thresholds; shape [T] each.

    As everywhere, a quotient without anything to divide by is 0; macro figures are means over all
    labels.
    """

    threshold_T: NDArray[np.float32]
    """Rising."""
    precision_micro_T: NDArray[np.float64]
    """Of all cells together."""
    recall_micro_T: NDArray[np.float64]
    """Of all cells together."""
    f1_micro_T: NDArray[np.float64]
    """Of all cells together."""
    precision_macro_T: NDArray[np.float64]
    """Mean over labels."""
    recall_macro_T: NDArray[np.float64]
    """Mean over labels."""
    f1_macro_T: NDArray[np.float64]
    """Mean over labels."""

    def rows(self) -> list[dict[str, float]]:
        """A mapping per threshold, keys without the shape."""
        columns = {name[:-2]: values.tolist() for name, values in vars(self).items()}
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]


def sweep_thresholds(own_L: NDArray[np.float32]) -> NDArray[np.float32]:
    """Even steps, and finer ones near 0, where scores of rare labels lie.

    Args:
        own_L: Thresholds of a decision: one that all labels share is among those returned.
    """
    steps = np.concatenate(
        [[0.0005, 0.001, 0.002, 0.005], np.arange(1, 100) / 100, [0.995, 0.999]]
    ).astype(np.float32)
    shared = np.unique(own_L)
    return np.union1d(steps, shared) if len(shared) == 1 else steps


def sweep(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    thresholds_T: NDArray[np.float32],
) -> Sweep:
    """Give labels from each threshold on.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        thresholds_T: Rising; compared as `decide` does, in float32.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    zeros = np.zeros(len(thresholds_T))
    hits_T, given_T, positives = zeros.astype(np.int64), zeros.astype(np.int64), 0
    precision_T, recall_T, f1_T = zeros.copy(), zeros.copy(), zeros.copy()
    for _, scores_K, found_P in label_cells(annotated_NL, positive_NL, scores_NL):
        scores_K.sort()
        found_P.sort()
        of_label_T = len(scores_K) - np.searchsorted(scores_K, thresholds_T)
        right_T = len(found_P) - np.searchsorted(found_P, thresholds_T)
        precision_T += _share(right_T, of_label_T)
        recall_T += _share(right_T, len(found_P))
        f1_T += _share(2 * right_T, of_label_T + len(found_P))
        hits_T += right_T
        given_T += of_label_T
        positives += len(found_P)
    labels = max(1, scores_NL.shape[1])
    return Sweep(
        threshold_T=thresholds_T,
        precision_micro_T=_share(hits_T, given_T),
        recall_micro_T=_share(hits_T, positives),
        f1_micro_T=_share(2 * hits_T, given_T + positives),
        precision_macro_T=precision_T / labels,
        recall_macro_T=recall_T / labels,
        f1_macro_T=f1_T / labels,
    )


def _share(top: NDArray[np.int64], bottom: NDArray[np.int64] | int) -> NDArray[np.float64]:
    return top / np.maximum(bottom, 1)
