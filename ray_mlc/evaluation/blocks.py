"""Pieces of [N, L] arrays, so that what is computed of them never needs many times their memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS = 1 << 20
"""Cells that are turned into something wider than float32 at a time."""
BLOCK_LABELS = 64
"""Columns copied together: a gather of single float32 wastes whole cache lines."""


def slices(length: int, step: int) -> Iterator[slice]:
    """Consecutive pieces of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of an [N, L] array, about `BLOCK_CELLS` cells at a time."""
    return slices(shape[0], max(1, BLOCK_CELLS // max(1, shape[1])))


def label_cells(
    annotated_NL: NDArray[np.bool_],
    positive_NL: NDArray[np.bool_],
    scores_NL: NDArray[np.float32],
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Each label's column, its annotated scores and those of its positives: the caller's to change.

    Args:
        annotated_NL: Cells that count.
        positive_NL: Those of them that have the label.
        scores_NL: Scores of all cells.
    """
    for columns in slices(scores_NL.shape[1], BLOCK_LABELS):
        annotated_BN = np.ascontiguousarray(annotated_NL[:, columns].T)
        positive_BN = np.ascontiguousarray(positive_NL[:, columns].T)
        scores_BN = np.ascontiguousarray(scores_NL[:, columns].T)
        for row, scores_N in enumerate(scores_BN):
            yield columns.start + row, scores_N[annotated_BN[row]], scores_N[positive_BN[row]]
