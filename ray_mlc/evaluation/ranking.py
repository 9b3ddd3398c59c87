"""How good the first k labels of each document are: what counts where labels are thousands.

With R of a document's labels positive, and gain 1 for a positive at a rank and 0 for another:

- Precision@k: gains of the first k ranks / k.
- R-Precision@k: gains of the first k ranks / min(k, R), so that a document with fewer than k labels
  can reach 1 (Chalkidis et al. 2019, "Large-Scale Multi-Label Text Classification on EU
  Legislation").
- nDCG@k: Σ over the first k ranks of gain / log2(rank + 1), divided by what the best order would
  have (Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with the
  discount of Burges et al. 2005 that is common now, which discounts rank 2 already).

Each is a mean over documents with at least one positive. Labels of one score share the mean of
their gains, which is the expectation over all orders of them (McSherry and Najork 2008), as in
scikit-learn's `ndcg_score`. Labels that nobody annotated in a document are not ranked there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation.blocks import row_blocks
from ray_mlc.evaluation.metrics import annotated_cells

KS = (1, 3, 5, 10)
"""Ranks at which the figures are taken."""
_UNRANKED = np.float32(-1)


def ranking_at(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], *, ks: Sequence[int] = KS
) -> dict[str, NDArray[np.float64]]:
    """Figures of each document, in [0, 1].

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        ks: Numbers of ranks, each at least 1.

    Returns:
        `r_precision@k`, `ndcg@k` and `precision@k` for every k, shape [N]; NaN for documents
        without a positive.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    deepest = max(ks)
    gains_NK = np.zeros((len(scores_NL), deepest))
    for rows in row_blocks(scores_NL.shape):
        ranked_BL = np.where(annotated_NL[rows], scores_NL[rows], _UNRANKED)
        gains_BK = _gains(positive_NL[rows], ranked_BL, deepest)
        gains_NK[rows, : gains_BK.shape[1]] = gains_BK
    positives_N = np.count_nonzero(positive_NL, axis=1)
    discounts_K = 1 / np.log2(np.arange(2, deepest + 2))
    ideal_K = np.concatenate([[np.nan], np.cumsum(discounts_K)])  # by number of positives
    found: dict[str, dict[int, NDArray[np.float64]]] = {
        "r_precision": {},
        "ndcg": {},
        "precision": {},
    }
    for k in ks:
        hits_N = np.where(positives_N > 0, gains_NK[:, :k].sum(axis=1), np.nan)
        reachable_N = np.minimum(positives_N, k)
        found["r_precision"][k] = hits_N / np.maximum(reachable_N, 1)
        found["ndcg"][k] = (gains_NK[:, :k] @ discounts_K[:k]) / ideal_K[reachable_N]
        found["precision"][k] = hits_N / k
    return {f"{name}@{k}": values[k] for name, values in found.items() for k in ks}


def means(values: Mapping[str, NDArray[np.float64]]) -> dict[str, float | None]:
    """Mean over the documents of which a figure is defined; None if there are none."""
    defined = {name: of_N[~np.isnan(of_N)] for name, of_N in values.items()}
    return {name: float(of_N.mean()) if of_N.size else None for name, of_N in defined.items()}


def _gains(
    positive_BL: NDArray[np.bool_], scores_BL: NDArray[np.float32], deepest: int
) -> NDArray[np.float64]:
    """Expected gain at each of the first ranks, shape [B, min(deepest, L)]."""
    labels = scores_BL.shape[1]
    k = min(deepest, labels)
    if not k:
        return np.zeros((len(scores_BL), 0))
    top_BK = np.argpartition(scores_BL, labels - k, axis=1)[:, labels - k :]
    order_BK = np.argsort(-np.take_along_axis(scores_BL, top_BK, axis=1), axis=1)
    top_BK = np.take_along_axis(top_BK, order_BK, axis=1)
    score_BK = np.take_along_axis(scores_BL, top_BK, axis=1)
    positive_BK = np.take_along_axis(positive_BL, top_BK, axis=1)
    tied_BKK = score_BK[:, :, None] == score_BK[:, None, :]
    gains_BK = (tied_BKK & positive_BK[:, None, :]).sum(axis=2) / tied_BKK.sum(axis=2)
    # labels tied with the last of them may stand outside
    last_B1 = score_BK[:, -1:]
    tied_BL = scores_BL == last_B1
    share_B = (tied_BL & positive_BL).sum(axis=1) / tied_BL.sum(axis=1)
    expected_BK: NDArray[np.float64] = np.where(score_BK == last_B1, share_B[:, None], gains_BK)
    return expected_BK
