"""The head's first bias, how fast each parameter of a model learns, and which do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_mlc.config import TrainingConfig
from ray_mlc.errors import ModelError
from ray_mlc.model.encoder import encoder_layers


def learning_rate_factor(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """Factor on the peak rate at a step: a rise over `warmup`, then the schedule's fall."""
    rise = max(1, round(total * warmup)) if warmup else 0
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, total - rise)
    match schedule:
        case "linear":
            return max(0.0, 1.0 - progress)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        case _:
            return 1.0


def head_bias(
    setting: str | float | None, rates_L: NDArray[np.float64], rows: int
) -> NDArray[np.float64] | None:
    """First bias of the classification head.

    `prior` is the log-odds of each label's rate, so that training does not begin with unlearning
    a score of one half for everything (Lin et al. 2017, section 3.3, do it with one constant).
    """
    if setting is None:
        return None
    if not isinstance(setting, str):
        return np.full(len(rates_L), float(setting))
    # a label never or always seen would have infinite odds: count half a document more each way
    smoothed = (rates_L * rows + 0.5) / (rows + 1)
    odds: NDArray[np.float64] = np.log(smoothed / (1 - smoothed))
    return odds


def parameter_groups(model: Any, config: TrainingConfig) -> list[dict[str, Any]]:
    """AdamW groups: head and encoder rates, those of lower layers smaller, decay on matrices only.

    Raises:
        ModelError: If `layer_decay` is set and the encoder's layers cannot be told apart.
    """
    base = getattr(model, model.base_model_prefix, None)
    encoder = {
        id(parameter)
        for name, parameter in (base.named_parameters() if base is not None else ())
        if "pooler" not in name
    }
    scales = layer_scales(base, config.layer_decay)
    head_rate = config.head_learning_rate or config.learning_rate
    groups: dict[tuple[bool, bool, float], list[Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            in_encoder = id(parameter) in encoder
            scale = scales.get(id(parameter), 1.0) if in_encoder else 1.0
            groups.setdefault((in_encoder, parameter.ndim > 1, scale), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": (config.learning_rate if in_encoder else head_rate) * scale,
            "peak": (config.learning_rate if in_encoder else head_rate) * scale,
            "weight_decay": config.weight_decay if decays else 0.0,
            "in_encoder": in_encoder,
        }
        for (in_encoder, decays, scale), parameters in groups.items()
    ]


def layer_scales(base: Any, decay: float) -> dict[int, float]:
    """Factor on the learning rate of an encoder's parameters, by their `id`.

    The top layer has 1, each one below it `decay` times that of the one above, and what all layers
    build on (all that is declared before them, and embeddings such as of relative positions) is one
    below the lowest. Discriminative fine-tuning: Howard and Ruder 2018 (ULMFiT), section 3.2; a
    factor per layer of a transformer: Sun et al. 2019, "How to fine-tune BERT", section 5.3.3, who
    found 0.95 best; Clark et al. 2020 (ELECTRA) take 0.8 to 0.9.

    Args:
        base: The encoder; None if the model does not say which part of it that is.
        decay: 1: no scales, for encoders of any kind.

    Raises:
        ModelError: If its layers cannot be told apart.
    """
    if decay == 1:
        return {}
    if base is None:
        raise ModelError("training.layer_decay is set, but the model has no encoder: set it to 1")
    layers = encoder_layers(base)
    scales: dict[int, float] = {}
    for below, layer in enumerate(reversed(layers)):
        scales.update((id(parameter), decay**below) for parameter in layer.parameters())
    embeddings = {
        id(parameter)
        for module in base.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    lowest, seen_layers = decay ** len(layers), False
    for parameter in base.parameters():
        if id(parameter) in scales:
            seen_layers = True
        else:
            deep = not seen_layers or id(parameter) in embeddings
            scales[id(parameter)] = lowest if deep else 1.0
    return scales


def freeze_unused(model: Any, vocabulary_id: int = 1) -> list[str]:
    """Freeze parameters that no logit depends on, and name them.

    Several processes wait for the gradient of every trainable parameter; a pooler that the head
    does not use would make them wait for ever.
    """
    ids = torch.full((1, 4), vocabulary_id)
    was_training = model.training
    model.eval()
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
            frozen.append(name)
        parameter.grad = None
    model.train(was_training)
    return frozen
