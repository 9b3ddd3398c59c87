"""How a night stands while it goes on: speed, time left, and what is waiting on what.

Receipts say what is committed; between two of them processes say how much they have scored, and
where their blocks are. Both become one `Standing`, which a terminal shows, a log says now and then,
and `_ray_mlc/progress.json` tells everybody who asks from elsewhere.

    OUT/_ray_mlc/progress.json     written every few seconds, gone when the night has ended

Time left is work left by speed. Work is decoded bytes, as far as they are read
(`forecast.work_of`), which footers say of every unit: the longest reads come first, so rows would
promise too much. Speed is a mean that forgets slowly and begins with what the engine was measured
at, so that neither the first units nor a lump of receipts makes it jump.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_mlc.errors import RayMlcError
from ray_mlc.scoring.lease import read_owner
from ray_mlc.scoring.nights import LEDGER, now, to_json
from ray_mlc.storage import Storage

log = logging.getLogger(__name__)

PROGRESS_FILE = f"{LEDGER}/progress.json"
EVERY_S = 5.0
"""Seconds between two writes of the file."""
FRESH_S = 20.0
"""Age, by two clocks that may differ, up to which the file is believed without a second look."""
MEMORY_S = 300.0
"""Seconds over which speed is averaged, roughly."""
TRUST_S = 30.0
"""Seconds of the night that the speed expected of it counts for."""
END_TO_END = 0.85
"""Share of the speed that one engine was measured at alone that each of several actors has, with
reading and writing beside them: benchmarks/results/2026-11-24-end-to-end.md has 0.77 to 0.84."""
PATIENCE_S = 10.0
"""Seconds of work before a speed is believed of which nothing was expected."""
LOOKS = 60
"""Looks at the actors that `busy` is the mean of."""
BUSY = 0.9
"""Share of the actors at work from which on nothing holds them up."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of rows in each stage."""

    reading: int = 0
    waiting: int = 0
    """Read, and not begun by an actor."""
    scoring: int = 0
    scored: int = 0
    """And not begun to be written."""
    writing: int = 0

    def __str__(self) -> str:
        written = self.scored + self.writing
        return (
            f"blocks: {self.reading} being read, {self.waiting} wait for an actor, "
            f"{self.scoring} being scored, {written} to be written"
        )


@dataclass(frozen=True)
class Vitals:
    """What the processes of a night say of themselves between two receipts."""

    rows: int = 0
    """Rows that have been through the model."""
    real_tokens: int = 0
    """Their tokens, as far as they were scored."""
    padded_tokens: int = 0
    """Tokens computed, padding included."""
    actors: int = 0
    """Processes that have loaded the model and proven it."""
    blocks: Blocks | None = None
    """None: one process does one thing after the other."""
    work: int = 0
    """Which of a pass's models is spoken of."""


class Pace:
    """Speed of something that is counted, as a mean that forgets."""

    def __init__(self, expected_per_s: float | None = None) -> None:
        """Begin with an expectation, or with none."""
        self._seconds = TRUST_S if expected_per_s else 0.0
        self._work = self._seconds * (expected_per_s or 0.0)
        self._patience_s = 0.0 if expected_per_s else PATIENCE_S
        self._last: tuple[float, float] | None = None

    def note(self, work: float, now_s: float) -> None:
        """Take note of the total so far; the first time the clock starts."""
        if self._last is not None:
            seconds = max(0.0, now_s - self._last[0])
            kept = math.exp(-seconds / MEMORY_S)
            self._seconds = self._seconds * kept + seconds
            self._work = self._work * kept + max(0.0, work - self._last[1])
            self._patience_s -= seconds
        self._last = now_s, work

    @property
    def per_s(self) -> float | None:
        """Speed; None: not known yet."""
        if self._patience_s > 0 or self._work <= 0 or self._seconds <= 0:
            return None
        return self._work / self._seconds


class Crew:
    """How many of the actors are at work, and what the others wait for."""

    def __init__(self) -> None:
        """Nobody was seen yet."""
        self._looks: deque[tuple[float, int, int]] = deque(maxlen=LOOKS)
        self._blocks: Blocks | None = None

    def look(self, vitals: Vitals) -> None:
        """Take note of where the blocks are."""
        self._blocks = vitals.blocks
        if vitals.blocks is not None and vitals.actors:
            blocks = vitals.blocks
            working = min(blocks.scoring, vitals.actors) / vitals.actors
            self._looks.append((working, blocks.waiting, blocks.scored + blocks.writing))

    @property
    def busy(self) -> float | None:
        """Mean share of the actors that were at work; None: nothing is known of it."""
        if not self._looks:
            return None
        return sum(look[0] for look in self._looks) / len(self._looks)

    def waits_for(self, actors: int, *, tokenizers: bool) -> str | None:
        """Stage that holds the others up; None: none does, or it cannot be said.

        Args:
            actors: Actors that are ready.
            tokenizers: Whether tokenizing is a stage of its own.
        """
        busy, blocks = self.busy, self._blocks
        if busy is None or blocks is None:
            return None
        if busy >= BUSY:
            return "scoring"
        if not blocks.reading and not blocks.waiting:
            return None  # the last blocks: there is nothing to begin
        waiting, written = (sum(look[k] for look in self._looks) / len(self._looks) for k in (1, 2))
        if waiting < 0.5:
            return "reading"
        if written >= 2 * actors:
            return "writing"
        return "tokenizing" if tokenizers else None


