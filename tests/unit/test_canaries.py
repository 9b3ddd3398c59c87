from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_mlc import synthetic
from ray_mlc.errors import ModelError
from ray_mlc.model.canaries import (
    SENTENCES,
    CanaryReport,
    canary_texts,
    check_canaries,
    record_canaries,
)
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import Canaries, ModelFolder, open_model
from ray_mlc.model.tokenization import Tokenizer


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def check(folder: Path, *, dtype: str = "float32") -> CanaryReport:
    model = open_model(str(folder))
    canaries = model.canaries()
    assert canaries is not None
    rules = model.info.decision.rules(model.label_set)
    return check_canaries(load(model, dtype=dtype), canaries, rules)


def load(model: ModelFolder, *, dtype: str = "float32") -> Classifier:
    tokenizer = Tokenizer.load(model.path)
    engine = TorchEngine.load(model.path, pad_id=tokenizer.pad_id, device="cpu", dtype=dtype)
    return Classifier(model.label_set, tokenizer, engine, 2048)


def edit_weights(folder: Path, name_part: str, change: object) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    names = [name for name in weights if name_part in name]
    assert names
    for name in names:
        weights[name] = change(weights[name]).contiguous()  # type: ignore[operator]
    save_file(weights, file, metadata={"format": "pt"})


def test_the_same_weights_hold(tiny_model: Path) -> None:
    report = check(tiny_model)
    assert report.holds
    assert report.flips == 0
    assert report.cells == len(synthetic.LABELS) * len(open_model(str(tiny_model)).canaries().texts)


def test_a_slight_change_of_one_layer_is_caught(folder: Path) -> None:
    edit_weights(folder, "layer.0.output.dense.weight", lambda weight: weight * 1.01)
    assert not check(folder).holds


def test_weights_of_another_training_are_caught_at_any_precision(folder: Path) -> None:
    torch.manual_seed(1)
    edit_weights(folder, "word_embeddings", torch.randn_like)
    assert not check(folder).holds
    assert not check(folder, dtype="bfloat16").holds


def test_heads_in_another_order_are_caught(folder: Path) -> None:
    edit_weights(folder, "classifier.", lambda weight: weight.flip(0))
    assert not check(folder).holds


def test_another_tokenizer_is_caught(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    moved = [*pieces[:5], *pieces[6:], pieces[5]]  # all ids but the special ones move by one
    content["model"]["vocab"] = {piece: index for index, piece in enumerate(moved)}
    file.write_text(json.dumps(content))
    assert not check(folder).holds


def test_weights_that_are_not_numbers_are_caught(folder: Path) -> None:
    edit_weights(folder, "pooler.dense.bias", lambda bias: bias * torch.nan)
    report = check(folder)
    assert not report.holds
    assert np.isnan(report.max_difference)


def test_scores_of_another_shape_do_not_belong_to_the_folder(
    tiny_classifier: Classifier,
) -> None:
    canaries = Canaries(texts=["a"], scores=[[0.5, 0.5]])
    with pytest.raises(ModelError, match="do not belong together"):
        check_canaries(tiny_classifier, canaries, Rules(np.full(2, 0.5, np.float32)))


def test_texts_are_the_same_each_time_and_of_all_lengths(tiny_model: Path) -> None:
    tokenizer = Tokenizer.load(tiny_model)
    texts = canary_texts(tokenizer)
    assert texts == canary_texts(Tokenizer.load(tiny_model))
    assert texts == open_model(str(tiny_model)).canaries().texts
    assert texts[: len(SENTENCES)] == list(SENTENCES)
    assert canary_texts(tokenizer, seed=1) != texts
    words = [len(text.split()) for text in texts[len(SENTENCES) :]]
    assert {1, 2, 3, 4, 6, 8, 12, 16, 24, 32} == set(words)
    longest = int(tokenizer.encode(texts).n_tokens.max())
    assert longest >= tokenizer.max_tokens  # the cut is looked at too


def test_recorded_scores_survive_json_bit_by_bit(tiny_classifier: Classifier) -> None:
    canaries = record_canaries(tiny_classifier)
    again = Canaries.model_validate_json(canaries.model_dump_json())
    scores_NL = tiny_classifier.predict_proba(canaries.texts)
    assert np.array_equal(np.array(again.scores, np.float32), scores_NL)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_coarser_precision_is_judged_by_its_own_limit(dtype: str) -> None:
    near = CanaryReport(max_difference=0.049, flips=5, cells=1000, dtype=dtype)
    assert near.holds
    assert not replace(near, dtype="float32").holds
    assert not replace(near, max_difference=0.051).holds
    assert not replace(near, flips=6).holds
    assert not replace(near, max_difference=float("nan")).holds
    assert "0.049" in str(near)
