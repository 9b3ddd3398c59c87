"""Turn other people's data sets into one Parquet file of examples.

Source and output are streamed: some thousand rows are in memory at a time (of CSV what Arrow
reads ahead, about 150 MB), plus 8 bytes per row to count ids that are there twice. Two formats
ask for more: a `.json` file that is one array is read whole, a Parquet file by row groups.

The output has `id: string`, `text: string`, `labels: list<string>`. A row in which no label was
decided has null labels. Where only some were (-1 or nothing in some of the 0/1 columns), names
alone cannot say so: a fourth column `unannotated: list<string>` does, and only if it is needed.
When the first such row comes, the rows written so far are copied once, which is cheaper than
reading the source twice.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_mlc.errors import DataError, StorageError, first_line
from ray_mlc.storage import local_path
from ray_mlc.training.labelling import (
    PieceLabels,
    Vocabulary,
    encode_labels,
    encode_lists,
    flat_lists,
)
from ray_mlc.training.sources import (
    UNANNOTATED,
    Columns,
    Piece,
    SourceFile,
    find_files,
    read_pieces,
    wanted_columns,
)

_ROW_GROUP = 4_096
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_EXTENSION = re.compile(r"\.(parquet|csv|tsv|jsonl|ndjson|json)(\.gz)?$", re.IGNORECASE)
_LISTS = pa.list_(pa.string())


@dataclass(frozen=True)
class ConvertSummary:
    """What `convert` wrote."""

    output: str
    rows: int
    labels: dict[str, int]
    """Rows that have each label, the most frequent first; 0/1 columns without a 1 count too."""
    null_texts: int
    """Rows whose text is null: kept."""
    not_annotated: int
    """Rows in which no label was decided: their labels are null."""
    unannotated_cells: int
    """Labels not decided in other rows: listed in the column `unannotated`."""
    duplicate_ids: int
    """Rows whose id an earlier row has: kept."""
    seconds: float


def convert(
    source: str,
    output: str,
    *,
    text: str,
    labels: str | Sequence[str],
    id: str | None,
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    split: str | None = None,
    subset: str | None = None,
    overwrite: bool = False,
) -> ConvertSummary:
    """Write the examples of `source` to one Parquet file, whole or not at all.

    Args:
        source: CSV, TSV, JSONL or Parquet (file, folder, glob), or a hub data set `org/name`,
            also with `@revision`. What exists here is never looked for on the hub.
        output: Local path that ends in `.parquet`.
        text: Text column.
        labels: Column of lists of names; column of lists of integers (see `names`); text column
            of names (see `delimiter`); or a list of 0/1 columns, one per label.
        id: Id column; `id` may be absent. None, or absent: ids are row numbers from 0.
        delimiter: What separates names in a text column; blanks around names are cut. An empty
            text means no label, null means not annotated.
        names: Names that integers stand for; None: those that the data set itself carries.
        split: Split of a hub data set; needed where it has several.
        subset: Configuration of a hub data set.
        overwrite: Replace an existing output.

    Raises:
        DataError: If the source or an option is wrong, or the output exists.
        StorageError: If the output cannot be written.
    """
    began = time.monotonic()
    columns = Columns.of(text=text, labels=labels, id=id)
    if delimiter is not None and (isinstance(columns.labels, tuple) or not delimiter):
        raise DataError("delimiter splits one text column: name one column of labels with it")
    target = _target(output, overwrite=overwrite)
    if _is_hub_id(source):
        pieces = _hub_pieces(source, columns, split=split, subset=subset)
    else:
        if split is not None or subset is not None:
            raise DataError(f"{source}: split and subset are of hub data sets: leave them out here")
        files = find_files(source)
        _refuse_own_output(files, target)
        pieces = read_pieces(files, columns)

    vocabulary: Vocabulary = {}
    counts = _Counts()
    with _Writer(target) as writer:
        for piece in pieces:
            decoded = piece.text(columns.text)
            ids = piece.ids(columns.id, counts.rows)
            marks = _encode(piece, columns, vocabulary, delimiter=delimiter, names=names)
            # a null text stays null: that it was absent is a fact of the source
            writer.add(_table(ids, decoded, marks, vocabulary))
            counts.add(ids, decoded, marks)
        if counts.rows == 0:
            raise DataError(f"{source}: there is no row in it: at least one example is needed")
        writer.commit(overwrite=overwrite)
    return ConvertSummary(
        output=output,
        rows=counts.rows,
        labels=counts.labels(vocabulary),
        null_texts=counts.null_texts,
        not_annotated=counts.not_annotated,
        unannotated_cells=counts.unannotated_cells,
        duplicate_ids=counts.duplicate_ids(),
        seconds=time.monotonic() - began,
    )


# --- labels


def _encode(
    piece: Piece,
    columns: Columns,
    vocabulary: Vocabulary,
    *,
    delimiter: str | None,
    names: Sequence[str] | None,
) -> PieceLabels:
    """Labels of a piece in whichever form they are."""
    if isinstance(columns.labels, tuple):
        return encode_labels(piece, columns, vocabulary)
    name = columns.labels
    found = piece.columns[name].type
    if delimiter is not None:
        return encode_lists(piece, _split(piece, name, delimiter), vocabulary)
    items = getattr(found, "value_type", None)
    if items is not None and pa.types.is_integer(items) and not pa.types.is_dictionary(found):
        known = tuple(names) if names is not None else _class_names(piece.metadata, name)
        if known is None:
            raise DataError(
                f"{piece.source}: column {name!r} is {found} and the data set does not name its "
                "integers: give names, in the order of the integers"
            )
        return encode_lists(piece, _named(piece, name, known), vocabulary)
    if names is not None and not pa.types.is_null(found if items is None else items):
        raise DataError(
            f"{piece.source}: names are for lists of integers, but column {name!r} is {found}: "
            "leave names out"
        )
    return encode_labels(piece, columns, vocabulary)


def _split(piece: Piece, name: str, delimiter: str) -> pa.Array:
    """Lists of the trimmed, non-empty parts of a text column; null where the text is."""
    texts = piece.text(name)
    parts = pc.split_pattern(texts, delimiter)
    rows, untrimmed = flat_lists(parts)
    values = pc.utf8_trim_whitespace(untrimmed)
    filled = pc.not_equal(values, "")
    rows = rows[filled.to_numpy(zero_copy_only=False)]
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    return _lists(rows, values.filter(filled), valid, large=True)


def _named(piece: Piece, name: str, known: Sequence[str]) -> pa.Array:
    """Lists of names for a column of lists of integers."""
    lists = piece.columns[name].cast(pa.large_list(pa.int64()))
    rows, flat = flat_lists(lists)
    numbers = flat.fill_null(-1).to_numpy()
    outside = (numbers < 0) | (numbers >= len(known))
    if outside.any():
        index = int(np.argmax(outside))
        raise DataError(
            f"{piece.place(int(rows[index]))}: column {name!r} lists {flat[index].as_py()}, "
            f"expected 0 to {len(known) - 1}: there are {len(known)} names"
        )
    values = pa.array(list(known), pa.large_string()).take(pa.array(numbers))
    return _lists(rows, values, lists.is_valid().to_numpy(zero_copy_only=False), large=True)


def _class_names(metadata: Mapping[bytes, bytes], name: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` column, from the schema metadata that `datasets` writes."""
    try:
        node = json.loads(metadata[b"huggingface"])["info"]["features"][name]
    except (KeyError, TypeError, ValueError):
        return None
    while isinstance(node, dict) and "feature" in node:
        node = node["feature"]
    if isinstance(node, list) and node:  # how older versions write a list
        node = node[0]
    found = node.get("names") if isinstance(node, dict) else None
    return tuple(found) if isinstance(found, list) else None


