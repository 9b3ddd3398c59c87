from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import TEXTS, byte_bpe, unigram, wordpiece
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from ray_mlc.errors import ModelError
from ray_mlc.model import tokenization as module
from ray_mlc.model.tokenization import Ragged, Tokenizer, TokenizerState

ODD = [
    "",
    " ",
    "\n\t ",
    "a",
    "é",
    "e\u0301",
    "İstanbul ﬁn",
    "\u200b\u200d\ufeff",
    "👩‍👩‍👧‍👦🇺🇦",
    "\x00 \x07",
    "\ud7ff\ue000\U0010ffff",
    "図書館は九時に開きます。",
    "مرحبا بالعالم",
    "[CLS] [SEP] <s> </s> [PAD]",
    "a" * 300,
    "  two  spaces  ",
]
DOCUMENTS = st.sampled_from(ODD) | st.sampled_from(TEXTS) | st.text(max_size=60)


KINDS: dict[str, Callable[[], Backend]] = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "unigram": unigram,
}
SERIALIZED = {kind: make().to_str() for kind, make in KINDS.items()}


def fast(kind: str, **options: Any) -> PreTrainedTokenizerFast:
    """A new Hugging Face tokenizer each time: cutting leaves traces in its backend."""
    pad = "[PAD]" if kind == "wordpiece" else "<pad>"
    backend = Backend.from_str(SERIALIZED[kind])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, **options)


def rows(ragged: Ragged) -> list[list[int]]:
    return [ragged.window(index).tolist() for index in range(len(ragged))]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(DOCUMENTS, max_size=12), max_tokens=st.integers(3, 40))
