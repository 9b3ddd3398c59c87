"""The run's ledger: what an output folder promises, and what was planned in which night.

    OUT/_ray_mlc/run.json          what the run is; created once, never rewritten
    OUT/_ray_mlc/job.yaml          the job that started it
    OUT/_ray_mlc/decision-….json   its decision, see `scoring.recorded`
    OUT/_ray_mlc/runs/<n>/         a night: files and units as Arrow files that are named by their
                                   content; night.json names them and is created last
    OUT/_ray_mlc/lease.json        who is writing
    OUT/_ray_mlc/hours.json        until when an unfinished night may go on, see `scoring.hours`
    OUT/_ray_mlc/progress.json     how a night stands that is at work, see `scoring.standing`
    OUT/_ray_mlc/failures.json     files and units that were set aside
    OUT/_ray_mlc/summary.json      counts, tokens, speed
    OUT/_SUCCESS                   comes last; goes first when a night is added

Which units are done is never written down: it is the listing of the output. A part's name follows
from its unit, so that a run that is killed and started again redoes only what was in flight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.footers import read_footers
from ray_mlc.corpus.listing import Listing
from ray_mlc.errors import RunMismatchError, StorageError, UsageError
from ray_mlc.job_files import dump_job
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.folder import ModelFolder
from ray_mlc.scoring import recorded
from ray_mlc.scoring.changes import compare_inputs
from ray_mlc.scoring.identity import asked_for, refuse_difference, versions
from ray_mlc.scoring.nights import LEDGER, Night, now, read_nights, to_json, write_night
from ray_mlc.scoring.origins import Origin, origin_of, refuse_retagged
from ray_mlc.scoring.parts import CommitSpec, OutputSpec, reserved_columns, resolve_format
from ray_mlc.scoring.plan import (
    MAX_UNIT_ROWS,
    STARTERS,
    CorpusPlan,
    FooterReader,
    Inspected,
    combine,
    dump_columns,
    inspect_corpus,
    load_columns,
    unit_rows,
)
from ray_mlc.storage import Storage, existing_paths, join, open_storage, sweep

RUN_FILE = f"{LEDGER}/run.json"
JOB_FILE = f"{LEDGER}/job.yaml"
FAILURES_FILE = f"{LEDGER}/failures.json"
SUMMARY_FILE = f"{LEDGER}/summary.json"
SUCCESS_FILE = "_SUCCESS"
SCRATCH = f"{LEDGER}/tmp"
SCHEMA_VERSION = 3
"""2: the decision in `run.json` itself; 3: beside it."""
_READABLE = (2, SCHEMA_VERSION)


@dataclass(frozen=True)
class Run:
    """An output folder whose run is open."""

    storage: Storage
    """The output folder."""
    record: Mapping[str, Any]
    """Content of `run.json`."""
    nights: tuple[Night, ...]
    """What was planned, in order."""

    @cached_property
    def plan(self) -> CorpusPlan:
        """Files, units and columns of all nights."""
        spec = load_columns(self.record["columns"])
        return combine(spec, [(night.files, night.units) for night in self.nights])

    @cached_property
    def night_of_files(self) -> NDArray[np.int64]:
        """Night in which each file of the plan counts as planned: the last that names it."""
        last = {
            source: night.number
            for night in self.nights
            for source in night.files["source"].to_pylist()
        }
        return np.array([last[source] for source in self.plan.sources], np.int64)

    def units_of_night(self, number: int) -> NDArray[np.int64]:
        """Positions of a night's units in the plan."""
        night_of_units = self.night_of_files[self.plan.units["file"].to_numpy()]
        return np.flatnonzero(night_of_units == number)

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides what the rows contain."""
        return dict(self.record["identity"])

    @property
    def starters(self) -> int:
        """Pieces that the first unit of the first night is cut into."""
        return starters_of(self.record)

    @property
    def digest(self) -> str:
        """SHA-256 of the identity: in the footer of every part."""
        return str(self.record["digest"])

    @property
    def origin(self) -> Origin | None:
        """The output whose stored scores this run decides anew; None: it scores a corpus."""
        return origin_of(self.record)

    @property
    def resolved(self) -> ResolvedEngine:
        """The engine that the run is recorded for."""
        return ResolvedEngine.model_validate(self.record["engine"])

    @property
    def label_set(self) -> LabelSet:
        """Labels in column order."""
        return LabelSet(tuple(self.record["labels"]))

    @cached_property
    def decision(self) -> Decision:
        """The decision that makes the labels: that of the first start, whatever the model's now."""
        return recorded.read_decision(self.storage, self.identity["decision"])

    @property
    def output(self) -> OutputSpec:
        """What parts look like."""
        identity = self.identity
        return OutputSpec(
            self.plan.spec.kept_schema,
            self.label_set,
            identity["output.format"],
            identity["output.k"],
            identity["output.floor"],
        )

    def commit_spec(self, *, holder: str | None) -> CommitSpec:
        """What a writing process needs.

        Args:
            holder: Token of the lease that the writer works under; None: without one.
        """
        identity = self.identity
        columns = zip(self.label_set.names, self.output.label_set.column_names, strict=True)
        footer = {
            "schema_version": SCHEMA_VERSION,
            "run": self.digest,
            "model": {"id": self.record["model"], "digest": identity["model"]},
            "labels": list(self.label_set.names),
            "columns": {name: column for name, column in columns if name != column},
            "decision": recorded.footer_of(self.decision, self.label_set),
            "long": {
                key: identity.get(f"long.{key}") for key in ("policy", "max_tokens", "windows")
            },
            "format": {key: identity[f"output.{key}"] for key in ("format", "k", "floor")},
            "engine": self.resolved.model_dump(),
            "versions": versions(),
        }
        return CommitSpec(self.storage, self.output, footer, holder)

    @property
    def part_paths(self) -> list[str]:
        """Path of each unit's part, in unit order."""
        return self.plan.parts

    def listing(self) -> set[str]:
        """Paths of all that is in the output now."""
        return existing_paths(self.storage.list())

    def pending(self, there: set[str] | None = None) -> NDArray[np.int64]:
        """Positions of the units that have no part.

        Args:
            there: A listing of the output; None: it is listed here.
        """
        there = self.listing() if there is None else there
        return np.array(
            [index for index, part in enumerate(self.part_paths) if part not in there], np.int64
        )

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that the last process wrote; empty if none has finished."""
        return dict(json.loads(self.storage.read(SUMMARY_FILE) or b"{}"))

    @property
    def succeeded(self) -> bool:
        """Whether `_SUCCESS` is there."""
        return self.storage.read(SUCCESS_FILE) is not None


def open_run(
    job: ScoreJob,
    model: ModelFolder,
    listing: Listing,
    resolve: Callable[[ModelFolder, CorpusPlan], ResolvedEngine],
    *,
    add_new: bool = False,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] | None = None,
    read: FooterReader = read_footers,
    speed: Callable[[ResolvedEngine], float | None] = lambda engine: engine.documents_per_s,
    starters: int | None = None,
) -> tuple[Run, NDArray[np.int64], list[str]]:
    """Start a run in an empty output folder, or continue the one that is there.

    Files that could not be read when they were planned are looked at again: those that can be read
    now are planned as another night.

    Args:
        job: What the command asks for.
        model: The model, found complete.
        listing: The input's files as they are now.
        resolve: Turns every `auto` of the engine into a fact, where the actors will run, for a
            model and a plan; called only for a new run.
        add_new: Plan files that the run does not know as its next night.
        check: Called before anything becomes valid; raises if the output is no longer ours.
        progress: Called with 1 after each footer.
        read: How footers are read.
        speed: Documents per second of an actor, by which `units.rows: auto` is decided.
        starters: Pieces of the first unit of a new run; None: as `units.rows` says.

    Returns:
        The run, the positions of the units to do, and sentences that the user should see.

    Raises:
        RunMismatchError: If the folder holds another run, or an input file has changed since.
        DataError: If the input cannot be scored as asked.
    """
    storage = open_storage(job.output.path)
    found = storage.read(RUN_FILE)
    planner = _Planner(job, model, storage, progress, check, read, speed, starters)
    if found is None:
        refuse_foreign(storage)
        planner.start(listing, resolve)
        found = storage.read(RUN_FILE)
        if found is None:
            raise StorageError(f"{join(storage.uri, RUN_FILE)}: written, but it cannot be read")
    record = decode_record(storage, found)
    refuse_retagged(record, uri=storage.uri)
    decision = recorded.read_decision(storage, record["identity"]["decision"])
    notes = refuse_difference(record, decision, job, model, uri=storage.uri)
    nights = read_nights(storage)
    if not nights:  # killed between run.json and its first night
        notes += planner.add(1, record, listing, {})
        nights = read_nights(storage)
    run = Run(storage, record, nights)
    sweep(storage, SCRATCH)  # temporary files of killed writers; a living one writes its again
    there = run.listing()
    pending = run.pending(there)
    changes = compare_inputs(run.plan, pending, listing, uri=storage.uri, add_new=add_new)
    notes += changes.notes
    if changes.to_plan or len(pending):
        check()
        storage.delete(SUCCESS_FILE)  # goes before there is more to do, and comes back last
    if changes.to_plan:
        wanted = Listing(listing.root, changes.to_plan, listing.hidden)
        notes += planner.add(len(nights) + 1, record, wanted, changes.record)
        run = Run(storage, record, read_nights(storage))
        pending = run.pending(there)
    if hidden := run.nights[0].record.get("hidden"):
        notes.append(f"{len(hidden)} hidden file(s) were skipped, such as {hidden[0]}")
    return run, pending, notes


def read_run(storage: Storage) -> Run:
    """The run of an output folder.

    Raises:
        UsageError: If there is none.
    """
    found = storage.read(RUN_FILE)
    if found is None:
        raise UsageError(
            f"{storage.uri}: there is no run here ({RUN_FILE} is missing): name the output folder "
            "of `ray-mlc score`"
        )
    record = decode_record(storage, found)
    nights = read_nights(storage)
    if not nights:
        raise UsageError(
            f"{storage.uri}: the run was stopped before its plan was written: run the same "
            "`ray-mlc score` command again"
        )
    return Run(storage, record, nights)


def decode_record(storage: Storage, found: bytes) -> dict[str, Any]:
    """Content of a `run.json`.

    Raises:
        UsageError: If this ray_mlc cannot go on with it.
    """
    try:
        record = dict(json.loads(found))
    except ValueError:
        raise UsageError(f"{join(storage.uri, RUN_FILE)}: not valid JSON") from None
    if record.get("schema_version") not in _READABLE:
        raise UsageError(
            f"{join(storage.uri, RUN_FILE)}: has schema version {record.get('schema_version')}, "
            f"expected {SCHEMA_VERSION}: continue it with the ray-mlc that started it "
            f"({record.get('versions', {}).get('ray-mlc', 'unknown')})"
        )
    return record


def starters_of(record: Mapping[str, Any]) -> int:
    """Pieces that the first unit of a run is cut into; runs of earlier versions say nothing."""
    return int(record.get("starters", 1))


def digest_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides what the rows contain."""
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def create_run(storage: Storage, record: Mapping[str, Any], decision: Decision, job: str) -> bool:
    """Create `run.json`, exclusively, with the decision and the job beside it.

    Returns:
        Whether this command has created it: of two starters one has.
    """
    recorded.write_decision(storage, decision)
    created = storage.create(RUN_FILE, to_json(record))
    if created:
        storage.put(JOB_FILE, job.encode())
    return created


