"""Progress on stderr: a bar on a terminal, a line now and then in a log.

What takes a while and has no count says what it is when it begins (`doing`): one line in a log, and
on a terminal a line that is there while it lasts, or stands beside the bar that is shown already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.spinner import Spinner
from rich.text import Text

LOG_EVERY_S = 30.0
"""Seconds between two lines where stderr is no terminal."""
BAR_WIDTH = 20


@dataclass
class Stage:
    """One stretch of work with a known or unknown total."""

    name: str
    total: int | None
    unit: str
    done: int = 0
    detail: str = ""
    doing: str = ""
    """What goes on while nothing can be counted; the next report of work replaces it."""
    started: float = field(default_factory=time.monotonic)
    first_done: int = 0
    """Work that was done before the stage started, and does not count for the speed."""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Time and count of the first and the latest report of work."""

    def advance(self, count: int) -> None:
        """Note that `count` more is done."""
        self.done += count
        if count:
            self.doing = ""
            self.arrivals = [*self.arrivals[:1], (time.monotonic(), self.done)]

    @property
    def per_second(self) -> float:
        """Speed since the start of the stage."""
        elapsed = time.monotonic() - self.started
        return (self.done - self.first_done) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the speed since the first report: models load before it."""
        if self.total is None or len(self.arrivals) < 2:
            return None
        (first_s, first), (last_s, last) = self.arrivals
        if last <= first or last_s <= first_s or self.done >= self.total:
            return None
        return (self.total - self.done) * (last_s - first_s) / (last - first)

    def line(self) -> str:
        """For a log."""
        if self.total is None:
            return f"{self.name}: {self.done:,} {self.unit} {self.detail}".rstrip()
        share = self.done / self.total if self.total else 1.0
        speed = self.per_second
        left = self.seconds_left
        eta = f", {_duration(left)} left" if left is not None else ""
        return (
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit} ({share:.0%}), "
            f"{speed:,.1f} {self.unit}/s{eta} {self.detail}"
        ).rstrip()


class Display:
    """Shows stages and sentences on stderr; stdout is left to data."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Set up; nothing is printed before the first stage."""
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._shown: StageHandle | None = None

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text, markup=False, soft_wrap=True)

    @property
    def _live(self) -> bool:
        """Whether what is shown can be replaced."""
        return self.console.is_terminal and not self.console.quiet

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Say what goes on while the block runs; `text` says it as in "reading the list"."""
        if not self._live:
            self.say(f"{text} …")
            yield
        elif self._shown is not None:
            self._shown.doing(text)
            yield
            self._shown.doing("")
        else:
            spinner = Spinner("dots", Text(text))
            with Live(spinner, console=self.console, transient=True, refresh_per_second=10) as live:
                live.refresh()  # not a tick later: an import may hold all threads until it is done
                yield

    @contextmanager
    def stage(
        self, name: str, total: int | None, unit: str, *, done: int = 0
    ) -> Iterator[StageHandle]:
        """Show a stage while the block runs."""
        stage = Stage(name, total, unit, done, first_done=done)
        if not self._live:
            handle = StageHandle(stage, None, None, self)
            yield handle
            if stage.done:
                self.say(stage.line())
            return
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),  # 80 columns have to hold the text beside it
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        with bar:
            task = bar.add_task(name, total=total, completed=done, detail="")
            self._shown = StageHandle(stage, bar, task, self)
            try:
                yield self._shown
            finally:
                self._shown = None
        if stage.done:
            self.say(stage.line())


class StageHandle:
    """What the work calls to report."""

    def __init__(
        self, stage: Stage, bar: Progress | None, task: int | None, display: Display
    ) -> None:
        """Tie a stage to its bar, if there is one."""
        self._stage, self._bar, self._task, self._display = stage, bar, task, display
        self._last_line = time.monotonic()

    def advance(self, count: int, detail: str = "") -> None:
        """Report that `count` more units of work are done."""
        stage = self._stage
        stage.advance(count)
        stage.detail = detail or stage.detail
        if self._bar is not None:
            self._show()
        elif not self._display.console.quiet and time.monotonic() - self._last_line >= LOG_EVERY_S:
            self._last_line = time.monotonic()
            self._display.say(stage.line())

    def detail(self, text: str) -> None:
        """Replace the text beside the bar."""
        self._stage.doing = ""
        self.advance(0, text)

    def doing(self, text: str) -> None:
        """Say what goes on until the next report of work: a line in a log, else beside the bar."""
        self._stage.doing = text
        if self._bar is not None:
            self._show()
            self._bar.refresh()
        elif text:
            self._display.say(f"{text} …")

    def _show(self) -> None:
        """Bring the bar up to date."""
        stage = self._stage
        assert self._bar is not None
        assert self._task is not None
        left = stage.seconds_left
        eta = f" · {_duration(left)} left" if left is not None else ""
        counted = f"{stage.done:,} {stage.unit} · {stage.per_second:,.1f}/s{eta} {stage.detail}"
        shown = stage.doing or counted
        self._bar.update(self._task, completed=stage.done, detail=shown)  # type: ignore[arg-type]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
