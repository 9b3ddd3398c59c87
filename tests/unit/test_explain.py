"""`predict --explain`: the words of a text, and what each did for a label."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli import run
from support.models import write_tiny_encoder, write_tiny_model
from transformers import RobertaConfig, RobertaForSequenceClassification

from ray_mlc import synthetic
from ray_mlc.config import WindowsConfig
from ray_mlc.errors import ResourceError
from ray_mlc.model.encoder import load_classifier_model, output_layer
from ray_mlc.model.explain import explain_text
from ray_mlc.model.folder import open_model
from ray_mlc.model.tokenization import Tokenizer
from ray_mlc.runtime.evaluate import predict_texts

TEXTS = synthetic.documents(20, seed=5)["text"].to_pylist()
TEXT = next(text for text in TEXTS if len(text) > 200)
HOSTILE = "Ünïcödé, a\u200bzero-width;  two  spaces\n\t<b>tag</b> 図書館 😀 don't"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """With logits of the size that training makes: shares would drown in rounding else."""
    model = load_classifier_model(tiny_model)
    with torch.no_grad():
        layer = output_layer(model, len(synthetic.LABELS))
        layer.weight.mul_(1 / layer.weight.std())
    return model


def test_positions_that_come_from_ids_are_those_of_the_text(tmp_path: Path) -> None:
    """RoBERTa gives padding no position of its own."""
    write_tiny_encoder(tmp_path / "encoder", seed=0)
    write_tiny_model(tmp_path / "encoder", tmp_path / "model", max_tokens=64)
    tokenizer = Tokenizer.load(tmp_path / "model")
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer.vocabulary) + 10,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=80,
        pad_token_id=tokenizer.pad_id,
        num_labels=3,
        initializer_range=0.5,
    )
    [found] = explain_text(
        RobertaForSequenceClassification(config), tokenizer, TEXT[:100], [(1, "b")]
    )
    total = sum(word.share for word in found.words)
    assert abs(found.logit - found.empty_logit) > 0.05
    assert total == pytest.approx(found.logit - found.empty_logit, abs=0.05)


@pytest.mark.parametrize("text", [TEXT[:150], HOSTILE, "a"])
def test_the_shares_of_the_words_add_up_to_what_the_words_did(
    tiny_model: Path, model: Any, text: str
) -> None:
    tokenizer = Tokenizer.load(tiny_model)
    for found in explain_text(model, tokenizer, text, [(0, "finance"), (3, "health")]):
        total = sum(word.share for word in found.words)
        assert total == pytest.approx(found.logit - found.empty_logit, abs=0.02)
        assert abs(found.error) < 0.02
        for word in found.words:
            assert text[word.start : word.start + len(word.text)] == word.text


@pytest.mark.parametrize("text", [TEXT, HOSTILE])
@pytest.mark.parametrize("windows", [None, WindowsConfig(overlap=3, max_windows=4)])
def test_words_are_those_of_the_tokens_that_are_scored(
    tiny_model: Path, text: str, windows: WindowsConfig | None
) -> None:
    tokenizer = Tokenizer.load(tiny_model, max_tokens=24, windows=windows)
    ragged = tokenizer.encode([text])
    found = tokenizer.words(text)
    assert len(found) == len(ragged.lengths)
    for number, window in enumerate(found):
        assert window.ids.tolist() == ragged.window(number).tolist()
        assert len(window.words) == len(window.ids)
        used = [word for word in window.words if word is not None]
        assert sorted(set(used)) == list(range(len(window.spans)))


def test_of_a_long_text_the_window_is_explained_in_which_the_label_is_strongest(
    tiny_model: Path, model: Any
) -> None:
    tokenizer = Tokenizer.load(tiny_model, max_tokens=16, windows=WindowsConfig(overlap=2))
    windows = tokenizer.words(TEXT)
    assert len(windows) > 2
    with torch.no_grad():
        logits_W = [
            float(model(input_ids=torch.from_numpy(item.ids.astype(np.int64))[None]).logits[0, 2])
            for item in windows
        ]
    [found] = explain_text(model, tokenizer, TEXT, [(2, "x")])
    assert found.window == int(np.argmax(logits_W))
    assert found.logit == pytest.approx(max(logits_W), abs=1e-4)


def test_the_label_that_is_given_is_explained_or_else_the_best(tiny_model: Path) -> None:
    results = predict_texts(
        str(tiny_model), [TEXT[:80], "  "], dtype="float32", device="cpu", explain=True
    )
    first, empty = results
    explained = [item["label"] for item in first["explanations"]]
    best = max(first["scores"], key=first["scores"].__getitem__)
    assert explained == (first["labels"] or [best])
    assert empty["explanations"] == []
    names = open_model(str(tiny_model)).label_set.index
    assert set(explained) <= set(names)


def test_the_command_names_words_and_their_shares(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "predict", str(tiny_model), TEXT[:80], "--explain") == 0
    shown = capsys.readouterr().out
    assert "why " in shown
    assert "without words" in shown
    assert any(f"{word} +" in shown or f"{word} -" in shown for word in TEXT[:80].split())


def test_a_machine_without_captum_is_told_what_to_install(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ResourceError, match=r"pip install 'ray-mlc\[explain\]'"):
        predict_texts(str(tiny_model), ["a"], dtype="float32", device="cpu", explain=True)
