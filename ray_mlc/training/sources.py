"""Files of labelled rows, read piece by piece: Parquet, CSV and JSON lines, checked as they come.

A piece is a few thousand rows of the columns asked for; nothing is held beyond it, so `convert`
can stream what `read_examples` collects. In messages rows count from 1, the header of a CSV file
left out.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from ray_mlc.corpus.types import is_bytes, is_string
from ray_mlc.errors import DataError, first_line
from ray_mlc.storage import filesystem_of, join

UNANNOTATED = "unannotated"
"""Column of examples that lists a row's labels that nobody decided: neither set nor not set."""
PIECE_ROWS = 4_096
"""Most rows of a piece."""

_FORMATS = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
}
_EXTENSIONS = ".parquet, .csv, .tsv, .jsonl or .json (text formats also with .gz)"
# a CSV row must fit into one block, and Arrow reads up to 32 blocks ahead
_BLOCK_BYTES = 4 * 2**20
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Columns:
    """Which columns of a source mean what."""

    text: str
    labels: str | tuple[str, ...]
    """Column of lists, or 0/1 columns."""
    id: str | None

    @classmethod
    def of(cls, *, text: str, labels: str | Sequence[str], id: str | None) -> Columns:
        """Check the options.

        Raises:
            DataError: If no label column is named, or a column has two meanings.
        """
        if not isinstance(labels, str):
            labels = tuple(labels)
            if not labels:
                raise DataError("labels names no column: expected a column or a list of columns")
            for name in labels:
                if labels.count(name) > 1:
                    raise DataError(f"labels names column {name!r} twice: name it once")
        if text in ((labels,) if isinstance(labels, str) else labels):
            raise DataError(f"column {text!r} is named as text and in labels: expected two columns")
        return cls(text, labels, id)

    @property
    def required(self) -> dict[str, str]:
        """Columns that must be there, with the option that names them."""
        label_columns = (self.labels,) if isinstance(self.labels, str) else self.labels
        named = {self.text: "text", **dict.fromkeys(label_columns, "labels")}
        return named if self.id in (None, "id") else {**named, str(self.id): "id"}

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that are read where they exist."""
        names = [name for name in (self.id,) if name == "id"]
        if isinstance(self.labels, str) and self.labels != UNANNOTATED:
            names.append(UNANNOTATED)
        return tuple(name for name in names if name not in self.required)


@dataclass(frozen=True)
class SourceFile:
    """A file of labelled rows."""

    name: str
    """As messages show it."""
    path: str
    """In its file system."""
    filesystem: Any
    format: str
    """`Parquet`, `CSV` or `JSON`."""

    def open(self) -> Any:
        """A stream of its bytes, decompressed."""
        gz = self.path.lower().endswith(".gz")
        return self.filesystem.open_input_stream(self.path, compression="gzip" if gz else None)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some consecutive rows of a source, in the columns asked for."""

    source: str
    format: str
    first_row: int
    columns: Mapping[str, pa.Array]
    places: Sequence[str] | None = None
    """Where each row is, if that is not the row number."""
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)
    """Key-value metadata of the source's schema."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, index: int) -> str:
        """Where row `index` of the piece is, for messages."""
        if self.places is not None:
            return self.places[index]
        return f"{self.source}: row {self.first_row + index + 1}"

    def text(self, name: str) -> pa.Array:
        """A column as large_string, nulls kept.

        Raises:
            DataError: If it holds anything but strings, or bytes that are not UTF-8.
        """
        column = self.columns[name]
        if not is_text(column.type):
            raise DataError(
                f"{self.source}: column {name!r} is {column.type}, expected strings: "
                "name a column of text"
            )
        try:
            decoded = column.cast(pa.large_string())
            decoded.validate(full=True)  # Parquet readers take any bytes for a string
        except pa.ArrowInvalid:
            row = next(i for i in range(len(column)) if not is_utf8(column.slice(i, 1)))
            raise DataError(
                f"{self.place(row)}: column {name!r} is not valid UTF-8: save the file as UTF-8"
            ) from None
        return decoded

    def ids(self, name: str | None, start: int) -> pa.Array:
        """Ids as string; the row number, counted from `start`, where it is null or empty.

        Raises:
            DataError: If the id column holds neither strings nor numbers.
        """
        numbers = pa.array(np.arange(start, start + len(self)).astype(str), pa.string())
        column = self.columns.get(name) if name is not None else None
        if column is None:
            return numbers
        if is_text(column.type):
            column = self.text(str(name))
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(
                f"{self.source}: id column {name!r} is {column.type}, expected strings or integers"
            )
        named = column.cast(pa.string())
        return pc.if_else(pc.equal(named, "").fill_null(True), numbers, named)


def find_files(path: str | Sequence[str]) -> list[SourceFile]:
    """The files of a path, folder, glob, or a list of them, each once and in path order.

    Raises:
        DataError: If a path is missing, no file in it can be read, or a folder mixes formats.
    """
    files: dict[str, SourceFile] = {}
    for item in [path] if isinstance(path, str) else path:
        files |= {file.path: file for file in _find(item)}
    if not files:
        raise DataError("no path was given: expected a file, a folder, a glob or a list of them")
    return list(files.values())


def read_pieces(files: Iterable[SourceFile], columns: Columns) -> Iterator[Piece]:
    """Read files piece by piece, in order; only the columns asked for are decoded.

    Raises:
        DataError: If a file cannot be read, is malformed, or lacks a column.
    """
    readers = {"Parquet": _parquet_pieces, "CSV": _csv_pieces, "JSON": _json_pieces}
    first: dict[str, tuple[str, pa.DataType]] = {}
    for file in files:
        with _explained(file):
            if file.filesystem.get_file_info(file.path).size == 0:
                raise DataError(f"{file.name}: the file is empty (0 bytes): write it again")
            for piece in readers[file.format](file, columns):
                _refuse_other_types(piece, columns, first)
                yield piece


def wanted_columns(source: str, have: Sequence[str], columns: Columns) -> list[str]:
    """The names of `have` to read.

    Raises:
        DataError: If a column asked for is absent or there twice; near misses are named.
    """
    for name, option in columns.required.items():
        if name not in have:
            folded = {other.casefold(): other for other in have}
            near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.7)
            hint = f"did you mean {folded[near[0]]!r}? " if near else ""
            shown = ", ".join(have[:20]) + (f" and {len(have) - 20} more" * (len(have) > 20))
            raise DataError(
                f"{source}: there is no column {name!r} ({option}): {hint}it has {shown or 'none'}"
            )
    names = [*columns.required, *(name for name in columns.optional if name in have)]
    for name in names:
        if list(have).count(name) > 1:
            raise DataError(f"{source}: there are two columns {name!r}: rename one")
    return names


def _find(uri: str) -> list[SourceFile]:
    filesystem, path = filesystem_of(uri)
    path = path.rstrip("/") or "/"
    try:
        kind = filesystem.get_file_info(path).type
        if kind == pa_fs.FileType.File:
            if _format(path) is None:
                raise DataError(f"{uri}: cannot read this kind of file: expected {_EXTENSIONS}")
            return [SourceFile(uri, path, filesystem, str(_format(path)))]
        glob = _GLOB.search(path) if kind == pa_fs.FileType.NotFound else None
        if kind == pa_fs.FileType.NotFound and not glob:
            raise DataError(f"{uri}: there is no such file or folder: check the path")
        base = (posixpath.dirname(path[: glob.start()]) or "/") if glob else path
        selector = pa_fs.FileSelector(base, recursive=True, allow_not_found=True)
        entries = [e.path for e in filesystem.get_file_info(selector) if e.is_file]
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({first_line(error)})") from None
    if glob:
        from fsspec.utils import glob_translate

        pattern = re.compile(glob_translate(path))
        entries = [entry for entry in entries if pattern.match(entry)]
    found = [e for e in sorted(entries) if not _is_hidden(e[len(base) :]) and _format(e)]
    if not found:
        what = "no file matches" if glob else "the folder is empty"
        if entries:
            what = f"none of {len(entries)} file(s) in it can be read"
        raise DataError(f"{uri}: {what}: expected {_EXTENSIONS}")
    formats = sorted({str(_format(entry)) for entry in found})
    if len(formats) > 1 and not glob:  # often the same rows twice
        raise DataError(
            f"{uri}: the folder holds {' and '.join(formats)} files: name the files, or a glob "
            f"such as {join(uri, '*' + posixpath.splitext(found[0])[1])}"
        )
    named = {e: e if glob else join(uri, e[len(base) :]) for e in found}
    return [SourceFile(named[e], e, filesystem, str(_format(e))) for e in found]


def _format(path: str) -> str | None:
    """The format that a file's name says; None for other files."""
    name = path.lower()
    found = _FORMATS.get(posixpath.splitext(name.removesuffix(".gz"))[1])
    return None if found == "Parquet" and name.endswith(".gz") else found


