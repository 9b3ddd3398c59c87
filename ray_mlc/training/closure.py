"""Label hierarchies in examples: how many rows each node has, and which rows lack a parent.

Annotators may give a label without what lies above it. `closed` counts a node as a model with the
hierarchy would give it: with all rows that have it or a label below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.labels import LabelSet
from ray_mlc.training.examples import Examples

GAPS = 200
"""Pairs of a label and a missing parent that are listed."""


@dataclass(frozen=True)
class Node:
    """A label of the hierarchy."""

    label: str
    parents: tuple[str, ...]
    rows: dict[str, int]
    """By split, rows that have it."""
    closed: dict[str, int]
    """By split, rows that have it or a label below it."""
    gaps: int
    """Rows that have it, and lack a label above it that was decided in them."""


@dataclass(frozen=True)
class Gap:
    """A label that is given without one of its parents."""

    label: str
    parent: str
    rows: int
    """Rows that have the label, and in which the parent was decided against."""
    of: int
    """Rows that have the label."""


@dataclass(frozen=True)
class HierarchyFacts:
    """What the examples make of a hierarchy."""

    file: str
    nodes: tuple[Node, ...]
    """All labels that have a parent or are one, as in the file; also those that no row has."""
    alone: int
    """Labels of the examples that the file does not place."""
    gap_rows: dict[str, int]
    """By split, rows that lack a label above one of theirs."""
    gaps: tuple[Gap, ...]
    """The pairs of most rows."""
    gap_pairs: int
    """How many such pairs there are."""


def hierarchy_facts(
    splits: Mapping[str, Examples], parents: Mapping[str, Sequence[str]], file: str
) -> HierarchyFacts:
    """Count rows of nodes, upward, and rows that lack what lies above their labels.

    Args:
        splits: By name; the last has all labels.
        parents: Of each label that has any, without cycles.
        file: Where they were read from.
    """
    known = list(splits.values())[-1].label_set
    named = dict.fromkeys(n for child, above in parents.items() for n in (child, *above))
    label_set = LabelSet((*known.names, *(name for name in named if name not in known.index)))
    above_LL = ancestors(parents, label_set)
    size = len(label_set)
    edges = [
        (label_set.index[c], label_set.index[p]) for c, above in parents.items() for p in above
    ]
    children_E, parents_E = np.array(edges, np.int64).reshape(-1, 2).T
    counts: dict[str, NDArray[np.int64]] = {}
    closed: dict[str, NDArray[np.int64]] = {}
    gap_rows: dict[str, int] = {}
    gaps_L, gaps_E = np.zeros(size, np.int64), np.zeros(len(edges), np.int64)
    for name, examples in splits.items():
        has_NL = cells_of(examples, examples.positives, size)
        open_NL = cells_of(examples, examples.unannotated, size)
        all_NL = ((has_NL + has_NL @ above_LL) > 0).astype(np.int64)
        counts[name] = np.asarray(has_NL.sum(axis=0)).ravel()
        closed[name] = np.asarray(all_NL.sum(axis=0)).ravel()
        lacks_NL = all_NL - all_NL.multiply(has_NL) - all_NL.multiply(open_NL)
        lacks_NL = lacks_NL.tocsr()
        lacks_NL.eliminate_zeros()
        gap_rows[name] = int((np.diff(lacks_NL.indptr) > 0).sum())
        # label and lacking ancestor in one row: counted by row, so that a row counts once
        lacked_NL = ((lacks_NL @ above_LL.T) > 0).astype(np.int64).multiply(has_NL)
        gaps_L += np.asarray(lacked_NL.sum(axis=0)).ravel()
        both_EE = has_NL.tocsc()[:, children_E].multiply(lacks_NL.tocsc()[:, parents_E])
        gaps_E += np.asarray(both_EE.sum(axis=0)).ravel()
    total_L = np.sum(list(counts.values()), axis=0)
    order = np.argsort(-gaps_E, kind="stable")
    names = label_set.names
    return HierarchyFacts(
        file=file,
        nodes=tuple(
            Node(
                label=name,
                parents=tuple(parents.get(name, ())),
                rows={split: int(found[label_set.index[name]]) for split, found in counts.items()},
                closed={
                    split: int(found[label_set.index[name]]) for split, found in closed.items()
                },
                gaps=int(gaps_L[label_set.index[name]]),
            )
            for name in named
        ),
        alone=sum(name not in named for name in known.names),
        gap_rows=gap_rows,
        gaps=tuple(
            Gap(
                names[children_E[edge]],
                names[parents_E[edge]],
                int(gaps_E[edge]),
                int(total_L[children_E[edge]]),
            )
            for edge in order[:GAPS].tolist()
            if gaps_E[edge]
        ),
        gap_pairs=int((gaps_E > 0).sum()),
    )


def ancestors(parents: Mapping[str, Sequence[str]], label_set: LabelSet) -> Any:
    """Which labels lie above which, at any distance: sparse 0/1, shape [L, L], row below column."""
    from scipy.sparse import csr_array

    above: dict[str, set[str]] = {}
    for name in TopologicalSorter(parents).static_order():  # parents come before children
        direct = parents.get(name, ())
        above[name] = set(direct).union(*(above[parent] for parent in direct))
    cells = [
        (label_set.index[name], label_set.index[one])
        for name, all_of in above.items()
        for one in all_of
    ]
    rows, columns = np.array(cells, np.int64).reshape(-1, 2).T
    size = len(label_set)
    return csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=(size, size))


def cells_of(examples: Examples, lists: Any, labels: int) -> Any:
    """Cells as a sparse 0/1 matrix, shape [N, labels]."""
    from scipy.sparse import csr_array

    if lists is None:
        return csr_array((len(examples), labels), dtype=np.int64)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    columns = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    ones = np.ones(len(columns), np.int64)
    return csr_array((ones, columns, offsets - offsets[0]), shape=(len(examples), labels))