@dataclass(frozen=True)
class _Planner:
    """Writes runs and nights; what is planned becomes valid with the last file."""

    job: ScoreJob
    model: ModelFolder
    storage: Storage
    progress: Callable[[int], None] | None
    check: Callable[[], None]
    read: FooterReader
    speed: Callable[[ResolvedEngine], float | None]
    starters: int | None = None

    def start(
        self, listing: Listing, resolve: Callable[[ModelFolder, CorpusPlan], ResolvedEngine]
    ) -> None:
        """Plan the first night, then create `run.json` exclusively: of two starters one wins."""
        job, model = self.job, self.model
        format_ = resolve_format(job.output.format, model.label_set)
        inspected = self._inspect(listing, format_, None)
        asked_rows, max_bytes = job.units.rows, job.units.bytes
        max_rows = MAX_UNIT_ROWS if asked_rows == "auto" else asked_rows
        plan = inspected.cut(max_rows=max_rows, max_bytes=max_bytes)
        resolved = resolve(model, plan)
        starters = self.starters or (STARTERS if asked_rows == "auto" else 1)
        if asked_rows == "auto":
            max_rows = unit_rows(self.speed(resolved))
        if asked_rows == "auto" or starters > 1:
            plan = inspected.cut(max_rows=max_rows, max_bytes=max_bytes, starters=starters)
        identity = {
            **asked_for(job, model),
            "output.format": format_,
            "units.rows": max_rows,
            "long.max_tokens": resolved.max_tokens,
            "engine.name": resolved.name,
            "engine.device": resolved.device,
            "engine.dtype": resolved.dtype,
            "engine.packed": resolved.packed,
            "batching.max_batch_tokens": resolved.max_batch_tokens,
            **({"engine.weights": resolved.weights} if resolved.weights else {}),
            "columns": [f"{item.name} → {item.output}: {item.type}" for item in plan.spec.kept],
        }
        record = {
            "schema_version": SCHEMA_VERSION,
            "digest": digest_of(identity),
            "created": now(),
            "model": model.name,
            "model_location": model.location,
            "labels": list(model.label_set.names),
            "engine": resolved.model_dump(),
            "identity": identity,
            "starters": starters,
            "columns": dump_columns(plan.spec),
            "versions": versions(),
        }
        self.check()
        if create_run(self.storage, record, model.info.decision, dump_job(job)):
            self._write(1, plan, listing, {})

    def add(
        self,
        number: int,
        record: Mapping[str, Any],
        listing: Listing,
        more: Mapping[str, Any],
    ) -> list[str]:
        """Plan some files as a night of their own, by `run.json`; what the user should know."""
        format_ = resolve_format(self.job.output.format, self.model.label_set)
        inspected = self._inspect(listing, format_, load_columns(record["columns"]))
        identity = record["identity"]
        plan = inspected.cut(
            max_rows=identity["units.rows"],
            max_bytes=identity["units.bytes"],
            starters=starters_of(record) if number == 1 else 1,
        )
        left_out = list(inspected.left_out)
        self._write(number, plan, listing, {**more, "left_out": left_out})
        if not left_out:
            return []
        return [f"the run has no column {', '.join(left_out)}: left out of the new files' parts"]

    def _inspect(self, listing: Listing, format_: str, spec: ReadSpec | None) -> Inspected:
        reserved = reserved_columns(format_, self.model.label_set)
        return inspect_corpus(
            listing,
            self.job,
            reserved=reserved,
            spec=spec,
            progress=self.progress,
            read=self.read,
        )

    def _write(
        self, number: int, plan: CorpusPlan, listing: Listing, more: Mapping[str, Any]
    ) -> None:
        record = {"hidden": list(listing.hidden), **more}
        write_night(self.storage, number, plan, record, check=self.check)


def refuse_foreign(storage: Storage) -> None:
    """Refuse a folder with Parquet files but without a run: it is somebody else's.

    Raises:
        RunMismatchError: Naming one of them.
    """
    for info in storage.list():
        if info.path.endswith(".parquet"):
            raise RunMismatchError(
                f"{storage.uri}: holds {info.path}, which belongs to no run of ray-mlc: "
                "choose an empty or new folder"
            )
