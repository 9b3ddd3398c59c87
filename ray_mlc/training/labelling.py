"""The labels of a piece of rows, in whichever form a file has them, as pairs (row, code).

Lists of names, or 0/1 columns. Not annotated is never negative: a row with null labels and a cell
marked -1 or null stay apart from the zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.errors import DataError
from ray_mlc.training.names import Naming
from ray_mlc.training.pieces import UNANNOTATED, Columns, Piece, brief, is_list, is_text

_STATES = {"": -1, "-1": -1, "-1.0": -1, "nan": -1, "na": -1, "null": -1, "none": -1}
_STATES |= {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


Vocabulary = dict[str, int]
"""Code of each label name, in order of first sight."""


@dataclass(frozen=True, eq=False)
class PieceLabels:
    """Labels of a piece of n rows as pairs of row and code, both shape [cells]."""

    annotated: NDArray[np.bool_]
    """Shape [n]."""
    rows: NDArray[np.int64]
    codes: NDArray[np.int32]
    """Labels that are set; rows ascend."""
    open_rows: NDArray[np.int64]
    open_codes: NDArray[np.int32]
    """Labels that nobody decided in rows that are annotated."""


def encode_labels(
    piece: Piece, columns: Columns, vocabulary: Vocabulary, naming: Naming | None = None
) -> PieceLabels:
    """The labels of a piece, from 0/1 columns or a list column; new names join `vocabulary`.

    Args:
        piece: Rows with the label columns.
        columns: Which these are.
        vocabulary: Codes of the names met so far.
        naming: Names of what a list column holds, if that is ids.

    Raises:
        DataError: If a label column holds something else, or a label is both set and undecided.
    """
    if isinstance(columns.labels, tuple):
        return _encode_zero_one(piece, columns.labels, vocabulary)
    lists = _label_lists(piece, columns.labels)
    undecided = None
    if UNANNOTATED in columns.optional and UNANNOTATED in piece.columns:
        column = piece.columns[UNANNOTATED]
        if is_list(column.type) and is_text(column.type.value_type):
            undecided = _label_lists(piece, UNANNOTATED)
    return encode_lists(piece, lists, vocabulary, naming=naming, undecided=undecided)


def encode_lists(
    piece: Piece,
    lists: pa.Array,
    vocabulary: Vocabulary,
    *,
    naming: Naming | None = None,
    undecided: pa.Array | None = None,
) -> PieceLabels:
    """The labels of a piece from lists of names or ids, null where the row is not annotated."""
    annotated_n = lists.is_valid().to_numpy(zero_copy_only=False)
    rows, codes = _encode(piece, lists, vocabulary, naming)
    open_rows, open_codes = np.empty(0, np.int64), np.empty(0, np.int32)
    if undecided is not None:
        open_rows, open_codes = _encode(piece, undecided, vocabulary, naming)
        kept = annotated_n[open_rows]  # a row that is not annotated is so in all its labels
        open_rows, open_codes = open_rows[kept], open_codes[kept]
        size = len(vocabulary)
        both = np.intersect1d(rows * size + codes, open_rows * size + open_codes)
        if len(both):
            name = list(vocabulary)[both[0] % size]
            raise DataError(
                f"{piece.place(int(both[0] // size))}: label {name!r} is both set and in "
                f"{UNANNOTATED!r}: keep it in one of them"
            )
    return PieceLabels(annotated_n, rows, codes, open_rows, open_codes)


def without_unclear(piece: Piece, name: str, marks: PieceLabels) -> PieceLabels:
    """The labels of a piece; rows in which the 0/1 column `name` is 1 are not annotated."""
    clear_n = label_states(piece, name) != 1
    cells, open_cells = clear_n[marks.rows], clear_n[marks.open_rows]
    return PieceLabels(
        annotated=marks.annotated & clear_n,
        rows=marks.rows[cells],
        codes=marks.codes[cells],
        open_rows=marks.open_rows[open_cells],
        open_codes=marks.open_codes[open_cells],
    )


def flat_lists(lists: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Row and value of each item, both shape [items].

    Not `pc.list_parent_indices`: a null list may hold items, which that counts and flattening
    leaves out.
    """
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    return np.repeat(np.arange(len(lists)), lengths), pc.list_flatten(lists)


