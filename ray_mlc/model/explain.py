"""Which words carried a label: integrated gradients of its logit, word by word.

The way from a text without words (its tokens replaced by padding) to the text itself is walked in
small steps in the space of the embeddings; a token's share is its part of the logit's change along
the way (Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks; computed by
captum). The shares of all tokens add up to the difference between the two logits, so that they can
be read as "so much of the logit"; `error` says how well the steps kept to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_mlc.errors import ResourceError
from ray_mlc.model.tokenization import Tokenizer, WindowWords

if TYPE_CHECKING:
    import torch

STEPS = 50
"""Steps of the way: their error is a few thousandths of a logit for encoders of the usual size."""
BATCH_TOKENS = 4096
"""Tokens of the steps computed together."""


@dataclass(frozen=True)
class WordShare:
    """A word of a text, and what it did for a label."""

    text: str
    """As it stands in the text."""
    start: int
    """Where it begins in the text, in characters."""
    share: float
    """Part of the logit that is its doing; negative: it speaks against the label."""


@dataclass(frozen=True)
class Explanation:
    """Why a text got the logit that it got for one label."""

    label: str
    logit: float
    """Of the window explained: of a long text that in which the label is strongest."""
    empty_logit: float
    """Of the same window without words."""
    window: int
    """Its position in the text, from 0."""
    words: list[WordShare]
    """In the order of the text; white space lies between them."""
    error: float
    """How far the sum of all shares is from `logit - empty_logit`."""


def require_captum() -> Any:
    """The module, or what to do about its absence.

    Raises:
        ResourceError: If captum is not installed.
    """
    try:
        import captum.attr
    except ImportError:
        raise ResourceError(
            "--explain needs captum, which is not installed: pip install 'ray-mlc[explain]'"
        ) from None
    return captum.attr


def explain_text(
    model: Any, tokenizer: Tokenizer, text: str, labels: Sequence[tuple[int, str]]
) -> list[Explanation]:
    """Explain some labels of one text.

    Args:
        model: Hugging Face model for sequence classification, in float32.
        tokenizer: Its tokenizer.
        text: Not empty.
        labels: Column and name of each label.

    Raises:
        ResourceError: If captum is not installed.
    """
    import torch

    attr = require_captum()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()

    def logits(ids_BT: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(
            input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)
        ).logits.float()
        return result

    gradients = attr.LayerIntegratedGradients(logits, model.get_input_embeddings())
    windows = tokenizer.words(text)
    own = [torch.from_numpy(window.ids.astype(np.int64))[None].to(device) for window in windows]
    with torch.no_grad():
        found_WL = torch.cat([logits(ids) for ids in own]).cpu().numpy()
    explanations = []
    for column, label in labels:
        number = int(found_WL[:, column].argmax())
        window, ids_1T = windows[number], own[number]
        special_T = torch.tensor([word is None for word in window.words], device=device)
        empty_1T = torch.where(special_T, ids_1T, tokenizer.pad_id)
        shares_1TH = gradients.attribute(
            ids_1T,
            baselines=empty_1T,
            target=column,
            n_steps=STEPS,
            internal_batch_size=max(1, BATCH_TOKENS // len(window.ids)),
        )
        empty = _without_words(model, logits, ids_1T, empty_1T, column)
        shares_T = shares_1TH[0].sum(dim=-1).detach().cpu().numpy()
        explanations.append(
            Explanation(
                label=label,
                logit=float(found_WL[number, column]),
                empty_logit=empty,
                window=number,
                words=_words(text, window, shares_T),
                error=float(shares_T.sum()) - (float(found_WL[number, column]) - empty),
            )
        )
    model.train(was_training)
    return explanations


def _without_words(
    model: Any,
    logits: Callable[[torch.Tensor], torch.Tensor],
    ids_1T: torch.Tensor,
    empty_1T: torch.Tensor,
    column: int,
) -> float:
    """The logit at the beginning of the way: embeddings of `empty_1T` at the places of `ids_1T`.

    Only the embeddings are exchanged: encoders like RoBERTa take a token's position from its id.
    """
    import torch

    layer = model.get_input_embeddings()
    with torch.no_grad():
        embedded_1TH = layer(empty_1T)
        hook = layer.register_forward_hook(lambda *_: embedded_1TH)
        try:
            return float(logits(ids_1T)[0, column])
        finally:
            hook.remove()


def _words(text: str, window: WindowWords, shares_T: Any) -> list[WordShare]:
    sums = np.zeros(len(window.spans))
    for word, share in zip(window.words, shares_T, strict=True):
        if word is not None:
            sums[word] += share
    return [
        WordShare(text[start:stop], start, float(share))
        for (start, stop), share in zip(window.spans, sums, strict=True)
    ]
