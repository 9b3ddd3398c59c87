"""Thresholds that turn scores into labels, fitted on validation examples.

A label is given where `score >= threshold`, compared in float32. What a threshold does only changes
at the scores seen, so these are all there is to try: each search below is exact, and costs one sort
of its cells. A threshold of each label's own follows its positives, of which rare labels have few:
it is drawn toward the one for all labels, as far as cross-validation finds right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError
from ray_mlc.evaluation.metrics import annotated_cells
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision

_DEFAULT = 0.5
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
NOTHING = 1.0
"""The threshold that gives a label to a score of exactly 1 alone."""
SHRINKAGES = (0.0, 2.0, 8.0, 32.0, 128.0, np.inf)
"""What cross-validation chooses from: positives at which a label's own threshold has half a say."""
_SPELLINGS = {
    r"f1|f1_micro": ("fbeta", None),
    r"fbeta=(.+)": ("fbeta", (0.0, 100.0)),
    r"precision>=(.+)": ("precision", (0.0, 1.0)),
    r"rate<=(.+)": ("rate", (0.0, 1.0)),
}


@dataclass(frozen=True)
class Curve:
    """What each threshold does to some cells: C candidates, rising."""

    lowest_in_C: NDArray[np.float32]
    """The lowest score that gets a label."""
    highest_out_C: NDArray[np.float32]
    """The highest score that gets none; 0 if all do."""
    given_C: NDArray[np.int64]
    """Cells that get a label."""
    hits_C: NDArray[np.int64]
    """Those of them that should."""
    positives: int
    """Cells that should."""
    cells: int
    """Annotated cells."""

    @classmethod
    def of(cls, targets: NDArray[np.float32], scores: NDArray[np.float32]) -> Curve:
        """Sort the annotated cells of targets and scores of any one shape."""
        annotated, positive = annotated_cells(targets, scores)
        # a threshold below 1 cannot tell 1 from the float32 next to it: here they are one score
        scores_K = np.minimum(scores[annotated], _BELOW_ONE, dtype=np.float32)
        positives_P = np.minimum(scores[positive], _BELOW_ONE, dtype=np.float32)
        scores_K.sort()
        positives_P.sort()
        candidates_C = np.unique(scores_K[scores_K > 0])
        below_C = np.searchsorted(scores_K, candidates_C, side="left")
        missed_C = np.searchsorted(positives_P, candidates_C, side="left")
        return cls(
            lowest_in_C=candidates_C,
            highest_out_C=np.where(below_C > 0, scores_K[below_C - 1], np.float32(0)),
            given_C=len(scores_K) - below_C,
            hits_C=len(positives_P) - missed_C,
            positives=len(positives_P),
            cells=len(scores_K),
        )

    def threshold(self, index: int) -> float:
        """A float32 midway between the two scores that candidate `index` tells apart."""
        low, high = self.highest_out_C[index], self.lowest_in_C[index]
        middle = np.float32((float(low) + float(high)) / 2)
        # between neighbouring floats the middle is rounded to one of them, perhaps to `low`
        return float(middle if middle > low else high)


