"""A head that starts from a regression on what the encoder gives as it is.

"Linear probing, then fine-tuning" (Kumar et al. 2022, "Fine-tuning can distort pretrained features
and underperform out-of-distribution"). A random head sends random gradients into the encoder, and a
label with a handful of rows is given a handful of steps to find a direction at all; the regression
gives each label one before the first step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ray_mlc.errors import ModelError
from ray_mlc.model.encoder import output_layer
from ray_mlc.training.logistic import coarse, fit_logistic
from ray_mlc.training.loop import Fitter

MOST_DOCUMENTS = 100_000
"""Documents that it is fitted on, drawn at random where there are more: up to a GB in a worker."""
C = 0.1
"""Inverse strength of the penalty, in scikit-learn's sense, for features of the scale below."""
SCALE = 0.2
"""Standard deviation that features are brought to, in the mean: MiniLM's own, for which C was
tried. What is small beside it leaves the bias, which has a penalty too, nearly free."""
_CELLS_AT_ONCE = 1 << 22
"""Documents times labels that are fitted together: 32 MB an array, of a dozen."""


def fit_head(fitter: Fitter) -> int:
    """Give the head the weights of one logistic regression for each label.

    Labels that no row has, or all have, keep what they began with. All ranks end with the same
    head: each reads its share of the documents, and fits its share of the labels.

    Args:
        fitter: At the beginning of a training; its model, and average, are changed.

    Returns:
        Labels that were fitted.

    Raises:
        ModelError: If the model's head does not end in a linear layer with an output per label.
    """
    labels = fitter.train.label_count
    layers = [output_layer(model, labels) for model in (fitter.kept, fitter.model)]
    if layers[0] is None:
        raise ModelError(
            "training.head_init is linear_probe, but the model has no linear layer with an output "
            "for each label: set it to random"
        )
    rows = np.arange(len(fitter.train))
    if len(rows) > MOST_DOCUMENTS:
        rng = np.random.default_rng(fitter.config.seed)
        rows = np.sort(rng.choice(rows, MOST_DOCUMENTS, replace=False))
    features_NH = fitter.head_inputs(layers[0], rows).astype(np.float64)
    mean_H = features_NH.mean(axis=0)
    features_NH -= mean_H
    factor = SCALE / max(float(np.sqrt(np.square(features_NH).mean())), 1e-12)
    features_NH *= factor
    coarse_NH = coarse(features_NH)
    train = fitter.train
    with_L = _by_label(train.positive_offsets, train.positive_columns, rows, labels)
    open_L = _by_label(train.unannotated_offsets, train.unannotated_columns, rows, labels)
    positives_L, opens_L = np.array([*map(len, with_L)]), np.array([*map(len, open_L)])
    both = np.flatnonzero((positives_L > 0) & (positives_L < len(rows) - opens_L))
    mine = both[fitter.rank :: fitter.world_size]
    width = max(1, _CELLS_AT_ONCE // max(1, len(rows)))
    fitted: list[tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]] = []
    for low in range(0, len(mine), width):
        columns = mine[low : low + width]
        targets_NK = np.zeros((len(rows), len(columns)), np.float32)
        for place, column in enumerate(columns.tolist()):
            targets_NK[with_L[column], place] = 1
            targets_NK[open_L[column], place] = np.nan
        weights_HK, bias_K = fit_logistic(features_NH, targets_NK, C=C, coarse_NF=coarse_NH)
        weights_HK *= factor
        fitted.append((columns, weights_HK, bias_K - mean_H @ weights_HK))
    with torch.no_grad():
        for blocks in fitter.gather(fitted):
            for columns, weights_HK, bias_K in blocks:
                for layer in layers:
                    layer.weight[columns] = torch.from_numpy(weights_HK.T).to(layer.weight)
                    if layer.bias is not None:
                        layer.bias[columns] = torch.from_numpy(bias_K).to(layer.bias)
    return len(both)


def _by_label(
    offsets: NDArray[np.int64],
    columns: NDArray[np.int32],
    rows: NDArray[np.intp],
    label_count: int,
) -> list[NDArray[np.intp]]:
    """Places in `rows` of the documents that have a label in a ragged list, for each label."""
    counts = offsets[rows + 1] - offsets[rows]
    places = np.repeat(np.arange(len(rows)), counts)
    before = np.cumsum(counts) - counts
    found = columns[np.repeat(offsets[rows] - before, counts) + np.arange(len(places))]
    order = np.argsort(found, kind="stable")
    ends = np.cumsum(np.bincount(found, minlength=label_count))
    return np.split(places[order], ends[:-1])
