"""One door to storage: where inputs are read from, and how results are committed.

Reading Parquet goes through `pyarrow.fs` (and fsspec for schemes that Arrow lacks, such as
`hf://`). Writing goes through `Storage`, which promises two things that a file system alone does
not: `put` makes an object appear whole or not at all, and `create` makes it only if it is absent.

On a local or NFS file system `put` writes a temporary file, fsyncs it, renames it and fsyncs the
folder, so that what was committed survives a crash of the machine. On an object store it is one
PUT, which is atomic there; a Parquet writer on a remote stream would publish half a file when it
is closed after an error. It is never a multipart upload, so that none is ever left behind.

Whether a request was carried out is unknown when its answer is lost: an NFS client repeats a
rename that was made, an HTTP client repeats a PUT that was stored, and the repetition fails. After
such an error the target is looked at before anything is said.

Credentials come from the environment or the node's role, never from a location: locations are
written into run files and error texts.
"""

from __future__ import annotations

import configparser
import errno
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from ray_mlc.errors import (
    SECRET_PARAMETER,
    SECRET_USER_INFO,
    ConfigError,
    DataError,
    StorageError,
    first_line,
)

if TYPE_CHECKING:
    import pyarrow.fs as pa_fs

OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
"""Schemes that `open_storage` takes beside local paths."""
RETRY_BUDGET_S = 180.0
"""Longest time for which a request to an object store is repeated."""
REQUEST_TIMEOUT_S = 90.0
"""Longest time of one request, its body included; a part must get through in it."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 15.0
CONNECT_TIMEOUT_S = 10.0
"""Longest time until a connection stands."""
ARROW_ATTEMPTS = 10
"""Attempts of one request when Arrow reads from S3."""

_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""With any of these obstore finds credentials by itself."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_COMMIT_TRIES = 3
_PERHAPS_DONE = (errno.ENOENT, errno.ESTALE)
"""What a rename or link says whose first try succeeded unnoticed, or whose source was swept."""
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class ObjectInfo:
    """An object below a storage root."""

    path: str
    """Relative to the root, `/` between elements."""
    size: int
    """Bytes."""
    modified_s: float = 0.0
    """Time of the last change, in seconds since 1970."""
    etag: str = ""
    """What an object store calls this version of the content; empty on file systems."""


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

    def update(self, path: str, data: bytes, *, expected: bytes) -> bool:
        """Replace the object whole if its content still is `expected`; else False."""

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


def refuse_credentials(uri: str) -> None:
    """Refuse a location that carries a key, a password or a signature.

    Raises:
        ConfigError: Without the location, which would spread the secret.
    """
    authority = uri.split("://", 1)[1].split("/", 1)[0] if "://" in uri else ""
    found = SECRET_PARAMETER.search(uri) or SECRET_USER_INFO.search(uri)
    if scheme_of(uri) in ("s3", "s3a", "gs", "gcs", "az"):
        # no bucket has these in its name; in abfs://container@account one is a place
        found = found or re.search("[@:]", authority)
    if found:
        raise ConfigError(
            f"a {scheme_of(uri)}:// location carries credentials: leave them out, and put them "
            "into the environment (such as AWS_ACCESS_KEY_ID) or give the node a role"
        )


def open_storage(uri: str, *, scratch: str = "_ray_mlc/tmp") -> Storage:
    """The storage at `uri`: a local folder, `s3://`, `gs://`, `az://`.

    Args:
        uri: Folder; it need not exist yet.
        scratch: Folder below it for temporary files of local storage.

    Raises:
        ConfigError: If nothing here writes to that scheme, or the URI carries credentials.
    """
    refuse_credentials(uri)
    path = local_path(uri)
    if path is not None:
        return LocalStorage(path, scratch=scratch)
    if scheme_of(uri) in OBJECT_STORES:
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
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            _discard(temporary)
            raise
        return temporary


class _NotStoredError(StorageError):
    """A PUT failed, and the object is as it was before: it can be repeated."""


class ObjectStorage:
    """A prefix of an object store, through obstore; credentials come from the environment."""

    def __init__(self, uri: str) -> None:
        from obstore.store import from_url

        self.uri = uri.rstrip("/")
        options: dict[str, Any] = {
            "client_options": {
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
            },
        }
        repeated = {
            "max_retries": 1000,  # the time decides
            "retry_timeout": timedelta(seconds=RETRY_BUDGET_S),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_WAIT_S),
                "max_backoff": timedelta(seconds=LONGEST_WAIT_S),
                "base": 2,
            },
        }
        if scheme_of(uri) in ("s3", "s3a"):
            endpoint = _s3_endpoint()
            if endpoint:
                options["endpoint"] = endpoint
                # the user named a plain-HTTP server
                options["client_options"]["allow_http"] = endpoint.startswith("http://")
            if region := _s3_region(_bucket_of(uri)):
                options["region"] = region
            options |= _shared_credentials()
        try:
            # a key is taken as it is written: a URL would end at `#`, and `%` would be decoded
            scheme, rest = self.uri.split("://", 1)
            place = f"{scheme}://{quote(rest, safe='/@:')}"
            self._store = from_url(place, retry_config=repeated, **options)
            self._unrepeated = from_url(place, retry_config={"max_retries": 0}, **options)
        except Exception as error:  # obstore has no common base class of its errors
            raise StorageError(f"{uri}: cannot be opened ({first_line(error)})") from None

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        """Only the location travels: each node takes credentials from its own environment."""
        return ObjectStorage, (self.uri,)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix`, a thousand per request."""
        import obstore

        stream: Any = None
        last: str | None = None

        def next_page() -> Any:
            nonlocal stream
            if stream is None:  # also after an error: stores list in the order of names
                stream = obstore.list(self._store, prefix or None, offset=last)
            try:
                return next(stream, None)
            except BaseException:
                stream = None
                raise

        while page := self._repeat("list", prefix, next_page, or_none=True):
            last = page[-1]["path"]
            # the root's own marker object, as some tools make one, has no path
            yield from (_object_info(meta) for meta in page if meta["path"])

    def stat(self, path: str) -> ObjectInfo | None:
        """One object's entry; None if there is none."""
        import obstore

        found = self._repeat("read", path, lambda: obstore.head(self._store, path), or_none=True)
        return None if found is None else _object_info(found)

    def read(self, path: str) -> bytes | None:
        """Content of an object; None if there is none."""
        found = self._get(path)
        return None if found is None else found[0]

    def put(self, path: str, data: bytes) -> None:
        """One PUT: an object appears whole or not at all."""
        import obstore

        self._repeat(
            "write", path, lambda: obstore.put(self._store, path, data, use_multipart=False)
        )

    def create(self, path: str, data: bytes) -> bool:
        """A conditional PUT (`If-None-Match: *`)."""
        return self._put_if(path, data, lambda: "create", expected=None)

    def update(self, path: str, data: bytes, *, expected: bytes) -> bool:
        """A conditional PUT (`If-Match` with the entity tag of the content that was compared)."""

        def version() -> dict[str, str] | None:
            found = self._get(path)
            if found is None or found[0] != expected:
                return None
            return {key: found[1][key] for key in ("e_tag", "version") if found[1][key]}

        return self._put_if(path, data, version, expected=expected)

    def delete(self, path: str) -> None:
        """Remove the object; stores do not say whether it was there."""
        import obstore

        self._repeat("delete", path, lambda: obstore.delete(self._store, path), or_none=True)

    def _get(self, path: str) -> tuple[bytes, Any] | None:
        import obstore

        def get() -> tuple[bytes, Any]:
            found = obstore.get(self._store, path)
            return bytes(found.bytes()), found.meta

        got: tuple[bytes, Any] | None = self._repeat("read", path, get, or_none=True)
        return got

    def _repeat(
        self, verb: str, path: str, act: Callable[[], Any], *, or_none: bool = False
    ) -> Any:
        """Do what may be done twice, again after errors that may pass; None for what is absent.

        obstore repeats most of it by itself, but not an answer that breaks off in its body.
        """
        from tenacity import (
            Retrying,
            retry_if_exception,
            stop_after_delay,
            wait_random_exponential,
        )

        try:
            return Retrying(
                retry=retry_if_exception(_may_pass),
                stop=stop_after_delay(RETRY_BUDGET_S),
                wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
                reraise=True,
            )(act)
        except Exception as error:
            if or_none and _is_absent(error):
                return None
            raise self._error(verb, path, error) from None

    def _put_if(
        self, path: str, data: bytes, condition: Callable[[], Any], *, expected: bytes | None
    ) -> bool:
        """A conditional PUT; False if the condition does not hold.

        obstore does not repeat these when the connection breaks, because their outcome is unknown
        then. A look at the object tells it: our content, still the old one, or somebody else's.
        """
        import obstore
        from obstore import exceptions
        from tenacity import (
            Retrying,
            retry_if_exception_type,
            stop_after_delay,
            wait_random_exponential,
        )

        unknown = False

        def attempt() -> bool:
            nonlocal unknown
            mode = condition()
            if mode is None:
                return unknown and self.read(path) == data
            try:
                obstore.put(self._unrepeated, path, data, mode=mode, use_multipart=False)
            except (
                exceptions.AlreadyExistsError,
                exceptions.PreconditionError,
            ):
                return unknown and self.read(path) == data
            except FileNotFoundError as error:
                if expected is None:  # nothing need be there but the bucket
                    raise self._error("write", path, error) from None
                return False
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise self._error("write", path, error) from None
            except Exception as error:
                unknown = True
                found = self.read(path)
                if found == data:
                    return True
                if found != expected:
                    return False
                raise _NotStoredError(str(self._error("write", path, error))) from None
            return True

        return Retrying(
            retry=retry_if_exception_type(_NotStoredError),
            stop=stop_after_delay(RETRY_BUDGET_S),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            reraise=True,
        )(attempt)

    def _error(self, verb: str, path: str, error: Exception) -> StorageError:
        return StorageError(f"{self.uri}/{path}: cannot {verb} ({first_line(error)})")


