"""Which files a corpus has, and where the part files of each go.

The root is the folder that was named, the longest folder of a glob without a wildcard, or the
longest common folder of a list; `source` is a file's path below it. It follows from what was
written, not from the files that match today: the same glob has the same root tomorrow. Hidden
paths (an element that starts with `_` or `.`) are skipped and counted, as Spark and Hive do: they
hold ledgers and half-written files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_mlc.errors import DataError, StorageError, first_line
from ray_mlc.storage import ObjectStorage, filesystem_of, local_path, scheme_of

_SUFFIXES = re.compile(r"(\.parquet)+$")
_GLOB = re.compile(r"[*?\[]")
_LISTED_BY_STORE = ("s3", "s3a", "gs", "az")

Facts = tuple[int, int, str]
"""Size, `mtime_ns` and `etag` of a file."""


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus, as listed."""

    source: str
    """Path relative to the root: the value of the `source` column."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change as the store reports it, in nanoseconds; 0 where it does not."""
    etag: str = ""
    """What the store says identifies the content; empty where it says nothing."""

    @property
    def part_folder(self) -> str:
        """Folder of its parts below the output: `source` without `.parquet` at any element."""
        return part_folder_of(self.source)

    @property
    def hive_keys(self) -> dict[str, str]:
        """See `hive_keys_of`."""
        return hive_keys_of(self.source)


def hive_keys_of(source: str) -> dict[str, str]:
    """Columns that a path says: `date=2026-11-20/x.parquet` gives `{"date": …}`."""
    pairs = (element.split("=", 1) for element in source.split("/")[:-1])
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0]}


@dataclass(frozen=True)
class Listing:
    """What was found for an input."""

    root: str
    """URI of the folder that sources are relative to."""
    files: tuple[InputFile, ...]
    """In path order."""
    hidden: tuple[str, ...]
    """Paths skipped because an element starts with `_` or `.`."""


def part_folder_of(source: str) -> str:
    """Folder of a file's parts: no element of it ends in `.parquet`, as only parts may."""
    return "/".join(_SUFFIXES.sub("", element) for element in source.split("/"))


