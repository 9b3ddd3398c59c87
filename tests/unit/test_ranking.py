"""Figures at the first k labels: by hand, and as scikit-learn has them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from ray_mlc.evaluation.ranking import means, ranking_at


def cells(documents: int, labels: int, steps: int) -> tuple[NDArray[np.float32], ...]:
    """Targets and scores; few steps make many ties."""
    rng = np.random.default_rng(labels)
    targets_NL = (rng.random((documents, labels)) < 0.2).astype(np.float32)
    scores_NL = rng.integers(0, steps, targets_NL.shape) / np.float32(steps)
    return targets_NL, scores_NL.astype(np.float32)


def test_the_figures_are_those_of_a_sheet_of_paper() -> None:
    targets = np.array([[1, 0, 1, 0]], np.float32)
    scores = np.array([[0.9, 0.8, 0.1, 0.5]], np.float32)  # ranks of the positives: 1 and 4
    found = means(ranking_at(targets, scores, ks=(1, 3, 4)))
    ideal = 1 + 1 / np.log2(3)
    assert found == pytest.approx(
        {
            "precision@1": 1,
            "precision@3": 1 / 3,
            "precision@4": 1 / 2,
            "r_precision@1": 1,
            "r_precision@3": 1 / 2,
            "r_precision@4": 1,
            "ndcg@1": 1,
            "ndcg@3": 1 / ideal,
            "ndcg@4": (1 + 1 / np.log2(5)) / ideal,
        }
    )


@pytest.mark.parametrize("steps", [2, 5, 1_000_000])
@pytest.mark.parametrize("labels", [2, 7, 40])
def test_ndcg_is_scikit_learns_with_ties_and_without(labels: int, steps: int) -> None:
    targets_NL, scores_NL = cells(200, labels, steps)
    some = targets_NL.any(axis=1)  # scikit-learn counts the others as 0
    ours = ranking_at(targets_NL, scores_NL, ks=(1, 5, 10))
    for k in (1, 5, 10):
        theirs = ndcg_score(targets_NL[some], scores_NL[some], k=k)
        assert np.nanmean(ours[f"ndcg@{k}"]) == pytest.approx(theirs)
        assert np.isnan(ours[f"ndcg@{k}"][~some]).all()


def test_ties_count_as_the_mean_over_all_their_orders() -> None:
    targets_NL, scores_NL = cells(30, 6, 3)
    rng = np.random.default_rng(0)
    found = ranking_at(targets_NL, scores_NL, ks=(2,))
    shuffled = [
        ranking_at(targets_NL, scores_NL + rng.random(scores_NL.shape, np.float32) / 1_000, ks=(2,))
        for _ in range(2_000)
    ]
    for name, values_N in found.items():
        sampled_N = np.mean([one[name] for one in shuffled], axis=0)
        np.testing.assert_allclose(values_N, sampled_N, atol=0.05)


def test_labels_that_nobody_annotated_take_no_rank() -> None:
    targets_NL, scores_NL = cells(50, 8, 100)
    wide_NL = np.hstack([targets_NL, np.full((50, 3), np.nan, np.float32)])
    sure_NL = np.hstack([scores_NL, np.ones((50, 3), np.float32)])
    before, after = ranking_at(targets_NL, scores_NL), ranking_at(wide_NL, sure_NL)
    for name, values_N in before.items():
        np.testing.assert_allclose(after[name], values_N)


def test_documents_without_a_positive_count_nowhere() -> None:
    targets_NL, scores_NL = cells(50, 8, 100)
    targets_NL[::2] = 0
    targets_NL[1::2, 0] = 1
    kept = means(ranking_at(targets_NL[1::2], scores_NL[1::2]))
    assert means(ranking_at(targets_NL, scores_NL)) == pytest.approx(kept)
    assert set(means(ranking_at(targets_NL[::2], scores_NL[::2])).values()) == {None}


def test_fewer_labels_than_ranks_and_one_document_are_no_trouble() -> None:
    found = means(ranking_at(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), ks=(5,)))
    assert found == {"r_precision@5": 1.0, "ndcg@5": 1.0, "precision@5": pytest.approx(0.2)}
