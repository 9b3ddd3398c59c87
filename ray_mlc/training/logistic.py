"""Logistic regressions of several labels at a time, over the same rows.

A label's regression reads the whole matrix fifty to four hundred times. Labels that are fitted
together share those reads, and begin at their log-odds instead of at zero. scikit-learn's liblinear
fits one after another, and travels most of its steps from a score of one half to one of nearly 0:
rare labels take it four to five times as long, the most frequent half as long again. What is
minimized is the same (benchmarks/results/2026-11-30-baseline.md).

The method is Newton's with conjugate gradients (Nocedal & Wright, "Numerical Optimization", 2nd
ed., 2006, algorithm 7.1): all labels of a block take their steps in the same products of a sparse
and a dense matrix, and each has its own step lengths, line search and end. Where to go is found in
float32, of which there is a third less to read; where we are, in float64. There is no randomness.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Coarse = NDArray[np.float32]
Float = TypeVar("Float", np.float32, np.float64)

TOLERANCE = 1e-4
"""Of the gradient, by liblinear's measure and as scikit-learn has it."""
_MOST_STEPS = 200  # of either loop: Newton's take 5 to 15, the inner one 3 to 80
_FORCING = 0.1  # an inner solution is off by a tenth at most, and by less near the end
_SUFFICIENT = 1e-4  # of the decrease that the slope promises, before a step is halved
_HALVINGS = 40
_NOISE = 1e-14  # of a loss: differences below are rounding, and no reason to halve


def fit_logistic(
    features_NF: Any,
    targets_NK: NDArray[np.float32],
    *,
    C: float,
    coarse_NF: Any = None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Array, Array]:
    """Weights and biases that minimize ½(‖w‖² + b²) + C Σ log(1 + exp(∓(w·x + b))).

    This is scikit-learn's `LogisticRegression(solver="liblinear")`, whose bias has a penalty too.

    Args:
        features_NF: Rows in float64, sparse in CSR or dense.
        targets_NK: Targets of K labels: 1, 0, or NaN where a row takes no part in a label's model.
            Each label has both.
        C: Inverse strength of the penalty.
        coarse_NF: `coarse(features_NF)`, where several calls share it.
        stopped: Asked between steps; once true, what has been found so far is returned.

    Returns:
        Weights, shape [F, K], and biases, shape [K].

    Warns:
        RuntimeWarning: If a label took too many steps. Its loss fell with each of them.
    """
    labels = targets_NK.shape[1]
    weights_FK, bias_K = np.zeros((features_NF.shape[1], labels)), np.zeros(labels)
    coarse_NF = coarse(features_NF) if coarse_NF is None else coarse_NF
    left = _Block(features_NF, coarse_NF, targets_NK, C)
    for step in range(_MOST_STEPS + 1):
        done_K = left.look()
        weights_FK[:, left.columns], bias_K[left.columns] = left.weights_FK, left.bias_K
        if done_K.all() or stopped():
            break
        if step == _MOST_STEPS:
            count = np.count_nonzero(~done_K)
            warnings.warn(f"{count} label(s) took too many steps", RuntimeWarning, stacklevel=2)
            break
        if done_K.any():
            left.keep(~done_K)
        left.step(stopped)
    return weights_FK, bias_K


def coarse(features_NF: Any) -> Any:
    """The same rows in float32, with the places of their entries in common."""
    from scipy.sparse import csr_array

    if isinstance(features_NF, np.ndarray):
        return features_NF.astype(np.float32)
    parts = (features_NF.data.astype(np.float32), features_NF.indices, features_NF.indptr)
    return csr_array(parts, shape=features_NF.shape)


