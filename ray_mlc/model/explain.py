"""Which words carried a label: what each did to the logit.

Of an encoder by integrated gradients. The way from a text without words (its tokens replaced by
padding) to the text itself is walked in small steps in the space of the embeddings; a token's share
is its part of the logit's change along the way (Sundararajan, Taly and Yan 2017, Axiomatic
Attribution for Deep Networks; computed by captum). The shares of all tokens add up to the
difference between the two logits, so that they can be read as "so much of the logit"; `error` says
how well the steps kept to that.

Of a TF-IDF model exactly: a term's share is its weight times its TF-IDF. A word gets the shares of
its own term and half of those of the pairs that it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_mlc.errors import ResourceError
from ray_mlc.model.tfidf import START, TfidfModel, TfidfTokenizer, tfidf_rows
from ray_mlc.model.tokenization import Tokenizer, WindowWords

if TYPE_CHECKING:
    import torch

STEPS = (24, 60)
"""Steps of the way, and those of a second try where the first is off by more than `TOLERANCE`: the
cost is that of so many passes forward and back, and 24 will mostly do."""
TOLERANCE = 0.01
"""Logits by which the sum of the shares may be off."""
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
class TermShare:
    """A word, or a pair of words, of a TF-IDF model's vocabulary, and what it did for a label."""

    text: str
    """As the vocabulary has it."""
    count: int
    """How often it is in the text."""
    share: float
    """Weight times TF-IDF: part of the logit; all of them add up to it, but for the bias."""


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
    """In the order of the text; between them lies white space, or what the model does not see."""
    error: float
    """How far the sum of all shares is from `logit - empty_logit`."""
    terms: list[TermShare] = field(default_factory=list)
    """Of a TF-IDF model the terms that it knows, the largest share first; else none."""


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
    model: Any,
    tokenizer: Tokenizer,
    text: str,
    labels: Sequence[tuple[int, str]],
    *,
    on_pass: Callable[[], None] = lambda: None,
) -> Iterator[Explanation]:
    """Explain some labels of one text, one after the other.

    Args:
        model: Hugging Face model for sequence classification, in float32.
        tokenizer: Its tokenizer.
        text: Not empty.
        labels: Column and name of each label.
        on_pass: Called before each forward pass; what it raises ends the work.

    Raises:
        ResourceError: If captum is not installed.
    """
    import torch

    attr = require_captum()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()

    def logits(ids_BT: torch.Tensor) -> torch.Tensor:
        on_pass()
        result: torch.Tensor = model(
            input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)
        ).logits.float()
        return result

    gradients = attr.LayerIntegratedGradients(logits, model.get_input_embeddings())
    windows = tokenizer.words(text)
    own = [torch.from_numpy(window.ids.astype(np.int64))[None].to(device) for window in windows]
    try:
        with torch.no_grad():
            found_WL = torch.cat([logits(ids) for ids in own]).cpu().numpy()
        for column, label in labels:
            number = int(found_WL[:, column].argmax())
            window, ids_1T = windows[number], own[number]
            special_T = torch.tensor([word is None for word in window.words], device=device)
            empty_1T = torch.where(special_T, ids_1T, tokenizer.pad_id)
            logit = float(found_WL[number, column])
            empty = _without_words(model, logits, ids_1T, empty_1T, column)
            for steps in STEPS:
                shares_1TH = gradients.attribute(
                    ids_1T,
                    baselines=empty_1T,
                    target=column,
                    n_steps=steps,
                    internal_batch_size=max(1, BATCH_TOKENS // len(window.ids)),
                )
                shares_T = shares_1TH[0].sum(dim=-1).detach().cpu().numpy()
                error = float(shares_T.sum()) - (logit - empty)
                if abs(error) <= TOLERANCE:
                    break
            words = _words(text, window, shares_T)
            yield Explanation(label, logit, empty, number, words, error)
    finally:
        model.train(was_training)


def explain_linear(
    model: TfidfModel, tokenizer: TfidfTokenizer, text: str, labels: Sequence[tuple[int, str]]
) -> Iterator[Explanation]:
    """Explain some labels that a TF-IDF model scored; as `explain_text`, and exact."""
    found = tokenizer.terms(text)
    row_1F = tfidf_rows([np.concatenate([[START], found.ids_K]).astype(np.int32)], model.idf_F)
    features_D = row_1F.indices
    logits_L = (row_1F.astype(np.float32) @ model.weights_FL)[0] + model.bias_L
    # each occurrence of a term has the same part in it
    feature_K = np.searchsorted(features_D, found.ids_K - (START + 1))
    counts_D = np.bincount(feature_K, minlength=len(features_D))
    for column, label in labels:
        shares_D = row_1F.data * model.weights_FL[features_D, column]
        shares_K = (shares_D / counts_D)[feature_K]
        sums = np.zeros(len(found.spans))
        for place, pair, share in zip(
            found.first_K.tolist(), found.pair_K.tolist(), shares_K.tolist(), strict=True
        ):
            sums[place : place + 1 + pair] += share / (1 + pair)
        order = np.argsort(-np.abs(shares_D), kind="stable")
        logit, empty = float(logits_L[column]), float(model.bias_L[column])
        yield Explanation(
            label=label,
            logit=logit,
            empty_logit=empty,
            window=0,
            words=_shares_of(text, found.spans, sums),
            error=float(shares_D.sum()) - (logit - empty),
            terms=[
                TermShare(model.vocabulary[features_D[at]], int(counts_D[at]), float(shares_D[at]))
                for at in order.tolist()
            ],
        )


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
    return _shares_of(text, window.spans, sums)


def _shares_of(text: str, spans: Sequence[tuple[int, int]], sums: Any) -> list[WordShare]:
    return [
        WordShare(text[start:stop], start, float(share))
        for (start, stop), share in zip(spans, sums, strict=True)
    ]
