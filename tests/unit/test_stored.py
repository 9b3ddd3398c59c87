"""Stored scores, in each form: what they give, and what they leave open."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision, Rules, decide, decide_cells
from ray_mlc.model.distribution import bin_cells
from ray_mlc.model.hierarchy import Hierarchy
from ray_mlc.runtime.refit import BITS, BUCKETS, bucket_counts
from ray_mlc.scoring import stored
from ray_mlc.scoring.parts import OutputSpec, top_lists
from ray_mlc.scoring.retag import decide_again
from ray_mlc.scoring.stored import (
    Cells,
    cells_in_turn,
    check_floor,
    count_bins,
    known_cells,
    label_cells,
    score_matrix,
    scores_at,
)

LABELS = LabelSet(tuple(f"label {n}" for n in range(9)))
K, FLOOR = 4, 0.05


def output(form: str) -> OutputSpec:
    return OutputSpec(pa.schema([]), LABELS, form, K, FLOOR)


def drawn(seed: int, rows: int = 400) -> NDArray[np.float32]:
    """Scores of which many are equal, at the floor, or next to a float16."""
    rng = np.random.default_rng(seed)
    scores_NL = (rng.random((rows, len(LABELS))) ** 4).astype(np.float32)
    some = rng.random(scores_NL.shape)
    scores_NL[some < 0.2] = np.round(scores_NL[some < 0.2], 1)
    scores_NL[some > 0.97] = FLOOR
    return scores_NL


def rules(seed: int, *, fallback: int | None, tree: bool) -> Rules:
    rng = np.random.default_rng(seed)
    parents = {"label 8": ["label 1", "label 2"], "label 1": ["label 0"], "label 2": ["label 0"]}
    return Rules(
        rng.uniform(FLOOR, 0.6, len(LABELS)).astype(np.float32),
        Hierarchy.of(parents, LABELS) if tree else None,
        fallback,
        float(rng.choice([0.0, 0.1])),
    )


def part(scores_NL: NDArray[np.float32], form: str) -> pa.Table:
    """A part's columns of scores; every seventh row was not scored."""
    skipped = pa.array(np.arange(len(scores_NL)) % 7 == 6)
    status = pa.array(["null_text" if skip else "ok" for skip in skipped.to_pylist()])
    columns: dict[str, Any] = {"status": status.dictionary_encode()}
    match form:
        case "wide":
            for index, name in enumerate(LABELS.column_names):
                columns[f"score_{name}"] = pa.array(
                    scores_NL[:, index], mask=skipped.to_numpy(False)
                )
        case "sparse":
            top, _ = top_lists(scores_NL, LABELS.names, k=K, floor=FLOOR)
            columns["top"] = pa.compute.if_else(skipped, pa.scalar(None, top.type), top)
        case _:
            flat = pa.array(scores_NL.astype(np.float16).ravel())
            lists = pa.FixedSizeListArray.from_arrays(flat, len(LABELS))
            columns["scores"] = pa.compute.if_else(skipped, pa.scalar(None, lists.type), lists)
    return pa.table(columns)


@pytest.mark.parametrize("form", ["wide", "sparse", "dense"])
def test_what_is_stored_is_read_back_also_from_a_slice(form: str) -> None:
    scores_NL = drawn(0)
    table = part(scores_NL, form)
    found_NL = score_matrix(table, output(form))
    assert np.isnan(found_NL[6::7]).all()
    known_NL = ~np.isnan(found_NL)
    expected_NL = scores_NL.astype(np.float16).astype(np.float32) if form == "dense" else scores_NL
    np.testing.assert_array_equal(found_NL[known_NL], expected_NL[known_NL])
    if form == "sparse":
        assert known_NL.sum(axis=1).max() == K
        assert (found_NL[known_NL] >= np.float32(FLOOR)).all()
    else:
        assert known_NL[np.arange(len(table)) % 7 != 6].all()
    np.testing.assert_array_equal(score_matrix(table.slice(5, 30), output(form)), found_NL[5:35])
    (cells,) = cells_in_turn(table, output(form), least=0)
    np.testing.assert_array_equal(found_NL[cells.row_C, cells.column_C], cells.score_C)
    assert len(cells.row_C) == known_NL.sum()


