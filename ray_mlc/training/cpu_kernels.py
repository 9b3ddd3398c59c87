"""Dropout and attention for training on CPU: PyTorch's mathematics, done the fast way.

PyTorch draws dropout masks on CPU one number after the other, which costs more than the matrix
products of a small encoder, and dropout within attention makes it pass many times over matrices of
T x T that no cache holds. Here a cell's mask is made of 16 random bits and applied to the bits of
its number, and attention takes as many documents at a time as a cache holds. What that gives is in
`benchmarks/results/`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

ATTENTION = "ray_mlc_cpu_training"
"""Name under which transformers knows `attention`."""
CELLS_AT_ONCE = 1 << 19
"""Attention weights per thread that are worked on together: in bfloat16 a MB, a core's cache."""
_KEEP_SCALE = 1 << 15


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


def _masked(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """New values with zeros where the mask is 0. They are contiguous; of 2 or 4 bytes."""
    if values.element_size() == 2:
        return values.view(torch.int16).bitwise_and(bits).view(values.dtype)
    return values.view(torch.int32).bitwise_and(bits.to(torch.int32)).view(values.dtype)


class _DropCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, p: float) -> torch.Tensor:
        values = values.contiguous()
        bits = keep_bits(values.numel(), p).view(values.shape)
        ctx.save_for_backward(bits)
        ctx.scale = 1.0 / kept_share(p)
        return _masked(values, bits).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bits,) = ctx.saved_tensors
        return _masked(grad.contiguous(), bits).mul_(ctx.scale), None


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` (Srivastava et al. 2014), several times as fast on CPU."""

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
            if p:
                bits = keep_bits(part.numel(), p).view(part.shape)
                torch.mul(
                    torch.matmul(_masked(part, bits), value[low:high]), scale, out=output[low:high]
                )
                _sign_dropped(part, bits)
            else:
                output[low:high] = torch.matmul(part, value[low:high])
        ctx.save_for_backward(query, key, value, weights)
        ctx.p, ctx.scale = p, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for low, high in _spans(weights):
            part, grad_part = weights[low:high], grad[low:high]
            if ctx.p:
                part, dropped, bits = _unsigned(part)
                grad_part = grad_part * ctx.scale
            else:
                dropped, bits = part, None
            grads[2][low:high] = torch.matmul(dropped.transpose(2, 3), grad_part)
            inner = torch.matmul(grad_part, value[low:high].transpose(2, 3))
            if bits is not None:
                inner = _masked(inner, bits)
            scores = torch._softmax_backward_data(inner, part, -1, part.dtype)
            grads[0][low:high] = torch.matmul(scores, key[low:high])
            grads[1][low:high] = torch.matmul(scores.transpose(2, 3), query[low:high])
        return *grads, None, None


def _spans(weights: torch.Tensor) -> list[tuple[int, int]]:
    B = len(weights)
    cells = max(1, weights[0].numel()) if B else 1
    step = max(1, CELLS_AT_ONCE * torch.get_num_threads() // cells)
    return [(low, min(B, low + step)) for low in range(0, B, step)]


def _sign_dropped(weights: torch.Tensor, bits: torch.Tensor) -> None:
    """Note in the sign, which a softmax leaves free, what was dropped."""
    if weights.element_size() == 2:
        weights.view(torch.int16).bitwise_or_(bits.bitwise_not().bitwise_and_(-(1 << 15)))
    else:
        signs = bits.to(torch.int32).bitwise_not().bitwise_and_(-(1 << 31))
        weights.view(torch.int32).bitwise_or_(signs)


def _unsigned(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, weights with zeros for what was dropped, and the mask."""
    if weights.element_size() == 2:
        raw, width = weights.view(torch.int16), 15
    else:
        raw, width = weights.view(torch.int32), 31
    bits = raw.bitwise_right_shift(width).bitwise_not_()
    plain = raw.bitwise_and((1 << width) - 1)
    dropped = plain.bitwise_and(bits)
    if width == 31:
        bits = bits.to(torch.int16)
    return plain.view(weights.dtype), dropped.view(weights.dtype), bits


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

    plain = (
        module.training
        and torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dtype in (torch.bfloat16, torch.float32)
        and query.shape[:2] == key.shape[:2]
        and query.shape[3] == value.shape[3]
        and not getattr(module, "is_causal", False)
        and not options.get("is_causal")
        and all(
            options.get(name) is None for name in ("position_bias", "cache", "softcap", "s_aux")
        )
        and kept_share(dropout) > 0
    )
    if not plain:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return found
    scaling = 1 / math.sqrt(query.shape[3]) if scaling is None else scaling
    output = _Attend.apply(  # type: ignore[no-untyped-call]
        query * scaling, key, value, _bias(attention_mask, query.dtype), dropout
    )
    return output.transpose(1, 2).contiguous(), None


def _bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to scores; None where nothing is hidden."""
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.to(dtype)
    if bool(mask.all()):
        return None
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def use_cpu_kernels(model: Any) -> None:
    """Make a model train with this dropout, and with this attention where its class allows it.

    Only what is called changes: neither its weights, nor their names, nor what is saved of it.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                replacement = Dropout(child.p)
                replacement.train(child.training)
                setattr(parent, name, replacement)
    base = getattr(model, "base_model", model)
    if getattr(base, "_supports_attention_backend", False) and (
        base.config._attn_implementation == "sdpa"
    ):
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        base.set_attn_implementation(ATTENTION)
