"""The hours of a night: until when it works, and that nothing goes on with it in the morning.

Schedulers that repeat what has failed would begin a night again as soon as `limits.stop_at` has
ended it, and its next end would be a day away. So the first command of a night notes when that is;
later ones keep to it, and are refused for half of the time until the hour at which it had begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from ray_mlc.config import parse_time_of_day
from ray_mlc.errors import LimitError, RayMlcError, StorageError
from ray_mlc.scoring.nights import LEDGER
from ray_mlc.storage import Storage

HOURS_FILE = f"{LEDGER}/hours.json"


def seconds_until(time_of_day: str, now: datetime) -> float:
    """Seconds from `now` to the next time that it is `time_of_day`.

    Args:
        time_of_day: As `limits.stop_at` has it; without an offset by this machine's clock.
        now: A time with its time zone.
    """
    wanted = parse_time_of_day(time_of_day)
    here = now.astimezone(wanted.tzinfo)  # None: this machine's
    moments = (datetime.combine(here.date() + timedelta(days=days), wanted) for days in range(3))
    return next(left for moment in moments if (left := moment.timestamp() - now.timestamp()) > 0)


class Hours:
    """The night of some outputs, which ends at one moment."""

    def __init__(self, storages: Sequence[Storage], stop_at: str | None, now: datetime) -> None:
        """See what earlier commands have noted; nothing is written yet.

        Raises:
            RayMlcError: If the night has ended, and the next one has not come.
        """
        self._storages, self._stop_at, self._now = storages, stop_at, now
        self._new: list[Storage] = []
        self.ends: datetime | None = None
        """Its end; None for none."""
        if stop_at is None:
            return
        ends = []
        for storage in storages:
            if (noted := _noted_end(storage, stop_at, now)) is None:
                self._new.append(storage)
            else:
                ends.append(noted)
        self._next = now + timedelta(seconds=seconds_until(stop_at, now))
        self.ends = min([*ends, self._next])

    def note(self) -> None:
        """Write down the end of a night that begins."""
        while self._new:
            hours = {
                "stop_at": self._stop_at,
                "begun": self._now.isoformat(),
                "ends": self._next.isoformat(),
            }
            self._new.pop().put(HOURS_FILE, json.dumps(hours).encode())

    def forget(self) -> None:
        """The night has come to its end by itself: the next one may begin at any time."""
        for storage in self._storages:
            with suppress(StorageError):  # the work is done; by the next evening the note is void
                storage.delete(HOURS_FILE)


@contextmanager
def within_hours(
    storages: Sequence[Storage], stop_at: str | None, *, now: datetime | None = None
) -> Iterator[Hours]:
    """The hours of the block.

    Args:
        storages: The output folders.
        stop_at: `limits.stop_at`.
        now: With its time zone; None: as it is.

    Raises:
        RayMlcError: As `Hours`.
    """
    hours = Hours(storages, stop_at, datetime.now(UTC) if now is None else now)
    try:
        yield hours
    except LimitError:  # all is written; after any other error a scheduler may come again
        hours.forget()
        raise
    hours.forget()


def _noted_end(storage: Storage, stop_at: str, now: datetime) -> datetime | None:
    """The end of a night that has begun; None if it begins now.

    Raises:
        RayMlcError: If it has ended, and the next one has not come.
    """
    noted = _decode(storage.read(HOURS_FILE))
    if noted is None or noted[0] != stop_at:
        return None
    _, begun, ends = noted
    if begun <= now < ends:  # before: somebody has set a clock back
        return ends
    opens = ends + (begun + timedelta(days=1) - ends) / 2
    if ends <= now < opens:
        raise RayMlcError(
            f"{storage.uri}: the night ended at {stop_at} (limits.stop_at); from "
            f"{opens.astimezone():%H:%M} on the same command continues, and with --set "
            "limits.stop_at=null at once"
        )
    return None


def _decode(data: bytes | None) -> tuple[str, datetime, datetime] | None:
    """What was noted: the time of day, when the night began, when it ends; None for what is not."""
    try:
        found = json.loads(data or b"")
        begun, ends = (datetime.fromisoformat(found[name]) for name in ("begun", "ends"))
        if begun.tzinfo is None or ends.tzinfo is None:
            return None
        return str(found["stop_at"]), begun, ends
    except (ValueError, TypeError, KeyError):
        return None
