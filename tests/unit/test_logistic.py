"""Logistic regressions fitted together: each is scikit-learn's, whatever its neighbours are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from ray_mlc.training import logistic
from ray_mlc.training.logistic import fit_logistic


def rows(documents: int, words: int, seed: int) -> Any:
    """Sparse rows of unit length, as TF-IDF's are."""
    rng = np.random.default_rng(seed)
    dense = rng.random((documents, words)) * (rng.random((documents, words)) < 0.1)
    dense[:, 0] += 0.01  # no row is empty
    return csr_array(dense / np.sqrt((dense**2).sum(axis=1, keepdims=True)))


def targets(documents: int, seed: int) -> NDArray[np.float32]:
    """Labels from frequent to given once, and one that all but one have."""
    rng = np.random.default_rng(seed)
    columns = [rng.random(documents) < rate for rate in (0.5, 0.2, 0.05)]
    once = np.arange(documents) == 7
    return np.stack([*columns, once, ~once], axis=1).astype(np.float32)


def theirs(features: Any, targets_N: NDArray[np.float32], C: float) -> LogisticRegression:
    known = ~np.isnan(targets_N)
    model = LogisticRegression(C=C, solver="liblinear", tol=1e-10, max_iter=10_000)
    return model.fit(features[known], targets_N[known])


@pytest.mark.parametrize("C", [0.1, 15.0, 1_000.0])
def test_weights_are_those_that_scikit_learn_finds(
    C: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets_NK = rows(300, 80, seed=0), targets(300, seed=1)
    targets_NK[::3, 1] = np.nan
    targets_NK[5:200:7, 4] = np.nan
    expected = [theirs(features, column, C) for column in targets_NK.T]
    logits = np.stack([features @ model.coef_[0] + model.intercept_[0] for model in expected], 1)
    weights_FK, bias_K = fit_logistic(features, targets_NK, C=C)
    near = features @ weights_FK + bias_K
    assert np.abs(1 / (1 + np.exp(-near)) - 1 / (1 + np.exp(-logits))).max() < 1e-3
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-8)
    weights_FK, bias_K = fit_logistic(features, targets_NK, C=C)
    for column, model in enumerate(expected):
        np.testing.assert_allclose(weights_FK[:, column], model.coef_[0], atol=1e-5 * max(1, C))
        np.testing.assert_allclose(bias_K[column], model.intercept_[0], atol=1e-5 * max(1, C))


def test_dense_rows_have_the_weights_of_sparse_ones() -> None:
    features, targets_NK = rows(200, 50, seed=0), targets(200, seed=1)
    sparse_FK, sparse_K = fit_logistic(features, targets_NK, C=15)
    dense_FK, dense_K = fit_logistic(features.toarray(), targets_NK, C=15)
    np.testing.assert_allclose(dense_FK, sparse_FK, atol=2e-3)
    np.testing.assert_allclose(dense_K, sparse_K, atol=2e-3)


def test_a_labels_weights_do_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-8)
    features, targets_NK = rows(200, 50, seed=0), targets(200, seed=1)
    together_FK, together_K = fit_logistic(features, targets_NK, C=15)
    for column in range(targets_NK.shape[1]):
        alone_FK, alone_K = fit_logistic(features, targets_NK[:, [column]], C=15)
        np.testing.assert_allclose(together_FK[:, [column]], alone_FK, atol=1e-6)
        np.testing.assert_allclose(together_K[[column]], alone_K, atol=1e-6)


@pytest.mark.parametrize("C", [1.0, 15.0])
@pytest.mark.parametrize("of", ["nothing", "one word"])
def test_a_label_that_is_solved_at_once_waits_unharmed_for_the_others(C: float, of: str) -> None:
    # its equations have one unknown, or two: nothing at all is left of them after as many steps
    features = rows(300, 80, seed=0).toarray()
    features[:60] = 0
    features[:60, 3] = of == "one word"
    targets_NK = np.repeat(targets(300, seed=1)[:, :1], 60, axis=1)
    for column in range(1, 60):
        targets_NK[:, column] = np.nan
        targets_NK[: 2 + column, column] = np.arange(2 + column) <= column // 2
    weights_FK, bias_K = fit_logistic(csr_array(features), targets_NK, C=C)
    assert np.isfinite(weights_FK).all()
    assert np.isfinite(bias_K).all()
    for column in (0, 1, 2, 30, 59):
        model = theirs(features, targets_NK[:, column], C)
        np.testing.assert_allclose(bias_K[column], model.intercept_[0], atol=5e-3)


