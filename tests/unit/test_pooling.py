"""Heads on the first token or the mean: right in every engine, and refused where they cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.models import classifier_of
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    pipeline,
)

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig
from ray_mlc.errors import ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.canaries import TOLERANCE
from ray_mlc.model.decisions import Decision
from ray_mlc.model.encoder import (
    load_classifier_model,
    load_config,
    max_positions,
    new_classifier_model,
    output_layer,
    pooling_of,
)
from ray_mlc.model.engines import onednn, openvino_engine
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.engines.packing import PACKABLE
from ray_mlc.model.engines.protocol import pad
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import open_model, write_decision
from ray_mlc.model.pooling import STOCK_POOLING, PooledClassifier, masked_mean
from ray_mlc.model.tokenization import TokenizerState
from ray_mlc.model.trained_head import trained_head
from ray_mlc.training.parameters import freeze_unused

LABELS = LabelSet(("a", "b", "c"))
BIAS = np.array([-1.0, 0.0, 1.0])
PAD = 1
POOLINGS = ("cls", "mean")
OURS = sorted({"deberta-v2", "mpnet", "albert", *PACKABLE})
TEXTS = synthetic.documents(30, seed=6)["text"].to_pylist()


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of encoders of all kinds, each written once."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            classifier_of(kind).save_pretrained(folders[kind])
        return folders[kind]

    return make


@pytest.fixture(scope="module", params=POOLINGS)
def pooled(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> Path:
    """A model folder with canaries, of each pooling."""
    return make_model(pooling=request.param)


def build(encoder: Path, pooling: str, label_set: LabelSet = LABELS, seed: int = 0) -> Any:
    return new_classifier_model(encoder, label_set, head_bias=BIAS, seed=seed, pooling=pooling)


def spread(model: Any) -> Any:
    """A head whose logits differ from document to document."""
    with torch.no_grad():
        output_layer(model, 3).weight.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval()


def documents(lengths: list[int], seed: int = 0) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 50, size=length).astype(np.int32) for length in lengths]


def logits(model: Any, ids: list[NDArray[np.int32]]) -> NDArray[Any]:
    input_ids, mask = map(torch.from_numpy, pad(ids, PAD))
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=mask).logits.numpy()


# What the head sees


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", OURS)
def test_logits_are_those_of_the_bare_encoder_one_document_at_a_time(
    kind: str, pooling: str, encoder_of: Callable[[str], Path]
) -> None:
    # In float64: what is asked is what the head sees, not how a kernel of float32 rounds.
    model = spread(build(encoder_of(kind), pooling)).double()
    bare = AutoModel.from_pretrained(encoder_of(kind)).double().eval()
    ids = documents([30, 1, 17, 2, 9])
    found_BL = logits(model, ids)
    assert found_BL.std(axis=0).min() > 0.01  # else constants would be compared
    for row, found in zip(ids, found_BL, strict=True):
        with torch.no_grad():
            hidden = bare(input_ids=torch.from_numpy(row.astype(np.int64))[None])
        hidden_TH = hidden.last_hidden_state[0].numpy()
        seen_H = hidden_TH[0] if pooling == "cls" else hidden_TH.mean(axis=0)
        weight_LH = model.classifier.weight.detach().numpy()
        np.testing.assert_allclose(found, weight_LH @ seen_H + BIAS, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", sorted(STOCK_POOLING))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_where_transformers_class_can_pool_so_the_folder_stays_its_own(
    kind: str, pooling: str, encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = build(encoder_of(kind), pooling).eval()
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.classifier_pooling == STOCK_POOLING[kind][pooling]
    ids = documents([9, 3, 14])
    np.testing.assert_array_equal(logits(theirs, ids), logits(model, ids))
    others = build(encoder_of(kind), "mean" if pooling == "cls" else "cls").eval()
    assert np.abs(logits(others, ids) - logits(model, ids)).max() > 1e-6
    assert pooling_of(tmp_path) is None


def test_auto_is_the_class_of_transformers_bit_for_bit(encoder_of: Callable[[str], Path]) -> None:
    model = build(encoder_of("bert"), "auto")
    plain = new_classifier_model(encoder_of("bert"), LABELS, head_bias=BIAS, seed=0)
    assert type(model).__name__ == type(plain).__name__ == "BertForSequenceClassification"
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_what_stands_in_the_padding_does_not_reach_the_mean() -> None:
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    for rubbish in (0.0, 1e30, float("nan"), float("inf")):
        hidden[0, 2:] = rubbish
        torch.testing.assert_close(masked_mean(hidden, mask), expected)


def test_a_mean_in_bfloat16_is_summed_in_float32() -> None:
    hidden = torch.full((1, 512, 1), 1.0078125)  # a bfloat16 sum would stop growing at 256
    mean = masked_mean(hidden.bfloat16(), torch.ones(1, 512, dtype=torch.long))
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1.0078125


def test_every_weight_of_a_pooled_model_learns(encoder_of: Callable[[str], Path]) -> None:
    for kind in ("bert", "distilbert", "deberta-v2"):
        model = build(encoder_of(kind), "mean")
        assert freeze_unused(model) == []
        assert not [name for name, _ in model.named_parameters() if "pooler" in name]
        assert model.get_input_embeddings() is model.encoder.get_input_embeddings()


# Folders


def test_a_pooled_folder_is_opened_by_us_and_refused_by_transformers(pooled: Path) -> None:
    model = open_model(str(pooled))
    assert model.label_set == synthetic.LABELS
    assert pooling_of(pooled) in POOLINGS
    for load in (
        AutoConfig.from_pretrained,
        AutoModel.from_pretrained,
        AutoModelForSequenceClassification.from_pretrained,
        lambda path: pipeline("text-classification", model=str(path), device="cpu"),
    ):
        with pytest.raises(ValueError, match="ray_mlc_pooling"):
            load(pooled)
    assert {file.suffix for file in pooled.iterdir()} <= {
        ".json", ".jsonl", ".md", ".safetensors", ".jinja",
    }  # fmt: skip


def test_its_card_says_who_loads_it_also_with_another_decision(
    make_model: Callable[..., Path], tiny_model: Path
) -> None:
    folder = make_model(pooling="mean")
    metrics: dict[str, dict[str, Any]] = {"at_half": {}, "fitted": {}}
    for _ in range(2):
        card = (folder / "README.md").read_text()
        assert "sees the mean of all last hidden states" in card
        assert "only ray_mlc loads this folder" in card
        assert "from transformers import" not in card
        assert "library_name: ray_mlc" in card
        write_decision(open_model(str(folder)), Decision(threshold=0.3), metrics)
    assert "only ray_mlc" not in (tiny_model / "README.md").read_text()


def test_configuration_and_tokenizer_of_a_pooled_folder_are_its_encoders(
    pooled: Path, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = load_config(pooled), load_config(tiny_encoder)
    assert max_positions(ours) == max_positions(theirs) == 64
    assert (ours.model_type, ours.hidden_size) == (theirs.model_type, theirs.hidden_size)
    found, expected = (asdict(TokenizerState.load(path)) for path in (pooled, tiny_encoder))
    assert json.loads(found.pop("backend")) == json.loads(expected.pop("backend"))
    assert found | {"max_tokens": 64} == expected
    assert caplog.text == ""


@pytest.mark.parametrize("kind", OURS)
def test_what_is_written_is_what_is_read(
    kind: str, encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = spread(build(encoder_of(kind), "mean"))
    model.save_pretrained(tmp_path)
    found = load_classifier_model(tmp_path).eval()
    assert isinstance(found, PooledClassifier)
    assert (found.pooling, found.names) == ("mean", list(LABELS.names))
    assert found.dropout.p == model.dropout.p
    ids = documents([9, 3, 14])
    np.testing.assert_array_equal(logits(found, ids), logits(model, ids))


def test_a_pooling_of_another_program_is_refused(
    encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    build(encoder_of("bert"), "mean").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pooling": "max"}))
    with pytest.raises(ModelError, match=r"config\.json has pooling 'max', expected cls, mean"):
        load_classifier_model(tmp_path)


def test_training_goes_on_from_a_pooled_folder(
    encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    first = spread(build(encoder_of("bert"), "mean"))
    first.save_pretrained(tmp_path)
    ids = documents([9, 3, 14])
    again = new_classifier_model(tmp_path, LABELS, head_bias=None, seed=5)
    assert again.pooling == "mean"
    head = trained_head(tmp_path, LABELS, pooling="auto")
    assert head is not None
    head.give(again, LABELS)
    np.testing.assert_array_equal(logits(again.eval(), ids), logits(first, ids))
    other_head = new_classifier_model(
        tmp_path, LabelSet(("x", "y", "z")), head_bias=None, seed=5, pooling="cls"
    )
    assert (other_head.pooling, other_head.names) == ("cls", ["x", "y", "z"])
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, other_head.encoder.state_dict()[name])
    assert other_head.classifier.weight.std() < 0.1 < first.classifier.weight.std()
    fewer = new_classifier_model(tmp_path, LabelSet(("a",)), head_bias=None, seed=5)
    assert fewer.classifier.weight.shape == (1, 16)


@pytest.mark.parametrize("lost", ["classifier.bias", "encoder.embeddings.word_embeddings.weight"])
def test_weights_that_are_not_all_there_are_refused_by_name(
    lost: str, encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    build(encoder_of("bert"), "cls").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights[lost]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=lost.removeprefix("encoder.")) as caught:
        load_classifier_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_refused_rather_than_drawn_at_random(
    encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(encoder_of("bert"), tmp_path / "model"))
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack .*checkpoint of an encoder"):
        build(folder, "mean")


@pytest.mark.parametrize("content", ["{}", '{"model_type": "ray_mlc_pooling"}', "[]", "\x00"])
def test_a_damaged_configuration_is_one_line(
    content: str, encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    build(encoder_of("bert"), "mean").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    for load in (load_config, load_classifier_model):
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "pooling", "says"),
    [
        ("t5", "mean", "an encoder with a decoder"),
        ("t5", "cls", "an encoder with a decoder"),
        ("gpt2", "cls", "the first token of a gpt2 model sees none of the others"),
    ],
)
def test_poolings_that_mean_nothing_are_refused(
    kind: str, pooling: str, says: str, encoder_of: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        build(encoder_of(kind), pooling)
    assert "set training.pooling=auto" in str(caught.value)


# Engines


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", sorted(PACKABLE))
def test_a_packed_batch_gives_the_logits_of_the_padded_one(
    kind: str, pooling: str, encoder_of: Callable[[str], Path]
) -> None:
    ids = documents([30, 1, 17, 30, 2, 29, 8])
    options: dict[str, Any] = {"pad_id": PAD, "device": "cpu", "dtype": "float32"}
    padded, packed = (
        TorchEngine(spread(build(encoder_of(kind), pooling)), **options, packed=packed)
        for packed in (False, True)
    )
    padded_BL = padded.logits(ids)
    assert padded_BL.std(axis=0).min() > 0.01
    np.testing.assert_allclose(packed.logits(ids), padded_BL, rtol=0, atol=2e-5)
    alone_BL = np.concatenate([packed.logits([row]) for row in ids])
    np.testing.assert_allclose(alone_BL, padded_BL, rtol=0, atol=2e-5)


@pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("kind", OURS)
def test_laid_out_layers_give_the_same_logits(
    kind: str, encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = spread(build(encoder_of(kind), "mean"))
    model.save_pretrained(tmp_path)
    engine = TorchEngine.load(tmp_path, pad_id=PAD, device="cpu", dtype="float32")
    packed = any(isinstance(item, onednn.PackedLinear) for item in engine._model.modules())
    assert packed == (kind in onednn.PACKED_TYPES)
    ids = documents([30, 1, 17, 2])
    np.testing.assert_allclose(engine.logits(ids), logits(model, ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("torch", "float32"),
        ("torch", "bfloat16"),
        pytest.param(
            "openvino",
            "float32",
            marks=pytest.mark.skipif(
                not openvino_engine.available(), reason="OpenVINO is not installed"
            ),
        ),
    ],
)
def test_every_engine_gives_the_scores_of_plain_float32(
    name: str,
    dtype: str,
    pooled: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "openvino-cache"))
    if dtype != "float32":  # a random head lets it flip a label now and then
        monkeypatch.setattr("ray_mlc.model.canaries.MAX_FLIPS", 0.2)
    folder = open_model(str(pooled))
    engine = EngineConfig(name=name, dtype=dtype)  # type: ignore[arg-type]
    chosen = resolve(folder, engine, BatchingConfig(), cuda=False)
    classifier = load_classifier(folder, chosen)
    model = load_classifier_model(pooled).eval()
    ragged = classifier.tokenizer.encode(TEXTS)
    exact_NL = np.concatenate(
        [logits(model, [ragged.window(index)]) for index in range(len(ragged))]
    )
    exact_NL = 1 / (1 + np.exp(-exact_NL))
    assert exact_NL.std(axis=0).max() > 0.05
    limit = 1e-5 if dtype == "float32" else TOLERANCE[dtype]
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), exact_NL, rtol=0, atol=limit)


def test_another_pooling_of_the_same_weights_does_not_pass_the_canaries(
    pooled: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pooled, tmp_path / "model"))
    content = json.loads((folder / "config.json").read_text())
    content["pooling"] = "mean" if content["pooling"] == "cls" else "cls"
    (folder / "config.json").write_text(json.dumps(content))
    engine = EngineConfig(dtype="float32")
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        resolve(open_model(str(folder)), engine, BatchingConfig(), cuda=False)
    assert open_model(str(folder)).digest != open_model(str(pooled)).digest
