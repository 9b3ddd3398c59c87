"""A TF-IDF model is explained exactly: its terms' weights times what they are in the text."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cli import run

from ray_mlc import synthetic
from ray_mlc.labels import LabelSet
from ray_mlc.model.engines.tfidf_engine import tfidf_classifier
from ray_mlc.model.explain import explain_linear
from ray_mlc.model.tfidf import TfidfModel, TfidfTokenizer, word_spans, words_and_pairs
from ray_mlc.runtime.evaluate import predict_texts

VOCABULARY = ["good", "bad", "not good", "good bad", "istanbul", "i\u0307stanbul", "σας"]
HOSTILE = "İSTANBUL not  Good,\ngood <b>BAD</b> 図書館 😀 ΣΑΣ İstanbul a"


def model_of(vocabulary: list[str], labels: int = 3, seed: int = 0) -> TfidfModel:
    random = np.random.default_rng(seed)
    return TfidfModel(
        vocabulary=vocabulary,
        idf_F=random.uniform(1, 4, len(vocabulary)).astype(np.float32),
        weights_FL=random.normal(size=(len(vocabulary), labels)).astype(np.float32),
        bias_L=random.normal(size=labels).astype(np.float32),
    )


@pytest.mark.parametrize("text", [HOSTILE, "good", "good good good bad", "nothing known", "a"])
def test_words_and_terms_both_add_up_to_the_logit_that_is_scored(text: str) -> None:
    model = model_of(VOCABULARY)
    classifier = tfidf_classifier(model, LabelSet(("a", "b", "c")))
    logits_WL = classifier.window_logits(classifier.tokenizer.encode([text]))
    tokenizer = TfidfTokenizer(VOCABULARY)
    for found in explain_linear(model, tokenizer, text, [(0, "a"), (2, "c")]):
        column = "abc".index(found.label)
        assert found.logit == pytest.approx(logits_WL[0, column], abs=1e-6)
        assert found.empty_logit == model.bias_L[column]
        gap = found.logit - found.empty_logit
        assert sum(word.share for word in found.words) == pytest.approx(gap, abs=1e-5)
        assert sum(term.share for term in found.terms) == pytest.approx(gap, abs=1e-5)
        assert abs(found.error) < 1e-5
        assert [term.text for term in found.terms] == sorted(
            {name for name in words_and_pairs(text) if name in VOCABULARY},
            key=lambda name: -abs(next(t.share for t in found.terms if t.text == name)),
        )
        for word in found.words:
            assert text[word.start : word.start + len(word.text)] == word.text


def test_a_pair_is_shared_by_its_two_words_and_a_term_by_its_occurrences() -> None:
    model = model_of(["good", "not good"])
    [found] = explain_linear(model, TfidfTokenizer(model.vocabulary), "not good, good", [(1, "b")])
    shares = {term.text: term.share for term in found.terms}
    assert {term.text: term.count for term in found.terms} == {"good": 2, "not good": 1}
    expected = [shares["not good"] / 2, shares["not good"] / 2 + shares["good"] / 2]
    assert [word.share for word in found.words[:2]] == pytest.approx(expected)
    assert found.words[2].share == pytest.approx(shares["good"] / 2)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("abİΣσßﬁ ,.\n\u0307é図😀_1"), max_size=40))
def test_a_words_place_is_where_it_stands_whatever_lowercasing_does(text: str) -> None:
    spans = word_spans(text)
    assert len(spans) == len(words_and_pairs(text)[::2])
    for (start, stop), word in zip(spans, words_and_pairs(text)[::2], strict=True):
        assert 0 <= start < stop <= len(text)
        assert word in text[start:stop].lower() or "σ" in word or "ς" in word


def test_what_was_cut_off_has_no_share() -> None:
    model = model_of(VOCABULARY)
    tokenizer = TfidfTokenizer(VOCABULARY, max_tokens=2)
    [found] = explain_linear(model, tokenizer, "good bad", [(0, "a")])
    assert [term.text for term in found.terms] == ["good"]
    assert found.words[1].share == 0


def test_the_command_explains_a_tfidf_model_without_captum(
    tiny_tfidf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    text = synthetic.documents(1, seed=5)["text"][0].as_py()
    [found] = predict_texts(str(tiny_tfidf), [text], dtype="float32", device="cpu", explain=True)
    assert found["explanations"]
    assert run(monkeypatch, "predict", str(tiny_tfidf), text, "--explain") == 0
    shown = capsys.readouterr()
    best = found["explanations"][0]["terms"][0]
    assert f"{best['text']} {best['share']:+.2f}" in shown.out
    assert "explain:" in shown.err
