"""Thresholds that turn scores into labels, fitted on validation examples.

A label is given where `score >= threshold`, compared in float32. Micro-F1 as a function of one
threshold only jumps at the scores seen, and lowering the threshold past a score that no positive
has can only hurt. So the scores of the positives are all there is to try: the search is exact, and
costs one sort of all cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError
from ray_mlc.evaluation.metrics import annotated_cells

_DEFAULT = 0.5
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


def fit_global_threshold(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    *,
    objective: str = "f1_micro",
) -> float:
    """The one threshold for all labels that maximizes `objective` on these examples.

    It lies midway between the lowest score that gets a label and the highest that gets none, so
    that neither sits on the edge, and is itself a float32: `scores_NL >= np.float32(threshold)`
    makes the very decisions that were counted. Of equally good thresholds the highest is taken.
    A score of exactly 0 never gets a label, and a score of exactly 1 always does.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated" (left out), shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        objective: What to maximize: `f1_micro`.

    Returns:
        A threshold above 0 and below 1; 0.5 if no positive has a score above 0.

    Raises:
        ConfigError: If the objective is unknown.
        DataError: If shapes differ or a target or score is outside its range.
    """
    if objective != "f1_micro":
        raise ConfigError(f"unknown objective {objective}: expected f1_micro")
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    # a threshold below 1 cannot tell 1 from the float32 next to it: here they are one score
    scores_K = np.minimum(scores_NL[annotated_NL], _BELOW_ONE, dtype=np.float32)
    positives_P = np.minimum(scores_NL[positive_NL], _BELOW_ONE, dtype=np.float32)
    scores_K.sort()
    positives_P.sort()
    candidates_C, first_C = np.unique(positives_P, return_index=True)
    first_C, candidates_C = first_C[candidates_C > 0], candidates_C[candidates_C > 0]
    if not len(candidates_C):
        return _DEFAULT
    below_C = np.searchsorted(scores_K, candidates_C, side="left")
    hits_C = len(positives_P) - first_C
    f1_C = 2 * hits_C / (len(scores_K) - below_C + len(positives_P))
    best = len(f1_C) - 1 - int(np.argmax(f1_C[::-1]))
    lowest_in = candidates_C[best]
    highest_out = scores_K[below_C[best] - 1] if below_C[best] else np.float32(0)
    return _midway(highest_out, lowest_in)


def _midway(low: np.float32, high: np.float32) -> float:
    """A float32 above `low` and at most `high`, midway between the two as far as float32 goes."""
    middle = np.float32((float(low) + float(high)) / 2)
    # between neighbouring floats the middle is rounded to one of them, perhaps to `low`
    return float(middle if middle > low else high)
