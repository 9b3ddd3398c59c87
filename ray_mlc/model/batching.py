"""Group documents into batches that waste little padding.

A batch of B documents padded to its longest, T tokens, costs B × T tokens of compute whatever the
others' lengths, and a little for being a batch: kernels are started, weights are read once more.
Sorting by length keeps T close to every member; a budget on B × T rather than on B keeps memory use
equal for short and long documents. Where lengths fall quickly, several small batches are cheaper
than one that is padded: where to cut is a shortest path over the distinct lengths.

Only lengths are seen here: no text, no tensors, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError

BATCH_COST = {"cpu": 32, "cuda": 2048}
"""What a batch costs besides its tokens, in tokens, by device: on CPUs the weights are read once
more, on GPUs it takes a while until all of them is busy."""


def plan_batches(
    lengths_N: NDArray[np.int64], *, max_batch_tokens: int, batch_cost: int = BATCH_COST["cpu"]
) -> list[NDArray[np.intp]]:
    """Partition N documents into batches of at most `max_batch_tokens` padded tokens.

    The budget is what TEI calls `max_batch_tokens` and fairseq `--max-tokens`.

    Args:
        lengths_N: Tokens per document, special tokens included, shape [N], each at least 1.
        max_batch_tokens: Upper bound on B × T per batch, in tokens, padding included.
        batch_cost: What a batch costs besides its tokens, in tokens: the higher, the fewer and
            fuller batches.

    Returns:
        Index arrays into `lengths_N` that hold each of 0..N-1 exactly once. Longest first: if
        memory runs out it does so in the first batch, not in the last hour.

    Raises:
        ConfigError: If a document alone is longer than the budget.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    sorted_N = lengths_N[order_N]
    if len(sorted_N) and sorted_N[0] > max_batch_tokens:
        raise ConfigError(
            f"batching.max_batch_tokens is {max_batch_tokens}, but a document has "
            f"{int(sorted_N[0])} tokens: raise it, or lower long.max_tokens"
        )
    if len(sorted_N):
        # what is beyond all documents together binds nothing, and may not fit an int64
        max_batch_tokens = min(max_batch_tokens, len(sorted_N) * int(sorted_N[0]))
    full = _fill(sorted_N, 0, len(sorted_N), max_batch_tokens)
    cut = _cut(sorted_N, max_batch_tokens, batch_cost)
    # the path counts what is within a cut as padded to its first: full batches may still be cheaper
    chosen = min((full, cut), key=lambda bounds: _cost(sorted_N, bounds, batch_cost))
    return [order_N[low:high] for low, high in chosen]


def _fill(
    sorted_N: NDArray[np.int64], low: int, high: int, max_batch_tokens: int
) -> list[tuple[int, int]]:
    """Bounds of batches as large as the budget allows, within a run of documents."""
    bounds = []
    while low < high:
        size = max_batch_tokens // int(sorted_N[low])
        bounds.append((low, min(low + size, high)))
        low += size
    return bounds


def _cut(
    sorted_N: NDArray[np.int64], max_batch_tokens: int, batch_cost: int
) -> list[tuple[int, int]]:
    """Bounds of batches between the lengths at which it pays to begin anew."""
    starts_D = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    length_D = sorted_N[starts_D]
    stops_D = np.append(starts_D[1:], len(sorted_N)).astype(np.int64)
    count = len(starts_D)
    cost_D = np.zeros(count + 1)  # of everything from a length on
    next_D = np.zeros(count, np.int64)
    for index in range(count - 1, -1, -1):
        documents = stops_D[index:] - starts_D[index]
        batches = -(-documents // (max_batch_tokens // length_D[index]))
        costs = documents * length_D[index] + batches * batch_cost + cost_D[index + 1 :]
        best = int(np.argmin(costs))
        cost_D[index], next_D[index] = costs[best], index + best + 1
    bounds: list[tuple[int, int]] = []
    index = 0
    while index < count:
        following = int(next_D[index])
        bounds += _fill(
            sorted_N, int(starts_D[index]), int(stops_D[following - 1]), max_batch_tokens
        )
        index = following
    return bounds


def _cost(sorted_N: NDArray[np.int64], bounds: Sequence[tuple[int, int]], batch_cost: int) -> int:
    return sum((high - low) * int(sorted_N[low]) + batch_cost for low, high in bounds)


def padded_tokens(lengths_N: NDArray[np.int64], batches: Sequence[NDArray[np.intp]]) -> int:
    """Tokens that the batches cost, padding included."""
    return sum(len(batch) * int(lengths_N[batch].max()) for batch in batches)


def padding_fraction(real: int, padded: int) -> float:
    """Share of the padded tokens that is padding; 0 for no tokens."""
    return 1 - real / padded if padded else 0.0
