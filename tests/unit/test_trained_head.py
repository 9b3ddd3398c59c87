"""A training that goes on from a model keeps what its head knows, label by label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import classifier_of

from ray_mlc.labels import LabelSet
from ray_mlc.model.encoder import labels_of, new_classifier_model, output_layer
from ray_mlc.model.folder import open_model
from ray_mlc.model.trained_head import trained_head, why_not_kept

OLD = LabelSet(("a", "b", "c"))
BIAS = np.array([-1.0, 0.5, 2.0])
PRIOR = np.array([-7.0, -8.0, -9.0, -10.0])
KINDS = [
    ("bert", "auto"),
    ("distilbert", "auto"),
    ("roberta", "auto"),
    ("modernbert", "mean"),
    ("bert", "mean"),
    ("mpnet", "cls"),
    ("albert", "auto"),
    ("deberta-v2", "auto"),
]
IDS = torch.tensor([[5, 6, 7, 9], [8, 4, 12, 30]])


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, NDArray[Any]]:
    """A model of each kind with a head that says something; its pooling, and its logits."""
    kind, pooling = request.param
    folder = tmp_path_factory.mktemp(kind)
    classifier_of(kind).save_pretrained(folder / "encoder")
    model = new_classifier_model(
        folder / "encoder", OLD, head_bias=BIAS, seed=0, pooling=pooling
    ).eval()
    with torch.no_grad():
        output_layer(model, 3).weight.normal_()
    model.save_pretrained(folder / "model")
    return folder / "model", pooling, logits(model)


def logits(model: Any) -> NDArray[Any]:
    with torch.no_grad():
        return np.asarray(model.eval()(input_ids=IDS).logits)


def test_labels_keep_their_logits_wherever_they_stand_and_new_ones_begin_at_their_rate(
    trained: tuple[Path, str, NDArray[Any]],
) -> None:
    folder, pooling, before_NL = trained
    label_set = LabelSet(("c", "new", "a", "other"))  # b is lost
    model = new_classifier_model(folder, label_set, head_bias=PRIOR, seed=1, pooling=pooling)
    head = trained_head(folder, label_set, pooling=pooling)
    assert head is not None
    assert head.give(model, label_set).tolist() == [True, False, True, False]
    found_NL = logits(model)
    np.testing.assert_allclose(found_NL[:, [0, 2]], before_NL[:, [2, 0]], rtol=1e-5)
    layer = output_layer(model, 4)
    assert layer.bias.tolist() == [2.0, -8.0, -1.0, -10.0]
    assert 0 < layer.weight[[1, 3]].abs().max() < 0.2 < layer.weight[[0, 2]].abs().max()


def test_without_it_as_many_labels_of_the_same_names_begin_anew(
    trained: tuple[Path, str, NDArray[Any]],
) -> None:
    folder, pooling, before_NL = trained
    model = new_classifier_model(folder, OLD, head_bias=None, seed=1, pooling=pooling)
    layer = output_layer(model, 3)
    assert layer.bias.tolist() == [0, 0, 0]
    assert layer.weight.abs().max() < 0.2
    head = trained_head(folder, OLD, pooling=pooling)
    assert head is not None
    head.give(model, OLD)
    np.testing.assert_allclose(logits(model), before_NL, rtol=1e-5)


def test_a_head_for_other_labels_or_another_pooling_is_none(
    trained: tuple[Path, str, NDArray[Any]],
) -> None:
    folder, pooling, _ = trained
    others = LabelSet(("x", "y", "z"))
    assert trained_head(folder, others, pooling=pooling) is None
    assert why_not_kept(folder, others, pooling=pooling) == "it has none of the labels"
    other = "mean" if pooling != "mean" else "cls"
    assert trained_head(folder, OLD, pooling=other) is None
    why = why_not_kept(folder, OLD, pooling=other)
    assert why == f"it pools otherwise than training.pooling={other}"
    assert why_not_kept(folder, OLD, pooling=pooling) is None


def test_one_label_goes_on_too(tmp_path: Path) -> None:
    classifier_of("bert").save_pretrained(tmp_path / "encoder")
    one = LabelSet(("a",))
    model = new_classifier_model(tmp_path / "encoder", one, head_bias=np.array([-2.0]), seed=0)
    model.save_pretrained(tmp_path / "model")
    again = new_classifier_model(tmp_path / "model", one, head_bias=np.array([-5.0]), seed=1)
    head = trained_head(tmp_path / "model", one, pooling="auto")
    assert head is not None
    head.give(again, one)
    np.testing.assert_array_equal(logits(again), logits(model))


@pytest.mark.parametrize("problem", ["single_label_classification", None])
def test_classes_that_exclude_each_other_are_no_labels(problem: str | None, tmp_path: Path) -> None:
    classifier = classifier_of("bert")
    classifier.config.problem_type = problem
    names = [classifier.config.id2label[place] for place in range(classifier.config.num_labels)]
    classifier.save_pretrained(tmp_path)
    label_set = LabelSet(tuple(names))
    assert labels_of(tmp_path) == names
    assert trained_head(tmp_path, label_set, pooling="auto") is None
    why = why_not_kept(tmp_path, label_set, pooling="auto")
    assert why == (
        f"config.json has problem_type {problem!r}, expected 'multi_label_classification'"
    )
    assert trained_head(tmp_path, OLD, pooling="auto") is None
    assert why_not_kept(tmp_path, OLD, pooling="auto") is None  # a bare encoder's may be so too


def test_labels_in_the_configuration_of_a_bare_encoder_are_no_head(tmp_path: Path) -> None:
    classifier = classifier_of("bert")
    classifier.base_model.config.id2label = dict(enumerate(OLD.names))
    classifier.base_model.config.problem_type = "multi_label_classification"
    classifier.base_model.save_pretrained(tmp_path)
    assert labels_of(tmp_path) == list(OLD.names)
    assert trained_head(tmp_path, OLD, pooling="auto") is None


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_pooled_model_goes_on_with_its_own_pooling_or_by_its_name(
    pooling: str, make_model: Callable[..., Path]
) -> None:
    folder = make_model(pooling="mean")
    label_set = open_model(str(folder)).label_set
    head = trained_head(folder, label_set, pooling=pooling)
    assert head is not None
    assert head.names == label_set.names
