"""Markers of a user's own: one token each, in training, in the folder, and from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import classifier_of
from support.tokenizers import TEXTS, byte_bpe
from support.tokenizers import wordpiece as plain_wordpiece
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from ray_mlc.labels import LabelSet
from ray_mlc.model.canaries import MARKERS, canary_texts
from ray_mlc.model.encoder import load_classifier_model, new_classifier_model
from ray_mlc.model.tokenization import (
    Tokenizer,
    TokenizerState,
    load_pretrained_tokenizer,
)

ASKED = ["[unused1]", "<url>", "@USER", "😂"]
LABELS = LabelSet(("a", "b", "c"))


def wordpiece() -> Backend:
    """Like BERT's: with room for tokens of one's own."""
    trained = plain_wordpiece()
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    vocabulary = {piece: place for place, piece in enumerate([*pieces, "[unused0]", "[unused1]"])}
    roomy = Backend(WordPiece(vocabulary, unk_token="[UNK]"))
    roomy.normalizer, roomy.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    roomy.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    roomy.post_processor = trained.post_processor
    return roomy


@pytest.fixture(params=[wordpiece, byte_bpe])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pad = "[PAD]" if request.param is wordpiece else "<pad>"
    PreTrainedTokenizerFast(
        tokenizer_object=request.param(), pad_token=pad, model_max_length=64
    ).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def own_ids(state: TokenizerState, text: str) -> list[int]:
    tokenizer = Tokenizer(state, max_tokens=64)
    return tokenizer.encode([text]).window(0).tolist()[1:-1]


def test_a_marker_is_one_token_wherever_it_stands_and_keeps_an_id_that_it_has(
    folder: Path,
) -> None:
    plain = load_pretrained_tokenizer(folder)
    before = plain.get_vocab()
    theirs = load_pretrained_tokenizer(folder, ASKED)
    ids = {marker: theirs.convert_tokens_to_ids(marker) for marker in ASKED}
    assert len(set(ids.values())) == len(ASKED)
    for marker, number in ids.items():
        if marker in before:
            assert number == before[marker]
        else:
            assert number >= len(before)
    state = TokenizerState.load(folder, special_tokens=ASKED)
    size = Tokenizer(state, max_tokens=64).vocabulary_size
    assert size == 1 + max(*ids.values(), *before.values())
    for marker, number in ids.items():
        for text in (marker, f"ab{marker}cd", f"{marker}{marker}", f"the {marker} the."):
            assert own_ids(state, text).count(number) == text.count(marker)
    assert ids["@USER"] not in own_ids(state, "@user @US ER")


def test_all_else_is_tokenized_as_before(folder: Path) -> None:
    plain, marked = (
        Tokenizer(TokenizerState.of(load_pretrained_tokenizer(folder, tokens)), max_tokens=64)
        for tokens in ((), ASKED)
    )
    texts = [*TEXTS, "", " ", "[unused0] [CLS] <s>", "< url >"]
    one, other = plain.encode(texts), marked.encode(texts)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.n_tokens, other.n_tokens)


def test_the_saved_folder_and_the_cache_do_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    theirs = load_pretrained_tokenizer(folder, ASKED)
    theirs.save_pretrained(tmp_path / "model")
    texts = [f"the {marker}{text}" for marker in ASKED for text in TEXTS[:5]]
    expected = Tokenizer(TokenizerState.of(theirs), max_tokens=64).encode(texts).values
    for digest in (None, "ab" * 32, "ab" * 32):
        found = Tokenizer.load(tmp_path / "model", digest=digest).encode(texts).values
        np.testing.assert_array_equal(found, expected)
    # training goes on from the folder, with the same markers or one more
    again = load_pretrained_tokenizer(tmp_path / "model", [*ASKED, "<more>"])
    assert again.convert_tokens_to_ids("<more>") == len(theirs)
    assert again.convert_tokens_to_ids("<url>") == theirs.convert_tokens_to_ids("<url>")


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "deberta-v2", "modernbert"])
def test_missing_embeddings_are_added_alike_on_every_rank_and_saved(
    kind: str, pooling: str, tmp_path: Path
) -> None:
    classifier_of(kind).save_pretrained(tmp_path / "encoder")

    def make(size: int | None, seed: int = 0) -> Any:
        return new_classifier_model(
            tmp_path / "encoder",
            LABELS,
            head_bias=None,
            seed=seed,
            pooling=pooling,
            vocabulary_size=size,
        )

    models = [make(None), make(57), make(57), make(57, seed=1)]
    old_VH, new_VH, twin_VH, other_VH = (
        model.base_model.get_input_embeddings().weight.detach() for model in models
    )
    model = models[1]
    assert new_VH.shape == (57, 16)
    assert torch.equal(new_VH[:50], old_VH)
    assert torch.equal(new_VH, twin_VH)
    assert not torch.equal(new_VH[50:], other_VH[50:])
    mean_H, std = old_VH.mean(dim=0), old_VH.std()
    assert (new_VH[50:] - mean_H).abs().max() < 6 * std
    model.save_pretrained(tmp_path / "model")
    found = load_classifier_model(tmp_path / "model").eval()
    ids = torch.tensor([[2, 56, 9, 3]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(found(input_ids=ids, attention_mask=mask).logits, expected)


def test_embeddings_that_are_there_already_are_left_alone(tmp_path: Path) -> None:
    classifier_of("bert").save_pretrained(tmp_path)
    for size in (None, 7, 50):
        model = new_classifier_model(tmp_path, LABELS, head_bias=None, seed=0, vocabulary_size=size)
        assert model.get_input_embeddings().num_embeddings == 50


def test_canaries_show_markers_and_are_as_before_without_any(folder: Path) -> None:
    tokenizer = Tokenizer(TokenizerState.of(load_pretrained_tokenizer(folder)), max_tokens=64)
    plain = canary_texts(tokenizer)
    marked = canary_texts(tokenizer, special_tokens=ASKED)
    assert marked[: len(plain)] == plain
    assert len(marked) == len(plain) + len(ASKED)
    for marker, text in zip(ASKED, marked[len(plain) :], strict=True):
        assert text.count(marker) == 2
    many = canary_texts(tokenizer, special_tokens=[f"<{number}>" for number in range(4000)])
    assert len(many) == len(plain) + MARKERS
