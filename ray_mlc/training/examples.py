"""Labelled rows: read from files, checked, held in memory as ragged column indices.

Files are read piece by piece (a few thousand rows of the columns asked for), so `convert` can
stream what `read_examples` collects. Labels become pairs (row, code) at once: their memory grows
with the labels that are set, not with rows × labels.

Not annotated is never negative: a row with null labels and a cell marked -1 or null stay apart
from the zeros up to the loss and the metrics. In messages rows count from 1, the header of a CSV
file left out.
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
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_mlc.errors import DataError
from ray_mlc.labels import LabelSet
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
_STATES = {"": -1, "-1": -1, "-1.0": -1, "nan": -1, "na": -1, "null": -1, "none": -1}
_STATES |= {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


@dataclass(frozen=True, eq=False)
class Examples:
    """N labelled texts and the L labels that they may have."""

    ids: pa.Array
    """string, shape [N]; the row number over all files where they have no id."""
    texts: pa.Array
    """large_string, shape [N]; a null text is the empty string here."""
    positives: pa.Array
    """list<int32> (large_list beyond 2**31 cells), shape [N]: sorted distinct columns of
    `label_set` that are set; empty where the row is not annotated."""
    annotated: NDArray[np.bool_]
    """Shape [N]; False where nobody decided any label of the row."""
    unannotated: pa.Array | None
    """Like `positives`: columns that nobody decided in rows that are annotated; None if none."""
    label_set: LabelSet
    """Names in column order."""
    null_text: NDArray[np.bool_] | None = None
    """Shape [N]; True where the text was null; None if none was."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def null_texts(self) -> int:
        """Rows whose text was null."""
        return 0 if self.null_text is None else int(self.null_text.sum())

    def targets_NL(self, rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Multi-hot rows, NaN in the cells that are not annotated.

        Args:
            rows: Which rows, in which order; all of them when None.

        Returns:
            Shape [len(rows), L]; only this much is ever dense.
        """
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.intp)
        targets_NL = np.zeros((len(rows), len(self.label_set)), dtype=np.float32)
        targets_NL[_cells_of(self._positive_cells, rows)] = 1
        if self._open_cells is not None:
            targets_NL[_cells_of(self._open_cells, rows)] = np.nan
        targets_NL[~self.annotated[rows]] = np.nan
        return targets_NL

    def label_counts(self) -> NDArray[np.int64]:
        """Rows that have each label, shape [L]."""
        return np.bincount(self._positive_cells[1], minlength=len(self.label_set))

    def annotated_counts(self) -> NDArray[np.int64]:
        """Rows in which each label was decided either way, shape [L]."""
        decided_L = np.full(len(self.label_set), int(self.annotated.sum()), dtype=np.int64)
        if self._open_cells is not None:
            decided_L -= np.bincount(self._open_cells[1], minlength=len(self.label_set))
        return decided_L

    def label_rates(self) -> NDArray[np.float64]:
        """Share of annotated cells that are set, shape [L]; 0 where no cell is annotated."""
        return self.label_counts() / np.maximum(self.annotated_counts(), 1)

    def take(self, rows: NDArray[np.intp]) -> Examples:
        """The examples of `rows`, in that order, with the same label set."""
        rows = np.asarray(rows, dtype=np.intp)
        indices = pa.array(rows)
        return Examples(
            ids=self.ids.take(indices),
            texts=self.texts.take(indices),
            positives=self.positives.take(indices),
            annotated=self.annotated[rows],
            unannotated=None if self.unannotated is None else self.unannotated.take(indices),
            label_set=self.label_set,
            null_text=None if self.null_text is None else self.null_text[rows],
        )

    @cached_property
    def _positive_cells(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        return _offsets_and_columns(self.positives)

    @cached_property
    def _open_cells(self) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
        return None if self.unannotated is None else _offsets_and_columns(self.unannotated)


def read_examples(
    path: str | Sequence[str],
    *,
    text: str = "text",
    labels: str | Sequence[str] = "labels",
    id: str | None = "id",
    label_set: LabelSet | None = None,
) -> Examples:
    """Read examples from Parquet, CSV or JSONL: a file, a folder, a glob, or a list of them.

    Args:
        path: Local, or at a scheme that `storage` reads. Hidden files of a folder are skipped.
        text: Text column: strings, or bytes that are UTF-8.
        labels: Column that lists the labels of a row (null: not annotated; a further column
            `unannotated` may list labels that nobody decided), or the 0/1 columns, one per label
            (-1, null, empty: not annotated).
        id: Id column. `id` may be absent: then, or with None, ids are row numbers from 0.
        label_set: Labels and their order, such as a model's. Labels that only the files have are
            appended to it, sorted; those for which there is no 0/1 column are not annotated.
            None: the names seen, sorted, or the 0/1 columns as given.

    Raises:
        DataError: Naming file, row and remedy, if a path, column, type or value is wrong, or if
            there is no row or no label at all.
    """
    columns = Columns.of(text=text, labels=labels, id=id)
    ids, texts, null_text, annotated = [], [], [], []
    positives, open_cells = _Cells(), _Cells()
    vocabulary: Vocabulary = {}
    start = 0
    for piece in read_pieces(find_files(path), columns):
        decoded = piece.text(columns.text)
        null_text.append(decoded.is_null().to_numpy(zero_copy_only=False))
        texts.append(decoded.fill_null(""))
        ids.append(piece.ids(columns.id, start))
        marks = encode_labels(piece, columns, vocabulary)
        annotated.append(marks.annotated)
        positives.add(start, marks.rows, marks.codes)
        open_cells.add(start, marks.open_rows, marks.open_codes)
        start += len(piece)
    if start == 0:
        raise DataError(f"{_shown(path)}: there is no row in it: at least one example is needed")
    if label_set is None:
        names = list(vocabulary) if isinstance(columns.labels, tuple) else sorted(vocabulary)
    else:
        names = [*label_set.names, *sorted(set(vocabulary) - set(label_set.names))]
    if not names:
        raise DataError(
            f"{_shown(path)}: column {labels!r} has no label in any of {start} rows: "
            "at least one is needed"
        )
    annotated_N = np.concatenate(annotated)
    if isinstance(columns.labels, tuple):  # a label without a column was not decided
        codes = [vocabulary.setdefault(name, len(vocabulary)) for name in names]
        missing = np.array([code for code in codes if code >= len(columns.labels)], np.int32)
        rows = np.flatnonzero(annotated_N)
        open_cells.add(0, np.repeat(rows, len(missing)), np.tile(missing, len(rows)))
    column_of = np.zeros(len(vocabulary), dtype=np.int64)
    order = {name: column for column, name in enumerate(names)}
    column_of[list(vocabulary.values())] = [order[name] for name in vocabulary]
    null_N = np.concatenate(null_text)
    return Examples(
        ids=pa.concat_arrays(ids),
        texts=pa.concat_arrays(texts),
        positives=positives.ragged(column_of, start, len(names)),
        annotated=annotated_N,
        unannotated=open_cells.ragged(column_of, start, len(names)) if open_cells.rows else None,
        label_set=LabelSet(tuple(names)),
        null_text=null_N if null_N.any() else None,
    )


Vocabulary = dict[str, int]
"""Code of each label name, in order of first sight."""


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
        if not _is_text(column.type):
            raise DataError(
                f"{self.source}: column {name!r} is {column.type}, expected strings: "
                "name a column of text"
            )
        try:
            decoded = column.cast(pa.large_string())
            decoded.validate(full=True)  # Parquet readers take any bytes for a string
        except pa.ArrowInvalid:
            row = next(i for i in range(len(column)) if not _is_utf8(column.slice(i, 1)))
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
        if _is_text(column.type):
            column = self.text(str(name))
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(
                f"{self.source}: id column {name!r} is {column.type}, expected strings or integers"
            )
        named = column.cast(pa.string())
        return pc.if_else(pc.equal(named, "").fill_null(True), numbers, named)


@dataclass(frozen=True, eq=False)
class PieceLabels:
    """Labels of a piece of n rows as pairs of row and code, both shape [cells]."""

    annotated: NDArray[np.bool_]
    """Shape [n]."""
    rows: NDArray[np.int64]
    codes: NDArray[np.int32]
    """Labels that are set; rows ascend."""
    open_rows: NDArray[np.int64]
    open_codes: NDArray[np.int32]
    """Labels that nobody decided in rows that are annotated."""


def encode_labels(piece: Piece, columns: Columns, vocabulary: Vocabulary) -> PieceLabels:
    """The labels of a piece, from 0/1 columns or a list column; new names join `vocabulary`.

    Raises:
        DataError: If a label column holds something else, or a label is both set and undecided.
    """
    if isinstance(columns.labels, tuple):
        return _encode_zero_one(piece, columns.labels, vocabulary)
    lists = _label_lists(piece, columns.labels)
    undecided = None
    if UNANNOTATED in columns.optional and UNANNOTATED in piece.columns:
        column = piece.columns[UNANNOTATED]
        if _is_list(column.type) and _is_text(column.type.value_type):
            undecided = _label_lists(piece, UNANNOTATED)
    return encode_lists(piece, lists, vocabulary, undecided)


def encode_lists(
    piece: Piece, lists: pa.Array, vocabulary: Vocabulary, undecided: pa.Array | None = None
) -> PieceLabels:
    """The labels of a piece from lists of names, null where the row is not annotated."""
    annotated_n = lists.is_valid().to_numpy(zero_copy_only=False)
    rows, codes = _encode(lists, vocabulary)
    open_rows, open_codes = np.empty(0, np.int64), np.empty(0, np.int32)
    if undecided is not None:
        open_rows, open_codes = _encode(undecided, vocabulary)
        kept = annotated_n[open_rows]  # a row that is not annotated is so in all its labels
        open_rows, open_codes = open_rows[kept], open_codes[kept]
        size = len(vocabulary)
        both = np.intersect1d(rows * size + codes, open_rows * size + open_codes)
        if len(both):
            name = list(vocabulary)[both[0] % size]
            raise DataError(
                f"{piece.place(int(both[0] // size))}: label {name!r} is both set and in "
                f"{UNANNOTATED!r}: keep it in one of them"
            )
    return PieceLabels(annotated_n, rows, codes, open_rows, open_codes)


def flat_lists(lists: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Row and value of each item, both shape [items].

    Not `pc.list_parent_indices`: a null list may hold items, which that counts and flattening
    leaves out.
    """
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    return np.repeat(np.arange(len(lists)), lengths), pc.list_flatten(lists)


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


# --- listing


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
        raise DataError(f"{uri}: cannot be listed ({_first_line(error)})") from None
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


# --- reading


@contextmanager
def _explained(file: SourceFile) -> Iterator[None]:
    """Turn what Arrow and the disk say about a file into one line that names it."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{file.name}: cannot be read as {file.format} ({_first_line(error)})"
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
        bad.append(row)
        return "error"

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
            for block in reader:
                for first in range(0, block.num_rows, PIECE_ROWS):
                    batch = block.slice(first, PIECE_ROWS)
                    arrays = {name: batch.column(name) for name in names}
                    yield Piece(file.name, file.format, start, arrays)
                    start += batch.num_rows
        except pa.ArrowInvalid as error:
            if bad:
                raise DataError(
                    f"{file.name}: row {bad[0].number - 1} has {bad[0].actual_columns} fields, "
                    f"expected {bad[0].expected_columns}: quote fields that hold {delimiter!r}, "
                    "quotes or line breaks"
                ) from None
            if "straddling" in str(error) or "block" in str(error):
                raise DataError(
                    f"{file.name}: a row after row {start} is longer than {_BLOCK_BYTES >> 20} "
                    "MiB: look for a quote that is never closed, or write such texts as JSONL"
                ) from None
            raise


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
                    f"{file.name}: {word} {number} is {_brief(row)}, expected an object such as "
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
                f"{place}: {name!r} is {_brief(value)}, which cannot be read ({_first_line(error)})"
            ) from None
        kind = type(value).__name__
        seen = seen or (kind, place) if value is not None else seen
        if seen is not None and value is not None and kind != seen[0]:
            raise DataError(
                f"{place}: {name!r} is {_brief(value)}, expected {seen[0]} as in the rows before"
            )
    raise DataError(f"{places[0]}: the values of {name!r} from here on are not of one type")


_NOT_ARROW = (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError)


# --- columns


def _refuse_other_types(
    piece: Piece, columns: Columns, first: dict[str, tuple[str, pa.DataType]]
) -> None:
    """Refuse a list of labels whose items are of another type than in the files before."""
    if not isinstance(columns.labels, str):
        return
    found = piece.columns[columns.labels].type
    if pa.types.is_null(found) or (_is_list(found) and pa.types.is_null(found.value_type)):
        return
    source, expected = first.setdefault(columns.labels, (piece.source, found))
    if _label_kind(found) != _label_kind(expected):
        raise DataError(
            f"{piece.source}: column {columns.labels!r} is {found}, but {expected} in {source}: "
            "convert the files to one type"
        )


def _label_kind(found: pa.DataType) -> str:
    if _is_list(found):
        return f"list of {_label_kind(found.value_type)}"
    if _is_text(found):
        return "text"
    return "integer" if pa.types.is_integer(found) else str(found)


def _label_lists(piece: Piece, name: str) -> pa.Array:
    """A column of names as large_list<large_string>, null where the row is not annotated."""
    column = piece.columns[name]
    found = column.type
    if pa.types.is_null(found):
        return pa.nulls(len(column), _LISTS)
    if not _is_list(found) or not _is_text(found.value_type):
        raise DataError(f"{piece.source}: column {name!r} {_label_remedy(piece, name)}")
    try:
        lists = column.cast(_LISTS)
        lists.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(
            f"{piece.source}: column {name!r} has a label that is not valid UTF-8"
        ) from None
    rows, names = flat_lists(lists)
    blank = pc.equal(pc.utf8_trim_whitespace(names), "").fill_null(True)
    if pc.any(blank).as_py():
        index = int(pc.index(blank, True).as_py())
        raise DataError(
            f"{piece.place(int(rows[index]))}: column {name!r} lists "
            f"{names[index].as_py()!r}, which is no label"
        )
    return lists


def _label_remedy(piece: Piece, name: str) -> str:
    found = piece.columns[name].type
    if piece.format == "CSV":
        return (
            "of a CSV file is text, not a list: `ray-mlc data convert` with a delimiter makes "
            "examples of it, or list the 0/1 columns as labels"
        )
    if _is_list(found) and pa.types.is_integer(found.value_type):
        return f"is {found}: `ray-mlc data convert` with the names of the labels makes examples"
    if _is_text(found):
        return f"is {found}: `ray-mlc data convert` with a delimiter splits text into labels"
    if pa.types.is_integer(found) or pa.types.is_boolean(found) or pa.types.is_floating(found):
        return f"is {found}, expected list<string>: give 0/1 columns as a list of names"
    return f"is {found}, expected list<string>"


def _encode_zero_one(piece: Piece, names: Sequence[str], vocabulary: Vocabulary) -> PieceLabels:
    for name in names:
        vocabulary.setdefault(name, len(vocabulary))
    states_nL = np.stack([_states(piece, name) for name in names], axis=1)
    annotated_n = (states_nL != -1).any(axis=1)
    rows, codes = np.nonzero(states_nL == 1)
    open_rows, open_codes = np.nonzero((states_nL == -1) & annotated_n[:, None])
    return PieceLabels(
        annotated_n, rows, codes.astype(np.int32), open_rows, open_codes.astype(np.int32)
    )


def _states(piece: Piece, name: str) -> NDArray[np.int8]:
    """A 0/1 column as 1, 0, and -1 where it is null, empty or -1, shape [n]."""
    column = piece.columns[name]
    found = column.type
    states_n: NDArray[np.int8]
    if pa.types.is_null(found):
        return np.full(len(column), -1, dtype=np.int8)
    if _is_text(found):
        trimmed = pc.utf8_lower(pc.utf8_trim_whitespace(piece.text(name))).fill_null("")
        known = pa.array(list(_STATES), pa.large_string())
        codes = pc.index_in(trimmed, value_set=known).fill_null(len(_STATES))
        states_n = np.array([*_STATES.values(), 2], dtype=np.int8)[codes.to_numpy()]
    elif pa.types.is_boolean(found):
        states_n = column.cast(pa.int8()).fill_null(-1).to_numpy()
    elif pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found):
        numbers_n = column.cast(pa.float64(), safe=False).fill_null(-1).to_numpy()
        numbers_n = np.where(np.isnan(numbers_n), -1, numbers_n)
        states_n = np.where(np.isin(numbers_n, (-1, 0, 1)), numbers_n, 2).astype(np.int8)
    else:
        more = ": name a list column alone, not in a list" if _is_list(found) else ""
        raise DataError(f"{piece.source}: column {name!r} is {found}, expected 0 and 1{more}")
    if (states_n == 2).any():
        row = int(np.argmax(states_n == 2))
        value = column[row].as_py()
        value = value.decode() if isinstance(value, bytes) else value
        raise DataError(
            f"{piece.place(row)}: column {name!r} is {_brief(value)}, expected 0 or 1 "
            "(-1 or nothing: not annotated)"
        )
    return states_n


def _encode(lists: pa.Array, vocabulary: Vocabulary) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and code of each label of `lists`; each distinct name is looked up once."""
    rows, values = flat_lists(lists)
    encoded = values.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    code_of = np.array([vocabulary.setdefault(n, len(vocabulary)) for n in names], dtype=np.int32)
    codes = code_of[encoded.indices.to_numpy()]
    return rows, codes


_LISTS = pa.large_list(pa.large_string())


def _is_string(found: pa.DataType) -> bool:
    types = pa.types
    some = types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    return bool(some)


def _is_text(found: pa.DataType) -> bool:
    """Strings, bytes, either as a dictionary, or nothing but nulls."""
    if pa.types.is_dictionary(found):
        return _is_text(found.value_type)
    return _is_string(found) or pa.types.is_null(found) or _is_bytes(found)


def _is_bytes(found: pa.DataType) -> bool:
    types = pa.types
    some = types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found)
    return bool(some or types.is_fixed_size_binary(found))


