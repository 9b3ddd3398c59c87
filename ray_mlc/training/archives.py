"""Files inside archives: `data.zip/train.csv`, `data.tar.gz/train.jsonl`.

A zip has a table of contents, so its members are files like others and can be opened again and
again; archives as Kaggle makes them hold a zip for each file, and are opened likewise. A tar has
none: it is read once from its beginning, and its members are read as they come by.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from ray_mlc.errors import DataError

ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)
"""What a damaged archive raises beside what Arrow and the disk do."""
BUFFER_BYTES = 2**20
_TARS = {".tar": None, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.bz2": "bz2", ".tbz2": "bz2"}


def is_zip(path: str) -> bool:
    """Whether the name is that of a zip archive."""
    return path.lower().endswith(".zip")


def is_tar(path: str) -> bool:
    """Whether the name is that of a tar archive, compressed or not."""
    return path.lower().endswith(tuple(_TARS))


def split_archive(path: str) -> tuple[str, str] | None:
    """`a/data.zip` and `train.csv` of `a/data.zip/train.csv`; None if no folder is an archive."""
    elements = path.split("/")
    for index in range(1, len(elements)):
        if is_zip(elements[index - 1]) or is_tar(elements[index - 1]):
            return "/".join(elements[:index]), "/".join(elements[index:])
    return None


def zip_members(open_file: Callable[[], Any]) -> list[tuple[str, ...]]:
    """Paths of the files in a zip, each from the outer archive to the inner one.

    Args:
        open_file: Opens the archive for reading at any position.
    """
    with open_file() as file:
        return list(_zip_members(file))


def _zip_members(file: Any) -> Iterator[tuple[str, ...]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if is_zip(info.filename):
                with _member(archive, info.filename) as inner:
                    yield from ((info.filename, *rest) for rest in _zip_members(inner))
            else:
                yield (info.filename,)


@contextmanager
def open_zip_member(open_file: Callable[[], Any], path: tuple[str, ...]) -> Iterator[Any]:
    """A member of a zip as a stream, decompressed also where it is a `.gz` itself."""
    with (
        open_file() as file,
        zipfile.ZipFile(file) as archive,
        _member(archive, path[0]) as member,
    ):
        if len(path) > 1:
            with open_zip_member(lambda: member, path[1:]) as inner:
                yield inner
        elif path[0].lower().endswith(".gz"):
            with gzip.open(member) as plain:
                yield plain
        else:
            yield member


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        return archive.open(name)
    except RuntimeError:  # a password is asked for
        raise DataError(f"{name}: this file of the zip is encrypted: unpack it first") from None
    except NotImplementedError as error:
        raise DataError(f"{name}: this file of the zip cannot be read ({error})") from None


@contextmanager
def open_tar(filesystem: Any, path: str) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """The files of a tar in their order: name and stream, to be read before the next one."""
    extension = max((end for end in _TARS if path.lower().endswith(end)), key=len)
    with (
        filesystem.open_input_stream(path, compression=_TARS[extension]) as stream,
        tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER_BYTES) as archive,
    ):
        yield _tar_files(archive)


def _tar_files(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # it would keep a record of each
        content = archive.extractfile(member) if member.isfile() else None
        if content is not None:
            name = member.name.removeprefix("./")
            is_gz = name.lower().endswith(".gz")
            plain: Any = gzip.GzipFile(fileobj=content) if is_gz else content
            yield name, io.BufferedReader(plain, BUFFER_BYTES)
