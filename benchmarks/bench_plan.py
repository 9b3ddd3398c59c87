"""What a large run costs its driver: planning, resuming and proving up to a million units.

    python benchmarks/bench_plan.py                    every point, each in a process of its own
    python benchmarks/bench_plan.py POINT [SIZE]       one point in this process

One JSON line per point: seconds of each step and the peak memory of the process. Corpora are made
up: a file has ten row groups of one unit each, and footers and parts are answered from memory, so
that the product's own work is all there is; `real_parts`, `real_listing`, `row_group` and
`small_files` work on real files (in memory, where there is a /dev/shm).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mlc.config import LimitsConfig, ScoreJob
from ray_mlc.corpus import rows as corpus_rows
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.footers import Footer
from ray_mlc.corpus.listing import InputFile, Listing, list_corpus
from ray_mlc.corpus.units import group_reads, units_at
from ray_mlc.job_files import load_job
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.scoring import accounts, ledger, plan, verify
from ray_mlc.scoring.ledger import Run, open_run, read_run
from ray_mlc.scoring.parts import FOOTER_KEY, Receipt, serialize
from ray_mlc.scoring.reads import plan_reads
from ray_mlc.storage import LocalStorage, ObjectInfo

SIZES = (10_000, 100_000, 1_000_000)
UNITS_PER_FILE = 10
UNIT_ROWS = 16_384
UNIT_BYTES = 30 * 2**20
LABELS = LabelSet(tuple(f"label_{number}" for number in range(20)))
COLUMNS = pa.schema([("id", pa.int64()), ("url", pa.string()), ("text", pa.string())])
ENGINE = ResolvedEngine(
    name="torch", device="cpu", dtype="float32", max_batch_tokens=4096, max_tokens=128
)
MODEL: Any = SimpleNamespace(
    name="models/none",
    location="models/none",
    digest="0" * 64,
    label_set=LABELS,
    max_tokens=128,
    info=SimpleNamespace(
        decision=Decision(threshold=0.5), long=SimpleNamespace(policy="truncate", max_tokens=128)
    ),
)


class Answers:
    """A storage in memory; parts that are only known by name have no bytes."""

    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: Sequence[str] = ()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`."""
        for path in list(self.objects):
            if path.startswith(prefix):
                yield ObjectInfo(path, len(self.objects[path]))
        if not prefix:
            for path in self.parts:
                yield ObjectInfo(path, 1000)

    def read(self, path: str) -> bytes | None:
        """See `Storage.read`."""
        return self.objects.get(path)

    def put(self, path: str, data: bytes) -> None:
        """See `Storage.put`."""
        self.objects[path] = data

    def create(self, path: str, data: bytes) -> bool:
        """See `Storage.create`."""
        return self.objects.setdefault(path, data) is data

    def update(self, path: str, data: bytes, *, expected: bytes) -> bool:
        """See `Storage.update`."""
        if self.objects.get(path) != expected:
            return False
        self.objects[path] = data
        return True

    def delete(self, path: str) -> None:
        """See `Storage.delete`."""
        self.objects.pop(path, None)


class Clock:
    """Seconds of each step: on the wall, and of this process's CPU (other load leaves it alone)."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block; more blocks of one name add up."""
        started = time.perf_counter(), time.process_time()
        yield
        ended = time.perf_counter(), time.process_time()
        before = self.seconds.get(name, [0.0, 0.0])
        spent = zip(before, started, ended, strict=True)
        self.seconds[name] = [round(so_far + b - a, 3) for so_far, a, b in spent]


def main(*arguments: str) -> None:
    if arguments:
        point, size = arguments[0], int(arguments[1]) if len(arguments) > 1 else 0
        before = _peak_mib()
        result = POINTS[point](size) if size else POINTS[point]()
        print(
            json.dumps(
                {
                    "point": point,
                    "size": size or None,
                    **result,
                    "start_mib": before,
                    "peak_mib": _peak_mib(),
                }
            )
        )
        return
    todo = [("simulate", size) for size in SIZES]
    todo += [("real_parts", 10_000), ("real_listing", 1_000_000)]
    todo += [("row_group", 1_000_000), ("small_files", 100_000)]
    for point, size in todo:
        subprocess.run([sys.executable, __file__, point, str(size)], check=True)


def _peak_mib() -> int:
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) >> 10
    )


def _job(**options: object) -> ScoreJob:
    settings = {"model": "models/none", "input": "/corpus", "output": "/memory", **options}
    return load_job(ScoreJob, options=settings)


def _listing(files: int) -> Listing:
    names = (f"day={number // 1000:03d}/part-{number:06d}.parquet" for number in range(files))
    return Listing("/corpus", tuple(InputFile(name, 10**8, 1) for name in names), ())


def _footers(listing: Listing, **_: object) -> list[Footer]:
    rows = np.full(UNITS_PER_FILE, UNIT_ROWS)
    return [Footer(file, COLUMNS, rows.copy(), rows * 1800) for file in listing.files]


