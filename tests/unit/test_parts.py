"""Parts: the columns made of scores, and files that hold whole units or are not written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ray_mlc.corpus.rows import BLOCK_FAULT, BLOCK_UNIT_FIRST, BLOCK_UNIT_ROWS, SOURCE_TYPE
from ray_mlc.errors import LeaseError
from ray_mlc.labels import LabelSet
from ray_mlc.scoring.lease import hold_lease
from ray_mlc.scoring.parts import (
    BLOCK_ERROR,
    BLOCK_PADDED,
    BLOCK_REAL,
    CommitSpec,
    OutputSpec,
    Receipt,
    commit_parts,
    label_lists,
    read_footer_key,
    reserved_columns,
    resolve_format,
    split_units,
    top_lists,
)
from ray_mlc.storage import LocalStorage

NAMES = ("a", "b", "c")
LABELS = LabelSet(NAMES)

scores_of_rows = arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.just(3)),
    elements=st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32)),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(scores_of_rows)
def test_labels_come_best_score_first_and_none_is_an_empty_list(
    scores_NL: NDArray[np.float32],
) -> None:
    lists = label_lists(scores_NL, scores_NL >= np.float32(0.5), NAMES).to_pylist()
    for scores, labels in zip(scores_NL, lists, strict=True):
        expected = [column for column in range(3) if scores[column] >= 0.5]
        expected.sort(key=lambda column: -scores[column])  # stable: equal ones in column order
        assert labels == [NAMES[column] for column in expected]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(scores_of_rows, st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9]))
def test_the_top_holds_the_best_scores_and_counts_what_k_cut(
    scores_NL: NDArray[np.float32], k: int, floor: float
) -> None:
    lists, cut_N = top_lists(scores_NL, NAMES, k=k, floor=floor)
    for scores, top, cut in zip(scores_NL, lists.to_pylist(), cut_N.tolist(), strict=True):
        above = [(name, float(score)) for name, score in zip(NAMES, scores, strict=True)]
        above = sorted(
            (pair for pair in above if pair[1] >= np.float32(floor)), key=lambda x: -x[1]
        )
        assert [(item["label"], item["score"]) for item in top] == above[:k]
        assert cut == max(0, len(above) - k)


def test_auto_is_wide_up_to_64_labels_and_sparse_above() -> None:
    small, large = (LabelSet(tuple(f"l{n}" for n in range(count))) for count in (64, 65))
    assert resolve_format("auto", small) == "wide"
    assert resolve_format("auto", large) == "sparse"
    assert resolve_format("dense", small) == "dense"


@pytest.mark.parametrize(
    ("format_", "own"),
    [("wide", ["score_a", "score_b", "score_c"]), ("sparse", ["top"]), ("dense", ["scores"])],
)
def test_each_form_reserves_its_columns(format_: str, own: list[str]) -> None:
    assert reserved_columns(format_, LABELS) == [
        "source",
        "row",
        "labels",
        *own,
        "n_tokens",
        "truncated",
        "n_windows",
        "status",
    ]


def test_score_columns_stay_unique_where_case_is_folded() -> None:
    columns = reserved_columns("wide", LabelSet(("Spam", "spam")))
    assert [name for name in columns if name.startswith("score_")] == ["score_Spam", "score_spam_2"]


def scored_block(*units: tuple[str, int, int], fault_at: int | None = None) -> pa.Table:
    """A scored block of units (source, first row, rows), as `score_block` gives it."""
    pieces = []
    for number, (source, first, rows) in enumerate(units):
        fault = "read: broken" if number == fault_at else None
        count = 1 if fault else rows
        errors = (["it broke"] * (rows // 3) + [None] * rows)[:count]
        pieces.append(
            pa.table(
                {
                    "id": pa.array(range(first, first + count), pa.int64()),
                    "source": pa.array([source] * count).cast(SOURCE_TYPE),
                    "row": pa.array(range(first, first + count), pa.int64()),
                    "labels": pa.array([["a"]] * count, pa.list_(pa.string())),
                    **{f"score_{name}": pa.array([0.5] * count, pa.float32()) for name in NAMES},
                    "n_tokens": pa.array([7] * count, pa.int32()),
                    "truncated": pa.array([True] * count),
                    "n_windows": pa.array([1] * count, pa.int16()),
                    "status": pa.array(["ok"] * count).cast(SOURCE_TYPE),
                    BLOCK_UNIT_FIRST: pa.array([first] * count, pa.int64()),
                    BLOCK_UNIT_ROWS: pa.array([rows] * count, pa.int32()),
                    BLOCK_FAULT: pa.array([fault] * count, pa.string()),
                    BLOCK_REAL: pa.array([5] * count, pa.int64()),
                    BLOCK_PADDED: pa.array([0] * count, pa.int64()),
                    BLOCK_ERROR: pa.array(errors, pa.string()),
                }
            )
        )
    return pa.concat_tables(pieces)


@pytest.fixture
def spec(tmp_path: Path) -> CommitSpec:
    output = OutputSpec(pa.schema([("id", pa.int64())]), LABELS, "wide", 1, 0.0)
    storage = LocalStorage(tmp_path / "out", scratch="_ray_mlc/tmp")
    return CommitSpec(storage, output, {"run": "r1", "labels": list(NAMES)})


def written(spec: CommitSpec) -> set[str]:
    return {info.path for info in spec.storage.list()}


def test_each_unit_becomes_the_part_that_bears_its_name(spec: CommitSpec) -> None:
    units = [("x.parquet/y.parquet", 0, 3), ("x.parquet/y.parquet", 3, 2), ("z.parquet", 0, 1)]
    receipts = commit_parts(scored_block(*units), spec)
    parts = ["x/y/000000000000.parquet", "x/y/000000000003.parquet", "z/000000000000.parquet"]
    assert [item.part for item in receipts] == parts
    assert written(spec) == set(parts)
    for part, (source, first, rows) in zip(parts, units, strict=True):
        table = pq.ParquetFile(f"{spec.storage.uri}/{part}").read()
        assert table.schema.names == spec.output.schema.names
        assert table["row"].to_pylist() == list(range(first, first + rows))
        assert set(table["source"].to_pylist()) == {source}


def test_the_footer_says_which_run_and_unit_a_part_is(spec: CommitSpec) -> None:
    (receipt,) = commit_parts(scored_block(("z.parquet", 4, 3)), spec)
    footer = read_footer_key(pq.read_metadata(f"{spec.storage.uri}/{receipt.part}"))
    assert footer is not None
    assert footer["run"] == "r1"
    assert footer["labels"] == list(NAMES)
    assert footer["unit"] == {"source": "z.parquet", "first_row": 4, "rows": 3}
    assert Receipt(**footer["receipt"]) == Receipt(**{**vars(receipt), "bytes": 0})
    assert receipt.bytes == Path(f"{spec.storage.uri}/{receipt.part}").stat().st_size


def test_a_writer_without_its_lease_commits_nothing(spec: CommitSpec) -> None:
    with hold_lease(spec.storage, expiry_s=30) as lease:
        mine = replace(spec, holder=lease.token)
        commit_parts(scored_block(("a.parquet", 0, 3)), mine)
        with hold_lease(spec.storage, expiry_s=30, take_over=True):
            with pytest.raises(LeaseError, match="taken over"):
                commit_parts(scored_block(("b.parquet", 0, 3)), mine)
            assert "b/000000000000.parquet" not in written(spec)


def test_a_receipt_counts_what_the_part_holds(spec: CommitSpec) -> None:
    (receipt,) = commit_parts(scored_block(("z.parquet", 0, 3)), spec)
    assert (receipt.rows, receipt.labels, receipt.truncated) == (3, 3, 3)
    assert (receipt.tokens, receipt.real_tokens) == (21, 15)  # 5 tokens of each were computed
    assert receipt.statuses == {"ok": 3}
    assert receipt.errors == {"it broke": 1}
    assert Receipt.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize(
    ("low", "count", "whole"), [(0, 3, []), (1, 6, []), (5, 2, []), (0, 6, [0])]
)
def test_a_piece_of_a_unit_is_refused_and_not_written(
    spec: CommitSpec, low: int, count: int, whole: list[int]
) -> None:
    block = scored_block(("z.parquet", 0, 4), ("z.parquet", 4, 3)).slice(low, count)
    with pytest.raises(RuntimeError, match="a block was split or merged"):
        commit_parts(block, spec)
    assert written(spec) == {f"z/{first:012d}.parquet" for first in whole}


def test_rows_in_another_order_are_refused(spec: CommitSpec) -> None:
    block = scored_block(("z.parquet", 0, 4)).take(pa.array([0, 2, 1, 3]))
    with pytest.raises(RuntimeError, match="a block was split or merged"):
        commit_parts(block, spec)
    assert written(spec) == set()


def test_a_unit_that_could_not_be_read_gives_a_receipt_and_no_part(spec: CommitSpec) -> None:
    units = [("x.parquet", 0, 3), ("x.parquet", 3, 5), ("z.parquet", 0, 2)]
    receipts = commit_parts(scored_block(*units, fault_at=1), spec)
    assert [(item.fault, item.rows) for item in receipts] == [
        (None, 3),
        ("read: broken", 5),
        (None, 2),
    ]
    assert written(spec) == {"x/000000000000.parquet", "z/000000000000.parquet"}


def test_an_empty_block_writes_nothing(spec: CommitSpec) -> None:
    assert commit_parts(scored_block(("z.parquet", 0, 1)).slice(0, 0), spec) == []
    assert written(spec) == set()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 4)), max_size=8), st.data())
def test_a_block_splits_at_unit_boundaries_however_it_is_chunked(
    sizes: list[tuple[str, int]], data: st.DataObject
) -> None:
    ends: dict[str, int] = {}
    units = []
    for source, rows in sorted(sizes):
        units.append((source, ends.get(source, 0), rows))
        ends[source] = ends.get(source, 0) + rows
    if not units:
        return
    block = scored_block(*units)
    at = data.draw(st.integers(0, block.num_rows))
    rechunked = pa.concat_tables([block.slice(0, at), block.slice(at)])
    pieces: list[Any] = list(split_units(rechunked))
    found = [
        (piece["source"][0].as_py(), piece["row"][0].as_py(), piece.num_rows) for piece in pieces
    ]
    assert found == units


def test_a_file_of_another_program_has_no_footer_key(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert read_footer_key(pq.read_metadata(tmp_path / "a.parquet")) is None
    assert json.loads(Receipt("s", 0, 1, "p").to_json())["fault"] is None
