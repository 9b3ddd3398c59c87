"""Batches without padding: documents end to end in one row, attention within each document only.

Everything but attention works token by token and does not care where a document ends. Attention is
told by `cu_seqlens`, the positions at which documents begin, as FlashAttention's varlen kernels
take them. The model stays transformers' own: it is given an attention function (by transformers'
attention interface), position ids that start anew with each document, and a hook behind its encoder
that hands one vector of each document on to the head, as a batch of B documents of one token: the
first token's, or the mean for a `PooledClassifier` that takes means.

That is right only for encoders whose positions come from `position_ids` and whose head looks at
nothing else: `PACKABLE` names them, a test holds each against the padded form, and the canaries
are checked on the hardware that scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from ray_mlc.model.pooling import PooledClassifier

ATTENTION = "ray_mlc_packed"
PACKABLE = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
"""`model_type` of encoders that can be run packed."""
_POSITIONS_AFTER_PAD = frozenset({"camembert", "roberta", "xlm-roberta"})
"""Those whose positions count from `pad_token_id + 1`."""
MULTIPLE = 64
"""Tokens of a packed row are filled up to a multiple of this: fewer shapes, and whole tiles."""


@dataclass(frozen=True)
class Packed:
    """Documents end to end."""

    input_ids_T: NDArray[np.int64]
    """Token ids, shape [T]."""
    position_ids_T: NDArray[np.int64]
    """Position of each token in its document, shape [T]."""
    cu_seqlens: NDArray[np.int32]
    """Where each document begins, and the end; shape [B + 1], one more where T was filled up."""
    longest: int
    """Tokens of the longest document."""
    documents: int
    """B."""


def pack(
    ids: Sequence[NDArray[np.int32]], *, pad_id: int, first_position: int = 0, multiple: int = 1
) -> Packed:
    """Put documents end to end.

    Args:
        ids: Token ids of B documents, each of at least one token.
        pad_id: Token id to fill with.
        first_position: Position of a document's first token.
        multiple: T is filled up to a multiple of this by one more document, which nobody looks at.
    """
    lengths = [len(row) for row in ids]
    total = sum(lengths)
    rows = list(ids)
    if fill := -total % multiple:
        lengths.append(fill)
        rows.append(np.full(fill, pad_id, np.int32))
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    starts_T = np.repeat(cu_seqlens[:-1], lengths)
    return Packed(
        input_ids_T=np.concatenate(rows).astype(np.int64),
        position_ids_T=np.arange(len(starts_T), dtype=np.int64) - starts_T + first_position,
        cu_seqlens=cu_seqlens,
        longest=max(lengths),
        documents=len(ids),
    )


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seqlens: torch.Tensor,
    longest: int,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each document, by transformers' attention interface.

    Args:
        module: The attention layer.
        query: Shape [1, heads, T, size], and so are `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: None: nothing is padding.
        scaling: Of the scores before the softmax.
        cu_seqlens: Where documents begin, int32 [B + 1], on the device.
        longest: Tokens of the longest document.
        options: Such as the dropout, which is off in evaluation mode.

    Returns:
        Shape [1, T, heads, size], and no weights.
    """
    del module, options
    assert attention_mask is None
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        q_THD, k_THD, v_THD = (item[0].transpose(0, 1) for item in (query, key, value))
        out_THD = varlen_attn(
            q_THD, k_THD, v_THD, cu_seqlens, cu_seqlens, longest, longest, scale=scaling
        )
        assert isinstance(out_THD, torch.Tensor)
        return out_THD[None], None
    # the same, document by document: what the kernel is held against
    bounds = cu_seqlens.tolist()
    pieces = [
        scaled_dot_product_attention(
            query[:, :, low:high], key[:, :, low:high], value[:, :, low:high], scale=scaling
        )
        for low, high in pairwise(bounds)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def can_pack(model: Any) -> bool:
    """Whether a sequence classification model may be run packed."""
    config = model.config
    absolute = getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
    return config.model_type in PACKABLE and absolute and not getattr(config, "is_decoder", False)


class PackedModel:
    """A sequence classification model that takes packed batches, and no others any more."""

    def __init__(self, model: Any) -> None:
        """Take over a model for which `can_pack` holds."""
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, packed_attention)
        base = model.base_model
        base.set_attn_implementation(ATTENTION)
        config = model.config
        self._model = model
        after_pad = config.model_type in _POSITIONS_AFTER_PAD
        self.first_position = int(config.pad_token_id) + 1 if after_pad else 0
        self._means = isinstance(model, PooledClassifier) and model.pooling == "mean"
        self._cu_seqlens: torch.Tensor
        self._documents: int
        encoder = base.transformer if hasattr(base, "transformer") else base.encoder
        encoder.register_forward_hook(self._one_token_each)

    def _one_token_each(self, module: Any, inputs: Any, output: Any) -> Any:
        """[1, T, hidden] to [B, 1, hidden]: what the head takes for documents of one token."""
        del module, inputs
        hidden_TH = output.last_hidden_state[0]
        bounds = self._cu_seqlens.long()
        if self._means:
            means = torch.segment_reduce(hidden_TH.float(), "mean", offsets=bounds, axis=0)
            pooled_BH = means[: self._documents].to(hidden_TH.dtype)
        else:
            pooled_BH = hidden_TH.index_select(0, bounds[: self._documents])
        output.last_hidden_state = pooled_BH[:, None]
        return output

    def __call__(self, packed: Packed, *, device: str) -> torch.Tensor:
        """Logits of the documents, shape [B, L]."""
        cu_seqlens = on_device(packed.cu_seqlens, device)
        self._cu_seqlens, self._documents = cu_seqlens, packed.documents
        logits: torch.Tensor = self._model(
            input_ids=on_device(packed.input_ids_T, device)[None],
            position_ids=on_device(packed.position_ids_T, device)[None],
            cu_seqlens=cu_seqlens,
            longest=packed.longest,
        ).logits
        return logits


def on_device(array: NDArray[Any], device: str) -> torch.Tensor:
    """An array on a device; to a GPU the copy runs while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device != "cpu" else tensor
