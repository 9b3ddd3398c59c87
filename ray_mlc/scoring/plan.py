"""Plan a night: what there is to read, which columns come out, and which units it is cut into.

A plan is made once, from one listing and one look at each footer. It is written beside the results
and rules every resume: the driver then holds units and counts, never rows. The first night fixes
the columns of the whole run; the plans of later nights are added to it, and a file that is planned
again replaces its earlier entry.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc as pa_ipc
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.columns import KeptColumn, ReadSpec, fit_columns, resolve_columns
from ray_mlc.corpus.footers import Footer, read_footers
from ray_mlc.corpus.listing import InputFile, Listing
from ray_mlc.corpus.units import UNITS_SCHEMA, Unit, plan_units, slice_first, units_at

UNIT_S = 5.0
"""Seconds of an actor's work that `units.rows: auto` aims at: soon there, and little to do again
after a failure, but more than what a unit costs besides."""
MIN_UNIT_ROWS, MAX_UNIT_ROWS = 64, 16_384
STARTERS = 8
"""Pieces that the first of these units is cut into, so that first rows are there sooner."""
STARTER_ROWS = 8
"""Fewest rows of such a piece."""


class FooterReader(Protocol):
    """As `corpus.footers.read_footers`."""

    def __call__(
        self, listing: Listing, *, progress: Callable[[int], None] | None = None
    ) -> list[Footer]:
        """Read the footer of every file."""


FILES_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("etag", pa.string()),
        ("rows", pa.int64()),
        ("fault", pa.string()),
    ]
)


@dataclass(frozen=True)
class CorpusPlan:
    """Files, units and columns of a run."""

    spec: ReadSpec
    """What is read and kept."""
    files: pa.Table
    """`FILES_SCHEMA`: every file of the listing; `rows` is null where the footer is unreadable."""
    units: pa.Table
    """`corpus.units.UNITS_SCHEMA`."""

    @cached_property
    def sources(self) -> list[str]:
        """Source of each file."""
        return list(self.files["source"].to_pylist())

    @cached_property
    def part_folders(self) -> list[str]:
        """Part folder of each file."""
        return [InputFile(source, 0, 0).part_folder for source in self.sources]

    @cached_property
    def parts(self) -> list[str]:
        """Path of each unit's part below the output, in unit order."""
        folders = self.part_folders
        files, firsts = self.units["file"].to_pylist(), self.units["first_row"].to_pylist()
        return [
            f"{folders[file]}/{first:012d}.parquet"
            for file, first in zip(files, firsts, strict=True)
        ]

    @cached_property
    def rows(self) -> int:
        """Planned rows."""
        return int(self.units["rows"].to_numpy().sum(dtype=np.int64))

    def units_at(self, positions: NDArray[np.int64]) -> list[Unit]:
        """The units at some positions."""
        units = units_at(self.units, positions, self.sources, self.part_folders)
        files = self.units["file"].to_numpy()[positions].tolist()
        size_F, mtime_F = (self.files[name].to_numpy() for name in ("size", "mtime_ns"))
        return [
            replace(unit, file_size=int(size_F[file]), file_mtime_ns=int(mtime_F[file]))
            for unit, file in zip(units, files, strict=True)
        ]

    def faulty_files(self) -> list[dict[str, Any]]:
        """Files that were set aside when they were planned, as rows of `FILES_SCHEMA`."""
        return list(self.files.filter(self.files["fault"].is_valid()).to_pylist())


@dataclass(frozen=True)
class Inspected:
    """Files whose footers have been read, before they are cut into units."""

    spec: ReadSpec
    """What is read and kept."""
    footers: Sequence[Footer]
    """One per file; those that do not fit carry a fault."""
    left_out: Sequence[str]
    """Columns that these files have and the run has not."""

    def cut(self, *, max_rows: int, max_bytes: int, starters: int = 1) -> CorpusPlan:
        """Cut the files into units of at most so many rows and decoded bytes, the first into more.

        Args:
            max_rows: Most rows of a unit.
            max_bytes: Most decoded bytes of one.
            starters: Pieces of what would be the first unit.
        """
        units = plan_units(self.footers, max_rows=max_rows, max_bytes=max_bytes)
        units = slice_first(units, pieces=starters, least=STARTER_ROWS)
        return CorpusPlan(self.spec, _files_table(self.footers), units)


