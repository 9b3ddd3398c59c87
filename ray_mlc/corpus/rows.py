"""Read units into one Arrow block, and make the text of each row.

A block carries the kept columns under their output names, `source` and `row`, and a few columns
of its own (`BLOCK_…`) that say which unit a row belongs to and what became of its text. A unit
that cannot be read becomes one marker row with the reason in `BLOCK_FAULT`: reading never raises
over bad data, because Ray would drop or retry the whole task. Only a store that goes on failing
ends it, because that says nothing about the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.fields import type_of
from ray_mlc.corpus.listing import hive_keys_of
from ray_mlc.corpus.reading import open_parquet, refuse_local_stores_fault
from ray_mlc.corpus.text import read_texts
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import first_line
from ray_mlc.storage import filesystem_of

BLOCK_TEXT = "__ray_mlc_text"
"""large_string: the text; null where the status is not `ok`."""
BLOCK_STATUS = "__ray_mlc_status"
"""int8: index into `STATUSES`."""
BLOCK_UNIT_FIRST = "__ray_mlc_unit_first"
"""int64: first row of the row's unit."""
BLOCK_UNIT_ROWS = "__ray_mlc_unit_rows"
"""int32: rows of the row's unit."""
BLOCK_FAULT = "__ray_mlc_fault"
"""string: why the unit could not be read; null otherwise."""

STATUSES = ("ok", "null_text", "empty", "decode_error", "too_long", "not_finite")
"""What can become of a row; `null_text` and `empty` are facts of the input, not faults."""
OK, NULL_TEXT, EMPTY, DECODE_ERROR, TOO_LONG, NOT_FINITE = range(len(STATUSES))
_UNREADABLE = (OSError, pa.ArrowException, ValueError)
"""What reading a damaged file raises; a store's failures are told apart."""
SOURCE_TYPE = pa.dictionary(pa.int32(), pa.string())


def block_schema(spec: ReadSpec) -> pa.Schema:
    """Schema of every block that `read_block` returns."""
    return pa.schema(
        [
            *spec.kept_schema,
            ("source", SOURCE_TYPE),
            ("row", pa.int64()),
            (BLOCK_TEXT, pa.large_string()),
            (BLOCK_STATUS, pa.int8()),
            (BLOCK_UNIT_FIRST, pa.int64()),
            (BLOCK_UNIT_ROWS, pa.int32()),
            (BLOCK_FAULT, pa.string()),
        ]
    )


def read_block(units: Sequence[Unit], spec: ReadSpec, *, max_text_bytes: int) -> pa.Table:
    """Read units into one block, in their order.

    Args:
        units: What to read; units of one row group next to each other are decoded once.
        spec: Columns to read and keep.
        max_text_bytes: Texts above are marked `too_long` and left out.

    Returns:
        A table of `block_schema(spec)`: the rows of each unit in order, or its marker row.

    Raises:
        StorageError: If the storage fails; a remote one for longer than reads are repeated.
    """
    filesystem, base = filesystem_of(spec.root)
    schema = block_schema(spec)
    tables: list[pa.Table] = []
    for source, of_file in groupby(units, key=lambda unit: unit.source):
        todo = list(of_file)
        path = f"{base.rstrip('/')}/{source}"
        refuse = partial(refuse_local_stores_fault, filesystem, base, path)
        try:
            refuse_changed_file(filesystem, path, todo[0])
            with open_parquet(filesystem, path) as file:
                read = _read_units(file, todo, spec, schema, max_text_bytes, refuse)
        except _UNREADABLE as error:
            refuse(error)
            read = [_marker(unit, schema, first_line(error)) for unit in todo]
        tables += read
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _read_units(
    file: pq.ParquetFile,
    units: Sequence[Unit],
    spec: ReadSpec,
    schema: pa.Schema,
    max_text_bytes: int,
    refuse: Callable[[BaseException], None],
) -> list[pa.Table]:
    """Units of one file: a table each, or a marker where its row groups cannot be read.

    `refuse` raises over errors that are not the file's.
    """
    tables: list[pa.Table] = []
    for (start, stop), of_group in groupby(
        units, key=lambda unit: (unit.group_start, unit.group_stop)
    ):
        group_units = list(of_group)
        try:
            tables += _read_groups(file, start, stop, group_units, spec, schema, max_text_bytes)
        except _UNREADABLE as error:
            refuse(error)
            tables += [_marker(unit, schema, first_line(error)) for unit in group_units]
    return tables


