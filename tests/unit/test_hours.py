"""The hours of a night: its end stands when it begins, and a repeated command keeps to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.errors import (
    ConfigError,
    InterruptedRunError,
    LimitError,
    RayMlcError,
    ResourceError,
    StorageError,
)
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.hours import HOURS_FILE, seconds_until, within_hours
from ray_mlc.scoring.verify import verify
from ray_mlc.storage import Storage, open_storage

MakeJob = Callable[..., ScoreJob]
EVENING = datetime(2026, 11, 24, 22, tzinfo=UTC)


def at(text: str) -> datetime:
    """A time in the night of 24 November, or on a day after it: `06:01`, `1 22:00`."""
    days, _, clock = text.rpartition(" ")
    hour, minute = map(int, clock.split(":"))
    day = int(days or 0) + (hour < 22 and not days)
    return EVENING.replace(hour=hour, minute=minute) + timedelta(days=day)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An output folder."""
    return open_storage(str(tmp_path / "out"))


def stopped(storage: Storage, now: datetime, stop_at: str = "06:00Z") -> datetime:
    """A command that is stopped; when it was to end."""
    found: list[datetime] = []
    with suppress(InterruptedRunError), within_hours([storage], stop_at, now=now) as hours:
        hours.note()
        assert hours.ends is not None
        found.append(hours.ends)
        raise InterruptedRunError("stopped")
    return found[0]


@pytest.mark.parametrize(
    ("time_of_day", "now", "hours"),
    [
        ("06:00Z", "2026-11-24T22:00:00+00:00", 8),
        ("06:00Z", "2026-11-24T05:30:00+00:00", 0.5),
        ("06:00Z", "2026-11-24T06:00:00+00:00", 24),  # a night that is begun now has a day
        ("06:00+02:00", "2026-11-24T22:00:00+00:00", 6),
        ("23:30-05:00", "2026-11-24T04:00:00+00:00", 0.5),
    ],
)
def test_the_next_time_of_day_is_at_most_a_day_away(
    time_of_day: str, now: str, hours: float
) -> None:
    found = seconds_until(time_of_day, datetime.fromisoformat(now))
    assert found == pytest.approx(hours * 3600)


@pytest.mark.parametrize(("now", "hours"), [("2026-03-28T23:00", 6), ("2026-10-24T23:00", 8)])
def test_a_clock_that_is_moved_in_the_night_moves_the_end_of_it(
    now: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        here = datetime.fromisoformat(now).astimezone()
        assert seconds_until("06:00", here) == pytest.approx(hours * 3600)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_repeated_in_the_night_ends_with_the_night(storage: Storage) -> None:
    assert stopped(storage, EVENING) == at("06:00")
    noted = storage.read(HOURS_FILE)
    assert stopped(storage, at("05:59")) == at("06:00")
    assert storage.read(HOURS_FILE) == noted  # it has begun at 22:00


def test_a_clock_that_was_set_back_does_not_put_off_the_end(storage: Storage) -> None:
    stopped(storage, EVENING + timedelta(days=5))
    assert stopped(storage, EVENING) == at("06:00")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stop_at": "06:00Z", "begun": 3, "ends": 4}'])
def test_what_is_no_note_is_as_good_as_none(storage: Storage, text: str) -> None:
    storage.put(HOURS_FILE, text.encode())
    assert stopped(storage, EVENING) == at("06:00")


def test_of_several_outputs_none_is_noted_where_one_is_refused(tmp_path: Path) -> None:
    first, second = (open_storage(str(tmp_path / name)) for name in ("a", "b"))
    stopped(second, EVENING)
    with (
        pytest.raises(RayMlcError, match="the night ended"),
        within_hours([first, second], "06:00Z", now=at("06:01")),
    ):
        pass
    assert first.read(HOURS_FILE) is None


@pytest.mark.parametrize("error", [ConfigError("wrong"), ResourceError("no nodes")])
def test_a_night_in_which_nodes_did_not_come_is_not_begun_again_by_day(
    storage: Storage, error: RayMlcError
) -> None:
    stopped(storage, EVENING)
    with suppress(type(error)), within_hours([storage], "06:00Z", now=at("05:50")):
        raise error
    with pytest.raises(RayMlcError, match="the night ended"):
        stopped(storage, at("06:01"))


def test_a_store_that_is_away_at_the_end_takes_nothing_back(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str) -> None:
        raise StorageError("away")

    monkeypatch.setattr(storage, "delete", fails)
    with within_hours([storage], "06:00Z", now=EVENING) as hours:
        hours.note()


@pytest.mark.parametrize("now", ["06:00", "06:01", "13:59"])
def test_what_is_repeated_in_the_morning_is_refused(storage: Storage, now: str) -> None:
    stopped(storage, EVENING)
    with pytest.raises(RayMlcError, match=r"the night ended at 06:00Z.*limits.stop_at=null") as no:
        stopped(storage, at(now))
    assert no.value.exit_code == 1
    stopped(storage, at(now), stop_at="20:00Z")  # somebody who says so means it


@pytest.mark.parametrize("now", ["14:00", "1 22:00", "5 03:00"])
def test_the_next_night_has_an_end_of_its_own(storage: Storage, now: str) -> None:
    stopped(storage, EVENING)
    ends = stopped(storage, at(now))
    assert timedelta(0) < ends - at(now) <= timedelta(days=1)
    assert ends.astimezone(UTC).hour == 6


@pytest.mark.parametrize("stop_at", ["06:00Z", None])
@pytest.mark.parametrize("error", [None, LimitError("too many")])
def test_a_night_that_came_to_its_end_by_itself_keeps_nobody_from_the_next(
    storage: Storage, error: RayMlcError | None, stop_at: str | None
) -> None:
    stopped(storage, EVENING)
    try:
        with within_hours([storage], stop_at, now=at("04:00")):
            if error is not None:
                raise error
    except LimitError:
        pass
    assert stopped(storage, at("06:01")) == at("2 06:00")


def test_a_scheduler_that_repeats_a_night_in_the_morning_scores_nothing(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    output = tmp_path / "out"
    job = score_job(tiny_corpus, output, "limits.stop_at=06:00")
    now = datetime.now(UTC)
    hours = {"begun": now - timedelta(hours=8), "ends": now - timedelta(minutes=1)}
    noted = {"stop_at": "06:00", **{name: when.isoformat() for name, when in hours.items()}}
    open_storage(str(output)).put(HOURS_FILE, json.dumps(noted).encode())

    def run(job: ScoreJob) -> Any:
        return score(job, LocalBackend(), Display(quiet=True))

    with pytest.raises(RayMlcError, match="the night ended at 06:00"):
        run(job)
    assert not list(output.glob("**/*.parquet"))
    run(score_job(tiny_corpus, output))
    assert verify(str(output)).complete
    assert open_storage(str(output)).read(HOURS_FILE) is None
