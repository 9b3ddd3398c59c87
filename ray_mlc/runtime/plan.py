"""What a night would be, before anything is spent on it: `ray-mlc plan`.

footers → rows to do → sample → engine, as `score` chooses it → probe → forecast. Nothing is written
beside what every command keeps in this machine's cache.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob, parse_time_of_day
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.listing import Listing
from ray_mlc.corpus.rows import BLOCK_FAULT, BLOCK_STATUS, BLOCK_TEXT, STATUSES, read_block
from ray_mlc.errors import ConfigError, DataError
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Rules
from ray_mlc.model.engines.choose import ResolvedEngine, load_tokenizer
from ray_mlc.model.folder import ModelFolder
from ray_mlc.runtime.backend import Backend, remembers
from ray_mlc.runtime.inputs import Inputs
from ray_mlc.runtime.probe import Probe, padding_of, speed_of
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.steps import Work
from ray_mlc.scoring.changes import compare_inputs
from ray_mlc.scoring.forecast import (
    FOOTER_BYTES,
    RECALL_S,
    Estimate,
    Forecast,
    Kind,
    Load,
    Pick,
    Probed,
    actors_for,
    forecast,
    mean_of,
    pick_rows,
    work_of,
)
from ray_mlc.scoring.hours import seconds_until
from ray_mlc.scoring.identity import refuse_difference
from ray_mlc.scoring.ledger import RUN_FILE, Run, read_run
from ray_mlc.scoring.parts import OutputSpec, reserved_columns, resolve_format
from ray_mlc.scoring.plan import (
    MAX_UNIT_ROWS,
    STARTERS,
    CorpusPlan,
    Inspected,
    combine,
    inspect_corpus,
    unit_rows,
)
from ray_mlc.scoring.reads import order_reads
from ray_mlc.scoring.score import BLOCK_WINDOWS, tokenize_block
from ray_mlc.storage import open_storage

SAMPLE_ROWS = 2048
"""Documents that are looked at, at most."""
STRATA = 32
"""Units that they are taken of, at most: each is read whole."""
STRATA_LEAST = 4
SAMPLE_BYTES = 2 * 2**30
"""Decoded bytes that are read for it: where units are large, fewer are looked at."""
TEXT_BYTES = 64 * 2**20
"""Bytes of text that are kept of it: where documents are long, fewer of them are."""
NOWHERE = "/nowhere"
"""Output of a plan that was given none: in no input."""


class PlanBackend(Backend, Protocol):
    """A backend that can also be asked how fast it would be."""

    def kind(self, job: ScoreJob) -> Kind:
        """What its actors are, and its nodes."""

    def probe(self, work: Work, block: pa.Table, block_rows: int) -> list[Probe]:
        """Run the steps on a block in as many processes at once as a node would hold."""


@dataclass(frozen=True)
class Question:
    """What is asked of a plan beside the job."""

    actors: int | None = None
    """How many; None: as many as the machine or cluster holds."""
    deadline: str | None = None
    """Time of day at which all has to be done."""
    start: str | None = None
    """Time of day at which it would be begun; None: now."""
    price: float | None = None
    """Of one node for one hour."""
    add_new: bool = False
    """Whether files that the run does not know join it."""
    seed: int = 0
    """Of the sample."""


def check_question(question: Question, *, local: bool) -> None:
    """Refuse times that are none, and actors where there are none, before anything costs time.

    Raises:
        ConfigError: Naming the option.
    """
    for option, value in (("--deadline", question.deadline), ("--start", question.start)):
        if value is not None:
            try:
                parse_time_of_day(value)
            except ValueError as error:
                raise ConfigError(f"{option} {value}: {error}") from None
    if question.start is not None and question.deadline is None:
        raise ConfigError("--start has no meaning without --deadline")
    if local and question.actors is not None:
        raise ConfigError("--actors has no meaning with --local, which is one process")


@dataclass(frozen=True)
class Todo:
    """What is to be scored."""

    plan: CorpusPlan
    pending: NDArray[np.int64]
    """Positions of the units that are not there yet."""
    groups: int
    """Row groups of the files that were looked at here; 0 of those that a run has planned."""
    notes: Sequence[str]
    run: Run | None = None
    """The run that the output holds."""
    inspected: Inspected | None = None
    """Files of a run that has not begun: units are cut anew when the speed is known."""

    @property
    def units(self) -> pa.Table:
        """The units to be done."""
        return self.plan.units.take(pa.array(self.pending))

    def cut(self, max_rows: int, job: ScoreJob) -> Todo:
        """With units of so many rows, where that is still open."""
        if self.inspected is None:
            return self
        starters = STARTERS if job.units.rows == "auto" else 1  # as `open_run` has it
        max_bytes = job.units.bytes
        plan = self.inspected.cut(max_rows=max_rows, max_bytes=max_bytes, starters=starters)
        return replace(self, plan=plan, pending=np.arange(len(plan.units)))


@dataclass(frozen=True)
class Sample:
    """Some rows of the corpus, tokenized."""

    block: pa.Table
    """As `read_block` returns it, without what could not be read, in random order."""
    whole: bool
    """Whether these are all rows."""
    tokens: Estimate
    """Per row, before cutting; 0 of a row without a text."""
    scored: Estimate
    """Per row, after cutting, and without texts that are there again in their unit."""
    repeated: Estimate
    """Share of the text that is there again in its unit, and scored once."""
    cut: Estimate
    """Share of the rows of which something is cut."""
    windowed: Estimate
    """Share of the rows that are read in more than one window."""
    statuses: dict[str, int]
    """Rows of the sample by what becomes of them."""
    unreadable_units: list[str]
    """Reasons why units of it cannot be read."""
    percentiles: dict[str, int]
    """Of tokens before cutting, over rows with a text."""


def plan_night(
    job: ScoreJob,
    backend: PlanBackend,
    display: Display,
    question: Question,
    *,
    inputs: Inputs,
) -> dict[str, Any]:
    """Say what scoring would come to.

    Args:
        job: What would be scored; its output may be `NOWHERE`.
        backend: Where.
        display: Told about progress.
        question: What else is asked.
        inputs: What `find_inputs` found.

    Returns:
        JSON: see `docs/operations.md`.

    Raises:
        UsageError: As `score` would.
    """
    began = time.monotonic()
    folder = inputs.folder
    with display.stage("plan", None, "footers") as stage:
        stage.doing("reading new footers")
        todo = _todo(job, inputs, add_new=question.add_new, progress=stage.advance)
    for note in todo.notes:
        display.say(f"note: {note}")
    if not len(todo.pending):
        return _answer(job, todo, None, None, None, question)
    text = backend.starting
    if text:
        display.begins(text)
    with backend.start():
        begin_s = time.monotonic() - began
        resolved, choose_s = _engine(job, backend, display, folder, todo)
        rows = job.units.rows
        if todo.run is not None:
            rows = todo.run.identity["units.rows"]
        elif rows == "auto":
            rows = unit_rows(resolved.documents_per_s)
        todo = todo.cut(int(rows), job)
        with display.doing("reading and tokenizing a sample"):
            sample = look_at(todo, job, folder, resolved, seed=question.seed)
        work = _work(job, folder, todo, resolved)
        kind, actors = backend.kind(job), backend.actors(job)
        with display.doing("timing the engine on the sample"):
            probes = backend.probe(work, sample.block, int(rows))
    speed, error = speed_of(probes)
    probed = Probed(
        tokens_per_s=speed,
        error=error,
        actor_bytes=max(probe.memory_bytes for probe in probes),
        load_s=max(probe.load_s for probe in probes),
        begin_s=begin_s,
        choose_s=choose_s,
    )
    return _answer(
        job, todo, sample, _Speed(resolved, probed, kind, actors, probes), work, question
    )


def _todo(job: ScoreJob, inputs: Inputs, *, add_new: bool, progress: Callable[[int], None]) -> Todo:
    """Find what is to be done, without changing anything."""
    found = None
    if job.output.path != NOWHERE:
        storage = open_storage(job.output.path)
        found = storage.read(RUN_FILE)
    if found is None:
        inspected = _inspect(job, inputs.folder, inputs.listing, None, progress)
        rows = MAX_UNIT_ROWS if job.units.rows == "auto" else job.units.rows
        plan = inspected.cut(max_rows=rows, max_bytes=job.units.bytes)
        groups = sum(len(footer.group_rows) for footer in inspected.footers)
        return Todo(plan, np.arange(len(plan.units)), groups, [], inspected=inspected)
    run = read_run(storage)
    notes = refuse_difference(run.record, run.decision, job, inputs.folder, uri=storage.uri)
    there = run.listing()
    pending = run.pending(there)
    changes = compare_inputs(run.plan, pending, inputs.listing, uri=storage.uri, add_new=add_new)
    notes += changes.notes
    if not changes.to_plan:
        return Todo(run.plan, pending, 0, notes, run=run)
    wanted = Listing(inputs.listing.root, changes.to_plan, ())
    inspected = _inspect(job, inputs.folder, wanted, run.plan.spec, progress)
    new = inspected.cut(max_rows=run.identity["units.rows"], max_bytes=run.identity["units.bytes"])
    nights = [(night.files, night.units) for night in run.nights]
    plan = combine(run.plan.spec, [*nights, (new.files, new.units)])
    pending = np.array(
        [index for index, part in enumerate(plan.parts) if part not in there], np.int64
    )
    groups = sum(len(footer.group_rows) for footer in inspected.footers)
    return Todo(plan, pending, groups, notes, run=run)


def _inspect(
    job: ScoreJob,
    folder: ModelFolder,
    listing: Listing,
    spec: ReadSpec | None,
    progress: Callable[[int], None],
) -> Inspected:
    format_ = resolve_format(job.output.format, folder.label_set)
    reserved = reserved_columns(format_, folder.label_set)
    return inspect_corpus(listing, job, reserved=reserved, spec=spec, progress=progress)


def _engine(
    job: ScoreJob, backend: PlanBackend, display: Display, folder: ModelFolder, todo: Todo
) -> tuple[ResolvedEngine, float]:
    """The engine of the run, or the one that it would choose; and how long choosing takes."""
    if todo.run is not None:
        return todo.run.resolved, 0.0
    started = time.monotonic()
    with display.doing("loading the model, trying engines"):
        resolved = backend.resolve(folder, todo.plan, job)
    seconds = time.monotonic() - started
    kind = backend.kind(job)
    alone = kind.nodes(backend.actors(job)) == 1
    found = resolved.documents_per_s is not None and resolved.measured_at is None
    # in one process the time holds imports that scoring needs, too
    if kind.ray and alone and found and remembers(job, folder, cuda=kind.gpus > 0):
        seconds = min(seconds, RECALL_S)  # the night finds what was tried on this machine
    return resolved, seconds


def _work(job: ScoreJob, folder: ModelFolder, todo: Todo, resolved: ResolvedEngine) -> Work:
    """What a process needs to score, and not to write."""
    if todo.run is not None:
        return replace(Work.of(todo.run, folder), commit=None)
    label_set: LabelSet = folder.label_set
    rules: Rules = folder.info.decision.rules(label_set)
    format_ = resolve_format(job.output.format, label_set)
    output = OutputSpec(
        todo.plan.spec.kept_schema, label_set, format_, job.output.k, job.output.floor
    )
    return Work(
        model=folder.location,
        digest=folder.digest,
        resolved=resolved,
        spec=todo.plan.spec,
        max_text_bytes=job.input.max_text_bytes,
        policy=str(folder.long(job.long).policy),
        rules=rules,
        output=output,
        commit=None,
    )


def look_at(
    todo: Todo, job: ScoreJob, folder: ModelFolder, resolved: ResolvedEngine, *, seed: int
) -> Sample:
    """Read and tokenize some rows that speak for all that are to be done.

    Raises:
        DataError: If none of them can be read.
    """
    units = todo.units
    rows_U, bytes_U = (units[name].to_numpy().astype(np.int64) for name in ("rows", "bytes"))
    row_bytes = max(1.0, bytes_U.sum() / max(1, rows_U.sum()))
    rows = int(max(STRATA_LEAST, min(SAMPLE_ROWS, TEXT_BYTES / row_bytes)))
    strata = int(max(STRATA_LEAST, min(STRATA, SAMPLE_BYTES / max(1, bytes_U.mean()))))
    picks = pick_rows(rows_U, strata=strata, rows=rows, seed=seed)
    whole = sum(len(pick.rows) for pick in picks) == int(rows_U.sum())
    tokenizer = load_tokenizer(folder, max_tokens=resolved.max_tokens, windows=resolved.windows)
    policy = str(folder.long(job.long).policy)
    blocks, strata_of, again, faults = [], [], [], []
    for block, share, fault in _read(todo, picks, job):
        if fault is not None:
            faults.append(fault)
            continue
        blocks.append(block)
        again.append(np.array([share]))
        strata_of.append(tokenize_block(block, tokenizer, policy=policy))
    if not blocks:
        raise DataError(f"{todo.plan.spec.root}: nothing in the sample can be read: {faults[0]}")
    all_rows = pa.concat_tables(blocks).unify_dictionaries().combine_chunks()
    order = np.random.default_rng(seed).permutation(all_rows.num_rows)
    statuses = np.concatenate([item[BLOCK_STATUS].to_numpy() for item in strata_of])
    counts = np.bincount(statuses, minlength=len(STATUSES)).tolist()
    tokens = [_filled(item["n_tokens"]) for item in strata_of]
    with_text = np.concatenate(tokens)
    with_text = with_text[with_text > 0]
    repeated = mean_of(again, whole=whole)
    scored = mean_of([_kept(item) for item in strata_of], whole=whole)
    return Sample(
        block=all_rows.take(pa.array(order)),
        whole=whole,
        tokens=mean_of(tokens, whole=whole),
        scored=scored.times(1 - repeated.value),
        repeated=repeated,
        cut=mean_of([_filled(item["truncated"]) for item in strata_of], whole=whole),
        windowed=mean_of(
            [(_windows(item) > 1).astype(np.float64) for item in strata_of], whole=whole
        ),
        statuses={name: n for name, n in zip(STATUSES, counts, strict=True) if n},
        unreadable_units=faults,
        percentiles={
            f"p{share}": int(np.percentile(with_text, share)) if len(with_text) else 0
            for share in (50, 90, 99)
        },
    )


def _read(
    todo: Todo, picks: Sequence[Pick], job: ScoreJob
) -> Iterator[tuple[pa.Table, float, str | None]]:
    """Picked rows of a unit, how much of its text is there again, and why it is unreadable."""
    units = todo.plan.units_at(todo.pending[[pick.unit for pick in picks]])
    for unit, pick in zip(units, picks, strict=True):
        low, high = int(pick.rows[0]), int(pick.rows[-1]) + 1
        part = replace(
            unit,
            first_row=unit.first_row + low,
            rows=high - low,
            group_offset=unit.group_offset + low,
        )
        block = read_block([part], todo.plan.spec, max_text_bytes=job.input.max_text_bytes)
        fault = block[BLOCK_FAULT][0].as_py() if block.num_rows else None
        if fault is not None:
            yield block, 0.0, f"{unit.source}: {fault}"
        else:
            yield block.take(pa.array(pick.rows - low)), repeated_share(block[BLOCK_TEXT]), None


def repeated_share(texts: pa.ChunkedArray) -> float:
    """Share of the bytes of some texts that an equal text before them has already."""
    every, once = (pc.sum(pc.binary_length(some)).as_py() or 0 for some in (texts, texts.unique()))
    return 1 - once / every if every else 0.0


def _filled(column: pa.ChunkedArray) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
    return filled


def _windows(tokenized: pa.Table) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = (
        pc.list_value_length(tokenized[BLOCK_WINDOWS]).to_numpy().astype(np.float64)
    )
    return counts


def _kept(tokenized: pa.Table) -> NDArray[np.float64]:
    """Tokens of each row that are scored, over all its windows."""
    lists = tokenized[BLOCK_WINDOWS].combine_chunks()
    ends = np.append(0, np.cumsum(lists.flatten().to_numpy(), dtype=np.int64))
    offsets = np.append(0, np.cumsum(_windows(tokenized), dtype=np.int64))
    kept: NDArray[np.float64] = (ends[offsets[1:]] - ends[offsets[:-1]]).astype(np.float64)
    return kept


@dataclass(frozen=True)
class _Speed:
    """How fast it would be."""

    resolved: ResolvedEngine
    probed: Probed
    kind: Kind
    actors: int
    """That the run would have."""
    probes: Sequence[Probe]


def _answer(
    job: ScoreJob,
    todo: Todo,
    sample: Sample | None,
    speed: _Speed | None,
    work: Work | None,
    question: Question,
) -> dict[str, Any]:
    """Everything that is known, as JSON."""
    units = todo.units
    rows = int(units["rows"].to_numpy().sum(dtype=np.int64))
    faulty = todo.plan.faulty_files()
    answer: dict[str, Any] = {
        "model": job.model,
        "input": {
            "rows": rows,
            "bytes": int(units["bytes"].to_numpy().sum(dtype=np.int64)),
            "files": len(todo.plan.files),
            "row_groups": todo.groups or None,
            "units": len(units),
            "written_rows": todo.plan.rows - rows,
        },
        "set_aside": {
            "files": [
                {"source": row["source"], "rows": row["rows"], "reason": row["fault"]}
                for row in faulty
            ],
            "rows": sum(row["rows"] or 0 for row in faulty),
        },
        "notes": list(todo.notes),
    }
    if sample is None or speed is None:
        return answer | {"nothing_to_do": True}
    answer |= _describe_sample(sample, rows)
    answer["engine"] = {
        **speed.resolved.model_dump(exclude={"trials"}),
        "tokens_per_s": round(speed.probed.tokens_per_s, 1),
        "processes": len(speed.probes),
        "padding": round(padding_of(speed.probes), 4),
        "actors_per_node": speed.kind.actors_per_node,
    }
    load = _load(job, todo, sample, speed.resolved, rows)
    assert work is not None
    if job.report.at_end:
        stored = len(work.output.label_set)
        stored = min(stored, job.output.k) if work.output.format == "sparse" else stored
        load = replace(load, report_scores=rows * stored)
    asked = (question.actors or speed.actors) if speed.kind.ray else 1
    night = forecast(load, speed.probed, speed.kind, actors=asked)
    answer["forecast"] = night.to_dict()
    probe = speed.probes[0]
    answer["output"] = {
        "bytes": int(rows * probe.row_bytes + len(units) * (probe.part_bytes + FOOTER_BYTES)),
        "parts": len(units),
    }
    if question.price is not None:
        cost = night.node_hours.times(question.price)
        answer["cost"] = {"per_node_hour": question.price, **cost.to_dict()}
    if question.deadline is not None:
        answer["deadline"] = _deadline(question, load, speed, night)
    return answer


def _describe_sample(sample: Sample, rows: int) -> dict[str, Any]:
    shown = sample.block.num_rows
    return {
        "sample": {
            "rows": shown,
            "whole": sample.whole,
            "statuses": sample.statuses,
            "unreadable_units": sample.unreadable_units,
        },
        "tokens": {
            "all": sample.tokens.times(rows).to_dict(),
            "scored": sample.scored.times(rows).to_dict(),
            "per_row": sample.tokens.to_dict(),
            **sample.percentiles,
        },
        "cut": sample.cut.to_dict(),
        "windowed": sample.windowed.to_dict(),
        "repeated": sample.repeated.to_dict(),
    }


def _load(job: ScoreJob, todo: Todo, sample: Sample, resolved: ResolvedEngine, rows: int) -> Load:
    units = todo.units
    rows_U, sizes_U = (units[name].to_numpy().astype(np.int64) for name in ("rows", "bytes"))
    work_U = work_of(rows_U, sizes_U, max_tokens=resolved.most_tokens)

    def grouped(actors: int) -> list[NDArray[np.int64]]:
        return order_reads(
            units,
            max_rows=int(rows_U.max(initial=1)),
            max_bytes=job.units.bytes,
            documents_per_s=resolved.documents_per_s,
            actors=actors,
        )

    return Load(
        rows=rows,
        bytes=int(sizes_U.sum()),
        tokens=sample.scored.times(rows),
        reads=lambda actors: np.array([work_U[read].sum() for read in grouped(actors)]),
        block_bytes=max((int(sizes_U[read].sum()) for read in grouped(1)), default=0),
    )


def _deadline(question: Question, load: Load, speed: _Speed, night: Forecast) -> dict[str, Any]:
    """Whether it is done in time, and how many actors that takes."""
    assert question.deadline is not None
    now = datetime.datetime.now(datetime.UTC)
    wait_s = 0.0 if question.start is None else seconds_until(question.start, now)
    begin = now + datetime.timedelta(seconds=wait_s)
    available_s = seconds_until(question.deadline, begin)
    enough = actors_for(load, speed.probed, speed.kind, seconds=available_s)
    return {
        "at": question.deadline,
        "start": begin.astimezone().isoformat(timespec="minutes"),
        "seconds": round(available_s, 1),
        "holds": night.seconds.high <= available_s,
        "ends": (begin + datetime.timedelta(seconds=night.seconds.value))
        .astimezone()
        .isoformat(timespec="minutes"),
        "actors": None if enough is None else enough[0],
        "nodes": None if enough is None else enough[1].nodes,
    }
