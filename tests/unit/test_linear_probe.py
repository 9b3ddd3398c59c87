from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from support.fitters import LABEL_COUNT, examples, fitter_of, tiny_mean

from ray_mlc.errors import ModelError
from ray_mlc.runtime.train import fits_head
from ray_mlc.training import linear_probe
from ray_mlc.training.linear_probe import SCALE, C, fit_head
from ray_mlc.training.loop import Fitter, TokenizedExamples

ROWS = 60


def pooled(fitter: Fitter, train: TokenizedExamples) -> NDArray[np.float64]:
    """What the head of `tiny_mean` is given, a window at a time and without padding."""
    features = []
    with torch.no_grad():
        for row in range(len(train)):
            windows = train.ids.windows(train.ids.windows_of(np.array([row])))
            hidden = [
                fitter.model.encoder(torch.from_numpy(window)[None].long()).last_hidden_state
                for window in windows
            ]
            features.append(torch.stack([state[0].mean(0) for state in hidden]).mean(0).numpy())
    return np.array(features, np.float64)


def logits(layer: Any, features_NH: NDArray[np.float64]) -> NDArray[np.float64]:
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    return np.asarray(features_NH @ weight.T + bias)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("average", [None, "ema"])
def test_each_label_begins_with_the_regression_that_scikit_learn_finds(
    windowed: bool, average: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "_CELLS_AT_ONCE", 2 * ROWS)  # three labels: two blocks
    train = examples(ROWS, unannotated=True, windowed=windowed)
    fitter = fitter_of(train, model=tiny_mean(), average=average, max_batch_tokens=30)
    assert fit_head(fitter) == LABEL_COUNT
    features_NH = pooled(fitter, train)
    centered_NH = features_NH - features_NH.mean(0)
    centered_NH *= SCALE / centered_NH.std()
    targets_NL = train.targets_BL(np.arange(ROWS))
    found_NL = logits(fitter.model.classifier, features_NH)
    assert np.isnan(targets_NL).any()
    for label in range(LABEL_COUNT):
        known = ~np.isnan(targets_NL[:, label])
        expected = LogisticRegression(C=C, solver="liblinear", tol=1e-9, max_iter=5000)
        expected.fit(centered_NH[known], targets_NL[known, label])
        np.testing.assert_allclose(
            found_NL[:, label], expected.decision_function(centered_NH), atol=2e-3
        )
    assert np.ptp(found_NL, axis=0).min() > 0.01  # not the biases alone
    for name in ("weight", "bias"):
        kept, trained = (getattr(m.classifier, name) for m in (fitter.kept, fitter.model))
        assert torch.equal(kept, trained)


def test_training_goes_on_from_there_and_the_encoder_is_as_it_was() -> None:
    train = examples(ROWS)
    probed, random = (fitter_of(train, model=tiny_mean()) for _ in range(2))
    fit_head(probed)
    encoders = [fitter.model.encoder.state_dict() for fitter in (probed, random)]
    assert all(torch.equal(value, encoders[1][name]) for name, value in encoders[0].items())
    assert not probed.optimizer.state
    losses: list[list[float]] = [[], []]
    for fitter, seen in zip((probed, random), losses, strict=True):
        fitter.run_epoch(0, on_step=lambda _, loss, seen=seen: seen.append(loss))  # type: ignore[misc]
    assert losses[0][0] < losses[1][0] - 0.05


def test_a_label_that_no_row_has_or_all_have_keeps_its_first_weights() -> None:
    train = examples(ROWS)
    without = train.positive_columns != 1
    rows = np.repeat(np.arange(ROWS), np.diff(train.positive_offsets))[without]
    train = TokenizedExamples(
        ids=train.ids,
        positive_offsets=np.append(0, np.cumsum(np.bincount(rows, minlength=ROWS))),
        positive_columns=train.positive_columns[without],
        unannotated_offsets=train.unannotated_offsets,
        unannotated_columns=train.unannotated_columns,
        label_count=LABEL_COUNT,
    )
    fitter = fitter_of(train, model=tiny_mean())
    before = fitter.model.classifier.weight.detach().clone()
    assert fit_head(fitter) == LABEL_COUNT - 1
    moved = (fitter.model.classifier.weight != before).all(dim=1)
    assert moved.tolist() == [True, False, True]


def test_of_many_documents_some_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "MOST_DOCUMENTS", 40)
    train = examples(ROWS)
    heads = []
    for seed in (0, 0, 1):
        fitter = fitter_of(train, model=tiny_mean(), seed=seed)
        fit_head(fitter)
        heads.append(fitter.model.classifier.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_without_an_output_per_label_is_refused_with_what_to_set() -> None:
    fitter = fitter_of(examples(8), model=tiny_mean())
    fitter.model.classifier = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"training\.head_init is linear_probe.*set it to random"):
        fit_head(fitter)


def test_a_head_that_sees_every_token_is_refused() -> None:
    fitter = fitter_of(examples(8), model=tiny_mean())
    with pytest.raises(ModelError, match="one vector a document"):
        fitter.head_inputs(fitter.model.encoder.encoder.layer[0].output.dense, np.arange(8))


def test_only_a_training_without_a_checkpoint_fits_its_head() -> None:
    settings = fitter_of(examples(8), head_init="linear_probe").config
    first = {"epoch": 0, "step": 0}
    assert fits_head(first, settings)
    assert not fits_head(first, fitter_of(examples(8)).config)
    assert not fits_head({"epoch": 0, "step": 2}, settings)
    assert not fits_head({"epoch": 1, "step": 0}, settings)
