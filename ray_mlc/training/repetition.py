"""What is there more than once, in the words of a report: which rows, of which split, by which id.

`duplicates.py` finds equal and similar texts; here they are counted by split, the largest groups
are listed, and rows of the same text that were labelled differently are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.training.duplicates import (
    SHINGLE_WORDS,
    Duplicates,
    Shared,
    groups_of,
    shared_rows,
)
from ray_mlc.training.examples import Examples

SHOWN = 50
"""Groups of duplicates, and of contradictions, listed."""
IDS_SHOWN = 6
"""Rows listed of a group."""
_TEXT_SHOWN = 300


@dataclass(frozen=True)
class Within:
    """Duplicates inside of one split."""

    split: str
    exact: int
    """Rows whose text an earlier row has."""
    near: int | None
    """Rows of a text of which another, nearly the same, is in the split too."""


@dataclass(frozen=True)
class Group:
    """Rows of the same or nearly the same text."""

    rows: int
    texts: int
    """Different texts."""
    count: dict[str, int]
    """Rows by split."""
    ids: tuple[str, ...]
    """Some of the rows, as split:id."""
    text: str | None
    """Beginning of the first; None unless texts are asked for."""


@dataclass(frozen=True)
class Contradiction:
    """Rows of the same text that were labelled differently."""

    rows: int
    ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    """The different sets of labels, the most frequent first."""
    text: str | None


@dataclass(frozen=True)
class DuplicateFacts:
    """Texts that are there more than once."""

    jaccard: float | None
    """From which similarity texts count as nearly the same; None: nobody looked."""
    shingle_words: int
    within: tuple[Within, ...]
    across: tuple[Shared, ...]
    groups: tuple[Group, ...]
    """The largest groups of the same text."""
    near_groups: tuple[Group, ...]
    """The largest of texts that are nearly the same, one to the next."""
    contradictions: tuple[Contradiction, ...]
    contradicted_texts: int
    contradicted_rows: int


def duplicate_facts(
    splits: Mapping[str, Examples], duplicates: Duplicates, *, texts: bool
) -> DuplicateFacts:
    """Count and list what is there more than once.

    Args:
        splits: By name; the last has all labels.
        duplicates: Of all rows, split after split.
        texts: Whether beginnings of texts may be shown.
    """
    rows = _Rows.of(splits, texts=texts)
    names = tuple(splits)
    presence_TS = duplicates.presence_TK(rows.split_N, len(names))
    near_TS = duplicates.near_TK(presence_TS)
    within = tuple(
        Within(
            name,
            exact=int(np.maximum(presence_TS[:, at] - 1, 0).sum()),
            near=None if duplicates.jaccard is None else int(presence_TS[near_TS[:, at], at].sum()),
        )
        for at, name in enumerate(names)
    )
    contradictions, count = _contradictions(rows, duplicates)
    return DuplicateFacts(
        jaccard=duplicates.jaccard,
        shingle_words=SHINGLE_WORDS,
        within=within,
        across=shared_rows(duplicates, rows.split_N, names),
        groups=_groups(rows, duplicates.text_N, duplicates.text_N, least_texts=1),
        near_groups=()
        if not len(duplicates.pairs_P2)
        else _groups(rows, _near_group(duplicates), duplicates.text_N, least_texts=2),
        contradictions=contradictions,
        contradicted_texts=count[0],
        contradicted_rows=count[1],
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of all splits, one after the other."""

    names: tuple[str, ...]
    examples: tuple[Examples, ...]
    starts: NDArray[np.int64]
    split_N: NDArray[np.int64]
    texts: bool

    @classmethod
    def of(cls, splits: Mapping[str, Examples], *, texts: bool) -> _Rows:
        sizes = [len(examples) for examples in splits.values()]
        return cls(
            tuple(splits),
            tuple(splits.values()),
            np.concatenate([[0], np.cumsum(sizes)]),
            np.repeat(np.arange(len(sizes)), sizes),
            texts,
        )

    def _at(self, row: int) -> tuple[Examples, int]:
        split = int(self.split_N[row])
        return self.examples[split], row - int(self.starts[split])

    def name(self, row: int) -> str:
        examples, index = self._at(row)
        name = examples.ids[index].as_py()
        return f"{self.names[self.split_N[row]]}:{name}" if len(self.names) > 1 else str(name)

    def text(self, row: int) -> str | None:
        if not self.texts:
            return None
        examples, index = self._at(row)
        text = " ".join(examples.texts[index].as_py().split())
        return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"

    def labels(self, row: int) -> tuple[str, ...]:
        examples, index = self._at(row)
        return tuple(examples.label_set.names[c] for c in examples.positives[index].as_py())


