"""The head of a model that a training goes on from.

Where the encoder of a training is a multi-label model already, with some of the same labels, what
it knows of those is kept: last month's model learns from this month's examples, or one more label.
Labels are matched by name: their order, and what else there is, may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_mlc.errors import ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.encoder import (
    labels_of,
    load_classifier_model,
    load_config,
    output_layer,
    pooling_of,
    problem_type_of,
)
from ray_mlc.model.pooling import stock_options


@dataclass(frozen=True)
class TrainedHead:
    """The last layer of a model that has been fine-tuned."""

    names: tuple[str, ...]
    """Its L labels, in column order."""
    weight_LH: torch.Tensor
    bias_L: torch.Tensor | None

    def give(self, model: Any, label_set: LabelSet) -> NDArray[np.bool_]:
        """Give a new model what is known of the labels that both have.

        Returns:
            Which of its labels those are, shape [L].
        """
        column = {name: place for place, name in enumerate(self.names)}
        new = [place for place, name in enumerate(label_set.names) if name in column]
        old = [column[label_set.names[place]] for place in new]
        layer = output_layer(model, len(label_set))
        with torch.no_grad():
            layer.weight[new] = self.weight_LH[old].to(layer.weight)
            if layer.bias is not None and self.bias_L is not None:
                layer.bias[new] = self.bias_L[old].to(layer.bias)
        known_L = np.zeros(len(label_set), np.bool_)
        known_L[new] = True
        return known_L


def trained_head(encoder: Path, label_set: LabelSet, *, pooling: str) -> TrainedHead | None:
    """The head of a checkpoint, where a new one for these labels would see the same.

    Args:
        encoder: Checkpoint folder.
        label_set: Labels of the new model.
        pooling: What its head sees: `auto`, `cls` or `mean`.

    Returns:
        None if the checkpoint has no head of independent scores, or none of the labels, or pools
        otherwise.
    """
    names = labels_of(encoder)
    if names is None or not set(names) & set(label_set.names):
        return None
    if why_not_kept(encoder, label_set, pooling=pooling) is not None:
        return None
    try:
        model = load_classifier_model(encoder)
    except ModelError:  # labels in the configuration of a checkpoint that has no head
        return None
    layer = output_layer(model, len(names))
    if layer is None:
        return None
    bias_L = None if layer.bias is None else layer.bias.detach().clone()
    return TrainedHead(tuple(names), layer.weight.detach().clone(), bias_L)


def why_not_kept(encoder: Path, label_set: LabelSet, *, pooling: str) -> str | None:
    """Why nothing is kept of a checkpoint's head; None if some is.

    None too where nobody would expect it: of an encoder without labels, or with classes of others.
    The logits of a softmax are right up to a number that is added to all of them: none is a score.
    """
    names, problem = labels_of(encoder) or [], problem_type_of(encoder)
    independent = problem == "multi_label_classification"
    if not set(names) & set(label_set.names):
        return "it has none of the labels" if independent else None
    if not independent:
        return f"config.json has problem_type {problem!r}, expected 'multi_label_classification'"
    own = pooling_of(encoder)
    if own is not None:
        alike = pooling in ("auto", own)
    else:
        config = load_config(encoder)
        options = stock_options(config, pooling)
        alike = options is not None and all(
            getattr(config, key, None) == value for key, value in options.items()
        )
    return None if alike else f"it pools otherwise than training.pooling={pooling}"
