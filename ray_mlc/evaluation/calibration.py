"""Calibrations, fitted on validation examples, and how far scores are from probabilities.

Each label gets a curve of its own, of the kind asked for, by maximum likelihood on its cells, and
all labels together get one. A label's own curve follows its positives, of which rare labels have
few: the two are mixed on the log-odds scale, as thresholds are, the label's own with the weight
n / (n + k), where n counts the rarer of its two classes. k comes from cross-validation over
documents, by the log loss of all held-out cells. Labels that validation shows only one class of
keep to the curve for all labels.

Targets are Platt's (1999): (n₊ + 1) / (n₊ + 2) for positives and 1 / (n₋ + 2) for negatives, so
that a label whose classes lie apart does not become certain of itself.

Cells go into bins of equal width by log-odds, each at the mean of its cells: fits of 6,000
documents × 4,271 labels then cost no more memory than the scores do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.blocks import BLOCK_LABELS, row_blocks, slices
from ray_mlc.evaluation.metrics import annotated_cells
from ray_mlc.evaluation.reliability import reliability
from ray_mlc.evaluation.thresholds import SHRINKAGES, folds_of
from ray_mlc.labels import LabelSet
from ray_mlc.model.calibration import (
    METHODS,
    STEEPEST,
    TILT,
    Calibration,
    Curve,
    log_odds,
    mix,
    sigmoid,
)

BINS = 4096
"""Bins between the lowest and the highest log-odds of some cells."""
FOLDS = 5
"""Parts of the documents, each held out once."""
_DIGITS = 6
_SLOPES = (0.02, STEEPEST)
_INTERCEPTS = (-1e4, 1e4)
_STEPS = 100
_RIDGE = 1e-12
_ENOUGH = 1e-12  # nats per cell that another step may still gain
_IDENTITY = Curve(slope=1.0)


@dataclass(frozen=True)
class Cells:
    """Annotated cells in K bins by log-odds."""

    z_K: NDArray[np.float64]
    """Mean log-odds of each bin's cells, rising."""
    positives_K: NDArray[np.float64]
    """Positives among them."""
    count_K: NDArray[np.float64]
    """How many they are."""

    @classmethod
    def of(cls, targets: NDArray[np.float32], scores: NDArray[np.float32]) -> Cells:
        """Bin the annotated cells of valid targets and scores of any one shape, by rows."""
        blocks = list(row_blocks(targets.shape))
        bounds = [
            (float(seen.min()), float(seen.max()))
            for rows in blocks
            if (seen := scores[rows][~np.isnan(targets[rows])]).size
        ]
        if not bounds:
            return cls(*(np.zeros(0) for _ in range(3)))
        edges = np.array([min(low for low, _ in bounds), max(high for _, high in bounds)])
        low, high = log_odds(edges)
        scale = BINS / (high - low) if high > low else 0.0
        sums = np.zeros((3, BINS))
        for rows in blocks:
            seen = ~np.isnan(targets[rows])
            z, target = log_odds(scores[rows][seen]), targets[rows][seen]
            place = np.minimum(((z - low) * scale).astype(np.int64), BINS - 1)
            for total, weights in zip(sums, (z, target, None), strict=True):
                total += np.bincount(place, weights, minlength=BINS)
        sums = sums[:, sums[2] > 0]
        return cls(sums[0] / sums[2], sums[1], sums[2])

    @property
    def rarer(self) -> int:
        """Cells of the rarer class."""
        positives = self.positives_K.sum()
        return int(min(positives, self.count_K.sum() - positives))

    @property
    def smoothed_K(self) -> NDArray[np.float64]:
        """Mean of Platt's targets in each bin."""
        positives = self.positives_K.sum()
        high = (positives + 1) / (positives + 2)
        low = 1 / (self.count_K.sum() - positives + 2)
        smoothed: NDArray[np.float64] = low + (high - low) * self.positives_K / self.count_K
        return smoothed


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, and how it was found."""

    calibration: Calibration
    shrinkage: float
    """Cells of its rarer class at which a label's own curve has half a say; infinite: all labels
    share one."""
    held_out_NL: NDArray[np.float32]
    """Probabilities of documents that took no part in fitting what gave them, shape [N, L]."""


def fit_calibration(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    *,
    method: str,
    label_set: LabelSet,
    folds: int = FOLDS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> FittedCalibration:
    """A calibration for each label, drawn toward the one for all.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated".
        scores_NL: Scores of the model, uncalibrated.
        method: `temperature`, `platt` or `isotonic`.
        label_set: Labels in column order.
        folds: Parts of the documents, each held out once.
        seed: Of the parts.
        progress: Called with 1 after each label's curve; there are `curves_to_fit` of them.

    Raises:
        ConfigError: If the method is unknown.
        DataError: If shapes differ, a target or score is outside its range, or all cells are of one
            class.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown calibration {method}: expected none, {', '.join(METHODS)}")
    annotated_NL, positive_NL = annotated_cells(targets_NL, scores_NL)
    positives = int(positive_NL.sum())
    if not 0 < positives < int(annotated_NL.sum()):
        which = "positive" if positives == 0 else "negative"
        raise DataError(f"no annotated label is {which}: there is nothing to calibrate on")
    parts = list(folds_of(len(targets_NL), folds, seed))
    fits = [_Fit.of(targets_NL[rest], scores_NL[rest], method, progress) for _, rest in parts]
    losses = np.zeros(len(SHRINKAGES))
    for (part, _), fit in zip(parts, fits, strict=True):
        losses += fit.losses(targets_NL[part], scores_NL[part])
    # of equally good ones the strongest
    chosen = SHRINKAGES[len(SHRINKAGES) - 1 - int(np.argmin(losses[::-1]))]
    held_out_NL = np.empty(scores_NL.shape, np.float32)
    for (part, _), fit in zip(parts, fits, strict=True):
        held_out_NL[part] = fit.probabilities(scores_NL[part], chosen)
    whole = _Fit.of(targets_NL, scores_NL, method, progress)
    return FittedCalibration(whole.calibration(chosen, label_set), chosen, held_out_NL)


