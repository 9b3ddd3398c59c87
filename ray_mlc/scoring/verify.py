"""Proof that every planned row is in the output exactly once, or set aside by name.

From the plan and the parts' footers alone: no row is read unless `deep` is asked for. Row counts
come from Parquet's own metadata, not from what the writer claims.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mlc.corpus.reading import open_parquet
from ray_mlc.errors import first_line
from ray_mlc.scoring.ledger import FAILURES_FILE, SUCCESS_FILE, Run, read_run
from ray_mlc.scoring.nights import LEDGER, report_path
from ray_mlc.scoring.parts import map_parts, read_footer_key
from ray_mlc.scoring.rescore import Rescored, rescore
from ray_mlc.scoring.standing import PROGRESS_FILE, read_progress
from ray_mlc.storage import filesystem_of, join, open_storage

_FOOTER_KEYS = {"run", "unit", "receipt"}


@dataclass
class FileAccount:
    """One input file's rows."""

    source: str
    planned: int = 0
    written: int = 0
    set_aside: int = 0
    duplicated: int = 0
    missing: int = 0

    @property
    def holds(self) -> bool:
        """Whether written + set aside = planned, and nothing is twice."""
        whole = self.written + self.set_aside == self.planned
        return whole and not self.duplicated and not self.missing


@dataclass
class Verdict:
    """The result of `verify`."""

    output: str
    complete: bool
    """Whether `_SUCCESS` is there."""
    deep: bool
    """Whether row keys were read and a sample was scored again."""
    files: list[FileAccount] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Sentences that name a part and what is wrong with it."""
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    """Files and units that were set aside: source, first row, rows (null if unknown), reason."""
    rescored: Rescored | None = None
    """The sample that was scored again; None unless `deep`."""

    @property
    def holds(self) -> bool:
        """Whether every planned row is there once or set aside."""
        return not self.problems and all(file.holds for file in self.files)

    @property
    def is_on_its_way(self) -> bool:
        """Whether it was never declared complete, and nothing is wrong but rows still to come."""
        short = [file for file in self.files if not file.holds]
        return (
            not self.complete
            and not self.problems
            and all(file.missing and not file.duplicated for file in short)
        )

    def total(self, name: str) -> int:
        """Sum of one count over all files."""
        return sum(getattr(file, name) for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        counts = ("planned", "written", "set_aside", "duplicated", "missing")
        return {
            "output": self.output,
            "holds": self.holds,
            "complete": self.complete,
            "deep": self.deep,
            "rows": {name: self.total(name) for name in counts},
            "files": [asdict(file) for file in self.files],
            "set_aside": self.set_aside,
            "problems": self.problems,
            "rescored": None if self.rescored is None else asdict(self.rescored),
        }


@dataclass(frozen=True)
class _Expected:
    """What the plan says of each part, by its path."""

    run: Run
    position: dict[str, int]
    """Unit of each part."""
    file_U: np.ndarray[Any, np.dtype[np.int32]]
    first_U: np.ndarray[Any, np.dtype[np.int64]]
    rows_U: np.ndarray[Any, np.dtype[np.int32]]

    @classmethod
    def of(cls, run: Run) -> _Expected:
        units = run.plan.units
        position = {part: index for index, part in enumerate(run.part_paths)}
        columns = (units[name].to_numpy() for name in ("file", "first_row", "rows"))
        return cls(run, position, *columns)

    def source(self, part: str) -> str:
        return self.run.plan.sources[int(self.file_U[self.position[part]])]


@dataclass(frozen=True)
class _Found:
    """What a part says of itself."""

    part: str
    rows: int = 0
    footer: dict[str, Any] | None = None
    problem: str | None = None


def verify(
    output: str, *, deep: bool = False, model: str | None = None, sample: int = 200, seed: int = 0
) -> Verdict:
    """Account for every row of a run.

    Args:
        output: Output folder of `score`.
        deep: Also read `source` and `row` of every part and compare them with the unit, and score
            a sample again.
        model: Where the model is now; None: where it was when the run started.
        sample: Rows to score again.
        seed: Seed of the sample.

    Raises:
        UsageError: If there is no run, or the model is not the one of the run.
    """
    storage = open_storage(output)
    run = read_run(storage)
    listed = run.listing()
    parts = sorted(path for path in listed if path.endswith(".parquet"))
    expected = _Expected.of(run)
    accounts = _plan_accounts(expected)
    verdict = Verdict(output, SUCCESS_FILE in listed, deep)
    good = set()
    for found in _look_at(parts, expected, output, deep=deep):
        problem = found.problem or _judge(found, expected)
        if found.footer is None:
            pass  # its rows count as missing
        elif found.part in expected.position:
            accounts[expected.source(found.part)].written += found.rows
        elif found.footer["unit"]["source"] in accounts:
            accounts[found.footer["unit"]["source"]].duplicated += found.rows
        if problem is not None:
            verdict.problems.append(f"{found.part}: {problem}")
        else:
            good.add(found.part)
    for item in _set_aside(expected, listed, json.loads(storage.read(FAILURES_FILE) or b"[]")):
        verdict.set_aside.append(item)
        accounts[item["source"]].set_aside += item["rows"] or 0
    for account in accounts.values():
        account.missing = max(0, account.planned - account.written - account.set_aside)
    verdict.files = sorted(accounts.values(), key=lambda account: account.source)
    if deep:
        verdict.rescored = rescore(run, good, model=model, sample=sample, seed=seed)
        verdict.problems += verdict.rescored.problems
    return verdict


def _plan_accounts(expected: _Expected) -> dict[str, FileAccount]:
    """Planned rows of every file."""
    plan = expected.run.plan
    planned_F = np.bincount(
        expected.file_U, weights=expected.rows_U, minlength=len(plan.sources)
    ).astype(np.int64)
    accounts = {
        source: FileAccount(source, planned)
        for source, planned in zip(plan.sources, planned_F.tolist(), strict=True)
    }
    for row in plan.faulty_files():
        accounts[row["source"]].planned = row["rows"] or 0
    return accounts


def _look_at(
    parts: Sequence[str], expected: _Expected, output: str, *, deep: bool
) -> Iterator[_Found]:
    """Read the footer of every part, and its keys if `deep`."""
    filesystem, base = filesystem_of(output)
    columns = expected.run.output.schema.names

    def look(part: str) -> _Found:
        try:
            with open_parquet(filesystem, f"{base.rstrip('/')}/{part}") as file:
                footer, problem = read_footer_key(file.metadata), None
                if footer is None or not footer.keys() >= _FOOTER_KEYS:
                    return _Found(part, file.metadata.num_rows, None)
                if file.schema_arrow.names != columns:
                    problem = "has other columns than the run"
                    return _Found(part, file.metadata.num_rows, footer, problem)
                if deep and part in expected.position:
                    first = int(expected.first_U[expected.position[part]])
                    problem = _compare_keys(file, expected.source(part), first)
                return _Found(part, file.metadata.num_rows, footer, problem)
        except (OSError, pa.ArrowException, ValueError) as error:
            return _Found(part, problem=f"cannot be read ({first_line(error)})")
        except (KeyError, TypeError):  # a footer key that looks like ours, but is not
            return _Found(part, problem="is not a part of ray-mlc")

    return map_parts(look, parts)


def _set_aside(
    expected: _Expected, listed: set[str], failures: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Files that could not be planned, and failed units that no later attempt has written."""
    plan = expected.run.plan
    for row in plan.faulty_files():
        yield {
            "source": row["source"],
            "first_row": None,
            "rows": row["rows"],
            "reason": row["fault"],
        }
    units = [item for item in failures if item["first_row"] is not None]
    if not units:
        return
    part_of = dict(zip(_unit_keys(expected.run), plan.parts, strict=True))
    for item in units:
        part = part_of.get((item["source"], item["first_row"]))
        if part is not None and part not in listed:
            yield item


