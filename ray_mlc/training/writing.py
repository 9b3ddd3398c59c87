"""Examples written to one Parquet file, whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_mlc.errors import DataError, StorageError
from ray_mlc.training.pieces import UNANNOTATED

ROW_GROUP = 4_096
LISTS = pa.list_(pa.string())


class HiddenParquet:
    """A Parquet file under a hidden name beside its place, until it is complete and taken there."""

    def __init__(self, target: Path, schema: pa.Schema) -> None:
        """Open it.

        Args:
            target: Its place; the folder is there.
            schema: Of its rows.

        Raises:
            StorageError: If it cannot be written; nothing is left of it.
        """
        # hidden, and not .parquet: readers of the folder pass it by
        self.temporary = target.parent / f".{target.stem}-{uuid.uuid4().hex[:12]}.tmp"
        self._target, self._pending = target, list[pa.Table]()
        try:
            self._writer: Any = pq.ParquetWriter(self.temporary, schema, compression="zstd")
        except OSError as error:
            with suppress(OSError):  # a folder that is none has no file to remove either
                self.temporary.unlink(missing_ok=True)
            raise not_written(target, error) from None

    def __enter__(self) -> HiddenParquet:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def add(self, table: pa.Table) -> None:
        """Write whole row groups; keep the rest for the next call.

        Raises:
            StorageError: If they cannot be written.
        """
        self._pending.append(table)
        if sum(map(len, self._pending)) >= ROW_GROUP:
            rows = pa.concat_tables(self._pending)
            whole = len(rows) - len(rows) % ROW_GROUP
            self._write(rows.slice(0, whole))
            self._pending = [rows.slice(whole)]

    def finish(self) -> None:
        """Write what is left, and see it on the disk.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._pending:
            self._write(pa.concat_tables(self._pending))
            self._pending = []
        try:
            self._close()
            with self.temporary.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise not_written(self._target, error) from None

    def discard(self) -> None:
        """Leave nothing of it, unless it was taken to its place."""
        with suppress(OSError, pa.ArrowException):  # what was to be written is given up anyway
            self._close()
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def _write(self, rows: pa.Table) -> None:
        if not len(rows):
            return
        try:
            self._writer.write_table(rows, row_group_size=ROW_GROUP)
        except OSError as error:
            raise not_written(self._target, error) from None

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class ExamplesWriter:
    """A Parquet file of examples that appears at `commit`; on any error nothing is left of it."""

    def __init__(self, target: Path) -> None:
        """Take note of the place; nothing is written yet."""
        self._target = target
        self._schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("labels", LISTS)])
        self._made_folders: list[Path] = []
        self._file: HiddenParquet

    def __enter__(self) -> ExamplesWriter:
        self._made_folders = make_folders(self._target.parent)
        try:
            self._file = HiddenParquet(self._target, self._schema)
        except BaseException:
            remove_empty(self._made_folders)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.discard()
        remove_empty(self._made_folders)

    def add(self, table: pa.Table) -> None:
        """Write some rows."""
        if UNANNOTATED in table.column_names and UNANNOTATED not in self._schema.names:
            self._widen()
        self._file.add(self._fitted(table))

    def commit(self, *, overwrite: bool) -> None:
        """Write what is left, fsync, rename."""
        self._file.finish()
        if self._target.exists() and not overwrite:  # made meanwhile
            raise DataError(f"{self._target}: the file exists: name another, or give --overwrite")
        try:
            self._file.temporary.replace(self._target)
        except OSError as error:
            raise not_written(self._target, error) from None
        self._made_folders = []

    def _widen(self) -> None:
        """Start again with the column `unannotated`, empty in the rows written so far."""
        narrow = self._file
        narrow.finish()
        self._schema = self._schema.append(pa.field(UNANNOTATED, LISTS))
        try:
            self._file = HiddenParquet(self._target, self._schema)
            with pq.ParquetFile(narrow.temporary) as reader:
                for group in range(reader.num_row_groups):
                    self._file.add(self._fitted(reader.read_row_group(group)))
        finally:
            narrow.discard()

    def _fitted(self, table: pa.Table) -> pa.Table:
        if UNANNOTATED in self._schema.names and UNANNOTATED not in table.column_names:
            empty = ragged(
                np.empty(0, np.int64), pa.array([], pa.string()), np.ones(len(table), np.bool_)
            )
            table = table.append_column(UNANNOTATED, empty)
        return table.cast(self._schema)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; those that were not there, deepest first.

    Raises:
        StorageError: If that cannot be done; those that were made are removed.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    made: list[Path] = []
    try:
        for path in reversed(absent):
            path.mkdir(exist_ok=True)
            made.insert(0, path)
    except OSError as error:
        remove_empty(made)
        raise not_written(folder, error) from None
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, deepest first, until one is not empty."""
    with suppress(OSError):  # refused where something else was put meanwhile
        for folder in folders:
            folder.rmdir()


def not_written(path: Path, error: OSError) -> StorageError:
    """What the disk said of a place."""
    return StorageError(f"{path}: cannot be written ({error.strerror or error})")


def ragged(
    rows: NDArray[np.int64], values: pa.Array, valid: NDArray[np.bool_], *, large: bool = False
) -> pa.Array:
    """Lists of `values`, whose rows ascend; null where not `valid`."""
    offsets = np.zeros(len(valid) + 1, dtype=np.int64 if large else np.int32)
    np.cumsum(np.bincount(rows, minlength=len(valid)), out=offsets[1:])
    kind = pa.LargeListArray if large else pa.ListArray
    mask = None if valid.all() else pa.array(~valid)
    return kind.from_arrays(pa.array(offsets), values, mask=mask)
