"""The order of a scoring run, whichever runtime does the work.

model → run opened or continued → pending units → reads → receipts → accounts → `_SUCCESS`. A
backend says how the engine's `auto` is resolved and where reads are processed; everything that
exactly-once rests on is here and in `scoring`, the same for one process and for a cluster.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.config import DriftConfig, LimitsConfig, ScoreJob
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.listing import Listing, list_corpus
from ray_mlc.corpus.rows import read_block
from ray_mlc.corpus.units import Unit, group_reads
from ray_mlc.errors import InterruptedRunError, RayMlcError
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules, read_decision
from ray_mlc.model.engines.choose import (
    ResolvedEngine,
    describe_trials,
    load_classifier,
    load_tokenizer,
    resolve,
)
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.runtime import heap
from ray_mlc.runtime.interrupt import Deadline, Stop, completing, listen
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.report import leaving_a_report
from ray_mlc.runtime.threads import in_threads
from ray_mlc.runtime.watching import watching
from ray_mlc.scoring.accounts import (
    EARLIER,
    PENDING,
    WRITTEN,
    Tally,
    check_limits,
    finish_run,
)
from ray_mlc.scoring.compare import Side
from ray_mlc.scoring.identity import refuse_output_in_input
from ray_mlc.scoring.lease import Lease, check_holder, hold_lease
from ray_mlc.scoring.ledger import Run, open_run
from ray_mlc.scoring.night_drift import measure_drift
from ray_mlc.scoring.parts import CommitSpec, OutputSpec, Receipt, commit_parts
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.sample import sample_texts
from ray_mlc.scoring.score import score_block, stamp, tokenize_block
from ray_mlc.scoring.standing import Vitals
from ray_mlc.storage import Storage, open_storage

READS_PER_ACTOR = 4
"""Reads that a small input is cut into per actor, so that all of them work to the end."""
GROUP_SHARE = 1 / 16
"""Share of a row group that a read takes at least, where the speed of scoring is not known."""
DECODED_PER_S = 1_000_000
"""Rows of text that are decoded in a second, roughly."""
OVERHEAD = 0.02
"""Share of scoring that decoding a row group again and again may cost."""


@dataclass(frozen=True)
class ReadStep:
    """Units to one block; small, because every read of a run carries it."""

    spec: ReadSpec
    """Columns to read."""
    max_text_bytes: int
    """Longest text."""

    def __call__(self, units: Sequence[Unit]) -> pa.Table:
        """Read."""
        return read_block(units, self.spec, max_text_bytes=self.max_text_bytes)


@dataclass(frozen=True)
class Work:
    """What a process needs to do its step; small, and the same for all of them."""

    model: str
    """Model folder, URI or hub id, as every node sees it."""
    digest: str
    """Digest of the model that the run is recorded for."""
    resolved: ResolvedEngine
    """The engine that the run is recorded for."""
    spec: ReadSpec
    """Columns to read."""
    max_text_bytes: int
    """Longest text."""
    policy: str
    """Long-document policy."""
    rules: Rules
    """The decision."""
    output: OutputSpec
    """What parts look like."""
    commit: CommitSpec | None
    """Where parts go; None: nowhere, because speed alone is looked at."""

    @classmethod
    def of(cls, run: Run, folder: ModelFolder, *, holder: str | None = None) -> Work:
        """The work of a run, with the model where this command has it.

        Args:
            run: The run.
            folder: The model.
            holder: Token of the lease under which parts are committed; None: without one.
        """
        return cls(
            model=folder.location,
            digest=run.identity["model"],
            resolved=run.resolved,
            spec=run.plan.spec,
            max_text_bytes=run.identity["input.max_text_bytes"],
            policy=run.identity["long.policy"],
            rules=run.decision.rules(run.label_set),
            output=run.output,
            commit=run.commit_spec(holder=holder),
        )

    @property
    def reading(self) -> ReadStep:
        """The step that reads."""
        return ReadStep(self.spec, self.max_text_bytes)

    def write(self, scored: pa.Table) -> list[Receipt]:
        """A scored block to parts."""
        assert self.commit is not None
        return commit_parts(scored, self.commit)


class TokenizeStep:
    """Holds a tokenizer; a block's text becomes token ids."""

    def __init__(self, work: Work) -> None:
        """Load the tokenizer."""
        folder = open_model(work.model)
        self._policy = work.policy
        resolved = work.resolved
        self._tokenizer = load_tokenizer(
            folder, max_tokens=resolved.max_tokens, windows=resolved.windows
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Tokenize a block."""
        return tokenize_block(block, self._tokenizer, policy=self._policy)


class ScoreStep:
    """Holds a classifier that has passed its canaries; token ids become labels and scores."""

    def __init__(self, work: Work, *, threads: int | None = None) -> None:
        """Load the recorded engine and check it.

        Raises:
            ModelError: If the model is not the recorded one, or does not hold here.
        """
        folder = open_model(work.model)
        if folder.digest != work.digest:
            raise RayMlcError(
                f"{work.model}: the files on this node differ from those that the run was started "
                f"with ({folder.digest[:12]}, recorded {work.digest[:12]})"
            )
        self._work = work
        self._name = f"{socket.gethostname()} {os.getpid()}"
        self.classifier: Classifier = load_classifier(
            folder, work.resolved, rules=work.rules, threads=threads
        )

    def __call__(self, block: pa.Table, progress: Callable[[int], None] | None = None) -> pa.Table:
        """Score a tokenized block; `progress` is told the rows of each forward pass."""
        return self._score(block, progress, time.perf_counter())

    @cached_property
    def tokenize(self) -> TokenizeStep:
        """The step before, for actors that do both."""
        return TokenizeStep(self._work)

    def both(self, block: pa.Table, progress: Callable[[int], None] | None = None) -> pa.Table:
        """Tokenize and score a block."""
        started = time.perf_counter()
        return self._score(self.tokenize(block), progress, started)

    def _score(
        self, block: pa.Table, progress: Callable[[int], None] | None, started: float
    ) -> pa.Table:
        work = self._work
        scored = score_block(block, self.classifier, work.rules, work.output, progress=progress)
        heap.trim()
        return stamp(scored, seconds=time.perf_counter() - started, actor=self._name)


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
        run: Run,
        work: Work,
        reads: Sequence[NDArray[np.int64]],
        job: ScoreJob,
        *,
        scored: Callable[[Vitals], None],
        stop: Stop,
    ) -> Iterator[list[Receipt]]:
        """Read, score and commit; yields receipts as units are done.

        Args:
            run: The run.
            work: What every process needs of it.
            reads: Positions of the units of each read.
            job: How many processes, and their limits.
            scored: Told, now and then and maybe from another thread, what has been through the
                model: a unit can take minutes, and nothing else is known of it before its receipt.
            stop: When requested, no read is begun, and this ends when what is in flight is done.
        """


@dataclass(frozen=True)
class Inputs:
    """What a job names, found and checked before anything costs time."""

    folder: ModelFolder
    listing: Listing
    validation: Side | None
    """What the model gave at its validation, if drift is limited. Read once: a training into the
    same folder, or `thresholds`, may replace it while the night goes on."""


def find_inputs(job: ScoreJob) -> Inputs:
    """Find model and corpus.

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
    listing = list_corpus(job.input.path)
    refuse_output_in_input(job, listing)
    return Inputs(folder, listing, validation)


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
    deadline = Deadline.next(job.limits.stop_at)
    inputs = inputs or find_inputs(job)
    storage = open_storage(job.output.path)
    held = (
        hold_lease(storage, expiry_s=job.lease.expiry, take_over=take_over, say=display.say)
        if use_lease
        else nullcontext()
    )
    report = leaving_a_report(job, inputs.folder, display, deadline=deadline)
    with completing(display.say) as results, held as lease, report, ExitStack() as stack:
        ready = _Ready(backend, stack, display)
        results.append(_tag(job, ready, display, inputs, storage, lease, deadline, add_new=add_new))
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


def _tag(
    job: ScoreJob,
    ready: _Ready,
    display: Display,
    inputs: Inputs,
    storage: Storage,
    lease: Lease | None,
    deadline: Deadline | None,
    *,
    add_new: bool,
) -> dict[str, Any]:
    """Plan or continue, work off, account for it: the summary."""
    started = time.monotonic()
    folder = inputs.folder

    def check() -> None:
        if lease is not None:
            check_holder(storage, lease.token)

    def resolve_there(model: ModelFolder, plan: CorpusPlan) -> ResolvedEngine:
        there = ready()
        with display.doing("loading the model, trying engines"):
            return there.resolve(model, plan, job)

    with display.stage("plan", None, "footers") as stage:
        stage.doing("looking at the output and new footers")
        run, pending, notes = open_run(
            job,
            folder,
            inputs.listing,
            resolve_there,
            add_new=add_new,
            check=check,
            progress=stage.advance,
        )
    for note in notes:
        display.say(f"note: {note}")
    drift = _drift_of(run, inputs.validation, job.limits)
    known = drift is None or _limit_of(run.summary) == job.limits.drift
    if run.succeeded and not len(pending) and known:
        check_limits(run, run.summary, job.limits)
        display.say("complete already: nothing to do")
        return run.summary
    tally = Tally(run, pending)
    work = Work.of(run, folder, holder=lease.token if lease is not None else None)
    backend = ready() if len(pending) else None
    with listen(job.limits.grace, display.say, deadline=deadline) as stop:
        try:
            if backend is not None:
                _work_off(tally, work, pending, job, backend, display, lease, stop)
        except KeyboardInterrupt:
            if tally.rows(PENDING):
                raise _interrupted(tally, stop.missed) from None
        stop.nothing_in_flight()
        try:
            with display.doing("accounting for every row"):
                return finish_run(
                    run,
                    tally,
                    job.limits,
                    seconds=time.monotonic() - started,
                    check=check,
                    drift=drift,
                )
        except KeyboardInterrupt:
            if run.succeeded:
                return run.summary
            raise _interrupted(tally, stop.missed) from None


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


def _work_off(
    tally: Tally,
    work: Work,
    pending: NDArray[np.int64],
    job: ScoreJob,
    backend: Backend,
    display: Display,
    lease: Lease | None,
    stop: Stop,
) -> None:
    """Process the pending units."""
    run = tally.run
    total, before = run.plan.rows, tally.rows(EARLIER)
    engine = run.resolved
    display.say(
        f"{total:,} rows in {len(run.plan.units):,} units of {len(run.plan.files):,} files; "
        f"{engine.name} {engine.dtype} on {engine.device}, at most {engine.max_tokens} tokens"
        f"{f' in each of {engine.windows.max_windows} windows' if engine.windows else ''}"
    )
    if not before and (measured := describe_trials(engine)):
        display.say(measured)
    if before:
        display.say(f"continuing: {before:,} rows are done already")
    actors = backend.actors(job)
    reads = plan_reads(run, pending, job, actors=actors)
    with (
        display.stage("score", total, "rows", done=before) as stage,
        watching(
            tally,
            stage,
            run.storage,
            actors=actors,
            gpus=engine.device == "cuda",
            token=lease.token if lease is not None else None,
        ) as watch,
    ):
        processes = "1 process" if actors == 1 else f"{actors} processes"
        stage.doing(f"loading the model in {processes}")
        for receipts in backend.process(run, work, reads, job, scored=watch.heard, stop=stop):
            watch.receipts(receipts)
            if lease is not None:
                lease.check()
    if stop.requested and tally.rows(PENDING):
        raise _interrupted(tally, stop.missed)


def _interrupted(tally: Tally, missed: Deadline | None) -> RayMlcError:
    """What a run that did not come to its end says; the deadline, if it was that."""
    done = tally.rows(EARLIER, WRITTEN)
    rest = (
        f"after {done:,} of {tally.run.plan.rows:,} rows; what is written stays, run the same "
        "command to continue"
    )
    if missed is not None:
        return RayMlcError(f"stopped at {missed.text} (limits.stop_at) {rest}")
    return InterruptedRunError(f"interrupted {rest}")


def plan_reads(
    run: Run, pending: NDArray[np.int64], job: ScoreJob, *, actors: int
) -> list[NDArray[np.int64]]:
    """Group the pending units into reads, in the order in which they are begun.

    Few rows are cut finer, so that every actor works to the end.
    """
    reads = order_reads(
        run.plan.units.take(pa.array(pending)),
        max_rows=run.identity["units.rows"],
        max_bytes=job.units.bytes,
        documents_per_s=run.resolved.documents_per_s,
        actors=actors,
    )
    return [pending[read] for read in reads]


def order_reads(
    units: pa.Table, *, max_rows: int, max_bytes: int, documents_per_s: float | None, actors: int
) -> list[NDArray[np.int64]]:
    """Group units into reads, as positions in `units`, in the order in which they are begun.

    Args:
        units: `corpus.units.UNITS_SCHEMA`.
        max_rows: Most rows of a unit.
        max_bytes: Most decoded bytes of a read.
        documents_per_s: Speed of an actor, if it is known.
        actors: How many.
    """
    rows = int(units["rows"].to_numpy().sum(dtype=np.int64))
    max_rows = min(max_rows, max(1, -(-rows // (actors * READS_PER_ACTOR))))
    share = (
        GROUP_SHARE
        if documents_per_s is None
        else min(4 * GROUP_SHARE, documents_per_s / DECODED_PER_S / OVERHEAD)
    )
    reads = list(group_reads(units, max_rows=max_rows, max_bytes=max_bytes, group_share=share))
    sizes = units["bytes"].to_numpy()
    order = np.argsort([-sizes[read].sum() for read in reads], kind="stable")
    # a small one for each actor, so that results show soon; then the longest first, so that none
    # is left to a single actor at the end
    order = np.concatenate([order[-actors:], order[:-actors]])
    return [reads[index] for index in order]