def curves_to_fit(labels: int, documents: int, folds: int = FOLDS) -> int:
    """Curves that `fit_calibration` fits: of each label without each part, and without none."""
    return labels * (min(folds, documents) + 1)


def calibration_error(
    targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32]
) -> dict[str, float | None]:
    """How far scores, or calibrated probabilities, are from what they say.

    Returns:
        `ece` (expected calibration error of all cells together, see `evaluation.reliability`),
        `ece_macro` (mean of that of each label, the classwise error of Kull et al. 2019: errors of
        labels that lean to either side do not cancel), `log_loss` (nats per cell); None without an
        annotated cell.
    """
    own = [
        reliability(targets_NL[:, [column]], scores_NL[:, [column]]).ece
        for column in range(scores_NL.shape[1])
    ]
    known = [error for error in own if error is not None]
    cells, loss = 0, 0.0
    for rows in row_blocks(targets_NL.shape):
        seen = ~np.isnan(targets_NL[rows])
        z, target = log_odds(scores_NL[rows][seen]), targets_NL[rows][seen]
        loss += float(_nats(z, target).sum())
        cells += len(z)
    return {
        "ece": reliability(targets_NL, scores_NL).ece,
        "ece_macro": float(np.mean(known)) if known else None,
        "log_loss": loss / cells if cells else None,
    }


