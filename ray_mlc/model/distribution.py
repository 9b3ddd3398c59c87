"""What a model gave at its validation: `distribution.json` in the model folder.

Per label a histogram of scores, in bins that are the same for all models, and how many documents
the decision gave it to. A night is held against it: what comes in changes long before anybody
annotates it.

The file names the weights and the decision that it is of. Copied beside other weights it is
refused; a decision that was replaced since leaves its histograms true, but not its rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from ray_mlc.config import Section
from ray_mlc.errors import ModelError
from ray_mlc.job_files import describe
from ray_mlc.labels import LabelSet

DISTRIBUTION_FILE = "distribution.json"
SCHEMA_VERSION = 1
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EDGES = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, *_TENTHS, 0.95, 0.97, 0.98, 0.99, 0.997, 0.999)
"""Inner edges of the bins: a score belongs above the last edge that it reaches. Most scores of most
labels lie close to 0, and a trained model's others close to 1: there the bins are narrow."""
BINS = len(EDGES) + 1
_EDGES = np.array(EDGES, np.float32)
_MAX_CELLS = 2**22

Counted = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ScoreCounts:
    """Scores of some documents, counted: sums of these are of all documents together."""

    rows: int
    """Documents that have scores."""
    given_L: NDArray[np.int64]
    """Documents that have each label."""
    scores_LB: NDArray[np.int64]
    """Documents in each bin; a score that is not known is in the first."""

    @classmethod
    def none(cls, labels: int) -> ScoreCounts:
        """Of no document."""
        return cls(0, np.zeros(labels, np.int64), np.zeros((labels, BINS), np.int64))

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        return ScoreCounts(
            self.rows + other.rows, self.given_L + other.given_L, self.scores_LB + other.scores_LB
        )

    @classmethod
    def of(cls, scores_NL: NDArray[np.float32], given_NL: NDArray[np.bool_]) -> ScoreCounts:
        """Count; a row without any score counts nowhere."""
        scored_N: NDArray[np.bool_] = np.logical_or.reduce(~np.isnan(scores_NL), axis=1)
        given_L = given_NL[scored_N].sum(axis=0)
        return cls(int(scored_N.sum()), given_L, histogram(scores_NL, scored_N))


def histogram(scores_NL: NDArray[np.float32], scored_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows in each bin, shape [L, B].

    Args:
        scores_NL: Scores; NaN where one is not known, which counts in the lowest bin.
        scored_N: Rows that have scores; the others count nowhere.
    """
    labels = scores_NL.shape[1]
    counts_LB = np.zeros((labels, BINS), np.int64)
    rows = np.flatnonzero(scored_N)
    step = max(1, _MAX_CELLS // labels)
    for low in range(0, len(rows), step):
        part_NL = scores_NL[rows[low : low + step]]
        row, column = np.nonzero(part_NL >= _EDGES[0])
        counts_LB += bin_cells(column, part_NL[row, column], labels=labels, rows=len(part_NL))
    return counts_LB


def bin_cells(
    column_C: NDArray[np.int64], score_C: NDArray[np.float32], *, labels: int, rows: int
) -> NDArray[np.int64]:
    """Rows in each bin, shape [L, B], of the scores that are known; the others are in the lowest.

    Args:
        column_C: Label of each score.
        score_C: The scores.
        labels: How many labels there are.
        rows: How many rows have scores.
    """
    # scores of the lowest bin are nearly all there are, where labels are many
    above = score_C >= _EDGES[0]
    column_C, score_C = column_C[above], score_C[above]
    bins = np.searchsorted(_EDGES, score_C, side="right")
    counts = np.bincount(column_C * BINS + bins, minlength=labels * BINS)
    counts_LB: NDArray[np.int64] = counts.reshape(labels, BINS).astype(np.int64)
    counts_LB[:, 0] = rows - counts_LB[:, 1:].sum(axis=1)
    return counts_LB


class LabelScores(Section):
    """What a label's scores were."""

    given: Counted
    """Documents that the decision gave it to."""
    scores: list[Counted]
    """Documents in each bin, from 0 to 1."""


class Distribution(Section):
    """`distribution.json`."""

    schema_version: int = SCHEMA_VERSION
    """Of this file."""
    model: str
    """Digest of the weights, tokenizer and configuration that gave the scores."""
    decision: str
    """Digest of the decision that gave the labels."""
    rows: Counted
    """Validation documents."""
    edges: list[float]
    """Inner edges of the bins."""
    labels: dict[str, LabelScores]
    """By label, in column order."""

    @model_validator(mode="after")
    def _consistent(self) -> Distribution:
        for name, label in self.labels.items():
            if len(label.scores) != len(self.edges) + 1 or sum(label.scores) != self.rows:
                raise ValueError(
                    f"expected {self.rows} rows in {len(self.edges) + 1} bins of label {name!r}"
                )
        return self

    @classmethod
    def of(
        cls, counts: ScoreCounts, label_set: LabelSet, *, model: str, decision: str
    ) -> Distribution:
        """What to write."""
        labels = {
            name: LabelScores(given=given, scores=scores)
            for name, given, scores in zip(
                label_set.names, counts.given_L.tolist(), counts.scores_LB.tolist(), strict=True
            )
        }
        return cls(
            model=model, decision=decision, rows=counts.rows, edges=list(EDGES), labels=labels
        )

    @property
    def counts(self) -> ScoreCounts:
        """As arrays."""
        labels = self.labels.values()
        return ScoreCounts(
            self.rows,
            np.array([label.given for label in labels], np.int64),
            np.array([label.scores for label in labels], np.int64),
        )


def parse_distribution(data: bytes, *, name: str, label_set: LabelSet, model: str) -> Distribution:
    """Read `distribution.json`.

    Args:
        data: Its content.
        name: Of the model, for error texts.
        label_set: Of the model.
        model: Digest of the model.

    Raises:
        ModelError: If it is malformed, or of another model.
    """
    remedy = "delete it, or write it anew with `ray-mlc thresholds`"
    try:
        found = Distribution.model_validate_json(data)
    except ValidationError as error:
        text = describe(error, Distribution)
        raise ModelError(f"{name}: {DISTRIBUTION_FILE}: {text}: {remedy}") from None
    if found.model != model or tuple(found.labels) != label_set.names:
        raise ModelError(f"{name}: {DISTRIBUTION_FILE} is of other weights: {remedy}")
    if tuple(found.edges) != EDGES:
        raise ModelError(
            f"{name}: {DISTRIBUTION_FILE} has other bins than those of this ray_mlc: {remedy}"
        )
    return found