def filesystem_of(uri: str) -> tuple[pa_fs.FileSystem, str]:
    """The Arrow file system of `uri` and the path in it, for reading.

    Raises:
        ConfigError: If the URI carries credentials.
        DataError: If no library here reads that scheme.
    """
    import pyarrow.fs as pa_fs

    refuse_credentials(uri)
    path = local_path(uri)
    if path is not None:
        return pa_fs.LocalFileSystem(), str(path)
    scheme = scheme_of(uri)
    rest = uri.split("://", 1)[1]
    try:
        if scheme in ("s3", "s3a"):
            anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
            return _s3_filesystem(_s3_endpoint(), _s3_region(_bucket_of(uri)), anonymous), rest
        if scheme == "az":
            return _azure_filesystem(os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")), rest
        if scheme in ("gs", "gcs", "abfs", "abfss"):
            authority, _, key = rest.partition("/")
            filesystem, base = _filesystem_by_arrow(f"{scheme}://{authority}")
            return filesystem, f"{base.rstrip('/')}/{key}" if key else base
        import fsspec

        return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(fsspec.filesystem(scheme))), rest
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{uri}: cannot read from {scheme}:// ({first_line(error)})") from None


# One client per store: making one reads configuration files and opens connections.
@lru_cache(maxsize=32)
def _s3_filesystem(endpoint: str, region: str | None, anonymous: bool) -> pa_fs.FileSystem:
    import pyarrow.fs as pa_fs

    scheme, _, host = endpoint.rpartition("://")
    options: dict[str, Any] = {"region": region} if region else {}
    if host:
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    return pa_fs.S3FileSystem(
        anonymous=anonymous,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=ARROW_ATTEMPTS),
        **options,
    )