@dataclass(frozen=True)
class Objective:
    """What thresholds are fitted for."""

    kind: Literal["fbeta", "precision", "rate"]
    """`fbeta`: as much of it as possible. `precision`: as many labels as it allows. `rate`: no more
    labels than that."""
    value: float
    """Beta, lowest precision, or largest share of documents that get a label."""
    name: str
    """As it was asked for."""

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read `f1`, `fbeta=2`, `precision>=0.9` or `rate<=0.01`.

        Raises:
            ConfigError: If it is none of these, or its number is out of range.
        """
        for pattern, (kind, bounds) in _SPELLINGS.items():
            found = re.fullmatch(pattern, text.replace(" ", ""))
            if not found:
                continue
            try:
                value = float(found[1]) if bounds else 1.0
            except ValueError:
                break
            if bounds and not bounds[0] < value <= bounds[1]:
                raise ConfigError(
                    f"objective {text}: expected a number above {bounds[0]:g} and at most "
                    f"{bounds[1]:g}"
                )
            return cls(kind, value, text)  # type: ignore[arg-type]
        raise ConfigError(
            f"unknown objective {text}: expected f1, fbeta=2, precision>=0.9 or rate<=0.01"
        )

    def best(self, curve: Curve) -> float | None:
        """The threshold that serves it best on some cells; of equally good ones the highest.

        Returns:
            A threshold above 0, `NOTHING` if only that keeps to the objective, or None if the cells
            say nothing: none is annotated, or none is positive where that is what counts.
        """
        if not curve.cells:
            return None
        if self.kind == "rate":
            allowed = np.flatnonzero(curve.given_C <= self.value * curve.cells)
            return curve.threshold(int(allowed[0])) if len(allowed) else NOTHING
        if not curve.positives or not curve.hits_C.any():
            return None
        if self.kind == "precision":
            holds_C = curve.hits_C >= self.value * curve.given_C
            worth_C = np.where(holds_C, curve.hits_C, 0)
        else:
            weight = self.value**2
            worth_C = (1 + weight) * curve.hits_C / (curve.given_C + weight * curve.positives)
        best = len(worth_C) - 1 - int(np.argmax(worth_C[::-1]))
        return curve.threshold(best) if worth_C[best] > 0 else NOTHING

    def worth(self, targets_NL: NDArray[np.float32], given_NL: NDArray[np.bool_]) -> float:
        """How well decisions serve it, to compare ways of fitting.

        F-beta is the mean of micro and macro: the one forgets rare labels, the other is decided by
        them. A precision that is not kept counts below all that is.
        """
        hits_L, given_L, positives_L = _counts(targets_NL, given_NL)
        if self.kind == "fbeta":
            weight = self.value**2
            sums_L = given_L + weight * positives_L
            macro = np.mean((1 + weight) * hits_L / np.maximum(sums_L, 1))
            micro = (1 + weight) * hits_L.sum() / max(1.0, float(sums_L.sum()))
            return float(macro + micro) / 2
        precision = float(hits_L.sum() / max(1, given_L.sum()))
        if self.kind == "precision" and precision < self.value:
            return precision - self.value
        return float(hits_L.sum() / max(1, positives_L.sum()))


def reached(targets_NL: NDArray[np.float32], given_NL: NDArray[np.bool_]) -> dict[str, float]:
    """Precision and recall over all annotated cells together, and the largest rate of a label."""
    hits_L, given_L, positives_L = _counts(targets_NL, given_NL)
    annotated_L = np.maximum((~np.isnan(targets_NL)).sum(axis=0), 1)
    return {
        "precision": float(hits_L.sum() / max(1, given_L.sum())),
        "recall": float(hits_L.sum() / max(1, positives_L.sum())),
        "largest_rate": float((given_L / annotated_L).max(initial=0)),
    }


def _counts(
    targets_NL: NDArray[np.float32], given_NL: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each label's annotated cells: those given rightly, those given, and the positives."""
    positive_NL = targets_NL == 1
    given_NL = given_NL & ~np.isnan(targets_NL)
    return (positive_NL & given_NL).sum(axis=0), given_NL.sum(axis=0), positive_NL.sum(axis=0)


@dataclass(frozen=True)
class Thresholds:
    """Fitted thresholds, and how they were found."""

    all_labels: float
    """The one that would serve all labels."""
    own_L: NDArray[np.float32]
    """Threshold of each label, shape [L]."""
    shrinkage: float | None
    """Positives at which a label's own threshold has half a say; infinite: all labels share one.
    None: it was not a question."""
    held_out_NL: NDArray[np.bool_] | None
    """Decisions on documents that took no part in fitting the thresholds that made them, shape
    [N, L]: what to expect of others. None: nothing was held out."""

    def decision(self, label_set: LabelSet, objective: str) -> Decision:
        """What a model folder keeps of it: thresholds that differ from the one for all labels."""
        own = {
            name: float(threshold)
            for name, threshold in zip(label_set.names, self.own_L, strict=True)
            if threshold != np.float32(self.all_labels)
        }
        return Decision(threshold=self.all_labels, per_label=own, objective=objective)


def fit_global_threshold(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    *,
    objective: str = "f1",
) -> float:
    """The one threshold for all labels that serves `objective` best on these examples.

    It lies midway between the lowest score that gets a label and the highest that gets none, so
    that neither sits on the edge, and is itself a float32: `scores_NL >= np.float32(threshold)`
    makes the very decisions that were counted. Of equally good thresholds the highest is taken.
    A score of exactly 0 never gets a label, and a score of exactly 1 always does.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated" (left out), shape [N, L].
        scores_NL: Probabilities in [0, 1], shape [N, L].
        objective: See `Objective.parse`.

    Returns:
        A threshold above 0 and at most 1; 0.5 if no positive has a score above 0.

    Raises:
        ConfigError: If the objective is unknown.
        DataError: If shapes differ or a target or score is outside its range.
    """
    found = Objective.parse(objective).best(Curve.of(targets_NL, scores_NL))
    return _DEFAULT if found is None else found