def _lists(
    rows: NDArray[np.int64], values: pa.Array, valid: NDArray[np.bool_], *, large: bool = False
) -> pa.Array:
    """Lists of `values`, whose rows ascend; null where not `valid`."""
    offsets = np.zeros(len(valid) + 1, dtype=np.int64 if large else np.int32)
    np.cumsum(np.bincount(rows, minlength=len(valid)), out=offsets[1:])
    kind = pa.LargeListArray if large else pa.ListArray
    mask = None if valid.all() else pa.array(~valid)
    return kind.from_arrays(pa.array(offsets), values, mask=mask)


def _table(ids: pa.Array, texts: pa.Array, marks: PieceLabels, vocabulary: Vocabulary) -> pa.Table:
    """A piece in the columns of the output; a label that a row lists twice is there once."""
    names = pa.array(list(vocabulary), pa.string())
    size = max(len(vocabulary), 1)
    _, first = np.unique(marks.rows * size + marks.codes, return_index=True)
    first.sort()
    columns = {
        "id": ids,
        "text": texts.cast(pa.string()),
        "labels": _lists(
            marks.rows[first], names.take(pa.array(marks.codes[first])), marks.annotated
        ),
    }
    if len(marks.open_rows):
        everywhere = np.ones(len(ids), dtype=np.bool_)
        undecided = names.take(pa.array(marks.open_codes))
        columns[UNANNOTATED] = _lists(marks.open_rows, undecided, everywhere)
    return pa.table(columns)


