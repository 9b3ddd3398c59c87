"""The run's ledger: what an output folder promises, what is done, what was set aside.

    OUT/_ray_mlc/run.json          what the run is; created once, never rewritten
    OUT/_ray_mlc/job.yaml          the job that started it
    OUT/_ray_mlc/runs/1/           its plan: files.arrow, units.arrow, columns.json
    OUT/_ray_mlc/failures.json     files and units that were set aside
    OUT/_ray_mlc/summary.json      counts, tokens, speed
    OUT/_SUCCESS                   comes last

Which units are done is never written down: it is the listing of the output. A part's name follows
from its unit, so that a run that is killed and started again redoes only what was in flight.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_mlc import __version__
from ray_mlc.config import LimitsConfig, ScoreJob, dump_job
from ray_mlc.corpus.listing import Listing, would_list
from ray_mlc.corpus.units import Unit, units_at
from ray_mlc.errors import (
    DataError,
    LimitError,
    RayMlcError,
    RunMismatchError,
    StorageError,
    UsageError,
    first_line,
)
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.folder import ModelFolder
from ray_mlc.scoring.parts import (
    CommitSpec,
    OutputSpec,
    Receipt,
    read_footer_key,
    reserved_columns,
    resolve_format,
)
from ray_mlc.scoring.plan import CorpusPlan, dump_plan, load_plan, plan_corpus
from ray_mlc.storage import (
    Storage,
    existing_paths,
    filesystem_of,
    join,
    open_storage,
    remove_stale,
    scheme_of,
)

LEDGER = "_ray_mlc"
RUN_FILE = f"{LEDGER}/run.json"
JOB_FILE = f"{LEDGER}/job.yaml"
FAILURES_FILE = f"{LEDGER}/failures.json"
SUMMARY_FILE = f"{LEDGER}/summary.json"
SUCCESS_FILE = "_SUCCESS"
PLAN_FOLDER = f"{LEDGER}/runs/1"
SCRATCH = f"{LEDGER}/tmp"
SCHEMA_VERSION = 1
_VERSIONED = ("ray-mlc", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done and the total."""


@dataclass(frozen=True)
class Run:
    """An output folder whose run is open."""

    storage: Storage
    """The output folder."""
    record: Mapping[str, Any]
    """Content of `run.json`."""
    plan: CorpusPlan
    """Files, units and columns."""

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

    @property
    def commit_spec(self) -> CommitSpec:
        """What a writing process needs."""
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
        return CommitSpec(self.storage, self.output, footer, self.resolved.max_tokens)

    @cached_property
    def part_paths(self) -> list[str]:
        """Path of each unit's part, in unit order."""
        return self.plan.parts()

    def pending(self) -> NDArray[np.int64]:
        """Positions of the units that have no part: one listing of the output."""
        there = existing_paths(self.storage.list())
        return np.array(
            [index for index, part in enumerate(self.part_paths) if part not in there], np.int64
        )

    def units(self, positions: NDArray[np.int64]) -> list[Unit]:
        """The units at some positions of the plan."""
        return units_at(self.plan.units, positions, self._sources, self._folders)

    @cached_property
    def _sources(self) -> list[str]:
        return self.plan.sources

    @cached_property
    def _folders(self) -> list[str]:
        return self.plan.part_folders

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
    progress: Progress | None = None,
) -> tuple[Run, list[str]]:
    """Start a run in an empty output folder, or continue the one that is there.

    Args:
        job: What the command asks for.
        model: The model, found complete.
        listing: The input's files as they are now.
        resolve: Turns every `auto` of the engine into a fact, where the actors will run; called
            only for a new run.
        progress: Told about footers read.

    Returns:
        The run, and sentences that the user should see.

    Raises:
        RunMismatchError: If the folder holds another run, or an input file has changed since.
        DataError: If the input cannot be scored as asked.
    """
    storage = open_storage(job.output.path)
    recorded = storage.read(RUN_FILE)
    if recorded is None:
        _refuse_foreign(storage)
        _start(job, model, resolve(model), listing, storage, progress)
        recorded = storage.read(RUN_FILE)
        if recorded is None:
            raise StorageError(f"{join(storage.uri, RUN_FILE)}: written, but it cannot be read")
    run = read_run(storage, recorded)
    _refuse_difference(run, job, model)
    notes = _compare_inputs(run, listing)
    remove_stale(storage, SCRATCH)
    return run, notes


