from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import classifier_of
from torch import nn

from ray_mlc.model.encoder import load_classifier_model
from ray_mlc.model.engines import onednn
from ray_mlc.model.engines.onednn import (
    PACKED_TYPES,
    PackedLinear,
    pack_encoder,
    pack_linears,
)

pytestmark = pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_multiplies_as_before(dtype: torch.dtype, bias: bool) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor cannot multiply bfloat16")
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias).to(dtype).eval()
    inputs = torch.randn(3, 7, 24).to(dtype)
    with torch.inference_mode():
        for packed, expected in (
            (PackedLinear(linear), linear(inputs)),
            (PackedLinear(linear, gelu=True), nn.functional.gelu(linear(inputs))),
        ):
            found = packed(inputs)
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


def test_every_linear_of_a_model_is_packed_and_its_logits_stay(tiny_model: Path) -> None:
    model, plain = (load_classifier_model(tiny_model).eval() for _ in range(2))
    linears = sum(type(module) is nn.Linear for module in plain.modules())
    assert pack_linears(model) == linears == 8
    assert not any(type(module) is nn.Linear for module in model.modules())
    ids = torch.randint(5, 200, (4, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (model, plain))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", sorted(PACKED_TYPES))
def test_kinds_that_are_packed_give_the_same_logits(model_type: str) -> None:
    model, plain = (classifier_of(model_type).eval() for _ in range(2))
    assert pack_encoder(model) > 8
    ids = torch.randint(5, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (model, plain))
    assert expected.std(dim=0).min() > 1e-4  # else constants would be compared
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_kinds_that_look_into_their_layers_are_left_alone() -> None:
    model = classifier_of("t5").eval()
    assert pack_encoder(model) == 0


class FeedForward(nn.Module):
    """Names as in DistilBERT."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.lin1, self.activation = nn.Linear(8, 16), activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.activation(self.lin1(inputs))


@pytest.mark.parametrize(
    ("activation", "fused"),
    [(nn.GELU(), True), (nn.GELU(approximate="tanh"), False), (nn.ReLU(), False)],
)
def test_only_the_exact_gelu_is_computed_together_with_its_layer(
    activation: nn.Module, fused: bool
) -> None:
    torch.manual_seed(0)
    model = FeedForward(activation).eval()
    inputs = torch.randn(5, 8)
    with torch.inference_mode():
        expected = model(inputs)
        assert pack_linears(model) == 1
        assert isinstance(model.activation, nn.Identity) == fused
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)


def test_layers_that_do_more_than_multiply_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4).to(torch.float16))
    assert pack_linears(model) == 0
