"""Where labelled rows are: files, folders, globs, and files inside archives."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pa_fs

from ray_mlc.errors import DataError, first_line
from ray_mlc.storage import filesystem_of, join
from ray_mlc.training.archives import (
    ARCHIVE_ERRORS,
    is_tar,
    is_zip,
    open_zip_member,
    split_archive,
    zip_members,
)

FORMATS = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
}
EXTENSIONS = (
    ".parquet, .csv, .tsv, .jsonl or .json (text formats also with .gz, or in a .zip or .tar.gz)"
)
TAR = "tar"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """A file of labelled rows."""

    name: str
    """As messages show it."""
    path: str
    """In its file system."""
    filesystem: Any
    format: str
    """`Parquet`, `CSV` or `JSON`; `tar`: what is in it comes to light when it is read."""
    members: tuple[str, ...] = ()
    """Where the file is in a zip, from the outer archive to the inner one; of a tar, which of its
    files are asked for, as a glob (none: all)."""
    stream: IO[bytes] | None = None
    """A file of a tar: its bytes, which can be read once."""

    @property
    def inner_name(self) -> str:
        """Name of the file itself, where it is in an archive; else its path."""
        return self.members[-1] if self.members else self.path

    def open(self) -> AbstractContextManager[Any]:
        """A stream of its bytes, decompressed."""
        if self.stream is not None:
            return nullcontext(self.stream)
        if self.members:
            archive = partial(self.filesystem.open_input_file, self.path)
            return open_zip_member(archive, self.members)
        gz = self.path.lower().endswith(".gz")
        stream: AbstractContextManager[Any] = self.filesystem.open_input_stream(
            self.path, compression="gzip" if gz else None
        )
        return stream

    def is_empty(self) -> bool:
        """Whether the file is known to have no bytes."""
        if self.stream is not None or self.members:
            return False  # what reads them finds out
        return bool(self.filesystem.get_file_info(self.path).size == 0)


def find_files(path: str | Sequence[str]) -> list[SourceFile]:
    """The files of a path, folder, glob, archive, or a list of them, each once, in path order.

    An archive is taken as the folder that it holds: `data.zip`, `data.zip/train.csv`,
    `data.tar.gz/*.jsonl`.

    Raises:
        DataError: If a path is missing, no file in it can be read, or a folder mixes formats.
    """
    files: dict[tuple[str, ...], SourceFile] = {}
    for item in [path] if isinstance(path, str) else path:
        files |= {(file.path, *file.members): file for file in _find(item)}
    if not files:
        raise DataError("no path was given: expected a file, a folder, a glob or a list of them")
    return list(files.values())


def format_of(path: str) -> str | None:
    """The format that a file's name says; None for other files."""
    name = path.lower()
    found = FORMATS.get(posixpath.splitext(name.removesuffix(".gz"))[1])
    return None if found == "Parquet" and name.endswith(".gz") else found


def names_a_file(path: str) -> bool:
    """Whether a name ends as those of files and archives do that can be read."""
    return format_of(path) is not None or _is_archive(path)


def without_extension(name: str) -> str:
    """A file's name without what says its format, `.gz` included; other names as they are."""
    if format_of(name) is None:
        return name
    plain = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return posixpath.splitext(plain)[0]


def is_hidden(relative: str) -> bool:
    """Whether an element of a path begins as those do that readers pass by."""
    return any(element.startswith(("_", ".")) for element in relative.split("/") if element)


def member_matches(name: str, pattern: str) -> bool:
    """Whether a file of an archive is meant by a glob over its path, or over its name alone."""
    from fsspec.utils import glob_translate

    matcher = re.compile(glob_translate(pattern))
    whole = name if "/" in pattern else posixpath.basename(name)
    return matcher.match(whole) is not None


def _find(uri: str) -> list[SourceFile]:
    filesystem, path = filesystem_of(uri)
    path = path.rstrip("/") or "/"
    try:
        kind = filesystem.get_file_info(path).type
        if kind == pa_fs.FileType.File:
            return _of_file(uri, path, filesystem)
        if kind == pa_fs.FileType.NotFound and (inside := split_archive(path)) is not None:
            archive, member = inside
            if filesystem.get_file_info(archive).type == pa_fs.FileType.File:
                return _of_archive(uri[: -len(member) - 1], archive, filesystem, member)
        glob = _GLOB.search(path) if kind == pa_fs.FileType.NotFound else None
        if kind == pa_fs.FileType.NotFound and not glob:
            raise DataError(f"{uri}: there is no such file or folder: check the path")
        base = (posixpath.dirname(path[: glob.start()]) or "/") if glob else path
        selector = pa_fs.FileSelector(base, recursive=True, allow_not_found=True)
        entries = [e.path for e in filesystem.get_file_info(selector) if e.is_file]
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({first_line(error)})") from None
    if glob:
        from fsspec.utils import glob_translate

        pattern = re.compile(glob_translate(path))
        entries = [entry for entry in entries if pattern.match(entry)]
    return _chosen(uri, base, entries, filesystem, is_glob=glob is not None)