def read_run(storage: Storage, recorded: bytes | None = None) -> Run:
    """The run of an output folder.

    Raises:
        UsageError: If there is none.
    """
    recorded = recorded if recorded is not None else storage.read(RUN_FILE)
    if recorded is None:
        raise UsageError(
            f"{storage.uri}: there is no run here ({RUN_FILE} is missing): name the output folder "
            "of `ray-mlc score`"
        )
    try:
        record = json.loads(recorded)
    except ValueError:
        raise UsageError(f"{join(storage.uri, RUN_FILE)}: not valid JSON") from None

    def read(name: str) -> bytes:
        data = storage.read(f"{PLAN_FOLDER}/{name}")
        if data is None:
            raise UsageError(f"{join(storage.uri, PLAN_FOLDER, name)}: missing: the run is damaged")
        if hashlib.sha256(data).hexdigest() != record["plan"][name]:
            raise UsageError(
                f"{join(storage.uri, PLAN_FOLDER, name)}: is not the plan that the run was started "
                "with: the run is damaged"
            )
        return data

    return Run(storage, record, load_plan(read))


def _start(
    job: ScoreJob,
    model: ModelFolder,
    resolved: ResolvedEngine,
    listing: Listing,
    storage: Storage,
    progress: Progress | None,
) -> None:
    """Plan, and create `run.json` last and exclusively: of two starters one wins."""
    format_ = resolve_format(job.output.format, model.label_set)
    total = len(listing.files)
    done = iter(range(1, total + 1))

    def step(_: int) -> None:
        if progress is not None:
            progress("footers", next(done), total)

    plan = plan_corpus(
        listing, job, reserved=reserved_columns(format_, model.label_set), progress=step
    )
    dumped = dump_plan(plan)
    for name, data in dumped.items():
        storage.put(f"{PLAN_FOLDER}/{name}", data)
    storage.put(JOB_FILE, dump_job(job).encode())
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
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": model.name,
        "labels": list(model.label_set.names),
        "engine": resolved.model_dump(),
        "identity": identity,
        "plan": {name: hashlib.sha256(data).hexdigest() for name, data in dumped.items()},
        "hidden": list(listing.hidden),
        "versions": versions(),
    }
    storage.create(RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False).encode())


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


def _refuse_difference(run: Run, job: ScoreJob, model: ModelFolder) -> None:
    recorded = run.identity
    for key, value in _asked(job, model).items():
        if recorded[key] != value:
            shown = (recorded[key], value)
            if key == "model":
                shown = (f"{run.record['model']} ({shown[0][:12]})", f"{model.name} ({value[:12]})")
            raise RunMismatchError(
                f"{run.storage.uri}: holds a run with {key} {_short(shown[0])}, the command has "
                f"{_short(shown[1])}: repeat the first command, or choose another output"
            )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 120 else text[:117] + "..."


def _compare_inputs(run: Run, listing: Listing) -> list[str]:
    """Refuse changed files; notes about new and vanished ones."""
    planned = {row["source"]: (row["size"], row["mtime_ns"]) for row in run.plan.files.to_pylist()}
    now = {file.source: (file.size, file.mtime_ns) for file in listing.files}
    changed = sorted(name for name in planned if name in now and now[name] != planned[name])
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RunMismatchError(
            f"{changed[0]}{more}: changed since the run in {run.storage.uri} was planned: score "
            "the changed files into another output"
        )
    notes = []
    if new := sorted(set(now) - set(planned)):
        notes.append(f"{len(new)} new file(s) are not part of this run, such as {new[0]}")
    if gone := sorted(set(planned) - set(now)):
        notes.append(f"{len(gone)} planned file(s) are gone, such as {gone[0]}")
    if hidden := run.record.get("hidden"):
        notes.append(f"{len(hidden)} hidden file(s) were skipped, such as {hidden[0]}")
    return notes


@dataclass
class Tally:
    """Counts over the receipts of a run; holds no rows."""

    done: dict[str, Receipt] = field(default_factory=dict)
    """Receipt of each unit by part path; of a unit that was done twice, the last."""

    def add(self, receipts: Iterable[Receipt]) -> None:
        """Take note of units done or set aside."""
        for receipt in receipts:
            self.done[receipt.part] = receipt


def finish_run(run: Run, tally: Tally, limits: LimitsConfig, *, seconds: float) -> dict[str, Any]:
    """Account for every unit, write failures and summary, and `_SUCCESS` if the limits hold.

    Args:
        run: The run.
        tally: Receipts of this process; parts of earlier ones are read from their footers.
        limits: How much may be set aside.
        seconds: Time that this process took.

    Returns:
        The summary.

    Raises:
        RayMlcError: If a unit is neither written nor set aside; safe to run again.
        LimitError: If more was set aside than the limits allow.
    """
    there = existing_paths(run.storage.list())
    earlier = [part for part in run.part_paths if part in there and part not in tally.done]
    tally.add(_earlier_receipts(run, earlier))
    missing = [part for part in run.part_paths if part not in tally.done]
    lost = [part for part, item in tally.done.items() if item.fault is None and part not in there]
    if missing or lost:
        first = (missing or lost)[0]
        raise RayMlcError(
            f"{run.storage.uri}: {len(missing) + len(lost)} unit(s) were not written, such as "
            f"{first}: run the same command again"
        )
    failures = _failures(run, tally)
    summary = _summarize(run, tally, failures, seconds=seconds, earlier=len(earlier))
    _put_json(run.storage, FAILURES_FILE, failures)
    _put_json(run.storage, SUMMARY_FILE, summary)
    check_limits(run, summary, limits)
    run.storage.put(SUCCESS_FILE, b"")
    return summary


