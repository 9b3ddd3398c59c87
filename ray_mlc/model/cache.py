"""Where this machine keeps what can be made again: copied models, converted ones."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """A folder of the user's cache, made if it is not there.

    It is `$XDG_CACHE_HOME/ray_mlc/KIND`, in `~/.cache` where that is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "ray_mlc" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
