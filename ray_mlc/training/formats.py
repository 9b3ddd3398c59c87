"""Labelled rows of files, read piece by piece: Parquet, CSV and JSON lines, checked as they come.

A piece is a few thousand rows of the columns asked for; nothing is held beyond it, so `convert`
can stream what `read_examples` collects. In messages rows count from 1, the header of a CSV file
left out.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ray_mlc.corpus.fields import column_at, field_paths
from ray_mlc.errors import DataError, first_line
from ray_mlc.training.archives import ARCHIVE_ERRORS, BUFFER_BYTES, open_tar
from ray_mlc.training.pieces import (
    Columns,
    Piece,
    brief,
    is_list,
    is_text,
    wanted_columns,
)
from ray_mlc.training.sources import TAR, SourceFile, is_one, no_member, of_tar

PIECE_ROWS = 4_096
"""Most rows of a piece."""
# a CSV row must fit into one block, and Arrow reads up to 32 blocks ahead
_BLOCK_BYTES = 4 * 2**20
# what Arrow says of a row with too few or too many fields; its rows count the header
_FIELDS = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")


def read_pieces(files: Iterable[SourceFile], columns: Columns) -> Iterator[Piece]:
    """Read files piece by piece, in order; only the columns asked for are decoded.

    Raises:
        DataError: If a file cannot be read, is malformed, or lacks a column.
    """
    readers = {"Parquet": _parquet_pieces, "CSV": _csv_pieces, "JSON": _json_pieces}
    first: dict[str, tuple[str, pa.DataType]] = {}
    for whole in files:
        with _explained(whole):
            for file in _unpacked(whole):
                with _explained(file):
                    if file.is_empty():
                        raise DataError(f"{file.name}: the file is empty (0 bytes): write it again")
                    for piece in readers[file.format](file, columns):
                        _refuse_other_types(piece, columns, first)
                        yield piece


def columns_of(file: SourceFile) -> list[str] | None:
    """Columns of a file, and fields of structs as `text.en`; None: a tar, known when it is read.

    Raises:
        DataError: If the file cannot be read.
    """
    if file.format == TAR:
        return None
    if file.format == "Parquet":
        return field_paths(parquet_schema(file))
    with _explained(file):
        if file.format == "CSV":
            return _csv_header(file, _head(file))[0]
        _, _, rows = next(_json_rows(file), ("", [], []))
        return _keys(rows)


def every_column(file: SourceFile) -> list[str]:
    """Columns of a file, those of its last row included, structs as they are.

    Args:
        file: No archive whose members come one by one.

    Raises:
        DataError: If the file cannot be read.
    """
    if file.format == "Parquet":
        return list(parquet_schema(file).names)
    with _explained(file):
        if file.format == "CSV":
            return _csv_header(file, _head(file))[0]
        # a key may first come in the last row
        keys = (key for _, _, rows in _json_rows(file) for row in rows for key in row)
        return list(dict.fromkeys(keys))


def parquet_schema(file: SourceFile) -> pa.Schema:
    """Schema of a Parquet file.

    Raises:
        DataError: If it cannot be read.
    """
    with _explained(file), pq.ParquetFile(file.filesystem.open_input_file(file.path)) as reader:
        return reader.schema_arrow


def _unpacked(file: SourceFile) -> Iterator[SourceFile]:
    """The file itself, or those of a tar, as they come by."""
    if file.format != TAR:
        yield file
        return
    seen: list[str] = []
    found = False
    with open_tar(file.filesystem, file.path) as members:
        for name, stream in members:
            seen.append(name)
            inner = of_tar(file, name, stream)
            if inner is not None:
                found = True
                yield inner
                if is_one(file):
                    return
    if not found:
        raise no_member(file, seen)


@contextmanager
def _explained(file: SourceFile) -> Iterator[None]:
    """Turn what Arrow and the disk say about a file into one line that names it."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, *ARCHIVE_ERRORS) as error:
        raise DataError(
            f"{file.name}: cannot be read as {file.format} ({first_line(error)})"
        ) from None


