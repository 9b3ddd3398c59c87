"""Stop with grace: the first Ctrl-C or SIGTERM asks, the second insists; so does a time of day.

Only the driver listens. What is in flight is finished while `limits.grace` lasts and dropped after
it; either way the output holds whole parts only, and the same command continues.
"""

from __future__ import annotations

import datetime
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ray_mlc.errors import RayMlcError


@dataclass(frozen=True)
class Deadline:
    """When a run is to stop by itself."""

    text: str
    """`limits.stop_at`."""
    at_s: float
    """The moment, by the monotonic clock."""

    @classmethod
    def at(cls, text: str, moment: datetime.datetime) -> Deadline:
        """At a moment, which has its time zone."""
        left = moment.timestamp() - datetime.datetime.now(datetime.UTC).timestamp()
        return cls(text, time.monotonic() + left)


class Stop:
    """Whether the user has asked to stop, and how long there is still time for it."""

    def __init__(self, grace_s: float = 0.0, say: Callable[[str], None] = lambda _: None) -> None:
        """Nothing has been asked yet."""
        self._grace_s, self._say = grace_s, say
        self._asked_s: float | None = None
        self._at_once = False
        self._last_words = False
        self.missed: Deadline | None = None
        """The deadline, if it was the clock that asked first."""

    @property
    def requested(self) -> bool:
        """Whether to begin nothing new."""
        return self._asked_s is not None

    @property
    def overdue(self) -> bool:
        """Whether to drop what is in flight."""
        return self._asked_s is not None and time.monotonic() - self._asked_s > self._grace_s

    def request(self) -> None:
        """Ask to stop.

        Raises:
            KeyboardInterrupt: If that was asked before, or `now` was called.
        """
        if self.requested or self._at_once:
            raise KeyboardInterrupt
        self._ask("stopping")

    def due(self, deadline: Deadline) -> None:
        """Ask to stop because it is time; from any thread."""
        if not self.requested:
            self.missed = deadline
            self._ask(f"it is {deadline.text} (limits.stop_at), stopping")

    def _ask(self, why: str) -> None:
        self._asked_s = time.monotonic()
        if self._last_words:
            self._say("all rows are written, the end is near; once more stops at once")
            return
        self._say(
            f"{why}: what is in flight has {self._grace_s:.0f} s to finish; once more stops at once"
        )

    def nothing_in_flight(self) -> None:
        """Take note that all that is left to do is to account for it: a request changes nothing."""
        self._last_words = True

    def check(self) -> None:
        """Drop the work in hand when the time is over.

        Raises:
            KeyboardInterrupt: If it is.
        """
        if self.overdue:
            raise KeyboardInterrupt

    def now(self) -> None:
        """Raise KeyboardInterrupt in the main thread, from whichever thread."""
        self._at_once = True
        interrupt_main_thread()


@contextmanager
def listen(
    grace_s: float, say: Callable[[str], None], *, deadline: Deadline | None = None
) -> Iterator[Stop]:
    """Turn Ctrl-C, SIGTERM and a deadline into a request for the block; elsewhere signals raise.

    In a thread other than the main one Python allows no handlers: no signal then asks.
    """
    stop = Stop(grace_s, say)
    with _alarm(stop, deadline), _handlers(stop):
        yield stop


@contextmanager
def _alarm(stop: Stop, deadline: Deadline | None) -> Iterator[None]:
    if deadline is None:
        yield
        return
    left = max(0.0, deadline.at_s - time.monotonic())
    timer = threading.Timer(left, stop.due, [deadline])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _handlers(stop: Stop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.request()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        # a process in the background of a script ignores SIGINT, and shall
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def completing(say: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """How the block has ended stands, whatever Ctrl-C interrupts while it clears up.

    What comes after a result that was put into the list, or after an error, such as the end of a
    Ray, takes seconds, and people lose patience.

    Args:
        say: Told if there is a result all the same.

    Raises:
        RayMlcError: What the block had ended with.
    """
    results: list[dict[str, Any]] = []
    try:
        yield results
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt.__context__, RayMlcError):
            raise interrupt.__context__ from None
        if not results:
            raise
        say("interrupted when all was done: the result is complete")


def interrupt_main_thread() -> None:
    """Send the main thread a signal: what `_thread.interrupt_main` simulates ends no wait.

    SIGTERM where it is handled, because a process in the background may ignore SIGINT.
    """
    number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
    signal.pthread_kill(threading.main_thread().ident or 0, number)
