"""Where decisions are wrong: labels given in place of others, and the single worst cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation.blocks import row_blocks
from ray_mlc.evaluation.metrics import LOSS_CLIP, annotated_cells


@dataclass(frozen=True)
class Confusions:
    """Which labels documents got wrongly when they missed another.

    A label is missed in a document that has it and does not get it; it is a false alarm in one that
    does not have it and gets it. With several labels per document nobody can say which false alarm
    stands for which miss, so all that fall into one document are counted. Labels given rightly, and
    those that nobody annotated there, count nowhere.
    """

    missed_L: NDArray[np.int64]
    """Documents in which each label was missed."""
    alone_L: NDArray[np.int64]
    """Those of them that got no other label wrongly."""
    false_alarms_L: NDArray[np.int64]
    """Documents that got each label wrongly."""
    pairs_P3: NDArray[np.int64]
    """Label missed, label given instead, documents: the most frequent pairs, of equally frequent
    ones those of the first labels; shape [P, 3]."""
    shown_H: NDArray[np.intp]
    """Labels of the matrix, in column order."""
    matrix_HH: NDArray[np.int64]
    """Documents by label missed (row) and label given instead (column)."""


def confusions(
    targets_NL: NDArray[np.float32], given_NL: NDArray[np.bool_], *, pairs: int, shown: int
) -> Confusions:
    """Count false alarms beside misses.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        given_NL: The decisions, shape [N, L].
        pairs: The most pairs to list.
        shown: The most labels of the matrix: of more than that those of the most frequent pairs.
    """
    missed_NL = (targets_NL == 1) & ~given_NL
    wrong_NL = (targets_NL == 0) & given_NL
    alarmed_N = wrong_NL.any(axis=1)
    labels = targets_NL.shape[1]
    alone_L = missed_NL[~alarmed_N].sum(axis=0)
    candidates: list[NDArray[np.int64]] = []
    for label in np.flatnonzero(missed_NL[alarmed_N].any(axis=0)).tolist():
        together_L = wrong_NL[missed_NL[:, label] & alarmed_N].sum(axis=0)
        # no label can take more places in the list than it has
        order = np.argsort(-together_L, kind="stable")[:pairs]
        others = order[together_L[order] > 0]
        candidates.append(np.stack([np.full_like(others, label), others, together_L[others]], 1))
    found_P3 = np.concatenate([np.empty((0, 3), np.int64), *candidates])
    found_P3 = found_P3[np.argsort(-found_P3[:, 2], kind="stable")][:pairs]
    shown_H = (
        np.arange(labels) if labels <= shown else _first_distinct(found_P3[:, :2].ravel(), shown)
    )
    matrix_HH = missed_NL[:, shown_H].T.astype(np.int64) @ wrong_NL[:, shown_H].astype(np.int64)
    return Confusions(
        missed_L=missed_NL.sum(axis=0),
        alone_L=alone_L,
        false_alarms_L=wrong_NL.sum(axis=0),
        pairs_P3=found_P3,
        shown_H=shown_H,
        matrix_HH=matrix_HH,
    )


def _first_distinct(values: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    """The first `count` distinct ones, sorted."""
    distinct, first = np.unique(values, return_index=True)
    return np.sort(distinct[np.argsort(first)][:count]).astype(np.intp)


@dataclass(frozen=True)
class Mistake:
    """A cell that was decided wrongly."""

    document: int
    """Row of the arrays."""
    label: int
    """Column of the arrays."""
    score: float
    """What the model said."""
    missed: bool
    """True: the document has the label and does not get it; False: the other way round."""
    loss: float
    """Binary cross-entropy, in nats."""
    has: tuple[int, ...]
    """All labels that the document has."""
    gets: tuple[int, ...]
    """All labels that it gets."""


def costliest(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    given_NL: NDArray[np.bool_],
    *,
    count: int,
) -> list[Mistake]:
    """The wrong decisions with the largest losses.

    Misses and false alarms are taken apart: where labels are rare, one kind would leave no room for
    the other.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        given_NL: The decisions, shape [N, L].
        count: The most of each kind.

    Returns:
        Largest loss first; of equal ones the first document and label.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    found: list[Mistake] = []
    for missed in (True, False):
        worst: list[tuple[float, int, int]] = []
        for rows in row_blocks(scores_NL.shape):
            wrong_BL = annotated_NL[rows] & (positive_NL[rows] != given_NL[rows])
            row_C, label_C = np.nonzero(wrong_BL & (positive_NL[rows] == missed))
            score_C = scores_NL[rows][row_C, label_C].astype(np.float64)
            right_C = score_C if missed else 1 - score_C
            order = np.lexsort((label_C, row_C, right_C))[:count]
            worst += zip(
                right_C[order].tolist(),
                (row_C[order] + rows.start).tolist(),
                label_C[order].tolist(),
                strict=True,
            )
            worst = sorted(worst)[:count]
        for right, document, label in worst:
            loss = -float(np.log(np.clip(right, LOSS_CLIP, 1 - LOSS_CLIP)))
            score = float(scores_NL[document, label])
            has, gets = (
                tuple(np.flatnonzero(cells_NL[document]).tolist())
                for cells_NL in (positive_NL, given_NL)
            )
            found.append(Mistake(document, label, score, missed, loss, has, gets))
    return sorted(found, key=lambda cell: (-cell.loss, cell.document, cell.label))
