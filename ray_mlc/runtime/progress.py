"""Progress on stderr: a bar on a terminal, a line now and then in a log, or JSON for programs.

What takes a while and has no count says what it is when it begins (`doing`): one line in a log, and
on a terminal a line that is there while it lasts, or stands beside the bar that is shown already.
Work that knows more of itself than a count has it shown below the bar (`Shown`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console, RenderableType
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
JSON_EVERY_S = 5.0
"""Seconds between two lines for programs."""
BAR_WIDTH = 20

Mode = Literal["auto", "rich", "plain", "json", "none"]
"""How progress is shown; `auto`: a bar on a terminal, else lines."""


@dataclass(frozen=True)
class Shown:
    """What work knows of itself beside its count."""

    lines: Sequence[str] = ()
    """For people, below the bar."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs."""
    per_second: float | None = None
    """Speed of late; None: the mean since the start."""
    seconds_left: float | None = None
    """Time that the rest takes; None: it cannot be said yet."""


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
    shown: Shown | None = None
    """What the work has said of itself last."""

    def advance(self, count: int) -> None:
        """Note that `count` more is done."""
        self.done += count
        if count:
            self.doing = ""
            self.arrivals = [*self.arrivals[:1], (time.monotonic(), self.done)]

    def begin_again(self) -> None:
        """Note that the work had to begin again: waiting for that is no speed."""
        self.arrivals = []

    @property
    def per_second(self) -> float:
        """Speed: what the work says, or the mean since the start of the stage."""
        if self.shown is not None and self.shown.per_second is not None:
            return self.shown.per_second
        elapsed = time.monotonic() - self.started
        return (self.done - self.first_done) / elapsed if elapsed > 0 else 0.0

    @property
    def mean_per_second(self) -> float | None:
        """Speed since the first report: models load before it. None: not known yet."""
        if len(self.arrivals) < 2:
            return None
        (first_s, first), (last_s, last) = self.arrivals
        return (last - first) / (last_s - first_s) if last > first and last_s > first_s else None

    @property
    def mean_seconds_left(self) -> float | None:
        """Time that the rest takes at the speed since the first report."""
        speed = self.mean_per_second
        if self.total is None or speed is None or self.done >= self.total:
            return None
        return (self.total - self.done) / speed

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes: as the work says, or by its mean speed."""
        return self.mean_seconds_left if self.shown is None else self.shown.seconds_left

    @property
    def eta(self) -> str:
        """The same for people; empty where it cannot be said.

        What is worked on may be far ahead of what is counted, as rows are of the parts that hold
        them: "0 s left" beside a quarter of the rows would look wrong.
        """
        left = self.seconds_left
        if left is None:
            return ""
        return f"{duration(left)} left" if left > 0.5 else "almost done"

    def line(self) -> str:
        """For a log."""
        more = f"; {' · '.join(self.shown.lines)}" if self.shown and self.shown.lines else ""
        if self.total is None:
            return f"{self.name}: {self.done:,} {self.unit} {self.detail}".rstrip() + more
        share = self.done / self.total if self.total else 1.0
        speed = self.per_second
        eta = f", {self.eta}" if self.eta else ""
        return (
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit} ({share:.0%}), "
            f"{speed:,.1f} {self.unit}/s{eta} {self.detail}"
        ).rstrip() + more

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        left, shown = self.seconds_left, self.shown
        return {
            "stage": self.name,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "per_second": round(self.per_second, 3),
            "seconds_left": None if left is None else round(left, 1),
            **({"detail": self.detail} if self.detail else {}),
            **(shown.facts if shown is not None else {}),
        }


class Display:
    """Shows stages and sentences on stderr; stdout is left to data."""

    def __init__(self, *, quiet: bool = False, progress: Mode = "auto") -> None:
        """Set up; nothing is printed before the first stage.

        Args:
            quiet: Say nothing at all.
            progress: How stages are shown; `none`: not, only sentences are.
        """
        terminal = True if progress == "rich" else None
        self.console = Console(
            stderr=True, quiet=quiet, highlight=False, emoji=False, force_terminal=terminal
        )
        self.progress = progress
        self._shown: StageHandle | None = None

    def say(self, text: str) -> None:
        """Print a sentence."""
        if self.progress == "json":
            self.tell("said", {"text": text})
        else:
            self._print(text)

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """Print a line for programs."""
        self._print(json.dumps({"event": event, **facts}, ensure_ascii=False))

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Whether what is shown can be replaced."""
        asked = self.progress in ("auto", "rich")
        return asked and self.console.is_terminal and not self.console.quiet

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Say what goes on while the block runs; `text` says it as in "reading the list"."""
        if not self.live:
            self.begins(text)
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

    def begins(self, text: str) -> None:
        """Say once what begins."""
        if self.progress == "json":
            self.tell("doing", {"text": text})
        elif self.progress != "none":
            self.say(f"{text} …")

    def report(self, stage: Stage, *, over: bool = False) -> None:
        """A line about a stage."""
        if self.progress == "json":
            self.tell("done" if over else "progress", stage.to_dict())
        elif self.progress != "none":
            self.say(stage.line())

    @property
    def every_s(self) -> float:
        """Seconds between two lines about a stage."""
        return JSON_EVERY_S if self.progress == "json" else LOG_EVERY_S

    def _over(self, stage: Stage) -> None:
        """The last line about a stage: what it has done, and not how it stands."""
        stage.shown = None
        if stage.done:
            self.report(stage, over=True)

    @contextmanager
    def stage(
        self, name: str, total: int | None, unit: str, *, done: int = 0
    ) -> Iterator[StageHandle]:
        """Show a stage while the block runs."""
        stage = Stage(name, total, unit, done, first_done=done)
        if not self.live:
            yield StageHandle(stage, None, None, self)
            self._over(stage)
            return
        bar = _Bar(
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
        self._over(stage)


class _Bar(Progress):
    """A bar with lines below it."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the lines."""
        yield self.make_tasks_table(self.tasks)
        for line in self.lines:
            yield Text(f"  {line}", style="dim")