@lru_cache(maxsize=32)
def _azure_filesystem(account: str) -> pa_fs.FileSystem:
    import pyarrow.fs as pa_fs

    return pa_fs.AzureFileSystem(account_name=account)


@lru_cache(maxsize=32)
def _filesystem_by_arrow(store: str) -> tuple[pa_fs.FileSystem, str]:
    import pyarrow.fs as pa_fs

    filesystem, base = pa_fs.FileSystem.from_uri(store)
    return filesystem, str(base)


def _s3_endpoint() -> str:
    """URL of an S3 server other than Amazon's; empty for Amazon."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _s3_region(bucket: str) -> str | None:
    """Region of the requests: the environment's, else the bucket's own."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or _s3_endpoint():
        return region or None  # other servers than Amazon's do not mind
    return _region_of_bucket(bucket)


@lru_cache(maxsize=256)
def _region_of_bucket(bucket: str) -> str | None:
    import pyarrow.fs as pa_fs

    try:
        return str(pa_fs.resolve_s3_region(bucket))
    except OSError:
        return None  # the first request will say what is wrong


def _shared_credentials() -> dict[str, str]:
    """Keys of the profile in AWS's credentials file, which Arrow reads and obstore does not."""
    if any(os.environ.get(name) for name in _CREDENTIAL_VARIABLES):
        return {}
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    parser = configparser.RawConfigParser()
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(path, encoding="utf-8")
    profile = os.environ.get("AWS_PROFILE", "default")
    found = parser[profile] if parser.has_section(profile) else {}
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return {name.removeprefix("aws_"): found[name] for name in names if name in found}


def _bucket_of(uri: str) -> str:
    return uri.split("://", 1)[1].split("/", 1)[0]


def sweep(storage: Storage, prefix: str) -> int:
    """Delete every object below `prefix`, such as temporary files of a killed run; how many.

    Only for who holds the lease. A writer of a run that lost it finds its temporary file gone,
    and writes it again.
    """
    paths = [info.path for info in storage.list(prefix)]
    for path in paths:
        storage.delete(path)
    return len(paths)


def existing_paths(infos: Iterable[ObjectInfo]) -> set[str]:
    """The paths of a listing."""
    return {info.path for info in infos}


def _storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    remedy = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "the quota is used up: free some space and run the same command again",
        errno.EACCES: "permission denied: give this user the right and run the same command again",
        errno.EPERM: "permission denied: give this user the right and run the same command again",
        errno.EROFS: "the file system is read-only: choose another folder, or mount it writable",
    }.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{path}: cannot {verb}: {remedy}")


def _may_pass(error: BaseException) -> bool:
    """Whether an error of obstore's is of a kind that a repetition can get around."""
    from obstore import exceptions

    # 4xx: the request is wrong, except for two that say "not now"
    refused = re.search(r"status code: 4(?!08|29)", str(error))
    return isinstance(error, exceptions.GenericError) and refused is None


def _is_absent(error: Exception) -> bool:
    # a listing of a bucket that is not there is no FileNotFoundError of obstore's
    return isinstance(error, FileNotFoundError) or "status code: 404" in str(error)


def _object_info(meta: Any) -> ObjectInfo:
    return ObjectInfo(
        meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or ""
    )


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
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _discard(target)
        raise
    return True


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