def list_corpus(path: str | Sequence[str]) -> Listing:
    """List the Parquet files of a folder, glob, file, or a list of them.

    Raises:
        DataError: If a path is missing, nothing in it ends in `.parquet`, the paths lie on
            different stores, two files would share a part folder, or a path that is named has an
            element that starts with `_` or `.`.
        StorageError: If the storage fails.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if len({scheme_of(item) for item in paths}) > 1:
        raise DataError(f"input.path: {paths[0]} and the others lie on different stores")
    found: dict[str, Facts] = {}
    hidden: set[str] = set()
    roots: list[str] = []
    for item in paths:
        root, files, skipped = _list_one(item)
        roots.append(root)
        found.update(files)
        hidden |= skipped
    root = posixpath.commonpath(roots)
    if not root:
        raise DataError(f"input.path: {paths[0]} and the others lie in different buckets")
    prefix = root.rstrip("/") + "/"
    listed = tuple(
        InputFile(name.removeprefix(prefix), *facts) for name, facts in sorted(found.items())
    )
    _refuse_hidden(listed)
    _refuse_shared_folders(listed)
    shown = tuple(sorted(name.removeprefix(prefix) for name in hidden))
    return Listing(_uri(paths[0], root), listed, shown)


def would_list(path: str | Sequence[str], name: str) -> bool:
    """Whether a listing of `path` would hold `name`, a path in the same file system."""
    for item in [path] if isinstance(path, str) else path:
        own = filesystem_of(item)[1].rstrip("/")
        base = _base(own)
        inside = name.startswith(base.rstrip("/") + "/") and not _is_hidden(name[len(base) :])
        if inside and (base == own or _matches(own, name)):
            return True
    return False


def file_path(root: str, source: str) -> str:
    """Path of a file in the file system of `root`."""
    _, base = filesystem_of(root)
    return posixpath.join(base, source)


def _list_one(uri: str) -> tuple[str, dict[str, Facts], set[str]]:
    """Root, files and hidden files of one path."""
    filesystem, path = filesystem_of(uri)
    path = path.rstrip("/") or "/"
    base = path if _is_file(filesystem, path) else _base(path)
    pattern = base != path
    if scheme_of(uri) in _LISTED_BY_STORE:
        files = _list_store(scheme_of(uri), base)
    else:
        files = _list_filesystem(filesystem, uri, base)
    if not files.keys() - {base} and not pattern and base in files:
        return posixpath.dirname(base), files, set()
    if pattern:
        files = {name: facts for name, facts in files.items() if _matches(path, name)}
    else:
        files = {name: facts for name, facts in files.items() if name.endswith(".parquet")}
    hidden = {name for name in files if _is_hidden(name[len(base) :])}
    kept = {name: facts for name, facts in files.items() if name not in hidden}
    if not kept:
        what = "no file matches" if pattern else "no file in it ends in .parquet"
        more = f"; {len(hidden)} hidden file(s) were skipped" if hidden else ""
        raise DataError(f"{uri}: {what}{more}")
    return base, kept, hidden


def _list_filesystem(filesystem: Any, uri: str, base: str) -> dict[str, Facts]:
    """All files below a folder, or the one file that `base` is."""
    import pyarrow.fs as pa_fs

    try:
        info = filesystem.get_file_info(base)
        if info.type == pa_fs.FileType.NotFound:
            raise DataError(f"{uri}: there is no such file or folder")
        if info.type == pa_fs.FileType.File:
            return {base: (info.size, info.mtime_ns or 0, "")}
        entries = filesystem.get_file_info(pa_fs.FileSelector(base, recursive=True))
        return {
            entry.path: (entry.size, entry.mtime_ns or 0, "")
            for entry in entries
            if entry.type == pa_fs.FileType.File
        }
    except OSError as error:
        raise StorageError(f"{uri}: cannot be listed ({first_line(error)})") from None
    except UnicodeError as error:
        raise DataError(
            f"{uri}: the name of a file in it is not UTF-8 ({first_line(error)}): rename it, or "
            "name the other files in a list"
        ) from None


def _list_store(scheme: str, base: str) -> dict[str, Facts]:
    """As `_list_filesystem`, in one listing that has entity tags."""
    found = {f"{base}/{info.path}": info for info in ObjectStorage(f"{scheme}://{base}").list()}
    folder, _, name = base.rpartition("/")
    if not found and folder and (info := ObjectStorage(f"{scheme}://{folder}").stat(name)):
        found = {base: info}
    if not found:
        raise DataError(f"{scheme}://{base}: there is no such file or folder")
    empty = [name for name, info in found.items() if not info.size]
    if empty:  # `x.parquet/` without content: some tools mark a folder so
        folders = {name.rpartition("/")[0] for name in found}
        found = {name: info for name, info in found.items() if info.size or name not in folders}
    # whole seconds: a listing and a single look differ in what comes after
    return {
        name: (info.size, int(info.modified_s) * 10**9, info.etag) for name, info in found.items()
    }


def _is_file(filesystem: Any, path: str) -> bool:
    """Whether a path that looks like a glob is the name of a file as it stands."""
    import pyarrow.fs as pa_fs

    if _GLOB.search(path) is None:
        return False
    try:
        return bool(filesystem.get_file_info(path).type == pa_fs.FileType.File)
    except OSError:
        return False  # listing says what is wrong


def _base(path: str) -> str:
    """The longest folder of a glob that has no wildcard; any other path as it is."""
    pattern = _GLOB.search(path)
    return path if pattern is None else posixpath.dirname(path[: pattern.start()]) or "/"


def _matches(pattern: str, name: str) -> bool:
    """Glob match where `*` stays within an element and `**` crosses them."""
    from fsspec.utils import glob_translate

    return re.match(glob_translate(pattern), name) is not None


def _is_hidden(relative: str) -> bool:
    return any(element.startswith(("_", ".")) for element in relative.split("/") if element)


def _uri(given: str, path: str) -> str:
    return path if local_path(given) is not None else f"{scheme_of(given)}://{path}"


def _refuse_hidden(files: Sequence[InputFile]) -> None:
    """Files that are named one by one are not skipped, but their parts would be by readers."""
    for file in files:
        if _is_hidden(file.source):
            raise DataError(
                f"input.path: {file.source}: an element starts with _ or ., so readers would skip "
                "its results: rename it"
            )


def _refuse_shared_folders(files: Sequence[InputFile]) -> None:
    owner: dict[str, str] = {}
    for file in files:
        other = owner.setdefault(file.part_folder, file.source)
        if other != file.source:
            raise DataError(
                f"input.path: {other} and {file.source} would share the part folder "
                f"{file.part_folder}/: score them into two outputs, or rename one"
            )
