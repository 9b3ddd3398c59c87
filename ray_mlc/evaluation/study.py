"""All that an evaluation report shows of a model: figures with intervals, curves, mistakes.

`evaluate` says how good a model is; this says how sure that is, what other thresholds would do, how
far scores can be trusted, and where it goes wrong. Each part walks over the arrays in blocks or
keeps one copy of the scores at a time: 6,000 documents × 4,271 labels took 16 s of one core, and at
the peak the memory of three copies of the scores beside the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation import bootstrap
from ray_mlc.evaluation.bootstrap import CONFIDENCE, Interval, Replicates
from ray_mlc.evaluation.curves import (
    PrecisionRecall,
    Sweep,
    label_curves,
    micro_curve,
    sweep,
    sweep_thresholds,
)
from ray_mlc.evaluation.lengths import LengthBucket, by_length
from ray_mlc.evaluation.mistakes import Confusions, Mistake, confusions, costliest
from ray_mlc.evaluation.ranking import means, ranking_at
from ray_mlc.evaluation.reliability import Reliability, reliability

MANY_LABELS = 64
"""Labels above which the first k of them count more than any threshold."""
PAIRS = 200
"""Pairs of confused labels that are listed."""
SHOWN_LABELS = 25
"""Labels in the matrix of confusions."""
COSTLY = 50
"""Misses, and false alarms, that are listed."""
CURVE_POINTS = 200
"""Points of a precision-recall curve, while there are few labels."""
_ALL_POINTS = 150_000  # of the curves of all labels together: they travel in the page


@dataclass(frozen=True)
class Study:
    """What was found; arrays and lists are by label in column order where they have its length."""

    figures: Mapping[str, Any]
    """What `evaluate` returned: the figures that all else is about."""
    thresholds_L: NDArray[np.float32]
    """The decision's thresholds."""
    positives_L: NDArray[np.int64]
    """Positives of each label."""
    annotated_L: NDArray[np.int64]
    """Documents in which it was decided either way."""
    f1_at_half_L: NDArray[np.float64]
    """F1 of each label at 0.5."""
    f1_intervals: Sequence[Interval | None]
    """Interval of each label's F1 at the decision; None where positives are too few."""
    intervals: Mapping[str, Mapping[str, Interval | None]]
    """By `at_half` and `decision`, and by metric."""
    gains: Mapping[str, tuple[float, Interval | None]]
    """By metric that a decision moves: what it gains over 0.5, paired by document."""
    replicates: int
    """Of the bootstrap."""
    seed: int
    """Of the bootstrap."""
    ranking: Mapping[str, tuple[float | None, Interval | None]] | None
    """Figures at the first k labels; None with few labels."""
    micro: PrecisionRecall | None
    """Precision against recall of all cells together."""
    curves: Sequence[PrecisionRecall | None]
    """And of each label."""
    reliability: Reliability
    """Scores against shares of positives."""
    calibrated: Reliability | None
    """The same of calibrated scores; None: the decision does not calibrate."""
    sweep: Sweep
    """One threshold for all labels."""
    confusions: Confusions
    """Labels given in place of others."""
    costliest: Sequence[Mistake]
    """Wrong decisions of the largest losses."""
    lengths: Sequence[LengthBucket] | None
    """Figures by length; None where nobody counted tokens."""

    def summary(self, ids: Sequence[str]) -> dict[str, Any]:
        """The figures of `evaluate`, and under further keys what is not in them, fit for JSON.

        Args:
            ids: Id of each document.
        """
        rows = self.figures["per_label"]
        names = [row["label"] for row in rows]
        extra = [
            {
                "threshold": float(self.thresholds_L[label]),
                "rate": self.rate(label),
                "f1_interval": self.f1_intervals[label],
                "f1_at_half": float(self.f1_at_half_L[label]),
            }
            for label in range(len(rows))
        ]
        found = self.confusions
        return {
            **self.figures,
            "per_label": [{**row, **more} for row, more in zip(rows, extra, strict=True)],
            "bootstrap": {
                "confidence": CONFIDENCE,
                "replicates": self.replicates,
                "seed": self.seed,
                **self.intervals,
                "gain": {
                    name: {"value": value, "interval": ends}
                    for name, (value, ends) in self.gains.items()
                },
            },
            "ranking": self.ranking
            and {
                name: {"value": value, "interval": ends}
                for name, (value, ends) in self.ranking.items()
            },
            "reliability": _reliability_rows(self.reliability),
            "calibrated": self.calibrated and _reliability_rows(self.calibrated),
            "sweep": self.sweep.rows(),
            "confusions": [
                {"missed": names[missed], "given": names[given], "documents": documents}
                for missed, given, documents in found.pairs_P3.tolist()
            ],
            "costliest": [
                {
                    "id": ids[cell.document],
                    "label": names[cell.label],
                    "score": cell.score,
                    "kind": "missed" if cell.missed else "false alarm",
                    "loss": cell.loss,
                    "has": [names[label] for label in cell.has],
                    "gets": [names[label] for label in cell.gets],
                }
                for cell in self.costliest
            ],
            "lengths": self.lengths and [asdict(bucket) for bucket in self.lengths],
        }

    def rate(self, label: int) -> float | None:
        """Share of a label's annotated documents that have it; None if there are none."""
        annotated = int(self.annotated_L[label])
        return int(self.positives_L[label]) / annotated if annotated else None


