"""Labels spread evenly over parts: iterative stratification, then swaps.

Placing follows Sechidis, Tsoumakas and Vlahavas (2011): of all labels that still have units
without a part, the rarest is dealt out first, each unit to the part that misses the label most.
Parts keep their sizes: a unit goes where it fits, and only where it fits nowhere into the part
with the most room. Swaps then even out what the last labels had to put up with.

Everything is counts of codes in units; what a code or a part means is not known here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.training.examples import Examples

_MOST_PAIRS = 20_000_000  # of labels in all rows: beyond it pairs are left out
_ROUNDS = 30
_LEAST_SWAPS = 100  # tried per round and two parts: after more the costs are stale


@dataclass(frozen=True, eq=False)
class Cells:
    """How many rows of each unit have each code: a label, a pair of labels, `not annotated`."""

    unit_K: NDArray[np.int64]
    """Ascending, shape [K]."""
    code_K: NDArray[np.int64]
    """0 to C - 1, each of them at least once, shape [K]."""
    rows_K: NDArray[np.int64]
    """Shape [K]."""

    @classmethod
    def of(
        cls, examples: Examples, unit_N: NDArray[np.int64], *, pairs_from: float = math.inf
    ) -> Cells:
        """Count the rows of each unit; pairs of labels only that `pairs_from` rows or more have."""
        lists = examples.positives
        offsets = lists.offsets.to_numpy().astype(np.int64)
        label_of_cell = lists.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int64)
        count_N = np.diff(offsets)
        labels = len(examples.label_set)
        bare = np.flatnonzero(~examples.annotated)
        rows = [np.repeat(np.arange(len(examples)), count_N), bare]
        codes = [label_of_cell, np.full(len(bare), labels, np.int64)]
        if pairs_from < math.inf and (count_N * (count_N - 1)).sum() <= 2 * _MOST_PAIRS:
            pair_rows, pair_keys = _pairs(label_of_cell, count_N, labels)
            _, number, found = np.unique(pair_keys, return_inverse=True, return_counts=True)
            frequent = (found >= pairs_from)[number]
            rows.append(pair_rows[frequent])
            codes.append(labels + 1 + number[frequent])
        used, code = np.unique(np.concatenate(codes), return_inverse=True)
        size = max(len(used), 1)
        keys, rows_K = np.unique(unit_N[np.concatenate(rows)] * size + code, return_counts=True)
        unit_K, code_K = np.divmod(keys, size)
        return cls(unit_K, code_K, rows_K)

    def rows_C(self) -> NDArray[np.float64]:
        """Rows that have each code, shape [C]."""
        return np.bincount(self.code_K, weights=self.rows_K).astype(np.float64)


def _pairs(
    label_of_cell: NDArray[np.int64], count_N: NDArray[np.int64], labels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and key of each pair of labels that a row has."""
    before_N = np.cumsum(count_N) - count_N
    rows, keys = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in range(1, int(count_N.max(initial=0))):
        some = np.flatnonzero(count_N > distance)
        length = count_N[some] - distance
        first = np.repeat(before_N[some], length)
        first = first + np.arange(len(first)) - np.repeat(np.cumsum(length) - length, length)
        rows.append(np.repeat(some, length))
        keys.append(label_of_cell[first] * labels + label_of_cell[first + distance])
    return np.concatenate(rows), np.concatenate(keys)


