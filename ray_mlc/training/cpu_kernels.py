"""Dropout and attention for training on CPU: the formulas of PyTorch's, computed the fast way.

PyTorch draws dropout masks on CPU one number after the other, which costs more than the matrix
products of a small encoder, and dropout within attention makes it pass many times over all matrices
of T x T. Here a cell's mask is made of 16 random bits and applied to the bits of its number, and
attention takes a few documents at a time. In bfloat16 scores and weights of attention are rounded
to it, as those of transformers' own eager attention are; PyTorch keeps them in float32. What this
gives, and that nothing less is learnt, is in `benchmarks/results/2026-11-29-training.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

ATTENTION = "ray_mlc_cpu_training"
"""Name under which transformers knows `attention`."""
CELLS_AT_ONCE = 1 << 19
"""Attention weights that are worked on together, if not more are one document's: in bfloat16 a MB,
so that what is done to them one step after the other finds them in a cache. No count of threads is
in it: masks are drawn for as many at once, and are the same whatever threads there are."""
_KEEP_SCALE = 1 << 15
_OTHERS = ("position_bias", "cache", "softcap", "s_aux")
"""Options that change what attention computes, beside the mask."""


def kept_share(p: float) -> float:
    """Share of cells that dropout of `p` keeps, in steps of 2^-15."""
    return 1.0 - round(p * _KEEP_SCALE) / _KEEP_SCALE


def keep_bits(cells: int, p: float) -> torch.Tensor:
    """Random masks, int16 of shape [cells]: -1 with probability `kept_share(p)`, else 0.

    Numbers come from SFC64 (Doty-Humphrey's PractRand; NumPy's fastest), seeded by PyTorch's own
    generator: `torch.manual_seed` decides.
    """
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-cells // 4))
    bits = torch.from_numpy(words.view(np.int16)[:cells]).bitwise_and_(_KEEP_SCALE - 1)
    # (dropped - 1 - bits) is negative where bits >= dropped; the shift spreads its sign
    return bits.neg_().add_(round(p * _KEEP_SCALE) - 1).bitwise_right_shift_(15)


def _raw(values: torch.Tensor) -> torch.Tensor:
    """The bits of numbers of 2 or 4 bytes, as integers in the same memory."""
    return values.view(torch.int16 if values.element_size() == 2 else torch.int32)


def _masked(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """New values with zeros where the mask is 0; a mask of fewer bits spreads its sign."""
    return _raw(values).bitwise_and(bits).view(values.dtype)


class _DropCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, p: float) -> torch.Tensor:
        values = values.contiguous()
        bits = keep_bits(values.numel(), p).view(values.shape)
        ctx.save_for_backward(bits)
        ctx.scale = 1.0 / kept_share(p)
        return _masked(values, bits).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bits,) = ctx.saved_tensors
        return _masked(grad.contiguous(), bits).mul_(ctx.scale), None


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` (Srivastava et al. 2014), several times as fast on CPU.

    What is dropped is 0 even where it was not finite.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Dropout`; p is taken in steps of 2^-15."""
        fits = input.device.type == "cpu" and input.element_size() in (2, 4)
        if not self.training or not fits or not 0 < kept_share(self.p) < 1:
            return super().forward(input)
        return _DropCells.apply(input, self.p)  # type: ignore[no-any-return, no-untyped-call]