def simulate(units: int) -> dict[str, Any]:
    """Plan, resume with one unit in a thousand to do, account for all, verify."""
    clock, storage = Clock(), Answers()
    plan.read_footers = _footers  # type: ignore[attr-defined]
    for module in (ledger, verify):
        module.open_storage = lambda _: storage  # type: ignore[attr-defined]
    job, listing = _job(), _listing(units // UNITS_PER_FILE)

    with clock.step("plan"):
        run, pending, _ = open_run(job, MODEL, listing, lambda *_: ENGINE)
    assert len(pending) == units
    with clock.step("first_reads"):
        reads = plan_reads(run, pending, job, actors=16, documents_per_s=None)
    storage.parts = [part for at, part in enumerate(run.part_paths) if at % 1000]
    peaks = {"plan_mib": _peak_mib()}

    with clock.step("resume"):
        run, pending, _ = open_run(job, MODEL, listing, lambda *_: ENGINE)
    assert len(pending) == units // 1000
    storage.parts = run.part_paths
    with clock.step("accounts"):
        tally = accounts.Tally(run, np.arange(units))
    for low in range(0, units, 1000):
        receipts = _receipts(run, np.arange(low, low + 1000))
        with clock.step("accounts"):
            tally.add(receipts)
    with clock.step("accounts"):
        accounts.finish_run(run, tally, LimitsConfig(), seconds=1.0)
    peaks["accounts_mib"] = _peak_mib()
    verify.open_parquet = _part_opener(run)  # type: ignore[attr-defined]
    with clock.step("verify"):
        verdict = verify.verify("/memory")
    assert verdict.holds, verdict.problems[:3]
    assert verdict.total("written") == units * UNIT_ROWS
    with clock.step("status"):
        verify.progress_of("/memory")
    night = sum(len(data) for path, data in storage.objects.items() if "/runs/" in path)
    return {
        "files": len(listing.files),
        "units": units,
        "reads": len(reads),
        "seconds": clock.seconds,
        **peaks,
        "plan_bytes": night,
    }


def _receipts(run: Run, positions: np.ndarray[Any, Any]) -> list[Receipt]:
    return [
        Receipt(unit.source, unit.first_row, unit.rows, unit.part, statuses={"ok": unit.rows})
        for unit in run.plan.units_at(positions)
    ]


def _part_opener(run: Run) -> Any:
    """Stands in for `open_parquet`: a part's footer is made from its name."""
    shared = json.dumps(run.commit_spec(holder=None).footer, ensure_ascii=False)[:-1]
    sources = dict(zip(run.plan.part_folders, run.plan.sources, strict=True))
    schema = run.output.schema

    @contextmanager
    def open_parquet(_: object, path: str) -> Iterator[Any]:
        part = path.removeprefix("/memory/")
        folder, _, name = part.rpartition("/")
        first = int(name.removesuffix(".parquet"))
        unit = {"source": sources[folder], "first_row": first, "rows": UNIT_ROWS}
        receipt = Receipt(sources[folder], first, UNIT_ROWS, part).to_json()
        key = f'{shared}, "unit": {json.dumps(unit)}, "receipt": {receipt}}}'.encode()
        metadata = SimpleNamespace(num_rows=UNIT_ROWS, metadata={FOOTER_KEY: key})
        yield SimpleNamespace(metadata=metadata, schema_arrow=schema)

    return open_parquet


def real_parts(units: int) -> dict[str, Any]:
    """Resume, account and verify over real parts of two rows each."""
    clock = Clock()
    plan.read_footers = lambda listing, **_: [  # type: ignore[attr-defined]
        Footer(file, COLUMNS, np.full(UNITS_PER_FILE, 2), np.full(UNITS_PER_FILE, 100))
        for file in listing.files
    ]
    with _folder() as folder:
        job = _job(**{"output": str(folder / "out"), "units.rows": 2})
        listing = _listing(units // UNITS_PER_FILE)
        run, _, _ = open_run(job, MODEL, listing, lambda *_: ENGINE)
        with clock.step("write"):
            _write_parts(run, folder / "out")
        with clock.step("resume"):
            run, pending, _ = open_run(job, MODEL, listing, lambda *_: ENGINE)
        assert len(pending) == 0
        with clock.step("accounts"):
            tally = accounts.Tally(run, pending)
            summary = accounts.finish_run(run, tally, LimitsConfig(), seconds=1.0)
        assert summary["rows"]["written"] == units * 2
        with clock.step("verify"):
            verdict = verify.verify(str(folder / "out"))
        assert verdict.holds
        return {"units": units, "seconds": clock.seconds}


def _write_parts(run: Run, output: Path) -> None:
    footer = run.commit_spec(holder=None).footer
    schema = run.output.schema
    rows = pa.Table.from_pylist([dict.fromkeys(schema.names)] * 2, schema=schema)
    for unit in run.plan.units_at(np.arange(len(run.plan.units))):
        receipt = json.loads(
            Receipt(unit.source, unit.first_row, 2, unit.part, statuses={"ok": 2}).to_json()
        )
        key = {"source": unit.source, "first_row": unit.first_row, "rows": 2}
        data = serialize(rows, schema, {**footer, "unit": key, "receipt": receipt})
        path = output / unit.part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def real_listing(files: int) -> dict[str, Any]:
    """One listing of as many files, ten a folder, as a resume makes of its output."""
    clock = Clock()
    with _folder() as folder:
        with clock.step("make"):
            for number in range(files // UNITS_PER_FILE):
                here = folder / f"day={number // 1000:03d}/part-{number:06d}"
                here.mkdir(parents=True)
                for unit in range(UNITS_PER_FILE):
                    os.close(os.open(here / f"{unit * UNIT_ROWS:012d}.parquet", os.O_CREAT))
        with clock.step("list"):
            found = ledger.existing_paths(LocalStorage(folder, scratch="tmp").list())
        assert len(found) == files
        return {"seconds": clock.seconds}


def row_group(rows: int) -> dict[str, Any]:
    """A file of one row group: every row once, and what is held at once."""
    clock = Clock()
    with _folder() as folder:
        words = np.random.default_rng(0).integers(0, 10**9, size=(rows, 10)).astype("U9")
        texts = [" ".join(row) for row in words]
        del words
        table = pa.table({"id": range(rows), "text": texts})
        del texts
        pq.write_table(table, folder / "a.parquet", row_group_size=rows, use_dictionary=False)
        size, decoded = (folder / "a.parquet").stat().st_size, table.nbytes
        del table
        pa.default_memory_pool().release_unused()
        result = subprocess.run(
            [sys.executable, __file__, "read_row_group", "1", str(folder)],
            check=True,
            capture_output=True,
            env={**os.environ, "BENCH_FOLDER": str(folder)},
            text=True,
        )
        of_reader = json.loads(result.stdout)
    del clock
    return {"file_mib": size >> 20, "decoded_mib": decoded >> 20, "reader": of_reader}


def read_row_group(_: int) -> dict[str, Any]:
    """The part of `row_group` whose memory counts."""
    clock = Clock()
    folder = os.environ["BENCH_FOLDER"]
    job = _job(input=folder)
    with clock.step("plan"):
        inspected = plan.inspect_corpus(list_corpus(folder), job, reserved=[])
        planned = inspected.cut(max_rows=16_384, max_bytes=job.units.bytes)
    reads = list(
        group_reads(planned.units, max_rows=16_384, max_bytes=job.units.bytes, group_share=1 / 16)
    )
    seen = np.zeros(planned.rows, np.int64)
    spec: ReadSpec = planned.spec
    with clock.step("read"):
        for read in reads:
            units = units_at(planned.units, read, planned.sources, planned.part_folders)
            block = corpus_rows.read_block(units, spec, max_text_bytes=2**30)
            assert block["id"].to_pylist() == block["row"].to_pylist()
            np.add.at(seen, block["row"].to_numpy(), 1)
    assert (seen == 1).all()
    return {"units": len(planned.units), "reads": len(reads), "seconds": clock.seconds}


def small_files(files: int) -> dict[str, Any]:
    """Files of ten rows: real listing and footers, and into how many reads they go."""
    clock = Clock()
    with _folder() as folder:
        table = pa.table({"id": range(10), "text": ["a text of ten words"] * 10})
        pq.write_table(table, folder / "one")
        with clock.step("make"):
            for number in range(files):
                here = folder / f"in/{number // 1000:03d}"
                if number % 1000 == 0:
                    here.mkdir(parents=True)
                os.link(folder / "one", here / f"{number:06d}.parquet")
        job = _job(input=str(folder / "in"), output=str(folder / "out"))
        with clock.step("list"):
            listing = list_corpus(str(folder / "in"))
        with clock.step("plan"):
            run, pending, _ = open_run(job, MODEL, listing, lambda *_: ENGINE)
        with clock.step("reads"):
            reads = plan_reads(run, pending, job, actors=16, documents_per_s=None)
        with clock.step("read_one"):
            units = run.plan.units_at(reads[0])
            block = corpus_rows.read_block(units, run.plan.spec, max_text_bytes=2**30)
        assert block.num_rows == sum(unit.rows for unit in units)
        assert sum(len(read) for read in reads) == files
        with clock.step("open"):
            read_run(LocalStorage(folder / "out", scratch="_ray_mlc/tmp"))
        return {
            "units": len(pending),
            "reads": len(reads),
            "units_of_first_read": len(units),
            "seconds": clock.seconds,
        }


@contextmanager
def _folder() -> Iterator[Path]:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="ray_mlc_bench_", dir=memory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


POINTS: dict[str, Any] = {
    "simulate": simulate,
    "real_parts": real_parts,
    "real_listing": real_listing,
    "row_group": row_group,
    "read_row_group": read_row_group,
    "small_files": small_files,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
