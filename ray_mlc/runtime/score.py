"""The order of a scoring run, whichever runtime does the work.

model → run opened or continued → pending units → reads → receipts → accounts → `_SUCCESS`. A
backend says how the engine's `auto` is resolved and where reads are processed; everything that
exactly-once rests on is here and in `scoring`, the same for one process and for a cluster.

Several models over one corpus are as many runs, each with its own output, lease and accounts; what
they share is the pass: each unit is read once for all that wait for it (`scoring.passes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import BatchingConfig, DriftConfig, EngineConfig, LimitsConfig, ScoreJob
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.footers import KnownFooters, read_footers
from ray_mlc.corpus.listing import Listing, list_corpus
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import InterruptedRunError, LimitError, RayMlcError, first_line
from ray_mlc.model.decisions import read_decision
from ray_mlc.model.engines.choose import ResolvedEngine, describe_trials, resolve
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.runtime.interrupt import Deadline, Stop, completing, listen
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.report import leaving_a_report
from ray_mlc.runtime.steps import Work, sharing_tokens
from ray_mlc.runtime.threads import in_threads
from ray_mlc.runtime.watching import watching
from ray_mlc.scoring.accounts import (
    EARLIER,
    PENDING,
    SET_ASIDE,
    WRITTEN,
    Tally,
    check_limits,
    finish_run,
)
from ray_mlc.scoring.compare import Side
from ray_mlc.scoring.identity import refuse_output_in_input
from ray_mlc.scoring.lease import Lease, check_holder, hold_lease
from ray_mlc.scoring.ledger import RUN_FILE, Run, open_run
from ray_mlc.scoring.night_drift import measure_drift
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.passes import UnitPass, plan_passes
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.reads import plan_reads
from ray_mlc.scoring.sample import sample_texts
from ray_mlc.scoring.score import is_died_scoring
from ray_mlc.scoring.standing import Vitals
from ray_mlc.storage import Storage, open_storage


def resolve_engine(
    job: ScoreJob,
    folder: ModelFolder,
    units: Sequence[Unit],
    spec: ReadSpec,
    *,
    cuda: bool,
    threads: int | None = None,
) -> ResolvedEngine:
    """Resolve the engine; documents of some units are fetched if there is anything to try."""
    name, dtype = job.engine.name, job.engine.dtype
    tries = "auto" in (dtype, job.batching.max_batch_tokens, job.units.rows)
    tries = tries or (name == "auto" and dtype != "float32")
    return resolve(
        folder,
        job.engine,
        job.batching,
        cuda=cuda,
        long=job.long,
        threads=threads,
        sample=partial(sample_texts, units, spec, max_text_bytes=job.input.max_text_bytes)
        if tries
        else None,
    )


class Backend(Protocol):
    """Where the work is done."""

    @property
    def starting(self) -> str | None:
        """What `start` does, for the user to see; None: nothing that takes time."""

    def start(self) -> AbstractContextManager[None]:
        """Make ready for a block; entered when the lease is held, because it may cost a while."""

    def resolve(self, folder: ModelFolder, plan: CorpusPlan, job: ScoreJob) -> ResolvedEngine:
        """Turn every `auto` of the engine into a fact, on the hardware that will score."""

    def actors(self, job: ScoreJob) -> int:
        """Processes that will hold the model."""

    def process(
        self,
        plan: CorpusPlan,
        works: Sequence[Work],
        reads: Sequence[NDArray[np.int64]],
        job: ScoreJob,
        *,
        scored: Callable[[Vitals], None],
        stop: Stop,
    ) -> Iterator[list[list[Receipt]]]:
        """Read, score and commit; yields receipts as units are done, those of each run apart.

        Args:
            plan: What there is to read.
            works: What every process needs of each run that the units are scored for.
            reads: Positions of the units of each read.
            job: How many processes, and their limits.
            scored: Told, now and then and maybe from another thread, what has been through the
                model: a unit can take minutes, and nothing else is known of it before its receipt.
            stop: When requested, no read is begun, and this ends when what is in flight is done.
        """


LISTED_AT_STOP = 20_000
"""Units up to which the output is listed once more to say how far a run has come that stops."""


@dataclass(frozen=True)
class Inputs:
    """What a job names, found and checked before anything costs time."""

    folder: ModelFolder
    listing: Listing
    validation: Side | None
    """What the model gave at its validation, if drift is limited. Read once: a training into the
    same folder, or `thresholds`, may replace it while the night goes on."""


def find_inputs(job: ScoreJob, *, listing: Listing | None = None) -> Inputs:
    """Find model and corpus.

    Args:
        job: What names them.
        listing: The corpus, if it has been listed; None: it is listed here.

    Raises:
        ModelError: If the model is missing, incomplete or not multi-label.
        ConfigError: If the decision cannot be read, or is not for its labels.
        DataError: If there is nothing to read, the output lies where it would be read, or drift is
            limited and the model's folder does not say what to hold it against.
    """
    folder = open_model(job.model)
    if job.decision is not None:
        folder = folder.with_decision(read_decision(job.decision, folder.label_set))
    # raises where it does not say: not at the end of the night
    validation = Side.of_model(folder) if job.limits.drift is not None else None
    listing = listing or list_corpus(job.input.path)
    refuse_output_in_input(job, listing)
    return Inputs(folder, listing, validation)


def find_all_inputs(jobs: Mapping[str, ScoreJob]) -> dict[str, Inputs]:
    """`find_inputs` of jobs over one corpus, which is listed once."""
    found: dict[str, Inputs] = {}
    for name, job in jobs.items():
        known = next(iter(found.values()), None)
        found[name] = find_inputs(job, listing=None if known is None else known.listing)
    return found


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
    deadline = Deadline.next(common.limits.stop_at)
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
        for name, job in jobs.items():
            held.enter_context(
                leaving_a_report(job, inputs[name].folder, display, deadline=deadline)
            )
        asked = [
            _Asked(
                name,
                _of_its_kind(job, inputs[name].folder) if len(jobs) > 1 else job,
                inputs[name],
                leases[name],
            )
            for name, job in jobs.items()
        ]
        with ExitStack() as stack:
            ready = _Ready(backend, stack, display)
            results.append(_tag(asked, ready, display, deadline, add_new=add_new))
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


@dataclass(frozen=True)
class _Asked:
    """One of the runs that a command is for, before it is open."""

    name: str
    """What the job calls it; empty where it is the only one."""
    job: ScoreJob
    inputs: Inputs
    lease: Lease | None

    @cached_property
    def storage(self) -> Storage:
        """The output folder."""
        return open_storage(self.job.output.path)

    @property
    def token(self) -> str | None:
        """Of the lease."""
        return None if self.lease is None else self.lease.token

    def check(self) -> None:
        """Stop if the output is no longer ours."""
        if self.lease is not None:
            check_holder(self.storage, self.lease.token)

    def named(self, text: str) -> str:
        """A sentence about this run."""
        return f"{self.name}: {text}" if self.name else text


class _Opened:
    """One of these runs, and where its work stands."""

    def __init__(self, asked: _Asked, run: Run, pending: NDArray[np.int64]) -> None:
        self.asked, self.run, self.pending = asked, run, pending
        self.tally = Tally(run, pending)
        self.drift = _drift_of(run, asked.inputs.validation, asked.job.limits)

    @property
    def limits(self) -> LimitsConfig:
        """How much may be set aside."""
        return self.asked.job.limits

    @cached_property
    def complete(self) -> bool:
        """Whether an earlier command has left nothing to do."""
        known = self.drift is None or _limit_of(self.run.summary) == self.limits.drift
        return self.run.succeeded and not len(self.pending) and known

    def work(self) -> tuple[Work, ModelFolder]:
        """What processes need for it, and its model."""
        folder = self.asked.inputs.folder
        return Work.of(self.run, folder, holder=self.asked.token), folder

    def finish(self, seconds: float) -> dict[str, Any]:
        """Account for every unit; see `finish_run`."""
        return finish_run(
            self.run,
            self.tally,
            self.limits,
            seconds=seconds,
            check=self.asked.check,
            drift=self.drift,
        )

    def checked(self) -> dict[str, Any]:
        """The summary of a run that is complete."""
        check_limits(self.run, self.run.summary, self.limits)
        return self.run.summary


class _Ends:
    """How runs have ended: one that does not end well keeps no other from its end."""

    def __init__(self) -> None:
        self.summaries: dict[str, dict[str, Any]] = {}
        self.errors: list[RayMlcError] = []

    def note(self, opened: _Opened, finish: Callable[[], dict[str, Any]]) -> bool:
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
    asked: Sequence[_Asked],
    ready: _Ready,
    display: Display,
    deadline: Deadline | None,
    *,
    add_new: bool,
) -> dict[str, dict[str, Any]]:
    """Plan or continue, work off, account for it: the summaries."""
    started = time.monotonic()
    opened = _open(asked, ready, display, add_new=add_new)
    ends = _Ends()
    for item in opened:
        if item.complete and ends.note(item, item.checked):
            display.say(item.asked.named("complete already: nothing to do"))
    todo = [item for item in opened if not item.complete]
    passes = plan_passes([item.run for item in todo], [item.pending for item in todo])
    if note := _why_apart(todo, passes):
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


def _open(
    asked: Sequence[_Asked], ready: _Ready, display: Display, *, add_new: bool
) -> list[_Opened]:
    """Start or continue each run.

    Those that are there come first. New ones take their units from one that is being continued,
    and else have units for all of them together: with the same units they share every read. No
    new run is created before all models were found to do.
    """
    new = [item for item in asked if item.storage.read(RUN_FILE) is None]
    engines = _Engines(new, ready, display)
    footers = KnownFooters() if len(asked) > 1 else None
    found: dict[str, _Opened] = {}
    for item in sorted(asked, key=lambda item: item in new):
        job = item.job
        if item in new and job.units.rows == "auto":
            there = (other for other in found.values() if other.asked not in new)
            ahead = next((other for other in there if len(other.pending)), None)
            if ahead is not None:
                rows = ahead.run.identity["units.rows"]
                job = job.model_copy(update={"units": job.units.model_copy(update={"rows": rows})})
        with display.stage("plan", None, "footers") as stage:
            stage.doing("looking at the output and new footers")
            run, pending, notes = open_run(
                job,
                item.inputs.folder,
                item.inputs.listing,
                partial(engines, item),
                add_new=add_new,
                check=item.check,
                progress=stage.advance,
                read=read_footers if footers is None else footers.read,
                speed=engines.speed,
            )
        for note in notes:
            display.say(f"note: {item.named(note)}")
        found[item.name] = _Opened(item, run, pending)
    return [found[item.name] for item in asked]


class _Engines:
    """Engines of the runs that are not there yet, all of them resolved with the first."""

    def __init__(self, new: Sequence[_Asked], ready: _Ready, display: Display) -> None:
        self._new, self._ready, self._display = new, ready, display
        self._found: dict[str, ResolvedEngine] = {}

    def __call__(self, item: _Asked, model: ModelFolder, plan: CorpusPlan) -> ResolvedEngine:
        """The engine of a run."""
        del model
        if item.name not in self._found:
            there = self._ready()
            for other in self._new if item in self._new else (item,):
                with self._display.doing(other.named("loading the model, trying engines")):
                    folder = other.inputs.folder
                    self._found[other.name] = there.resolve(folder, plan, other.job)
        return self._found[item.name]

    def speed(self, engine: ResolvedEngine) -> float | None:
        """Documents per second that a process takes through all of them."""
        del engine
        return _speed_of_all([engine.documents_per_s for engine in self._found.values()])


def _of_its_kind(job: ScoreJob, folder: ModelFolder) -> ScoreJob:
    """The job of one model of several: what it says of encoders is not meant for TF-IDF."""
    if folder.info.kind != "tfidf":
        return job
    actors = job.actors.model_copy(update={"gpus": 0.0})  # beside encoders it runs on CPUs
    other = {"engine": EngineConfig(), "batching": BatchingConfig(), "actors": actors}
    return job.model_copy(update=other)


def _why_apart(nights: Sequence[_Opened], passes: Sequence[UnitPass]) -> str | None:
    """What keeps runs that wait for the same rows from being read for as one."""
    if len(passes) < 2:
        return None
    first, *others = nights
    for night in others:
        both = f"{first.asked.name} and {night.asked.name}"
        if night.run.plan.spec != first.run.plan.spec:
            return (
                f"{both} keep or rename other columns: the corpus is read and tokenized for each "
                "(the same output.keep lets them share; so do labels that no input column is "
                "called by)"
            )
        rows = [run.identity["units.rows"] for run in (first.run, night.run)]
        if rows[0] != rows[1]:
            return f"{both} have units of {rows[0]:,} and {rows[1]:,} rows: they are read for each"
    return None


def _drift_of(
    run: Run, validation: Side | None, limits: LimitsConfig
) -> Callable[[NDArray[np.int64]], list[dict[str, Any]]] | None:
    """What measures the drift of the nights since the last success, if that is limited."""
    if limits.drift is None or validation is None:
        return None
    return partial(measure_drift, run, validation, limits.drift, each=in_threads)


def _limit_of(summary: Mapping[str, Any]) -> DriftConfig | None:
    """The limit that a summary's drift was measured for."""
    return DriftConfig(**summary["drift"][0]["limit"]) if "drift" in summary else None


