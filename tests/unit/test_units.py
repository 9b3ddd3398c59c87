"""Cutting files into units and units into reads: nothing lost, nothing twice, limits kept."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_mlc.corpus.footers import Footer
from ray_mlc.corpus.listing import InputFile
from ray_mlc.corpus.units import (
    Unit,
    group_reads,
    plan_units,
    slice_first,
    units_at,
)

Groups = list[tuple[int, int]]
"""Rows and decoded bytes of each row group of a file."""

# a row group without rows may still hold a dictionary page
GROUPS = st.lists(
    st.tuples(st.one_of(st.just(0), st.integers(0, 60)), st.integers(0, 3000)), max_size=7
)
FILES = st.lists(GROUPS, max_size=5)
ROWS, BYTES = st.integers(1, 50), st.integers(1, 2000)
many_examples = settings(max_examples=150, deadline=None, derandomize=True)


def footer(groups: Groups, number: int = 0, *, fault: str | None = None) -> Footer:
    rows, sizes = [group[0] for group in groups], [group[1] for group in groups]
    return Footer(
        InputFile(f"f{number}.parquet", 1, 1),
        pa.schema([("text", pa.string())]),
        np.array(rows, np.int64),
        np.array(sizes, np.int64),
        fault,
    )


def plan(files: list[Groups], max_rows: int, max_bytes: int) -> pa.Table:
    footers = [footer(groups, number) for number, groups in enumerate(files)]
    return plan_units(footers, max_rows=max_rows, max_bytes=max_bytes)


def all_units(table: pa.Table) -> list[Unit]:
    names = [f"f{number}" for number in range(10)]
    return units_at(table, np.arange(len(table)), [f"{name}.parquet" for name in names], names)


@many_examples
@given(FILES, ROWS, BYTES)
def test_the_units_of_a_file_tile_its_rows(files: list[Groups], rows: int, size: int) -> None:
    table = plan(files, rows, size)
    assert table["file"].to_pylist() == sorted(table["file"].to_pylist())
    for number, groups in enumerate(files):
        own = [unit for unit in all_units(table) if unit.source == f"f{number}.parquet"]
        ends = [0, *(unit.first_row + unit.rows for unit in own)]
        assert [unit.first_row for unit in own] == ends[:-1]
        assert ends[-1] == sum(group[0] for group in groups)
        assert all(unit.rows > 0 for unit in own)


@many_examples
@given(FILES, ROWS, BYTES)
def test_a_unit_knows_where_its_rows_are(files: list[Groups], rows: int, size: int) -> None:
    for unit in all_units(plan(files, rows, size)):
        counts = [group[0] for group in files[int(unit.source[1])]]
        assert unit.first_row == sum(counts[: unit.group_start]) + unit.group_offset
        held = sum(counts[unit.group_start : unit.group_stop])
        assert unit.group_offset + unit.rows <= held
        if unit.group_stop - unit.group_start > 1:  # several row groups are taken whole
            assert (unit.group_offset, unit.rows) == (0, held)


@many_examples
@given(FILES, ROWS, BYTES, st.integers(1, 9), st.integers(1, 9))
def test_a_sliced_first_unit_leaves_the_rows_as_they_were(
    files: list[Groups], rows: int, size: int, pieces: int, least: int
) -> None:
    before = plan(files, rows, size)
    after = slice_first(before, pieces=pieces, least=least)
    assert after.schema == before.schema
    unit_of_rows = [
        [
            (unit.source, unit.first_row + row)
            for unit in all_units(table)
            for row in range(unit.rows)
        ]
        for table in (before, after)
    ]
    assert unit_of_rows[0] == unit_of_rows[1]
    for unit in all_units(after):
        counts = [group[0] for group in files[int(unit.source[1])]]
        assert unit.first_row == sum(counts[: unit.group_start]) + unit.group_offset
    could = any(
        unit.rows >= pieces * least and unit.group_stop - unit.group_start == 1
        for unit in all_units(before)
    )
    assert len(after) - len(before) == (pieces - 1 if could else 0)


@many_examples
@given(FILES, ROWS, BYTES)
@example([[(3, 30)]], 50, 15)
@example([[(5, 5), (0, 900), (4, 200)]], 50, 1000)
def test_limits_are_kept_but_for_a_single_row(files: list[Groups], rows: int, size: int) -> None:
    table = plan(files, rows, size)
    for count, taken in zip(table["rows"].to_pylist(), table["bytes"].to_pylist(), strict=True):
        assert count <= rows
        assert taken <= size or count == 1


@many_examples
@given(FILES, ROWS, BYTES)
@example([[(1, 0), (0, 2), (1, 0)]], 2, 1)  # bytes of a row group without rows
def test_no_two_neighbours_would_fit_into_one_unit(
    files: list[Groups], rows: int, size: int
) -> None:
    table = plan(files, rows, size)
    units = all_units(table)
    taken = table["bytes"].to_pylist()
    for (one, one_bytes), (other, other_bytes) in pairwise(zip(units, taken, strict=True)):
        whole = one.group_stop <= other.group_start  # slices of one row group are equal on purpose
        if one.source == other.source and whole:
            groups = files[int(one.source[1])]
            sliced = any(
                groups[unit.group_start][0] > unit.rows and unit.group_stop - unit.group_start == 1
                for unit in (one, other)
            )
            fits = one.rows + other.rows <= rows and one_bytes + other_bytes <= size
            assert sliced or not fits


@many_examples
@given(FILES, ROWS, BYTES, st.integers(1, 200), st.integers(1, 5000), st.floats(0, 1))
def test_reads_partition_the_units_in_order(
    files: list[Groups], rows: int, size: int, read_rows: int, read_bytes: int, share: float
) -> None:
    table = plan(files, rows, size)
    reads = list(group_reads(table, max_rows=read_rows, max_bytes=read_bytes, group_share=share))
    assert [position for read in reads for position in read.tolist()] == list(range(len(table)))
    assert all(len(read) for read in reads)
    units, taken = all_units(table), table["bytes"].to_pylist()
    for read in reads:
        members = [units[position] for position in read]
        packed = (
            sum(unit.rows for unit in members) <= read_rows
            and sum(taken[position] for position in read) <= read_bytes
        )
        one = members[0]
        of_group = [u for u in units if (u.source, u.group_start) == (one.source, one.group_start)]
        shares = all(unit in of_group for unit in members) and (
            sum(unit.rows for unit in members) <= share * sum(unit.rows for unit in of_group)
        )
        assert packed or shares or len(members) == 1


@many_examples
@given(FILES, ROWS, BYTES, st.data())
def test_reads_of_pending_units_name_only_those(
    files: list[Groups], rows: int, size: int, data: st.DataObject
) -> None:
    table = plan(files, rows, size)
    positions = list(range(len(table)))
    pending = data.draw(st.lists(st.sampled_from(positions), unique=True)) if positions else []
    left = table.take(pa.array(sorted(pending), pa.int64()))
    reads = list(group_reads(left, max_rows=rows, max_bytes=size, group_share=0.1))
    assert sum(len(read) for read in reads) == len(pending)


def test_a_file_without_rows_has_no_unit() -> None:
    assert len(plan([[], [(0, 0)], [(0, 0), (0, 12)]], 10, 1000)) == 0
    assert list(group_reads(plan([], 1, 1), max_rows=1, max_bytes=1, group_share=0.1)) == []


def test_a_file_with_a_fault_has_no_unit() -> None:
    footers = [footer([(5, 5)], 0, fault="schema: no"), footer([(5, 5)], 1)]
    assert plan_units(footers, max_rows=9, max_bytes=9)["file"].to_pylist() == [1]


def test_row_groups_without_rows_belong_to_no_unit_of_their_own() -> None:
    units = all_units(plan([[(0, 0), (3, 3), (0, 0), (3, 3), (0, 0)]], 6, 100))
    assert [(unit.first_row, unit.rows) for unit in units] == [(0, 6)]


def test_a_huge_row_group_is_cut_into_equal_slices_read_a_few_at_a_time() -> None:
    table = plan([[(1_000_000, 10**9)]], 16_384, 64 * 2**20)
    counts = table["rows"].to_pylist()
    assert max(counts) - min(counts) <= 1
    assert len(counts) == -(-1_000_000 // 16_384)
    options = {"max_rows": 16_384, "max_bytes": 64 * 2**20}
    reads = list(group_reads(table, **options, group_share=1 / 12))
    assert {len(read) for read in reads[:-1]} == {5}
    assert {len(read) for read in group_reads(table, **options, group_share=0.0)} == {1}


def test_small_files_are_read_together() -> None:
    table = plan([[(10, 100)]] * 5, 1000, 10**6)
    assert len(table) == 5  # a unit never crosses files
    (read,) = group_reads(table, max_rows=1000, max_bytes=10**6, group_share=0.1)
    assert len(read) == 5


def test_a_part_is_named_after_its_unit() -> None:
    units = all_units(plan([[(5, 1), (5, 1)]], 5, 100))
    assert [unit.part for unit in units] == ["f0/000000000000.parquet", "f0/000000000005.parquet"]
