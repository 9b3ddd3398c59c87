"""The order of `retag`: a decision, then new labels from stored scores, part by part.

One process with a thread per core: there is no model to load, and what a row costs is decoding and
encoding it. Ledger, lease, commits and accounts are those of `score`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import LeaseConfig, LimitsConfig
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import ConfigError, InterruptedRunError
from ray_mlc.model.decisions import Decision, read_decision
from ray_mlc.runtime.interrupt import Stop, completing, listen
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.refit import Labelled, asked_for, fit_on_scores
from ray_mlc.runtime.threads import in_threads
from ray_mlc.scoring.accounts import (
    EARLIER,
    PENDING,
    WRITTEN,
    Tally,
    finish_run,
    summary_of_complete,
)
from ray_mlc.scoring.lease import Lease, check_holder, hold_lease
from ray_mlc.scoring.ledger import Run
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.retag import ScoredOutput, open_retag, refuse_place, retag_unit, units_of
from ray_mlc.storage import Storage, open_storage


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where the new decision comes from: a file, or an objective."""

    decision: str | None = None
    """File that `thresholds --output` wrote."""
    objective: str | None = None
    """See `evaluation.thresholds.Objective.parse`."""
    labelled: Labelled | None = None
    """What an objective is measured on, but for a rate."""

    def __post_init__(self) -> None:
        if (self.decision is None) == (self.objective is None):
            raise ConfigError("give either --decision FILE or --objective, such as rate<=0.01")
        if self.decision is not None and self.labelled is not None:
            raise ConfigError("--examples are for --objective: leave them out with --decision")


def retag(
    output: str,
    new: str,
    wanted: Wanted,
    display: Display,
    *,
    add_new: bool = False,
    take_over: bool = False,
    use_lease: bool = True,
) -> dict[str, Any]:
    """Decide the rows of a finished run again, into an output of their own, or continue doing so.

    Args:
        output: Output folder of `score`, or of an earlier `retag`; never changed.
        new: Folder to write.
        wanted: Where the decision comes from.
        display: Told about progress.
        add_new: Let nights that `output` has got since join.
        take_over: Replace another command that holds the lease of `new`, at once.
        use_lease: Whether to hold a lease at all.

    Returns:
        The summary, as of `score`; its `retag` says `labels_per_row_before` and `unsettled`, rows
        whose labels the stored scores do not settle.

    Raises:
        UsageError: If `output` is not finished, or the decision cannot be.
        InterruptedRunError: On Ctrl-C or SIGTERM; what was committed stays.
        LeaseError: If another command is writing to `new`.
        RayMlcError: As `open_retag` and `finish_run` say.
    """
    scored = ScoredOutput.open(output)
    refuse_place(scored, new)
    given: Decision | None = None
    if wanted.decision is not None:
        given = read_decision(wanted.decision, scored.run.label_set)
        asked = {"decision": given.digest}
    else:
        asked = asked_for(wanted.objective or "", wanted.labelled)

    def decide_anew() -> Decision:
        return given or fit_on_scores(scored, wanted.objective or "", wanted.labelled, display)

    storage = open_storage(new)
    held = (
        hold_lease(storage, expiry_s=LeaseConfig().expiry, take_over=take_over, say=display.say)
        if use_lease
        else nullcontext()
    )
    with completing(display.say) as results, held as lease:
        started = time.monotonic()

        def check() -> None:
            if lease is not None:
                check_holder(storage, lease.token)

        run, pending, notes = open_retag(
            scored, new, asked, decide_anew, add_new=add_new, check=check
        )
        for note in notes:
            display.say(f"note: {note}")
        if run.succeeded and not len(pending):
            display.say("complete already: nothing to do")
            results.append(summary_of_complete(run))
        else:
            results.append(_tag(scored, run, pending, display, storage, lease, started))
    return results[0]


def _tag(
    scored: ScoredOutput,
    run: Run,
    pending: NDArray[np.int64],
    display: Display,
    storage: Storage,
    lease: Lease | None,
    started: float,
) -> dict[str, Any]:
    """Decide the pending units and account for all: the summary."""
    tally = Tally(run, pending)
    with listen(LimitsConfig().grace, display.say) as stop:
        try:
            _work_off(scored, tally, pending, display, lease, stop)
            if stop.requested and tally.rows(PENDING):
                raise _interrupted(tally)
            stop.nothing_in_flight()

            def check() -> None:
                if lease is not None:
                    check_holder(storage, lease.token)

            with display.doing("accounting for every row"):
                seconds = time.monotonic() - started
                return finish_run(run, tally, scored.limits, seconds=seconds, check=check)
        except KeyboardInterrupt:
            if run.succeeded:
                return run.summary
            raise _interrupted(tally) from None


def _work_off(
    scored: ScoredOutput,
    tally: Tally,
    pending: NDArray[np.int64],
    display: Display,
    lease: Lease | None,
    stop: Stop,
) -> None:
    run = tally.run
    rules = run.decision.rules(run.label_set)
    spec = run.commit_spec(holder=lease.token if lease is not None else None)
    before = tally.rows(EARLIER)
    if before:
        display.say(f"continuing: {before:,} rows are done already")

    def until_stopped() -> Iterator[tuple[int, Unit]]:
        for item in units_of(run, pending):
            if stop.requested:
                return
            yield item

    def one(item: tuple[int, Unit]) -> Receipt:
        return retag_unit(scored, item[1], rules, spec)

    with display.stage("retag", run.plan.rows, "rows", done=before) as stage:
        for receipt in in_threads(one, until_stopped()):
            aside = f"· {len(tally.faults)} units set aside" if tally.faults else ""
            stage.advance(tally.add([receipt]), aside)
            stop.check()
            if lease is not None:
                lease.check()


def _interrupted(tally: Tally) -> InterruptedRunError:
    done = tally.rows(EARLIER, WRITTEN)
    return InterruptedRunError(
        f"interrupted after {done:,} of {tally.run.plan.rows:,} rows; what is written stays, run "
        "the same command to continue"
    )