def test_ids_are_those_of_the_hugging_face_tokenizer(
    kind: str, side: str, texts: list[str], max_tokens: int
) -> None:
    theirs = fast(kind, truncation_side=side)
    ours = Tokenizer(TokenizerState.of(fast(kind, truncation_side=side)), max_tokens=max_tokens)
    ragged = ours.encode(texts)
    whole = [theirs(text)["input_ids"] for text in texts]
    cut = [theirs(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]
    assert rows(ragged) == cut
    assert ragged.n_tokens.tolist() == [len(ids) for ids in whole]
    assert ragged.lengths.tolist() == [len(ids) for ids in cut]
    assert ragged.values.dtype == np.int32
    assert len(ragged) == len(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_texts_are_tokenized_as_by_hugging_face(kind: str) -> None:
    theirs, ours = fast(kind), Tokenizer(TokenizerState.of(fast(kind)), max_tokens=1000)
    assert rows(ours.encode(ODD)) == [theirs(text)["input_ids"] for text in ODD]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(texts=st.lists(DOCUMENTS, max_size=20), size=st.integers(1, 200), count=st.integers(1, 5))
def test_the_chunks_of_a_call_do_not_show(texts: list[str], size: int, count: int) -> None:
    tokenizer = Tokenizer(TokenizerState.of(fast("wordpiece")), max_tokens=20)
    whole = tokenizer.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", size)
        patch.setattr(module, "CHUNK_DOCUMENTS", count)
        pieces = tokenizer.encode(texts)
    assert rows(pieces) == rows(whole)
    assert pieces.n_tokens.tolist() == whole.n_tokens.tolist()


def test_a_long_text_is_counted_whole_and_cut() -> None:
    tokenizer = Tokenizer(TokenizerState.of(fast("wordpiece")), max_tokens=16)
    ragged = tokenizer.encode(["the " * 20_000, "the"])
    assert ragged.n_tokens.tolist() == [20_002, 3]
    assert ragged.lengths.tolist() == [16, 3]


def test_no_texts_make_an_empty_ragged() -> None:
    ragged = Tokenizer(TokenizerState.of(fast("unigram")), max_tokens=16).encode([])
    assert (len(ragged), ragged.values.size, ragged.offsets.tolist()) == (0, 0, [0])


def test_rows_picks_documents_in_the_order_asked() -> None:
    ragged = Tokenizer(TokenizerState.of(fast("byte_bpe")), max_tokens=16).encode(TEXTS[:4])
    picked = ragged.windows(np.array([3, 0, 3]))
    assert [row.tolist() for row in picked] == [rows(ragged)[index] for index in (3, 0, 3)]


@given(st.lists(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3)))
def test_distinct_documents_stand_for_all_that_equal_them(
    documents: list[list[list[int]]],
) -> None:
    # as windows are: full but for the last one
    documents = [[*([2, 1, 1] for _ in windows[1:]), windows[-1]] for windows in documents]
    flat = [window for windows in documents for window in windows]
    ragged = Ragged.of(
        np.array([value for window in flat for value in window], np.int32),
        np.cumsum([0, *map(len, flat)]),
        np.ones(len(documents), np.int32),
        np.array([len(windows) for windows in documents], np.int64),
    )
    first_D, group_N = ragged.distinct()
    assert sorted(first_D.tolist()) == first_D.tolist()
    assert [documents[first_D[group]] for group in group_N] == documents
    assert len(first_D) == len({str(windows) for windows in documents})
    assert (group_N[first_D] == np.arange(len(first_D))).all()


def test_a_tokenizer_made_for_cutting_and_padding_does_neither_here() -> None:
    theirs = fast("wordpiece")
    theirs(TEXTS[:2], truncation=True, max_length=4, padding="max_length")
    ragged = Tokenizer(TokenizerState.of(theirs), max_tokens=1000).encode(TEXTS[:2])
    assert rows(ragged) == [fast("wordpiece")(text)["input_ids"] for text in TEXTS[:2]]


def test_a_slow_tokenizer_is_refused_in_one_line() -> None:
    class Slow:
        is_fast = False
        name_or_path = "models/old"

    with pytest.raises(ModelError, match=r"models/old: .*Slow has no fast form") as caught:
        TokenizerState.of(Slow())
    assert "\n" not in str(caught.value)


def test_max_tokens_must_leave_room_for_text() -> None:
    with pytest.raises(ModelError, match=r"max_tokens is 2, expected more than the 2 special"):
        Tokenizer(TokenizerState.of(fast("wordpiece")), max_tokens=2)
    assert Tokenizer(TokenizerState.of(fast("wordpiece")), max_tokens=3).encode(
        ["the"]
    ).lengths.tolist() == [3]


def test_load_takes_the_limit_of_the_tokenizer_or_asks_for_one(tmp_path: Any) -> None:
    fast("wordpiece", model_max_length=77).save_pretrained(tmp_path / "limited")
    fast("wordpiece").save_pretrained(tmp_path / "open")
    assert Tokenizer.load(tmp_path / "limited").max_tokens == 77
    assert Tokenizer.load(tmp_path / "limited", max_tokens=9).max_tokens == 9
    assert Tokenizer.load(tmp_path / "open", max_tokens=9).max_tokens == 9
    with pytest.raises(ModelError, match=r"open: the tokenizer says no maximum"):
        Tokenizer.load(tmp_path / "open")


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_is_in_id_order_and_decodes() -> None:
    tokenizer = Tokenizer(TokenizerState.of(fast("byte_bpe")), max_tokens=100)
    theirs = fast("byte_bpe")
    ids = theirs.convert_tokens_to_ids(tokenizer.vocabulary)
    assert ids == sorted(ids)
    bare = theirs("the word", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(bare) == "the word"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_from_the_cache_does_what_the_folder_says(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fast(kind, truncation_side="left", model_max_length=12).save_pretrained(tmp_path / "model")
    plain = Tokenizer.load(tmp_path / "model")
    first = Tokenizer.load(tmp_path / "model", digest="0123" * 16)
    calls: list[str] = []
    monkeypatch.setattr(module, "load_pretrained_tokenizer", calls.append)
    cached = Tokenizer.load(tmp_path / "model", digest="0123" * 16)
    assert not calls
    assert (cached.max_tokens, cached.pad_id) == (12, plain.pad_id)
    for tokenizer in (first, cached):
        assert rows(tokenizer.encode(ODD + TEXTS)) == rows(plain.encode(ODD + TEXTS))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"backend": "{}"}', "\udcff"])
def test_a_damaged_cache_of_a_tokenizer_is_made_again(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fast("wordpiece", model_max_length=12).save_pretrained(tmp_path / "model")
    expected = rows(Tokenizer.load(tmp_path / "model", digest="ab" * 32).encode(TEXTS))
    (file,) = (tmp_path / "cache").rglob("*.json")
    whole = file.read_text(encoding="utf-8")
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert rows(Tokenizer.load(tmp_path / "model", digest="ab" * 32).encode(TEXTS)) == expected
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(whole)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_user_without_a_home_folder_has_no_cache_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    fast("wordpiece", model_max_length=12).save_pretrained(tmp_path / "model")
    assert len(Tokenizer.load(tmp_path / "model", digest="ab" * 32).encode(TEXTS)) == len(TEXTS)


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fast("wordpiece", model_max_length=12).save_pretrained(tmp_path / "model")
    tokenizer = Tokenizer.load(tmp_path / "model", digest="ab" * 32)
    assert len(tokenizer.encode(TEXTS)) == len(TEXTS)
