from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from support.fitters import LABEL_COUNT, examples, fitter_of, tiny_bert, tiny_mean

from ray_mlc.errors import ModelError
from ray_mlc.runtime.train import fits_head
from ray_mlc.training import linear_probe
from ray_mlc.training.epoch import TokenizedExamples
from ray_mlc.training.linear_probe import SCALE, C, check_head, fit_head
from ray_mlc.training.loop import Fitter

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


def only(train: TokenizedExamples, kept: NDArray[np.bool_]) -> TokenizedExamples:
    """The same documents with some of their labels."""
    rows = np.repeat(np.arange(len(train)), np.diff(train.positive_offsets))[kept]
    offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=len(train))))
    return replace(train, positive_offsets=offsets, positive_columns=train.positive_columns[kept])


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


@pytest.mark.parametrize("all_have", [False, True])
def test_a_label_that_no_row_has_or_all_have_keeps_its_first_weights(all_have: bool) -> None:
    train = examples(ROWS)
    if all_have:  # of those that were asked
        lacks_N = train.targets_BL(np.arange(ROWS))[:, 1] == 0
        train = replace(
            train,
            unannotated_offsets=np.append(0, np.cumsum(lacks_N)),
            unannotated_columns=np.ones(lacks_N.sum(), np.int32),
        )
    else:
        train = only(train, train.positive_columns != 1)
    fitter = fitter_of(train, model=tiny_mean())
    before = fitter.model.classifier.weight.detach().clone()
    assert fit_head(fitter) == LABEL_COUNT - 1
    moved = (fitter.model.classifier.weight != before).all(dim=1)
    assert moved.tolist() == [True, False, True]


def test_a_label_in_a_cell_that_nobody_annotated_is_not_read() -> None:
    train = examples(ROWS)
    lacks_N = train.targets_BL(np.arange(ROWS))[:, 1] == 1
    open_only = replace(  # all that have it are asked for nothing
        train,
        unannotated_offsets=np.append(0, np.cumsum(lacks_N)),
        unannotated_columns=np.ones(lacks_N.sum(), np.int32),
    )
    fitter = fitter_of(open_only, model=tiny_mean())
    assert fit_head(fitter) == LABEL_COUNT - 1
    assert torch.isfinite(fitter.model.classifier.bias).all()


def test_how_much_is_done_is_told_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "_CELLS_AT_ONCE", ROWS)
    told: list[float] = []
    fit_head(fitter_of(examples(ROWS), model=tiny_mean()), told.append)
    assert told == pytest.approx([1 / 3, 2 / 3, 1])


def test_of_many_documents_some_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "MOST_CELLS", 40 * 16)  # of 16 features
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
    for refused in (lambda: fit_head(fitter), lambda: check_head(fitter.model, LABEL_COUNT)):
        with pytest.raises(ModelError, match=r"head_init is linear_probe.*set it to random"):
            refused()


class EveryToken(torch.nn.Module):
    """A head on each token, of which one is taken, as of decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(4, LABEL_COUNT)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        del input_ids
        logits_BTL: torch.Tensor = self.score(attention_mask[..., None].expand(-1, -1, 4).float())
        return logits_BTL[:, -1]


def test_a_head_that_is_not_asked_is_refused() -> None:
    with pytest.raises(ModelError, match=r"one vector a document: set it to random"):
        check_head(Unused(), LABEL_COUNT)


class Unused(EveryToken):
    """A head that nothing goes through."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        del input_ids
        return attention_mask.float()


def test_a_head_that_sees_every_token_is_refused_and_others_are_not() -> None:
    with pytest.raises(ModelError, match=r"one vector a document: set it to random"):
        check_head(EveryToken(), LABEL_COUNT)
    for model in (tiny_mean(), tiny_bert()):
        check_head(model, LABEL_COUNT)


def test_a_stock_head_is_fitted_on_what_its_last_layer_sees() -> None:
    train = examples(ROWS)
    fitter = fitter_of(train)
    assert fit_head(fitter) == LABEL_COUNT
    model = fitter.model
    logits_NL = torch.logit(torch.from_numpy(fitter.predict(train)["max"]).double()).numpy()
    features_NH = fitter.head_inputs(model.classifier, np.arange(ROWS))
    np.testing.assert_allclose(
        logits(model.classifier, features_NH.astype(np.float64)), logits_NL, atol=1e-4
    )
    # the bias is nearly free: scores of a label add up to the documents that have it
    scores_L = (1 / (1 + np.exp(-logits_NL))).sum(axis=0)
    np.testing.assert_allclose(scores_L, train.targets_BL(np.arange(ROWS)).sum(axis=0), atol=0.5)


def test_a_label_of_three_rows_in_thousands_is_not_expected_more_often() -> None:
    train = examples(3_000)
    # of the last label the first three alone
    kept = (train.positive_columns != 2) | (np.cumsum(train.positive_columns == 2) <= 3)
    fitter = fitter_of(only(train, kept), model=tiny_mean())
    assert fit_head(fitter) == LABEL_COUNT
    assert 2.9 < fitter.predict(train)["max"][:, 2].sum() < 4


def test_features_that_are_not_finite_are_refused() -> None:
    fitter = fitter_of(examples(8), model=tiny_mean())
    with torch.no_grad():
        fitter.model.encoder.embeddings.word_embeddings.weight[5] = torch.nan
    with pytest.raises(ModelError, match="not finite: check its weights"):
        fit_head(fitter)


@pytest.mark.parametrize(
    ("amp_dtype", "scale", "fitted"),
    [
        (None, 0.0, 0),
        (None, 1e-3, LABEL_COUNT),
        (torch.bfloat16, 1e-3, 0),  # documents differ by 0.0008 of their size: less than it rounds
        (torch.bfloat16, 0.1, LABEL_COUNT),
    ],
)
def test_a_head_stays_random_where_documents_differ_by_rounding_alone(
    amp_dtype: torch.dtype | None, scale: float, fitted: int
) -> None:
    fitter = fitter_of(examples(ROWS), model=tiny_mean())
    fitter.amp_dtype = amp_dtype
    with torch.no_grad():
        norm = fitter.model.encoder.encoder.layer[-1].output.LayerNorm
        norm.weight.fill_(scale)
        norm.bias.fill_(0.3)
    before = fitter.model.classifier.weight.detach().clone()
    assert fit_head(fitter) == fitted
    assert torch.equal(fitter.model.classifier.weight, before) == (fitted == 0)


def test_only_a_training_without_a_checkpoint_fits_its_head() -> None:
    settings = fitter_of(examples(8), head_init="linear_probe").config
    first = {"epoch": 0, "step": 0}
    assert fits_head(first, settings)
    assert not fits_head(first, fitter_of(examples(8)).config)
    assert not fits_head({"epoch": 0, "step": 2}, settings)
    assert not fits_head({"epoch": 1, "step": 0}, settings)
