"""Losses: the published formulas cell by cell, and nothing that overflows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from ray_mlc.config import LossConfig, TrainJob
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import load_job
from ray_mlc.training.losses import (
    HEAVIEST,
    asymmetric,
    cross_entropy,
    distribution_balanced,
    focal,
    make_loss,
)

RATES_L = np.array([0.5, 0.1, 0.001, 0.0])
ROWS = 1000
EVERY = [
    LossConfig(),
    LossConfig(pos_weight="balanced"),
    LossConfig(name="focal", alpha=0.25),
    LossConfig(name="asymmetric"),
    LossConfig(name="asymmetric", margin=0.0, gamma_positive=1.0),
    LossConfig(name="asymmetric", margin=0.0, gamma_negative=0.5),
    LossConfig(name="asymmetric", margin=1e-8, gamma_negative=0.0),
    LossConfig(name="distribution_balanced"),
    LossConfig(label_smoothing=0.1),
]
IDS = [config.name + str(index) for index, config in enumerate(EVERY)]


def cells(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((40, 4), generator=generator) * 4
    targets = (torch.rand((40, 4), generator=generator) < 0.3).float()
    return logits, targets


def by_hand(formula: Any) -> NDArray[np.float64]:
    """A formula of probability and target, in float64."""
    logits, targets = cells()
    p = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    return np.array(formula(p, targets.numpy().astype(np.float64)))


def test_focal_is_the_published_formula() -> None:
    found = focal(gamma=2.0, alpha=0.25)(*cells()).numpy()
    expected = by_hand(
        lambda p, y: np.where(
            y == 1, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_asymmetric_is_the_published_formula_and_easy_negatives_cost_nothing() -> None:
    found = asymmetric(gamma_positive=1.0, gamma_negative=4.0, margin=0.05)(*cells()).numpy()

    def formula(p: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        shifted = np.maximum(p - 0.05, 0)
        positive = -(1 - p) * np.log(p)
        return np.where(y == 1, positive, -(shifted**4) * np.log(1 - shifted))

    np.testing.assert_allclose(found, by_hand(formula), rtol=1e-4, atol=1e-7)
    easy = (torch.tensor([[-4.0]]), torch.tensor([[0.0]]))
    assert asymmetric(gamma_positive=0, gamma_negative=4, margin=0.05)(*easy).item() == 0


def test_distribution_balanced_weighs_a_cell_by_what_its_document_repeats() -> None:
    loss = distribution_balanced(np.array([0.5, 0.01]), rows=1000, kappa=0.0, scale=1.0)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    logits = torch.zeros((3, 2))
    weights = (loss(logits, targets) / np.log(2)).numpy()
    inverse = np.array([2.0, 100.0])
    repeated = np.array([2.0, 100.0, 102.0])[:, None]
    expected = 0.1 + 1 / (1 + np.exp(-10 * (inverse / repeated - 0.2)))
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    # the frequent label of a document that also has a rare one hardly counts
    assert weights[2, 0] < 0.4 < 1.0 < weights[2, 1]


def test_distribution_balanced_lets_a_rare_labels_negatives_rest() -> None:
    loss = distribution_balanced(np.array([0.001]), rows=10_000)
    logits = torch.tensor([[-3.0]], requires_grad=True)
    loss(logits, torch.zeros((1, 1))).sum().backward()
    plain = torch.tensor([[-3.0]], requires_grad=True)
    cross_entropy()(plain, torch.zeros((1, 1))).sum().backward()
    assert logits.grad is not None
    assert plain.grad is not None
    assert 0 < logits.grad.item() < 0.1 * plain.grad.item()


def test_without_their_settings_all_are_cross_entropy() -> None:
    expected = torch.nn.functional.binary_cross_entropy_with_logits(*cells(), reduction="none")
    for loss in (
        cross_entropy(),
        focal(gamma=0.0, alpha=None),
        asymmetric(gamma_positive=0.0, gamma_negative=0.0, margin=0.0),
        make_loss(LossConfig(), rates_L=RATES_L, rows=ROWS),
    ):
        torch.testing.assert_close(loss(*cells()), expected, rtol=1e-5, atol=1e-6)


def test_balanced_weights_are_the_odds_against_a_label_up_to_a_limit() -> None:
    loss = make_loss(LossConfig(pos_weight="balanced"), rates_L=RATES_L, rows=ROWS)
    ones, zeros = torch.ones((1, 4)), torch.zeros((1, 4))
    weights = (loss(zeros, ones) / np.log(2)).numpy().ravel()
    np.testing.assert_allclose(weights, [1.0, 9.0, HEAVIEST, HEAVIEST], rtol=1e-5)
    np.testing.assert_allclose(loss(zeros, zeros).numpy(), np.log(2), rtol=1e-6)
    always = make_loss(LossConfig(pos_weight="balanced"), rates_L=np.ones(4), rows=ROWS)
    assert (always(zeros, ones) > 0).all()


def test_smoothing_draws_targets_toward_a_half() -> None:
    logits, targets = cells()
    found = make_loss(LossConfig(label_smoothing=0.2), rates_L=RATES_L, rows=ROWS)(logits, targets)
    expected = cross_entropy()(logits, targets * 0.8 + 0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", EVERY, ids=IDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    logit=st.sampled_from([-1e4, -200.0, -90.0, -20.0, -1e-6, 0.0, 20.0, 90.0, 200.0, 1e4]),
    target=st.sampled_from([0.0, 1.0]),
)
def test_no_logit_makes_a_loss_or_gradient_that_is_not_finite(
    config: LossConfig, logit: float, target: float
) -> None:
    logits = torch.full((2, 4), logit, requires_grad=True)
    targets = torch.full((2, 4), target)
    loss = make_loss(config, rates_L=RATES_L, rows=ROWS)(logits, targets)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert (loss >= 0).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    # downhill is toward the target
    toward = -logits.grad if target else logits.grad
    assert (toward >= -1e-6).all() or config.label_smoothing


@pytest.mark.parametrize("config", EVERY, ids=IDS)
def test_each_loss_learns_labels_that_can_be_learnt(config: LossConfig) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn((300, 6), generator=generator)
    truth = torch.randn((6, 4), generator=generator)
    scores = inputs @ truth
    targets = (scores > scores.quantile(0.8, dim=0)).float()
    layer = torch.nn.Linear(6, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    rates_L = targets.mean(dim=0).numpy().astype(np.float64)
    loss = make_loss(config, rates_L=rates_L, rows=300)
    for _ in range(300):
        optimizer.zero_grad()
        loss(layer(inputs), targets).mean().backward()
        optimizer.step()
    logits = layer(inputs).detach()
    for column in range(4):
        positive, negative = (
            logits[targets[:, column] == 1, column],
            logits[targets[:, column] == 0, column],
        )
        ranked = (positive[:, None] > negative[None]).float().mean().item()
        assert ranked > 0.97, (config.name, column)


def train(*overrides: str) -> TrainJob:
    options = {"encoder": "e", "output": "o"}
    data = ["data.train=t.parquet", "data.validation=v.parquet"]
    return load_job(TrainJob, options=options, overrides=[*data, *overrides])


def test_a_loss_is_named_alone_or_with_its_settings() -> None:
    assert train().training.loss == LossConfig()
    assert train("training.loss=focal").training.loss == LossConfig(name="focal")
    asked = train("training.loss={name: asymmetric, margin: 0.1}").training.loss
    assert (asked.name, asked.margin) == ("asymmetric", 0.1)
    balanced = train("training.loss.pos_weight=balanced").training.loss
    assert balanced.pos_weight == "balanced"


def test_settings_of_another_loss_are_refused() -> None:
    with pytest.raises(ValidationError, match="gamma has no meaning with name: bce"):
        LossConfig(gamma=3.0)
    with pytest.raises(ConfigError, match="pos_weight has no meaning with name: focal"):
        train("training.loss={name: focal, pos_weight: 2.0}")
    with pytest.raises(ConfigError, match="focal"):
        train("training.loss=focul")
