"""What the tests here saw, as one table at the end: for reports from machines we do not have."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch

COLUMNS = ("engine", "largest difference", "labels that differ", "tokens/s")
ROWS: pytest.StashKey[list[dict[str, str]]] = pytest.StashKey()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add a row to the table: `tell(engine="bfloat16 packed", **{"tokens/s": "1,000"})`."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda **cells: rows.append(cells)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table, with the hardware and the versions that it holds for."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    libraries = " · ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{device} · Python {platform.python_version()} · {libraries}")
    for line in table(rows):
        terminalreporter.write_line(line)


def table(rows: list[dict[str, str]]) -> list[str]:
    """Rows as Markdown, aligned."""
    cells = [list(COLUMNS), *([row.get(name, "") for name in COLUMNS] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(COLUMNS))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]
