"""One door to storage: where inputs are read from, and how results are committed.

Reading Parquet goes through `pyarrow.fs` (and fsspec for schemes that Arrow lacks, such as
`hf://`). Writing goes through `Storage`, which promises two things that a file system alone does
not: `put` makes an object appear whole or not at all, and `create` makes it only if it is absent.

On a local or NFS file system `put` writes a temporary file, fsyncs it, renames it and fsyncs the
folder, so that what was committed survives a crash of the machine. On an object store it is one
PUT, which is atomic there; a Parquet writer on a remote stream would publish half a file when it
is closed after an error.
"""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ray_mlc.errors import ConfigError, DataError, StorageError, first_line

if TYPE_CHECKING:
    import pyarrow.fs as pa_fs

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs", "abfss")


@dataclass(frozen=True)
class ObjectInfo:
    """An object below a storage root."""

    path: str
    """Relative to the root, `/` between elements."""
    size: int
    """Bytes."""
    modified_s: float = 0.0
    """Time of the last change, in seconds since 1970."""


class Storage(Protocol):
    """A folder on some storage; paths are relative to it."""

    uri: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix`, in one listing."""

    def read(self, path: str) -> bytes | None:
        """Content of an object; None if there is none."""

    def put(self, path: str, data: bytes) -> None:
        """Make the object appear, or replace it, whole."""

    def create(self, path: str, data: bytes) -> bool:
        """Make the object appear whole if it is absent; False if it was there."""

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens if it is absent."""


def scheme_of(uri: str) -> str:
    """`s3` of `s3://bucket/key`; `file` for a plain path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else "file"


def local_path(uri: str) -> Path | None:
    """The path of a local location (plain or `file://`); None for a remote one."""
    if scheme_of(uri) != "file":
        return None
    return Path(uri.removeprefix("file://")).expanduser().absolute()


def join(uri: str, *elements: str) -> str:
    """`uri` with path elements added."""
    return "/".join([uri.rstrip("/"), *(element.strip("/") for element in elements)])


def open_storage(uri: str, *, scratch: str = "_ray_mlc/tmp") -> Storage:
    """The storage at `uri`: a local folder, `s3://`, `gs://`, `az://`.

    Args:
        uri: Folder; it need not exist yet.
        scratch: Folder below it for temporary files of local storage.

    Raises:
        ConfigError: If nothing here writes to that scheme.
    """
    path = local_path(uri)
    if path is not None:
        return LocalStorage(path, scratch=scratch)
    if scheme_of(uri) in _OBJECT_STORES:
        return ObjectStorage(uri)
    raise ConfigError(
        f"{uri}: cannot write to {scheme_of(uri)}://; expected a local path, s3://, gs:// or az://"
    )


class LocalStorage:
    """A folder of a local or network file system."""

    def __init__(self, root: Path, *, scratch: str) -> None:
        self.uri = str(root)
        self._root = root
        self._scratch = root / scratch

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix`; folders that vanish meanwhile are skipped."""
        stack = [self._root / prefix]
        while stack:
            try:
                entries = list(os.scandir(stack.pop()))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))
                    continue
                relative = os.path.relpath(entry.path, self._root).replace(os.sep, "/")
                try:
                    found = entry.stat()
                    yield ObjectInfo(relative, found.st_size, found.st_mtime)
                except FileNotFoundError:  # removed since the folder was read
                    continue

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
            temporary = self._write_temporary(data)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _fsync_folder(target.parent)
        except OSError as error:
            raise _storage_error(error, target, "write") from None

    def create(self, path: str, data: bytes) -> bool:
        """As `put`, but a hard link that fails on an existing name takes the rename's place."""
        target = self._root / path
        try:
            temporary = self._write_temporary(data)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _fsync_folder(target.parent)
        except OSError as error:
            raise _storage_error(error, target, "write") from None
        return True

    def delete(self, path: str) -> None:
        """Remove the object if it is there."""
        try:
            (self._root / path).unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(error, self._root / path, "delete") from None

    def _write_temporary(self, data: bytes) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        temporary = self._scratch / f"{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


class ObjectStorage:
    """A prefix of an object store, through obstore; credentials come from the environment."""

    def __init__(self, uri: str) -> None:
        from obstore.store import from_url

        self.uri = uri.rstrip("/")
        options: dict[str, Any] = {}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        if scheme_of(uri) in ("s3", "s3a") and endpoint.startswith("http://"):
            options["client_options"] = {"allow_http": True}  # the user named a plain-HTTP server
        try:
            self._store = from_url(self.uri, **options)
        except Exception as error:  # obstore has no common base class of its errors
            raise StorageError(f"{uri}: cannot be opened ({first_line(error)})") from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix`, a thousand per request."""
        import obstore

        for page in self._guard("list", prefix, obstore.list, self._store, prefix or None):
            for meta in page:
                yield ObjectInfo(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def read(self, path: str) -> bytes | None:
        """Content of an object; None if there is none."""
        import obstore

        try:
            return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error("read", path, error) from None

    def put(self, path: str, data: bytes) -> None:
        """One PUT: an object appears whole or not at all."""
        import obstore

        self._guard("write", path, obstore.put, self._store, path, data, use_multipart=False)

    def create(self, path: str, data: bytes) -> bool:
        """A conditional PUT (`If-None-Match: *`)."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except Exception as error:
            raise self._error("create", path, error) from None
        return True

    def delete(self, path: str) -> None:
        """Remove the object; stores do not say whether it was there."""
        import obstore

        self._guard("delete", path, obstore.delete, self._store, path)

    def _guard(self, verb: str, path: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except FileNotFoundError:
            return ()
        except Exception as error:
            raise self._error(verb, path, error) from None

    def _error(self, verb: str, path: str, error: Exception) -> StorageError:
        return StorageError(f"{self.uri}/{path}: cannot {verb} ({first_line(error)})")


def filesystem_of(uri: str) -> tuple[pa_fs.FileSystem, str]:
    """The Arrow file system of `uri` and the path in it, for reading.

    Raises:
        DataError: If no library here reads that scheme.
    """
    import pyarrow.fs as pa_fs

    path = local_path(uri)
    if path is not None:
        return pa_fs.LocalFileSystem(), str(path)
    scheme = scheme_of(uri)
    rest = uri.split("://", 1)[1]
    try:
        if scheme == "az":
            account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
            return pa_fs.AzureFileSystem(account_name=account), rest
        if scheme in ("s3", "s3a", "gs", "gcs", "abfs", "abfss"):
            filesystem, inner = pa_fs.FileSystem.from_uri(uri)
            return filesystem, inner
        import fsspec

        return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(fsspec.filesystem(scheme))), rest
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{uri}: cannot read from {scheme}:// ({first_line(error)})") from None


def remove_stale(storage: Storage, prefix: str, *, older_than_s: float = 3600.0) -> int:
    """Delete old objects below `prefix`, such as temporary files of a killed run; how many.

    Young ones are left alone: they may belong to a writer that is at work.
    """
    limit = time.time() - older_than_s
    stale = [info.path for info in storage.list(prefix) if info.modified_s < limit]
    for path in stale:
        storage.delete(path)
    return len(stale)


def existing_paths(infos: Iterable[ObjectInfo]) -> set[str]:
    """The paths of a listing."""
    return {info.path for info in infos}


def _storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    remedy = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "the quota is used up: free some space and run the same command again",
        errno.EACCES: "permission denied: give this user the right and run the same command again",
        errno.EPERM: "permission denied: give this user the right and run the same command again",
        errno.EROFS: "the file system is read-only",
    }.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{path}: cannot {verb}: {remedy}")


def _fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