@pytest.mark.parametrize("form", ["wide", "sparse", "dense"])
def test_what_is_counted_and_looked_up_in_pieces_is_what_all_at_once_gives(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = part(drawn(3), form)
    found_NL = score_matrix(table, output(form))
    row, column = np.nonzero(~np.isnan(found_NL))
    score = found_NL[row, column]
    expected_LB = bin_cells(column, score, labels=len(LABELS), rows=343)
    above = np.flatnonzero(score > 0)
    bits = score[above].view(np.uint32).astype(np.int64) >> 2 * BITS
    expected_buckets = np.bincount(column[above] * BUCKETS + bits, minlength=len(LABELS) * BUCKETS)
    rng = np.random.default_rng(0)
    some = rng.integers(len(table), size=90), rng.integers(len(LABELS), size=90)
    for most in (stored.MAX_CELLS, 31 * len(LABELS), 1):
        monkeypatch.setattr(stored, "MAX_CELLS", most)
        monkeypatch.setattr(stored, "_CELLS_AT_ONCE", most // 3)
        np.testing.assert_array_equal(count_bins(table, output(form), rows=343), expected_LB)
        rows, buckets = bucket_counts(
            table, output=output(form), prefix_L=np.zeros(len(LABELS), np.int64), shift=2 * BITS
        )
        assert rows == 343
        np.testing.assert_array_equal(buckets, expected_buckets)
        np.testing.assert_array_equal(scores_at(table, output(form), *some), found_NL[some])
    none = np.zeros(0, np.int64)
    assert len(scores_at(table, output(form), none, none)) == 0
    assert count_bins(table.slice(0, 0), output(form), rows=0).sum() == 0


@pytest.mark.parametrize("form", ["wide", "dense"])
def test_scores_of_many_labels_are_never_held_as_cells(form: str) -> None:
    label_set = LabelSet(tuple(f"label {n}" for n in range(500)))
    spec = OutputSpec(pa.schema([]), label_set, form, K, FLOOR)
    rows = 4096
    flat = np.random.default_rng(0).random(rows * 500, np.float32)
    if form == "wide":
        columns = flat.reshape(500, rows)
        table = pa.table(
            {f"score_{n}": c for n, c in zip(label_set.column_names, columns, strict=True)}
        )
    else:
        table = pa.table(
            {"scores": pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float16)), 500)}
        )
    every = np.arange(rows)
    tracemalloc.start()
    try:
        counts_LB = count_bins(table, spec, rows=rows)
        found = scores_at(table, spec, every, every % 500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (counts_LB.sum(axis=1) == rows).all()
    assert not np.isnan(found).any()
    assert peak < 24e6  # its cells take 41 MB, and twice that while they are joined


@pytest.mark.parametrize(("fallback", "tree"), [(None, False), (1, True), (3, False), (20, True)])
@pytest.mark.parametrize("form", ["wide", "sparse", "dense"])
def test_rows_that_come_out_otherwise_than_by_all_scores_are_those_left_open(
    form: str, fallback: int | None, tree: bool
) -> None:
    open_rows = other_rows = 0
    for seed in range(3):
        scores_NL = drawn(seed, rows=100)
        decided = rules(seed, fallback=fallback, tree=tree)
        if form == "dense":  # thresholds that lie on scores, as those that were fitted
            decided = Rules(scores_NL[0] + np.float32(1e-4), decided.hierarchy, fallback, 0.1)
        scored = np.arange(len(scores_NL)) % 7 != 6
        truth_NL = decide(scores_NL, decided) & scored[:, None]
        table = part(scores_NL, form)
        for row in range(len(table)):  # one by one, to know which row is left open
            one = table.slice(row, 1)
            labels, left_open = decide_again(one, output(form), decided, cut=True)
            found_L = np.zeros(len(LABELS), np.bool_)
            found_L[label_cells(labels, LABELS)[1]] = True
            assert labels.null_count == (not scored[row])
            if not np.array_equal(found_L, truth_NL[row]):
                other_rows += 1
                assert left_open == 1, (seed, row)
            open_rows += left_open
        together = decide_again(table, output(form), decided, cut=True)
        assert together[0].null_count == (~scored).sum()
    if form == "wide":
        assert open_rows == other_rows == 0
    else:
        # of a fall-back beyond what is stored nearly every row is open
        assert 0 < other_rows <= open_rows < (200 if (fallback or 0) <= 1 else 257)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("fallback", [None, 1, 3])
def test_few_scores_of_many_labels_are_decided_as_a_matrix_is(
    fallback: int | None, tree: bool
) -> None:
    for seed in range(20):
        table = part(drawn(seed, rows=60), "sparse")
        decided = rules(seed, fallback=fallback, tree=tree)
        cells = known_cells(table, output("sparse"))
        found_rows, found_columns = decide_cells(
            cells.row_C, cells.column_C, cells.score_C, cells.rows, decided
        )
        matrix = score_matrix(table, output("sparse"))
        given_NL = np.zeros(matrix.shape, np.bool_)
        given_NL[found_rows, found_columns] = True
        np.testing.assert_array_equal(given_NL, decide(matrix, decided))
        assert len(found_rows) == given_NL.sum()  # each once
        score = np.nan_to_num(matrix[found_rows, found_columns], nan=-1)
        same_row = np.diff(found_rows) == 0
        assert (np.diff(found_rows) >= 0).all()
        assert (np.diff(score)[same_row] <= 0).all()  # best first


def test_no_scores_at_all_give_nothing() -> None:
    none = np.zeros(0, np.int64)
    cells = Cells(3, none, none, np.zeros(0, np.float32))
    decided = rules(0, fallback=2, tree=True)
    found = decide_cells(cells.row_C, cells.column_C, cells.score_C, 3, decided)
    assert [len(part) for part in found] == [0, 0]


def test_a_threshold_below_the_floor_is_refused_with_its_label() -> None:
    decision = Decision(threshold=0.5, per_label={"label 3": 0.04, "label 5": 0.01})
    text = r"label 3, 0.04, and those of 1 more labels, lies below 0.05, the floor"
    with pytest.raises(ConfigError, match=text):
        check_floor(decision, output("sparse"), uri="out")
    check_floor(decision, output("wide"), uri="out")
    check_floor(Decision(threshold=FLOOR), output("sparse"), uri="out")


def test_a_label_that_the_run_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="label that the model does not have: 'other'"):
        label_cells(pa.chunked_array([[["label 1"], ["other"]]]), LABELS)