def _work_off_all(
    passes: Sequence[UnitPass],
    nights: Sequence[_Opened],
    backend: Backend,
    display: Display,
    stop: Stop,
) -> None:
    """Process all that is pending.

    A unit that kills its process is set aside for all runs of a pass, because nobody knows which
    model it was: each tries it once more by itself.
    """
    for one in passes:
        together = [nights[index] for index in one.runs]
        _work_off(one.units, together, backend, display, stop)
        for night in together if len(together) > 1 else ():
            again = night.tally.reopen(is_died_scoring)
            if len(again):
                said = f"trying {len(again)} unit(s) alone, over which processes of all models died"
                display.say(night.asked.named(said))
                _work_off(again, [night], backend, display, stop)
        if stop.requested:
            _raise_if_left(nights, stop)


def _work_off(
    units: NDArray[np.int64],
    nights: Sequence[_Opened],
    backend: Backend,
    display: Display,
    stop: Stop,
) -> None:
    """Process units, by their positions in the first run's plan, that wait for these runs."""
    first = nights[0]
    run, job = first.run, first.asked.job
    before = first.tally.rows(EARLIER, WRITTEN, SET_ASIDE)
    works = sharing_tokens([night.work() for night in nights])
    for line in _introduction(nights, units, ways=len({work.tokens for work in works})):
        display.say(line)
    if before:
        display.say(f"continuing: {before:,} rows are done already")
    actors = backend.actors(job)
    speed = _speed_of_all([night.run.resolved.documents_per_s for night in nights])
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
    if stop.requested:
        _raise_if_left(nights, stop)


