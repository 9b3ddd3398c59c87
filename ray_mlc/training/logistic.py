"""Logistic regressions of several labels at a time, over the same sparse rows.

A label's regression reads the whole matrix some fifty times. Labels that are fitted together share
those reads, and begin at their log-odds instead of at zero: at thousands of rare labels this takes
a fifth of the time that scikit-learn's liblinear needs, which fits one after another and travels
most of its steps from a score of one half to one of nearly 0. What is minimized is the same.

The method is Newton's with conjugate gradients (Nocedal & Wright, "Numerical Optimization", 2nd
ed., 2006, algorithm 7.1): all labels of a block take their steps in the same products of a sparse
and a dense matrix, and each has its own step lengths, line search and end. Where to go is found in
float32, which halves what is read; where we are, in float64. There is no randomness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Coarse = NDArray[np.float32]
T = TypeVar("T", np.float32, np.float64)

TOLERANCE = 1e-3
"""Of the gradient, by liblinear's measure: logits differ from the exact ones by some 0.001."""
_MOST_STEPS = 100  # of either loop: Newton's take 5 to 15, the inner one 3 to 20
_FORCING = 0.1  # an inner solution is no better than a tenth while the outer one is far away
_SUFFICIENT = 1e-4  # of the decrease that the slope promises, before a step is halved
_HALVINGS = 40
_NOISE = 1e-14  # of a loss: differences below are rounding, and no reason to halve


def fit_logistic(
    features_NF: Any,
    targets_NK: NDArray[np.float32],
    *,
    C: float,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Array, Array]:
    """Weights and biases that minimize ½(‖w‖² + b²) + C Σ log(1 + exp(∓(w·x + b))).

    This is scikit-learn's `LogisticRegression(solver="liblinear")`, whose bias has a penalty too.

    Args:
        features_NF: Sparse rows in CSR, float64.
        targets_NK: Targets of K labels: 1, 0, or NaN where a row takes no part in a label's model.
            Each label has both.
        C: Inverse strength of the penalty.
        stopped: Asked between steps; once true, what has been found so far is returned.

    Returns:
        Weights, shape [F, K], and biases, shape [K].
    """
    labels = targets_NK.shape[1]
    weights_FK, bias_K = np.zeros((features_NF.shape[1], labels)), np.zeros(labels)
    left = _Block(features_NF, targets_NK, C)
    for _ in range(_MOST_STEPS):
        done = left.gradient()
        weights_FK[:, left.columns], bias_K[left.columns] = left.weights_FK, left.bias_K
        if done.all() or stopped():
            break
        if done.any():
            left.keep(~done)
        left.step(stopped)
    return weights_FK, bias_K


class _Block:
    """Where the labels of a block have got to; those that are done leave it."""

    def __init__(self, features_NF: Any, targets_NK: NDArray[np.float32], C: float) -> None:
        self.features_NF, self.C = features_NF, C
        self.coarse_NF = features_NF.astype(np.float32)
        self.columns = np.arange(targets_NK.shape[1])
        self.known_NK = ~np.isnan(targets_NK)
        self.targets_NK = np.where(self.known_NK, targets_NK, 0.0)
        positives_K, rows_K = self.targets_NK.sum(axis=0), self.known_NK.sum(axis=0)
        # liblinear's criterion: the gradient at zero, times the share of the rarer side
        rarer_K = np.minimum(positives_K, rows_K - positives_K) / rows_K
        slopes_NK = C * np.where(self.known_NK, 0.5 - self.targets_NK, 0.0)
        at_zero_K = _norm(features_NF.T @ slopes_NK, slopes_NK.sum(axis=0))
        self.at_zero_K, self.enough_K = at_zero_K, TOLERANCE * rarer_K * at_zero_K
        self.weights_FK = np.zeros((features_NF.shape[1], len(self.columns)))
        self.bias_K = np.log(positives_K / (rows_K - positives_K))
        self.logits_NK = np.broadcast_to(self.bias_K, targets_NK.shape).copy()

    def gradient(self) -> NDArray[np.bool_]:
        """Look at the slope; which labels are done, shape [K]."""
        with np.errstate(over="ignore"):  # of a logit below −709: its score is 0
            self.scores_NK = 1 / (1 + np.exp(-self.logits_NK))
        slopes_NK = self.C * self.known_NK * (self.scores_NK - self.targets_NK)
        self.slope_FK = self.features_NF.T @ slopes_NK + self.weights_FK
        self.slope_K = slopes_NK.sum(axis=0) + self.bias_K
        self.norm_K = _norm(self.slope_FK, self.slope_K)
        done_K: NDArray[np.bool_] = self.norm_K <= self.enough_K
        return done_K

    def keep(self, kept_K: NDArray[np.bool_]) -> None:
        """Go on with some labels."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, np.ascontiguousarray(value[..., kept_K]))

    def step(self, stopped: Callable[[], bool]) -> None:
        """Newton's step of every label, as long as its loss falls."""
        coarse_FK, coarse_K = self._direction(stopped)
        step_FK, step_K = coarse_FK * self.norm_K, coarse_K * self.norm_K
        moves_NK = self.features_NF @ step_FK + step_K
        before_K = self._loss(self.weights_FK, self.bias_K, self.logits_NK)
        slope_K = _dot(self.slope_FK, self.slope_K, step_FK, step_K)
        length_K = np.ones_like(step_K)
        for _ in range(_HALVINGS):
            after = self.weights_FK + length_K * step_FK, self.bias_K + length_K * step_K
            logits_NK = self.logits_NK + length_K * moves_NK
            allowed_K = before_K + _SUFFICIENT * length_K * slope_K + _NOISE * before_K
            high_K = self._loss(*after, logits_NK) > allowed_K
            if not high_K.any():
                break
            length_K[high_K] /= 2
        (self.weights_FK, self.bias_K), self.logits_NK = after, logits_NK

    def _direction(self, stopped: Callable[[], bool]) -> tuple[Coarse, Coarse]:
        """Solve the Newton equations by conjugate gradients, well enough for where we are."""
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
            bent_K = seen_NK.sum(axis=0) + way_K
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
            turn_K = squares_K / before_K
            way_FK *= turn_K
            way_FK += rest_FK
            way_K = turn_K * way_K + rest_K
        return step_FK, step_K

    def _loss(self, weights_FK: Array, bias_K: Array, logits_NK: Array) -> Array:
        costs_NK = np.logaddexp(0, logits_NK) - self.targets_NK * logits_NK
        fit_K: Array = (self.known_NK * costs_NK).sum(axis=0)
        return _dot(weights_FK, bias_K, weights_FK, bias_K) / 2 + self.C * fit_K


def _dot(
    one_FK: NDArray[T], one_K: NDArray[T], other_FK: NDArray[T], other_K: NDArray[T]
) -> NDArray[T]:
    """Scalar products of weights with biases, shape [K]."""
    products_K: NDArray[T] = np.einsum("fk,fk->k", one_FK, other_FK) + one_K * other_K
    return products_K


def _norm(part_FK: Array, part_K: Array) -> Array:
    norms_K: Array = np.sqrt(_dot(part_FK, part_K, part_FK, part_K))
    return norms_K
