"""Whether a score of 0.8 means that eight in ten such cells have the label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation.blocks import row_blocks
from ray_mlc.evaluation.metrics import annotated_cells


@dataclass(frozen=True)
class Reliability:
    """Annotated cells in K bins of equal width by score; empty bins are left out."""

    mean_score_K: NDArray[np.float64]
    """Mean score of each bin's cells."""
    positive_share_K: NDArray[np.float64]
    """Share of them that have the label."""
    count_K: NDArray[np.int64]
    """How many they are."""

    @property
    def ece(self) -> float | None:
        """Expected calibration error: the mean over all cells of |share - mean score| of their bin.

        Naeini, Cooper, Hauskrecht 2015, in the form of Guo et al. 2017. None without a cell.
        """
        cells = int(self.count_K.sum())
        gaps_K = np.abs(self.positive_share_K - self.mean_score_K)
        return float((gaps_K * self.count_K).sum() / cells) if cells else None


def reliability(
    targets: NDArray[np.float32], scores: NDArray[np.float32], *, bins: int = 15
) -> Reliability:
    """Bin the annotated cells.

    Args:
        targets: 1, 0, or NaN for "not annotated", shape [N, L].
        scores: Probabilities in [0, 1], shape [N, L].
        bins: Bins between 0 and 1.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated, positive = annotated_cells(targets, scores)
    count_B = np.zeros(bins, np.int64)
    sums_B, hits_B = np.zeros(bins), np.zeros(bins)
    for rows in row_blocks(scores.shape):
        scores_C = scores[rows][annotated[rows]].astype(np.float64)
        bin_C = np.minimum((scores_C * bins).astype(np.int64), bins - 1)
        count_B += np.bincount(bin_C, minlength=bins)
        sums_B += np.bincount(bin_C, weights=scores_C, minlength=bins)
        hits_B += np.bincount(bin_C, weights=positive[rows][annotated[rows]], minlength=bins)
    filled = count_B > 0
    count_K = count_B[filled]
    return Reliability(sums_B[filled] / count_K, hits_B[filled] / count_K, count_K)
