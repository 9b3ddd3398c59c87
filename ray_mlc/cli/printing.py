"""How commands print: a sentence, a table, a figure."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

WIDE = 250
"""Columns of a log or pipe, where long names are not to be broken."""


def console(*, wide: bool = False) -> Console:
    """Where tables go: stdout.

    Args:
        wide: Whether lines may be long where there is no terminal.
    """
    found = Console(highlight=False)
    return Console(highlight=False, width=WIDE) if wide and not found.is_terminal else found


def say(text: str) -> None:
    """Print a sentence as it is: no markup, and lines of any length, for grep."""
    console().print(text, markup=False, soft_wrap=True)


def table_of(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if index == 0 else "right",
            overflow="fold",
            no_wrap=index > 0,
            min_width=6 if index else 16,
        )
    return table


def figure(value: float | None) -> str:
    """A metric, or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def size(bytes_: int) -> str:
    """Bytes in the unit in which they are a number of a few digits."""
    value, unit = float(bytes_), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
