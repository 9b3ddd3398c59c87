"""What an engine is: token batch in, float32 logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OutOfMemoryError(Exception):
    """A batch did not fit into memory; a smaller one may."""


class Engine(Protocol):
    """One way to run an encoder on one device."""

    name: str
    """`torch`."""
    device: str
    """`cpu` or `cuda`."""
    dtype: str
    """`float32`, `bfloat16` or `float16`."""

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            ids: Token ids of B documents, special tokens included, each of at least one token.

        Returns:
            Logits, shape [B, L].

        Raises:
            OutOfMemoryError: If the batch does not fit.
        """
