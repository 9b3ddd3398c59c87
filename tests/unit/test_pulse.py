"""What the driver can know of a run between two receipts."""

from __future__ import annotations

from ray_mlc.runtime.pulse import READ, READING, SCORED, SCORING, WRITING, Pulse, State, Watch
from ray_mlc.scoring.standing import Blocks, Vitals


def test_a_block_is_in_flight_from_its_scoring_to_its_commit() -> None:
    pulse = Pulse()
    pulse.enter("a", READING)
    pulse.enter("b", READING)
    assert pulse.state().in_flight == 0
    assert pulse.state().oldest == "reading a"
    pulse.enter("a", SCORING)
    assert (pulse.state().in_flight, pulse.state().oldest) == (1, "reading b")
    pulse.enter("b", SCORING)
    pulse.enter("a", WRITING)
    assert (pulse.state().in_flight, pulse.state().oldest) == (2, "scoring b")
    pulse.leave("a")
    pulse.leave("b")
    assert (pulse.state().in_flight, pulse.state().oldest) == (0, "")


def test_only_stages_that_did_not_end_count_as_deaths() -> None:
    pulse = Pulse()
    assert pulse.enter("a", READING) == (False, 0)
    assert pulse.enter("a", READING) == (False, 1)
    assert pulse.enter("a", SCORING) == (False, 0)
    assert pulse.enter("a", SCORING) == (False, 1)
    assert pulse.enter("a", SCORING) == (False, 2)
    pulse.enter("a", WRITING)
    # its scored block was lost with a node, and is made again
    assert pulse.enter("a", SCORING) == (False, 0)


def test_after_a_stop_whoever_asks_is_told_to_drop_its_block() -> None:
    pulse = Pulse()
    assert pulse.enter("a", SCORING) == (False, 0)
    pulse.stop()
    assert pulse.enter("b", SCORING)[0]
    assert pulse.enter("a", WRITING)[0]  # a writer does not ask: what is scored is committed


def test_every_report_is_a_sign_of_life() -> None:
    pulse = Pulse()
    seen = [pulse.state()]
    for report in (
        pulse.ready,
        lambda: pulse.beat(5, 50, 60),
        lambda: pulse.pass_on("a", READING, READ),
        lambda: pulse.enter("a", SCORING),
        lambda: pulse.leave("a"),
    ):
        report()
        seen.append(pulse.state())
    assert len({state.events for state in seen}) == len(seen)
    assert seen[-1] == State(5, (Vitals(5, 50, 60, actors=1, blocks=Blocks()),))


def test_what_waits_is_told_apart_from_what_is_worked_on() -> None:
    pulse = Pulse()
    for name in "abcde":
        pulse.enter(name, READING)
    for name in "bcde":
        pulse.pass_on(name, READING, READ)
    for name in "cde":
        pulse.enter(name, SCORING)
    for name in "de":
        pulse.pass_on(name, SCORING, SCORED)
    pulse.enter("e", WRITING)
    assert pulse.state().works[0].blocks == Blocks(1, 1, 1, 1, 1)
    assert pulse.state().in_flight == 3
    assert pulse.state().oldest == "reading a"


def test_words_that_are_overtaken_change_nothing() -> None:
    pulse = Pulse()
    pulse.enter("a", READING)
    pulse.enter("a", SCORING)
    pulse.pass_on("a", READING, READ)  # comes late
    assert pulse.state().works[0].blocks == Blocks(scoring=1)
    assert pulse.enter("a", SCORING) == (False, 1)  # the death is still counted
    pulse.leave("a")
    pulse.pass_on("a", SCORING, SCORED)
    assert pulse.state().works[0].blocks == Blocks()


def test_the_stuck_stage_is_named() -> None:
    ready = Vitals(actors=1)
    assert Watch._stage(State()) == "starting the actors"
    assert (
        Watch._stage(State(works=(ready,), oldest="scoring a from row 7")) == "scoring a from row 7"
    )
    assert Watch._stage(State(works=(ready,))) == "waiting for work"
