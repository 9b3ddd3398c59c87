"""A folder of a local or network file system."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ray_mlc.errors import StorageError
from ray_mlc.storage.protocol import ObjectInfo

_COMMIT_TRIES = 3
_PERHAPS_DONE = (errno.ENOENT, errno.ESTALE)
"""What a rename or link says whose first try succeeded unnoticed, or whose source was swept."""
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalStorage:
    """A folder of a local or network file system."""

    def __init__(self, root: Path, *, scratch: str) -> None:
        self.uri = str(root)
        self._root = root
        self._scratch = root / scratch

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix`; folders that vanish meanwhile are skipped."""
        stack = [self._root / prefix]
        start = len(str(self._root).rstrip(os.sep)) + 1  # os.path.relpath takes 40 % of a listing
        while stack:
            folder = stack.pop()
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _storage_error(error, folder, "list") from None
            for entry in entries:
                relative = entry.path[start:].replace(os.sep, "/")
                try:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(Path(entry.path))
                        continue
                    found = entry.stat()
                except FileNotFoundError:  # removed since the folder was read
                    continue
                except OSError as error:
                    raise _storage_error(error, Path(entry.path), "list") from None
                yield ObjectInfo(relative, found.st_size, found.st_mtime)

    def read(self, path: str) -> bytes | None:
        """Content of an object; None if there is none."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _storage_error(error, self._root / path, "read") from None

    def put(self, path: str, data: bytes) -> None:
        """Write to a temporary file, fsync, rename, fsync the folder."""
        target = self._root / path
        try:
            self._commit(target, data)
            _fsync_folder(target.parent)
        except OSError as error:
            raise _storage_error(error, target, "write") from None

    def create(self, path: str, data: bytes) -> bool:
        """As `put`, but a hard link that fails on an existing name takes the rename's place."""
        target = self._root / path
        try:
            if not self._commit_new(target, data):
                return False
            _fsync_folder(target.parent)
        except OSError as error:
            raise _storage_error(error, target, "write") from None
        return True

    def update(self, path: str, data: bytes, *, expected: bytes) -> bool:
        """Read, compare, put.

        File systems have no conditional rename: of two writers that find the expected content at
        the same moment both are told True, and the later one's content stays. Who needs to know
        reads again after a while.
        """
        if self.read(path) != expected:
            return False
        self.put(path, data)
        return True

    def delete(self, path: str) -> None:
        """Remove the object if it is there."""
        try:
            (self._root / path).unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(error, self._root / path, "delete") from None

    def _commit(self, target: Path, data: bytes) -> None:
        for left in reversed(range(_COMMIT_TRIES)):
            temporary = self._write_temporary(data)
            try:
                _make_folder(target.parent)
                temporary.replace(target)
            except BaseException as error:
                _discard(temporary)
                if not isinstance(error, OSError) or error.errno not in _PERHAPS_DONE:
                    raise
                if _holds(target, data):  # an NFS client repeated a rename that had been made
                    return
                if not left:
                    raise
                # the temporary file or the folder was swept away: write it again
            else:
                return

    def _commit_new(self, target: Path, data: bytes) -> bool:
        for left in reversed(range(_COMMIT_TRIES)):
            temporary = self._write_temporary(data)
            try:
                _make_folder(target.parent)
                os.link(temporary, target)
            except FileExistsError:
                return _is_linked(temporary, target, data)
            except OSError as error:
                if error.errno in _NO_HARD_LINKS:
                    return _write_exclusively(target, data)
                if error.errno not in _PERHAPS_DONE:
                    raise
                if _holds(target, data):
                    return True
                if not left:
                    raise
            else:
                return True
            finally:
                _discard(temporary)
        raise AssertionError("the last try returns or raises")

    def _write_temporary(self, data: bytes) -> Path:
        _make_folder(self._scratch)
        temporary = self._scratch / f"{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                _write_synced(file, data)
        except BaseException:
            _discard(temporary)
            raise
        return temporary


def write_file(path: Path, data: bytes) -> None:
    """Write one file whole or not at all; what is needed beside it meanwhile goes again.

    Raises:
        StorageError: If it cannot be written.
    """
    path = path.absolute()
    scratch = f".{path.name}.tmp"
    try:
        LocalStorage(path.parent, scratch=scratch).put(path.name, data)
    finally:
        with suppress(OSError):  # not there, or in use by another writer
            (path.parent / scratch).rmdir()


def _storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    remedy = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "the quota is used up: free some space and run the same command again",
        errno.EACCES: "permission denied: give this user the right and run the same command again",
        errno.EPERM: "permission denied: give this user the right and run the same command again",
        errno.EROFS: "the file system is read-only: choose another folder, or mount it writable",
    }.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{path}: cannot {verb}: {remedy}")


def _discard(temporary: Path) -> None:
    """Remove a temporary file if that can be done; the error before matters more."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _holds(target: Path, data: bytes) -> bool:
    try:
        return target.read_bytes() == data
    except OSError:
        return False


def _is_linked(temporary: Path, target: Path, data: bytes) -> bool:
    """Whether a hard link that failed with EEXIST was made: its answer may have been lost.

    open(2) recommends to look at the link count; a temporary file that was swept has none.
    """
    try:
        return temporary.stat().st_nlink == 2
    except FileNotFoundError:
        return _holds(target, data)


def _write_exclusively(target: Path, data: bytes) -> bool:
    """Make a file on a file system without hard links (exFAT, some FUSE); False if it is there.

    One thing is lost against a link: a reader may see the file before it is whole, and a crash in
    between leaves it so.
    """
    try:
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write_synced(file, data)
    except BaseException:
        _discard(target)
        raise
    return True


def _write_synced(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, so that they survive a crash of the machine too."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        _fsync_folder(made.parent)


def _fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders cannot be synced there
            raise
    finally:
        os.close(descriptor)
