"""How scores become labels: the decision travels with the model.

    score ≥ threshold  ▶  fall back where that gives nothing  ▶  add what lies above

A score and its threshold are both float32: a threshold that was fitted on float32 scores then
decides each of them the same way again. Thresholds are compared with scores, never with calibrated
probabilities; as a calibration rises strictly, that would give the same labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from ray_mlc.config import Section
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import describe
from ray_mlc.labels import LabelSet, unknown_label
from ray_mlc.model.calibration import Calibration
from ray_mlc.model.hierarchy import Hierarchy, find_cycle
from ray_mlc.storage import open_storage

_LATER_KEYS = ("calibration", "hierarchy", "fallback", "fallback_floor")
"""Keys that the first schema did not have: they are left out where they say nothing."""


class Decision(Section):
    """Thresholds of a model, and what is done beside them."""

    threshold: float = Field(default=0.5, ge=0, le=1)
    """Threshold of every label that `per_label` does not name."""
    per_label: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Thresholds of single labels."""
    objective: str | None = None
    """What the thresholds were fitted for, such as `f1_micro`; null: not fitted."""
    calibration: Calibration | None = None
    """What turns scores into probabilities; null: they are shown as they are."""
    hierarchy: dict[str, list[str]] = Field(default_factory=dict)
    """Parents of labels: who gets a label gets all that lie above it, whatever their scores."""
    fallback: int | None = Field(default=None, ge=1, lt=2**31)
    """Labels, the best ones, that a document gets which would get none; null: it gets none."""
    fallback_floor: float = Field(default=0.0, ge=0, le=1)
    """Smallest score with which `fallback` gives a label."""

    @field_validator("hierarchy")
    @classmethod
    def _no_cycle(cls, hierarchy: dict[str, list[str]]) -> dict[str, list[str]]:
        if (cycle := find_cycle(hierarchy)) is not None:
            raise ValueError(f"expected no label above itself, as in {cycle}")
        return hierarchy

    @model_serializer(mode="wrap")
    def _without_silent_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Decisions that need nothing new read the same, and have the same digest, as ever."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if value or key not in _LATER_KEYS}

    @property
    def needs_schema(self) -> int:
        """The first schema of model folders that can say all of it."""
        return 2 if set(self.model_dump()) & set(_LATER_KEYS) else 1

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def uncalibrated(self) -> Decision:
        """What of it decides labels."""
        return self.model_copy(update={"calibration": None})

    def check(self, label_set: LabelSet) -> None:
        """Refuse labels that the model does not have.

        Raises:
            ConfigError: Naming the key, the first such label, and the nearest one there is.
        """
        above = (name for parents in self.hierarchy.values() for name in parents)
        named: dict[str, Iterable[str]] = {
            "per_label": self.per_label,
            "calibration.per_label": self.calibration.per_label if self.calibration else (),
            "hierarchy": [*self.hierarchy, *above],
        }
        for key, names in named.items():
            for name in names:
                if name not in label_set.index:
                    raise ConfigError(f"{key}: {unknown_label(name, label_set)}")

    def thresholds_L(self, label_set: LabelSet) -> NDArray[np.float32]:
        """Threshold of each label, shape [L]."""
        values = [self.per_label.get(name, self.threshold) for name in label_set.names]
        return np.array(values, np.float32)

    def rules(self, label_set: LabelSet) -> Rules:
        """The decision by column, for `decide`."""
        return Rules(
            self.thresholds_L(label_set),
            Hierarchy.of(self.hierarchy, label_set) if self.hierarchy else None,
            self.fallback,
            self.fallback_floor,
        )


@dataclass(frozen=True)
class Rules:
    """A decision by column."""

    thresholds_L: NDArray[np.float32]
    """Threshold of each label; one number for all of them will do."""
    hierarchy: Hierarchy | None = None
    """What lies above each label."""
    fallback: int | None = None
    """Labels for a document that would get none."""
    fallback_floor: float = 0.0
    """Smallest score with which one is given so."""

    def near(self, scores_NL: NDArray[np.float32], tolerance: float) -> bool:
        """Whether scores that differ by `tolerance` may give other labels."""
        if (np.abs(scores_NL - self.thresholds_L) <= tolerance).any():
            return True
        if self.fallback is None:
            return False
        left_NL = np.where(np.isfinite(scores_NL), scores_NL, np.float32(-1))
        left_NL = left_NL[~(left_NL >= self.thresholds_L).any(axis=1)]
        ranked_NL = -np.sort(-left_NL, axis=1)
        in_NK, out_NK = ranked_NL[:, : self.fallback], ranked_NL[:, self.fallback :]
        if (np.abs(in_NK - self.fallback_floor) <= tolerance).any():
            return True
        tied = (out_NK[:, :1] >= 0) & (in_NK[:, -1:] - out_NK[:, :1] <= 2 * tolerance)
        return bool(tied.any())


