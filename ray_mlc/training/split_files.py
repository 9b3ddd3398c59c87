"""The files of a split: each row of the source in one of them, with all its columns as they were.

The source is streamed a second time and its rows are handed out; some thousand rows per part are
in memory. Parts appear together at the end, when all are on the disk, and `_split.json`, which
says how they were made, comes last: where it is missing, the split is not whole.

Parquet keeps its schema. Of a CSV file all columns are text in the parts, but for 0/1 label
columns, which become int8 with nulls where nobody decided.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.errors import DataError, first_line
from ray_mlc.storage import local_path
from ray_mlc.training.formats import every_column, parquet_schema, read_pieces
from ray_mlc.training.labelling import label_states
from ray_mlc.training.pieces import Columns, Piece, has_bytes, is_text
from ray_mlc.training.sources import TAR, SourceFile
from ray_mlc.training.writing import HiddenParquet, make_folders, not_written, remove_empty

RECORD = "_split.json"
"""How a split was made; hidden, so that readers of the folder pass it by."""


@dataclass(frozen=True)
class AsIs(Columns):
    """Columns that are read as they are, whatever they mean."""

    option: str | None = None
    """The option that names them, all of which must be there; None: those that are."""

    @classmethod
    def named(cls, names: Sequence[str], option: str | None = None) -> AsIs:
        """Columns of these names."""
        return cls(text="", labels=tuple(names), id=None, option=option)

    @property
    def required(self) -> dict[str, str]:
        """Columns that must be there, with the option that names them."""
        return {} if self.option is None else dict.fromkeys(self.labels, self.option)

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that are read where they exist."""
        return tuple(self.labels) if self.option is None else ()


def read_column(files: Sequence[SourceFile], name: str, option: str) -> pa.Array:
    """One column of the rows of all files.

    Raises:
        DataError: If a file lacks it, or its types differ.
    """
    tables = []
    for piece in read_pieces(files, AsIs.named([name], option)):
        column = piece.columns[name]
        if has_bytes(column.type):
            column = piece.text(name)
        elif pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        tables.append(pa.table({name: column}))
    try:
        # permissive: no row of a piece of JSON lines may have the key
        return pa.concat_tables(tables, promote_options="permissive")[name].combine_chunks()
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} is not of one type ({first_line(error)})") from None


def split_folder(
    output: str, files: Sequence[SourceFile], names: Sequence[str], *, overwrite: bool
) -> Path:
    """The local folder of the parts, checked before anything is read.

    Raises:
        DataError: If it cannot take them: remote, a file, holds parts already, or the source.
    """
    folder = local_path(output)
    if folder is None:
        raise DataError(f"{output}: parts are written to a local folder: name a path here")
    if folder.suffix == ".parquet":
        raise DataError(f"{output}: expected a folder, not a file's name")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{output}: this is a file: name a folder")
    for file in files:
        if file.format == TAR:
            raise DataError(
                f"{file.name}: is an archive: unpack it, or convert it to Parquet first"
            )
    sources = {path.resolve() for file in files if (path := local_path(file.name)) is not None}
    for path in [_part(folder, name) for name in names] + _earlier_parts(folder):
        if path.resolve() in sources:
            raise DataError(f"{path}: the part is also the source: write to another folder")
        if path.is_dir():
            raise DataError(f"{path}: this is a folder: name another part or output")
    there = [
        path
        for path in (*(_part(folder, name) for name in names), folder / RECORD)
        if path.exists()
    ]
    if there and not overwrite:
        raise DataError(f"{there[0]}: the file exists: name another folder, or give --overwrite")
    return folder