def _chosen(
    uri: str, base: str, entries: Sequence[str], filesystem: Any, *, is_glob: bool
) -> list[SourceFile]:
    """The files of a folder or glob that can be read."""
    visible = [entry for entry in sorted(entries) if not is_hidden(entry[len(base) :])]
    named = {e: e if is_glob else join(uri, e[len(base) :]) for e in visible}
    files: list[SourceFile] = []
    # an archive beside files is most often what they were unpacked from
    readable = [e for e in visible if format_of(e) or (is_glob and _is_archive(e))]
    for entry in readable or filter(_is_archive, visible):
        files += _of_file(named[entry], entry, filesystem)
    if not files:
        what = "no file matches" if is_glob else "the folder is empty"
        if entries:
            what = f"none of {len(entries)} file(s) in it can be read"
        raise DataError(f"{uri}: {what}: expected {EXTENSIONS}")
    if not is_glob:
        _refuse_mixture(uri, files, glob_of=join(uri, "*"))
    return files


def _refuse_mixture(uri: str, files: Sequence[SourceFile], *, glob_of: str) -> None:
    """Refuse a folder of several formats: they are often the same rows twice."""
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        extension = posixpath.splitext(files[0].inner_name)[1]
        raise DataError(
            f"{uri}: the folder holds {' and '.join(formats)} files: name the files, or a glob "
            f"such as {glob_of}{extension}"
        )


def _is_archive(path: str) -> bool:
    return is_zip(path) or is_tar(path)


def _of_file(uri: str, path: str, filesystem: Any) -> list[SourceFile]:
    if _is_archive(path):
        return _of_archive(uri, path, filesystem, None)
    found = format_of(path)
    if found is None:
        raise DataError(f"{uri}: cannot read this kind of file: expected {EXTENSIONS}")
    return [SourceFile(uri, path, filesystem, found)]


def _of_archive(uri: str, path: str, filesystem: Any, pattern: str | None) -> list[SourceFile]:
    if is_tar(path):
        return [SourceFile(uri, path, filesystem, TAR, (pattern,) if pattern else ())]
    try:
        found = zip_members(partial(filesystem.open_input_file, path))
    except (*ARCHIVE_ERRORS, pa.ArrowException, OSError) as error:
        raise DataError(f"{uri}: cannot be read as a zip ({first_line(error)})") from None
    inner = ["/".join(members) for members in found]
    readable = [
        (name, members)
        for name, members in sorted(zip(inner, found, strict=True))
        if not is_hidden(name) and format_of(name)
    ]
    if pattern is not None:
        readable = [item for item in readable if _is_asked_for(item[1], pattern)]
    if not readable:
        raise DataError(
            f"{uri}: {_none_matches(pattern, inner)}: expected {EXTENSIONS.split(' (')[0]}"
        )
    files = [
        SourceFile(join(uri, name), path, filesystem, str(format_of(name)), members)
        for name, members in readable
    ]
    for file in files:
        if file.format == "Parquet":
            raise DataError(f"{file.name}: Parquet cannot be read inside a zip: unpack it first")
    if pattern is None:
        _refuse_mixture(uri, files, glob_of=join(uri, "*"))
    return files


def _is_asked_for(members: tuple[str, ...], pattern: str) -> bool:
    """Whether a file of a zip is meant; `train.csv.zip` in a zip is so by its own name too."""
    paths = ("/".join(members[: index + 1]) for index in range(len(members)))
    return any(member_matches(path, pattern) for path in (*paths, members[-1]))


def _none_matches(pattern: str | None, names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" * (len(names) > 12))
    if pattern is None:
        return f"none of {len(names)} file(s) in the archive can be read ({shown or 'none'})"
    return f"there is no {pattern!r} in the archive: it has {shown or 'none'}"


def no_member(file: SourceFile, names: Iterable[str]) -> DataError:
    """The error of a tar in which nothing was to be read."""
    pattern = file.members[0] if file.members else None
    return DataError(f"{file.name}: {_none_matches(pattern, names)}")


def of_tar(file: SourceFile, name: str, stream: IO[bytes]) -> SourceFile | None:
    """A file that has come by in a tar; None if it is not to be read.

    Raises:
        DataError: If it is asked for and cannot be read.
    """
    if is_hidden(name) or (file.members and not member_matches(name, file.members[0])):
        return None
    found = format_of(name)
    here = join(file.name, name)
    if found == "Parquet":
        raise DataError(f"{here}: Parquet cannot be read inside a tar: unpack it first")
    if found is None:
        if file.members and not _GLOB.search(file.members[0]):
            raise DataError(f"{here}: cannot read this kind of file: expected {EXTENSIONS}")
        return None
    return replace(file, name=here, format=found, members=(name,), stream=stream)


def is_one(file: SourceFile) -> bool:
    """Whether a single file of the tar is asked for, so that the rest need not be read."""
    return bool(file.members) and not _GLOB.search(file.members[0])
