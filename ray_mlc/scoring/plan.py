"""Plan a run: what there is to read, which columns come out, and which units it is cut into.

The plan is made once, from one listing and one look at each footer. It is written beside the
results and rules every resume: the driver then holds units and counts, never rows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.ipc as pa_ipc

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.footers import (
    Footer,
    KeptColumn,
    ReadSpec,
    read_footers,
    resolve_columns,
    text_columns,
)
from ray_mlc.corpus.listing import InputFile, Listing
from ray_mlc.corpus.units import plan_units

FILES_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
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

    @property
    def sources(self) -> list[str]:
        """Source of each file."""
        return list(self.files["source"].to_pylist())

    @property
    def part_folders(self) -> list[str]:
        """Part folder of each file."""
        return [InputFile(source, 0, 0).part_folder for source in self.sources]

    @property
    def rows(self) -> int:
        """Planned rows."""
        return int(sum(self.units["rows"].to_pylist()))

    def parts(self) -> list[str]:
        """Path of each unit's part below the output, in unit order."""
        folders = self.part_folders
        files, firsts = self.units["file"].to_pylist(), self.units["first_row"].to_pylist()
        return [
            f"{folders[file]}/{first:012d}.parquet"
            for file, first in zip(files, firsts, strict=True)
        ]


def plan_corpus(
    listing: Listing,
    job: ScoreJob,
    *,
    reserved: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> CorpusPlan:
    """Read every footer and cut the files into units.

    Args:
        listing: The input's files.
        job: Its `input`, `output` and `units` sections.
        reserved: Output columns of ours.
        progress: Called with 1 after each footer.

    Raises:
        DataError: If nothing in the input can be scored as asked.
    """
    keep = job.output.keep
    needed = text_columns(job.input.text)

    def columns_read(names: Sequence[str]) -> list[str]:
        if isinstance(keep, list):
            return [*needed, *keep]
        return list(names)

    footers = read_footers(listing, columns=columns_read, progress=progress)
    spec, footers = resolve_columns(
        footers, root=listing.root, text=job.input.text, keep=keep, reserved=reserved
    )
    units = plan_units(footers, max_rows=job.units.rows, max_bytes=job.units.bytes)
    return CorpusPlan(spec, _files_table(footers), units)


def _files_table(footers: Sequence[Footer]) -> pa.Table:
    unreadable = [item.fault is not None and item.fault.startswith("footer") for item in footers]
    return pa.table(
        {
            "source": [item.file.source for item in footers],
            "size": [item.file.size for item in footers],
            "mtime_ns": [item.file.mtime_ns for item in footers],
            "rows": [
                None if lost else item.rows for item, lost in zip(footers, unreadable, strict=True)
            ],
            "fault": [item.fault for item in footers],
        },
        schema=FILES_SCHEMA,
    )


def dump_plan(plan: CorpusPlan) -> dict[str, bytes]:
    """The plan as files: `files.arrow`, `units.arrow`, `columns.json`."""
    columns = {
        "root": plan.spec.root,
        "text": plan.spec.text,
        "kept": [
            {"name": item.name, "output": item.output, "type": str(item.type)}
            for item in plan.spec.kept
        ],
        # the types above are for people; this is the schema itself
        "schema": base64.b64encode(plan.spec.kept_schema.serialize().to_pybytes()).decode(),
    }
    return {
        "files.arrow": _dump_table(plan.files),
        "units.arrow": _dump_table(plan.units),
        "columns.json": json.dumps(columns, indent=1, ensure_ascii=False).encode(),
    }


def load_plan(read: Callable[[str], bytes]) -> CorpusPlan:
    """The plan that `dump_plan` wrote."""
    columns = json.loads(read("columns.json"))
    schema = pa_ipc.read_schema(pa.py_buffer(base64.b64decode(columns["schema"])))
    kept = tuple(
        KeptColumn(item["name"], item["output"], field.type)
        for item, field in zip(columns["kept"], schema, strict=True)
    )
    spec = ReadSpec(columns["root"], columns["text"], kept)
    return CorpusPlan(spec, _load_table(read("files.arrow")), _load_table(read("units.arrow")))


def _dump_table(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa_ipc.IpcWriteOptions(compression="zstd")
    with pa_ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _load_table(data: bytes) -> pa.Table:
    with pa_ipc.open_file(pa.py_buffer(data)) as reader:
        return reader.read_all()
