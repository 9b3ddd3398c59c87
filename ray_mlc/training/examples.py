"""Labelled rows: read from files, checked, held in memory as ragged column indices.

Files are read piece by piece (a few thousand rows of the columns asked for), so `convert` can
stream what `read_examples` collects. Labels become pairs (row, code) at once: their memory grows
with the labels that are set, not with rows × labels.

Not annotated is never negative: a row with null labels and a cell marked -1 or null stay apart
from the zeros up to the loss and the metrics. In messages rows count from 1, the header of a CSV
file left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.errors import DataError
from ray_mlc.labels import LabelSet
from ray_mlc.training.formats import read_pieces
from ray_mlc.training.labelling import Vocabulary, encode_labels
from ray_mlc.training.pieces import Columns
from ray_mlc.training.sources import find_files


@dataclass(frozen=True, eq=False)
class Examples:
    """N labelled texts and the L labels that they may have."""

    ids: pa.Array
    """string, shape [N]; the row number over all files where they have no id."""
    texts: pa.Array
    """large_string, shape [N]; a null text is the empty string here."""
    positives: pa.Array
    """list<int32> (large_list beyond 2**31 cells), shape [N]: sorted distinct columns of
    `label_set` that are set; empty where the row is not annotated."""
    annotated: NDArray[np.bool_]
    """Shape [N]; False where nobody decided any label of the row."""
    unannotated: pa.Array | None
    """Like `positives`: columns that nobody decided in rows that are annotated; None if none."""
    label_set: LabelSet
    """Names in column order."""
    null_text: NDArray[np.bool_] | None = None
    """Shape [N]; True where the text was null; None if none was."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def null_texts(self) -> int:
        """Rows whose text was null."""
        return 0 if self.null_text is None else int(self.null_text.sum())

    def targets_NL(self, rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Multi-hot rows, NaN in the cells that are not annotated.

        Args:
            rows: Which rows, in which order; all of them when None.

        Returns:
            Shape [len(rows), L]; only this much is ever dense.
        """
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.intp)
        targets_NL = np.zeros((len(rows), len(self.label_set)), dtype=np.float32)
        targets_NL[_cells_of(self._positive_cells, rows)] = 1
        if self._open_cells is not None:
            targets_NL[_cells_of(self._open_cells, rows)] = np.nan
        targets_NL[~self.annotated[rows]] = np.nan
        return targets_NL

    def targets_N(self, column: int) -> NDArray[np.float32]:
        """One column of `targets_NL`, at the cost of its own cells: shape [N]."""
        targets_N = np.zeros(len(self), dtype=np.float32)
        targets_N[_rows_of(self._positives_by_column, column)] = 1
        if self._open_by_column is not None:
            targets_N[_rows_of(self._open_by_column, column)] = np.nan
        targets_N[~self.annotated] = np.nan
        return targets_N

    def label_counts(self) -> NDArray[np.int64]:
        """Rows that have each label, shape [L]."""
        return np.bincount(self._positive_cells[1], minlength=len(self.label_set))

    def annotated_counts(self) -> NDArray[np.int64]:
        """Rows in which each label was decided either way, shape [L]."""
        decided_L = np.full(len(self.label_set), int(self.annotated.sum()), dtype=np.int64)
        if self._open_cells is not None:
            decided_L -= np.bincount(self._open_cells[1], minlength=len(self.label_set))
        return decided_L

    def label_rates(self) -> NDArray[np.float64]:
        """Share of annotated cells that are set, shape [L]; 0 where no cell is annotated."""
        return self.label_counts() / np.maximum(self.annotated_counts(), 1)

    def take(self, rows: NDArray[np.intp]) -> Examples:
        """The examples of `rows`, in that order, with the same label set."""
        rows = np.asarray(rows, dtype=np.intp)
        indices = pa.array(rows)
        return Examples(
            ids=self.ids.take(indices),
            texts=self.texts.take(indices),
            positives=self.positives.take(indices),
            annotated=self.annotated[rows],
            unannotated=None if self.unannotated is None else self.unannotated.take(indices),
            label_set=self.label_set,
            null_text=None if self.null_text is None else self.null_text[rows],
        )

    @cached_property
    def _positives_by_column(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _by_column(self._positive_cells, len(self.label_set))

    @cached_property
    def _open_by_column(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        cells = self._open_cells
        return None if cells is None else _by_column(cells, len(self.label_set))

    @cached_property
    def _positive_cells(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        return _offsets_and_columns(self.positives)

    @cached_property
    def _open_cells(self) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
        return None if self.unannotated is None else _offsets_and_columns(self.unannotated)


def annotated_rows(examples: Examples, where: str) -> Examples:
    """The examples without the rows of which every label is null.

    Raises:
        DataError: If nothing is left.
    """
    rows = np.flatnonzero(examples.annotated)
    if not len(rows):
        raise DataError(f"{where}: no row is annotated: every label is null")
    return examples if len(rows) == len(examples) else examples.take(rows)


def read_examples(
    path: str | Sequence[str],
    *,
    text: str | None = "text",
    labels: str | Sequence[str] = "labels",
    id: str | None = "id",
    label_set: LabelSet | None = None,
) -> Examples:
    r"""Read examples from Parquet, CSV or JSONL: a file, a folder, a glob, or a list of them.

    Args:
        path: Local, or at a scheme that `storage` reads. Hidden files of a folder are skipped;
            an archive is taken as the folder that it holds.
        text: Text column (strings, or bytes that are UTF-8; `text.en` is the field `en` of a
            struct), or a template over columns of text and numbers such as `{title}\n\n{body}`.
            None: texts are not read, all are null; the id column must be there then.
        labels: Column that lists the labels of a row (null: not annotated; a further column
            `unannotated` may list labels that nobody decided), or the 0/1 columns, one per label
            (-1, null, empty: not annotated).
        id: Id column. `id` may be absent: then, or with None, ids are row numbers from 0.
        label_set: Labels and their order, such as a model's. Labels that only the files have are
            appended to it, sorted; those for which there is no 0/1 column are not annotated.
            None: the names seen, sorted, or the 0/1 columns as given.

    Raises:
        DataError: Naming file, row and remedy, if a path, column, type or value is wrong, or if
            there is no row or no label at all.
    """
    columns = Columns.of(text=text or "", labels=labels, id=id)
    ids, texts, null_text, annotated = [], [], [], []
    positives, open_cells = _Cells(), _Cells()
    vocabulary: Vocabulary = {}
    start = 0
    for piece in read_pieces(find_files(path), columns):
        if text is None and columns.id not in piece.columns:
            raise DataError(f"{piece.source}: there is no column {id!r} (id), which names the rows")
        none = pa.nulls(len(piece), pa.large_string())
        decoded = none if text is None else piece.texts(columns.text)
        null_text.append(decoded.is_null().to_numpy(zero_copy_only=False))
        texts.append(decoded.fill_null(""))
        ids.append(piece.ids(columns.id, start))
        marks = encode_labels(piece, columns, vocabulary)
        annotated.append(marks.annotated)
        positives.add(start, marks.rows, marks.codes)
        open_cells.add(start, marks.open_rows, marks.open_codes)
        start += len(piece)
    if start == 0:
        raise DataError(f"{_shown(path)}: there is no row in it: at least one example is needed")
    if label_set is None:
        names = list(vocabulary) if isinstance(columns.labels, tuple) else sorted(vocabulary)
    else:
        names = [*label_set.names, *sorted(set(vocabulary) - set(label_set.names))]
    if not names:
        raise DataError(
            f"{_shown(path)}: column {labels!r} has no label in any of {start} rows: "
            "at least one is needed"
        )
    annotated_N = np.concatenate(annotated)
    if isinstance(columns.labels, tuple):  # a label without a column was not decided
        codes = [vocabulary.setdefault(name, len(vocabulary)) for name in names]
        missing = np.array([code for code in codes if code >= len(columns.labels)], np.int32)
        rows = np.flatnonzero(annotated_N)
        open_cells.add(0, np.repeat(rows, len(missing)), np.tile(missing, len(rows)))
    column_of = np.zeros(len(vocabulary), dtype=np.int64)
    order = {name: column for column, name in enumerate(names)}
    column_of[list(vocabulary.values())] = [order[name] for name in vocabulary]
    null_N = np.concatenate(null_text)
    return Examples(
        ids=pa.concat_arrays(ids),
        texts=pa.concat_arrays(texts),
        positives=positives.ragged(column_of, start, len(names)),
        annotated=annotated_N,
        unannotated=open_cells.ragged(column_of, start, len(names)) if open_cells.rows else None,
        label_set=LabelSet(tuple(names)),
        null_text=null_N if null_N.any() else None,
    )


@dataclass
class _Cells:
    """Pairs of row and label code, collected piece by piece."""

    rows: list[NDArray[np.int64]] = field(default_factory=list)
    codes: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, start: int, rows: NDArray[np.int64], codes: NDArray[np.int32]) -> None:
        if len(rows):
            self.rows.append(rows.astype(np.int64) + start)
            self.codes.append(codes)

    def ragged(self, column_of: NDArray[np.int64], n_rows: int, n_labels: int) -> pa.Array:
        """Lists of sorted distinct columns; `column_of` maps codes to columns."""
        keys = np.empty(0, np.int64)
        if self.rows:
            keys = np.concatenate(self.rows) * n_labels + column_of[np.concatenate(self.codes)]
            keys = np.unique(keys)
        rows, columns = np.divmod(keys, n_labels)
        offsets = np.zeros(n_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=n_rows), out=offsets[1:])
        values = pa.array(columns.astype(np.int32))
        if len(keys) > np.iinfo(np.int32).max:
            return pa.LargeListArray.from_arrays(pa.array(offsets), values)
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _offsets_and_columns(lists: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets from 0, shape [N + 1], and columns, shape [cells]."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.values.to_numpy()[offsets[0] : offsets[-1]]


def _by_column(
    cells: tuple[NDArray[np.int64], NDArray[np.int32]], columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cells by column: where each column begins and the last ends, shape [L + 1], and rows."""
    offsets, column_of = cells
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    starts = np.concatenate([[0], np.cumsum(np.bincount(column_of, minlength=columns))])
    return starts, rows[np.argsort(column_of, kind="stable")]


def _rows_of(
    by_column: tuple[NDArray[np.int64], NDArray[np.int64]], column: int
) -> NDArray[np.int64]:
    starts, rows = by_column
    return rows[starts[column] : starts[column + 1]]


def _cells_of(
    cells: tuple[NDArray[np.int64], NDArray[np.int32]], rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Position in `rows` and column of each cell of those rows."""
    offsets, columns = cells
    lengths = offsets[rows + 1] - offsets[rows]
    positions = np.repeat(np.arange(len(rows)), lengths)
    before = np.cumsum(lengths) - lengths
    within = np.arange(len(positions)) - np.repeat(before, lengths)
    return positions, columns[np.repeat(offsets[rows], lengths) + within]


def _shown(path: str | Sequence[str]) -> str:
    return path if isinstance(path, str) else ", ".join(path)
