"""The hours of a night: until when it works, and that nothing goes on with it in the morning.

Schedulers that repeat what has failed would begin a night again as soon as `limits.stop_at` has
ended it, and its next end would be a day away. So the first command of a night notes when that is;
later ones keep to it, and are refused for half of the time until the hour at which it had begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from ray_mlc.config import parse_time_of_day
from ray_mlc.errors import InterruptedRunError, RayMlcError
from ray_mlc.scoring.nights import LEDGER
from ray_mlc.storage import Storage

HOURS_FILE = f"{LEDGER}/hours.json"
GOES_ON = (RayMlcError.exit_code, InterruptedRunError.exit_code)
"""Exit codes after which the same command continues, and a scheduler may repeat it by itself."""


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


@contextmanager
def within_hours(
    storages: Sequence[Storage], stop_at: str | None, *, now: datetime | None = None
) -> Iterator[datetime | None]:
    """The end of the night of some outputs; None for none.

    Args:
        storages: The output folders.
        stop_at: `limits.stop_at`.
        now: With its time zone; None: as it is.

    Raises:
        RayMlcError: If it has ended, and the next one has not come.
    """
    ends = None
    if stop_at is not None:
        now = datetime.now(UTC) if now is None else now
        ends = min(end_of_night(storage, stop_at, now) for storage in storages)
    try:
        yield ends
    except RayMlcError as error:
        if error.exit_code not in GOES_ON:
            _forget(storages)
        raise
    _forget(storages)


def end_of_night(storage: Storage, stop_at: str, now: datetime) -> datetime:
    """When the night of an output ends; noted there if it begins now.

    Raises:
        RayMlcError: If it has ended, and the next one has not come.
    """
    noted = json.loads(storage.read(HOURS_FILE) or b"{}")
    if noted.get("stop_at") == stop_at:
        begun, ends = (datetime.fromisoformat(noted[name]) for name in ("begun", "ends"))
        if now < ends:
            return ends
        opens = ends + (begun + timedelta(days=1) - ends) / 2
        if now < opens:
            raise RayMlcError(
                f"{storage.uri}: the night ended at {stop_at} (limits.stop_at); from "
                f"{opens.astimezone():%H:%M} on the same command continues, and with --set "
                "limits.stop_at=null at once"
            )
    ends = now + timedelta(seconds=seconds_until(stop_at, now))
    hours = {"stop_at": stop_at, "begun": now.isoformat(), "ends": ends.isoformat()}
    storage.put(HOURS_FILE, json.dumps(hours).encode())
    return ends


def _forget(storages: Sequence[Storage]) -> None:
    """A night has come to its end by itself: the next one may begin at any time."""
    for storage in storages:
        storage.delete(HOURS_FILE)
