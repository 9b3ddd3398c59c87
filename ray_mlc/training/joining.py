"""Texts and labels that are in different files, joined by the id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ray_mlc.errors import DataError
from ray_mlc.training.formats import read_pieces
from ray_mlc.training.pieces import Columns, Piece, one_array
from ray_mlc.training.sources import SourceFile


def join_labels(
    files: Sequence[SourceFile], label_files: Sequence[SourceFile], columns: Columns
) -> Iterator[Piece]:
    """The pieces of `files` with the label columns of `label_files`.

    Texts are streamed; ids and labels are held: some 100 bytes a row.

    Raises:
        DataError: If there is no id column, an id is absent, or one of the labels' ids is there
            twice.
    """
    if columns.id is None:
        raise DataError("labels in another file are joined by the id: name the id column")
    row_of: dict[str, int] = {}
    tables: list[pa.Table] = []
    for piece in read_pieces(label_files, columns.labels_only()):
        start = len(row_of)
        for index, key in enumerate(_keys(piece, columns.id)):
            if row_of.setdefault(key, start + index) != start + index:
                raise DataError(f"{piece.place(index)}: id {key!r} is there twice: keep one")
        held = {name: piece.columns[name] for name in piece.columns if name != columns.id}
        tables.append(pa.table(held))
    where = ", ".join(file.name for file in label_files)
    if not tables:
        raise DataError(f"{where}: there is no row in it: labels are expected")
    try:
        # of JSON, some pieces may hold nothing but nulls
        labels = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowInvalid:
        raise DataError(f"{where}: the labels are not all of one type") from None
    for piece in read_pieces(files, columns.texts_only()):
        rows = np.empty(len(piece), np.int64)
        for index, key in enumerate(_keys(piece, columns.id)):
            row = row_of.get(key)
            if row is None:
                raise DataError(f"{piece.place(index)}: id {key!r} is not in {where}")
            rows[index] = row
        taken = labels.take(pa.array(rows)).combine_chunks()
        joined = {name: one_array(taken.column(name)) for name in taken.column_names}
        yield replace(piece, columns={**piece.columns, **joined})


def _keys(piece: Piece, name: str) -> list[str]:
    if name not in piece.columns:
        raise DataError(
            f"{piece.source}: there is no column {name!r} (id): labels in another file are joined "
            "by it"
        )
    found = piece.keys(name)
    if found.null_count:
        row = int(np.argmax(found.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{piece.place(row)}: column {name!r} is empty: labels are joined by it")
    keys: list[str] = found.to_pylist()
    return keys
