"""Long documents in windows: the logits of a document's windows become one, label by label.

A document is evidence for a label if any of its windows is (`max`, `noisy_or`), or if it is so on
the whole (`mean`), or something between the two (`top_mean`). All of them leave the logit of a
single window as it is, and none of them falls where a window's logit rises.

`max` over segments is how Dai et al. 2022 (Revisiting Transformer-based Models for Long Document
Classification) put them together; `noisy_or` is the multiple-instance model of Zhang, Platt and
Viola 2005: a document lacks a label if every window lacks it, independently of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Aggregate = Literal["max", "mean", "noisy_or", "top_mean"]
AGGREGATES: tuple[Aggregate, ...] = ("max", "mean", "noisy_or", "top_mean")


def aggregate_logits(
    logits_WL: NDArray[np.float32], firsts: NDArray[np.int64], *, how: Aggregate, top: int
) -> NDArray[np.float32]:
    """One logit per document and label.

    Args:
        logits_WL: Of W windows, those of a document one after the other, shape [W, L].
        firsts: First window of each document, and W, shape [N + 1]; no document is without one.
        how: See above.
        top: Windows that `top_mean` takes the mean of, the highest ones; fewer where a document has
            fewer.

    Returns:
        Shape [N, L]; NaN where a window's logit is not finite.
    """
    if len(firsts) == 1:
        return np.zeros((0, logits_WL.shape[1]), np.float32)
    result_NL = _aggregated(logits_WL, firsts, how, top)
    accident_WL = ~np.isfinite(logits_WL)
    if accident_WL.any():
        # none of the ways above would show a -inf beside a higher logit
        result_NL[np.logical_or.reduceat(accident_WL, firsts[:-1], axis=0)] = np.nan
    return result_NL


def _aggregated(
    logits_WL: NDArray[np.float32], firsts: NDArray[np.int64], how: Aggregate, top: int
) -> NDArray[np.float32]:
    counts_N, starts = np.diff(firsts), firsts[:-1]
    result_NL: NDArray[np.float32]
    with np.errstate(invalid="ignore", over="ignore"):
        if how == "max":
            return np.maximum.reduceat(logits_WL, starts, axis=0)
        if how == "mean":
            sums_NL = np.add.reduceat(logits_WL, starts, axis=0, dtype=np.float64)
            result_NL = (sums_NL / counts_N[:, None]).astype(np.float32)
            return result_NL
        if how == "noisy_or":
            # log of the chance that no window has the label, in float64: it may be next to 0
            none_WL = np.logaddexp(0.0, logits_WL.astype(np.float64))
            result_NL = _logit_of_not(-np.add.reduceat(none_WL, starts, axis=0)).astype(np.float32)
            single_N = counts_N == 1
            result_NL[single_N] = logits_WL[starts[single_N]]  # to the last bit
            return result_NL
        result_NL = np.empty((len(counts_N), logits_WL.shape[1]), np.float32)
        for count in np.unique(counts_N).tolist():
            rows = np.flatnonzero(counts_N == count)
            windows_NCL = logits_WL[starts[rows][:, None] + np.arange(count)]
            kept = min(top, count)
            best_NCL = np.partition(windows_NCL, count - kept, axis=1)[:, count - kept :]
            result_NL[rows] = best_NCL.mean(axis=1, dtype=np.float64)
    return result_NL


def _logit_of_not(log_none: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logit of 1 - exp(log_none), for log_none <= 0."""
    # log((1 - e^s) / e^s) = log(1 - e^s) - s; the first term by expm1 near 0, log1p far from it
    near = log_none > -np.log(2)
    with np.errstate(divide="ignore"):
        log_some = np.where(near, np.log(-np.expm1(log_none)), np.log1p(-np.exp(log_none)))
    result: NDArray[np.float64] = log_some - log_none
    return result


def aggregate_tensors(
    logits_WL: torch.Tensor, counts: list[int], *, how: Aggregate, top: int
) -> torch.Tensor:
    """`aggregate_logits` for tensors that carry gradients.

    Args:
        logits_WL: Of W windows, shape [W, L].
        counts: Windows of each document, shape [N]; their sum is W.
        how: See above.
        top: See `aggregate_logits`.

    Returns:
        Shape [N, L].
    """
    import torch

    if all(count == 1 for count in counts):
        return logits_WL
    documents = []
    for windows_CL in torch.split(logits_WL, counts):
        if len(windows_CL) == 1:
            documents.append(windows_CL[0])
        elif how == "max":
            documents.append(windows_CL.amax(dim=0))
        elif how == "mean":
            documents.append(windows_CL.mean(dim=0))
        elif how == "noisy_or":
            log_none = -torch.nn.functional.softplus(windows_CL).sum(dim=0)
            # 1e-30: where every window is sure that there is nothing, float32 rounds to exactly 0
            some = -torch.expm1(log_none)
            documents.append(some.clamp_min(1e-30).log() - log_none)
        else:
            kept = min(top, len(windows_CL))
            documents.append(windows_CL.topk(kept, dim=0).values.mean(dim=0))
    return torch.stack(documents)