class _Block:
    """Where the labels of a block have got to; those that are done leave it.

    Labels are the last axis of every array in here but the features.
    """

    def __init__(
        self, features_NF: Any, coarse_NF: Any, targets_NK: NDArray[np.float32], C: float
    ) -> None:
        """Start at the log-odds of each label."""
        self.features_NF, self.coarse_NF, self.C = features_NF, coarse_NF, C
        self.columns = np.arange(targets_NK.shape[1])
        self.known_NK = ~np.isnan(targets_NK)
        self.targets_NK = np.where(self.known_NK, targets_NK, 0).astype(np.float64)
        positives_K, rows_K = self.targets_NK.sum(axis=0), self.known_NK.sum(axis=0)
        # liblinear's criterion: the gradient at zero, times the share of the rarer side
        rarer_K = np.minimum(positives_K, rows_K - positives_K) / rows_K
        slopes_NK = self.C * np.where(self.known_NK, 0.5 - self.targets_NK, 0.0)
        at_zero_K = _norm(self.features_NF.T @ slopes_NK, slopes_NK.sum(axis=0))
        self.at_zero_K, self.enough_K = at_zero_K, TOLERANCE * rarer_K * at_zero_K
        self.weights_FK = np.zeros((self.features_NF.shape[1], len(self.columns)))
        self.bias_K = np.log(positives_K / (rows_K - positives_K))
        self.logits_NK = np.broadcast_to(self.bias_K, targets_NK.shape).copy()
        self.stuck_K = np.zeros(len(self.columns), np.bool_)

    def look(self) -> NDArray[np.bool_]:
        """Find scores and slopes of where we are; which labels are done, shape [K]."""
        from scipy.special import expit

        self.scores_NK = expit(self.logits_NK)
        slopes_NK = self.C * self.known_NK * (self.scores_NK - self.targets_NK)
        self.slope_FK = self.features_NF.T @ slopes_NK + self.weights_FK
        self.slope_K = slopes_NK.sum(axis=0) + self.bias_K
        self.norm_K = _norm(self.slope_FK, self.slope_K)
        done_K: NDArray[np.bool_] = (self.norm_K <= self.enough_K) | self.stuck_K
        return done_K

    def keep(self, kept_K: NDArray[np.bool_]) -> None:
        """Go on with some labels."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and not name.endswith("_NF"):
                setattr(self, name, np.ascontiguousarray(value[..., kept_K]))

    def step(self, stopped: Callable[[], bool]) -> None:
        """Newton's step of every label, halved until its loss falls; without one it is done."""
        coarse_FK, coarse_K = self._direction(stopped)
        step_FK, step_K = coarse_FK * self.norm_K, coarse_K * self.norm_K
        moves_NK = self.features_NF @ step_FK + step_K
        before_K = self._loss(self.weights_FK, self.bias_K, self.logits_NK)
        slope_K = np.minimum(_dot(self.slope_FK, self.slope_K, step_FK, step_K), 0)
        length_K = np.ones_like(step_K)
        for _ in range(_HALVINGS):
            after = self.weights_FK + length_K * step_FK, self.bias_K + length_K * step_K
            logits_NK = self.logits_NK + length_K * moves_NK
            allowed_K = before_K + _SUFFICIENT * length_K * slope_K + _NOISE * before_K
            self.stuck_K = ~(self._loss(*after, logits_NK) <= allowed_K)  # NaN is not lower either
            if not self.stuck_K.any():
                break
            length_K[self.stuck_K] /= 2
        moved_K = ~self.stuck_K
        self.weights_FK = np.where(moved_K, after[0], self.weights_FK)
        self.bias_K = np.where(moved_K, after[1], self.bias_K)
        self.logits_NK = np.where(moved_K, logits_NK, self.logits_NK)

    def _direction(self, stopped: Callable[[], bool]) -> tuple[Coarse, Coarse]:
        """Solve the Newton equations by conjugate gradients, well enough for where we are.

        In the book's letters: `way` is p, `bent` is Hp, `rest` is −r, `length` is α, `turn` is β.
        """
        features_NF = self.coarse_NF
        curve_NK = self.C * self.known_NK * self.scores_NK * (1 - self.scores_NK)
        curve_NK = curve_NK.astype(np.float32)
        # lengths are relative: the slope itself may be too small for squares in float32
        rest_FK = (-self.slope_FK / self.norm_K).astype(np.float32)
        rest_K = (-self.slope_K / self.norm_K).astype(np.float32)
        enough_K = np.minimum(_FORCING, np.sqrt(self.norm_K / self.at_zero_K))
        step_FK, step_K = np.zeros_like(rest_FK), np.zeros_like(rest_K)
        way_FK, way_K = rest_FK.copy(), rest_K.copy()
        squares_K = _dot(rest_FK, rest_K, rest_FK, rest_K)
        for _ in range(_MOST_STEPS):
            seen_NK = features_NF @ way_FK
            seen_NK += way_K
            seen_NK *= curve_NK
            bent_FK = features_NF.T @ seen_NK
            bent_FK += way_FK
            bent_K = seen_NK.sum(axis=0, dtype=np.float64).astype(np.float32) + way_K
            # a label whose equations are solved waits for the others
            going_K = np.sqrt(squares_K) > enough_K
            curve_K = _dot(way_FK, way_K, bent_FK, bent_K)
            length_K = np.divide(squares_K, curve_K, out=np.zeros_like(curve_K), where=going_K)
            step_FK += length_K * way_FK
            step_K += length_K * way_K
            rest_FK -= length_K * bent_FK
            rest_K -= length_K * bent_K
            before_K, squares_K = squares_K, _dot(rest_FK, rest_K, rest_FK, rest_K)
            if (np.sqrt(squares_K) <= enough_K).all() or stopped():
                break
            # nothing may be left at all of a label that waits
            turn_K = np.divide(squares_K, before_K, out=np.zeros_like(squares_K), where=going_K)
            way_FK *= turn_K
            way_FK += rest_FK
            way_K = turn_K * way_K + rest_K
        return step_FK, step_K

    def _loss(self, weights_FK: Array, bias_K: Array, logits_NK: Array) -> Array:
        costs_NK = np.logaddexp(0, logits_NK) - self.targets_NK * logits_NK
        fit_K: Array = (self.known_NK * costs_NK).sum(axis=0)
        return _dot(weights_FK, bias_K, weights_FK, bias_K) / 2 + self.C * fit_K


def _dot(
    one_FK: NDArray[Float], one_K: NDArray[Float], other_FK: NDArray[Float], other_K: NDArray[Float]
) -> NDArray[Float]:
    """Scalar products of two vectors of weights and a bias, for each label: shape [K]."""
    products_K: NDArray[Float] = np.einsum("fk,fk->k", one_FK, other_FK) + one_K * other_K
    return products_K


def _norm(part_FK: Array, part_K: Array) -> Array:
    norms_K: Array = np.sqrt(_dot(part_FK, part_K, part_FK, part_K))
    return norms_K
