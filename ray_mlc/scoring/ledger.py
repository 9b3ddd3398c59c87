"""The run's ledger: what an output folder promises, and what was planned in which night.

    OUT/_ray_mlc/run.json          what the run is; created once, never rewritten
    OUT/_ray_mlc/job.yaml          the job that started it
    OUT/_ray_mlc/runs/<n>/         a night: files and units as Arrow files that are named by their
                                   content; night.json names them and is created last
    OUT/_ray_mlc/lease.json        who is writing
    OUT/_ray_mlc/failures.json     files and units that were set aside
    OUT/_ray_mlc/summary.json      counts, tokens, speed
    OUT/_SUCCESS                   comes last; goes first when a night is added

Which units are done is never written down: it is the listing of the output. A part's name follows
from its unit, so that a run that is killed and started again redoes only what was in flight.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc import __version__
from ray_mlc.config import ScoreJob, dump_job
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.listing import Listing, would_list
from ray_mlc.corpus.units import Unit, units_at
from ray_mlc.errors import DataError, RunMismatchError, StorageError, UsageError
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.folder import ModelFolder
from ray_mlc.scoring.changes import compare_inputs
from ray_mlc.scoring.parts import CommitSpec, OutputSpec, reserved_columns, resolve_format
from ray_mlc.scoring.plan import (
    CorpusPlan,
    combine,
    dump_columns,
    dump_table,
    load_columns,
    load_table,
    plan_corpus,
)
from ray_mlc.storage import (
    Storage,
    existing_paths,
    filesystem_of,
    join,
    open_storage,
    scheme_of,
    sweep,
)

LEDGER = "_ray_mlc"
RUN_FILE = f"{LEDGER}/run.json"
JOB_FILE = f"{LEDGER}/job.yaml"
FAILURES_FILE = f"{LEDGER}/failures.json"
SUMMARY_FILE = f"{LEDGER}/summary.json"
SUCCESS_FILE = "_SUCCESS"
NIGHT_FILE, FILES, UNITS = "night.json", "files", "units"
NIGHTS_FOLDER = f"{LEDGER}/runs"
SCRATCH = f"{LEDGER}/tmp"
SCHEMA_VERSION = 2
_VERSIONED = ("ray-mlc", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done and the total."""


