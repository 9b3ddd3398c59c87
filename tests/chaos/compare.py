"""Compare an output with the undisturbed one, row by row, and find anything that is too much."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_mlc.errors import RayMlcError
from ray_mlc.scoring.verify import verify

TOLERANCE = 1e-6
LEDGER = "_ray_mlc"
SCRATCH = f"{LEDGER}/tmp/"
LEASE = f"{LEDGER}/lease.json"

Key = tuple[str, int]


@dataclass(frozen=True)
class Expected:
    """The undisturbed output, in memory."""

    parts: Mapping[str, pa.Table]
    """Each part by its path."""
    ledger: frozenset[str]
    """Files below `_ray_mlc`, those in passing left out."""

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(table.num_rows for table in self.parts.values())


@dataclass
class Comparison:
    """What differs; nothing, if all is well."""

    expected: int
    """Rows of the undisturbed output."""
    lost: int = 0
    """Rows that are in no part."""
    duplicated: int = 0
    """Rows beyond the first with the same source and position."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each difference."""


def read_expected(output: Path) -> Expected:
    """Read the undisturbed output."""
    parts = {name: pq.read_table(output / name, partitioning=None) for name in part_names(output)}
    return Expected(parts, frozenset(_lasting(files_of(output))))


def files_of(output: Path) -> list[str]:
    """All files below a folder, relative to it; those that vanish meanwhile are left out."""
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if not path.is_dir())


def part_names(output: Path) -> list[str]:
    """The parts below a folder, relative to it."""
    return [name for name in files_of(output) if is_part(name)]


def is_part(name: str) -> bool:
    """Whether a file of an output is a part."""
    return name.endswith(".parquet") and not name.startswith(f"{LEDGER}/")


def compare(
    expected: Expected, output: Path, *, same_ledger: bool = True, proof: bool = True
) -> Comparison:
    """Hold a finished output against the undisturbed one.

    Args:
        expected: The undisturbed output.
        output: Folder to look at.
        same_ledger: The files of the ledger must be the same ones; not so after two nights.
        proof: Ask the product's `verify` too; not so for a copy of an output that is elsewhere.
    """
    result = Comparison(expected.rows)
    files = files_of(output)
    found = {name: _read(output / name) for name in files if is_part(name)}
    result.problems += compare_parts(expected, found)
    for name in expected.parts.keys() - found.keys():
        result.problems.append(f"{name}: is missing")
    visible = {name for name in files if not name.startswith(f"{LEDGER}/")}
    for name in sorted(visible - expected.parts.keys() - {"_SUCCESS"}):
        result.problems.append(f"{name}: is too much")
    if "_SUCCESS" not in visible:
        result.problems.append("_SUCCESS: is missing")
    for name in files:
        if name.startswith(SCRATCH) or name == LEASE:
            result.problems.append(f"{name}: was left behind")
    if same_ledger:
        lasting = set(_lasting(files))
        for name in sorted(lasting ^ expected.ledger):
            where = "is too much" if name in lasting else "is missing"
            result.problems.append(f"{name}: {where}")
    keys = Counter(key for table in found.values() if table is not None for key in _keys(table))
    wanted = {key for table in expected.parts.values() for key in _keys(table)}
    result.lost = len(wanted - keys.keys())
    result.duplicated = sum(count - 1 for count in keys.values())
    if result.lost or result.duplicated:
        result.problems.append(f"{result.lost} rows lost, {result.duplicated} duplicated")
    if proof:
        result.problems += _verified(output)
    return result


def compare_parts(expected: Expected, found: Mapping[str, pa.Table | None]) -> list[str]:
    """Differences of the parts that are there: half of a run must be right already."""
    problems = []
    for name, table in sorted(found.items()):
        if table is None:
            problems.append(f"{name}: cannot be read")
        elif name in expected.parts and (problem := difference(expected.parts[name], table)):
            problems.append(f"{name}: {problem}")
    return problems


def compare_unfinished(expected: Expected, output: Path) -> list[str]:
    """What is wrong with an output at any moment: half a part, or a foreign one."""
    found = {name: _read(output / name) for name in part_names(output)}
    foreign = [f"{name}: is too much" for name in found.keys() - expected.parts.keys()]
    return compare_parts(expected, found) + foreign


def difference(expected: pa.Table, found: pa.Table) -> str | None:
    """The first difference of two parts, in words: columns, rows, order, values, scores."""
    if found.schema.names != expected.schema.names or found.schema.types != expected.schema.types:
        return f"has the columns {found.schema.names}, expected {expected.schema.names}"
    if found.num_rows != expected.num_rows:
        return f"has {found.num_rows} rows, expected {expected.num_rows}"
    if _keys(found) != _keys(expected):
        return "its rows are others, or in another order"
    for name in expected.column_names:
        mine, theirs = found[name], expected[name]
        if name.startswith("score_"):
            missing = (pc.is_null(side, nan_is_null=True) for side in (mine, theirs))
            if not pc.all(pc.equal(*missing)).as_py():
                return f"{name}: other rows have no score"
            gap = np.abs(mine.to_numpy() - theirs.to_numpy())
            worst = float(np.nanmax(gap, initial=0.0))
            if worst > TOLERANCE:
                return f"{name}: differs by {worst:.2e}"
        elif mine.to_pylist() != theirs.to_pylist():
            return f"{name}: has other values"
    return None


def _verified(output: Path) -> list[str]:
    """What the product's own proof says."""
    try:
        verdict = verify(str(output), deep=True)
    except RayMlcError as error:
        return [f"verify: {error}"]
    problems = [f"verify: {problem}" for problem in verdict.problems]
    if not verdict.holds and not problems:
        problems.append("verify: does not hold")
    if not verdict.complete:
        problems.append("verify: not complete")
    return problems


def _keys(table: pa.Table) -> list[Key]:
    if not {"source", "row"} <= set(table.column_names):
        return []
    sources = table["source"].cast(pa.string()).to_pylist()
    return list(zip(sources, table["row"].to_pylist(), strict=True))


def _read(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException, ValueError):
        return None


def _lasting(files: list[str]) -> list[str]:
    """Files of the ledger that are there to stay.

    The list of input files is named by its content, which holds what the storage says of them:
    other times and tags on another storage. So it counts by number, not by name.
    """
    seen: Counter[str] = Counter()
    result = []
    for name in files:
        if name.startswith(f"{LEDGER}/") and not name.startswith(SCRATCH) and name != LEASE:
            plain = re.sub(r"/files-[0-9a-f]{16}\.arrow$", "/files-….arrow", name)
            seen[plain] += 1
            result.append(plain if seen[plain] == 1 else f"{plain} ({seen[plain]})")
    return result