def refuse_changed_file(filesystem: pa_fs.FileSystem, path: str, unit: Unit) -> None:
    """Set a file aside that is not the one that was planned: its rows would be of two versions.

    Raises:
        ValueError: If size or time of change differ.
    """
    if unit.file_size < 0:
        return
    local = isinstance(filesystem, pa_fs.LocalFileSystem)
    try:
        info = filesystem.get_file_info(path)
    except OSError:
        return  # opening the file says what is wrong, and tries again
    if info.type != pa_fs.FileType.File:
        return
    digits = 1 if local else 10**9  # a store's listing and its other answers agree on seconds
    times = (info.mtime_ns or 0) // digits, unit.file_mtime_ns // digits
    if info.size != unit.file_size or (unit.file_mtime_ns and times[0] != times[1]):
        raise ValueError("the file has changed since it was planned")


def _read_groups(
    file: pq.ParquetFile,
    start: int,
    stop: int,
    units: Sequence[Unit],
    spec: ReadSpec,
    schema: pa.Schema,
    max_text_bytes: int,
) -> list[pa.Table]:
    names = set(file.schema_arrow.names)
    for name in spec.text_columns:
        if type_of(file.schema_arrow, name) is None:
            raise ValueError(f"the text column {name!r}, which was planned, is gone")
    # of a struct that holds the text Arrow reads the field alone
    wanted = {*spec.text_columns, *(names & {column.name for column in spec.kept})}
    table = file.read_row_groups(
        list(range(start, stop)), columns=sorted(wanted), use_threads=False
    )
    result = []
    for unit in units:
        rows = table.slice(unit.group_offset, unit.rows)
        if rows.num_rows != unit.rows:
            # the footer has changed since it was planned
            raise ValueError(f"{rows.num_rows} rows at {unit.first_row}, {unit.rows} were planned")
        result.append(_unit_table(rows, unit, spec, schema, max_text_bytes))
    return result


def _unit_table(
    rows: pa.Table, unit: Unit, spec: ReadSpec, schema: pa.Schema, max_text_bytes: int
) -> pa.Table:
    count = rows.num_rows
    text, status = make_text(rows, spec.text, max_text_bytes=max_text_bytes)
    hive = hive_keys_of(unit.source)
    columns: list[pa.Array | pa.ChunkedArray] = []
    for column in spec.kept:
        if rows.schema.get_field_index(column.name) >= 0:
            values = rows[column.name]
            if pa.types.is_dictionary(values.type) and not pa.types.is_dictionary(column.type):
                values = values.cast(values.type.value_type)
            columns.append(values if values.type.equals(column.type) else values.cast(column.type))
        elif column.name in hive:
            constant = pa.scalar(hive[column.name], pa.string()).cast(column.type)
            columns.append(pa.repeat(constant, count))
        else:
            columns.append(pa.nulls(count, column.type))
    columns += [
        _source_array(unit.source, count),
        pa.array(np.arange(unit.first_row, unit.first_row + count, dtype=np.int64)),
        text,
        pa.array(status),
        pa.repeat(pa.scalar(unit.first_row, pa.int64()), count),
        pa.repeat(pa.scalar(unit.rows, pa.int32()), count),
        pa.nulls(count, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def unread_block(unit: Unit, spec: ReadSpec, reason: str) -> pa.Table:
    """As `read_block`, for a unit that is not to be read: its marker row."""
    return _marker(unit, block_schema(spec), reason)


def _marker(unit: Unit, schema: pa.Schema, reason: str) -> pa.Table:
    """One row that says why the unit could not be read."""
    values: dict[str, pa.Array] = {
        name: pa.nulls(1, schema.field(name).type) for name in schema.names
    }
    values["source"] = _source_array(unit.source, 1)
    values["row"] = pa.array([unit.first_row], pa.int64())
    values[BLOCK_STATUS] = pa.array([OK], pa.int8())
    values[BLOCK_UNIT_FIRST] = pa.array([unit.first_row], pa.int64())
    values[BLOCK_UNIT_ROWS] = pa.array([unit.rows], pa.int32())
    values[BLOCK_FAULT] = pa.array([f"read: {reason}"], pa.string())
    return pa.Table.from_arrays([values[name] for name in schema.names], schema=schema)


def _source_array(source: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([source]))


def make_text(
    rows: pa.Table | Mapping[str, pa.Array], text: str, *, max_text_bytes: int
) -> tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.int8]]]:
    """The text of each row and what became of it.

    Args:
        rows: Table with the text columns.
        text: Column name or template.
        max_text_bytes: Longest text in UTF-8 bytes.

    Returns:
        large_string array (null where the status is not `ok`) and int8 statuses, both [N].
    """
    values, bad = read_texts(rows, text)
    status = np.zeros(len(values), np.int8)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), False)
    long = pc.fill_null(pc.greater(pc.binary_length(values), max_text_bytes), False)
    status[missing] = NULL_TEXT
    status[blank.to_numpy(zero_copy_only=False)] = EMPTY
    status[long.to_numpy(zero_copy_only=False)] = TOO_LONG
    status[bad] = DECODE_ERROR
    if status.any():
        values = pc.if_else(pa.array(status == OK), values, pa.scalar(None, pa.large_string()))
    return values, status
