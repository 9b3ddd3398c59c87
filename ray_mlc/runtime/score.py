"""The order of a scoring run, whichever runtime does the work.

model → run opened or continued → pending units → reads → receipts → accounts → `_SUCCESS`. A
backend says how the engine's `auto` is resolved and where reads are processed; everything that
exactly-once rests on is here and in `scoring`, the same for one process and for a cluster.

Several models over one corpus are as many runs, each with its own output, lease and accounts; what
they share is the pass: each unit is read once for all that wait for it (`scoring.passes`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob
from ray_mlc.errors import InterruptedRunError, LimitError, RayMlcError, first_line
from ray_mlc.runtime.backend import Backend
from ray_mlc.runtime.inputs import Inputs, find_all_inputs
from ray_mlc.runtime.interrupt import Deadline, Stop, completing, listen
from ray_mlc.runtime.opening import (
    Asked,
    Opened,
    introduction,
    of_its_kind,
    open_runs,
    speed_of_all,
    why_apart,
)
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.report import leaving_a_report
from ray_mlc.runtime.steps import sharing_tokens
from ray_mlc.runtime.watching import watching
from ray_mlc.scoring.accounts import EARLIER, PENDING, SET_ASIDE, WRITTEN
from ray_mlc.scoring.hours import Hours, within_hours
from ray_mlc.scoring.lease import Lease, hold_lease
from ray_mlc.scoring.passes import UnitPass, plan_passes
from ray_mlc.scoring.reads import plan_reads
from ray_mlc.scoring.score import is_died_scoring
from ray_mlc.scoring.standing import Vitals
from ray_mlc.storage import open_storage

LISTED_AT_STOP = 20_000
"""Units up to which the output is listed once more to say how far a run has come that stops."""


def score(
    job: ScoreJob,
    backend: Backend,
    display: Display,
    *,
    inputs: Inputs | None = None,
    add_new: bool = False,
    take_over: bool = False,
    use_lease: bool = True,
) -> dict[str, Any]:
    """Tag a corpus, or continue doing so.

    Args:
        job: What to score, and how.
        backend: Where.
        display: Told about progress.
        inputs: What `find_inputs` found; None: it is called here.
        add_new: Let files that the run does not know join it, as its next night.
        take_over: Replace another command that holds the output's lease, at once.
        use_lease: Whether to hold a lease at all; without one two commands do the same work.

    Returns:
        The summary: rows, statuses, tokens, speed.

    Raises:
        InterruptedRunError: On Ctrl-C or SIGTERM; what was committed stays.
        RayMlcError: When it is `limits.stop_at`; the same.
        LeaseError: If another command is writing to the same output.
        RayMlcError: As `open_run` and `finish_run` say.
    """
    return score_many(
        {"": job},
        backend,
        display,
        inputs=None if inputs is None else {"": inputs},
        add_new=add_new,
        take_over=take_over,
        use_lease=use_lease,
    )[""]


def score_many(
    jobs: Mapping[str, ScoreJob],
    backend: Backend,
    display: Display,
    *,
    inputs: Mapping[str, Inputs] | None = None,
    add_new: bool = False,
    take_over: bool = False,
    use_lease: bool = True,
) -> dict[str, dict[str, Any]]:
    """Tag a corpus with several models in one pass, or continue doing so: a run for each.

    Args:
        jobs: What to score, by name, as `ManyScoreJob.each` gives them: alike but for model,
            output and decision.
        backend: Where.
        display: Told about progress.
        inputs: What `find_all_inputs` found; None: it is called here.
        add_new: As for `score`, which says what is raised too.
        take_over: The same.
        use_lease: The same.

    Returns:
        The summary of each run by its name. Once the rows are written, a run that does not end
        well keeps no other from its end; then the worst error is raised.
    """
    common = next(iter(jobs.values()))
    inputs = inputs or find_all_inputs(jobs)
    with completing(display.say) as results, ExitStack() as held:
        leases: dict[str, Lease | None] = {}
        # in one order, so that two commands do not wait for each other
        for name in sorted(jobs, key=lambda name: jobs[name].output.path):
            storage = open_storage(jobs[name].output.path)
            leases[name] = (
                held.enter_context(
                    hold_lease(
                        storage,
                        expiry_s=common.lease.expiry,
                        take_over=take_over,
                        say=display.say,
                    )
                )
                if use_lease
                else None
            )
        storages = [open_storage(job.output.path) for job in jobs.values()]
        hours = held.enter_context(within_hours(storages, common.limits.stop_at))
        if use_lease:  # else nothing may be written before the output is known to be ours
            hours.note()
        deadline = None
        if hours.ends is not None:
            deadline = Deadline.at(str(common.limits.stop_at), hours.ends)
        for name, job in jobs.items():
            held.enter_context(
                leaving_a_report(job, inputs[name].folder, display, deadline=deadline)
            )
        asked = [
            Asked(
                name,
                of_its_kind(job, inputs[name].folder) if len(jobs) > 1 else job,
                inputs[name],
                leases[name],
            )
            for name, job in jobs.items()
        ]
        with ExitStack() as stack:
            ready = _Ready(backend, stack, display)
            results.append(_tag(asked, ready, display, hours, deadline, add_new=add_new))
    return results[0]


@dataclass
class _Ready:
    """A backend that is started when it is first needed, and ends with the stack."""

    backend: Backend
    stack: ExitStack
    display: Display
    started: bool = False

    def __call__(self) -> Backend:
        if not self.started:
            text = self.backend.starting
            with self.display.doing(text) if text else nullcontext():
                self.stack.enter_context(self.backend.start())
            self.started = True
        return self.backend


class _Ends:
    """How runs have ended: one that does not end well keeps no other from its end."""

    def __init__(self) -> None:
        self.summaries: dict[str, dict[str, Any]] = {}
        self.errors: list[RayMlcError] = []

    def note(self, opened: Opened, finish: Callable[[], dict[str, Any]]) -> bool:
        """Bring a run to its end; whether it is a good one."""
        try:
            self.summaries[opened.asked.name] = finish()
        except RayMlcError as error:
            self.errors.append(error)
            return False
        return True

    def result(self, names: Sequence[str], say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
        """The summaries.

        Raises:
            RayMlcError: The worst of the errors, for its exit code says how the command has ended;
                others are said.
        """
        if not self.errors:
            return {name: self.summaries[name] for name in names}
        # a run that is beyond its limits is finished, others are not
        worst = min(self.errors, key=lambda error: isinstance(error, LimitError))
        for error in self.errors:
            if error is not worst:
                say(f"error: {first_line(error)}")
        raise worst


def _tag(
    asked: Sequence[Asked],
    ready: _Ready,
    display: Display,
    hours: Hours,
    deadline: Deadline | None,
    *,
    add_new: bool,
) -> dict[str, dict[str, Any]]:
    """Plan or continue, work off, account for it: the summaries."""
    started = time.monotonic()
    opened = open_runs(asked, ready, display, add_new=add_new)
    ends = _Ends()
    for item in opened:
        if item.complete and ends.note(item, item.checked):
            display.say(item.asked.named("complete already: nothing to do"))
    todo = [item for item in opened if not item.complete]
    if todo:
        hours.note()
    passes = plan_passes([item.run for item in todo], [item.pending for item in todo])
    if note := why_apart(todo, passes):
        display.say(f"note: {note}")
    backend = ready() if passes else None
    with listen(asked[0].job.limits.grace, display.say, deadline=deadline) as stop:
        try:
            if backend is not None:
                _work_off_all(passes, todo, backend, display, stop)
        except KeyboardInterrupt:
            _raise_if_left(todo, stop)
        stop.nothing_in_flight()
        seconds = time.monotonic() - started
        try:
            for item in todo:
                with display.doing(item.asked.named("accounting for every row")):
                    ends.note(item, partial(item.finish, seconds))
        except KeyboardInterrupt:
            for item in todo:
                if item.run.succeeded:
                    ends.summaries[item.asked.name] = item.run.summary
                elif not ends.errors:
                    raise _interrupted(item, stop.missed) from None
    return ends.result([item.name for item in asked], display.say)


def _work_off_all(
    passes: Sequence[UnitPass],
    nights: Sequence[Opened],
    backend: Backend,
    display: Display,
    stop: Stop,
) -> None:
    """Process all that is pending.

    A unit that kills its process is set aside for all runs of a pass, because nobody knows which
    model it was: each tries it once more by itself.
    """
    queue = deque((one.units, [nights[index] for index in one.runs]) for one in passes)
    while queue:
        units, together = queue.popleft()
        _work_off(units, together, backend, display, stop)
        for night in together if len(together) > 1 else ():
            again = night.tally.reopen(is_died_scoring)
            if len(again):
                queue.append((again, [night]))
                said = f"{len(again)} unit(s) over which processes of all models died are tried"
                display.say(night.asked.named(f"{said} alone"))
        if stop.requested:
            _raise_if_left(nights, stop)


def _work_off(
    units: NDArray[np.int64],
    nights: Sequence[Opened],
    backend: Backend,
    display: Display,
    stop: Stop,
) -> None:
    """Process units, by their positions in the first run's plan, that wait for these runs."""
    first = nights[0]
    run, job = first.run, first.asked.job
    before = first.tally.rows(EARLIER, WRITTEN, SET_ASIDE)
    works = sharing_tokens([night.work() for night in nights])
    for line in introduction(nights, units, ways=len({work.tokens for work in works})):
        display.say(line)
    if before:
        display.say(f"continuing: {before:,} rows are done already")
    actors = backend.actors(job)
    speed = speed_of_all([night.run.resolved.documents_per_s for night in nights])
    reads = plan_reads(run, units, job, actors=actors, documents_per_s=speed)
    with (
        display.stage("score", run.plan.rows, "rows", done=before) as stage,
        ExitStack() as stack,
    ):
        watches = [
            stack.enter_context(
                watching(
                    night.tally,
                    stage if night is first else None,  # the others go along with it
                    night.run.storage,
                    actors=actors,
                    gpus=any(night.run.resolved.device == "cuda" for night in nights),
                    documents_per_s=speed,
                    token=night.asked.token,
                )
            )
            for night in nights
        ]

        def scored(vitals: Vitals) -> None:
            watches[vitals.work].heard(vitals)

        processes = "1 process" if actors == 1 else f"{actors} processes"
        models = "the model" if len(nights) == 1 else f"{len(nights)} models"
        stage.doing(f"loading {models} in {processes}")
        for done in backend.process(run.plan, works, reads, job, scored=scored, stop=stop):
            for watch, receipts in zip(watches, done, strict=True):
                watch.receipts(receipts)
            for night in nights:
                if night.asked.lease is not None:
                    night.asked.lease.check()


def _raise_if_left(nights: Sequence[Opened], stop: Stop) -> None:
    """End a command that has not come to the end of its work."""
    for night in nights:
        if night.tally.rows(PENDING) and len(night.run.plan.units) <= LISTED_AT_STOP:
            with suppress(RayMlcError):  # what was committed, and not heard of any more
                night.tally.note_orphans(night.run.listing())
        if night.tally.rows(PENDING):
            raise _interrupted(night, stop.missed) from None


def _interrupted(night: Opened, missed: Deadline | None) -> RayMlcError:
    """What a run that did not come to its end says; the deadline, if it was that."""
    done = night.tally.rows(EARLIER, WRITTEN)
    rest = f"after {done:,} of {night.run.plan.rows:,} rows; what is written stays, "
    if missed is not None:
        return RayMlcError(
            night.asked.named(
                f"stopped at {missed.text} (limits.stop_at) {rest}the same command continues in "
                "the next night, and with --set limits.stop_at=null at once"
            )
        )
    return InterruptedRunError(
        night.asked.named(f"interrupted {rest}run the same command to continue")
    )