@dataclass(frozen=True)
class Night:
    """One plan executed in a run."""

    number: int
    """1 for the first."""
    record: Mapping[str, Any]
    """Content of `night.json`."""
    files: pa.Table
    """`scoring.plan.FILES_SCHEMA`."""
    units: pa.Table
    """`corpus.units.UNITS_SCHEMA`."""


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

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides what the rows contain."""
        return dict(self.record["identity"])

    @property
    def digest(self) -> str:
        """SHA-256 of the identity: in the footer of every part."""
        return str(self.record["digest"])

    @property
    def resolved(self) -> ResolvedEngine:
        """The engine that the run is recorded for."""
        return ResolvedEngine.model_validate(self.record["engine"])

    @property
    def label_set(self) -> LabelSet:
        """Labels in column order."""
        return LabelSet(tuple(self.record["labels"]))

    @property
    def decision(self) -> Decision:
        """The decision that makes the labels."""
        return Decision.model_validate(self.identity["decision"])

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
            "decision": identity["decision"],
            "long": {"policy": identity["long.policy"], "max_tokens": identity["long.max_tokens"]},
            "format": {key: identity[f"output.{key}"] for key in ("format", "k", "floor")},
            "engine": self.resolved.model_dump(),
            "versions": versions(),
        }
        return CommitSpec(self.storage, self.output, footer, self.resolved.max_tokens, holder)

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

    def units(self, positions: NDArray[np.int64]) -> list[Unit]:
        """The units at some positions of the plan."""
        plan = self.plan
        units = units_at(plan.units, positions, plan.sources, plan.part_folders)
        files = plan.units["file"].to_numpy()[positions].tolist()
        size_F, mtime_F = (plan.files[name].to_numpy() for name in ("size", "mtime_ns"))
        return [
            replace(unit, file_size=int(size_F[file]), file_mtime_ns=int(mtime_F[file]))
            for unit, file in zip(units, files, strict=True)
        ]

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
    resolve: Callable[[ModelFolder], ResolvedEngine],
    *,
    add_new: bool = False,
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> tuple[Run, NDArray[np.int64], list[str]]:
    """Start a run in an empty output folder, or continue the one that is there.

    Files that could not be read when they were planned are looked at again: those that can be read
    now are planned as another night.

    Args:
        job: What the command asks for.
        model: The model, found complete.
        listing: The input's files as they are now.
        resolve: Turns every `auto` of the engine into a fact, where the actors will run; called
            only for a new run.
        add_new: Plan files that the run does not know as its next night.
        check: Called before anything becomes valid; raises if the output is no longer ours.
        progress: Told about footers read.

    Returns:
        The run, the positions of the units to do, and sentences that the user should see.

    Raises:
        RunMismatchError: If the folder holds another run, or an input file has changed since.
        DataError: If the input cannot be scored as asked.
    """
    storage = open_storage(job.output.path)
    recorded = storage.read(RUN_FILE)
    planner = _Planner(job, model, storage, progress, check)
    if recorded is None:
        _refuse_foreign(storage)
        planner.start(listing, resolve(model))
        recorded = storage.read(RUN_FILE)
        if recorded is None:
            raise StorageError(f"{join(storage.uri, RUN_FILE)}: written, but it cannot be read")
    record = _decode(storage, recorded)
    _refuse_difference(record, storage, job, model)
    nights = _read_nights(storage)
    notes: list[str] = []
    if not nights:  # killed between run.json and its first night
        notes += planner.add(1, load_columns(record["columns"]), listing, {})
        nights = _read_nights(storage)
    run = Run(storage, record, nights)
    sweep(storage, SCRATCH)  # temporary files of killed writers; a living one writes its again
    there = run.listing()
    pending = run.pending(there)
    changes = compare_inputs(run.plan, pending, listing, uri=storage.uri, add_new=add_new)
    notes += changes.notes
    if changes.to_plan:
        check()
        storage.delete(SUCCESS_FILE)
        wanted = Listing(listing.root, changes.to_plan, listing.hidden)
        notes += planner.add(len(nights) + 1, run.plan.spec, wanted, changes.record)
        run = Run(storage, record, _read_nights(storage))
        pending = run.pending(there)
    if hidden := run.nights[0].record.get("hidden"):
        notes.append(f"{len(hidden)} hidden file(s) were skipped, such as {hidden[0]}")
    return run, pending, notes


def read_run(storage: Storage) -> Run:
    """The run of an output folder.

    Raises:
        UsageError: If there is none.
    """
    recorded = storage.read(RUN_FILE)
    if recorded is None:
        raise UsageError(
            f"{storage.uri}: there is no run here ({RUN_FILE} is missing): name the output folder "
            "of `ray-mlc score`"
        )
    record = _decode(storage, recorded)
    nights = _read_nights(storage)
    if not nights:
        raise UsageError(
            f"{storage.uri}: the run was stopped before its plan was written: run the same "
            "`ray-mlc score` command again"
        )
    return Run(storage, record, nights)


def _decode(storage: Storage, recorded: bytes) -> dict[str, Any]:
    try:
        record = dict(json.loads(recorded))
    except ValueError:
        raise UsageError(f"{join(storage.uri, RUN_FILE)}: not valid JSON") from None
    if record.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{join(storage.uri, RUN_FILE)}: has schema version {record.get('schema_version')}, "
            f"expected {SCHEMA_VERSION}: continue it with the ray-mlc that started it "
            f"({record.get('versions', {}).get('ray-mlc', 'unknown')})"
        )
    return record


def _read_nights(storage: Storage) -> tuple[Night, ...]:
    """Every night whose `night.json` is there; the plan files of others were never valid."""
    paths = existing_paths(storage.list(NIGHTS_FOLDER))
    numbers = sorted(
        int(name) for _, name, file in _night_files(paths) if file == NIGHT_FILE and name.isdigit()
    )
    if numbers != list(range(1, len(numbers) + 1)):
        raise UsageError(f"{join(storage.uri, NIGHTS_FOLDER)}: nights {numbers}: one is missing")
    with ThreadPoolExecutor(max_workers=16) as pool:
        return tuple(pool.map(lambda number: _read_night(storage, number), numbers))


def _night_files(paths: set[str]) -> Iterator[tuple[str, str, str]]:
    """Folder, number and file name of everything below the folder of nights."""
    for path in paths:
        elements = path.removeprefix(f"{NIGHTS_FOLDER}/").split("/")
        if len(elements) == 2:
            yield path, elements[0], elements[1]


def _read_night(storage: Storage, number: int) -> Night:
    folder = f"{NIGHTS_FOLDER}/{number}"

    def read(name: str) -> bytes:
        data = storage.read(f"{folder}/{name}")
        if data is None:
            raise UsageError(f"{join(storage.uri, folder, name)}: missing: the run is damaged")
        return data

    record = json.loads(read(NIGHT_FILE))
    tables = []
    for kind in (FILES, UNITS):
        digest = record["plan"][kind]
        name = _plan_file(kind, digest)
        data = read(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise UsageError(
                f"{join(storage.uri, folder, name)}: is not the plan that the night was started "
                "with: the run is damaged"
            )
        tables.append(load_table(data))
    return Night(number, record, *tables)


def _plan_file(kind: str, digest: str) -> str:
    """Named by content: another planner's file of the same night is never overwritten."""
    return f"{kind}-{digest[:16]}.arrow"