class _Counts:
    """The figures of the summary."""

    def __init__(self) -> None:
        self.rows = 0
        self.null_texts = 0
        self.not_annotated = 0
        self.unannotated_cells = 0
        self._by_code = np.zeros(0, dtype=np.int64)
        self._id_hashes: list[NDArray[np.int64]] = []

    def add(self, ids: pa.Array, texts: pa.Array, marks: PieceLabels) -> None:
        self.rows += len(ids)
        self.null_texts += texts.null_count
        self.not_annotated += int((~marks.annotated).sum())
        self.unannotated_cells += len(marks.open_rows)
        cells = np.unique(np.stack([marks.rows, marks.codes]), axis=1)
        counts = np.bincount(cells[1], minlength=len(self._by_code))
        counts[: len(self._by_code)] += self._by_code
        self._by_code = counts
        hashes = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))
        self._id_hashes.append(hashes)

    def labels(self, vocabulary: Vocabulary) -> dict[str, int]:
        counts = np.zeros(len(vocabulary), dtype=np.int64)
        counts[: len(self._by_code)] = self._by_code
        pairs = [(name, int(counts[code])) for name, code in vocabulary.items()]
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))

    def duplicate_ids(self) -> int:
        # 64-bit hashes: among ten million ids two that differ clash once in 370,000 runs
        return self.rows - len(np.unique(np.concatenate(self._id_hashes)))


# --- output