def _unit_keys(run: Run) -> Iterator[tuple[str, int]]:
    """Source and first row of every unit, by which failures name them."""
    files, firsts = (run.plan.units[name].to_pylist() for name in ("file", "first_row"))
    for file, first in zip(files, firsts, strict=True):
        yield run.plan.sources[file], first


def _judge(found: _Found, expected: _Expected) -> str | None:
    """What is wrong with a part; None if nothing is."""
    footer, run = found.footer, expected.run
    if footer is None:
        return "is not a part of ray-mlc"
    if footer["run"] != run.digest:
        return f"belongs to another run ({footer['run'][:12]}, this one is {run.digest[:12]})"
    if found.part not in expected.position:
        return "is in no plan"
    position = expected.position[found.part]
    planned = {
        "source": expected.source(found.part),
        "first_row": int(expected.first_U[position]),
        "rows": int(expected.rows_U[position]),
    }
    if found.rows != planned["rows"]:
        return f"has {found.rows} rows, {planned['rows']} were planned"
    if footer["unit"] != planned:
        return f"is the part of {footer['unit']['source']} from row {footer['unit']['first_row']}"
    return None


def _compare_keys(file: pq.ParquetFile, source: str, first_row: int) -> str | None:
    """Whether every row carries its own key."""
    keys = file.read(columns=["source", "row"])
    if not np.array_equal(keys["row"].to_numpy(), np.arange(first_row, first_row + keys.num_rows)):
        return "its rows are not those of its unit, in order"
    if keys["source"].cast(pa.string()).unique().to_pylist() != [source]:
        return f"its source is not {source}"
    return None


def progress_of(output: str) -> dict[str, Any]:
    """Progress of a run from one listing, no footer read: for `status`.

    Returns:
        `state` is `complete` or `unfinished`, or `damaged`: it was declared complete, but parts
        have gone since, or there are Parquet files that no plan knows. `missing` and `extra` name
        those. `now` is how a night stands that is at work, see `scoring.progress`; else null.
    """
    storage = open_storage(output)
    run = read_run(storage)
    there = {info.path: info.size for info in storage.list()}
    rows = run.plan.units["rows"].to_pylist()
    parts = run.part_paths
    done = [part in there for part in parts]
    failures = json.loads(storage.read(FAILURES_FILE) or b"[]")
    complete = SUCCESS_FILE in there
    missing: list[str] = []
    if complete:  # what an unfinished run lacks is simply not there yet
        units = {(item["source"], item["first_row"]) for item in failures}
        missing = [
            part
            for unit, part, yes in zip(_unit_keys(run), parts, done, strict=True)
            if not yes and unit not in units
        ]
    known = set(parts)
    extra = sorted(path for path in there if path.endswith(".parquet") and path not in known)
    damaged = missing or extra
    at_work = PROGRESS_FILE in there and not complete
    report = report_path(len(run.nights))
    return {
        "output": output,
        "state": "damaged" if damaged else "complete" if complete else "unfinished",
        "missing": missing,
        "extra": extra,
        "units": {"planned": len(done), "written": sum(done)},
        "rows": {
            "planned": sum(rows),
            "written": sum(count for count, yes in zip(rows, done, strict=True) if yes),
        },
        "nights": len(run.nights),
        "set_aside": len(failures),
        "bytes": sum(size for path, size in there.items() if not path.startswith(LEDGER)),
        "model": run.record["model"],
        "engine": run.resolved.model_dump(),
        "created": run.record["created"],
        "now": read_progress(storage) if at_work else None,
        "report": join(output, report) if report in there else None,
    }
