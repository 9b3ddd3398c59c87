"""Which files a report may replace: an earlier report, and nothing that a user has written."""

from __future__ import annotations

import json
from pathlib import Path

from ray_mlc.errors import ConfigError
from ray_mlc.report.page import GENERATOR
from ray_mlc.runtime.progress import Display

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
        ours = _is_page(path) or _is_figures(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: is there already, and cannot be read: {error.strerror}"
        ) from None
    if not ours:
        raise ConfigError(
            f"{path}: is there already, and no report of ray-mlc: name another --output, or remove "
            "it"
        )
    display.say(f"replacing the report that is there: {path}")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(_HEAD)


def _is_figures(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and all(key in content for key in FIGURES)
