"""Some documents of a plan, to time engines with: spread over the corpus, and not too many.

How long a document takes depends on how much of it is read, which may be many windows. So each is
cut only where no more of it would be read, and memory is bounded by taking fewer documents where
they are long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.rows import BLOCK_TEXT, read_block
from ray_mlc.corpus.units import Unit
from ray_mlc.scoring.plan import CorpusPlan

SAMPLE_UNITS = 4
"""Units that are read."""
SAMPLE_ROWS = 2048
"""Documents taken of them at most."""
SAMPLE_CHARACTERS = 16 * 2**20
"""Characters of all of them together: where documents are long, fewer are taken."""
CHARACTERS_PER_TOKEN = 8
"""Most that the tokens of a document have on average: what lies beyond them is not read."""


def sample_units(plan: CorpusPlan) -> list[Unit]:
    """Units spread evenly over a plan: its beginning and its end may be unlike the rest."""
    count = len(plan.units)
    middles = (np.arange(SAMPLE_UNITS) + 0.5) / SAMPLE_UNITS * count
    return plan.units_at(np.unique(middles.astype(np.int64))) if count else []


def sample_texts(
    units: Sequence[Unit], spec: ReadSpec, *, max_text_bytes: int, max_tokens: int
) -> list[str]:
    """Texts of some rows of some units, spread evenly; none of what cannot be read or scored.

    Args:
        units: Where from.
        spec: Columns to read.
        max_text_bytes: Longest text that is scored.
        max_tokens: Tokens of a document that are read at most, in all its windows.
    """
    if not units:
        return []
    block = read_block(units, spec, max_text_bytes=max_text_bytes)
    texts = block[BLOCK_TEXT].drop_null()
    if not len(texts):
        return []
    longest = max_tokens * CHARACTERS_PER_TOKEN
    sizes_N = np.minimum(pc.utf8_length(texts).to_numpy(), longest)
    count = min(SAMPLE_ROWS, len(texts))
    while True:
        rows = np.unique(np.linspace(0, len(texts) - 1, count).astype(np.int64))
        size = int(sizes_N[rows].sum(dtype=np.int64))
        if size <= SAMPLE_CHARACTERS or count == 1:
            break
        count = max(1, min(count - 1, count * SAMPLE_CHARACTERS // size))
    cut: list[str] = pc.utf8_slice_codeunits(texts.take(rows), 0, longest).to_pylist()
    return cut