@dataclass(frozen=True)
class _Planner:
    """Writes runs and nights; what is planned becomes valid with the last file."""

    job: ScoreJob
    model: ModelFolder
    storage: Storage
    progress: Progress | None
    check: Callable[[], None]

    def start(self, listing: Listing, resolved: ResolvedEngine) -> None:
        """Plan the first night, then create `run.json` exclusively: of two starters one wins."""
        job, model = self.job, self.model
        format_ = resolve_format(job.output.format, model.label_set)
        plan, _ = self._plan(listing, format_, None)
        identity = {
            **_asked(job, model),
            "output.format": format_,
            "long.policy": _long_policy(job, model),
            "long.max_tokens": resolved.max_tokens,
            "engine.name": resolved.name,
            "engine.device": resolved.device,
            "engine.dtype": resolved.dtype,
            "batching.max_batch_tokens": resolved.max_batch_tokens,
            "columns": [f"{item.name} → {item.output}: {item.type}" for item in plan.spec.kept],
        }
        canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        record = {
            "schema_version": SCHEMA_VERSION,
            "digest": hashlib.sha256(canonical.encode()).hexdigest(),
            "created": _now(),
            "model": model.name,
            "model_location": model.location,
            "labels": list(model.label_set.names),
            "engine": resolved.model_dump(),
            "identity": identity,
            "columns": dump_columns(plan.spec),
            "versions": versions(),
        }
        self.check()
        if self.storage.create(RUN_FILE, _to_json(record)):
            self.storage.put(JOB_FILE, dump_job(job).encode())
            self._write_night(1, plan, listing, {})

    def add(
        self, number: int, spec: ReadSpec, listing: Listing, more: Mapping[str, Any]
    ) -> list[str]:
        """Plan some files as a night of their own; what the user should know."""
        format_ = resolve_format(self.job.output.format, self.model.label_set)
        plan, left_out = self._plan(listing, format_, spec)
        self._write_night(number, plan, listing, {**more, "left_out": left_out})
        if not left_out:
            return []
        return [f"the run has no column {', '.join(left_out)}: left out of the new files' parts"]

    def _plan(
        self, listing: Listing, format_: str, spec: ReadSpec | None
    ) -> tuple[CorpusPlan, list[str]]:
        total = len(listing.files)
        done = iter(range(1, total + 1))

        def step(_: int) -> None:
            if self.progress is not None:
                self.progress("footers", next(done), total)

        reserved = reserved_columns(format_, self.model.label_set)
        return plan_corpus(listing, self.job, reserved=reserved, spec=spec, progress=step)

    def _write_night(
        self, number: int, plan: CorpusPlan, listing: Listing, more: Mapping[str, Any]
    ) -> None:
        folder = f"{NIGHTS_FOLDER}/{number}"
        digests = {}
        for kind, table in ((FILES, plan.files), (UNITS, plan.units)):
            data = dump_table(table)
            digests[kind] = hashlib.sha256(data).hexdigest()
            self.storage.put(f"{folder}/{_plan_file(kind, digests[kind])}", data)
        record = {
            "number": number,
            "created": _now(),
            "files": len(plan.files),
            "units": len(plan.units),
            "rows": plan.rows,
            "hidden": list(listing.hidden),
            **more,
            "plan": digests,
        }
        self.check()
        if not self.storage.create(f"{folder}/{NIGHT_FILE}", _to_json(record)):
            raise RunMismatchError(
                f"{join(self.storage.uri, folder)}: another command has planned this night: "
                "run the same command again"
            )