def _is_list(found: pa.DataType) -> bool:
    types = pa.types
    some = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    return bool(some or types.is_list_view(found) or types.is_large_list_view(found))


def _is_utf8(one: pa.Array) -> bool:
    try:
        one.cast(pa.large_string()).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


# --- ragged cells


@dataclass
class _Cells:
    """Pairs of row and label code, collected piece by piece."""

    rows: list[NDArray[np.int64]] = field(default_factory=list)
    codes: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, start: int, rows: NDArray[np.int64], codes: NDArray[np.int32]) -> None:
        if len(rows):
            self.rows.append(rows.astype(np.int64) + start)
            self.codes.append(codes)

    def ragged(self, column_of: NDArray[np.int64], n_rows: int, n_labels: int) -> pa.Array:
        """Lists of sorted distinct columns; `column_of` maps codes to columns."""
        keys = np.empty(0, np.int64)
        if self.rows:
            keys = np.concatenate(self.rows) * n_labels + column_of[np.concatenate(self.codes)]
            keys = np.unique(keys)
        rows, columns = np.divmod(keys, n_labels)
        offsets = np.zeros(n_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=n_rows), out=offsets[1:])
        values = pa.array(columns.astype(np.int32))
        if len(keys) > np.iinfo(np.int32).max:
            return pa.LargeListArray.from_arrays(pa.array(offsets), values)
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _offsets_and_columns(lists: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets from 0, shape [N + 1], and columns, shape [cells]."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.values.to_numpy()[offsets[0] : offsets[-1]]


def _cells_of(
    cells: tuple[NDArray[np.int64], NDArray[np.int32]], rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Position in `rows` and column of each cell of those rows."""
    offsets, columns = cells
    lengths = offsets[rows + 1] - offsets[rows]
    positions = np.repeat(np.arange(len(rows)), lengths)
    before = np.cumsum(lengths) - lengths
    within = np.arange(len(positions)) - np.repeat(before, lengths)
    return positions, columns[np.repeat(offsets[rows], lengths) + within]


def _shown(path: str | Sequence[str]) -> str:
    return path if isinstance(path, str) else ", ".join(path)


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
