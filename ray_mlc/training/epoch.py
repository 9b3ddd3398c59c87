"""What the loop goes through: tokenized documents, and the plan of an epoch.

Every rank derives the same plan from lengths and seed: which documents form an optimizer step,
which rank takes which of them, in how many forward passes. Nothing here knows PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_mlc.model.batching import plan_batches
from ray_mlc.model.tokenization import Ragged

BUCKET_STEPS = 50
"""Steps whose documents are sorted by length together: little padding, and still a random order."""
PASS_COST = 1024
"""What a forward and backward pass costs besides its tokens, in tokens: most is Python's."""


@dataclass(frozen=True)
class TokenizedExamples:
    """Examples as the loop needs them: numbers only, cheap to share between processes."""

    ids: Ragged
    """Token ids of N documents."""
    positive_offsets: NDArray[np.int64]
    """Where each document's labels begin in `positive_columns`, shape [N + 1]."""
    positive_columns: NDArray[np.int32]
    """Columns of the labels that are given."""
    unannotated_offsets: NDArray[np.int64]
    """The same for cells that nobody annotated."""
    unannotated_columns: NDArray[np.int32]
    label_count: int
    """L."""

    def __len__(self) -> int:
        return len(self.ids)

    def label_rates(self) -> NDArray[np.float64]:
        """Share of the annotated documents that have each label, shape [L]."""
        positives_L = np.bincount(self.positive_columns, minlength=self.label_count)
        missing_L = np.bincount(self.unannotated_columns, minlength=self.label_count)
        return positives_L / np.maximum(len(self) - missing_L, 1)

    def targets_BL(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Targets of some documents: 0, 1, or NaN where nobody annotated."""
        targets = np.zeros((len(rows), self.label_count), np.float32)
        for position, row in enumerate(rows.tolist()):
            low, high = self.positive_offsets[row], self.positive_offsets[row + 1]
            targets[position, self.positive_columns[low:high]] = 1
            low, high = self.unannotated_offsets[row], self.unannotated_offsets[row + 1]
            targets[position, self.unannotated_columns[low:high]] = np.nan
        return targets


def plan_epoch(
    lengths_N: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.intp]]:
    """The global batches of an epoch: each document once, neighbors of like length.

    Args:
        lengths_N: Tokens per document.
        batch_size: Documents per optimizer step over all workers; the last step may have fewer.
        seed: Seed of the order.
        epoch: Counts from 0; another order each time.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths_N))
    batches: list[NDArray[np.intp]] = []
    bucket = batch_size * BUCKET_STEPS
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        rows = rows[np.argsort(lengths_N[rows], kind="stable")]
        batches += [rows[low : low + batch_size] for low in range(0, len(rows), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def plan_passes(
    costs_N: NDArray[np.int64], *, max_batch_tokens: int, batch_cost: int
) -> list[NDArray[np.intp]]:
    """As `plan_batches`, with a pass of its own for each document that is beyond the budget.

    A document cannot be divided: the gradient of its joined logits needs all its windows at once.
    That it is larger than the budget is no reason for the batches of others to be.
    """
    within_N = costs_N <= max_batch_tokens
    alone, others = np.flatnonzero(~within_N), np.flatnonzero(within_N)
    planned = plan_batches(
        costs_N[others], max_batch_tokens=max_batch_tokens, batch_cost=batch_cost
    )
    largest_first = alone[np.argsort(-costs_N[alone], kind="stable")]
    return [*largest_first[:, None], *(others[rows] for rows in planned)]


def share_of_rank(
    batch: NDArray[np.intp],
    lengths_N: NDArray[np.int64],
    *,
    rank: int,
    world_size: int,
    max_batch_tokens: int,
) -> list[NDArray[np.intp]]:
    """The forward passes of one rank for one step.

    Documents are dealt by length, so that ranks have like work. All ranks get the same number of
    passes; those without documents are empty arrays.
    """
    dealt = batch[np.argsort(-lengths_N[batch], kind="stable")]
    passes = []
    for other in range(world_size):
        rows = dealt[other::world_size]
        planned = plan_passes(
            lengths_N[rows], max_batch_tokens=max_batch_tokens, batch_cost=PASS_COST
        )
        passes.append([rows[index] for index in planned])
    longest = max(map(len, passes))
    empty = np.zeros(0, np.intp)
    return passes[rank] + [empty] * (longest - len(passes[rank]))