def _introduction(nights: Sequence[_Opened], units: NDArray[np.int64], *, ways: int) -> list[str]:
    """What is begun, for people: the corpus, and the engine of each run."""
    plan = nights[0].run.plan
    engines = [_describe(night.run.resolved) for night in nights]
    trials = [
        night.asked.named(measured)
        for night in nights
        if not night.tally.rows(EARLIER, WRITTEN, SET_ASIDE)
        and (measured := describe_trials(night.run.resolved))
    ]
    corpus = f"{plan.rows:,} rows in {len(plan.units):,} units of {len(plan.files):,} files"
    if not nights[0].asked.name:
        return [f"{corpus}; {engines[0]}", *trials]
    if len(units) < len(plan.units):
        corpus = f"{corpus}; {len(units):,} of these units"
    each = [night.asked.named(engine) for night, engine in zip(nights, engines, strict=True)]
    if len(nights) == 1:
        return [f"{corpus} are read for {each[0]}", *trials]
    often = "once" if ways == 1 else f"in {ways} ways"
    together = f"{corpus}, each read once for {len(nights)} models, and tokenized {often}"
    return [together, *each, *trials]


def _describe(engine: ResolvedEngine) -> str:
    text = f"{engine.name} {engine.dtype} on {engine.device}, at most {engine.max_tokens} tokens"
    return f"{text} in each of {engine.windows.max_windows} windows" if engine.windows else text


