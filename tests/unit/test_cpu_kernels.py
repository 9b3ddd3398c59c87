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
from ray_mlc.training.cpu_kernels import (
    ATTENTION,
    Dropout,
    attention,
    keep_bits,
    kept_share,
    use_cpu_kernels,
)

NO_BACKEND = ["deberta-v2", "mpnet"]
"""Their attention is their own: they get the dropout alone."""
ROTATED = ["eurobert", "modernbert", "nomic_bert"]
KINDS = sorted({"albert", *NO_BACKEND, *ROTATED, *PACKABLE})
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
    module = nn.Identity().train()
    module.is_causal = False
    return module


def tensors(dtype: torch.dtype, *, B: int = 5, H: int = 3, T: int = 7, D: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        # as layers hand them over: heads are a transposed view
        torch.randn(B, T, H, D, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]


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
@pytest.mark.parametrize("hidden", ["nothing", "padding", "added", "by head", "far below"])
def test_attention_and_its_gradients_are_those_of_the_formula(
    hidden: str, dtype: torch.dtype, drawn: list[torch.Tensor]
) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    seen = (torch.arange(7) < torch.tensor([7, 3, 1, 7, 5])[:, None])[:, None, None]
    by_head = torch.rand(5, 3, 7, 7, generator=generator) < 0.8
    by_head[..., 0] = True
    masks = {
        "nothing": None,
        "padding": seen.expand(5, 1, 7, 7),
        "added": torch.randn(1, 1, 7, 7, generator=generator),
        "by head": by_head,
        # the lowest float32 is less than the lowest bfloat16
        "far below": torch.where(seen, 0.0, torch.finfo(torch.float32).min),
    }
    mask = masks[hidden]
    inputs = tensors(dtype)
    found, _ = attention(layer(), *inputs, mask, scaling=0.7, dropout=0.3)
    assert found.shape == (5, 7, 3, 4)
    kept = torch.cat([bits.view(-1, 3, 7, 7) for bits in drawn]) == -1
    assert 0.6 < kept.double().mean() < 0.8

    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    scores = 0.7 * wide[0] @ wide[1].transpose(2, 3)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    expected = ((scores.softmax(-1) * kept / kept_share(0.3)) @ wide[2]).transpose(1, 2)
    assert_close(found, expected)
    for one, other in zip(gradients(found, inputs), gradients(expected, wide), strict=True):
        assert_close(one, other)


def test_attention_expects_what_it_gives_without_dropout() -> None:
    torch.manual_seed(0)
    inputs = [tensor.detach() for tensor in tensors(torch.float32, T=3)]
    draws = [attention(layer(), *inputs, None, dropout=0.2)[0] for _ in range(4000)]
    expected, _ = sdpa_attention_forward(layer(), *inputs, None)
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, rtol=0, atol=0.05)


def test_a_token_that_sees_nothing_is_no_nan() -> None:
    inputs = tensors(torch.bfloat16)
    mask = torch.zeros(5, 1, 7, 7, dtype=torch.bool)
    for hidden in (mask, torch.where(mask, 0.0, torch.finfo(torch.float32).min)):
        found, _ = attention(layer(), *inputs, hidden, dropout=0.1)
        assert all(gradient.isfinite().all() for gradient in gradients(found, inputs))


def test_masks_are_the_same_whatever_threads_there_are() -> None:
    inputs = tensors(torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            found.append(attention(layer(), *inputs, None, dropout=0.5)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def changed(name: str, value: object) -> Any:
    module = layer()
    setattr(module, name, value)
    return module


OTHERWISE: dict[str, dict[str, Any]] = {
    "scored": {"module": changed("training", value=False)},
    "causal": {"module": changed("is_causal", value=True)},
    "asked to be causal": {"is_causal": True},
    "wide": {"dtype": torch.float64},
    "mixed": {"value": torch.randn(5, 3, 7, 4, dtype=torch.float64)},
    "grouped": {"keys": 1, "module": changed("num_key_value_groups", value=3)},
    "a mask that is learnt": {"mask": torch.zeros(5, 1, 7, 7, requires_grad=True)},
    "a mask for all": {"mask": torch.ones(7, 7, dtype=torch.bool)},
    "no dropout": {"dropout": 0.0},
    "all dropped": {"dropout": 1.0},
    **{name: {name: object()} for name in ("position_bias", "cache", "softcap", "s_aux")},
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_is_not_plain_goes_to_pytorchs_attention(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def pytorchs(*arguments: Any, **options: Any) -> tuple[None, None]:
        calls.append({"arguments": arguments, **options})
        return None, None

    module = "transformers.integrations.sdpa_attention.sdpa_attention_forward"
    monkeypatch.setattr(module, pytorchs)
    options = dict(OTHERWISE[what])
    query, key, value = tensors(options.pop("dtype", torch.float32))
    heads = options.pop("keys", 3)
    arguments = (
        options.pop("module", layer()),
        query,
        key[:, :heads],
        options.pop("value", value[:, :heads]),
        options.pop("mask", None),
    )
    dropout = options.pop("dropout", 0.5)
    attention(*arguments, scaling=0.7, dropout=dropout, **options)
    (call,) = calls
    assert call.pop("arguments")[4:] == (arguments[4], dropout, 0.7)
    assert call == options


def test_layers_that_rotate_in_float32_get_what_autocast_asks_for(
    drawn: list[torch.Tensor],
) -> None:
    query, key, value = tensors(torch.float32)
    inputs = [query, key, value.detach().bfloat16().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attention(layer(), *inputs, None, dropout=0.1)
    assert found.dtype == torch.bfloat16
    assert len(drawn) == 1
    assert [item.dtype for item in gradients(found, inputs)] == [item.dtype for item in inputs]


# Whole models


def ready(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    model = classifier_of(kind)
    rng = np.random.default_rng(0)
    # ModernBERT has no last position, and every other layer sees 64 tokens each way
    long = 15 if kind == "modernbert" else 1
    ids = [rng.integers(4, 50, size=length * long).astype(np.int32) for length in (20, 3, 11, 20)]
    input_ids, mask = map(torch.from_numpy, pad(ids, 1))
    return model, {"input_ids": input_ids, "attention_mask": mask}


def learnt(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).logits.square().sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_learns_what_it_learnt_before(
    kind: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = ready(kind)
    # masks that keep all: `p` is not 0, and so nothing goes another way
    monkeypatch.setattr(cpu_kernels, "keep_bits", lambda cells, p: torch.full((cells,), -1).short())
    monkeypatch.setattr(cpu_kernels, "kept_share", lambda p: 1 - 1e-9 if p else 1.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        expected = learnt(model.eval(), batch)
        use_cpu_kernels(model)
        for module in model.modules():
            for name in ("dropout", "attention_dropout", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.1)
        found = learnt(model.train(), batch)
    switched = model.base_model.config._attn_implementation == ATTENTION
    assert switched == (kind not in NO_BACKEND)
    assert found.keys() == expected.keys()
    # all together: biases of keys, which no softmax sees, have rounding for a gradient
    names = sorted(expected)
    one, other = (torch.cat([item[name].flatten() for name in names]) for item in (found, expected))
    assert (one - other).norm() < (0.2 if bfloat16 else 1e-5) * other.norm()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
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


def test_hooks_and_second_names_of_a_dropout_stay() -> None:
    model = nn.Module()
    model.one = model.other = nn.Dropout(0.5)
    called: list[object] = []
    model.one.register_forward_hook(lambda *_: called.append(1))
    use_cpu_kernels(model)
    assert type(model.other) is Dropout
    assert model.one is model.other
    model.other(torch.ones(3))
    assert called == [1]


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
