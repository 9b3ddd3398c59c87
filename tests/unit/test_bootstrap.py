"""The bootstrap: the same as drawing rows, at another price, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_mlc.evaluation import bootstrap
from ray_mlc.evaluation.metrics import evaluate_scores, per_label
from ray_mlc.evaluation.ranking import means, ranking_at

Cells = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


def sample(documents: int, *, seed: int, masked: float = 0.0, steps: int = 0) -> Cells:
    """Documents of one kind: labels from common to rare, scores that know something of them."""
    rng = np.random.default_rng(seed)
    rates_L = np.geomspace(0.4, 0.03, 6)
    targets_NL = (rng.random((documents, 6)) < rates_L).astype(np.float32)
    scores_NL = 1 / (1 + np.exp(-rng.normal(2.5 * targets_NL - 1.5)))
    if steps:
        scores_NL = np.round(scores_NL * steps) / steps
    scores_NL = scores_NL.astype(np.float32)
    given_NL = scores_NL >= np.float32(0.5)
    targets_NL[rng.random(targets_NL.shape) < masked] = np.nan
    return targets_NL, scores_NL, given_NL


def replicates_of(cells: Cells, count: int) -> bootstrap.Replicates:
    targets_NL, scores_NL, given_NL = cells
    of_decisions, _ = bootstrap.of_decisions(targets_NL, given_NL, replicates=count)
    return {
        **of_decisions,
        **bootstrap.of_scores(targets_NL, scores_NL, replicates=count),
        **bootstrap.of_means(ranking_at(targets_NL, scores_NL, ks=(2,)), replicates=count),
    }


def drawn_rows(documents: int, count: int) -> list[NDArray[np.intp]]:
    weights_NR = np.hstack(list(bootstrap.weights(documents, replicates=count)))
    return [np.repeat(np.arange(documents), column.astype(int)) for column in weights_NR.T]


@pytest.mark.parametrize("steps", [0, 20])
@pytest.mark.parametrize("masked", [0.0, 0.3])
def test_weights_say_what_drawn_rows_would(
    masked: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "_WEIGHT_CELLS", 1_000)  # several blocks of replicates
    cells = sample(80, seed=1, masked=masked, steps=steps)
    found = replicates_of(cells, 25)
    assert all(len(values) == 25 for values in found.values())
    for replicate, rows in enumerate(drawn_rows(80, 25)):
        targets_NL, scores_NL, given_NL = (array[rows] for array in cells)
        expected = evaluate_scores(targets_NL, scores_NL, given_NL)
        expected |= means(ranking_at(targets_NL, scores_NL, ks=(2,)))
        rows_L = per_label(list("abcdef"), targets_NL, scores_NL, given_NL)
        said = [row["f1"] for row in rows_L if row["support"] or row["predicted"]]
        expected["f1_macro"] = float(np.mean(said))  # labels that were not drawn say nothing
        ours = {name: values[replicate] for name, values in found.items()}
        assert ours == pytest.approx(expected, abs=1e-6)


def test_an_interval_of_each_label_follows_its_own_documents() -> None:
    targets_NL, _, given_NL = sample(60, seed=2)
    _, f1_LR = bootstrap.of_decisions(targets_NL, given_NL, replicates=10)
    for replicate, rows in enumerate(drawn_rows(60, 10)):
        figures = per_label(list("abcdef"), targets_NL[rows], targets_NL[rows], given_NL[rows])
        for label, row in enumerate(figures):
            said = row["support"] or row["predicted"]
            expected = row["f1"] if said else math.nan
            assert f1_LR[label, replicate] == pytest.approx(expected, nan_ok=True)


def test_a_label_with_few_positives_gets_no_interval() -> None:
    f1_LR = np.random.default_rng(0).random((2, 100), np.float32)
    found = bootstrap.label_intervals(f1_LR, np.array([0.5, 0.5]), np.array([9, 10]))
    assert found[0] is None
    assert found[1] is not None


def test_rounded_scores_move_pooled_figures_by_nothing_that_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets_NL, scores_NL, _ = sample(400, seed=3)
    exact = bootstrap.of_scores(targets_NL, scores_NL, replicates=100)
    monkeypatch.setattr(bootstrap, "MICRO_STEPS", 128)
    rounded = bootstrap.of_scores(targets_NL, scores_NL, replicates=100)
    for name in ("average_precision_micro", "roc_auc_micro"):
        assert not np.array_equal(exact[name], rounded[name])
        shift = exact[name].mean() - rounded[name].mean()  # of no account to a standard error
        np.testing.assert_allclose(rounded[name] + shift, exact[name], atol=exact[name].std() / 4)
        assert rounded[name].std() == pytest.approx(exact[name].std(), rel=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = evaluate_scores(*sample(200_000, seed=99))
    names = ("f1_micro", "f1_macro", "f1_samples", "accuracy", "loss")
    names += ("average_precision_macro", "average_precision_micro", "roc_auc_macro")
    covered = dict.fromkeys(names, 0)
    for seed in range(100):
        cells = sample(300, seed=seed)
        found = bootstrap.intervals(replicates_of(cells, 200), evaluate_scores(*cells))
        for name in names:
            low, high = found[name] or (0, 0)
            covered[name] += low <= (truth[name] or 0) <= high
    # 95 are meant: of one in a thousand true intervals fewer than 87 cover
    assert all(87 <= times <= 100 for times in covered.values()), covered


def test_more_documents_make_intervals_narrower_as_the_square_root() -> None:
    widths = []
    for documents in (200, 3_200):
        cells = sample(documents, seed=5)
        ends = bootstrap.interval(
            replicates_of(cells, 400)["f1_micro"], evaluate_scores(*cells)["f1_micro"]
        )
        assert ends is not None
        widths.append(ends[1] - ends[0])
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_the_interval_is_the_estimate_give_or_take_1_96_standard_errors() -> None:
    values_R = np.random.default_rng(0).normal(3.0, 0.1, size=10_000)
    low, high = bootstrap.interval(values_R, 0.5) or (0, 0)  # however far the replicates are off
    assert (low, high) == (pytest.approx(0.304, abs=0.01), pytest.approx(0.696, abs=0.01))
    assert bootstrap.interval(values_R, 0.95) == (pytest.approx(0.754, abs=0.01), 1.0)
    losses = bootstrap.intervals({"loss": values_R}, {"loss": 3.0})
    assert losses["loss"] == (pytest.approx(2.804, abs=0.01), pytest.approx(3.196, abs=0.01))


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (
        np.hstack(list(bootstrap.weights(30, replicates=5, seed=seed))) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(first.sum(axis=0), 30)


def test_what_cannot_be_said_has_no_interval() -> None:
    nothing = np.full(100, np.nan)
    assert bootstrap.interval(nothing, 0.5) is None
    assert bootstrap.interval(np.arange(100.0), None) is None
    mostly = np.where(np.arange(100) < 60, np.nan, 1.0)
    assert bootstrap.interval(mostly, 1.0) is None
    assert bootstrap.intervals({}, {"loss": 1.0}) == {"loss": None}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_labels_of_one_kind_or_none_are_no_trouble(value: float) -> None:
    targets_NL = np.full((8, 3), value, np.float32)
    scores_NL = np.full((8, 3), 0.25, np.float32)
    given_NL = np.zeros((8, 3), np.bool_)
    found = replicates_of((targets_NL, scores_NL, given_NL), 10)
    figures = evaluate_scores(targets_NL, scores_NL, given_NL)
    for name, ends in bootstrap.intervals(found, figures).items():
        value = figures[name]
        if value is None:
            assert ends is None
        else:
            assert ends == pytest.approx((value, value), abs=1e-6)
