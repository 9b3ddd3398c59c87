"""What an engine is: token batch in, float32 logits out; and what engines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ray_mlc.model.batching import BATCH_COST


class OutOfMemoryError(Exception):
    """A batch did not fit into memory; a smaller one may."""


class Engine(Protocol):
    """One way to run a model on one device."""

    name: str
    """`torch`, `openvino` or `tfidf`."""
    device: str
    """`cpu` or `cuda`."""
    dtype: str
    """`float32`, `bfloat16`, `float16` or `int8`."""
    depth: int
    """Batches worth beginning before the first is fetched: 1 where nothing runs beside the host."""
    packed: bool
    """Whether documents lie end to end in a batch, without padding."""
    batch_cost: int
    """What a batch costs besides its tokens, in tokens; see `model.batching`."""

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            ids: Token ids of B documents, special tokens included, each of at least one token.

        Returns:
            Logits, shape [B, L].

        Raises:
            OutOfMemoryError: If the batch does not fit.
        """

    def begin(self, ids: Sequence[NDArray[np.int32]]) -> Callable[[], NDArray[np.float32]]:
        """Begin a batch, and return what fetches its logits; arguments and errors as for `logits`.

        Both calls may raise: what runs beside the host fails when it is waited for.
        """


class OneByOne:
    """What engines share whose work is the host's own: a batch is done when it is fetched."""

    depth = 1
    packed = False
    batch_cost = BATCH_COST["cpu"]

    def begin(self: Engine, ids: Sequence[NDArray[np.int32]]) -> Callable[[], NDArray[np.float32]]:
        """See `Engine.begin`."""
        return lambda: self.logits(ids)


def pad(
    ids: Sequence[NDArray[np.int32]], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad ragged ids to the longest: ids and attention mask, both [B, T]."""
    lengths_B = np.array([len(row) for row in ids])
    mask_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    input_ids_BT = np.full(mask_BT.shape, pad_id, np.int64)
    input_ids_BT[mask_BT] = np.concatenate(ids)
    return input_ids_BT, mask_BT.astype(np.int64)
