"""How scores become labels: the decision travels with the model.

A label is given when its score is at least its threshold. Both sides are float32: a threshold that
was fitted on float32 scores then decides each of them the same way again.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ray_mlc.config import Section
from ray_mlc.labels import LabelSet


class Decision(Section):
    """Thresholds of a model."""

    threshold: float = Field(default=0.5, ge=0, le=1)
    """Threshold of every label that `per_label` does not name."""
    per_label: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Thresholds of single labels."""
    objective: str | None = None
    """What the thresholds were fitted for, such as `f1_micro`; null: not fitted."""

    def thresholds_L(self, label_set: LabelSet) -> NDArray[np.float32]:
        """Threshold of each label, shape [L]."""
        values = [self.per_label.get(name, self.threshold) for name in label_set.names]
        return np.array(values, np.float32)


def decide(scores_NL: NDArray[np.float32], thresholds_L: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Labels given, shape [N, L]; a score that is not finite gives none."""
    with np.errstate(invalid="ignore"):
        given: NDArray[np.bool_] = scores_NL >= thresholds_L
    return given
