"""Whether long documents fare worse, and what is cut off them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation.bootstrap import REPLICATES, Interval, interval, weights

LEAST_DOCUMENTS = 10
"""Documents that a bucket needs for an interval."""


@dataclass(frozen=True)
class LengthBucket:
    """Documents of similar length, and the figures of what they are given."""

    shortest: int
    """Tokens of the bucket's shortest possible document."""
    longest: int
    """And of its longest."""
    documents: int
    """Annotated documents in it."""
    truncated: float
    """Share of them of which the model did not see the end."""
    labels: float
    """Labels per document."""
    precision: float | None
    """Of all cells together, as are the two that follow; None where nothing is given."""
    recall: float | None
    """Share of the positives that are found; None where there are none."""
    f1: float | None
    """Harmonic mean of the two; None where there are no positives."""
    f1_interval: Interval | None
    """Bootstrap interval over the bucket's documents."""


def bucket_edges(longest: int, max_tokens: int | None) -> list[int]:
    """Last lengths of buckets: powers of two from 16 on, and the length at which texts are cut.

    Args:
        longest: Tokens of the longest document: its bucket is the last.
        max_tokens: Tokens that the model takes; None: it takes all.
    """
    edges = {2**power for power in range(4, 40)}
    if max_tokens is not None and max_tokens < longest:
        # next to the limit a power of two would cut off a sliver
        edges = {edge for edge in edges if not 2 / 3 < edge / max_tokens < 3 / 2} | {max_tokens}
    ends = sorted(edges)
    return ends[: 1 + int(np.searchsorted(ends, longest))]


def by_length(
    targets_NL: NDArray[np.float32],
    given_NL: NDArray[np.bool_],
    n_tokens_N: NDArray[np.integer],
    truncated_N: NDArray[np.bool_],
    *,
    max_tokens: int | None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[LengthBucket]:
    """Figures of decisions by the documents' length.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        given_NL: The decisions, shape [N, L].
        n_tokens_N: Tokens of each whole document.
        truncated_N: Whether some of them were cut off.
        max_tokens: Tokens that the model takes; None: it takes all.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Shortest first; buckets without a document are left out.
    """
    annotated_NL, positive_NL = ~np.isnan(targets_NL), targets_NL == 1
    known_N = annotated_NL.any(axis=1)
    hits_N = np.count_nonzero(positive_NL & given_NL, axis=1)
    counted_N = np.count_nonzero(annotated_NL & given_NL, axis=1)
    positives_N = np.count_nonzero(positive_NL, axis=1)
    edges = bucket_edges(int(n_tokens_N.max(initial=1)), max_tokens)
    bucket_N = np.searchsorted(edges, n_tokens_N, side="left")
    found = []
    for index, edge in enumerate(edges):
        rows = np.flatnonzero((bucket_N == index) & known_N)
        if not len(rows):
            continue
        hits, given, positives = (x[rows] for x in (hits_N, counted_N, positives_N))
        f1 = _share(2 * hits.sum(), (given + positives).sum()) if positives.any() else None
        found.append(
            LengthBucket(
                shortest=edges[index - 1] + 1 if index else 1,
                longest=edge,
                documents=len(rows),
                truncated=float(truncated_N[rows].mean()),
                labels=float(positives.mean()),
                precision=_share(hits.sum(), given.sum()),
                recall=_share(hits.sum(), positives.sum()),
                f1=f1,
                f1_interval=_f1_interval(hits, given + positives, f1, replicates, seed),
            )
        )
    return found


def _f1_interval(
    hits_N: NDArray[np.int64],
    marked_N: NDArray[np.int64],
    f1: float | None,
    replicates: int,
    seed: int,
) -> Interval | None:
    """Of a quotient of sums; None for documents too few to be drawn from."""
    if len(hits_N) < LEAST_DOCUMENTS:
        return None
    sums_N2 = np.stack([2 * hits_N, marked_N], axis=1).astype(np.float64)
    drawn = weights(len(hits_N), replicates=replicates, seed=seed)
    parts = [drawn_NR.T @ sums_N2 for drawn_NR in drawn]
    top_R, bottom_R = np.concatenate(parts).T
    return interval(top_R / np.maximum(bottom_R, 1), f1)


def _share(part: np.integer, whole: np.integer) -> float | None:
    return int(part) / int(whole) if whole else None
