"""Open Parquet files so that a failing store is never taken for a bad file.

A file that cannot be decoded is set aside by name, and the run goes on. A store that throttles,
times out or is away must not have that effect: all its files would be set aside, good as they are.
Arrow reports both as `OSError`. So a remote file is read through a thin Python file that sees what
the store says before the Parquet reader does: it repeats a read that failed, on a file opened anew,
and remembers a failure that lasted.

Local files are read as they are: most errors there are one bad file or sector, and an error number
tells when it is the mount, a permission or the process itself.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from ray_mlc.errors import StorageError, first_line

READ_BUDGET_S = 180.0
"""Longest time for which a read from a store is repeated, beside what its client repeats."""
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0

_STORES_ERRNOS = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE),
    *(errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
)
"""Not EIO: that is what one bad sector gives."""

T = TypeVar("T")


@contextmanager
def open_parquet(
    filesystem: pa_fs.FileSystem, path: str, *, cancelled: threading.Event | None = None
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for the block.

    What the block catches does not matter: if the store has failed, it ends in `StorageError`.

    Args:
        filesystem: Where the file is.
        path: Path in it.
        cancelled: Once set, a read that fails is not repeated any more.

    Raises:
        StorageError: If the store failed, and went on failing; not for a file that is absent.
        OSError: If the file is absent or damaged; as Arrow says it.
        pyarrow.ArrowException: The same.
    """
    if isinstance(filesystem, pa_fs.LocalFileSystem):
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            yield file
        return
    steady = _SteadyFile(filesystem, path, cancelled or threading.Event())
    try:
        # pre_buffer: the column chunks of a row group come in few large requests
        with (
            pa.PythonFile(steady, mode="r") as source,
            pq.ParquetFile(source, pre_buffer=True) as file,
        ):
            yield file
    except Exception:
        if steady.failure is None:
            raise
    finally:
        steady.close()
    if steady.failure is not None:
        raise StorageError(
            f"{path}: cannot be read ({first_line(steady.failure)}): the store failed, the file "
            "may be good: run the same command again"
        )


def refuse_local_stores_fault(
    filesystem: pa_fs.FileSystem, root: str, path: str, error: BaseException
) -> None:
    """Tell a local storage that fails from a file that does.

    Args:
        filesystem: Nothing is done for remote ones: `open_parquet` sees to them.
        root: Folder of the input.
        path: The file.
        error: What reading it raised.

    Raises:
        StorageError: If other files would fare alike.
    """
    if not isinstance(filesystem, pa_fs.LocalFileSystem) or not isinstance(error, OSError):
        return
    if isinstance(error, FileNotFoundError) and not Path(root).exists():
        raise StorageError(
            f"{root}: is gone, with all its files: mount or restore it and run the same command "
            "again"
        ) from None
    if error.errno in _STORES_ERRNOS:
        raise StorageError(
            f"{path}: cannot be read ({first_line(error)}): the file may be good: see to it and "
            "run the same command again"
        ) from None


class _FileChangedError(OSError):
    """The file was replaced between two reads: the file's fault, not the store's."""


class _SteadyFile:
    """A remote file whose reads are repeated; what `pa.PythonFile` asks for."""

    def __init__(self, filesystem: pa_fs.FileSystem, path: str, cancelled: threading.Event) -> None:
        self.failure: BaseException | None = None
        """What the store said last when it went on failing."""
        self.closed = False
        self._filesystem, self._path, self._cancelled = filesystem, path, cancelled
        self._file: Any = None
        self._size: int | None = None
        self._position = 0

    def size(self) -> int:
        """Bytes of the file."""
        if self._size is None:
            self._steadily(lambda: None)
        assert self._size is not None
        return self._size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; nothing is read."""
        start = {0: 0, 1: self._position, 2: self.size() if whence == 2 else 0}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def read_buffer(self, count: int = -1) -> pa.Buffer:
        """Read; Arrow prefers this to `read`, because nothing is copied."""
        left = max(self.size() - self._position, 0)
        wanted = left if count is None or count < 0 else min(count, left)

        def read() -> pa.Buffer:
            self._file.seek(self._position)
            buffer = self._file.read_buffer(wanted)
            if len(buffer) != wanted:
                raise OSError(f"{len(buffer)} bytes at {self._position}, {wanted} were asked for")
            return buffer

        buffer = self._steadily(read)
        self._position += wanted
        return buffer

    def read(self, count: int = -1) -> bytes:
        """Read, as bytes."""
        return bytes(self.read_buffer(count))

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """No."""
        return False

    def seekable(self) -> bool:
        """Yes."""
        return True

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let go of the remote file."""
        self.closed = True
        self._drop()

    def _steadily(self, act: Callable[[], T]) -> T:
        """Do something with the open file, again and again while the store fails."""
        if self.failure is not None:  # the reader may ask for more; it has lasted long enough
            raise self.failure

        def attempt() -> T:
            try:
                self._open()
                return act()
            except BaseException:
                self._drop()
                raise

        retrying = Retrying(
            retry=retry_if_exception(_is_stores_fault),
            stop=stop_after_delay(READ_BUDGET_S) | stop_when_event_set(self._cancelled),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            sleep=sleep_using_event(self._cancelled),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Exception as error:
            if _is_stores_fault(error):
                self.failure = error
            raise

    def _open(self) -> None:
        if self._file is not None:
            return
        self._file = self._filesystem.open_input_file(self._path)
        size = self._file.size()
        if self._size is not None and size != self._size:
            raise _FileChangedError(f"{size} bytes, {self._size} when it was opened first")
        self._size = size

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # whatever a broken connection says when it is closed
                file.close()


def _is_stores_fault(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(
        error, FileNotFoundError | IsADirectoryError | _FileChangedError
    )
