"""Cut files into units, and group units into reads.

A unit is a contiguous run of rows of one file; it names its rows, its part and its commit at once.
Whole row groups are packed into a unit while they fit; a row group that alone is larger is cut
into equal slices. A read is one task's work: units of one row group together, so that it is
decoded once, and units of small files together, so that 100,000 files of 10 rows do not cost
100,000 tasks.

Only footers are seen here: no rows, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.corpus.footers import Footer

UNITS_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("first_row", pa.int64()),
        ("rows", pa.int32()),
        ("bytes", pa.int64()),
        ("group_start", pa.int32()),
        ("group_stop", pa.int32()),
        ("group_offset", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Unit:
    """A contiguous run of rows of one input file."""

    source: str
    """File relative to the root."""
    part_folder: str
    """Folder of the file's parts below the output."""
    first_row: int
    """Position of the first row in the file."""
    rows: int
    """Rows."""
    group_start: int
    """First row group that holds rows of the unit."""
    group_stop: int
    """One past the last."""
    group_offset: int
    """Rows of the first row group that come before the unit."""
    file_size: int = -1
    """Bytes of the file when it was planned; -1: not to be compared."""
    file_mtime_ns: int = 0
    """Time of its last change then, in nanoseconds; 0 where the store says none."""

    @property
    def part(self) -> str:
        """Path of the part below the output: it follows from the unit alone."""
        return f"{self.part_folder}/{self.first_row:012d}.parquet"


def plan_units(footers: Sequence[Footer], *, max_rows: int, max_bytes: int) -> pa.Table:
    """Cut every readable file into units.

    Args:
        footers: One per file; files with a `fault` give no unit.
        max_rows: Most rows of a unit.
        max_bytes: Most decoded bytes of a unit; a unit has at least one row even so.

    Returns:
        `UNITS_SCHEMA`, in file and row order; the units of a file tile its rows exactly.
    """
    columns: dict[str, list[int]] = {name: [] for name in UNITS_SCHEMA.names}

    def add(*values: int) -> None:
        for name, value in zip(UNITS_SCHEMA.names, values, strict=True):
            columns[name].append(value)

    for index, footer in enumerate(footers):
        if footer.fault is not None:
            continue
        first = start = 0  # first row and first row group of the unit being packed
        rows = size = 0
        for group in range(len(footer.group_rows)):
            group_rows = int(footer.group_rows[group])
            # a row group without rows may have bytes all the same, which nobody reads
            group_bytes = int(footer.group_bytes[group]) if group_rows else 0
            fits_alone = group_rows <= max_rows and group_bytes <= max_bytes
            if rows and (rows + group_rows > max_rows or size + group_bytes > max_bytes):
                add(index, first, rows, size, start, group, 0)
                first, start, rows, size = first + rows, group, 0, 0
            if not fits_alone and group_rows > 1:
                within = max(1, max_bytes * group_rows // max(1, group_bytes))
                slices = -(-group_rows // min(max_rows, within))
                bounds = np.linspace(0, group_rows, slices + 1).astype(np.int64)
                for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                    share = group_bytes * (high - low) // group_rows
                    add(index, first + low, high - low, share, group, group + 1, low)
                first, start = first + group_rows, group + 1
                continue
            if not rows:
                start, size = group, 0
            rows, size = rows + group_rows, size + group_bytes
        if rows:
            add(index, first, rows, size, start, len(footer.group_rows), 0)
    arrays = [pa.array(columns[item.name], item.type) for item in UNITS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=UNITS_SCHEMA)


def slice_first(units: pa.Table, *, pieces: int, least: int = 1) -> pa.Table:
    """Cut the first unit with enough rows that lies in one row group into equal pieces.

    Args:
        units: `UNITS_SCHEMA`.
        pieces: How many; 1: nothing is cut.
        least: Rows that a piece must have.

    Returns:
        `UNITS_SCHEMA`: the same rows, tiled as before.
    """
    if pieces == 1:
        return units
    columns = {name: units[name].to_numpy() for name in UNITS_SCHEMA.names}
    groups_U = columns["group_stop"] - columns["group_start"]
    found = np.flatnonzero((groups_U == 1) & (columns["rows"] >= pieces * least))
    if not len(found):
        return units
    at = int(found[0])
    rows = int(columns["rows"][at])
    bounds = np.linspace(0, rows, pieces + 1).astype(np.int64)
    sliced = {name: np.repeat(values[at], pieces) for name, values in columns.items()}
    sliced["first_row"] = columns["first_row"][at] + bounds[:-1]
    sliced["group_offset"] = columns["group_offset"][at] + bounds[:-1]
    sliced["rows"] = np.diff(bounds)
    sliced["bytes"] = columns["bytes"][at] * sliced["rows"] // rows
    arrays = [pa.array(sliced[item.name], item.type) for item in UNITS_SCHEMA]
    middle = pa.Table.from_arrays(arrays, schema=UNITS_SCHEMA)
    return pa.concat_tables([units[:at], middle, units[at + 1 :]]).combine_chunks()


def group_reads(
    units: pa.Table, *, max_rows: int, max_bytes: int, group_share: float
) -> Iterator[NDArray[np.int64]]:
    """Group consecutive units into reads.

    Args:
        units: `UNITS_SCHEMA`, those that are still to be done.
        max_rows: Most rows of a read.
        max_bytes: Most decoded bytes of a read.
        group_share: Share of a row group that a read may take all the same: every read of units
            that a row group was cut into decodes the whole of it.

    Yields:
        Positions in `units` of each read, in order.
    """
    rows, sizes = units["rows"].to_numpy(), units["bytes"].to_numpy()
    group_N = _row_groups(units)
    count = int(group_N[-1]) + 1 if len(group_N) else 0
    rows_in, bytes_in = (
        np.bincount(group_N, values, minlength=count) * group_share for values in (rows, sizes)
    )
    first = 0
    read_rows = read_bytes = 0
    for position in range(len(rows)):
        more_rows, more_bytes = read_rows + rows[position], read_bytes + sizes[position]
        packs = more_rows <= max_rows and more_bytes <= max_bytes
        group = group_N[position]
        whole = position > first and group_N[first] == group
        shares = whole and more_rows <= rows_in[group] and more_bytes <= bytes_in[group]
        if position > first and not (packs or shares):
            yield np.arange(first, position)
            first, more_rows, more_bytes = position, rows[position], sizes[position]
        read_rows, read_bytes = more_rows, more_bytes
    if len(rows):
        yield np.arange(first, len(rows))


def _row_groups(units: pa.Table) -> NDArray[np.int64]:
    """A number for each unit, the same for those that a row group was cut into."""
    new = units["group_offset"].to_numpy() == 0
    for name in ("file", "group_start"):
        values = units[name].to_numpy()
        new = new | (np.diff(values, prepend=-1) != 0)
    return np.cumsum(new) - 1


def units_at(
    units: pa.Table, positions: NDArray[np.int64], sources: Sequence[str], folders: Sequence[str]
) -> list[Unit]:
    """The units at `positions` of a units table, as objects.

    Args:
        units: `UNITS_SCHEMA`.
        positions: Rows of it.
        sources: Source of each file index.
        folders: Part folder of each file index.
    """
    return [
        Unit(
            sources[row["file"]],
            folders[row["file"]],
            row["first_row"],
            row["rows"],
            row["group_start"],
            row["group_stop"],
            row["group_offset"],
        )
        for row in units.take(pa.array(positions)).to_pylist()
    ]