def _speed_of_all(speeds: Sequence[float | None]) -> float | None:
    """Documents per second that one process takes through several models; None: not known."""
    known = [speed for speed in speeds if speed]
    return 1 / sum(1 / speed for speed in known) if known and len(known) == len(speeds) else None


def _raise_if_left(nights: Sequence[_Opened], stop: Stop) -> None:
    """End a command that has not come to the end of its work."""
    for night in nights:
        if night.tally.rows(PENDING) and len(night.run.plan.units) <= LISTED_AT_STOP:
            with suppress(RayMlcError):  # what was committed, and not heard of any more
                night.tally.note_orphans(night.run.listing())
        if night.tally.rows(PENDING):
            raise _interrupted(night, stop.missed) from None


def _interrupted(night: _Opened, missed: Deadline | None) -> RayMlcError:
    """What a run that did not come to its end says; the deadline, if it was that."""
    done = night.tally.rows(EARLIER, WRITTEN)
    rest = (
        f"after {done:,} of {night.run.plan.rows:,} rows; what is written stays, run the same "
        "command to continue"
    )
    if missed is not None:
        return RayMlcError(night.asked.named(f"stopped at {missed.text} (limits.stop_at) {rest}"))
    return InterruptedRunError(night.asked.named(f"interrupted {rest}"))