def decide(scores_NL: NDArray[np.float32], rules: Rules) -> NDArray[np.bool_]:
    """Labels given, shape [N, L]: the one place where scores become labels.

    A score that is not finite gives no label by itself. A row without any finite score gets none:
    so are rows passed that could not be scored. Where not all scores are known, as from the sparse
    form, those that are not are passed as NaN.
    """
    with np.errstate(invalid="ignore"):
        given_NL: NDArray[np.bool_] = scores_NL >= rules.thresholds_L
        given_NL &= scores_NL < np.inf
    return complete(given_NL, scores_NL, rules)


def complete(
    given_NL: NDArray[np.bool_], scores_NL: NDArray[np.float32], rules: Rules
) -> NDArray[np.bool_]:
    """Fall back where thresholds gave nothing, then add what lies above; in place.

    Args:
        given_NL: What thresholds gave.
        scores_NL: The scores.
        rules: All but its thresholds.
    """
    if rules.fallback is not None:
        rows = np.flatnonzero(~given_NL.any(axis=1))
        given_NL[rows] = _best(scores_NL[rows], rules.fallback, rules.fallback_floor)
    if rules.hierarchy is not None:
        rules.hierarchy.close(given_NL)
    return given_NL


def decide_cells(
    row_C: NDArray[np.int64],
    column_C: NDArray[np.int64],
    score_C: NDArray[np.float32],
    count: int,
    rules: Rules,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `decide`, of the scores that are known, where they are few of very many.

    Args:
        row_C: Row of each score, rising.
        column_C: Its label; of a row the best score first, of equal ones the first column.
        score_C: The scores.
        count: Rows.
        rules: The decision.

    Returns:
        Row and column of each label given; rows in order, of a row the best score first, and those
        last whose score is not known.
    """
    finite_C = score_C < np.inf
    given_C = finite_C & (score_C >= rules.thresholds_L[column_C])
    if rules.fallback is not None:
        none_N = np.bincount(row_C[given_C], minlength=count) == 0
        first_N = np.searchsorted(row_C, np.arange(count))
        among_C = np.arange(len(row_C)) - first_N[row_C] < rules.fallback
        good_C = finite_C & (score_C >= np.float32(rules.fallback_floor))
        given_C |= none_N[row_C] & among_C & good_C
    rows, columns = row_C[given_C], column_C[given_C]
    if rules.hierarchy is None:
        return rows, columns
    rows, columns = rules.hierarchy.close_cells(rows, columns)
    width = len(rules.thresholds_L)
    key_C = row_C * width + column_C
    order_C = np.argsort(key_C)
    wanted = rows * width + columns
    place = np.searchsorted(key_C, wanted, sorter=order_C).clip(max=max(len(key_C) - 1, 0))
    score = np.full(len(rows), -1.0, np.float32)
    if len(key_C):
        found = order_C[place]
        score = np.where(key_C[found] == wanted, score_C[found], score)
    order = np.lexsort((columns, -score, rows))
    return rows[order], columns[order]


def _best(scores_NL: NDArray[np.float32], k: int, floor: float) -> NDArray[np.bool_]:
    """The k highest finite scores of each row from `floor` on; of equal ones the first."""
    usable_NL = np.isfinite(scores_NL) & (scores_NL >= np.float32(floor))
    left_NL = np.where(usable_NL, scores_NL, np.float32(-1))
    best_NL = np.zeros(scores_NL.shape, np.bool_)
    rows = np.arange(len(scores_NL))
    for _ in range(min(k, scores_NL.shape[1])):  # k is small: sorting would take far longer
        columns = left_NL.argmax(axis=1)
        best_NL[rows, columns] |= left_NL[rows, columns] >= 0
        left_NL[rows, columns] = -1
    return best_NL


def read_decision(location: str, label_set: LabelSet) -> Decision:
    """A decision that `thresholds --output` wrote, local or in an object store.

    Raises:
        ConfigError: If there is none, or it does not fit the model.
    """
    folder, slash, name = location.rpartition("/")
    data = open_storage(folder + slash if slash else ".").read(name) if name else None
    if data is None:
        raise ConfigError(f"{location}: there is no such decision file")
    try:
        content = json.loads(data)
    except ValueError:
        raise ConfigError(f"{location}: not valid JSON") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{location}: not a decision: expected a JSON object")
    try:
        decision = Decision.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{location}: {describe(error, Decision)}") from None
    try:
        decision.check(label_set)
    except ConfigError as error:
        raise ConfigError(f"{location}: {error}") from None
    return decision
