"""In which pieces, and in which order, a corpus is worked off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.footers import Footer
from ray_mlc.corpus.listing import InputFile
from ray_mlc.corpus.units import plan_units, slice_first
from ray_mlc.job_files import load_job
from ray_mlc.scoring.plan import MAX_UNIT_ROWS, MIN_UNIT_ROWS, UNIT_S, unit_rows
from ray_mlc.scoring.reads import plan_reads

ACTORS = 2


@pytest.mark.parametrize(
    ("speed", "rows"),
    [
        (None, MAX_UNIT_ROWS),
        (0.1, MIN_UNIT_ROWS),
        (60.0, 256),
        (205.0, 1024),
        (12_000.0, MAX_UNIT_ROWS),
    ],
)
def test_a_unit_is_some_seconds_of_an_actors_work(speed: float | None, rows: int) -> None:
    assert unit_rows(speed) == rows
    if speed and MIN_UNIT_ROWS < rows < MAX_UNIT_ROWS:
        assert UNIT_S / 1.5 < rows / speed < UNIT_S * 1.5


def run_over(files: list[list[tuple[int, int]]], rows: int) -> tuple[Any, ScoreJob]:
    """A run over files of such row groups (rows and bytes), and its job."""
    footers = [
        Footer(
            InputFile(f"f{index}.parquet", 1, 0),
            pa.schema([("text", pa.string())]),
            np.array([count for count, _ in groups], np.int64),
            np.array([size for _, size in groups], np.int64),
            None,
        )
        for index, groups in enumerate(files)
    ]
    units = plan_units(footers, max_rows=rows, max_bytes=2**26)
    run = SimpleNamespace(
        plan=SimpleNamespace(units=units),
        identity={"units.rows": rows},
    )
    options = {"model": "m", "input": "i", "output": "o"}
    return run, load_job(ScoreJob, options=options)


def bytes_of(run: Any, reads: list[np.ndarray]) -> list[int]:
    sizes = run.plan.units["bytes"].to_numpy()
    return [int(sizes[read].sum()) for read in reads]


def test_a_small_read_for_each_actor_comes_first_and_then_the_longest() -> None:
    sizes = np.random.default_rng(0).permutation(np.arange(1, 41)) * 1000
    run, job = run_over([[(100, int(size))] for size in sizes], 100)
    reads = plan_reads(run, np.arange(40), job, actors=ACTORS, documents_per_s=None)
    found = bytes_of(run, reads)
    assert sorted(found[:ACTORS]) == [1000, 2000]
    assert found[ACTORS:] == sorted(found[ACTORS:], reverse=True)
    assert sorted(position for read in reads for position in read.tolist()) == list(range(40))


def test_the_pieces_of_the_first_unit_come_first_each_in_a_read_of_its_own() -> None:
    run, job = run_over([[(4096, 10**6)]] * 3, 256)
    run.plan.units = slice_first(run.plan.units, pieces=8)
    everything = np.arange(len(run.plan.units))
    reads = plan_reads(run, everything, job, actors=ACTORS, documents_per_s=50.0)
    rows = run.plan.units["rows"].to_numpy()
    assert [rows[read].tolist() for read in reads[:ACTORS]] == [[32], [32]]
    assert sorted(np.concatenate(reads).tolist()) == everything.tolist()


def test_units_are_not_read_one_by_one_where_all_are_alike() -> None:
    run, job = run_over([[(10, 100)]] * 1000, 16_384)
    reads = plan_reads(run, np.arange(1000), job, actors=100, documents_per_s=None)
    assert len(reads) == pytest.approx(400, rel=0.3)


def test_few_rows_are_cut_so_that_every_actor_works() -> None:
    run, job = run_over([[(10, 100)]] * 64, 16_384)
    reads = plan_reads(run, np.arange(64), job, actors=4, documents_per_s=None)
    assert len(reads) >= 4 * 4


def test_a_huge_row_group_is_not_decoded_for_every_unit() -> None:
    huge = [[(1_000_000, 2**30)]]
    slow, job = run_over(huge, 256)
    everything = np.arange(len(slow.plan.units))
    of_slow = plan_reads(slow, everything, job, actors=ACTORS, documents_per_s=50.0)
    # decoding takes a second, so a read is of a minute's work
    assert 1000 < 1_000_000 / len(of_slow) < 5000
    fast, job = run_over(huge, 16_384)
    everything = np.arange(len(fast.plan.units))
    of_fast = plan_reads(fast, everything, job, actors=ACTORS, documents_per_s=12_000.0)
    assert len(of_fast) <= 6


def test_nothing_pending_needs_no_read() -> None:
    run, job = run_over([[(10, 100)]], 16_384)
    assert plan_reads(run, np.arange(0), job, actors=ACTORS, documents_per_s=None) == []
