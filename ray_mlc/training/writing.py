"""Examples written to one Parquet file, whole or not at all."""

from __future__ import annotations

import os
import uuid
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


class ExamplesWriter:
    """A Parquet file that appears at `commit`; on any error nothing is left of it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._pending: list[pa.Table] = []
        self._schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("labels", LISTS)])
        self._made_folders: list[Path] = []
        self._temporary: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> ExamplesWriter:
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
            if sum(map(len, self._pending)) >= ROW_GROUP:
                rows = pa.concat_tables(self._pending)
                whole = len(rows) - len(rows) % ROW_GROUP
                self._writer.write_table(rows.slice(0, whole), row_group_size=ROW_GROUP)
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
        self._schema = self._schema.append(pa.field(UNANNOTATED, LISTS))
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
            empty = ragged(
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


def ragged(
    rows: NDArray[np.int64], values: pa.Array, valid: NDArray[np.bool_], *, large: bool = False
) -> pa.Array:
    """Lists of `values`, whose rows ascend; null where not `valid`."""
    offsets = np.zeros(len(valid) + 1, dtype=np.int64 if large else np.int32)
    np.cumsum(np.bincount(rows, minlength=len(valid)), out=offsets[1:])
    kind = pa.LargeListArray if large else pa.ListArray
    mask = None if valid.all() else pa.array(~valid)
    return kind.from_arrays(pa.array(offsets), values, mask=mask)