@pytest.mark.filterwarnings("error:.*too many steps", "ignore:invalid value")
@pytest.mark.parametrize("factor", [-1, np.nan])
def test_a_label_that_no_step_helps_ends_where_it_is_and_leaves_the_others_alone(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets_NK = rows(200, 50, seed=0), targets(200, seed=1)
    direction = logistic._Block._direction

    def spoilt(block: Any, stopped: Any) -> Any:
        step_FK, step_K = direction(block, stopped)
        wrong_K = np.where(block.columns == 1, np.float32(factor), np.float32(1))
        return step_FK * wrong_K, step_K * wrong_K

    expected_FK, _ = fit_logistic(features, targets_NK, C=15)
    monkeypatch.setattr(logistic._Block, "_direction", spoilt)
    weights_FK, bias_K = fit_logistic(features, targets_NK, C=15)
    rate = targets_NK[:, 1].mean()
    np.testing.assert_allclose(bias_K[1], np.log(rate / (1 - rate)), rtol=1e-6)
    assert not weights_FK[:, 1].any()
    others = [0, 2, 3, 4]
    np.testing.assert_allclose(weights_FK[:, others], expected_FK[:, others], atol=1e-2)


def test_labels_that_take_too_many_steps_are_told_and_keep_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, targets_NK = rows(200, 50, seed=0), targets(200, seed=1)
    losses = []
    for most in (1, 2, 3):
        monkeypatch.setattr(logistic, "_MOST_STEPS", most)
        with pytest.warns(RuntimeWarning, match="5 label.* too many steps"):
            weights_FK, bias_K = fit_logistic(features, targets_NK, C=15)
        logits_NK = features @ weights_FK + bias_K
        costs_NK = np.logaddexp(0, logits_NK) - targets_NK * logits_NK
        squares_K = (weights_FK**2).sum(axis=0) + bias_K**2
        losses.append(squares_K / 2 + 15 * costs_NK.sum(axis=0))
    assert (losses[0] > losses[1]).all()
    assert (losses[1] > losses[2]).all()


def test_rows_that_are_not_annotated_weigh_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-8)
    features, targets_NK = rows(200, 50, seed=0), targets(200, seed=1)[:, :2]
    known = np.arange(200) % 3 > 0
    masked_NK = np.where(known[:, None], targets_NK, np.float32(np.nan))
    found = fit_logistic(features, masked_NK, C=15)
    expected = fit_logistic(features[known], targets_NK[known], C=15)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("C", [15.0, 1e6])
def test_no_step_makes_a_loss_higher_and_each_label_ends_flat(
    C: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets_NK = rows(120, 200, seed=2), targets(120, seed=3)  # separable
    losses: dict[int, list[float]] = {column: [] for column in range(targets_NK.shape[1])}
    step = logistic._Block.step

    def watched(block: Any, stopped: Any) -> None:
        for when in range(2):
            found = block._loss(block.weights_FK, block.bias_K, block.logits_NK)
            for column, loss in zip(block.columns, found, strict=True):
                losses[column].append(loss)
            if when == 0:
                step(block, stopped)

    monkeypatch.setattr(logistic._Block, "step", watched)
    weights_FK, bias_K = fit_logistic(features, targets_NK, C=C)
    for seen in losses.values():
        assert len(seen) >= 4
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(seen))
    scores_NK = 1 / (1 + np.exp(-(features @ weights_FK + bias_K)))
    with_bias = np.hstack([features.toarray(), np.ones((120, 1))])
    slope_FK = np.vstack([weights_FK, bias_K]) + C * (with_bias.T @ (scores_NK - targets_NK))
    at_zero_FK = C * (with_bias.T @ (0.5 - targets_NK))
    ratio_K = np.linalg.norm(slope_FK, axis=0) / np.linalg.norm(at_zero_FK, axis=0)
    rates_K = targets_NK.mean(axis=0)
    assert (ratio_K <= 1.01 * logistic.TOLERANCE * np.minimum(rates_K, 1 - rates_K)).all()


def test_a_step_that_would_go_too_far_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    # at the log-odds of a rare label the loss is flat, and Newton's step is hundreds long; of the
    # two rows that have the word, one has the label and the other would pay for it
    features = csr_array(np.array([[0.0]] * 1_000 + [[1.0]] * 2))
    targets_NK = (np.arange(1_002) == 1_000).astype(np.float32)[:, None]
    tried = 0
    loss = logistic._Block._loss

    def counted(block: Any, *state: Any) -> Any:
        nonlocal tried
        tried += 1
        return loss(block, *state)

    monkeypatch.setattr(logistic._Block, "_loss", counted)
    steps = 0
    step = logistic._Block.step

    def stepped(block: Any, stopped: Any) -> None:
        nonlocal steps
        steps += 1
        step(block, stopped)

    monkeypatch.setattr(logistic._Block, "step", stepped)
    weights_FK, _ = fit_logistic(features, targets_NK, C=1_000)
    assert tried > 2 * steps  # one loss before and one after would do without
    expected = theirs(features, targets_NK[:, 0], 1_000).coef_[0, 0]
    np.testing.assert_allclose(weights_FK[0, 0], expected, atol=1e-3)


def test_what_is_stopped_ends_within_a_step() -> None:
    features, targets_NK = rows(300, 80, seed=0), targets(300, seed=1)
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    weights_FK, bias_K = fit_logistic(features, targets_NK, C=15, stopped=stopped)
    assert asked <= 6
    assert np.isfinite(weights_FK).all()
    assert np.isfinite(bias_K).all()