def place_units(
    cells: Cells,
    size_U: NDArray[np.int64],
    sizes_P: NDArray[np.int64],
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Place units by iterative stratification.

    Args:
        cells: What is to be spread.
        size_U: Rows of each unit, shape [U].
        sizes_P: Rows of each part, shape [P].
        shares: The same as shares.
        seed: Of the order of units of one size, and of ties.

    Returns:
        Part of each unit, shape [U]. No part misses its size by the rows of the largest unit.
    """
    generator = np.random.default_rng(seed)
    count = len(size_U)
    # the largest first: a small unit makes up for what a large one upset
    rank_U = np.empty(count, np.int64)
    queue = np.lexsort((generator.random(count), -size_U))
    rank_U[queue] = np.arange(count)
    rows_C = cells.rows_C()
    by_code = np.lexsort((rank_U[cells.unit_K], cells.code_K))
    code_ends = np.searchsorted(cells.code_K[by_code], np.arange(len(rows_C) + 1))
    unit_ends = np.searchsorted(cells.unit_K, np.arange(count + 1)).tolist()
    units_in_code_order = cells.unit_K[by_code].tolist()
    code_list, rows_list = cells.code_K.tolist(), cells.rows_K.tolist()
    missed = [[rows * share for share in shares] for rows in rows_C.tolist()]
    waiting = np.diff(code_ends).tolist()  # units of each code that have no part yet
    room_P = sizes_P.tolist()
    sizes = size_U.tolist()
    part_U = [-1] * count

    def put(unit: int, wanted: list[float] | None) -> None:
        parts = fitting_parts(room_P, sizes[unit])
        needs = [(wanted[part] if wanted else 0.0, room_P[part]) for part in parts]
        most = max(needs)
        best = [part for part, need in zip(parts, needs, strict=True) if need == most]
        part = best[0] if len(best) == 1 else best[int(generator.integers(len(best)))]
        part_U[unit] = part
        room_P[part] -= sizes[unit]
        for key in range(unit_ends[unit], unit_ends[unit + 1]):
            code = code_list[key]
            missed[code][part] -= rows_list[key]
            waiting[code] -= 1
            touched.add(code)

    touched: set[int] = set()
    heap = [(left, code) for code, left in enumerate(waiting) if left]
    heapq.heapify(heap)
    while heap:
        left, code = heapq.heappop(heap)
        if left != waiting[code] or not left:
            continue  # an entry from before units of the code were placed
        touched.clear()
        for unit in units_in_code_order[code_ends[code] : code_ends[code + 1]]:
            if part_U[unit] < 0:
                put(unit, missed[code])
        for other in touched:
            if waiting[other]:
                heapq.heappush(heap, (waiting[other], other))
    for unit in queue.tolist():
        if part_U[unit] < 0:
            put(unit, None)
    return np.array(part_U, dtype=np.int64)


def swap_rows(
    cells: Cells, size_U: NDArray[np.int64], part_U: NDArray[np.int64], shares: Sequence[float]
) -> NDArray[np.int64]:
    """Swap units of one row between parts while that brings the counts closer to what is asked.

    Closeness is chi-square: squares of rows too many or too few, by the rows expected. Iterative
    stratification gives labels of one to three rows to the largest part; as sizes are kept, the
    others then get too many of the most frequent labels, which come last. Swapping spreads that
    over all labels.

    Args:
        cells: What is to be spread.
        size_U: Rows of each unit, shape [U].
        part_U: Part of each, shape [U].
        shares: Of the parts.

    Returns:
        Part of each unit, shape [U]; sizes are those of before.
    """
    part_U = part_U.copy()
    expected_CP = cells.rows_C()[:, None] * np.asarray(shares)
    off_CP = -expected_CP
    np.add.at(off_CP, (cells.code_K, part_U[cells.unit_K]), cells.rows_K)
    ends = np.searchsorted(cells.unit_K, np.arange(len(size_U) + 1)).tolist()
    codes_U = [cells.code_K[start:stop] for start, stop in pairwise(ends)]
    is_single_U = size_U == 1
    of_single_K = is_single_U[cells.unit_K]
    unit_K, code_K = cells.unit_K[of_single_K], cells.code_K[of_single_K]
    most = max(_LEAST_SWAPS, len(size_U) // 200)

    def cost(some: Any, source: int, target: int) -> NDArray[np.float64]:
        """What a row of each code adds to chi-square if it goes from one part to another."""
        leaving = (1 - 2 * off_CP[some, source]) / expected_CP[some, source]
        coming = (1 + 2 * off_CP[some, target]) / expected_CP[some, target]
        added: NDArray[np.float64] = leaving + coming
        return added

    def move(unit: int, source: int, target: int) -> float:
        added = float(cost(codes_U[unit], source, target).sum())
        off_CP[codes_U[unit], source] -= 1
        off_CP[codes_U[unit], target] += 1
        part_U[unit] = target
        return added

    for _ in range(_ROUNDS):
        swaps = 0
        for one, other in combinations(range(len(shares)), 2):
            cost_U = np.zeros(len(size_U))
            best = []
            for source, target in ((one, other), (other, one)):
                here = part_U[unit_K] == source
                np.add.at(cost_U, unit_K[here], cost(slice(None), source, target)[code_K[here]])
                units = np.flatnonzero(is_single_U & (part_U == source))
                best.append(units[np.argsort(cost_U[units], kind="stable")][:most].tolist())
            for left, right in zip(*best, strict=False):
                if cost_U[left] + cost_U[right] >= 0:
                    break
                # costs have changed with the swaps before: count anew
                if move(left, one, other) + move(right, other, one) < -1e-9:
                    swaps += 1
                else:
                    move(left, other, one)
                    move(right, one, other)
        if not swaps:
            break
    return part_U


def fitting_parts(room_P: Sequence[int], size: int) -> list[int]:
    """Parts with room for a unit; if there is none, the one with the most room."""
    parts = [part for part, room in enumerate(room_P) if room >= size]
    return parts or [max(range(len(room_P)), key=room_P.__getitem__)]
