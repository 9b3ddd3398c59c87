from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
)

from ray_mlc.errors import ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.encoder import (
    fetch,
    load_classifier_model,
    load_config,
    max_positions,
    new_classifier_model,
    output_layer,
)
from ray_mlc.training.parameters import freeze_unused

SMALL = {"vocab_size": 40, "num_labels": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 16}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SMALL, **SIZES, **LAYERS, max_position_embeddings=20),
    "distilbert": lambda: DistilBertConfig(
        **SMALL, dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=20
    ),
    "roberta": lambda: RobertaConfig(
        **SMALL, **SIZES, **LAYERS, max_position_embeddings=22, pad_token_id=1
    ),
}
LABELS = LabelSet(("a", "b", "c"))


@pytest.fixture(scope="module", params=CONFIGS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, with a head for two other labels."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(CONFIGS[request.param]()).save_pretrained(folder)
    return folder


def refusal(encoder: str) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(encoder)
    message = str(caught.value)
    assert message.startswith(f"{encoder}: ")
    assert "\n" not in message
    return message


# what the hub's errors ask of a response; the HTTP library beneath differs between versions
RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    "error",
    [
        hub.LocalEntryNotFoundError("no snapshot\nin the cache"),
        hub.OfflineModeIsEnabled("offline\nmode"),
        hub.HfHubHTTPError("503", response=RESPONSE),
        ConnectionError("no route"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreachable_hub_names_the_way_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(error))
    message = refusal("somebody/model")
    assert "cannot be reached" in message
    assert "name its folder instead" in message


def test_offline_mode_of_the_hub_library_is_an_unreachable_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "cannot be reached" in refusal("somebody/model")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (hub.RepositoryNotFoundError("404", response=RESPONSE), "the hub has no such model"),
        (hub.GatedRepoError("403", response=RESPONSE), "log in with `hf auth login`"),
        (hub.RevisionNotFoundError("404", response=RESPONSE), "but not revision v2"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_the_hub_has_not_is_named(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(error))
    assert says in refusal("somebody/model@v2")


def test_id_and_revision_reach_the_hub_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any(fits in allow_patterns for fits in ("*", "*.bin", "*.py"))
        asked.append((repo, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("a/b@v2") == fetch("a/b") == tmp_path
    assert asked == [("a/b", "v2"), ("a/b", None)]


@pytest.mark.parametrize("encoder", ["./models/toxic", "/nowhere/model", "a/b/c", "~/nowhere"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(AssertionError("asked")))
    assert "there is no such folder" in refusal(encoder)


def test_a_name_that_is_no_hub_id_is_told_so() -> None:
    assert "it is no hub id" in refusal("two words")


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(str(tmp_path)) == tmp_path
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fetch("model").samefile(tmp_path / "model")


def test_the_head_starts_from_the_bias_given(encoder: Path) -> None:
    bias_L = np.array([-3.0, 0.5, 2.0])
    model = new_classifier_model(encoder, LABELS, head_bias=bias_L, seed=0)
    head = output_layer(model, 3)
    assert head.bias.tolist() == bias_L.tolist()
    # the last layer before the logits: with its weights at zero they are the bias
    with torch.no_grad():
        head.weight.zero_()
        logits = model.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits
    np.testing.assert_allclose(logits[0].numpy(), bias_L)


def test_labels_and_problem_type_are_those_of_the_job(encoder: Path) -> None:
    config = new_classifier_model(encoder, LABELS, head_bias=None, seed=0).config
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert config.label2id == {"a": 0, "b": 1, "c": 2}


def test_the_seed_makes_the_head_and_the_checkpoint_the_rest(encoder: Path) -> None:
    one, same, other = (
        new_classifier_model(encoder, LABELS, head_bias=None, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert differing
    assert all("classifier" in name or "out_proj" in name for name in differing)


def test_positions_are_tokens_except_where_they_start_later(encoder: Path) -> None:
    limit = max_positions(load_config(encoder))
    assert limit == 20
    model = load_plain(encoder)
    longest = torch.full((1, limit), 5)
    assert model(input_ids=longest).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))


@pytest.mark.parametrize(
    "kind",
    [
        *("camembert", "data2vec-text", "esm", "ibert", "lilt", "luke", "markuplm", "mpnet"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    ],
)
def test_encoders_whose_positions_start_after_padding_read_two_tokens_less(kind: str) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 24, **LAYERS}  # lilt wants multiples of six
    config = AutoConfig.for_model(
        kind, **sizes, vocab_size=40, max_position_embeddings=22, pad_token_id=1
    )
    for name in ("entity_vocab_size", "entity_emb_size"):  # of luke: few, to be fast
        if hasattr(config, name):
            setattr(config, name, 16)
    model = AutoModel.from_config(config).eval()
    limit = max_positions(config)
    assert limit == 20
    languages = {"lang_ids": torch.zeros(1, dtype=torch.long)} if kind == "xmod" else {}
    model(input_ids=torch.full((1, limit), 5), **languages)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5), **languages)


def load_plain(encoder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(encoder).eval()


@pytest.mark.parametrize("positions", [{}, {"max_position_embeddings": -1}])
def test_relative_positions_have_no_limit(positions: dict[str, int]) -> None:
    assert max_positions(SimpleNamespace(model_type="other", **positions)) is None


def test_what_is_frozen_has_no_gradient_and_all_else_has_one(encoder: Path) -> None:
    model = new_classifier_model(encoder, LABELS, head_bias=None, seed=0).train()
    model.unused = torch.nn.Linear(2, 2)
    frozen = freeze_unused(model)
    assert set(frozen) == {"unused.weight", "unused.bias"}
    assert model.training
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in frozen)
        assert (parameter.grad is not None) == parameter.requires_grad


def test_an_encoder_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    for load in (
        lambda: load_config(tmp_path),
        lambda: load_classifier_model(tmp_path),
        lambda: new_classifier_model(tmp_path, LABELS, head_bias=None, seed=0),
    ):
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            load()
        assert "\n" not in str(caught.value)


def raising(error: Exception) -> Callable[..., Any]:
    def download(*_: Any, **__: Any) -> Any:
        raise error

    return download