def _parquet_pieces(file: SourceFile, columns: Columns) -> Iterator[Piece]:
    with pq.ParquetFile(file.filesystem.open_input_file(file.path)) as reader:
        schema = reader.schema_arrow
        names = wanted_columns(file.name, field_paths(schema), columns)
        start = 0
        for batch in reader.iter_batches(batch_size=PIECE_ROWS, columns=names):
            tops = {name: batch.column(name) for name in batch.schema.names}
            arrays = {name: column_at(tops, name) for name in names}
            yield Piece(file.name, file.format, start, arrays, metadata=schema.metadata or {})
            start += batch.num_rows


def _csv_pieces(file: SourceFile, columns: Columns) -> Iterator[Piece]:
    header, delimiter = _csv_header(file, _head(file))
    names = wanted_columns(file.name, header, columns)
    with file.open() as stream:
        start = 0
        try:
            reader = pa_csv.open_csv(
                stream,
                # one thread: only then does Arrow know the number of a bad row
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                # no `invalid_row_handler`: Arrow's threads let go of it when they like, and where
                # that is while the interpreter ends, the process aborts
                parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                # bytes: types guessed from the first rows would not hold for the others
                convert_options=pa_csv.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, pa.binary())
                ),
            )
            with reader:
                for block in reader:
                    for first in range(0, block.num_rows, PIECE_ROWS):
                        batch = block.slice(first, PIECE_ROWS)
                        arrays = {name: batch.column(name) for name in names}
                        yield Piece(file.name, file.format, start, arrays)
                        start += batch.num_rows
        except pa.ArrowInvalid as error:
            if bad := _FIELDS.search(str(error)):
                row, expected, actual = bad.groups()
                raise DataError(
                    f"{file.name}: row {int(row) - 1} has {actual} fields, expected {expected}: "
                    f"quote fields that hold {delimiter!r}, quotes or line breaks"
                ) from None
            if "straddling" in str(error) or "block" in str(error):
                raise DataError(
                    f"{file.name}: a row after row {start} is longer than {_BLOCK_BYTES >> 20} "
                    "MiB: look for a quote that is never closed, or write such texts as JSONL"
                ) from None
            raise


def _head(file: SourceFile) -> bytes:
    """The first bytes of a file; those of a tar's can be read once only, and are left there."""
    if file.stream is not None:
        head: bytes = file.stream.peek(BUFFER_BYTES)  # type: ignore[attr-defined]
        return head
    with file.open() as stream:
        start: bytes = stream.read(BUFFER_BYTES)
    return start