def write_parts(
    files: Sequence[SourceFile],
    folder: Path,
    part_N: NDArray[np.int64],
    names: Sequence[str],
    record: Mapping[str, Any],
    *,
    zero_one: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write each row of the source to its part; all parts or none.

    Args:
        files: The source.
        folder: Of `split_folder`.
        part_N: Part of each row, in the order of the source, shape [N].
        names: Of the P parts.
        record: What `_split.json` is to say.
        zero_one: Label columns of a CSV file.
        progress: Told how many rows were written.

    Returns:
        Path of each part.

    Raises:
        DataError: If the source changed since it was read.
        StorageError: If a part cannot be written.
    """
    targets = [_part(folder, name) for name in names]
    names_of_columns = list(dict.fromkeys(name for file in files for name in every_column(file)))
    every = AsIs.named(names_of_columns)
    schema = _schema(files, every, zero_one)
    with ExitStack() as stack:
        made = make_folders(folder)
        stack.callback(remove_empty, made)
        parts = [stack.enter_context(HiddenParquet(target, schema)) for target in targets]
        start = 0
        for table in _tables(files, every, schema, zero_one):
            part_n = part_N[start : start + len(table)]
            if len(part_n) < len(table):
                raise _changed(files, len(part_N))
            for number, part in enumerate(parts):
                rows = np.flatnonzero(part_n == number)
                if len(rows):
                    part.add(table.take(pa.array(rows)))
            start += len(table)
            if progress is not None:
                progress(len(table))
        if start != len(part_N):
            raise _changed(files, len(part_N))
        for part in parts:
            part.finish()
        try:
            _publish(folder, parts, targets, record)
        except OSError as error:
            raise not_written(folder, error) from None
        made.clear()
    return targets


def _publish(
    folder: Path, parts: Sequence[HiddenParquet], targets: Sequence[Path], record: Mapping[str, Any]
) -> None:
    """Put the parts in place of those of an earlier split; the record goes first, comes last."""
    earlier = _earlier_parts(folder)
    temporary = folder / f".{RECORD}-{uuid.uuid4().hex[:12]}.tmp"
    placed: list[Path] = []
    try:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / RECORD).unlink(missing_ok=True)
        for path in earlier:
            if path not in targets:  # it would be taken for a part of this split
                path.unlink(missing_ok=True)
        for part, target in zip(parts, targets, strict=True):
            part.temporary.replace(target)
            placed.append(target)
        temporary.replace(folder / RECORD)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _earlier_parts(folder: Path) -> list[Path]:
    """Parts that the record of an earlier split names and that are there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = [str(part["name"]) for part in record["parts"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    plain = [name for name in names if Path(name).name == name]  # never outside of the folder
    return [path for name in plain if (path := _part(folder, name)).exists()]


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"


def _schema(files: Sequence[SourceFile], every: AsIs, zero_one: Sequence[str]) -> pa.Schema:
    """One schema for all rows; of text formats as their rows say."""
    schemas = []
    for file in files:
        if file.format == "Parquet":
            schemas.append(parquet_schema(file))
            continue
        for piece in read_pieces([file], every):
            columns = _columns(piece, zero_one)
            schemas.append(pa.schema([(name, column.type) for name, column in columns.items()]))
            if file.format == "CSV":  # all its pieces have one schema
                break
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{files[0].name}: the columns of the files do not fit together "
            f"({first_line(error)}): convert them to one type"
        ) from None


def _tables(
    files: Sequence[SourceFile], every: AsIs, schema: pa.Schema, zero_one: Sequence[str]
) -> Iterator[pa.Table]:
    for piece in read_pieces(files, every):
        columns = _columns(piece, zero_one)
        arrays = [
            columns[field.name].cast(field.type)
            if field.name in columns
            else pa.nulls(len(piece), field.type)
            for field in schema
        ]
        yield pa.table(arrays, schema=schema)


def _columns(piece: Piece, zero_one: Sequence[str]) -> dict[str, pa.Array]:
    if piece.format != "CSV":
        return dict(piece.columns)
    decoded: dict[str, pa.Array] = {}
    for name, column in piece.columns.items():
        if name in zero_one:
            states = label_states(piece, name)
            decoded[name] = pa.array(states, mask=states == -1)
        else:
            decoded[name] = piece.text(name) if is_text(column.type) else column
    return decoded


def _changed(files: Sequence[SourceFile], rows: int) -> DataError:
    return DataError(
        f"{files[0].name}: the examples changed while they were read: there were {rows} rows at "
        "first; run the command again"
    )
