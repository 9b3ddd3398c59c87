"""Where this machine keeps what can be made again: copied models, converted ones."""

from __future__ import annotations

import os
from pathlib import Path


def cache_name() -> Path:
    """`$XDG_CACHE_HOME/ray_mlc`, in `~/.cache` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ray_mlc"


def cache_folder(kind: str) -> Path:
    """A folder of the user's cache, made if it is not there.

    Raises:
        OSError: If it cannot be made.
    """
    folder = cache_name() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
