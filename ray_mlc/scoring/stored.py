"""Scores as parts store them, in any of their forms, and what they leave open.

    wide     all of them, as they were
    sparse   those from `floor` on, at most `k` of a row
    dense    all of them, rounded to float16

A score that is not known is NaN in a matrix, and absent among cells, which are what the sparse form
is read as: of thousands of labels a row has scores of some dozens. The cells of a wide or dense
part take five to ten times its own memory, so of these only some rows are held as cells or as a
matrix. What a decision gives is settled by what is stored for nearly every row; `cut_off` and
`rounded` find the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError
from ray_mlc.labels import LabelSet, quoted
from ray_mlc.model.decisions import Decision, Rules
from ray_mlc.model.distribution import BINS, EDGES, bin_cells
from ray_mlc.scoring.parts import OutputSpec

MAX_CELLS = 2**20
"""Scores held at once as a matrix: in a processor's cache deciding takes half the time."""
_CELLS_AT_ONCE = 2**18
"""Scores of a matrix that are held at once as cells, which take five times as much."""


@dataclass(frozen=True)
class Cells:
    """The scores of some rows that are known: C of them, in the order of rows."""

    rows: int
    row_C: NDArray[np.int64]
    column_C: NDArray[np.int64]
    score_C: NDArray[np.float32]
    """Of the sparse form the best of each row first."""


def score_columns(output: OutputSpec) -> list[str]:
    """Columns of a part that hold its scores."""
    match output.format:
        case "wide":
            return [f"score_{name}" for name in output.label_set.column_names]
        case "sparse":
            return ["top"]
        case _:
            return ["scores"]


