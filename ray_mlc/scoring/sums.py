"""What a night's rows come to: counts and histograms that grow with labels, never with rows.

Rows are added block by block, and the sums of two parts are added to each other, in any order and
with the same result: several threads read parts at once. Nothing but counts is kept, and of each
label the few rows whose scores lie nearest to its threshold.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.labels import LabelSet
from ray_mlc.scoring.parts import OutputSpec
from ray_mlc.scoring.stored import Cells, known_cells, label_cells, score_matrix

SCORE_BINS = 50
"""Bins of equal width that scores from 0 to 1 are counted in."""
MOST_LABELS = 20
"""Labels of a row that are told apart; rows with more are counted with them."""
NEAR = 0.05
"""Distance from its threshold within which a score is uncertain, at most; see `reach_of`."""
NEAREST = 5
"""Rows that are kept of each label: those nearest to its threshold."""
LENGTH_EDGES: NDArray[np.int64] = np.unique(np.geomspace(1, 2**20, 121).round()).astype(np.int64)
"""Where the count of rows by tokens is divided; the last bin has all that is longer."""
NEAR_TYPE = np.dtype(
    [("label", "i4"), ("distance", "f4"), ("score", "f4"), ("unit", "i8"), ("row", "i8")]
)
READ_ALWAYS = ("labels", "n_tokens", "truncated", "n_windows", "status")
"""Columns of a part that `Sums.add` needs, beside those of scores."""


class Sums:
    """Counts over rows."""

    def __init__(
        self,
        label_set: LabelSet,
        thresholds_L: NDArray[np.float32],
        shown_H: NDArray[np.int64],
    ) -> None:
        """Nothing is counted yet.

        Args:
            label_set: Labels in column order.
            thresholds_L: From which score on each is given.
            shown_H: Labels of which is counted how often two come together.
        """
        self.label_set, self.thresholds_L, self.shown_H = label_set, thresholds_L, shown_H
        self.reach_L = reach_of(thresholds_L)
        count = len(label_set)
        self.rows = self.truncated = self.several_windows = 0
        self.statuses: Counter[str] = Counter()
        self.given_L = np.zeros(count, np.int64)
        self.per_row = np.zeros(MOST_LABELS + 1, np.int64)
        """Scored rows by number of labels."""
        self.length_counts = np.zeros(len(LENGTH_EDGES), np.int64)
        self.together_HH = np.zeros((len(shown_H), len(shown_H)), np.int64)
        self.bins_LB = np.zeros((count, SCORE_BINS), np.int64)
        """Stored scores of each label."""
        self.near_L = np.zeros(count, np.int64)
        """Scores within `reach_L` of the threshold."""
        self.nearest = np.zeros(0, NEAR_TYPE)

    @property
    def scored(self) -> int:
        """Rows that have labels, if only none."""
        return self.statuses["ok"]

    def add(
        self,
        part: pa.Table,
        output: OutputSpec,
        *,
        scores: bool = True,
        unit: int = 0,
        first: int = 0,
    ) -> None:
        """Add some rows of a part.

        Args:
            part: The columns `READ_ALWAYS`, and those of `stored.score_columns`; few enough rows
                for a matrix of their scores.
            output: What parts of the run look like.
            scores: Whether to look at scores; False: labels and lengths alone.
            unit: Position of the part's unit, by which near rows are found again.
            first: Position of the first of these rows in the part.

        Raises:
            ValueError: If a row has a label that the run does not know.
        """
        self.rows += part.num_rows
        for item in part["status"].cast(pa.string()).value_counts().to_pylist():
            self.statuses[item["values"]] += item["counts"]
        self._add_lengths(part)
        self._add_labels(part)
        if not scores:
            return
        if output.format == "sparse":
            self._add_cells(known_cells(part, output), unit, first)
        else:
            self._add_matrix(score_matrix(part, output), unit, first)

    def merge(self, other: Sums) -> None:
        """Add the sums of other rows."""
        for name in ("rows", "truncated", "several_windows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.statuses.update(other.statuses)
        for name in ("given_L", "per_row", "length_counts", "together_HH", "bins_LB", "near_L"):
            getattr(self, name).__iadd__(getattr(other, name))
        self._keep_nearest(other.nearest)

    def _add_lengths(self, part: pa.Table) -> None:
        lengths = part["n_tokens"].drop_null().to_numpy()
        places = np.searchsorted(LENGTH_EDGES, np.maximum(lengths, 1), side="right") - 1
        self.length_counts += np.bincount(places, minlength=len(LENGTH_EDGES))
        self.truncated += int(part["truncated"].drop_null().to_numpy().sum())
        self.several_windows += int((part["n_windows"].to_numpy() > 1).sum())

    def _add_labels(self, part: pa.Table) -> None:
        rows_C, labels_C = label_cells(part["labels"], self.label_set)
        self.given_L += np.bincount(labels_C, minlength=len(self.label_set))
        sizes_N = np.bincount(rows_C, minlength=part.num_rows)
        sizes_N = sizes_N[part["labels"].is_valid().to_numpy()]
        self.per_row += np.bincount(np.minimum(sizes_N, MOST_LABELS), minlength=MOST_LABELS + 1)
        place_L = np.full(len(self.label_set), -1)
        place_L[self.shown_H] = np.arange(len(self.shown_H))
        shown_C = place_L[labels_C] >= 0
        given_NH = np.zeros((part.num_rows, len(self.shown_H)), np.float32)
        given_NH[rows_C[shown_C], place_L[labels_C[shown_C]]] = 1
        self.together_HH += np.rint(given_NH.T @ given_NH).astype(np.int64)

    def _add_matrix(self, scores_NL: NDArray[np.float32], unit: int, first: int) -> None:
        rows_N = np.flatnonzero(np.isfinite(scores_NL).all(axis=1))
        scores_NL = scores_NL[rows_N]
        count = len(self.label_set)
        places_NL = _bin_of(scores_NL) + SCORE_BINS * np.arange(count)
        self._count(places_NL.ravel())
        near, label_C = np.nonzero(np.abs(scores_NL - self.thresholds_L) <= self.reach_L)
        self._add_near(first + rows_N[near], label_C, scores_NL[near, label_C], unit)

    def _add_cells(self, cells: Cells, unit: int, first: int) -> None:
        rows_C, labels_C, scores_C = cells.row_C, cells.column_C, cells.score_C
        self._count(_bin_of(scores_C) + SCORE_BINS * labels_C)
        near = np.abs(scores_C - self.thresholds_L[labels_C]) <= self.reach_L[labels_C]
        self._add_near(first + rows_C[near], labels_C[near], scores_C[near], unit)

    def _count(self, places: NDArray[np.int64]) -> None:
        size = len(self.label_set) * SCORE_BINS
        self.bins_LB += np.bincount(places, minlength=size).reshape(-1, SCORE_BINS)

    def _add_near(
        self,
        rows_C: NDArray[np.int64],
        labels_C: NDArray[np.int64],
        scores_C: NDArray[np.float32],
        unit: int,
    ) -> None:
        self.near_L += np.bincount(labels_C, minlength=len(self.label_set))
        near = np.zeros(len(rows_C), NEAR_TYPE)
        near["label"], near["score"], near["unit"], near["row"] = labels_C, scores_C, unit, rows_C
        near["distance"] = np.abs(scores_C - self.thresholds_L[labels_C])
        self._keep_nearest(near)

    def _keep_nearest(self, near: NDArray[Any]) -> None:
        """Keep the `NEAREST` of each label; of equal ones those that come first in the input."""
        near = np.concatenate([self.nearest, near])
        near = near[np.lexsort((near["row"], near["unit"], near["distance"], near["label"]))]
        starts = np.searchsorted(near["label"], near["label"])
        self.nearest = near[np.arange(len(near)) - starts < NEAREST]


def reach_of(thresholds_L: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance from a threshold that is uncertain: `NEAR`, or half-way to 0 or 1 if that is nearer.

    Of a label that is given from 0.04 on, most scores lie within 0.05 of it.
    """
    halves_L = np.minimum(thresholds_L, 1 - thresholds_L) / 2
    return np.minimum(np.float32(NEAR), halves_L)


def _bin_of(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    places = (scores.astype(np.float64) * SCORE_BINS).astype(np.int64)
    return np.clip(places, 0, SCORE_BINS - 1)
