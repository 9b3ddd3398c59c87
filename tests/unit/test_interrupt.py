"""The first signal asks, the second insists; either way what is written stays."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.displays import Spoken

from ray_mlc.config import ScoreJob
from ray_mlc.errors import InterruptedRunError, LimitError, RayMlcError
from ray_mlc.runtime.interrupt import Deadline, Stop, completing, listen
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring import accounts
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.verify import verify
from ray_mlc.storage.local import LocalStorage

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


@pytest.fixture
def job(score_job: MakeJob, tiny_corpus: Path, tmp_path: Path) -> ScoreJob:
    return score_job(tiny_corpus, tmp_path / "out")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Slow(LocalBackend):
    """Ctrl-C comes while the process is clearing up: its work is over."""

    @contextmanager
    def start(self) -> Iterator[None]:
        yield
        interrupt()
        time.sleep(5)
        pytest.fail("the signal did not end the clearing up")


def test_ctrl_c_after_success_changes_no_outcome(job: ScoreJob, tmp_path: Path) -> None:
    summary = score(job, Slow(), Display(quiet=True))
    assert summary["rows"]["written"] == 240
    assert (tmp_path / "out/_SUCCESS").exists()
    assert not (tmp_path / "out/_ray_mlc/lease.json").exists()


def test_ctrl_c_after_a_limit_did_not_hold_leaves_that_to_be_said(
    score_job: MakeJob, tiny_corpus: Path, tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "in"))
    (corpus / "bad.parquet").write_bytes(b"not Parquet at all")
    with pytest.raises(LimitError, match=r"1 bad files") as caught:
        score(score_job(corpus, tmp_path / "out"), Slow(), Display(quiet=True))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_one_ctrl_c_while_rows_are_accounted_for_lets_it_end(
    job: ScoreJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accounts._summarize

    def interrupted(*args: Any, **options: Any) -> Any:
        interrupt()
        return real(*args, **options)

    monkeypatch.setattr(accounts, "_summarize", interrupted)
    display = Spoken()
    assert score(job, LocalBackend(), display)["rows"]["written"] == 240
    assert (tmp_path / "out/_SUCCESS").exists()
    assert "all rows are written, the end is near; once more stops at once" in display.said


@pytest.mark.parametrize("before_success", [True, False])
def test_two_while_rows_are_accounted_for_are_judged_by_what_is_there(
    job: ScoreJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_success: bool
) -> None:
    """The same moment, a hair before and a hair after `_SUCCESS` is written."""
    success = tmp_path / "out/_SUCCESS"
    real = LocalStorage.put

    def put(self: Any, path: str, data: bytes) -> None:
        if path != "_SUCCESS":
            return real(self, path, data)
        if not before_success:
            real(self, path, data)
        interrupt()
        interrupt()
        return pytest.fail("nothing was interrupted")

    monkeypatch.setattr(LocalStorage, "put", put)
    if before_success:
        with pytest.raises(InterruptedRunError, match="after 240 of 240 rows; what is written"):
            score(job, LocalBackend(), Display(quiet=True))
    else:
        assert score(job, LocalBackend(), Display(quiet=True))["rows"]["written"] == 240
    assert success.exists() != before_success
    monkeypatch.undo()
    assert score(job, LocalBackend(), Display(quiet=True))["rows"]["written"] == 240
    assert verify(str(tmp_path / "out")).complete


def test_ctrl_c_during_the_last_read_ends_in_success(job: ScoreJob, tmp_path: Path) -> None:
    class Late(LocalBackend):
        def process(self, run: Any, work: Any, reads: Any, *args: Any, **options: Any) -> Any:
            for number, receipts in enumerate(super().process(run, work, reads, *args, **options)):
                if number + 1 == len(reads):
                    interrupt()
                yield receipts

    display = Spoken()
    assert score(job, Late(), display)["rows"]["written"] == 240
    assert (tmp_path / "out/_SUCCESS").exists()
    assert any(line.startswith("stopping: ") for line in display.said)


def test_ctrl_c_before_anything_is_planned_says_so_at_once(job: ScoreJob) -> None:
    class Starting(LocalBackend):
        @contextmanager
        def start(self) -> Iterator[None]:
            interrupt()
            time.sleep(5)
            yield

    with pytest.raises(KeyboardInterrupt):
        score(job, Starting(), Display(quiet=True))


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
            assert stop.missed is not None
            assert not stop.overdue
        assert said[0].startswith("it is 06:00 (limits.stop_at), stopping: what is in flight has")


def test_a_signal_counts_for_more_than_the_clock() -> None:
    said: list[str] = []
    deadline = Deadline("06:00", time.monotonic() + 30)
    with listen(60, said.append, deadline=deadline) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.due(deadline)
        assert stop.requested
        assert stop.missed is None
    assert len(said) == 1