class StageHandle:
    """What the work calls to report."""

    def __init__(self, stage: Stage, bar: _Bar | None, task: int | None, display: Display) -> None:
        """Tie a stage to its bar, if there is one."""
        self.stage = stage
        self._bar, self._task, self._display = bar, task, display
        self._last_line = time.monotonic()

    def advance(self, count: int, detail: str = "", *, shown: Shown | None = None) -> None:
        """Report that `count` more units of work are done.

        Args:
            count: Units of work.
            detail: A few words beside the count; empty: those of before.
            shown: How the work stands; None: as before.
        """
        stage, display = self.stage, self._display
        stage.advance(count)
        stage.detail = detail or stage.detail
        if shown is not None:
            stage.shown, stage.doing = shown, ""
        if self._bar is not None:
            self._show()
        elif not display.console.quiet and time.monotonic() - self._last_line >= display.every_s:
            self._last_line = time.monotonic()
            display.report(stage)

    def detail(self, text: str) -> None:
        """Replace the text beside the bar."""
        self.stage.doing = ""
        self.advance(0, text)

    def doing(self, text: str) -> None:
        """Say what goes on until the next report of work: a line in a log, else beside the bar."""
        self.stage.doing = text
        if self._bar is not None:
            self._show()
            self._bar.refresh()
        elif text:
            self._display.begins(text)

    def _show(self) -> None:
        """Bring the bar up to date."""
        stage = self.stage
        assert self._bar is not None
        assert self._task is not None
        eta = f" · {stage.eta}" if stage.eta else ""
        counted = f"{stage.done:,} {stage.unit} · {stage.per_second:,.1f}/s{eta} {stage.detail}"
        shown = stage.doing or counted
        self._bar.lines = stage.shown.lines if stage.shown is not None and not stage.doing else ()
        self._bar.update(self._task, completed=stage.done, detail=shown)  # type: ignore[arg-type]


def duration(seconds: float) -> str:
    """Seconds in the unit in which they are a number of a few digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
