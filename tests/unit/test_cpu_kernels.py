"""Dropout and attention of training on CPU: the same mathematics as PyTorch's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import classifier_of
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ray_mlc.model.engines.packing import PACKABLE
from ray_mlc.model.engines.protocol import pad
from ray_mlc.training import cpu_kernels
from ray_mlc.training.cpu_kernels import Dropout, attention, keep_bits, kept_share, use_cpu_kernels

KINDS = sorted({"deberta-v2", "mpnet", "albert", *PACKABLE})
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[1 << 19, 300], ids=["all at once", "in spans"])
def spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Documents that are worked on together, and a document or two at a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(cpu_kernels, "CELLS_AT_ONCE", request.param)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every mask that is drawn, as it is drawn."""
    masks: list[torch.Tensor] = []

    def recorded(cells: int, p: float) -> torch.Tensor:
        masks.append(keep_bits(cells, p))
        return masks[-1].clone()

    monkeypatch.setattr(cpu_kernels, "keep_bits", recorded)
    return masks


def layer() -> Any:
    """What an attention function reads of its layer."""
    return nn.Identity().train()


def tensors(dtype: torch.dtype, *, B: int = 5, H: int = 3, T: int = 7, D: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        # as layers hand them over: heads are a transposed view
        torch.randn(B, T, H, D, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]


def seen(lengths: list[int]) -> torch.Tensor:
    """A padding mask, shape [B, 1, 1, T]."""
    return (torch.arange(7) < torch.tensor(lengths)[:, None])[:, None, None]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(output.shape, generator=generator).to(output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 2e-2 if found.dtype == torch.bfloat16 else 1e-5
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance * largest)


# Masks


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_masks_keep_the_share_that_is_asked_for(p: float) -> None:
    torch.manual_seed(0)
    bits = keep_bits(1_000_001, p)
    assert bits.dtype == torch.int16
    assert set(bits.unique().tolist()) == {-1, 0}
    assert (bits == -1).double().mean().item() == pytest.approx(1 - p, abs=2e-3)
    assert kept_share(p) == pytest.approx(1 - p, abs=2**-15)


def test_neighbors_in_a_mask_have_nothing_to_do_with_each_other() -> None:
    torch.manual_seed(0)
    kept = (keep_bits(1_000_000, 0.5) == -1).double()
    for distance in (1, 2, 3, 4, 8, 64):
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=3e-3), distance


def test_masks_follow_the_seed_of_pytorch_and_never_repeat_within_it() -> None:
    torch.manual_seed(3)
    first, second = keep_bits(999, 0.1), keep_bits(999, 0.1)
    torch.manual_seed(3)
    assert torch.equal(keep_bits(999, 0.1), first)
    assert not torch.equal(first, second)


