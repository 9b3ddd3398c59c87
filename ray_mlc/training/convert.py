r"""Turn other people's data sets into one Parquet file of examples.

Source and output are streamed: some thousand rows are in memory at a time (of CSV what Arrow
reads ahead, about 200 MB), plus 8 bytes per row to count ids that are there twice. Three things
ask for more: a `.json` file that is one array is read whole, a Parquet file by row groups, and a
file of labels that is joined by id is held, without texts.

The output has `id: string`, `text: string`, `labels: list<string>`. A row in which no label was
decided has null labels. Where only some were (-1 or nothing in some of the 0/1 columns), names
alone cannot say so: a fourth column `unannotated: list<string>` does, and only if it is needed.
When the first such row comes, the rows written so far are copied once, which is cheaper than
reading the source twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.errors import DataError
from ray_mlc.storage import local_path
from ray_mlc.training.formats import columns_of, read_pieces
from ray_mlc.training.hub import HubData, is_hub_id
from ray_mlc.training.joining import join_labels
from ray_mlc.training.labelling import (
    PieceLabels,
    Vocabulary,
    encode_labels,
    encode_lists,
    flat_lists,
    without_unclear,
)
from ray_mlc.training.names import Names, Naming
from ray_mlc.training.pieces import UNANNOTATED, Columns, Piece
from ray_mlc.training.presets import Layout, Preset
from ray_mlc.training.sources import SourceFile, find_files
from ray_mlc.training.writing import ExamplesWriter, ragged


@dataclass(frozen=True)
class ConvertSummary:
    """What `convert` wrote."""

    output: str
    rows: int
    labels: dict[str, int]
    """Rows that have each label, the most frequent first; 0/1 columns without a 1 count too."""
    null_texts: int
    """Rows whose text is null: kept."""
    skipped: int
    """Rows left out because their text is null."""
    not_annotated: int
    """Rows in which no label was decided: their labels are null."""
    unannotated_cells: int
    """Labels not decided in other rows: listed in the column `unannotated`."""
    unnamed_labels: int
    """Labels that stayed ids, because the names do not have them."""
    duplicate_ids: int
    """Rows whose id an earlier row has: kept."""
    seconds: float


def convert(
    source: str | Sequence[str],
    output: str,
    *,
    preset: Preset | None = None,
    text: str | None = None,
    labels: str | Sequence[str] | None = None,
    id: str | None = None,
    delimiter: str | None = None,
    names: Names | None = None,
    labels_from: str | Sequence[str] | None = None,
    split: str | None = None,
    subset: str | None = None,
    skip_null_text: bool | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ConvertSummary:
    r"""Write the examples of `source` to one Parquet file, whole or not at all.

    Args:
        source: CSV, TSV, JSONL or Parquet (file, folder, glob, archive, or a list of them), or a
            hub data set `org/name`, also with `@revision`. What exists here is never looked for
            on the hub.
        output: Local path that ends in `.parquet`.
        preset: Data set that `source` is: says what is not given here.
        text: Text column (`text.en` for a field of a struct), or a template over columns such as
            `{title}\n\n{body}`; default `text`.
        labels: Column of lists of names; column of lists of ids (see `names`); text column of
            names or ids (see `delimiter`); or a list of 0/1 columns, one per label. Default
            `labels`.
        id: Id column. None: `id`, and row numbers from 0 where that is absent.
        delimiter: What separates names in a text column; blanks around names are cut. An empty
            text means no label, null means not annotated.
        names: Names that ids stand for, by position or by id; None: those that the data set
            itself carries for integers, and texts are names. An id that a mapping lacks stays.
        labels_from: File(s) that have the label columns, joined to the texts by the id.
        split: Split of a hub data set, needed where it has several; of files, with a preset only.
        subset: Configuration of a hub data set; of files, with a preset only.
        skip_null_text: Whether rows without a text are left out; None: as the preset says, else
            they are kept.
        overwrite: Replace an existing output.
        progress: Called with the number of rows after each some thousand.

    Raises:
        DataError: If the source or an option is wrong, or the output exists.
        StorageError: If the output cannot be written.
    """
    began = time.monotonic()
    target = _target(output, overwrite=overwrite)
    given: dict[str, Any] = {"text": text, "labels": labels, "id": id, "names": names}
    given["skip_null_text"] = skip_null_text
    opened = _open(
        source,
        target,
        preset,
        {option: value for option, value in given.items() if value is not None},
        labels_from=labels_from,
        split=split,
        subset=subset,
    )
    _check_label_options(opened.columns, delimiter, names)
    form = _LabelForm(
        opened.columns,
        delimiter=delimiter,
        naming=None if opened.layout.names is None else Naming(opened.layout.names),
    )
    vocabulary: Vocabulary = {}
    counts = _Counts()
    read = 0
    with ExamplesWriter(target) as writer:
        for piece in opened.pieces:
            texts = piece.texts(opened.columns.text)
            ids = piece.ids(opened.columns.id, read)
            marks = form.encode(piece, vocabulary)
            read += len(piece)
            if opened.layout.skip_null_text and texts.null_count:
                kept_n = texts.is_valid().to_numpy(zero_copy_only=False)
                ids, texts = ids.filter(pa.array(kept_n)), texts.filter(pa.array(kept_n))
                marks = _kept(marks, kept_n)
            # a null text stays null: that it was absent is a fact of the source
            writer.add(_table(ids, texts, marks, vocabulary))
            counts.add(ids, texts, marks)
            if progress is not None:
                progress(len(piece))
        if counts.rows == 0:
            which = f": all {read} rows have no text" if read else ": there is no row in it"
            raise DataError(f"{_shown(source)}{which}: at least one example is needed")
        if form.naming is not None:
            form.naming.check_any_named()
        writer.commit(overwrite=overwrite)
    return ConvertSummary(
        output=output,
        rows=counts.rows,
        labels=counts.labels(vocabulary, all_known=isinstance(opened.columns.labels, tuple)),
        null_texts=counts.null_texts,
        skipped=read - counts.rows,
        not_annotated=counts.not_annotated,
        unannotated_cells=counts.unannotated_cells,
        unnamed_labels=0 if form.naming is None else len(form.naming.unnamed),
        duplicate_ids=counts.duplicate_ids(),
        seconds=time.monotonic() - began,
    )


# --- source


@dataclass(frozen=True)
class _Opened:
    """A source whose columns have a meaning."""

    layout: Layout
    columns: Columns
    pieces: Iterator[Piece]


def _open(
    source: str | Sequence[str],
    target: Path,
    preset: Preset | None,
    given: Mapping[str, Any],
    *,
    labels_from: str | Sequence[str] | None,
    split: str | None,
    subset: str | None,
) -> _Opened:
    """Find the files or the hub data set; options that are given rule over a preset's layout."""
    sources = [source] if isinstance(source, str) else list(source)
    shown = _shown(source)

    def meaning(have: Sequence[str] | None) -> tuple[Layout, Columns]:
        own = "labels" not in given
        layout = Layout() if preset is None else preset.layout(shown, have, own_labels=own)
        layout = replace(layout, **given)
        if not own:  # those of the preset are of its own columns
            layout = replace(layout, names=given.get("names"), unclear=None)
        return layout, Columns.of(
            text=layout.text, labels=layout.labels, id=layout.id, unclear=layout.unclear
        )

    if any(map(is_hub_id, sources)):
        if len(sources) > 1:
            hub = next(filter(is_hub_id, sources))
            raise DataError(f"{hub}: no such file or folder here, and a hub data set comes alone")
        if labels_from is not None:
            raise DataError(f"{shown}: labels from another file are joined to files only")
        subset = subset if preset is None else preset.subset(subset)
        data = HubData(sources[0], split=split, subset=subset)
        layout, columns = meaning(data.columns)
        return _Opened(layout, columns, data.pieces(columns))
    files = find_files(sources)
    label_files = [] if labels_from is None else find_files(labels_from)
    if preset is not None:
        files, apart = preset.choose(shown, files, split=split, subset=subset)
        label_files = label_files or apart
    elif split is not None or subset is not None:
        raise DataError(
            f"{shown}: split and subset are of hub data sets: leave them out here, or name a preset"
        )
    _refuse_own_output([*files, *label_files], target)
    have: list[str] | None = None
    if preset is not None and (have := columns_of(files[0])) is not None and label_files:
        have += columns_of(label_files[0]) or []
    layout, columns = meaning(have)
    if not label_files:
        return _Opened(layout, columns, read_pieces(files, columns))
    return _Opened(layout, columns, join_labels(files, label_files, columns))


