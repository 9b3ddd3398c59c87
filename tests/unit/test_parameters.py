from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fitters import settings_of, tiny_bert
from support.models import classifier_of

from ray_mlc.errors import ModelError
from ray_mlc.model.encoder import encoder_layers
from ray_mlc.training.parameters import (
    head_bias,
    layer_scales,
    learning_rate_factor,
    parameter_groups,
)

# The rate


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    total=st.integers(1, 200),
    warmup=st.floats(0, 0.9),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_the_rate_rises_to_its_peak_and_never_rises_again(
    total: int, warmup: float, schedule: str
) -> None:
    factors = [
        learning_rate_factor(step, total=total, warmup=warmup, schedule=schedule)
        for step in range(total)
    ]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
    peak = int(np.argmax(factors))
    assert factors[peak] == 1
    assert all(np.diff(factors[: peak + 1]) > 0)
    assert all(np.diff(factors[peak:]) <= 0)
    assert peak <= max(1, round(total * warmup))


def test_the_schedules_have_their_shapes() -> None:
    def at(step: int, schedule: str) -> float:
        return learning_rate_factor(step, total=110, warmup=0.0909, schedule=schedule)

    assert at(4, "linear") == pytest.approx(0.5)  # 10 steps of warm-up
    assert at(60, "linear") == pytest.approx(0.5)
    assert at(35, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert at(109, "constant") == 1
    assert at(110, "linear") == 0


# The head's first bias


def test_the_prior_gives_each_label_its_rate() -> None:
    rates_L = np.array([0.5, 0.01, 0.0, 1.0])
    bias_L = head_bias("prior", rates_L, rows=10_000)
    scores_L = 1 / (1 + np.exp(-bias_L))
    np.testing.assert_allclose(scores_L, rates_L, atol=1e-4)
    assert np.isfinite(bias_L).all()
    assert head_bias(-2.0, rates_L, rows=10).tolist() == [-2.0] * 4
    assert head_bias(None, rates_L, rows=10) is None


# Groups


def test_options_that_are_off_leave_the_parameter_groups_as_they_were() -> None:
    model = tiny_bert(layers=3)
    groups = parameter_groups(model, settings_of())
    assert len(groups) == 4
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {
        (5e-3, 0.01), (5e-3, 0.0), (1e-2, 0.01), (1e-2, 0.0)
    }  # fmt: skip
    assert layer_scales(None, 1.0) == {}


KINDS = ("bert", "distilbert", "roberta", "electra", "mpnet", "deberta-v2", "modernbert", "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_learns_slower_than_the_one_above_it(kind: str) -> None:
    model = classifier_of(kind)
    layers = list(encoder_layers(model.base_model))
    assert len(layers) == 2
    peaks = {
        id(parameter): group["peak"] / 5e-3
        for group in parameter_groups(model, settings_of(layer_decay=0.5, head_learning_rate=None))
        for parameter in group["params"]
    }
    assert len(peaks) == len(list(model.parameters()))
    for scale, layer in ((0.5, layers[0]), (1.0, layers[1])):
        assert {peaks[id(parameter)] for parameter in layer.parameters()} == {scale}
    embedding = model.get_input_embeddings().weight
    assert peaks[id(embedding)] == 0.25
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name or "rel_embeddings" in name or "embeddings" in name:
            assert peaks[id(parameter)] == 0.25, name
        if name.startswith(("classifier", "pooler", "score", "head", "final_norm")):
            assert peaks[id(parameter)] == 1.0, name


@pytest.mark.parametrize("kind", ["albert", "t5"])
def test_layers_that_cannot_be_told_apart_are_refused_only_if_asked_for(kind: str) -> None:
    model = classifier_of(kind)
    assert parameter_groups(model, settings_of())
    with pytest.raises(ModelError, match=r"type (albert|t5) .*set training.layer_decay=1") as error:
        parameter_groups(model, settings_of(layer_decay=0.9))
    assert "\n" not in str(error.value)
