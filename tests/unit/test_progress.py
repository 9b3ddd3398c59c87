from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.runtime import progress as module
from ray_mlc.runtime.progress import Display, Stage


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


def test_sentences_are_printed_as_they_are() -> None:
    display, stream = shown()
    display.say("[bold]labels[/bold] " + "x" * 300)
    assert stream.getvalue() == "[bold]labels[/bold] " + "x" * 300 + "\n"
