"""Nights: what a run has planned, one plan after the other.

    OUT/_ray_mlc/runs/<n>/files-<digest>.arrow     `scoring.plan.FILES_SCHEMA`
    OUT/_ray_mlc/runs/<n>/units-<digest>.arrow     `corpus.units.UNITS_SCHEMA`
    OUT/_ray_mlc/runs/<n>/night.json               names both; created last
    OUT/_ray_mlc/runs/<n>/report.html              what came of it, for people; may be made again

Plan files are named by their content, so that a planner that turns out to be late has overwritten
nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_mlc.errors import RunMismatchError, UsageError
from ray_mlc.scoring.plan import CorpusPlan, dump_table, load_table
from ray_mlc.storage import Storage, existing_paths, join

LEDGER = "_ray_mlc"
"""Folder of the ledger below the output."""
NIGHTS_FOLDER = f"{LEDGER}/runs"
NIGHT_FILE, FILES, UNITS = "night.json", "files", "units"
REPORT_FILE = "report.html"


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


def report_path(number: int) -> str:
    """Where the report of a night is, below the output."""
    return f"{NIGHTS_FOLDER}/{number}/{REPORT_FILE}"


def last_report(storage: Storage) -> str | None:
    """Where the report of the last night is, below the output; None if it has none yet."""
    paths = existing_paths(storage.list(NIGHTS_FOLDER))
    numbers = [
        int(name) for _, name, file in _night_files(paths) if file == NIGHT_FILE and name.isdigit()
    ]
    path = report_path(max(numbers, default=0))
    return path if path in paths else None


def read_nights(storage: Storage) -> tuple[Night, ...]:
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


def write_night(
    storage: Storage,
    number: int,
    plan: CorpusPlan,
    more: Mapping[str, Any],
    *,
    check: Callable[[], None],
) -> None:
    """Write a night; it is valid with `night.json`, which is created last and exclusively.

    Args:
        storage: The output folder.
        number: 1 for the first.
        plan: What the night is to do.
        more: What `night.json` says beside the plan.
        check: Called before the night becomes valid; raises if the output is no longer ours.

    Raises:
        RunMismatchError: If another command has planned a night of that number.
    """
    folder = f"{NIGHTS_FOLDER}/{number}"
    digests = {}
    for kind, table in ((FILES, plan.files), (UNITS, plan.units)):
        data = dump_table(table)
        digests[kind] = hashlib.sha256(data).hexdigest()
        storage.put(f"{folder}/{_plan_file(kind, digests[kind])}", data)
    record = {
        "number": number,
        "created": now(),
        "files": len(plan.files),
        "units": len(plan.units),
        "rows": plan.rows,
        **more,
        "plan": digests,
    }
    check()
    if not storage.create(f"{folder}/{NIGHT_FILE}", to_json(record)):
        raise RunMismatchError(
            f"{join(storage.uri, folder)}: another command has planned this night: "
            "run the same command again"
        )


def to_json(value: object) -> bytes:
    """A file of the ledger, for people as well."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def now() -> str:
    """The time in UTC, for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