def check_limits(run: Run, summary: Mapping[str, Any], limits: LimitsConfig) -> None:
    """Refuse a run of which more was set aside than `limits` allow; it is no success then.

    Raises:
        LimitError: Naming the limit and the first file or unit that was set aside.
    """
    problem = _beyond_limits(summary, limits)
    if problem is None:
        return
    run.storage.delete(SUCCESS_FILE)  # of an earlier command with wider limits
    failures = json.loads(run.storage.read(FAILURES_FILE) or b"[]")
    first = f" ({failures[0]['source']}: {failures[0]['reason']})" if failures else ""
    raise LimitError(f"{run.storage.uri}: {problem}{first}; see {FAILURES_FILE} and {SUMMARY_FILE}")


def _earlier_receipts(run: Run, parts: Sequence[str]) -> list[Receipt]:
    """Receipts of parts that an earlier process committed, from their footers."""
    filesystem, base = filesystem_of(run.storage.uri)

    def read(part: str) -> Receipt:
        try:
            metadata = pq.read_metadata(f"{base}/{part}", filesystem=filesystem)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{part}: cannot be read back ({first_line(error)})") from None
        footer = read_footer_key(metadata)
        if footer is None or footer["run"] != run.digest:
            raise RunMismatchError(f"{run.storage.uri}: {part} belongs to another run")
        return Receipt(**footer["receipt"])

    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(read, parts))


def _failures(run: Run, tally: Tally) -> list[dict[str, Any]]:
    """Files and units that were set aside."""
    files = [
        {"source": row["source"], "first_row": None, "rows": row["rows"], "reason": row["fault"]}
        for row in run.plan.files.to_pylist()
        if row["fault"] is not None
    ]
    units = [
        {
            "source": item.source,
            "first_row": item.first_row,
            "rows": item.rows,
            "reason": item.fault,
        }
        for item in tally.done.values()
        if item.fault is not None
    ]
    return files + sorted(units, key=lambda item: (item["source"], item["first_row"]))


def _summarize(
    run: Run, tally: Tally, failures: Sequence[Mapping[str, Any]], *, seconds: float, earlier: int
) -> dict[str, Any]:
    written = [item for item in tally.done.values() if item.fault is None]
    statuses: Counter[str] = Counter()
    for item in written:
        statuses.update(item.statuses)
    here = written[: len(written) - earlier] if earlier else written
    real = sum(item.real_tokens for item in here)
    padded = sum(item.padded_tokens for item in here)
    rows_here = sum(item.rows for item in here)
    set_aside = sum(item["rows"] or 0 for item in failures)
    return {
        "rows": {
            "planned": run.plan.rows + sum(_file_level_rows(failures)),
            "written": sum(item.rows for item in written),
            "set_aside": set_aside,
        },
        "statuses": dict(sorted(statuses.items())),
        "bad_rows": sum(statuses[name] for name in ("decode_error", "not_finite", "too_long"))
        + set_aside,
        "files": len(run.plan.files),
        "bad_files": len({item["source"] for item in failures}),
        "parts": len(written),
        "labels_per_row": sum(item.labels for item in written) / max(1, statuses["ok"]),
        "tokens": sum(item.tokens for item in written),
        "truncated": sum(item.truncated for item in written),
        "k_cut": sum(item.k_cut for item in written),
        "this_process": {
            "rows": rows_here,
            "seconds": round(seconds, 3),
            "rows_per_s": round(rows_here / seconds, 2) if seconds else None,
            "tokens_per_s": round(real / seconds, 1) if seconds else None,
            "real_tokens": real,
            "padding": round(1 - real / padded, 4) if padded else 0.0,
        },
        "engine": run.resolved.model_dump(),
    }


def _file_level_rows(failures: Sequence[Mapping[str, Any]]) -> list[int]:
    return [item["rows"] or 0 for item in failures if item["first_row"] is None]


def _beyond_limits(summary: Mapping[str, Any], limits: LimitsConfig) -> str | None:
    """The limit that does not hold, as a sentence."""
    for name, total in (("bad_rows", summary["rows"]["planned"]), ("bad_files", summary["files"])):
        limit, count = getattr(limits, name), summary[name]
        allowed = limit * total if limit < 1 else limit
        if count > allowed:
            shown = f"{limit:.2%} of {total:,}" if limit < 1 else f"{limit:,.0f}"
            return f"{count:,} {name.replace('_', ' ')}, limits.{name} allows {shown}"
    return None


def _put_json(storage: Storage, path: str, value: object) -> None:
    storage.put(path, json.dumps(value, indent=1, ensure_ascii=False).encode())


def versions() -> dict[str, str]:
    """Versions of what scores depend on."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = __version__ if name == "ray-mlc" else "absent"
    return found