def _near_group(duplicates: Duplicates) -> NDArray[np.int64]:
    group_N = groups_of(duplicates, near=True)
    return np.where(duplicates.text_N >= 0, group_N, -1)


def _groups(
    rows: _Rows, group_N: NDArray[np.int64], text_N: NDArray[np.int64], *, least_texts: int
) -> tuple[Group, ...]:
    """The largest groups of two rows or more with `least_texts` different texts or more."""
    found = []
    for members in _members(group_N):
        texts = len(np.unique(text_N[members]))
        if texts < least_texts:
            continue
        counts = np.bincount(rows.split_N[members], minlength=len(rows.names)).tolist()
        found.append(
            Group(
                rows=len(members),
                texts=texts,
                count=dict(zip(rows.names, counts, strict=True)),
                ids=tuple(rows.name(row) for row in _some(members, rows.split_N)),
                text=rows.text(int(members[0])),
            )
        )
        if len(found) == SHOWN:
            break
    return tuple(found)


def _members(group_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of each group of two or more, the largest group first; -1 is no group."""
    rows = np.flatnonzero(group_N >= 0)
    order = rows[np.argsort(group_N[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    sizes = np.diff([*starts, len(order)])
    for at in np.argsort(-sizes, kind="stable").tolist():
        if sizes[at] < 2:
            return
        yield order[starts[at] : starts[at] + sizes[at]]


def _some(members: NDArray[np.int64], split_N: NDArray[np.int64]) -> list[int]:
    """Some rows of a group, of each split where it has any."""
    in_split = split_N[members]
    place = np.arange(len(members)) - np.searchsorted(in_split, in_split)
    some: list[int] = members[np.lexsort((in_split, place))][:IDS_SHOWN].tolist()
    return some


def _contradictions(
    rows: _Rows, duplicates: Duplicates
) -> tuple[tuple[Contradiction, ...], tuple[int, int]]:
    """Texts whose annotated rows differ in their labels, and how many texts and rows these are."""
    labels = len(rows.examples[-1].label_set)
    # a set of labels as the sum of one random number per label (Zobrist 1970)
    numbers = np.random.default_rng(0).integers(0, 2**63, labels, dtype=np.uint64)
    keys = np.concatenate([_set_keys(examples, numbers) for examples in rows.examples])
    annotated = np.concatenate([examples.annotated for examples in rows.examples])
    whole = np.concatenate([_is_whole(examples) for examples in rows.examples])
    usable = np.flatnonzero(annotated & whole & (duplicates.text_N >= 0))
    text = duplicates.text_N[usable]
    first = np.zeros(len(duplicates.first_T), np.uint64)
    first[text[::-1]] = keys[usable[::-1]]  # the first row's stays
    differs = np.zeros(len(duplicates.first_T), np.bool_)
    differs[text[keys[usable] != first[text]]] = True
    group_N = np.full(len(keys), -1, np.int64)
    group_N[usable] = np.where(differs[text], text, -1)
    found = []
    for members in _members(group_N):
        _, at, number = np.unique(keys[members], return_index=True, return_counts=True)
        order = np.lexsort((at, -number))
        found.append(
            Contradiction(
                rows=len(members),
                ids=tuple(rows.name(row) for row in _some(members, rows.split_N)),
                labels=tuple(rows.labels(int(members[at[one]])) for one in order.tolist()),
                text=rows.text(int(members[0])),
            )
        )
        if len(found) == SHOWN:
            break
    return tuple(found), (int(differs.sum()), int((group_N >= 0).sum()))


def _set_keys(examples: Examples, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    offsets = examples.positives.offsets.to_numpy().astype(np.int64)
    columns = examples.positives.values.to_numpy()[offsets[0] : offsets[-1]]
    sums = np.concatenate([[np.uint64(0)], np.cumsum(numbers[columns], dtype=np.uint64)])
    offsets = offsets - offsets[0]
    keys: NDArray[np.uint64] = sums[offsets[1:]] - sums[offsets[:-1]]
    return keys


def _is_whole(examples: Examples) -> NDArray[np.bool_]:
    """Whether every label of a row was decided, shape [N]."""
    if examples.unannotated is None:
        return np.ones(len(examples), np.bool_)
    lengths = pc.list_value_length(examples.unannotated).to_numpy(zero_copy_only=False)
    return np.asarray(lengths == 0)
