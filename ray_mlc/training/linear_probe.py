"""A head that starts from a regression on what the encoder gives as it is.

"Linear probing, then fine-tuning" (Kumar et al. 2022, "Fine-tuning can distort pretrained features
and underperform out-of-distribution"). A random head sends random gradients into the encoder, and a
label with a handful of rows is given a handful of steps to find a direction at all; the regression
gives each label one before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_mlc.errors import ModelError
from ray_mlc.model.encoder import output_layer
from ray_mlc.training.logistic import coarse, fit_logistic
from ray_mlc.training.loop import Fitter

MOST_CELLS = 100_000 * 384
"""Documents times features that it is fitted on; where there are more, documents are drawn at
random. Half a GB in a worker, and as much again for the labels that are fitted together."""
SCALE = 0.02
"""Standard deviation that features are brought to, in the mean."""
C = 10.0
"""Inverse strength of the penalty, in scikit-learn's sense, for features of that scale.

What counts for the weights is C times the square of the scale. The bias has a penalty as well, and
the larger C is, the less: the scores of a label add up to |bias| / C documents more than have it.
"""
ROUNDING = {None: 1e-5, torch.bfloat16: 1e-2}
"""What differs by less, relative to its size, is rounding: by the precision of autocast."""
_CELLS_AT_ONCE = 1 << 22
"""Documents times labels that are fitted together: 32 MB an array, of a dozen."""


def _probed_layer(model: Any, label_count: int) -> Any:
    """The linear layer that a head ends in.

    Raises:
        ModelError: If there is none with an output and a bias for each label.
    """
    layer = output_layer(model, label_count)
    if layer is None or layer.bias is None:
        raise ModelError(
            "training.head_init is linear_probe, but the model has no linear layer with an output "
            "and a bias for each label: set it to random"
        )
    return layer


def check_head(model: Any, label_count: int) -> None:
    """Refuse a model whose head cannot be fitted, by a forward pass of a few tokens.

    Raises:
        ModelError: If it ends in no such layer, or that sees something else than a vector a
            document.
    """
    seen: list[int] = []

    def see(module: Any, given: tuple[torch.Tensor, ...]) -> None:
        del module
        seen.append(given[0].dim())

    handle = _probed_layer(model, label_count).register_forward_pre_hook(see)
    ids = torch.ones((1, 4), dtype=torch.long)
    try:
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        handle.remove()
    if seen != [2]:
        raise ModelError(
            "training.head_init is linear_probe, but the head of this model does not see one "
            "vector a document: set it to random"
        )


def fit_head(fitter: Fitter, told: Callable[[float], None] = lambda share: None) -> int:
    """Give the head the weights of one logistic regression for each label.

    Labels that none of the rows has, or all have, keep what they began with; so do those that came
    with the model, and all where the encoder gives the same for each document. What is minimized
    is cross-entropy, whatever `training.loss` says; of a document in windows the mean of what the
    head sees is taken, however they are joined. All ranks end with the same head: each reads its
    share of the documents, and fits its share of the labels.

    Args:
        fitter: At the beginning of a training; its model, and average, are changed.
        told: Called with the share of this rank's labels that is fitted, about once for each tenth.

    Returns:
        Labels that were fitted.

    Raises:
        ModelError: If the model's head does not end in a linear layer with an output per label, or
            what that sees is no vector a document, or not finite.
    """
    labels = fitter.train.label_count
    layers = [_probed_layer(model, labels) for model in (fitter.kept, fitter.model)]
    rows, most = np.arange(len(fitter.train)), max(1, MOST_CELLS // layers[0].in_features)
    if len(rows) > most:
        rng = np.random.default_rng(fitter.config.seed)
        rows = np.sort(rng.choice(rows, most, replace=False))
    train = fitter.train
    open_NL = _table(train.unannotated_offsets, train.unannotated_columns, rows, labels)
    given_NL = _table(train.positive_offsets, train.positive_columns, rows, labels)
    given_NL = given_NL - given_NL.multiply(open_NL)  # what nobody annotated is not read
    with_L, open_L = _by_label(given_NL), _by_label(open_NL)
    positives_L, opens_L = np.array([*map(len, with_L)]), np.array([*map(len, open_L)])
    both_L = (positives_L > 0) & (positives_L < len(rows) - opens_L)
    both = np.flatnonzero(both_L if fitter.known_L is None else both_L & ~fitter.known_L)
    if not len(both):
        return 0
    features_NH = fitter.head_inputs(layers[0], rows).astype(np.float64)
    size = _root_mean_square(features_NH)
    if not np.isfinite(size):
        raise ModelError(
            "training.head_init is linear_probe, but the encoder gives numbers that are not "
            "finite: check its weights, or set it to random"
        )
    mean_H = features_NH.mean(axis=0)
    features_NH -= mean_H
    spread = _root_mean_square(features_NH)
    if spread <= ROUNDING[fitter.amp_dtype] * size:  # all documents look the same, but for that
        return 0
    factor = SCALE / spread
    features_NH *= factor
    coarse_NH = coarse(features_NH)
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
        done = low + len(columns)
        if 10 * done // len(mine) > 10 * low // len(mine):
            told(done / len(mine))
        fitted.append((columns, weights_HK, bias_K - mean_H @ weights_HK))
    with torch.no_grad():
        for blocks in fitter.gather(fitted):
            for columns, weights_HK, bias_K in blocks:
                for layer in layers:
                    layer.weight[columns] = torch.from_numpy(weights_HK.T).to(layer.weight)
                    layer.bias[columns] = torch.from_numpy(bias_K).to(layer.bias)
    return len(both)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    flat = values.ravel()
    return float(np.sqrt(flat @ flat / max(1, flat.size)))


def _table(
    offsets: NDArray[np.int64],
    columns: NDArray[np.int32],
    rows: NDArray[np.intp],
    label_count: int,
) -> Any:
    """Some rows of a ragged list as a sparse table: 1 where a document has a label."""
    from scipy.sparse import csr_array

    ones = np.ones(len(columns), np.int8)
    return csr_array((ones, columns, offsets), shape=(len(offsets) - 1, label_count))[rows]


def _by_label(table_NL: Any) -> list[NDArray[np.int32]]:
    """Rows that are not 0 in each column."""
    by_label = table_NL.tocsc()
    by_label.eliminate_zeros()
    return np.split(by_label.indices, by_label.indptr[1:-1])
