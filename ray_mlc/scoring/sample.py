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
"""Units that are read; of a row group that is cut into several, one."""
SAMPLE_ROWS = 2048
"""Documents taken of them."""
SAMPLE_CHARACTERS = 32_768
"""Documents are cut to so many: no encoder takes more."""


def sample_units(plan: CorpusPlan) -> list[Unit]:
    """Units spread evenly over a plan."""
    files, groups = plan.units["file"].to_numpy(), plan.units["group_start"].to_numpy()
    # row groups lie next to each other in a plan
    new = np.flatnonzero((np.diff(files, prepend=-1) != 0) | (np.diff(groups, prepend=-1) != 0))
    if not len(new):
        return []
    return plan.units_at(new[np.unique(np.linspace(0, len(new) - 1, SAMPLE_UNITS).astype(int))])


def sample_texts(units: Sequence[Unit], spec: ReadSpec, *, max_text_bytes: int) -> list[str]:
    """Texts of some rows of some units, spread evenly; none of what cannot be read or scored."""
    texts: list[str] = []
    for unit in units:
        found = read_block([unit], spec, max_text_bytes=max_text_bytes)[BLOCK_TEXT].drop_null()
        if len(found):
            share = np.linspace(0, len(found) - 1, SAMPLE_ROWS // len(units))
            chosen = found.take(np.unique(share.astype(int)))
            texts += pc.utf8_slice_codeunits(chosen, 0, SAMPLE_CHARACTERS).to_pylist()
    return texts
