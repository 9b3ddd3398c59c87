"""Stop with grace: the first Ctrl-C or SIGTERM asks, the second insists.

Only the driver listens. What is in flight is finished while `limits.grace` lasts and dropped after
it; either way the output holds whole parts only, and the same command continues.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray_mlc.errors import RayMlcError


class Stop:
    """Whether the user has asked to stop, and how long there is still time for it."""

    def __init__(self, grace_s: float = 0.0, say: Callable[[str], None] = lambda _: None) -> None:
        """Nothing has been asked yet."""
        self._grace_s, self._say = grace_s, say
        self._asked_s: float | None = None
        self._at_once = False
        self._last_words = False

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
        self._asked_s = time.monotonic()
        if self._last_words:
            self._say("all rows are written, the end is near; once more stops at once")
            return
        self._say(
            f"stopping: what is in flight has {self._grace_s:.0f} s to finish; "
            "once more stops at once"
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
def listen(grace_s: float, say: Callable[[str], None]) -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a request for the block; elsewhere they raise as ever.

    In a thread other than the main one Python allows no handlers: the request then never comes.
    """
    stop = Stop(grace_s, say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
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
        yield stop
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