def _check_label_options(columns: Columns, delimiter: str | None, names: Names | None) -> None:
    several = isinstance(columns.labels, tuple)
    if delimiter is not None and (several or not delimiter):
        raise DataError("delimiter splits one text column: name one column of labels with it")
    if names is not None and several:
        raise DataError("names are for a column that lists ids: 0/1 columns are named themselves")


def _shown(source: str | Sequence[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


# --- labels


@dataclass(frozen=True)
class _LabelForm:
    """How the labels of a source are to be read."""

    columns: Columns
    delimiter: str | None
    naming: Naming | None

    def encode(self, piece: Piece, vocabulary: Vocabulary) -> PieceLabels:
        """Labels of a piece in whichever form they are."""
        marks = self._decided(piece, vocabulary)
        unclear = self.columns.unclear
        return marks if unclear is None else without_unclear(piece, unclear, marks)

    def _decided(self, piece: Piece, vocabulary: Vocabulary) -> PieceLabels:
        if isinstance(self.columns.labels, tuple):
            return encode_labels(piece, self.columns, vocabulary)
        name = self.columns.labels
        if self.delimiter is not None:
            lists = _split(piece, name, self.delimiter)
            return encode_lists(piece, lists, vocabulary, naming=self.naming)
        found = piece.columns[name].type
        items = getattr(found, "value_type", None)
        if items is None or pa.types.is_dictionary(found) or not pa.types.is_integer(items):
            return encode_labels(piece, self.columns, vocabulary, self.naming)
        lists = _ids(piece, name, self.naming)
        return encode_lists(piece, lists, vocabulary, naming=self.naming)


def _split(piece: Piece, name: str, delimiter: str) -> pa.Array:
    """Lists of the trimmed, non-empty parts of a text column; null where the text is."""
    texts = piece.text(name)
    parts = pc.split_pattern(texts, delimiter)
    rows, untrimmed = flat_lists(parts)
    values = pc.utf8_trim_whitespace(untrimmed)
    filled = pc.not_equal(values, "")
    rows = rows[filled.to_numpy(zero_copy_only=False)]
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    return ragged(rows, values.filter(filled), valid, large=True)


def _ids(piece: Piece, name: str, naming: Naming | None) -> pa.Array:
    """Lists of ids, or of the names that the data set has for them, for lists of integers.

    A data set may carry names of its integers. A list of names takes their place; a mapping may be
    of them, if they are ids in their turn, or of the integers.
    """
    lists = piece.columns[name].cast(pa.large_list(pa.int64()))
    rows, flat = flat_lists(lists)
    classes = _class_names(piece.metadata, name)
    if naming is not None and classes is not None:
        # a mapping of other ids names the integers themselves
        classes = None if naming.is_list or not any(c in naming for c in classes) else classes
    if naming is None and classes is None:
        raise DataError(
            f"{piece.source}: column {name!r} is {piece.columns[name].type} and the data set does "
            "not name its integers: give names, in the order of the integers"
        )
    for number in flat.unique().to_pylist():
        known = number is not None and (
            0 <= number < len(classes) if classes is not None else str(number) in (naming or ())
        )
        if not known:
            index = int(pc.index(flat.fill_null(-1), -1 if number is None else number).as_py())
            raise DataError(
                f"{piece.place(int(rows[index]))}: column {name!r} lists {number}, expected "
                f"{_integers(classes if classes is not None else naming)}"
            )
    values = flat.cast(pa.large_string())
    if classes is not None:
        values = pa.array(classes, pa.large_string()).take(flat)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    return ragged(rows, values, valid, large=True)


def _integers(names: Sequence[str] | Naming | None) -> str:
    """Which integers have a name, for messages."""
    assert names is not None
    if isinstance(names, Naming) and not names.is_list:
        return f"one of the {len(names)} ids that names has"
    return f"0 to {len(names) - 1}: there are {len(names)} names"


def _class_names(metadata: Mapping[bytes, bytes], name: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` column, from the schema metadata that `datasets` writes."""
    try:
        node = json.loads(metadata[b"huggingface"])["info"]["features"][name]
    except (KeyError, TypeError, ValueError):
        return None
    while isinstance(node, dict) and "feature" in node:
        node = node["feature"]
    if isinstance(node, list) and node:  # how older versions write a list
        node = node[0]
    found = node.get("names") if isinstance(node, dict) else None
    return tuple(found) if isinstance(found, list) else None


def _kept(marks: PieceLabels, kept_n: NDArray[np.bool_]) -> PieceLabels:
    """The labels of the rows that are kept, numbered anew."""
    position_n = np.cumsum(kept_n) - 1
    cells, open_cells = kept_n[marks.rows], kept_n[marks.open_rows]
    return PieceLabels(
        annotated=marks.annotated[kept_n],
        rows=position_n[marks.rows[cells]],
        codes=marks.codes[cells],
        open_rows=position_n[marks.open_rows[open_cells]],
        open_codes=marks.open_codes[open_cells],
    )


def _table(ids: pa.Array, texts: pa.Array, marks: PieceLabels, vocabulary: Vocabulary) -> pa.Table:
    """A piece in the columns of the output; a label that a row lists twice is there once."""
    names = pa.array(list(vocabulary), pa.string())
    size = max(len(vocabulary), 1)
    _, first = np.unique(marks.rows * size + marks.codes, return_index=True)
    first.sort()
    columns = {
        "id": ids,
        "text": texts.cast(pa.string()),
        "labels": ragged(
            marks.rows[first], names.take(pa.array(marks.codes[first])), marks.annotated
        ),
    }
    if len(marks.open_rows):
        everywhere = np.ones(len(ids), dtype=np.bool_)
        undecided = names.take(pa.array(marks.open_codes))
        columns[UNANNOTATED] = ragged(marks.open_rows, undecided, everywhere)
    return pa.table(columns)


class _Counts:
    """The figures of the summary."""

    def __init__(self) -> None:
        self.rows = 0
        self.null_texts = 0
        self.not_annotated = 0
        self.unannotated_cells = 0
        self._by_code = np.zeros(0, dtype=np.int64)
        self._id_hashes: list[NDArray[np.int64]] = []

    def add(self, ids: pa.Array, texts: pa.Array, marks: PieceLabels) -> None:
        self.rows += len(ids)
        self.null_texts += texts.null_count
        self.not_annotated += int((~marks.annotated).sum())
        self.unannotated_cells += len(marks.open_rows)
        cells = np.unique(np.stack([marks.rows, marks.codes]), axis=1)
        counts = np.bincount(cells[1], minlength=len(self._by_code))
        counts[: len(self._by_code)] += self._by_code
        self._by_code = counts
        hashes = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))
        self._id_hashes.append(hashes)

    def labels(self, vocabulary: Vocabulary, *, all_known: bool) -> dict[str, int]:
        counts = np.zeros(len(vocabulary), dtype=np.int64)
        counts[: len(self._by_code)] = self._by_code
        pairs = [(name, int(counts[code])) for name, code in vocabulary.items()]
        if not all_known:  # some may be of rows that were left out
            pairs = [pair for pair in pairs if pair[1]]
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))

    def duplicate_ids(self) -> int:
        # 64-bit hashes: among ten million ids two that differ clash once in 370,000 runs
        return self.rows - len(np.unique(np.concatenate(self._id_hashes)))


# --- output


def _target(output: str, *, overwrite: bool) -> Path:
    """The local path of the output, checked before anything is read."""
    path = local_path(output)
    if path is None:
        raise DataError(f"{output}: examples are written to a local file: name a path here")
    if path.suffix != ".parquet":
        raise DataError(f"{output}: expected a name that ends in .parquet")
    if path.is_dir():
        raise DataError(f"{output}: this is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise DataError(f"{output}: the file exists: name another, or give --overwrite")
    return path


def _refuse_own_output(files: Sequence[SourceFile], target: Path) -> None:
    for file in files:
        path = local_path(file.name)
        if path is not None and path.resolve() == target.resolve():
            raise DataError(f"{target}: the output is also a source: write to another file")
