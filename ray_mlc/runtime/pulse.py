"""What goes on in a run on Ray: signs of life, what is in flight, and what kills its process.

Receipts tell the driver what is committed, but a unit can take minutes. An actor without state that
matters, the pulse, is told about each block as it goes through the stages; the driver's watch asks
it every second. If the pulse is lost, nothing but these comforts is.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from ray_mlc.runtime.interrupt import Stop
from ray_mlc.runtime.nodes import beside_driver
from ray_mlc.scoring.standing import Blocks, Vitals

READING, READ, SCORING = "reading", "waiting to score", "scoring"
SCORED, WRITING = "waiting to write", "writing"
IN_FLIGHT = (SCORING, SCORED, WRITING)
"""Stages between the start of a block's scoring and its commit."""
ANSWER_S = 30.0
"""Longest wait for an answer of the pulse, which may just be moving to another node."""


@dataclass(frozen=True)
class State:
    """What the pulse knows."""

    events: int = 0
    """Reports so far: more of them are a sign of life."""
    works: tuple[Vitals, ...] = (Vitals(),)
    """What each model has scored, and where the blocks are."""
    in_flight: int = 0
    """Blocks between the start of their scoring and their commit."""
    oldest: str = ""
    """Stage and name of the block that has been in its stage for longest."""

    @property
    def actors(self) -> int:
        """Actors that have loaded their models."""
        return self.works[0].actors


class Pulse:
    """The actor's class; see the module."""

    def __init__(self, works: int = 1) -> None:
        """Nothing has happened yet.

        Args:
            works: Models that each block goes through.
        """
        self._events = self._actors = 0
        self._scored = np.zeros((works, 3), np.int64)
        self._stopping = False
        self._stages: dict[str, str] = {}
        self._attempts: dict[str, tuple[str, int]] = {}

    def ready(self) -> None:
        """An actor has loaded its model."""
        self._events += 1
        self._actors += 1

    def beat(self, rows: int, real_tokens: int = 0, padded_tokens: int = 0, work: int = 0) -> None:
        """An actor has scored some more rows with one of its models, with so many tokens."""
        self._events += 1
        self._scored[work] += rows, real_tokens, padded_tokens

    def enter(self, name: str, stage: str) -> tuple[bool, int]:
        """A block enters a stage: whether to drop it, and how often that stage was begun before.

        The count starts again with the next stage, so it is of processes that died in this one.
        """
        self._events += 1
        self._stages.pop(name, None)  # the newest goes last
        self._stages[name] = stage
        last, attempts = self._attempts.get(name, (stage, 0))
        if last != stage:
            attempts = 0
        self._attempts[name] = stage, attempts + 1
        return self._stopping, attempts

    def pass_on(self, name: str, before: str, after: str) -> None:
        """A block waits for its next stage, unless it has got there already: words overtake."""
        self._events += 1
        if self._stages.get(name) == before:
            self._stages.pop(name)
            self._stages[name] = after

    def leave(self, name: str) -> None:
        """A block is committed, or a unit of it read or scored on its own."""
        self._events += 1
        self._stages.pop(name, None)
        self._attempts.pop(name, None)

    def stop(self) -> None:
        """Whoever asks from now on is told to drop its block."""
        self._stopping = True

    def state(self) -> State:
        """See `State`."""
        count = Counter(self._stages.values())
        blocks = Blocks(*(count[stage] for stage in (READING, READ, SCORING, SCORED, WRITING)))
        oldest = next(iter(self._stages.items()), ("", ""))
        return State(
            self._events,
            tuple(
                Vitals(rows, real, padded, self._actors, blocks, work)
                for work, (rows, real, padded) in enumerate(self._scored.tolist())
            ),
            sum(count[stage] for stage in IN_FLIGHT),
            f"{oldest[1]} {oldest[0]}".strip(),
        )


class Reporter:
    """A process's way to the pulse; does without where the pulse does not answer."""

    def __init__(self, pulse: Any) -> None:
        """Take note of the actor's handle."""
        self._pulse = pulse

    def ready(self) -> None:
        """See `Pulse.ready`."""
        self._pulse.ready.remote()

    def beat(self, rows: int, real_tokens: int, padded_tokens: int, work: int = 0) -> None:
        """See `Pulse.beat`."""
        self._pulse.beat.remote(rows, real_tokens, padded_tokens, work)

    def pass_on(self, name: str, before: str, after: str) -> None:
        """See `Pulse.pass_on`."""
        self._pulse.pass_on.remote(name, before, after)

    def enter(self, name: str, stage: str) -> tuple[bool, int]:
        """See `Pulse.enter`."""
        with suppress(ray.exceptions.RayError):
            answer: tuple[bool, int] = ray.get(
                self._pulse.enter.remote(name, stage), timeout=ANSWER_S
            )
            return answer
        return False, 0

    def tell(self, name: str, stage: str) -> None:
        """As `enter`, for a stage in which nothing is dropped: nobody waits for an answer."""
        self._pulse.enter.remote(name, stage)

    def leave(self, name: str) -> None:
        """See `Pulse.leave`."""
        self._pulse.leave.remote(name)


def start_pulse(works: int = 1) -> Any:
    """Start the actor beside the driver, where it lives as long as the run."""
    return beside_driver(Pulse, works, max_restarts=-1, max_task_retries=-1)


class Watch:
    """The driver's thread that asks the pulse: passes on progress, ends stuck and stopped runs."""

    def __init__(
        self, pulse: Any, timeout_s: float, scored: Callable[[Vitals], None], stop: Stop
    ) -> None:
        """Begin to watch; the clock starts now."""
        self._pulse, self._timeout_s, self._scored, self._stop = pulse, timeout_s, scored, stop
        self._closed = threading.Event()
        self._alive_s = time.monotonic()
        self.stuck_in: str | None = None
        """The stage that was waited for too long."""
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def alive(self) -> None:
        """Note a sign of life."""
        self._alive_s = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        seen, told = State(), False
        while not self._closed.wait(0.5 if self._stop.requested else 1.0):
            before = seen
            with suppress(ray.exceptions.RayError):
                if self._stop.requested and not told:
                    self._pulse.stop.remote()
                    told = True
                seen = ray.get(self._pulse.state.remote(), timeout=5)
                if seen != before:
                    self.alive()
            # a display that fails, on a full disk for instance, must not end the guard
            with suppress(Exception, SystemExit):
                for vitals in seen.works:
                    self._scored(vitals)
            drained = told and not seen.in_flight and seen == before
            if drained or self._stop.overdue:
                self._stop.now()
                return
            if time.monotonic() - self._alive_s > self._timeout_s:
                self.stuck_in = self._stage(seen)
                self._stop.now()
                return

    @staticmethod
    def _stage(seen: State) -> str:
        if not seen.actors:
            return "starting the actors"
        return seen.oldest or "waiting for work"
