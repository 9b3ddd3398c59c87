"""What training minimizes: a loss per cell, so that cells without annotation can be left out.

All are binary: one independent decision per label. Those after the first answer to imbalance, of
which multi-label data has two kinds: labels are rare, and nearly all cells are negative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ray_mlc.config import LossConfig

CellLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits and targets, both [B, L] in float32, to the loss of each cell [B, L]. Targets are 0 or 1:
of cells without annotation the caller leaves the result out, but NaN would reach the gradient."""
HEAVIEST = 100.0
"""Largest weight that `pos_weight: balanced` gives, and one over the smallest: a label seen once in
a million examples would otherwise outweigh all others in the batch that it is in."""


def make_loss(config: LossConfig, *, rates_L: NDArray[np.float64], rows: int) -> CellLoss:
    """The loss that a job asks for.

    Args:
        config: Which, and its settings.
        rates_L: Share of the annotated training examples that have each label, shape [L].
        rows: Training examples.
    """
    match config.name:
        case "focal":
            loss = focal(gamma=config.gamma, alpha=config.alpha)
        case "asymmetric":
            loss = asymmetric(
                gamma_positive=config.gamma_positive,
                gamma_negative=config.gamma_negative,
                margin=config.margin,
            )
        case "distribution_balanced":
            loss = distribution_balanced(rates_L, rows=rows)
        case _:
            loss = cross_entropy(_positive_weights(config.pos_weight, rates_L, rows))
    if not config.label_smoothing:
        return loss
    amount = config.label_smoothing
    return lambda logits, targets: loss(logits, targets * (1 - amount) + amount / 2)


def _positive_weights(
    setting: str | float | None, rates_L: NDArray[np.float64], rows: int
) -> torch.Tensor | None:
    if setting is None:
        return None
    if not isinstance(setting, str):
        return torch.full((len(rates_L),), float(setting))
    odds_L = (1 - _inside(rates_L, rows)) / _inside(rates_L, rows)
    return torch.from_numpy(np.clip(odds_L, 1 / HEAVIEST, HEAVIEST).astype(np.float32))


def _inside(rates_L: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Rates above 0 and below 1: labels never or always seen are off by half a document."""
    half = 0.5 / max(1, rows)
    inside_L: NDArray[np.float64] = np.clip(rates_L, half, 1 - half)
    return inside_L


def cross_entropy(positive_weight_L: torch.Tensor | None = None) -> CellLoss:
    """Binary cross-entropy; positives of a label may weigh more than its negatives."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = None if positive_weight_L is None else positive_weight_L.to(logits.device)
        return binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weight, reduction="none"
        )

    return loss


def focal(*, gamma: float, alpha: float | None) -> CellLoss:
    """Focal loss: cells that are decided well already count less (Lin et al. 2017, equation 5).

    Args:
        gamma: How much less: a cell right with probability p has the weight (1 - p) ** gamma.
        alpha: Share of the weight that positives get; None: both alike, with weight 1.
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        positive = (logsigmoid(-logits) * gamma).exp() * logsigmoid(logits)
        negative = (logsigmoid(logits) * gamma).exp() * logsigmoid(-logits)
        if alpha is not None:
            positive, negative = alpha * positive, (1 - alpha) * negative
        return -(targets * positive + (1 - targets) * negative)

    return loss


def asymmetric(*, gamma_positive: float, gamma_negative: float, margin: float) -> CellLoss:
    """Asymmetric loss: easy negatives count less, and the easiest not at all.

    Ridnik et al. 2021, equations 2 to 7: focal loss with exponents of its own for positives and
    negatives, and negatives' probabilities shifted down.

    Args:
        gamma_positive: Focusing exponent of positives.
        gamma_negative: Focusing exponent of negatives.
        margin: Probability by which negatives are shifted; those below cost nothing.
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        positive = (logsigmoid(-logits) * gamma_positive).exp() * logsigmoid(logits)
        # above 0: the slope of its power is infinite there for exponents below 1
        shifted = (torch.sigmoid(logits) - margin).clamp(min=1e-12)
        # 1 - p is exact where p is nearly 1; at most 1, so that easy negatives cost nothing
        kept = (torch.sigmoid(-logits) + margin).clamp(max=1)
        log_not = kept.log() if margin else logsigmoid(-logits)
        negative = shifted.pow(gamma_negative) * log_not
        return -(targets * positive + (1 - targets) * negative)

    return loss


def distribution_balanced(
    rates_L: NDArray[np.float64],
    *,
    rows: int,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    scale: float = 2.0,
    kappa: float = 0.05,
) -> CellLoss:
    """Distribution-balanced loss for long tails (Wu et al. 2020, equations 3 to 8).

    A label's cell in a document weighs what sampling every label alike would give it, over what
    the document's labels together bring it; and a negative's loss flattens out, so that a label
    that is nearly always absent is not pushed down without end.

    Args:
        rates_L: Share of the examples that have each label.
        rows: Examples.
        alpha: Least weight of a cell.
        beta: How sharply weights saturate.
        mu: Weight at which they are half saturated.
        scale: Lambda, by which negatives' logits are multiplied, and their loss divided.
        kappa: Scale of the class biases that logits are shifted by.
    """
    smoothed = _inside(rates_L, rows)
    inverse_L = torch.from_numpy((1 / smoothed).astype(np.float32))
    bias_L = torch.from_numpy((kappa * np.log(1 / smoothed - 1)).astype(np.float32))

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        inverse = inverse_L.to(logits.device)
        positive = torch.nan_to_num(targets).round()  # smoothed or unannotated
        # of a document without labels nothing is repeated: its cells have the full weight
        repeated_B1 = (positive * inverse).sum(dim=1, keepdim=True)
        ratio = inverse / repeated_B1.clamp(min=torch.finfo(torch.float32).tiny)
        weight = alpha + torch.sigmoid(beta * (ratio.clamp(max=1e6) - mu))
        shifted = logits - bias_L.to(logits.device)
        yes = -logsigmoid(shifted)
        no = -logsigmoid(-scale * shifted) / scale
        return weight * (targets * yes + (1 - targets) * no)

    return loss