def fit_thresholds(
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    *,
    objective: str,
    per_label: bool = True,
    folds: int = 5,
    seed: int = 0,
) -> Thresholds:
    """A threshold for each label, or one for all.

    A label's own threshold is the best one on its own cells. It is then drawn toward the one for
    all labels, as a weighted mean of the two on the logit scale: with n positives its own has the
    weight n / (n + k), an empirical-Bayes form of shrinkage. k comes from cross-validation over
    documents, by `Objective.worth` of all held-out decisions together. A rate needs no positives,
    and so no shrinkage.

    Args:
        targets_NL: 1, 0, or NaN for "not annotated".
        scores_NL: Probabilities.
        objective: See `Objective.parse`.
        per_label: Whether labels may have thresholds of their own.
        folds: Parts of the documents, each held out once.
        seed: Of the parts.

    Raises:
        ConfigError: If the objective is unknown.
        DataError: If shapes differ or a target or score is outside its range.
    """
    wanted = Objective.parse(objective)
    count = targets_NL.shape[1]
    parts = list(folds_of(len(targets_NL), folds, seed))
    fits = [_Fit.of(targets_NL[rest], scores_NL[rest], wanted, per_label) for _, rest in parts]
    choices = SHRINKAGES if per_label and wanted.kind != "rate" else (0.0 if per_label else np.inf,)
    held_out: dict[float, NDArray[np.bool_]] = {}
    for shrinkage in choices:
        given_NL = np.zeros(targets_NL.shape, np.bool_)
        for (part, _), fit in zip(parts, fits, strict=True):
            given_NL[part] = scores_NL[part] >= fit.thresholds_L(shrinkage)
        held_out[shrinkage] = given_NL
    # of equally good ones the strongest: nothing speaks for the labels' own thresholds then
    worth = {shrinkage: wanted.worth(targets_NL, given) for shrinkage, given in held_out.items()}
    chosen = max(choices, key=lambda shrinkage: (worth[shrinkage], shrinkage))
    fit = _Fit.of(targets_NL, scores_NL, wanted, per_label)
    own_L = fit.thresholds_L(chosen)
    assert own_L.shape == (count,)
    return Thresholds(
        all_labels=fit.all_labels,
        own_L=own_L,
        shrinkage=chosen if len(choices) > 1 else None,
        held_out_NL=held_out[chosen] if parts else None,
    )


@dataclass(frozen=True)
class _Fit:
    """Unshrunk thresholds of some documents."""

    all_labels: float
    own_L: NDArray[np.float64]
    """NaN where the label's cells say nothing."""
    positives_L: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        targets_NL: NDArray[np.float32],
        scores_NL: NDArray[np.float32],
        wanted: Objective,
        per_label: bool,
    ) -> _Fit:
        pooled = wanted.best(Curve.of(targets_NL, scores_NL))
        own = []
        for column in range(targets_NL.shape[1]) if per_label else ():
            found = wanted.best(Curve.of(targets_NL[:, [column]], scores_NL[:, [column]]))
            own.append(np.nan if found is None else found)
        positives_L = (targets_NL == 1).sum(axis=0)
        own_L = np.array(own) if per_label else np.full(targets_NL.shape[1], np.nan)
        return cls(_DEFAULT if pooled is None else pooled, own_L, positives_L)

    def thresholds_L(self, shrinkage: float) -> NDArray[np.float32]:
        shared_L = np.full(len(self.own_L), self.all_labels)
        if np.isinf(shrinkage):
            return shared_L.astype(np.float32)
        known_L = ~np.isnan(self.own_L)
        if shrinkage == 0:
            return np.where(known_L, self.own_L, shared_L).astype(np.float32)
        weight_L = np.where(known_L, self.positives_L / (self.positives_L + shrinkage), 0.0)
        own_L = np.where(known_L, self.own_L, self.all_labels)
        mixed_L = weight_L * _logit(own_L) + (1 - weight_L) * _logit(shared_L)
        result_L = (1 / (1 + np.exp(-mixed_L))).astype(np.float32)
        # a score of 0 never gets a label
        return np.maximum(result_L, np.nextafter(np.float32(0), np.float32(1)))


def _logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(values, 1e-30, 1 - 1e-12)  # `NOTHING` is far away, not infinitely far
    logits: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return logits


def folds_of(
    count: int, folds: int, seed: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Documents held out, and the rest, for each fold."""
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, min(folds, count)) if count else ():
        yield np.sort(part), np.setdiff1d(np.arange(count), part)