def _is_hidden(relative: str) -> bool:
    return any(element.startswith(("_", ".")) for element in relative.split("/") if element)


@contextmanager
def _explained(file: SourceFile) -> Iterator[None]:
    """Turn what Arrow and the disk say about a file into one line that names it."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{file.name}: cannot be read as {file.format} ({first_line(error)})"
        ) from None


def _parquet_pieces(file: SourceFile, columns: Columns) -> Iterator[Piece]:
    with pq.ParquetFile(file.filesystem.open_input_file(file.path)) as reader:
        schema = reader.schema_arrow
        names = wanted_columns(file.name, schema.names, columns)
        start = 0
        for batch in reader.iter_batches(batch_size=PIECE_ROWS, columns=names):
            arrays = {name: batch.column(name) for name in names}
            yield Piece(file.name, file.format, start, arrays, metadata=schema.metadata or {})
            start += batch.num_rows


def _csv_pieces(file: SourceFile, columns: Columns) -> Iterator[Piece]:
    with file.open() as stream:
        head = stream.read(2**20)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file.name}: the file is UTF-16: save it as UTF-8")
    header, delimiter = _csv_header(head)
    if not header:
        raise DataError(f"{file.name}: there is no header: expected column names in the first line")
    names = wanted_columns(file.name, header, columns)
    bad: list[Any] = []

    def note(row: Any) -> str:
        # "error" would leave Arrow's read-ahead thread with this function in hand, and the
        # interpreter aborts now and then when it ends
        bad.append(row)
        return "skip"

    with file.open() as stream:
        start = 0
        try:
            reader = pa_csv.open_csv(
                stream,
                # one thread: only then does Arrow know the number of a bad row
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
                ),
                # bytes: types guessed from the first rows would not hold for the others
                convert_options=pa_csv.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, pa.binary())
                ),
            )
            with reader:
                for block in reader:
                    if bad:
                        continue  # to the end: see `note`
                    for first in range(0, block.num_rows, PIECE_ROWS):
                        batch = block.slice(first, PIECE_ROWS)
                        arrays = {name: batch.column(name) for name in names}
                        yield Piece(file.name, file.format, start, arrays)
                        start += batch.num_rows
        except pa.ArrowInvalid as error:
            if "straddling" in str(error) or "block" in str(error):
                raise DataError(
                    f"{file.name}: a row after row {start} is longer than {_BLOCK_BYTES >> 20} "
                    "MiB: look for a quote that is never closed, or write such texts as JSONL"
                ) from None
            raise
    if bad:
        raise DataError(
            f"{file.name}: row {bad[0].number - 1} has {bad[0].actual_columns} fields, "
            f"expected {bad[0].expected_columns}: quote fields that hold {delimiter!r}, "
            "quotes or line breaks"
        )


def _csv_header(head: bytes) -> tuple[list[str], str]:
    """Column names and delimiter: the first of comma, tab and semicolon that splits the header."""
    text = head.decode("utf-8-sig", errors="replace").lstrip("\r\n")
    header: list[str] = []
    for delimiter in (",", "\t", ";"):
        fields = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        if len(fields) > 1:
            return fields, delimiter
        header = header or fields
    return header, ","


def _json_pieces(file: SourceFile, columns: Columns) -> Iterator[Piece]:
    start = 0
    names: list[str] = []
    for word, numbers, rows in _json_rows(file):
        if not names:  # a key may be absent from a row (null), but not from all of the first ones
            have = list(dict.fromkeys(key for row in rows for key in row))
            wanted_columns(file.name, have, columns)
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
    values = [row.get(name) for row in rows]
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


def is_text(found: pa.DataType) -> bool:
    """Strings, bytes, either as a dictionary, or nothing but nulls."""
    if pa.types.is_dictionary(found):
        return is_text(found.value_type)
    return is_string(found) or pa.types.is_null(found) or has_bytes(found)


def has_bytes(found: pa.DataType) -> bool:
    """Whether Arrow stores the type as bytes, be their number fixed or not."""
    return is_bytes(found) or bool(pa.types.is_fixed_size_binary(found))


def is_list(found: pa.DataType) -> bool:
    """Whether the type is a list of any kind."""
    types = pa.types
    some = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    return bool(some or types.is_list_view(found) or types.is_large_list_view(found))


def is_utf8(one: pa.Array) -> bool:
    """Whether every value of the array is UTF-8."""
    try:
        one.cast(pa.large_string()).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def brief(value: object) -> str:
    """A value as it is shown in a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
