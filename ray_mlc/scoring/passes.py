"""Which units are read once for several runs.

Runs of one job have the same corpus, and so most often the same units pending. After a stop, or
where one of them was begun alone, they may differ: units are then grouped by the runs that wait for
them, so that each is read once, and scored only by the models that have not yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.scoring.ledger import Run


@dataclass(frozen=True)
class UnitPass:
    """Units that wait for the same runs."""

    runs: tuple[int, ...]
    """Positions of these runs; the first one's plan says what the units are."""
    units: NDArray[np.int64]
    """Positions of the units in that plan."""


def plan_passes(runs: Sequence[Run], pending: Sequence[NDArray[np.int64]]) -> list[UnitPass]:
    """Group the pending units of runs over one corpus; the most runs at once come first.

    Args:
        runs: At most 63, of which units are the same where file, rows, columns and text are.
        pending: Positions of the pending units of each.
    """
    if not any(len(units) for units in pending):
        return []
    if len(runs) == 1:
        return [UnitPass((0,), pending[0])]
    ways = [(run.plan.spec, run.identity["input.max_text_bytes"]) for run in runs]
    names = pa.concat_arrays(
        [
            _names(run, units, way=ways.index(way))
            for run, units, way in zip(runs, pending, ways, strict=True)
        ]
    )
    codes = np.split(
        names.dictionary_encode().indices.to_numpy().astype(np.int64),
        np.cumsum([len(units) for units in pending])[:-1],
    )
    waiting = np.zeros(1 + max(int(code.max(initial=0)) for code in codes), np.int64)
    for position, code in enumerate(codes):
        waiting[code] |= 1 << position
    passes = []
    for mask in np.unique(waiting).tolist():
        members = tuple(position for position in range(len(runs)) if mask >> position & 1)
        first = members[0]
        passes.append(UnitPass(members, pending[first][waiting[codes[first]] == mask]))
    return sorted(passes, key=lambda item: (-len(item.runs), item.runs))


def _names(run: Run, units: NDArray[np.int64], *, way: int) -> pa.Array:
    """A text for each unit that is the same for units that can be read as one.

    Args:
        run: The run.
        units: Positions of its units.
        way: What differs between runs that read rows in another way.
    """
    parts = pa.array(run.part_paths, pa.large_string()).take(pa.array(units))
    rows = run.plan.units["rows"].combine_chunks().take(pa.array(units)).cast(pa.large_string())
    texts = [pa.scalar(str(way), pa.large_string()), parts, rows]
    return pc.binary_join_element_wise(*texts, pa.scalar(":", pa.large_string()))