@dataclass(frozen=True)
class Standing:
    """A night at one moment."""

    rows_planned: int
    """Rows of the run, all nights."""
    rows_done: int
    """Written or set aside by now, by whichever process."""
    units_planned: int
    units_done: int
    rows_set_aside: int
    """By this process, with their units."""
    rows_bad: int
    """Written by this process with a status that counts as bad."""
    rows_per_s: float | None
    """Through the model, lately."""
    tokens_per_s: float | None
    """Through the model, lately; padding not counted."""
    padding: float | None
    """Share of the computed tokens that was padding."""
    actors_ready: int
    actors: int
    """Actors asked for."""
    busy: float | None
    """Share of the actors at work, over about a minute."""
    waits_for: str | None
    """Stage that the others wait for: reading, tokenizing, scoring or writing."""
    blocks: Blocks | None
    """Where the blocks are."""
    seconds: float
    """Since the actors were asked for."""
    seconds_left: float | None
    """Until all is scored; None: not known yet."""

    @property
    def phase(self) -> str:
        """`starting` until an actor is ready, then `scoring`."""
        return "scoring" if self.actors_ready else "starting"

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        values = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return {"phase": self.phase, **values}

    def speed(self) -> str:
        """Tokens and padding."""
        said = []
        if self.tokens_per_s is not None:
            said.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.padding is not None:
            said.append(f"padding {self.padding:.1%}")
        return ", ".join(said)

    def crew(self) -> str:
        """The actors, and what holds them up."""
        said = f"{self.actors_ready} of {self.actors} actors ready"
        if self.busy is not None:
            said += f", {self.busy:.0%} busy"
        match self.waits_for:
            case "scoring" | None:
                return said
            case stage:
                return f"{said}: they wait for {stage}"

    def aside(self) -> str:
        """What did not become rows with scores."""
        said = f"{self.rows_set_aside:,} rows set aside"
        return f"{said}, {self.rows_bad:,} bad" if self.rows_bad else said

    def lines(self) -> list[str]:
        """What stands below a bar, or behind a count in a log."""
        first = [self.speed(), self.crew(), self.aside()]
        lines = [" · ".join(item for item in first if item)]
        return lines if self.blocks is None else [*lines, str(self.blocks)]


def ends_at(seconds_left: float, here: datetime) -> str:
    """The time of day at which work ends, for people; with its date if that is not today.

    Args:
        seconds_left: From `here` on.
        here: The time where the reader is.
    """
    end = here + timedelta(seconds=seconds_left)
    return f"{end:%H:%M}" if end.date() == here.date() else f"{end:%Y-%m-%d %H:%M}"


@contextmanager
def published(
    storage: Storage,
    describe: Callable[[], dict[str, Any]],
    *,
    token: str | None,
    every_s: float = EVERY_S,
) -> Iterator[None]:
    """Keep the file up to date while the block runs, from a thread, and remove it at its end.

    A store that refuses or hangs costs nothing but the file.

    Args:
        storage: The output folder.
        describe: The content.
        token: Of the lease that the night holds; None: none.
        every_s: Seconds between two writes.
    """
    done = threading.Event()
    number = 0

    def write() -> None:
        nonlocal number
        while not done.wait(every_s):
            content = {"token": token, "number": number, "at": now(), **describe()}
            try:
                storage.put(PROGRESS_FILE, to_json(content))
            except (RayMlcError, OSError) as error:
                log.debug("progress is not written: %s", error)
            number += 1

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=2.0)
        if number and not thread.is_alive():
            _remove(storage, token)


def _remove(storage: Storage, token: str | None) -> None:
    """Remove the file, if it still is ours."""
    try:
        found = _read(storage)
        if found is not None and found.get("token") == token:
            storage.delete(PROGRESS_FILE)
    except (RayMlcError, OSError) as error:
        log.debug("progress is not removed: %s", error)


def _read(storage: Storage) -> dict[str, Any] | None:
    data = storage.read(PROGRESS_FILE)
    try:
        found = None if data is None else json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read_progress(storage: Storage, *, wait_s: float = 2.5 * EVERY_S) -> dict[str, Any] | None:
    """How a night stands that is at work now; None if none is.

    The file of one that was killed stays. It is told by its lease, which is gone, another's, or
    that of a dead process of this host. Else its age tells; where that says nothing, because
    clocks differ or the process was another host's, it is read until it changes.

    Args:
        storage: The output folder.
        wait_s: Longest time that this takes.
    """
    found = _read(storage)
    if found is None:
        return None
    if (token := found.get("token")) is not None:
        owner = read_owner(storage)
        if owner is None or owner.token != token or owner.is_dead:
            return None
    deadline = time.monotonic() + wait_s
    age_s = _age_s(found)
    while age_s is None or not -FRESH_S / 4 < age_s < FRESH_S:
        if time.monotonic() >= deadline:
            return None
        time.sleep(min(1.0, wait_s / 10))
        later = _read(storage)
        if later is None:
            return None
        if later.get("number") != found.get("number"):
            return later
    return found


def _age_s(found: dict[str, Any]) -> float | None:
    try:
        written = datetime.strptime(str(found["at"]), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return None
    return (datetime.now(UTC) - written).total_seconds()
