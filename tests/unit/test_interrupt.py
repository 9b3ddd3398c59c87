"""The first signal asks, the second insists; either way what is written stays."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.errors import InterruptedRunError
from ray_mlc.runtime.interrupt import Stop, completing, listen
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


class Ending(LocalBackend):
    """Gets Ctrl-C again when all is written, and while it ends."""

    @contextmanager
    def start(self) -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
        yield from super().process(*args, **options)
        raise KeyboardInterrupt


def test_ctrl_c_after_the_last_row_makes_no_failure_of_a_complete_run(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    summary = score(score_job(tiny_corpus, output), Ending(), Display())
    assert summary["rows"]["written"] == 240
    assert (output / "_SUCCESS").exists()
    assert not (output / "_ray_mlc/lease.json").exists()
    assert "interrupted when all was done: the result is complete" in capsys.readouterr().err
    assert verify(str(output), deep=True).complete


def test_ctrl_c_before_there_is_a_result_still_ends_the_command() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), completing(said.append):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="x"), completing(said.append) as results:  # noqa: PT012
        results.append({})
        raise ValueError("x")
    assert said == []


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