@dataclass(frozen=True)
class _Fit:
    """Curves of some documents, not yet mixed."""

    method: str
    pooled: Curve
    own: list[Curve | None]
    """None where only one class was seen."""
    rarer_L: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        targets_NL: NDArray[np.float32],
        scores_NL: NDArray[np.float32],
        method: str,
        progress: Callable[[int], None] | None,
    ) -> _Fit:
        every = Cells.of(targets_NL, scores_NL)
        own: list[Curve | None] = []
        rarer = []
        for column in range(targets_NL.shape[1]):
            cells = Cells.of(targets_NL[:, [column]], scores_NL[:, [column]])
            own.append(_fit_curve(cells, method) if cells.rarer else None)
            rarer.append(cells.rarer)
            if progress is not None:
                progress(1)
        pooled = _fit_curve(every, method) if every.rarer else _IDENTITY
        return cls(method, pooled, own, np.array(rarer, np.float64))

    def weights_L(self, shrinkage: float) -> NDArray[np.float64]:
        """Say of each label's own curve."""
        if np.isinf(shrinkage):
            return np.zeros(len(self.own))
        weight_L: NDArray[np.float64] = self.rarer_L / np.maximum(self.rarer_L + shrinkage, 1)
        return weight_L

    def _blocks(
        self, scores_NL: NDArray[np.float32]
    ) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
        """Some columns at a time: log-odds by their own curves, and by the one for all."""
        for columns in slices(len(self.own), BLOCK_LABELS):
            z_NB = log_odds(scores_NL[:, columns])
            pooled_NB = self.pooled(z_NB)
            own_NB = pooled_NB.copy()
            for place, curve in enumerate(self.own[columns]):
                if curve is not None:
                    own_NB[:, place] = curve(z_NB[:, place])
            yield columns, own_NB, pooled_NB

    def losses(
        self, targets_NL: NDArray[np.float32], scores_NL: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Log loss of other documents, in nats of all cells, for each of `SHRINKAGES`."""
        losses = np.zeros(len(SHRINKAGES))
        weights = [self.weights_L(shrinkage) for shrinkage in SHRINKAGES]
        for columns, own_NB, pooled_NB in self._blocks(scores_NL):
            targets_NB = targets_NL[:, columns]
            for index, weight_L in enumerate(weights):
                nats_NB = _nats(mix(own_NB, pooled_NB, weight_L[columns]), targets_NB)
                losses[index] += np.nansum(nats_NB)
        return losses

    def probabilities(
        self, scores_NL: NDArray[np.float32], shrinkage: float
    ) -> NDArray[np.float32]:
        weight_L = self.weights_L(shrinkage)
        result_NL = np.empty(scores_NL.shape, np.float32)
        for columns, own_NB, pooled_NB in self._blocks(scores_NL):
            result_NL[:, columns] = sigmoid(mix(own_NB, pooled_NB, weight_L[columns]))
        return result_NL

    def calibration(self, shrinkage: float, label_set: LabelSet) -> Calibration:
        per_label = {
            name: curve.model_copy(update={"weight": round(weight, _DIGITS)})
            for name, curve, weight in zip(
                label_set.names, self.own, self.weights_L(shrinkage).tolist(), strict=True
            )
            if curve is not None and weight > 0
        }
        return Calibration(method=self.method, pooled=self.pooled, per_label=per_label)  # type: ignore[arg-type]


def _nats(z: NDArray[np.float64], targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Binary cross-entropy of each cell at log-odds z; NaN where nobody annotated."""
    nats: NDArray[np.float64] = np.logaddexp(0, z) - targets * z
    return nats


def _fit_curve(cells: Cells, method: str) -> Curve:
    """The likeliest curve for cells of both classes."""
    if method == "isotonic":
        return _fit_knots(cells)
    return _fit_line(cells, with_intercept=method == "platt")


def _fit_line(cells: Cells, *, with_intercept: bool) -> Curve:
    share = cells.count_K / cells.count_K.sum()
    target = cells.smoothed_K
    # around their mean, so that the search can move slope and height one by one
    middle = float((share * cells.z_K).sum()) if with_intercept else 0.0
    z = cells.z_K - middle
    height = log_odds((share * target).sum()).item() if with_intercept else 0.0
    if np.ptp(z) > 0 or not with_intercept:
        slope, height = _likeliest(z, target, share, 0.0, height, (True, with_intercept))
    else:  # scores that are all the same say nothing of a slope
        slope = 1.0
    bounded = float(np.clip(slope, *_SLOPES))
    if bounded != slope and with_intercept:
        _, height = _likeliest(z, target, share, bounded, height, (False, True))
    intercept = float(np.clip(height - bounded * middle, *_INTERCEPTS))
    return Curve(slope=round(bounded, _DIGITS), intercept=round(intercept, _DIGITS))


def _likeliest(
    z: NDArray[np.float64],
    target: NDArray[np.float64],
    share: NDArray[np.float64],
    slope: float,
    height: float,
    free: tuple[bool, bool],
) -> tuple[float, float]:
    """Slope and height of least log loss, from a first guess of which some is free to move.

    Newton's method with steps halved until they help, as Lin, Lin and Weng 2007 give it for
    Platt's problem. For two numbers a library would take longer to start its threads.
    """

    def loss(slope: float, height: float) -> float:
        return float((share * _nats(slope * z + height, target)).sum())

    best = loss(slope, height)
    for _ in range(_STEPS):
        given = sigmoid(slope * z + height)
        wrong, bend = share * (given - target), share * given * (1 - given)
        down = (float((wrong * z).sum()) * free[0], float(wrong.sum()) * free[1])
        across = float((bend * z).sum()) * (free[0] and free[1])
        # what may not move, and what is flat, stays where it is
        own = (float((bend * z * z).sum()) + _RIDGE, float(bend.sum()) + _RIDGE)
        volume = own[0] * own[1] - across**2
        step = (
            (own[1] * down[0] - across * down[1]) / volume,
            (own[0] * down[1] - across * down[0]) / volume,
        )
        gain = step[0] * down[0] + step[1] * down[1]
        if gain < _ENOUGH:
            break
        rate = 1.0
        while (found := loss(slope - rate * step[0], height - rate * step[1])) > (
            best - 1e-4 * rate * gain
        ):
            rate /= 2
            if rate < 1e-12:
                return slope, height
        slope, height, best = slope - rate * step[0], height - rate * step[1], found
    return slope, height


def _fit_knots(cells: Cells) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(
        cells.z_K, cells.smoothed_K, sample_weight=cells.count_K
    )
    share = fitted.y_thresholds_
    logits = np.round(fitted.X_thresholds_, _DIGITS)
    calibrated = np.maximum.accumulate(np.round(np.log(share) - np.log1p(-share), _DIGITS))
    logits, first = np.unique(logits, return_index=True)
    return Curve(slope=TILT, logits=logits.tolist(), calibrated=calibrated[first].tolist())


def describe_fit(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    found: FittedCalibration,
    label_set: LabelSet,
) -> dict[str, Any]:
    """What a calibration does, for tables and `--json`.

    Returns:
        `method`, `shrinkage` (null: all labels share one curve), `own` (labels that have a curve of
        their own), and `calibration_error` of `before`, `fitted` (flattering) and `held_out`.
    """
    errors = {
        "before": scores_NL,
        "fitted": found.calibration.probabilities(scores_NL, label_set),
        "held_out": found.held_out_NL,
    }
    return {
        "method": found.calibration.method,
        "shrinkage": None if np.isinf(found.shrinkage) else found.shrinkage,
        "own": len(found.calibration.per_label),
        "error": {name: calibration_error(targets_NL, values) for name, values in errors.items()},
    }
