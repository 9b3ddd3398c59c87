"""Group documents into batches that waste little padding.

A batch of B documents padded to its longest, T tokens, costs B × T tokens of compute whatever the
others' lengths. Sorting by length keeps T close to every member; a budget on B × T rather than on
B keeps memory use equal for short and long documents.

Only lengths are seen here: no text, no tensors, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError


def plan_batches(lengths_N: NDArray[np.int64], *, max_batch_tokens: int) -> list[NDArray[np.intp]]:
    """Partition N documents into batches of at most `max_batch_tokens` padded tokens.

    The budget is what TEI calls `max_batch_tokens` and fairseq `--max-tokens`.

    Args:
        lengths_N: Tokens per document, special tokens included, shape [N], each at least 1.
        max_batch_tokens: Upper bound on B × T per batch, in tokens, padding included.

    Returns:
        Index arrays into `lengths_N` that hold each of 0..N-1 exactly once. Longest first: if
        memory runs out it does so in the first batch, not in the last hour.

    Raises:
        ConfigError: If a document alone is longer than the budget.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    batches: list[NDArray[np.intp]] = []
    start = 0
    while start < len(order_N):
        longest = int(lengths_N[order_N[start]])
        if longest > max_batch_tokens:
            raise ConfigError(
                f"batching.max_batch_tokens is {max_batch_tokens}, but a document has {longest} "
                "tokens: raise it, or lower long.max_tokens"
            )
        size = max_batch_tokens // max(longest, 1)
        batches.append(order_N[start : start + size])
        start += size
    return batches


def padded_tokens(lengths_N: NDArray[np.int64], batches: Sequence[NDArray[np.intp]]) -> int:
    """Tokens that the batches cost, padding included."""
    return sum(len(batch) * int(lengths_N[batch].max()) for batch in batches)


def padding_fraction(real: int, padded: int) -> float:
    """Share of the padded tokens that is padding; 0 for no tokens."""
    return 1 - real / padded if padded else 0.0