class _Attend(torch.autograd.Function):
    """softmax(q k^T + bias), dropout, times v; a few documents at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        p: float,
    ) -> torch.Tensor:
        B, H, T, _ = query.shape
        weights = query.new_empty((B, H, T, key.shape[2]))
        output = torch.empty_like(query)
        scale = 1.0 / kept_share(p)
        for low, high in _spans(weights):
            scores = torch.matmul(query[low:high], key[low:high].transpose(2, 3))
            if bias is not None:
                scores += bias[low:high] if len(bias) > 1 else bias
            part = weights[low:high]
            torch.softmax(scores, -1, out=part)
            bits = keep_bits(part.numel(), p).view(part.shape)
            kept = torch.matmul(_masked(part, bits), value[low:high])
            torch.mul(kept, scale, out=output[low:high])
            _sign_dropped(part, bits)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        with torch.autocast("cpu", enabled=False):
            for low, high in _spans(weights):
                part, dropped, bits = _unsigned(weights[low:high])
                grad_part = grad[low:high] * ctx.scale
                grads[2][low:high] = torch.matmul(dropped.transpose(2, 3), grad_part)
                inner = _masked(torch.matmul(grad_part, value[low:high].transpose(2, 3)), bits)
                scores = torch._softmax_backward_data(inner, part, -1, part.dtype)
                grads[0][low:high] = torch.matmul(scores, key[low:high])
                grads[1][low:high] = torch.matmul(scores.transpose(2, 3), query[low:high])
        return *grads, None, None


def _spans(weights: torch.Tensor) -> list[tuple[int, int]]:
    B = len(weights)
    cells = max(1, weights[0].numel()) if B else 1
    step = max(1, CELLS_AT_ONCE // cells)
    return [(low, min(B, low + step)) for low in range(0, B, step)]


def _sign_dropped(weights: torch.Tensor, bits: torch.Tensor) -> None:
    """Note in the sign, which a softmax leaves free, what was dropped."""
    raw = _raw(weights)
    sign = torch.iinfo(raw.dtype).min
    raw.bitwise_or_(bits.to(raw.dtype).bitwise_not().bitwise_and_(sign))


def _unsigned(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, weights with zeros for what was dropped, and the mask."""
    raw = _raw(weights)
    limits = torch.iinfo(raw.dtype)
    bits = raw.bitwise_right_shift(limits.bits - 1).bitwise_not_()
    plain = raw.bitwise_and(limits.max)
    return plain.view(weights.dtype), plain.bitwise_and(bits).view(weights.dtype), bits


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of an encoder's layer, to train with on CPU.

    Args:
        module: The layer; `is_causal` and `training` are read.
        query: Shape [B, H, T, D].
        key: Like `query`; with fewer heads PyTorch's own attention is taken.
        value: Like `key`.
        attention_mask: True where a key is seen, or numbers to be added to scores; shape
            [B or 1, H or 1, T or 1, T].
        scaling: Factor on scores; None: 1 / sqrt(D).
        dropout: Of attention weights.
        options: What else layers hand over; passed on where PyTorch's attention is taken.

    Returns:
        Shape [B, T, H, D], and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # as autocast does it for PyTorch's attention: rotated queries and keys come in float32
    states = [query, key, value]
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        states = [state.to(torch.get_autocast_dtype("cpu")) for state in states]
    if not _is_plain(module, states, attention_mask, dropout, options):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return found
    query, key, value = states
    scaling = 1 / math.sqrt(query.shape[3]) if scaling is None else scaling
    bias = _bias(attention_mask, query.dtype)
    with torch.autocast("cpu", enabled=False):
        output = _Attend.apply(query * scaling, key, value, bias, dropout)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def _is_plain(
    module: Any,
    states: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    dropout: float,
    options: Mapping[str, Any],
) -> bool:
    """Whether `_Attend` does what a layer asks for, and does it better.

    Without dropout it does not: PyTorch's attention then keeps nothing of T x T.
    """
    query, key, value = states
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return (
        bool(module.training)
        and 0 < kept_share(dropout) < 1
        and all(state.device.type == "cpu" for state in states)
        and query.dtype in (torch.bfloat16, torch.float32)
        and query.dtype == key.dtype == value.dtype
        and query.shape[:2] == key.shape[:2]
        and query.shape[3] == value.shape[3]
        # one that is learnt wants a gradient
        and (mask is None or (mask.dim() == 4 and not mask.requires_grad))
        and not (causal and mask is None)
        and all(options.get(name) is None for name in _OTHERS)
    )


def _bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to scores; None where nothing is hidden.

    It is finite: a token that sees nothing, which is padding, sees all instead, and is no NaN.
    """
    if mask is None:
        return None
    lowest = torch.finfo(dtype).min
    if mask.dtype != torch.bool:
        return mask.clamp(min=lowest).to(dtype)
    if bool(mask.all()):
        return None
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, lowest)


def use_cpu_kernels(model: Any) -> None:
    """Make a model train with this dropout, and with this attention where its class allows it.

    Only what is called changes: neither its weights, nor their names, nor what is saved of it.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout  # keeps its hooks, and all names that it has
    base = getattr(model, "base_model", model)
    if getattr(base, "_supports_attention_backend", False) and (
        base.config._attn_implementation == "sdpa"
    ):
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        base.set_attn_implementation(ATTENTION)
