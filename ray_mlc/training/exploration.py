"""What a set of examples looks like before anything is trained: lengths, labels, duplicates.

Numbers only, of one or several splits side by side; `report/explore.py` draws them and
`data explore --json` prints them. Labels stay sparse: only the most frequent ones, `HEATMAP` of
them, ever meet in a square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.training.closure import cells_of
from ray_mlc.training.duplicates import Duplicates
from ray_mlc.training.examples import Examples
from ray_mlc.training.repetition import DuplicateFacts, duplicate_facts

CUT_OFFS = tuple(2**power for power in range(5, 16))
"""Lengths, 32 to 32,768, at which tables say what would be cut."""
HEATMAP = 40
"""Labels of the heatmap."""
PAIR_LABELS = 2_000
"""Most frequent labels among which pairs that go together are looked for."""
PAIRS = 50
"""Pairs listed."""
SUPPORTS = (0, 1, 2, 5, 10, 20, 50, 100)
"""Where the count of labels by their number of examples is divided."""

_CURVE_POINTS = 120
_BINS = 60
_BLOCK_ROWS = 4_096

CountLengths = Callable[[Sequence[str]], NDArray[np.int64]]
"""Lengths of some texts."""


@dataclass(frozen=True)
class SplitFacts:
    """One split's rows."""

    name: str
    rows: int
    null_texts: int
    empty_texts: int
    """Texts of white space only, null ones left out."""
    not_annotated: int
    """Rows in which nobody decided any label."""
    unannotated_cells: int
    """Labels that nobody decided in other rows."""
    without_labels: int
    """Annotated rows that have no label."""
    labels_per_document: float | None
    """Mean over annotated rows; None without any."""
    labels_used: int
    """Labels that at least one row has."""
    duplicate_ids: int
    """Rows whose id an earlier row of the split has."""


@dataclass(frozen=True)
class LengthFacts:
    """How long the texts of a split are."""

    split: str
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    longest: int
    total: int


@dataclass(frozen=True)
class CutOff:
    """What is left of all texts if each is cut to a length."""

    at: int
    whole: float
    """Share of documents that are not longer."""
    kept: float
    """Share of all words or tokens that remain."""


@dataclass(frozen=True)
class Lengths:
    """The texts' lengths in one unit."""

    unit: str
    """`words` (between white space) or `tokens` (special ones included)."""
    tokenizer: str | None
    splits: tuple[LengthFacts, ...]
    cut_offs: tuple[CutOff, ...]
    """At `CUT_OFFS` up to the first that cuts nothing; all splits together."""
    curve_at: tuple[int, ...]
    curve_whole: dict[str, tuple[float, ...]]
    """By split, at each length of `curve_at`, the share of documents that are not longer."""
    curve_kept: dict[str, tuple[float, ...]]
    """Likewise the share of words or tokens that remain."""
    bins: tuple[int, ...]
    """Edges: a bin holds lengths from its edge to below the next."""
    counts: dict[str, tuple[int, ...]]
    """By split, documents per bin."""


@dataclass(frozen=True)
class LabelFacts:
    """One label in all splits."""

    label: str
    rows: int
    """Rows that have it."""
    count: dict[str, int]
    """By split."""
    annotated: dict[str, int]
    """By split, rows in which it was decided."""
    rate: dict[str, float | None]
    """By split, count by annotated; None where nobody decided."""
    drift: dict[str, float]
    """By split, how surprisingly its rate differs from that of the others (above: positive), as
    standard deviations of a normal variable; empty with one split."""


@dataclass(frozen=True)
class Together:
    """The most frequent labels against each other, those that go together beside each other."""

    labels: tuple[str, ...]
    both: tuple[tuple[int, ...], ...]
    """Rows that have both."""
    given: tuple[tuple[float | None, ...], ...]
    """Of the rows that have the first, the share that has the second."""
    phi: tuple[tuple[float | None, ...], ...]
    """Correlation (phi coefficient) over rows in which both were decided; None where a label is
    constant."""


@dataclass(frozen=True)
class Pair:
    """Two labels that go together."""

    first: str
    second: str
    both: int
    phi: float
    second_given_first: float
    first_given_second: float


@dataclass(frozen=True)
class Exploration:
    """All that `data explore` finds out."""

    splits: tuple[SplitFacts, ...]
    lengths: tuple[Lengths, ...]
    labels: tuple[LabelFacts, ...]
    """The most frequent first."""
    support_from: tuple[int, ...]
    """`SUPPORTS`."""
    supports: dict[str, tuple[int, ...]]
    """By split, labels with at least `support_from[i]` rows, and fewer than the next says."""
    absent: dict[str, tuple[str, ...]]
    """By split, labels that only others have."""
    labels_per_document: dict[str, tuple[int, ...]]
    """By split, annotated rows with 0, 1, 2, … labels."""
    together: Together
    pairs: tuple[Pair, ...]
    """The strongest, by phi, among labels with five rows or more."""
    duplicates: DuplicateFacts


