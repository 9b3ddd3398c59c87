"""From a score to a probability: one rising function for each label.

A score is the sigmoid of a logit that training has pushed as far as it could; 0.9 need not mean
nine in ten. A calibration says what it does mean, label by label. It works on the log-odds of the
score, z, and gives log-odds again:

    temperature   z / T                                     Guo et al. 2017
    platt         a z + b                                   Platt 1999
    isotonic      a rising step function, kept as knots     Zadrozny and Elkan 2002

Each is strictly rising over all float32 scores, so that it neither changes the order of scores nor
joins two of them. Hence thresholds stay what they are, numbers that scores are compared with, and
comparing calibrated log-odds with calibrated thresholds gives the very same labels. An isotonic
step is level where the data says no more; it is tilted by a thousandth of z, which moves odds by
one percent at most and keeps scores apart that would become equal.

Nothing here is fitted: see `evaluation.calibration`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ray_mlc.config import Section
from ray_mlc.labels import LabelSet

Method = Literal["temperature", "platt", "isotonic"]
METHODS: tuple[str, ...] = get_args(Method)
TILT = 1e-3
"""Smallest slope: flatter, neighbouring scores would become one; what knots are tilted by."""
STEEPEST = 50.0
"""Largest slope."""
_FARTHEST = 1e4  # log-odds beyond which float64 cannot keep neighbouring scores apart
_LOWEST = 1e-46  # stands for a score of 0: below the float32 next to it
_HIGHEST = 1 - 2.0**-25  # stands for a score of 1: above the float32 next to it
_BLOCK_CELLS = 1 << 20


class Curve(Section):
    """Log-odds `slope * z + intercept`, and what linear interpolation between knots adds."""

    slope: float = Field(ge=TILT, le=STEEPEST)
    """1 / temperature; of knots, their tilt."""
    intercept: float = Field(default=0.0, ge=-_FARTHEST, le=_FARTHEST)
    """Log-odds at a score of one half."""
    logits: list[float] = Field(default_factory=list)
    """Knots: log-odds of scores, rising; empty: there are none."""
    calibrated: list[float] = Field(default_factory=list)
    """What is added there: never falling, and level beyond the first and the last."""
    weight: float = Field(default=1.0, ge=0, le=1)
    """Say of a label's own curve; that for all labels has the rest."""

    @model_validator(mode="after")
    def _rising(self) -> Curve:
        if len(self.logits) != len(self.calibrated):
            raise ValueError(
                f"expected as many calibrated values ({len(self.calibrated)}) as logits "
                f"({len(self.logits)})"
            )
        if not all(abs(value) <= _FARTHEST for value in [*self.logits, *self.calibrated]):
            raise ValueError(f"expected log-odds between -{_FARTHEST:g} and {_FARTHEST:g}")
        if not all(low < high for low, high in pairwise(self.logits)):
            raise ValueError("expected logits that rise")
        if not all(low <= high for low, high in pairwise(self.calibrated)):
            raise ValueError("expected calibrated values that never fall")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """There is one for each of thousands of labels."""
        content: dict[str, Any] = handler(self)
        silent = {"intercept": 0.0, "logits": [], "calibrated": [], "weight": 1.0}
        return {key: value for key, value in content.items() if value != silent.get(key)}

    def __call__(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds by this curve alone."""
        result: NDArray[np.float64] = self.slope * z + self.intercept
        if self.logits:
            result += np.interp(z, self.logits, self.calibrated)
        return result


class Calibration(Section):
    """What turns scores into probabilities."""

    method: Method
    """How it was fitted."""
    pooled: Curve
    """For every label that `per_label` does not name: fitted on the cells of all labels."""
    per_label: dict[str, Curve] = Field(default_factory=dict)
    """For single labels, drawn toward the one for all as far as cross-validation found right."""

    def log_odds(self, scores_NL: NDArray[np.floating], label_set: LabelSet) -> NDArray[np.float64]:
        """Calibrated log-odds, finite, shape [N, L]; NaN where the score is."""
        z_NL = log_odds(scores_NL)
        result_NL = self.pooled(z_NL)
        if not self.per_label:
            return result_NL
        columns = [label_set.index[name] for name in self.per_label]
        curves = list(self.per_label.values())
        # not curve by curve: with thousands of them a single text would take as long as its scores
        own_NC = z_NL[:, columns] * [curve.slope for curve in curves]
        own_NC += [curve.intercept for curve in curves]
        for place, curve in enumerate(curves):
            if curve.logits:
                own_NC[:, place] += np.interp(
                    z_NL[:, columns[place]], curve.logits, curve.calibrated
                )
        weight_C = np.array([curve.weight for curve in curves])
        result_NL[:, columns] = mix(own_NC, result_NL[:, columns], weight_C)
        return result_NL

    def probabilities(
        self, scores_NL: NDArray[np.floating], label_set: LabelSet
    ) -> NDArray[np.float32]:
        """Calibrated probabilities, shape [N, L]; NaN where the score is.

        In the order of the scores; close to 0 and 1 float32 cannot keep all of them apart.
        """
        result_NL = np.empty(scores_NL.shape, np.float32)
        step = max(1, _BLOCK_CELLS // max(1, scores_NL.shape[1]))
        for low in range(0, len(scores_NL), step):
            rows = slice(low, low + step)
            result_NL[rows] = sigmoid(self.log_odds(scores_NL[rows], label_set))
        return result_NL


def mix(
    own: NDArray[np.float64], pooled: NDArray[np.float64], weight: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log-odds in which a label's own have a say of `weight`: a geometric mean of odds."""
    mixed: NDArray[np.float64] = weight * own + (1 - weight) * pooled
    return mixed


def log_odds(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits of float32 scores; 0 and 1 lie a little beyond their neighbours, not at infinity."""
    inside = np.clip(scores.astype(np.float64), _LOWEST, _HIGHEST)
    logits: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return logits


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of log-odds of any size."""
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1 + small)
    return result