def _to_json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _asked(job: ScoreJob, model: ModelFolder) -> dict[str, Any]:
    """What a command says about the rows' content; `auto` and null are left to `resolve`."""
    asked: dict[str, Any] = {
        "model": model.digest,
        "decision": model.info.decision.model_dump(),
        "input.root": list_root(job),
        "input.text": job.input.text,
        "input.max_text_bytes": job.input.max_text_bytes,
        "output.keep": job.output.keep,
        "output.k": job.output.k,
        "output.floor": job.output.floor,
        "units.rows": job.units.rows,
        "units.bytes": job.units.bytes,
        "long.policy": _long_policy(job, model),
    }
    long = job.long
    optional = {
        "output.format": job.output.format,
        "long.max_tokens": long.max_tokens if long else model.max_tokens,
        "engine.name": job.engine.name,
        "engine.dtype": job.engine.dtype,
        "batching.max_batch_tokens": job.batching.max_batch_tokens,
    }
    return asked | {key: value for key, value in optional.items() if value not in ("auto", None)}


def list_root(job: ScoreJob) -> str:
    """What the job names as input, in a form that two commands can be compared by."""
    paths = [job.input.path] if isinstance(job.input.path, str) else job.input.path
    return " ".join(sorted(filesystem_of(path)[1].rstrip("/") for path in paths))


def _long_policy(job: ScoreJob, model: ModelFolder) -> str:
    return job.long.policy if job.long is not None else model.info.long.policy


def refuse_output_in_input(job: ScoreJob, listing: Listing) -> None:
    """Refuse an output that the next run would read as input.

    Raises:
        DataError: If the input's paths would find the parts.
    """
    output = job.output.path
    if scheme_of(output) != scheme_of(listing.root):
        return
    folder = filesystem_of(output)[1].rstrip("/")
    # one part for each depth of folders: all that a glob can tell apart
    parts = {item.part_folder.count("/"): item.part_folder for item in listing.files}
    if any(would_list(job.input.path, f"{folder}/{part}/0.parquet") for part in parts.values()):
        raise DataError(
            f"output.path {output} lies inside the input {listing.root}: the next run would read "
            "its own results"
        )


def _refuse_foreign(storage: Storage) -> None:
    """A folder with Parquet files but without a run is somebody else's."""
    for info in storage.list():
        if info.path.endswith(".parquet"):
            raise RunMismatchError(
                f"{storage.uri}: holds {info.path}, which belongs to no run of ray-mlc: "
                "choose an empty or new folder"
            )


def _refuse_difference(
    record: Mapping[str, Any], storage: Storage, job: ScoreJob, model: ModelFolder
) -> None:
    recorded = record["identity"]
    for key, value in _asked(job, model).items():
        if recorded[key] != value:
            shown = (recorded[key], value)
            if key == "model":
                shown = (f"{record['model']} ({shown[0][:12]})", f"{model.name} ({value[:12]})")
            raise RunMismatchError(
                f"{storage.uri}: holds a run with {key} {_short(shown[0])}, the command has "
                f"{_short(shown[1])}: repeat the first command, or choose another output"
            )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 120 else text[:117] + "..."


def versions() -> dict[str, str]:
    """Versions of what scores depend on."""
    return {name: _version(name) for name in _VERSIONED}


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return __version__ if name == "ray-mlc" else "absent"