def _csv_header(file: SourceFile, head: bytes) -> tuple[list[str], str]:
    """Column names and delimiter: the first of comma, tab and semicolon that splits the header."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file.name}: the file is UTF-16: save it as UTF-8")
    text = head.decode("utf-8-sig", errors="replace").lstrip("\r\n")
    tabs = file.inner_name.lower().removesuffix(".gz").endswith(".tsv")
    header: list[str] = []
    for delimiter in ("\t",) if tabs else (",", "\t", ";"):
        fields = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        if len(fields) > 1:
            return fields, delimiter
        header = header or fields
    if not header:
        raise DataError(f"{file.name}: there is no header: expected column names in the first line")
    return header, "\t" if tabs else ","


def _json_pieces(file: SourceFile, columns: Columns) -> Iterator[Piece]:
    start = 0
    names: list[str] = []
    for word, numbers, rows in _json_rows(file):
        if not names:  # a key may be absent from a row (null), but not from all of the first ones
            wanted_columns(file.name, _keys(rows), columns)
            names = [*columns.required, *columns.optional]
        places = [f"{file.name}: {word} {number}" for number in numbers]
        arrays = {name: _json_column(name, places, rows) for name in names}
        yield Piece(file.name, file.format, start, arrays, places)
        start += len(rows)


def _json_rows(file: SourceFile) -> Iterator[tuple[str, list[int], list[dict[str, Any]]]]:
    """Some thousand objects at a time: what they are called (`line`, `item`), numbers, objects.

    A file that is one JSON array is read whole.
    """
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    size = 0
    with file.open() as stream:
        head = stream.read(2**20)
        is_array = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        word = "item" if is_array else "line"
        values = (_json_items if is_array else _json_lines)(file.name, head, stream)
        for number, row, length in values:
            if not isinstance(row, dict):
                raise DataError(
                    f"{file.name}: {word} {number} is {brief(row)}, expected an object such as "
                    '{"text": …, "labels": […]}'
                )
            numbers.append(number)
            rows.append(row)
            size += length
            if len(rows) == PIECE_ROWS or size >= _BLOCK_BYTES:
                yield word, numbers, rows
                numbers, rows, size = [], [], 0
    if rows:
        yield word, numbers, rows


def _json_items(name: str, head: bytes, stream: Any) -> Iterator[tuple[int, Any, int]]:
    whole = head + stream.read()
    items = _parse_json(name, 1, whole)
    share = len(whole) // max(len(items), 1)
    return ((number, item, share) for number, item in enumerate(items, 1))


def _json_lines(name: str, head: bytes, stream: Any) -> Iterator[tuple[int, Any, int]]:
    for number, line in enumerate(_split_lines(head, stream), 1):
        if line.strip():
            yield number, _parse_json(name, number, line), len(line)


def _split_lines(head: bytes, stream: Any) -> Iterator[bytes]:
    rest, block = b"", head
    while block:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        block = stream.read(2**22)
    yield rest


def _parse_json(name: str, number: int, data: bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        number, what = number + error.lineno - 1, error.msg
    except UnicodeDecodeError:
        what = "not valid UTF-8"
    except RecursionError:
        what = "nested too deeply"
    raise DataError(
        f"{name}: line {number} is not JSON ({what}): expected one object per line, or an array"
    )


def _json_column(name: str, places: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pa.Array:
    values = [_value(row, name, place) for place, row in zip(places, rows, strict=True)]
    try:
        return pa.array(values)
    except _NOT_ARROW:
        pass
    seen: tuple[str, str] | None = None
    for place, value in zip(places, values, strict=True):
        try:
            pa.array([value])
        except _NOT_ARROW as error:
            raise DataError(
                f"{place}: {name!r} is {brief(value)}, which cannot be read ({first_line(error)})"
            ) from None
        kind = type(value).__name__
        seen = seen or (kind, place) if value is not None else seen
        if seen is not None and value is not None and kind != seen[0]:
            raise DataError(
                f"{place}: {name!r} is {brief(value)}, expected {seen[0]} as in the rows before"
            )
    raise DataError(f"{places[0]}: the values of {name!r} from here on are not of one type")


def _keys(rows: Sequence[Mapping[str, Any]], prefix: str = "", depth: int = 3) -> list[str]:
    """Keys of all rows, and after dots of the objects in them."""
    names: dict[str, None] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        names[prefix + key] = None
        inner = [value for row in rows if isinstance(value := row.get(key), dict)]
        if inner and depth > 1:
            names |= dict.fromkeys(_keys(inner, f"{prefix}{key}.", depth - 1))
    return list(names)


def _value(row: Mapping[str, Any], name: str, place: str) -> Any:
    """The value of a key, or at a path of keys such as `text.en`; None where there is none."""
    if name in row or "." not in name:
        return row.get(name)
    found: Any = row
    for key in name.split("."):
        if found is None:
            return None
        if not isinstance(found, Mapping):
            raise DataError(f"{place}: {brief(found)} is no object, expected one with {key!r}")
        found = found.get(key)
    return found


_NOT_ARROW = (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError)


def _refuse_other_types(
    piece: Piece, columns: Columns, first: dict[str, tuple[str, pa.DataType]]
) -> None:
    """Refuse a list of labels whose items are of another type than in the files before."""
    if not isinstance(columns.labels, str):
        return
    found = piece.columns[columns.labels].type
    if pa.types.is_null(found) or (is_list(found) and pa.types.is_null(found.value_type)):
        return
    source, expected = first.setdefault(columns.labels, (piece.source, found))
    if _label_kind(found) != _label_kind(expected):
        raise DataError(
            f"{piece.source}: column {columns.labels!r} is {found}, but {expected} in {source}: "
            "convert the files to one type"
        )


def _label_kind(found: pa.DataType) -> str:
    if is_list(found):
        return f"list of {_label_kind(found.value_type)}"
    if is_text(found):
        return "text"
    return "integer" if pa.types.is_integer(found) else str(found)