class _Writer:
    """A Parquet file that appears at `commit`; on any error nothing is left of it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._pending: list[pa.Table] = []
        self._schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("labels", _LISTS)])
        self._made_folders: list[Path] = []
        self._temporary: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> _Writer:
        try:
            self._make_folders()
            self._open()
        except OSError as error:
            self._discard()
            raise self._error(error) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def add(self, table: pa.Table) -> None:
        """Write whole row groups; keep the rest for the next call."""
        try:
            if UNANNOTATED in table.column_names and UNANNOTATED not in self._schema.names:
                self._widen()
            self._pending.append(self._fitted(table))
            if sum(map(len, self._pending)) >= _ROW_GROUP:
                rows = pa.concat_tables(self._pending)
                whole = len(rows) - len(rows) % _ROW_GROUP
                self._writer.write_table(rows.slice(0, whole), row_group_size=_ROW_GROUP)
                self._pending = [rows.slice(whole)]
        except OSError as error:
            raise self._error(error) from None

    def commit(self, *, overwrite: bool) -> None:
        """Write what is left, fsync, rename."""
        assert self._temporary is not None
        try:
            rows = pa.concat_tables(self._pending)
            if len(rows):
                self._writer.write_table(rows)
            self._close()
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            if self._target.exists() and not overwrite:  # made meanwhile
                raise DataError(
                    f"{self._target}: the file exists: name another, or give --overwrite"
                )
            self._temporary.replace(self._target)
            self._temporary = None
            self._made_folders = []
        except OSError as error:
            raise self._error(error) from None

    def _widen(self) -> None:
        """Start again with the column `unannotated`, empty in the rows written so far."""
        self._close()
        narrow = self._temporary
        assert narrow is not None
        self._schema = self._schema.append(pa.field(UNANNOTATED, _LISTS))
        try:
            self._open()
            with pq.ParquetFile(narrow) as reader:
                for group in range(reader.num_row_groups):
                    self._writer.write_table(self._fitted(reader.read_row_group(group)))
        finally:
            narrow.unlink(missing_ok=True)
        self._pending = [self._fitted(table) for table in self._pending]

    def _fitted(self, table: pa.Table) -> pa.Table:
        if UNANNOTATED in self._schema.names and UNANNOTATED not in table.column_names:
            empty = _lists(
                np.empty(0, np.int64), pa.array([], pa.string()), np.ones(len(table), np.bool_)
            )
            table = table.append_column(UNANNOTATED, empty)
        return table.cast(self._schema)

    def _make_folders(self) -> None:
        folder = self._target.parent
        absent = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(absent):
            path.mkdir(exist_ok=True)
            self._made_folders.insert(0, path)

    def _open(self) -> None:
        # hidden, and not .parquet: readers of the folder pass it by
        temporary = self._target.parent / f".{self._target.stem}-{uuid.uuid4().hex[:12]}.tmp"
        self._temporary = temporary
        self._writer = pq.ParquetWriter(temporary, self._schema, compression="zstd")

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _discard(self) -> None:
        with suppress(OSError, pa.ArrowException):  # what was to be written is given up anyway
            self._close()
        with suppress(OSError):
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)
            for folder in self._made_folders:
                folder.rmdir()  # refused where something else was put meanwhile

    def _error(self, error: OSError) -> StorageError:
        return StorageError(f"{self._target}: cannot be written ({error.strerror or error})")


def _target(output: str, *, overwrite: bool) -> Path:
    """The local path of the output, checked before anything is read."""
    path = local_path(output)
    if path is None:
        raise DataError(f"{output}: examples are written to a local file: name a path here")
    if path.suffix != ".parquet":
        raise DataError(f"{output}: expected a name that ends in .parquet")
    if path.is_dir():
        raise DataError(f"{output}: this is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise DataError(f"{output}: the file exists: name another, or give --overwrite")
    return path


def _refuse_own_output(files: Sequence[SourceFile], target: Path) -> None:
    for file in files:
        path = local_path(file.name)
        if path is not None and path.resolve() == target.resolve():
            raise DataError(f"{target}: the output is also a source: write to another file")


# --- hub


def _is_hub_id(source: str) -> bool:
    """Whether `source` can only be a data set of the hub: no file, and shaped like an id."""
    path = local_path(source)
    if path is None or path.exists() or _EXTENSION.search(source):
        return False
    return _HUB_ID.fullmatch(source) is not None


def _hub_pieces(
    source: str, columns: Columns, *, split: str | None, subset: str | None
) -> Iterator[Piece]:
    import datasets
    from datasets.exceptions import DatasetsError

    match = _HUB_ID.fullmatch(source)
    assert match is not None
    try:
        data = datasets.load_dataset(
            match["id"], name=subset, split=split, revision=match["revision"], streaming=True
        )
        if isinstance(data, dict):
            if len(data) > 1:
                raise DataError(f"{source}: name a split: it has {', '.join(data)}")
            data = next(iter(data.values()))
        metadata: Mapping[bytes, bytes] = {}
        if data.features is not None:  # only then are names known before the first rows
            names = wanted_columns(source, list(data.features), columns)
            data = data.select_columns(names)
            metadata = data.features.arrow_schema.metadata or {}
        start = 0
        for table in data.with_format("arrow").iter(batch_size=_ROW_GROUP):
            names = wanted_columns(source, table.column_names, columns)
            arrays = {name: _one_array(table.column(name)) for name in names}
            yield Piece(source, "hub", start, arrays, metadata=metadata)
            start += len(table)
    except ConnectionError as error:
        raise DataError(
            f"{source}: no such file or folder here, and the hub cannot be reached "
            f"({first_line(error)}): pass a local CSV, JSONL or Parquet file"
        ) from None
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        # RuntimeError: data sets that are scripts, which `datasets` no longer runs
        raise DataError(
            f"{source}: cannot be read from the hub ({first_line(error)}): "
            "pass another id, subset or split, or a local file"
        ) from None


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
