from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.runtime import progress as module
from ray_mlc.runtime.progress import Display, Shown, Stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that the test moves."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def shown(*, terminal: bool = False, quiet: bool = False) -> tuple[Display, io.StringIO]:
    display, stream = Display(quiet=quiet), io.StringIO()
    display.console.file = stream
    display.console._force_terminal = terminal
    display.console._environ = {"TERM": "xterm"}
    display.console.is_interactive = terminal  # a test's own terminal can show nothing live
    return display, stream


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock: Any) -> None:
    display, stream = shown()
    with display.stage("score", 100, "rows") as stage:
        for _ in range(10):
            clock.now += 7
            stage.advance(10)
    lines = stream.getvalue().splitlines()
    assert [line.split(" rows")[0] for line in lines] == [
        "score: 50 of 100",
        "score: 100 of 100",
        "score: 100 of 100",
    ]
    assert "rows/s" in lines[0]
    assert "35 s left" in lines[0]
    assert "left" not in lines[-1]


def test_work_done_before_counts_for_the_share_but_not_for_the_speed(clock: Any) -> None:
    stage = Stage("score", 1000, "rows", done=900, first_done=900, started=clock.now)
    clock.now += 10
    stage.done += 50
    assert stage.per_second == 5
    assert stage.line().startswith("score: 950 of 1,000 rows (95%), 5.0 rows/s")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    total=st.none() | st.integers(0, 10**9), done=st.integers(0, 10**9), elapsed=st.floats(0, 10**6)
)
def test_any_state_has_a_line(total: int | None, done: int, elapsed: float) -> None:
    stage = Stage("read", total, "examples", done, "detail")
    stage.started -= elapsed
    line = stage.line()
    assert "\n" not in line
    assert line.startswith(f"read: {done:,} ")
    assert line.endswith("detail")


def test_waiting_for_workers_that_begin_again_is_no_speed(clock: Any) -> None:
    stage = Stage("train", 1000, "examples")
    stage.advance(10)
    clock.now += 1.0
    stage.advance(100)
    assert stage.mean_per_second == 100
    clock.now += 60.0  # a node is lost
    stage.begin_again()
    assert stage.mean_seconds_left is None
    stage.advance(-20)
    clock.now += 1.0
    stage.advance(100)
    assert stage.mean_per_second == 100
    assert stage.mean_seconds_left == pytest.approx((1000 - 190) / 100)


def test_work_that_is_ahead_of_its_count_is_almost_done_rather_than_zero_seconds_away() -> None:
    stage = Stage("score", 1000, "rows")
    stage.advance(250)
    stage.shown = Shown(seconds_left=0.2)  # all rows are through the model, one part is committed
    assert ", almost done" in stage.line()
    stage.shown = Shown(seconds_left=0.6)
    assert ", 1 s left" in stage.line()


def test_quiet_says_nothing() -> None:
    display, stream = shown(quiet=True)
    with display.stage("score", 3, "rows") as stage:
        stage.advance(3, "half")
    display.say("a sentence")
    assert stream.getvalue() == ""


def test_a_stage_that_fails_does_not_claim_to_be_done() -> None:
    display, stream = shown()
    with pytest.raises(ZeroDivisionError), display.stage("score", 3, "rows"):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_and_then_the_line() -> None:
    display, stream = shown(terminal=True)
    with display.stage("score", 4, "rows") as stage:
        stage.advance(1, "first")
        stage.detail("later")
        stage.advance(3)
    text = stream.getvalue()
    assert "100%" in text
    assert "score: 4 of 4 rows" in text.replace("\r", "\n").splitlines()[-1]


def test_what_begins_is_said_once_in_a_log_and_then_the_work(clock: Any) -> None:
    display, stream = shown()
    with display.doing("opening the [model]"):
        assert stream.getvalue() == "opening the [model] …\n"
    with display.stage("plan", None, "footers") as stage:
        stage.doing("looking")
        stage.advance(3)
        with display.doing("starting Ray"):
            pass
    assert stream.getvalue().splitlines()[1:] == ["looking …", "starting Ray …", "plan: 3 footers"]


def test_a_terminal_shows_what_goes_on_and_keeps_none_of_it() -> None:
    display, stream = shown(terminal=True)
    with display.doing("opening the [model]"):
        pass
    with display.stage("plan", None, "footers") as stage:
        stage.doing("looking at the [output]")
        with display.doing("starting Ray"):  # one live display at a time
            pass
        stage.doing("no longer of interest")
        stage.advance(3)
    text = stream.getvalue()
    for said in ("opening the [model]", "looking at the [output]", "starting Ray"):
        assert said in text
    # what remains after all that was erased
    assert text.replace("\r", "\n").splitlines()[-1].endswith("plan: 3 footers")
    assert text.count("\n") == text.count("\x1b[1A\x1b[2K") + 1
    assert "opening the [model] …" not in text


def test_what_goes_on_is_replaced_by_the_next_report_of_work_only() -> None:
    display, _ = shown(terminal=True)
    with display.stage("train", 10, "examples") as stage:
        stage.doing("epoch 1: validating")
        stage.advance(0, "loss 0.5")
        assert stage.stage.doing == "epoch 1: validating"
        stage.advance(1)
        assert stage.stage.doing == ""
        stage.doing("epoch 2: validating")
        stage.detail("scored")
        assert stage.stage.doing == ""


def test_a_phase_that_fails_leaves_the_display_usable() -> None:
    display, stream = shown(terminal=True)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), display.doing("dividing"):
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), display.stage("score", 3, "rows"):
            raise ZeroDivisionError
    with display.stage("score", 3, "rows") as stage:
        stage.advance(3)
    assert "score: 3 of 3 rows" in stream.getvalue()


def test_quiet_says_nothing_of_phases_either() -> None:
    for terminal in (True, False):
        display, stream = shown(quiet=True, terminal=terminal)
        with display.doing("opening"), display.stage("score", 3, "rows") as stage:
            stage.doing("loading")
        assert stream.getvalue() == ""


def test_sentences_are_printed_as_they_are() -> None:
    display, stream = shown()
    display.say("[bold]labels[/bold] " + "x" * 300)
    assert stream.getvalue() == "[bold]labels[/bold] " + "x" * 300 + "\n"
