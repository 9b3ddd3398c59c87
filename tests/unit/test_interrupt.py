"""The first signal asks, the second insists; either way what is written stays."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.errors import InterruptedRunError, RayMlcError
from ray_mlc.runtime.interrupt import Deadline, Stop, listen, seconds_until
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.verify import verify

MakeJob = Callable[..., ScoreJob]


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Handlers as a command line has them; a process in the background ignores Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_insists(number: int) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), listen(60, said.append) as stop:  # noqa: PT012
        os.kill(os.getpid(), number)
        assert stop.requested
        assert not stop.overdue
        stop.check()
        assert said == ["stopping: what is in flight has 60 s to finish; once more stops at once"]
        os.kill(os.getpid(), number)
        pytest.fail("the second signal did not stop anything")
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with listen(60, lambda _: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested


def test_when_the_time_is_over_work_in_hand_is_dropped() -> None:
    stop = Stop(grace_s=0.05)
    stop.check()
    stop.request()
    while not stop.overdue:
        stop.check()
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        stop.check()


def test_another_thread_can_stop_the_main_one_at_once_while_it_waits() -> None:
    with pytest.raises(KeyboardInterrupt), listen(60, lambda _: None) as stop:  # noqa: PT012
        threading.Timer(0.1, stop.now).start()
        threading.Event().wait(30)
        pytest.fail("the wait was not ended")


class Signalled(LocalBackend):
    """Gets a signal after the second read, and some more while it goes on."""

    def __init__(self, again: bool = False) -> None:
        self.again = again

    def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
        for number, receipts in enumerate(super().process(*args, **options)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield receipts


def test_a_stopped_run_keeps_what_was_in_flight_and_goes_on(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, score_locally: Any
) -> None:
    output = tmp_path / "out"
    with pytest.raises(InterruptedRunError, match="interrupted after") as caught:
        score(score_job(tiny_corpus, output), Signalled(), Display(quiet=True))
    assert caught.value.exit_code == 130
    parts = sorted(output.glob("**/*.parquet"))
    written = verify(str(output), deep=True).total("written")
    assert f"interrupted after {written} of 240 rows" in str(caught.value)
    assert 0 < written < 240
    assert not (output / "_ray_mlc/lease.json").exists()
    assert not (output / "_SUCCESS").exists()
    score_locally(tiny_corpus, output)
    assert set(parts) < set(output.glob("**/*.parquet"))
    assert verify(str(output), deep=True).complete


def test_a_signal_after_the_last_unit_was_begun_lets_the_run_finish(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    class Late(LocalBackend):
        """Gets a signal when everything is done."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            yield from super().process(*args, **options)
            os.kill(os.getpid(), signal.SIGTERM)

    output = tmp_path / "out"
    score(score_job(tiny_corpus, output), Late(), Display(quiet=True))
    assert (output / "_SUCCESS").exists()


def test_without_grace_the_work_in_hand_is_dropped(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    class Impatient(LocalBackend):
        """Gets a signal in the middle of the first unit."""

        def process(self, *args: Any, scored: Any, **options: Any) -> Iterator[list[Receipt]]:
            def signalled(rows: int) -> None:
                scored(rows)
                if not options["stop"].requested:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

            return super().process(*args, scored=signalled, **options)

    job = score_job(tiny_corpus, tmp_path / "out", "limits.grace=0.001s")
    with pytest.raises(InterruptedRunError, match="interrupted after 0 of 240 rows"):
        score(job, Impatient(), Display(quiet=True))
    assert list((tmp_path / "out").glob("**/*.parquet")) == []


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
    found = seconds_until(time_of_day, datetime.datetime.fromisoformat(now))
    assert found == pytest.approx(hours * 3600)


@pytest.mark.parametrize(("now", "hours"), [("2026-03-28T23:00", 6), ("2026-10-24T23:00", 8)])
def test_a_clock_that_is_moved_in_the_night_moves_the_end_of_it(
    now: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        here = datetime.datetime.fromisoformat(now).astimezone()
        assert seconds_until("06:00", here) == pytest.approx(hours * 3600)
    finally:
        monkeypatch.undo()
        time.tzset()


class Overdue(LocalBackend):
    """It is time after the first read."""

    def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
        for receipts in super().process(*args, **options):
            yield receipts
            options["stop"].due(Deadline("06:00", time.monotonic()))


def test_a_run_that_is_late_stops_with_whole_parts_and_says_that_it_was_the_clock(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, score_locally: Any
) -> None:
    output = tmp_path / "out"
    job = score_job(tiny_corpus, output, "limits.stop_at=06:00")
    with pytest.raises(RayMlcError, match=r"stopped at 06:00 \(limits.stop_at\) after") as caught:
        score(job, Overdue(), Display(quiet=True))
    assert caught.value.exit_code == 1
    written = verify(str(output), deep=True).total("written")
    assert f"after {written} of 240 rows" in str(caught.value)
    assert 0 < written < 240
    score_locally(tiny_corpus, output)
    assert verify(str(output), deep=True).complete


def test_the_clock_asks_by_itself_also_when_it_was_time_before_the_work_began() -> None:
    for ahead_s in (0.05, -100.0):
        said: list[str] = []
        deadline = Deadline("06:00", time.monotonic() + ahead_s)
        with listen(60, said.append, deadline=deadline) as stop:
            while not said:
                time.sleep(0.01)
            assert stop.late
            assert not stop.overdue
        assert said[0].startswith("it is 06:00 (limits.stop_at), stopping: what is in flight has")


def test_a_signal_counts_for_more_than_the_clock() -> None:
    said: list[str] = []
    deadline = Deadline("06:00", time.monotonic() + 30)
    with listen(60, said.append, deadline=deadline) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.due(deadline)
        assert stop.requested
        assert not stop.late
    assert len(said) == 1