def _reliability_rows(found: Reliability) -> dict[str, Any]:
    columns = (found.mean_score_K.tolist(), found.positive_share_K.tolist(), found.count_K.tolist())
    names = ("mean_score", "positive_share", "cells")
    bins = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return {"ece": found.ece, "bins": bins}


def study(
    figures: Mapping[str, Any],
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    given_NL: NDArray[np.bool_],
    *,
    thresholds_L: NDArray[np.float32],
    n_tokens_N: NDArray[np.integer] | None = None,
    truncated_N: NDArray[np.bool_] | None = None,
    max_tokens: int | None = None,
    calibrated_NL: NDArray[np.float32] | None = None,
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> Study:
    """Look at decisions from all sides.

    Args:
        figures: `evaluate` of the same.
        targets_NL: 1, 0, or NaN for "not annotated", shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        given_NL: The model's decisions, shape [N, L].
        thresholds_L: The thresholds behind them, shape [L].
        n_tokens_N: Tokens of each whole document; None: nobody counted them.
        truncated_N: Whether some of them were cut off.
        max_tokens: Tokens that the model takes; None: it takes all.
        calibrated_NL: Calibrated scores, shape [N, L]; None: the decision does not calibrate.
        replicates: Of the bootstrap; below 2 documents there is none.
        seed: Of the bootstrap.

    Raises:
        DataError: If shapes differ or a target or score is outside its range.
    """
    documents, labels = targets_NL.shape
    draws = {"replicates": replicates, "seed": seed}
    half_NL = scores_NL >= np.float32(0.5)
    sampled = documents > 1
    enough = sampled and targets_NL.size * replicates <= bootstrap.MOST_CELLS * bootstrap.REPLICATES
    of_scores = bootstrap.of_scores(targets_NL, scores_NL, **draws) if enough else {}
    at_half: Replicates = {}
    decision: Replicates = {}
    f1_intervals: list[Interval | None] = [None] * labels
    positives_L = np.count_nonzero(targets_NL == 1, axis=0)
    if sampled:
        at_half, _ = bootstrap.of_decisions(targets_NL, half_NL, **draws)
        decision, f1_LR = bootstrap.of_decisions(targets_NL, given_NL, **draws)
        f1_L = np.array([row["f1"] for row in figures["per_label"]], np.float64)
        f1_intervals = bootstrap.label_intervals(f1_LR, f1_L, positives_L)
    lengths = None
    if n_tokens_N is not None and truncated_N is not None:
        lengths = by_length(
            targets_NL, given_NL, n_tokens_N, truncated_N, max_tokens=max_tokens, **draws
        )
    points = int(np.clip(_ALL_POINTS // max(1, labels), 20, CURVE_POINTS))
    return Study(
        figures=figures,
        thresholds_L=thresholds_L,
        positives_L=positives_L,
        annotated_L=np.count_nonzero(~np.isnan(targets_NL), axis=0),
        f1_at_half_L=_f1_L(targets_NL, half_NL),
        f1_intervals=f1_intervals,
        intervals={
            "at_half": bootstrap.intervals({**at_half, **of_scores}, figures["at_half"]),
            "decision": bootstrap.intervals({**decision, **of_scores}, figures["decision"]),
        },
        gains=_gains(figures, at_half, decision),
        replicates=replicates,
        seed=seed,
        ranking=_ranking(targets_NL, scores_NL, draws) if labels > MANY_LABELS else None,
        micro=micro_curve(targets_NL, scores_NL, points=CURVE_POINTS),
        curves=list(label_curves(targets_NL, scores_NL, points=points)),
        reliability=reliability(targets_NL, scores_NL),
        calibrated=None if calibrated_NL is None else reliability(targets_NL, calibrated_NL),
        sweep=sweep(targets_NL, scores_NL, sweep_thresholds(thresholds_L)),
        confusions=confusions(targets_NL, given_NL, pairs=PAIRS, shown=SHOWN_LABELS),
        costliest=costliest(targets_NL, scores_NL, given_NL, count=COSTLY),
        lengths=lengths,
    )


def _gains(
    figures: Mapping[str, Any], at_half: Replicates, decision: Replicates
) -> dict[str, tuple[float, Interval | None]]:
    """What the decision gains over 0.5: the same draws on both sides, so documents are paired."""
    found = {}
    for name in decision:
        before, after = figures["at_half"][name], figures["decision"][name]
        if before is not None and after is not None:
            gain = after - before
            found[name] = (
                gain,
                bootstrap.interval(decision[name] - at_half[name], gain, bounds=(-1.0, 1.0)),
            )
    return found


def _ranking(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32], draws: Mapping[str, int]
) -> dict[str, tuple[float | None, Interval | None]]:
    values = ranking_at(targets_NL, scores_NL)
    estimates = means(values)
    if len(targets_NL) < 2:
        return {name: (value, None) for name, value in estimates.items()}
    ends = bootstrap.intervals(bootstrap.of_means(values, **draws), estimates)
    return {name: (value, ends[name]) for name, value in estimates.items()}


def _f1_L(targets_NL: NDArray[np.float32], given_NL: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 of each label, 0 where there is nothing to find and nothing given."""
    hits_L = np.count_nonzero((targets_NL == 1) & given_NL, axis=0)
    marked_L = np.count_nonzero(targets_NL == 1, axis=0)
    marked_L = marked_L + np.count_nonzero(given_NL & ~np.isnan(targets_NL), axis=0)
    f1_L: NDArray[np.float64] = 2 * hits_L / np.maximum(marked_L, 1)
    return f1_L
