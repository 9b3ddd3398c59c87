"""Some documents of a plan, to time engines with: spread over the corpus, few, and short enough."""

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
"""Documents taken of them."""
SAMPLE_CHARACTERS = 32_768
"""Documents are cut to so many: no encoder takes more."""


def sample_units(plan: CorpusPlan) -> list[Unit]:
    """Units spread evenly over a plan: its beginning and its end may be unlike the rest."""
    count = len(plan.units)
    middles = (np.arange(SAMPLE_UNITS) + 0.5) / SAMPLE_UNITS * count
    return plan.units_at(np.unique(middles.astype(np.int64))) if count else []


def sample_texts(units: Sequence[Unit], spec: ReadSpec, *, max_text_bytes: int) -> list[str]:
    """Texts of some rows of some units, spread evenly; none of what cannot be read or scored."""
    if not units:
        return []
    block = read_block(units, spec, max_text_bytes=max_text_bytes)
    texts = block[BLOCK_TEXT].drop_null()
    if not len(texts):
        return []
    rows = np.unique(np.linspace(0, len(texts) - 1, SAMPLE_ROWS).astype(np.int64))
    cut: list[str] = pc.utf8_slice_codeunits(texts.take(rows), 0, SAMPLE_CHARACTERS).to_pylist()
    return cut