def split_facts(name: str, examples: Examples) -> SplitFacts:
    """What a table of splits says about one."""
    annotated = int(examples.annotated.sum())
    per_row = _label_numbers(examples)
    empty = pc.equal(pc.utf8_trim_whitespace(examples.texts), "")
    ids = examples.ids.dictionary_encode()
    return SplitFacts(
        name=name,
        rows=len(examples),
        null_texts=examples.null_texts,
        empty_texts=int(pc.sum(empty).as_py() or 0) - examples.null_texts,
        not_annotated=len(examples) - annotated,
        unannotated_cells=0
        if examples.unannotated is None
        else int(pc.sum(pc.list_value_length(examples.unannotated)).as_py() or 0),
        without_labels=int((per_row[examples.annotated] == 0).sum()),
        labels_per_document=float(per_row[examples.annotated].mean()) if annotated else None,
        labels_used=int((examples.label_counts() > 0).sum()),
        duplicate_ids=len(examples) - len(ids.dictionary),
    )


def count_words(texts: Sequence[str]) -> NDArray[np.int64]:
    """Words between white space of each text."""
    return np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))


def lengths_of(
    splits: Mapping[str, Examples],
    count: CountLengths,
    *,
    unit: str,
    tokenizer: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Lengths:
    """How long the texts are, and what any cut-off would take away.

    Args:
        splits: By name; together they have at least one row.
        count: Lengths of some texts.
        unit: What it counts.
        tokenizer: What counts tokens.
        progress: Told how many documents were counted.
    """
    lengths = {}
    for name, examples in splits.items():
        blocks = []
        for start in range(0, len(examples), _BLOCK_ROWS):
            texts = examples.texts.slice(start, _BLOCK_ROWS).to_pylist()
            blocks.append(count(texts))
            if progress is not None:
                progress(len(texts))
        lengths[name] = np.concatenate(blocks).astype(np.int64)
    every = np.concatenate(list(lengths.values()))
    longest = max(int(every.max()), 1)
    some = np.geomspace(1, longest, _CURVE_POINTS).round()
    usual = [at for at in CUT_OFFS if at <= longest]
    curve_at = np.unique(np.concatenate([some, usual])).astype(np.int64)
    bins = np.unique(np.geomspace(1, longest + 1, _BINS).round()).astype(np.int64)
    if len(bins) < 2:
        bins = np.array([1, 2])
    curves = {name: _kept(values, curve_at) for name, values in lengths.items()}
    needed = [at for at in CUT_OFFS if at < longest]
    needed += [at for at in CUT_OFFS if at >= longest][:1]
    whole, kept = _kept(every, np.array(needed))
    return Lengths(
        unit=unit,
        tokenizer=tokenizer,
        splits=tuple(_length_facts(name, values) for name, values in lengths.items()),
        cut_offs=tuple(
            CutOff(at, float(one), float(other))
            for at, one, other in zip(needed, whole, kept, strict=True)
        ),
        curve_at=tuple(curve_at.tolist()),
        curve_whole={name: _rounded(whole) for name, (whole, _) in curves.items()},
        curve_kept={name: _rounded(kept) for name, (_, kept) in curves.items()},
        bins=tuple(bins.tolist()),
        counts={
            name: tuple(np.histogram(values, bins=[*bins[:-1], bins[-1] + 0.5])[0].tolist())
            for name, values in lengths.items()
        },
    )


def explore(
    splits: Mapping[str, Examples],
    lengths: Sequence[Lengths],
    duplicates: Duplicates,
    *,
    texts: bool = False,
) -> Exploration:
    """Everything about some splits.

    Args:
        splits: By name, in the order to be shown. The label set of each begins with that of the
            one before; the last has all labels.
        lengths: Of `lengths_of`.
        duplicates: Of all rows, split after split.
        texts: Whether beginnings of texts may be shown.
    """
    labels = _label_facts(splits)
    together, pairs = _together(splits)
    used = {facts.label for facts in labels if facts.rows}
    return Exploration(
        splits=tuple(split_facts(name, examples) for name, examples in splits.items()),
        lengths=tuple(lengths),
        labels=labels,
        support_from=SUPPORTS,
        supports={name: _supports([facts.count[name] for facts in labels]) for name in splits},
        absent={
            name: tuple(f.label for f in labels if f.label in used and not f.count[name])
            for name in splits
        },
        labels_per_document={
            name: tuple(np.bincount(_label_numbers(examples)[examples.annotated]).tolist())
            for name, examples in splits.items()
        },
        together=together,
        pairs=pairs,
        duplicates=duplicate_facts(splits, duplicates, texts=texts),
    )


# --- lengths


def _kept(
    lengths_N: NDArray[np.int64], at_C: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of documents left whole, and of words or tokens kept, at each cut-off; shape [C]."""
    in_order = np.sort(lengths_N)
    sums = np.concatenate([[0], np.cumsum(in_order)])
    whole = np.searchsorted(in_order, at_C, side="right")
    kept = sums[whole] + (len(in_order) - whole) * at_C
    return whole / max(len(in_order), 1), kept / max(int(sums[-1]), 1)


def _length_facts(name: str, lengths_N: NDArray[np.int64]) -> LengthFacts:
    p50, p90, p95, p99 = np.quantile(lengths_N, [0.5, 0.9, 0.95, 0.99]).tolist()
    return LengthFacts(
        split=name,
        mean=float(lengths_N.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        longest=int(lengths_N.max()),
        total=int(lengths_N.sum()),
    )


def _rounded(shares: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(shares, 6).tolist())


# --- labels


def _label_numbers(examples: Examples) -> NDArray[np.int64]:
    """Labels of each row, shape [N]."""
    return np.asarray(
        pc.list_value_length(examples.positives).to_numpy(zero_copy_only=False)
    ).astype(np.int64)


def _label_set(splits: Mapping[str, Examples]) -> tuple[str, ...]:
    return list(splits.values())[-1].label_set.names


def _label_facts(splits: Mapping[str, Examples]) -> tuple[LabelFacts, ...]:
    names = _label_set(splits)
    count_SL = np.stack([_padded(e.label_counts(), len(names), 0) for e in splits.values()])
    decided_SL = np.stack(
        [_padded(e.annotated_counts(), len(names), int(e.annotated.sum())) for e in splits.values()]
    )
    drift_SL = _drift(count_SL, decided_SL)
    order = np.argsort(-count_SL.sum(axis=0), kind="stable")
    facts = []
    for label in order.tolist():
        count = dict(zip(splits, count_SL[:, label].tolist(), strict=True))
        decided = dict(zip(splits, decided_SL[:, label].tolist(), strict=True))
        facts.append(
            LabelFacts(
                label=names[label],
                rows=sum(count.values()),
                count=count,
                annotated=decided,
                rate={n: count[n] / decided[n] if decided[n] else None for n in splits},
                drift={}
                if len(splits) == 1
                else dict(zip(splits, np.round(drift_SL[:, label], 4).tolist(), strict=True)),
            )
        )
    return tuple(facts)


def _padded(values: NDArray[np.int64], length: int, with_what: int) -> NDArray[np.int64]:
    """`values` for labels that only later splits have."""
    return np.pad(values, (0, length - len(values)), constant_values=with_what)


def _drift(count_SL: NDArray[np.int64], decided_SL: NDArray[np.int64]) -> NDArray[np.float64]:
    """How surprising each split's count is if rows were dealt by chance, signed, shape [S, L].

    The two-sided p of Fisher's exact test, as the quantile of a normal variable: a z of two
    proportions calls two rows in a small split a wonder.
    """
    from scipy.stats import hypergeom, norm

    count_L, decided_L = count_SL.sum(axis=0), decided_SL.sum(axis=0)
    below_SL = hypergeom.cdf(count_SL, decided_L, count_L, decided_SL)
    above_SL = hypergeom.sf(count_SL - 1, decided_L, count_L, decided_SL)
    p_SL = np.nan_to_num(2 * np.minimum(below_SL, above_SL), nan=1)  # nan: nobody decided
    p_SL = p_SL.clip(1e-300, 1)
    drift_SL: NDArray[np.float64] = norm.isf(p_SL / 2) * np.where(above_SL < below_SL, 1, -1)
    return drift_SL


def _supports(counts: Sequence[int]) -> tuple[int, ...]:
    edges = [*SUPPORTS, max(max(counts, default=0), SUPPORTS[-1]) + 1]
    return tuple(np.histogram(counts, bins=edges)[0].tolist())


def _together(splits: Mapping[str, Examples]) -> tuple[Together, tuple[Pair, ...]]:
    names = _label_set(splits)
    positive = _stacked(splits, len(names), lambda e: e.positives)
    counts = np.asarray(positive.sum(axis=0)).ravel()
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]

    top = order[:HEATMAP]
    both, given, phi = _square(splits, top, len(names))
    leaves = _clustered(phi)
    top, both, given, phi = (
        top[leaves],
        *(square[np.ix_(leaves, leaves)] for square in (both, given, phi)),
    )
    together = Together(
        labels=tuple(names[label] for label in top.tolist()),
        both=tuple(tuple(row) for row in both.astype(np.int64).tolist()),
        given=_or_none(given),
        phi=_or_none(phi),
    )
    # gaps in the annotation make exact pairs costly: then only those of the square are known
    if any(examples.unannotated is not None for examples in splits.values()):
        left, right = np.triu_indices(len(top), k=1)
        cells = both[left, right], phi[left, right], given[left, right], given[right, left]
        return together, _pairs(names, top[left], top[right], *cells, counts)
    some = order[:PAIR_LABELS]
    columns = positive[:, some]
    square = (columns.T @ columns).tocoo()
    upper = square.row < square.col
    left, right = some[square.row[upper]], some[square.col[upper]]
    both_P = square.data[upper].astype(np.float64)
    rows = sum(int(examples.annotated.sum()) for examples in splits.values())
    one, other = counts[left].astype(np.float64), counts[right].astype(np.float64)
    phi_P = _phi(both_P, one, other, np.float64(rows))
    return together, _pairs(names, left, right, both_P, phi_P, both_P / one, both_P / other, counts)


def _pairs(
    names: Sequence[str],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    both: NDArray[np.float64],
    phi: NDArray[np.float64],
    second_given_first: NDArray[np.float64],
    first_given_second: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> tuple[Pair, ...]:
    """The strongest, among labels of which five rows speak."""
    spoken = (np.minimum(counts[left], counts[right]) >= 5) & (both > 0) & np.isfinite(phi)
    kept = np.flatnonzero(spoken)
    best = kept[np.lexsort((right[kept], left[kept], -phi[kept]))][:PAIRS]
    return tuple(
        Pair(
            names[left[at]],
            names[right[at]],
            int(both[at]),
            float(phi[at]),
            float(second_given_first[at]),
            float(first_given_second[at]),
        )
        for at in best.tolist()
    )


def _stacked(
    splits: Mapping[str, Examples], labels: int, lists: Callable[[Examples], pa.Array | None]
) -> Any:
    """Cells of all splits as one sparse matrix, shape [rows, labels]."""
    from scipy.sparse import vstack

    blocks = [cells_of(examples, lists(examples), labels) for examples in splits.values()]
    return vstack(blocks, format="csr")


def _square(
    splits: Mapping[str, Examples], top: NDArray[np.int64], labels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rows with both labels, share of the second among the first, and phi; shape [K, K].

    Only rows count in which both were decided.
    """
    positive = _stacked(splits, labels, lambda e: e.positives)[:, top].tocsr()
    undecided = _stacked(splits, labels, lambda e: e.unannotated)[:, top].tocsr()
    rows = sum(int(examples.annotated.sum()) for examples in splits.values())
    both = (positive.T @ positive).toarray().astype(np.float64)
    # rows that have the first label, and in which the second was decided
    first = both.diagonal()[:, None] - (positive.T @ undecided).toarray()
    missing = (undecided.T @ undecided).toarray()
    decided = rows - missing.diagonal()[:, None] - missing.diagonal()[None, :] + missing
    given = np.divide(both, first, out=np.full_like(both, np.nan), where=first > 0)
    return both, given, _phi(both, first, first.T, decided)


def _phi(
    both: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    rows: NDArray[np.float64] | np.float64,
) -> NDArray[np.float64]:
    """Correlation of two 0/1 variables from their counts (Yule 1912); NaN where one is constant."""
    spread = first * (rows - first) * second * (rows - second)
    above = rows * both - first * second
    phi: NDArray[np.float64] = np.divide(
        above, np.sqrt(np.maximum(spread, 0)), out=np.full_like(both, np.nan), where=spread > 0
    )
    return phi


def _clustered(phi_KK: NDArray[np.float64]) -> NDArray[np.intp]:
    """An order in which labels that go together are neighbors (average linkage), shape [K]."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(phi_KK) < 3:
        return np.arange(len(phi_KK))
    distance = 1 - np.nan_to_num((phi_KK + phi_KK.T) / 2)
    upper = distance[np.triu_indices(len(distance), k=1)]
    tree = linkage(upper, method="average", optimal_ordering=True)
    return np.asarray(leaves_list(tree), dtype=np.intp)


def _or_none(square: NDArray[np.float64]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(None if value != value else round(value, 6) for value in row)
        for row in square.tolist()
    )