# Dropout


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_zeroes_some_cells_scales_the_others_and_sends_gradients_the_same_way(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    values = torch.randn(40, 50).to(dtype).t().requires_grad_()
    output = Dropout(0.25).train()(values)
    kept = output != 0
    assert 0.7 < kept.double().mean() < 0.8
    assert output.dtype == dtype
    assert_close(output[kept], values[kept] / 0.75)
    (gradient,) = torch.autograd.grad(output.sum(), [values])
    assert_close(gradient, kept.to(dtype) / 0.75)


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_dropout_is_pytorchs_where_nothing_is_to_be_drawn(p: float) -> None:
    values = torch.randn(4, 5)
    assert torch.equal(Dropout(p).eval()(values), values)
    if p in (0.0, 1.0):
        assert torch.equal(Dropout(p).train()(values), values * (1 - p))
    doubles = torch.ones(1000, dtype=torch.float64)
    assert Dropout(0.5).train()(doubles).unique().tolist() == [0.0, 2.0]


# Attention


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", ["nothing", "padding", "added", "by head"])
def test_without_dropout_attention_and_its_gradients_are_pytorchs(
    hidden: str, dtype: torch.dtype
) -> None:
    masks = {
        "nothing": None,
        "padding": seen([7, 3, 1, 7, 5]).expand(5, 1, 7, 7),
        "added": torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(2)).to(dtype),
        "by head": torch.rand(5, 3, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.8,
    }
    if hidden == "by head":
        masks[hidden][..., 0] = True
    inputs = tensors(dtype)
    arguments = (layer(), *inputs, masks[hidden])
    found, _ = attention(*arguments, scaling=0.7)
    expected, _ = sdpa_attention_forward(*arguments, scaling=0.7, is_causal=False)
    assert found.grad_fn is not None
    assert found.shape == expected.shape == (5, 7, 3, 4)
    assert_close(found, expected)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert_close(one, other)


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_within_attention_is_that_of_its_formula(
    dtype: torch.dtype, drawn: list[torch.Tensor]
) -> None:
    torch.manual_seed(0)
    inputs = tensors(dtype)
    mask = seen([7, 3, 1, 7, 5])
    found, _ = attention(layer(), *inputs, mask, scaling=0.7, dropout=0.3)
    kept = torch.cat([bits.view(-1, 3, 7, 7) for bits in drawn]) == -1
    assert 0.6 < kept.double().mean() < 0.8

    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    scores = (0.7 * wide[0] @ wide[1].transpose(2, 3)).masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) * kept / kept_share(0.3)) @ wide[2]
    assert_close(found, expected.transpose(1, 2))
    for one, other in zip(
        gradients(found, inputs), gradients(expected.transpose(1, 2), wide), strict=True
    ):
        assert_close(one, other)


def test_what_is_not_plain_goes_to_pytorchs_attention(drawn: list[torch.Tensor]) -> None:
    query, key, value = tensors(torch.float32)
    few = [tensor[:, :1] for tensor in (key, value)]
    grouped = layer()
    grouped.num_key_value_groups = 3
    evaluated = layer().eval()
    causal = layer()
    causal.is_causal = True
    attention(grouped, query, *few, None, dropout=0.5)
    attention(evaluated, query, key, value, None)
    found, _ = attention(causal, query, key, value, None, dropout=0.0)
    assert drawn == []
    first_value = value[:, :, 0].reshape(5, 3, 4)
    assert_close(found[:, 0], first_value)  # the first token of a causal model sees itself alone


# Whole models


def ready(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    model = classifier_of(kind)
    rng = np.random.default_rng(0)
    # ModernBERT has no last position, and every other layer sees 64 tokens each way
    long = 15 if kind == "modernbert" else 1
    ids = [rng.integers(4, 50, size=length * long).astype(np.int32) for length in (20, 3, 11, 20)]
    input_ids, mask = map(torch.from_numpy, pad(ids, 1))
    return model, {"input_ids": input_ids, "attention_mask": mask}


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        for name in ("p", "drop_prob", "attention_dropout", "dropout_prob", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def learnt(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).logits.square().sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_learns_what_it_learnt_before(kind: str) -> None:
    model, batch = ready(kind)
    without_dropout(model)
    expected = learnt(model, batch)
    use_cpu_kernels(model)
    found = learnt(model, batch)
    assert found.keys() == expected.keys()
    # of the largest of all: biases of keys, which no softmax sees, have rounding for a gradient
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_no_mask_of_a_training_step_is_drawn_by_pytorch(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = ready(kind)
    use_cpu_kernels(model.train())

    def fails(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("PyTorch's own dropout")

    monkeypatch.setattr(nn.functional, "dropout", fails)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", fails)
    assert learnt(model, batch)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_a_model_scores_and_is_saved_as_before(kind: str, tmp_path: Path) -> None:
    model, batch = ready(kind)
    model.eval()
    model.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        expected = model(**batch).logits
    use_cpu_kernels(model)
    use_cpu_kernels(model)  # and again: nothing more happens
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
    model.save_pretrained(tmp_path / "after")
    configs = [
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after")
    ]
    assert configs[0] == configs[1]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "after").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