def inspect_corpus(
    listing: Listing,
    job: ScoreJob,
    *,
    reserved: Sequence[str],
    spec: ReadSpec | None = None,
    progress: Callable[[int], None] | None = None,
    read: FooterReader = read_footers,
) -> Inspected:
    """Read every footer and fix the columns.

    Args:
        listing: The files to plan.
        job: Its `input` and `output` sections.
        reserved: Output columns of ours.
        spec: Columns that an earlier night has fixed; None: they are fixed here.
        progress: Called with 1 after each footer.
        read: How footers are read.

    Raises:
        DataError: If nothing in the input can be scored as asked.
        StorageError: If the storage does not answer.
    """
    keep = job.output.keep
    footers = read(listing, progress=progress)
    if spec is None:
        spec, footers = resolve_columns(
            footers, root=listing.root, text=job.input.text, keep=keep, reserved=reserved
        )
        return Inspected(spec, footers, [])
    footers, unknown = fit_columns(footers, spec)
    left_out = [] if isinstance(keep, list) else unknown
    return Inspected(spec, footers, left_out)


def unit_rows(documents_per_s: float | None) -> int:
    """Rows of a unit that an actor scores in about `UNIT_S`: a power of two within bounds.

    Args:
        documents_per_s: Speed of an actor; None: not known, and the largest unit is taken.
    """
    if documents_per_s is None:
        return MAX_UNIT_ROWS
    rows = 1 << round(math.log2(max(1.0, documents_per_s * UNIT_S)))
    return min(max(rows, MIN_UNIT_ROWS), MAX_UNIT_ROWS)


def combine(spec: ReadSpec, nights: Sequence[tuple[pa.Table, pa.Table]]) -> CorpusPlan:
    """One plan of all nights: of a file that was planned more than once, the last entry counts.

    Args:
        spec: Columns of the run.
        nights: Files and units of each night, in order.
    """
    if len(nights) == 1:
        return CorpusPlan(spec, *nights[0])
    files = pa.concat_tables([night[0] for night in nights])
    sources = files["source"].to_pylist()
    last = {source: index for index, source in enumerate(sources)}
    kept_F = np.array([last[source] == index for index, source in enumerate(sources)], np.bool_)
    number_F = np.cumsum(kept_F) - 1  # position among the kept ones
    tables, offset = [], 0
    for night_files, units in nights:
        file_U = units["file"].to_numpy() + offset
        mask_U = kept_F[file_U]
        renumbered = pa.array(number_F[file_U[mask_U]], pa.int32())
        tables.append(
            units.filter(pa.array(mask_U)).set_column(0, UNITS_SCHEMA.field(0), renumbered)
        )
        offset += len(night_files)
    return CorpusPlan(
        spec,
        files.filter(pa.array(kept_F)).combine_chunks(),
        pa.concat_tables(tables).combine_chunks(),
    )


def _files_table(footers: Sequence[Footer]) -> pa.Table:
    unreadable = [item.fault is not None and item.fault.startswith("footer") for item in footers]
    return pa.table(
        {
            "source": [item.file.source for item in footers],
            "size": [item.file.size for item in footers],
            "mtime_ns": [item.file.mtime_ns for item in footers],
            "etag": [item.file.etag for item in footers],
            "rows": [
                None if lost else item.rows for item, lost in zip(footers, unreadable, strict=True)
            ],
            "fault": [item.fault for item in footers],
        },
        schema=FILES_SCHEMA,
    )


def dump_columns(spec: ReadSpec) -> dict[str, Any]:
    """The columns of a run as JSON: for people, and the schema itself."""
    return {
        "root": spec.root,
        "text": spec.text,
        "kept": [
            {"name": item.name, "output": item.output, "type": str(item.type)} for item in spec.kept
        ],
        "schema": base64.b64encode(spec.kept_schema.serialize().to_pybytes()).decode(),
    }


def load_columns(columns: Mapping[str, Any]) -> ReadSpec:
    """The columns that `dump_columns` wrote."""
    schema = pa_ipc.read_schema(pa.py_buffer(base64.b64decode(columns["schema"])))
    kept = tuple(
        KeptColumn(item["name"], item["output"], field.type)
        for item, field in zip(columns["kept"], schema, strict=True)
    )
    return ReadSpec(columns["root"], columns["text"], kept)


def dump_table(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    options = pa_ipc.IpcWriteOptions(compression="zstd")
    with pa_ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def load_table(data: bytes) -> pa.Table:
    """The table that `dump_table` wrote."""
    with pa_ipc.open_file(pa.py_buffer(data)) as reader:
        return reader.read_all()
