"""A model's figures on labelled examples: at 0.5, at its decision, and the dummy beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.evaluation import bootstrap
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


def validation_metrics(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    given: Mapping[str, NDArray[np.bool_]],
    *,
    rates_L: NDArray[np.float64] | None,
    seed: int = 0,
) -> dict[str, Any]:
    """What a model folder keeps of its validation: figures, intervals, and the dummy beside them.

    Args:
        targets_NL: 0, 1, or NaN where nobody annotated.
        scores_NL: Scores of the model.
        given: Labels given, by name of the decision: `decision`, `decision_held_out`.
        rates_L: Label rates in the training data; None: nobody knows them, there is no dummy.
        seed: Of the bootstrap.

    Returns:
        `at_half`, the names of `given` and `dummy`: metrics by name; `intervals`: by the first two
        and by metric, None where one is undefined or would take too long. One document gives none.
    """
    half_NL = scores_NL >= np.float32(0.5)
    every = {"at_half": half_NL, **given}
    found: dict[str, Any] = {
        name: evaluate_scores(targets_NL, scores_NL, given_NL) for name, given_NL in every.items()
    }
    if rates_L is not None:
        dummy_NL = dummy_scores(rates_L, len(targets_NL))
        found["dummy"] = evaluate_scores_at(targets_NL, dummy_NL, np.float32(0.5))
    if len(targets_NL) < 2:
        return found
    of_scores: bootstrap.Replicates = {}
    if targets_NL.size <= bootstrap.MOST_CELLS:
        of_scores = bootstrap.of_scores(targets_NL, scores_NL, seed=seed)
    found["intervals"] = {}
    for name, given_NL in every.items():
        replicates = bootstrap.of_decisions(targets_NL, given_NL, seed=seed)[0] | of_scores
        ends = bootstrap.intervals(replicates, found[name])
        # lists: what is read back from a folder is then what was written
        found["intervals"][name] = {key: pair and list(pair) for key, pair in ends.items()}
    return found
