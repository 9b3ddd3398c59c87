"""What a storage promises, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


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
