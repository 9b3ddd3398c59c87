"""A model's figures on labelled examples: at 0.5, at its decision, and the dummy beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation.metrics import dummy_scores, evaluate_scores, per_label
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Rules, decide


def evaluate_scores_at(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    thresholds_L: NDArray[np.float32] | np.float32,
) -> dict[str, float | None]:
    """All metrics of scores, with labels given from `thresholds_L` on."""
    given = decide(scores_NL, Rules(np.asarray(thresholds_L, np.float32)))
    return evaluate_scores(targets_NL, scores_NL, given)


def evaluate(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    *,
    label_set: LabelSet,
    given_NL: NDArray[np.bool_],
    rates_L: NDArray[np.float64],
) -> dict[str, Any]:
    """The figures that `evaluate --json` prints.

    Args:
        targets_NL: 0, 1, or NaN where nobody annotated.
        scores_NL: Scores of the model.
        label_set: Labels in column order.
        given_NL: Labels that the model's decision gives.
        rates_L: Label rates in the training data: what the dummy says of every document.

    Returns:
        `n`, `at_half`, `decision`, `dummy` (metrics by name) and `per_label` (at the decision).
    """
    count = len(targets_NL)
    dummy = dummy_scores(rates_L, count)
    return {
        "n": count,
        "at_half": evaluate_scores_at(targets_NL, scores_NL, np.float32(0.5)),
        "decision": evaluate_scores(targets_NL, scores_NL, given_NL),
        "dummy": evaluate_scores_at(targets_NL, dummy, np.float32(0.5)),
        "per_label": per_label(label_set.names, targets_NL, scores_NL, given_NL),
    }
