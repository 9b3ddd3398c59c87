"""Which files a report may replace: an earlier report, and nothing that a user has written."""

from __future__ import annotations

import json
from pathlib import Path

from ray_mlc.errors import ConfigError
from ray_mlc.report.page import GENERATOR
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import Storage, join, local_path

FIGURES = ("n", "at_half", "decision", "dummy", "per_label")
"""Keys by which the figures of an evaluation are known."""
_HEAD = 2_000  # bytes of a page that hold the mark


def check_replaceable(path: Path, display: Display) -> None:
    """Say that a report will be replaced, or refuse to replace what is none: not after the work.

    Reports are made again as often as the data or the model change, so that each command replaces
    its own; the name of another file is a mistake.

    Args:
        path: An HTML page, or the JSON of an evaluation.
        display: Told that something is replaced.

    Raises:
        ConfigError: If another file is there.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        with path.open("rb") as file:  # it may be anything, of any size
            ours = _is_page(file.read(_HEAD))
        ours = ours or (_may_be_figures(path.name) and _is_figures(path.read_bytes()))
    except OSError as error:
        raise ConfigError(
            f"{path}: is there already, and cannot be read: {error.strerror}"
        ) from None
    _replace_or_refuse(str(path), ours, display)


def check_replaceable_in(storage: Storage, name: str, display: Display) -> None:
    """As `check_replaceable`, for a file of a storage that may be an object store."""
    folder = local_path(storage.uri)
    if folder is not None:
        check_replaceable(folder / name, display)
    elif content := storage.read(name):
        ours = _is_page(content[:_HEAD]) or (_may_be_figures(name) and _is_figures(content))
        _replace_or_refuse(join(storage.uri, name), ours, display)


def _replace_or_refuse(shown: str, ours: bool, display: Display) -> None:
    if not ours:
        raise ConfigError(
            f"{shown}: is there already, and no report of ray-mlc: name another --output, or "
            "remove it"
        )
    display.say(f"replacing the report that is there: {shown}")


def _is_page(head: bytes) -> bool:
    return GENERATOR.encode() in head


def _may_be_figures(name: str) -> bool:
    return name.lower().endswith(".json")


def _is_figures(content: bytes) -> bool:
    try:
        figures = json.loads(content)
    except ValueError:
        return False
    return isinstance(figures, dict) and all(key in figures for key in FIGURES)
