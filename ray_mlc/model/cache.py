"""Where this machine keeps what can be made again: copied models, converted ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_name() -> Path:
    """`$XDG_CACHE_HOME/ray_mlc`, in `~/.cache` where that is not set.

    Raises:
        OSError: If the user has no home folder, and it is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "ray_mlc"
    except RuntimeError as error:  # a user without a home, as containers make them
        raise OSError(f"{error} Set XDG_CACHE_HOME.") from None


def cache_folder(kind: str) -> Path:
    """A folder of the user's cache, made if it is not there.

    Raises:
        OSError: If it cannot be made.
    """
    folder = cache_name() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_into_cache(path: Path, text: str) -> None:
    """Write a file of the cache so that other processes see all of it or nothing.

    Raises:
        OSError: If it cannot be written.
    """
    handle, scratch = tempfile.mkstemp(prefix=f"{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(scratch, path)  # noqa: PTH105 - a name of tempfile's
    except BaseException:
        os.unlink(scratch)  # noqa: PTH108 - the same
        raise
