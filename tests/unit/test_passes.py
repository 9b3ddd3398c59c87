"""Units of several runs grouped into passes: each run gets each of its units once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_mlc.scoring.passes import plan_passes

Cut = list[tuple[str, int]]
"""Part and rows of each unit."""
CUTS: list[Cut] = [
    [(f"part-{file}/{first:012d}.parquet", rows) for file in range(3) for first in range(0, 60, 20)]
    for rows in (20, 19)  # another run has other units of the same names
]


def run_of(cut: Cut, way: int) -> Any:
    """As much of a run as is looked at."""
    return SimpleNamespace(
        plan=SimpleNamespace(
            spec=f"spec {way}", units=pa.table({"rows": [rows for _, rows in cut]})
        ),
        identity={"input.max_text_bytes": 1},
        part_paths=[part for part, _ in cut],
    )


@st.composite
def several(draw: st.DrawFn) -> tuple[list[Any], list[NDArray[np.int64]]]:
    """Runs, and their pending units."""
    runs, pending = [], []
    for _ in range(draw(st.integers(1, 4))):
        cut = draw(st.sampled_from(CUTS))
        runs.append(run_of(cut, draw(st.integers(0, 1))))
        units = draw(st.sets(st.integers(0, len(cut) - 1)))
        pending.append(np.array(sorted(units), np.int64))
    return runs, pending


@given(several())
def test_every_run_gets_each_of_its_pending_units_once(
    found: tuple[list[Any], list[NDArray[np.int64]]],
) -> None:
    runs, pending = found

    def key(run: Any, unit: int) -> tuple[str, str, int]:
        return run.plan.spec, run.part_paths[unit], run.plan.units["rows"][unit].as_py()

    wanted = sorted(
        (position, *key(run, unit))
        for position, (run, units) in enumerate(zip(runs, pending, strict=True))
        for unit in units.tolist()
    )
    given_out, read = [], []
    for one in plan_passes(runs, pending):
        assert len(one.units)
        for unit in one.units.tolist():
            what = key(runs[one.runs[0]], unit)
            read.append(what)
            given_out += [(position, *what) for position in one.runs]
    assert sorted(given_out) == wanted
    assert len(read) == len(set(read)), "what several wait for is read once"


def test_what_most_wait_for_comes_first() -> None:
    runs = [run_of(CUTS[0], 0) for _ in range(3)]
    pending = [np.arange(9), np.arange(3, 9), np.arange(6, 9)]
    passes = plan_passes(runs, pending)
    assert [one.runs for one in passes] == [(0, 1, 2), (0, 1), (0,)]
    assert [one.units.tolist() for one in passes] == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
