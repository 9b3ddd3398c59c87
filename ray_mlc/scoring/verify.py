"""Proof that every planned row is in the output exactly once, or set aside by name.

From the plan and the parts' footers alone: no row is read unless `deep` is asked for. Row counts
come from Parquet's own metadata, not from what the writer claims.
"""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mlc.errors import first_line
from ray_mlc.scoring.ledger import FAILURES_FILE, LEDGER, SUCCESS_FILE, Run, read_run
from ray_mlc.scoring.parts import read_footer_key
from ray_mlc.storage import filesystem_of, open_storage


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
    """Whether row keys were read."""
    files: list[FileAccount] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Sentences that name a part and what is wrong with it."""
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    """Files and units that were set aside: source, first row, rows (null if unknown), reason."""

    @property
    def holds(self) -> bool:
        """Whether every planned row is there once or set aside."""
        return not self.problems and all(file.holds for file in self.files)

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
        }


def verify(output: str, *, deep: bool = False) -> Verdict:
    """Account for every row of a run.

    Args:
        output: Output folder of `score`.
        deep: Also read `source` and `row` of every part and compare them with the unit.

    Raises:
        UsageError: If there is no run.
    """
    storage = open_storage(output)
    run = read_run(storage)
    listed = {info.path for info in storage.list()}
    parts = sorted(path for path in listed if path.endswith(".parquet"))
    failures = json.loads(storage.read(FAILURES_FILE) or b"[]")
    verdict = Verdict(output, SUCCESS_FILE in listed, deep)
    accounts = _accounts(run, failures, set(parts))
    expected = dict(zip(run.part_paths, range(len(run.part_paths)), strict=True))
    positions = np.array([expected[part] for part in parts if part in expected], np.int64)
    units = {unit.part: unit for unit in run.units(positions)}
    filesystem, base = filesystem_of(output)

    def check(part: str) -> tuple[str, int, dict[str, Any] | None, str | None]:
        try:
            with pq.ParquetFile(f"{base.rstrip('/')}/{part}", filesystem=filesystem) as file:
                footer = read_footer_key(file.metadata)
                problem = None
                if deep and part in units:
                    problem = _compare_keys(file, units[part].source, units[part].first_row)
                return part, file.metadata.num_rows, footer, problem
        except (OSError, pa.ArrowException, ValueError) as error:
            return part, 0, None, f"cannot be read ({first_line(error)})"

    with ThreadPoolExecutor(max_workers=16) as pool:
        for part, rows, footer, problem in pool.map(check, parts):
            if problem is None:
                problem = _judge(part, rows, footer, run, units)
            if part in units:
                account = accounts[units[part].source]
                account.written += rows if footer is not None else 0
            elif footer is not None and footer["unit"]["source"] in accounts:
                accounts[footer["unit"]["source"]].duplicated += rows
            if problem is not None:
                verdict.problems.append(f"{part}: {problem}")
    for account in accounts.values():
        account.missing = max(0, account.planned - account.written - account.set_aside)
    written = {(unit.source, unit.first_row) for unit in units.values()}
    verdict.set_aside = [
        item for item in failures if (item["source"], item["first_row"]) not in written
    ]
    if not failures:
        verdict.set_aside = [
            {
                "source": row["source"],
                "first_row": None,
                "rows": row["rows"],
                "reason": row["fault"],
            }
            for row in run.plan.files.to_pylist()
            if row["fault"] is not None
        ]
    verdict.files = sorted(accounts.values(), key=lambda account: account.source)
    return verdict


def _accounts(run: Run, failures: list[dict[str, Any]], parts: set[str]) -> dict[str, FileAccount]:
    """Planned and set-aside rows of every file."""
    accounts = {source: FileAccount(source) for source in run.plan.sources}
    sources = run.plan.sources
    planned: dict[int, int] = defaultdict(int)
    files, rows = run.plan.units["file"].to_pylist(), run.plan.units["rows"].to_pylist()
    for file, count in zip(files, rows, strict=True):
        planned[file] += count
    for file, count in planned.items():
        accounts[sources[file]].planned = count
    for row in run.plan.files.to_pylist():
        if row["fault"] is not None:
            accounts[row["source"]].planned = row["rows"] or 0
            accounts[row["source"]].set_aside = row["rows"] or 0
    by_key = (
        {
            (sources[file], first): part
            for file, first, part in zip(
                files, run.plan.units["first_row"].to_pylist(), run.part_paths, strict=True
            )
        }
        if failures
        else {}
    )
    for item in failures:
        # a unit that was set aside and written by a later attempt is written
        if item["first_row"] is not None:
            part = by_key.get((item["source"], item["first_row"]))
            if part is not None and part not in parts:
                accounts[item["source"]].set_aside += item["rows"]
    return accounts


def _judge(
    part: str, rows: int, footer: dict[str, Any] | None, run: Run, units: dict[str, Any]
) -> str | None:
    if footer is None:
        return "is not a part of ray-mlc"
    if footer["run"] != run.digest:
        return f"belongs to another run ({footer['run'][:12]}, this one is {run.digest[:12]})"
    if part not in units:
        return "is in no plan"
    unit = units[part]
    if rows != unit.rows:
        return f"has {rows} rows, {unit.rows} were planned"
    planned = {"source": unit.source, "first_row": unit.first_row, "rows": unit.rows}
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
    """Progress of a run from one listing: for `status`."""
    storage = open_storage(output)
    run = read_run(storage)
    there = {info.path: info.size for info in storage.list()}
    rows = run.plan.units["rows"].to_pylist()
    done = [part in there for part in run.part_paths]
    failures = json.loads(storage.read(FAILURES_FILE) or b"[]")
    return {
        "output": output,
        "state": "complete" if SUCCESS_FILE in there else "unfinished",
        "units": {"planned": len(done), "written": sum(done)},
        "rows": {
            "planned": sum(rows),
            "written": sum(count for count, yes in zip(rows, done, strict=True) if yes),
        },
        "set_aside": len(failures),
        "bytes": sum(size for path, size in there.items() if not path.startswith(LEDGER)),
        "model": run.record["model"],
        "engine": run.resolved.model_dump(),
        "created": run.record["created"],
    }