def stored_scores(table: pa.Table, output: OutputSpec) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The scores of some rows of a run, some rows at a time.

    Args:
        table: With `score_columns`.
        output: What parts of the run look like.

    Yields:
        First row, and scores, shape [n, L]; NaN where one is not known.

    Raises:
        ValueError: If a row has a score of a label that the run does not know.
    """
    step = max(1, MAX_CELLS // len(output.label_set))
    for low in range(0, table.num_rows, step):
        yield low, score_matrix(table.slice(low, step), output)


def score_matrix(table: pa.Table, output: OutputSpec) -> NDArray[np.float32]:
    """As `stored_scores`, of few rows, all at once."""
    labels = len(output.label_set)
    scores_NL = np.full((table.num_rows, labels), np.nan, np.float32)
    match output.format:
        case "wide":
            for index, name in enumerate(score_columns(output)):
                scores_NL[:, index] = table[name].to_numpy()
        case "sparse":
            cells = known_cells(table, output)
            scores_NL[cells.row_C, cells.column_C] = cells.score_C
        case _:
            scores = _one_array(table["scores"])
            known = scores.is_valid().to_numpy(zero_copy_only=False)
            scores_NL[known] = scores.flatten().to_numpy().reshape(-1, labels)
    return scores_NL


def known_cells(table: pa.Table, output: OutputSpec) -> Cells:
    """The scores of some rows that the sparse form has stored.

    Raises:
        ValueError: If a row has a score of a label that the run does not know.
    """
    rows, items = _elements(table["top"])
    columns = column_of(pc.struct_field(items, "label"), output.label_set)
    scores = pc.struct_field(items, "score").to_numpy()
    return Cells(table.num_rows, rows, columns, scores)


def cells_in_turn(table: pa.Table, output: OutputSpec, *, least: float) -> Iterator[Cells]:
    """Scores of some rows, in any form, some rows at a time: enough for whoever only counts.

    Args:
        table: With `score_columns`.
        output: What parts of the run look like.
        least: Scores below it are left out, before they take room.

    Yields:
        Cells, whose rows count from the first row of each piece.

    Raises:
        ValueError: If a row has a score of a label that the run does not know.
    """
    if output.format == "sparse":
        cells = known_cells(table, output)
        meant = cells.score_C >= least
        yield Cells(cells.rows, cells.row_C[meant], cells.column_C[meant], cells.score_C[meant])
        return
    step = max(1, _CELLS_AT_ONCE // len(output.label_set))
    for _, scores_NL in stored_scores(table, output):
        for low in range(0, len(scores_NL), step):
            some_NL = scores_NL[low : low + step]
            row, column = np.nonzero(some_NL >= least)
            yield Cells(len(some_NL), row, column, some_NL[row, column])


def count_bins(table: pa.Table, output: OutputSpec, *, rows: int) -> NDArray[np.int64]:
    """Rows in each bin of `model.distribution`, shape [L, B]; unknown scores are in the lowest.

    Args:
        table: With `score_columns`.
        output: What parts of the run look like.
        rows: How many of its rows have scores.

    Raises:
        ValueError: If a row has a score of a label that the run does not know.
    """
    labels = len(output.label_set)
    counts_LB = np.zeros((labels, BINS), np.int64)
    for cells in cells_in_turn(table, output, least=EDGES[0]):
        # of no rows: the lowest bin has what the others lack, once all are counted
        counts_LB += bin_cells(cells.column_C, cells.score_C, labels=labels, rows=0)
    counts_LB[:, 0] += rows
    return counts_LB


def scores_at(
    table: pa.Table, output: OutputSpec, row_F: NDArray[np.int64], column_F: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Single scores by row and column; NaN where one is not known.

    Args:
        table: With `score_columns`.
        output: What parts of the run look like.
        row_F: Rows of the table.
        column_F: Columns.
    """
    found_F = np.full(len(row_F), np.nan, np.float32)
    order = np.argsort(row_F, kind="stable")
    rows, starts = np.unique(row_F[order], return_index=True)
    starts = np.append(starts, len(order))
    step = max(1, MAX_CELLS // len(output.label_set))
    for low in range(0, len(rows), step):
        some = rows[low : low + step]
        scores_NL = score_matrix(table.take(pa.array(some)), output)
        flips = order[starts[low] : starts[low + len(some)]]
        found_F[flips] = scores_NL[np.searchsorted(some, row_F[flips]), column_F[flips]]
    return found_F


def label_cells(
    labels: pa.ChunkedArray, label_set: LabelSet
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each label given.

    Raises:
        ValueError: If a row has a label that is not in the set.
    """
    rows, names = _elements(labels)
    return rows, column_of(names, label_set)


def column_of(names: pa.Array, label_set: LabelSet) -> NDArray[np.int64]:
    """Column of each name.

    Raises:
        ValueError: If there is none.
    """
    coded = names.dictionary_encode()
    if coded.null_count:
        raise ValueError("a label is null")
    found = [label_set.index.get(name, -1) for name in coded.dictionary.to_pylist()]
    if -1 in found:
        name = coded.dictionary[found.index(-1)].as_py()
        raise ValueError(f"it has a label that the model does not have: {name!r}")
    columns: NDArray[np.int64] = np.array(found, np.int64)[coded.indices.to_numpy()]
    return columns


def _elements(lists: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Row of each element of a column of lists, and the elements."""
    array = _one_array(lists)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    return np.repeat(np.arange(len(array)), lengths), array.flatten()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def check_floor(decision: Decision, output: OutputSpec, *, uri: str) -> None:
    """Refuse thresholds below what the sparse form has stored.

    Raises:
        ConfigError: Naming the first such label and the floor.
    """
    if output.format != "sparse":
        return
    names = output.label_set.names
    thresholds_L = decision.thresholds_L(output.label_set)
    below = np.flatnonzero(thresholds_L < np.float32(output.floor))
    if len(below):
        first = int(below[0])
        more = f", and those of {len(below) - 1:,} more labels" if len(below) > 1 else ""
        raise ConfigError(
            f"the threshold of label {quoted(names[first])}, {thresholds_L[first]:.4g}{more}, lies "
            f"below {output.floor:g}, the floor from which on {uri} has stored scores: raise it, "
            "or score again with a lower output.floor"
        )


def cut_off(cells: Cells, rules: Rules, output: OutputSpec, *, cut: bool) -> NDArray[np.bool_]:
    """Rows of the sparse form of which a score may be missed that was not stored, shape [N].

    Args:
        cells: Stored scores.
        rules: The decision; its thresholds are not below the floor.
        output: How scores are stored.
        cut: Whether `k` has cut any of these rows.
    """
    row_C, rows, labels = cells.row_C, cells.rows, len(output.label_set)
    open_N = np.zeros(rows, np.bool_)
    if not cut and rules.fallback is None:
        return open_N
    known_N = np.bincount(row_C, minlength=rows)
    full_N = np.full(rows, cut and output.k < labels) & (known_N == output.k)
    # what was cut is at most as large as the smallest that was kept, which stands last
    smallest_N = np.full(rows, -1.0, np.float32)
    smallest_N[full_N] = cells.score_C[np.cumsum(known_N)[full_N] - 1]
    low_C = rules.thresholds_L[cells.column_C] <= smallest_N[row_C]
    low_N = np.searchsorted(np.sort(rules.thresholds_L), smallest_N, side="right")
    open_N |= low_N > np.bincount(row_C[low_C], minlength=rows)
    if rules.fallback is not None:
        given_C = cells.score_C >= rules.thresholds_L[cells.column_C]
        usable_C = cells.score_C >= np.float32(rules.fallback_floor)
        given_N, usable_N = (np.bincount(row_C[m], minlength=rows) for m in (given_C, usable_C))
        hidden_N = full_N | (rules.fallback_floor < output.floor)
        short_N = usable_N < min(rules.fallback, labels)
        open_N |= (given_N == 0) & short_N & hidden_N & (known_N < labels)
    return open_N


def rounded(scores_NL: NDArray[np.float32], rules: Rules) -> NDArray[np.bool_]:
    """Rows of the dense form with a score that may have been on the other side, shape [N].

    Each was rounded to float16: it is open where the threshold is rounded to the same number.
    """
    at_L = rules.thresholds_L.astype(np.float16).astype(np.float32)
    open_N: NDArray[np.bool_] = (scores_NL == at_L).any(axis=1)
    if rules.fallback is None:
        return open_N
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(~(scores_NL >= rules.thresholds_L).any(axis=1))
    ranked = -np.sort(-scores_NL[rows], axis=1)  # NaN last
    last, after = ranked[:, : rules.fallback][:, -1:], ranked[:, rules.fallback :][:, :1]
    floor = np.float32(np.float16(rules.fallback_floor))
    # of equal ones nobody knows which was the larger
    tied = (last == after).any(axis=1) if after.size else np.zeros(len(rows), np.bool_)
    open_N[rows] |= tied | (ranked[:, : rules.fallback] == floor).any(axis=1)
    return open_N