def _label_lists(piece: Piece, name: str) -> pa.Array:
    """A column of names as large_list<large_string>, null where the row is not annotated."""
    column = piece.columns[name]
    found = column.type
    if pa.types.is_null(found):
        return pa.nulls(len(column), _LISTS)
    if not is_list(found) or not is_text(found.value_type):
        raise DataError(f"{piece.source}: column {name!r} {_label_remedy(piece, name)}")
    try:
        lists = column.cast(_LISTS)
        lists.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(
            f"{piece.source}: column {name!r} has a label that is not valid UTF-8"
        ) from None
    rows, names = flat_lists(lists)
    blank = pc.equal(pc.utf8_trim_whitespace(names), "").fill_null(True)
    if pc.any(blank).as_py():
        index = int(pc.index(blank, True).as_py())
        raise DataError(
            f"{piece.place(int(rows[index]))}: column {name!r} lists "
            f"{names[index].as_py()!r}, which is no label"
        )
    return lists


def _label_remedy(piece: Piece, name: str) -> str:
    found = piece.columns[name].type
    if piece.format == "CSV":
        return (
            "of a CSV file is text, not a list: `ray-mlc data convert --delimiter` makes "
            f"examples of it, or list the 0/1 columns as labels (a single one: `{name},`)"
        )
    if is_list(found) and pa.types.is_integer(found.value_type):
        return f"is {found}: `ray-mlc data convert` with the names of the labels makes examples"
    if is_text(found):
        return f"is {found}: `ray-mlc data convert --delimiter` splits text into labels"
    if pa.types.is_integer(found) or pa.types.is_boolean(found) or pa.types.is_floating(found):
        return f"is {found}, expected list<string>: give 0/1 columns as a list of names"
    return f"is {found}, expected list<string>"


def _encode_zero_one(piece: Piece, names: Sequence[str], vocabulary: Vocabulary) -> PieceLabels:
    for name in names:
        vocabulary.setdefault(name, len(vocabulary))
    states_nL = np.stack([label_states(piece, name) for name in names], axis=1)
    annotated_n = (states_nL != -1).any(axis=1)
    rows, codes = np.nonzero(states_nL == 1)
    open_rows, open_codes = np.nonzero((states_nL == -1) & annotated_n[:, None])
    return PieceLabels(
        annotated_n, rows, codes.astype(np.int32), open_rows, open_codes.astype(np.int32)
    )


def label_states(piece: Piece, name: str) -> NDArray[np.int8]:
    """A 0/1 column as 1, 0, and -1 where it is null, empty or -1, shape [n]."""
    column = piece.columns[name]
    found = column.type
    states_n: NDArray[np.int8]
    if pa.types.is_null(found):
        return np.full(len(column), -1, dtype=np.int8)
    if is_text(found):
        trimmed = pc.utf8_lower(pc.utf8_trim_whitespace(piece.text(name))).fill_null("")
        known = pa.array(list(_STATES), pa.large_string())
        codes = pc.index_in(trimmed, value_set=known).fill_null(len(_STATES))
        states_n = np.array([*_STATES.values(), 2], dtype=np.int8)[codes.to_numpy()]
    elif pa.types.is_boolean(found):
        states_n = column.cast(pa.int8()).fill_null(-1).to_numpy()
    elif pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found):
        numbers_n = column.cast(pa.float64(), safe=False).fill_null(-1).to_numpy()
        numbers_n = np.where(np.isnan(numbers_n), -1, numbers_n)
        states_n = np.where(np.isin(numbers_n, (-1, 0, 1)), numbers_n, 2).astype(np.int8)
    else:
        more = ": name a list column alone, not in a list" if is_list(found) else ""
        raise DataError(f"{piece.source}: column {name!r} is {found}, expected 0 and 1{more}")
    if (states_n == 2).any():
        row = int(np.argmax(states_n == 2))
        value = column[row].as_py()
        value = value.decode() if isinstance(value, bytes) else value
        raise DataError(
            f"{piece.place(row)}: column {name!r} is {brief(value)}, expected 0 or 1 "
            "(-1 or nothing: not annotated)"
        )
    return states_n


def _encode(
    piece: Piece, lists: pa.Array, vocabulary: Vocabulary, naming: Naming | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row and code of each label of `lists`; each distinct one is named and looked up once."""
    rows, values = flat_lists(lists)
    encoded = values.dictionary_encode()
    codes = []
    for index, label in enumerate(encoded.dictionary.to_pylist()):
        name = label if naming is None else naming(label)
        if name is None:
            assert naming is not None
            row = int(rows[int(pc.index(encoded.indices, index).as_py())])
            raise DataError(
                f"{piece.place(row)}: labels list {brief(label)}, expected 0 to {len(naming) - 1} "
                f"or one of the {len(naming)} names"
            )
        codes.append(vocabulary.setdefault(name, len(vocabulary)))
    return rows, np.array(codes, dtype=np.int32)[encoded.indices.to_numpy()]


_LISTS = pa.large_list(pa.large_string())
