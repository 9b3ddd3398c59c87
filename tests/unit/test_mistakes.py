"""Confusions and costly mistakes: counted by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_mlc.evaluation import blocks
from ray_mlc.evaluation.mistakes import confusions, costliest


def cells(
    documents: int, labels: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    targets_NL = rng.choice(
        np.array([0, 1, np.nan], np.float32), (documents, labels), p=[0.7, 0.2, 0.1]
    )
    scores_NL = rng.integers(0, 20, targets_NL.shape).astype(np.float32) / 20
    return targets_NL, scores_NL, scores_NL >= np.float32(0.6)


def test_a_label_given_rightly_stands_in_nobodys_place() -> None:
    #       a       b       c
    targets_NL = np.array(
        [
            [1, 1, 0],  # a missed, b right, c wrongly: a → c
            [1, 0, 0],  # a missed, nothing else: alone
            [1, 0, np.nan],  # a missed, c given but nobody knows: alone
            [0, 1, 0],  # b missed, a and c wrongly: b → a, b → c
            [0, 0, 0],  # a wrongly, nothing missed
        ],
        np.float32,
    )
    given_NL = np.array([[0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.bool_)
    found = confusions(targets_NL, given_NL, pairs=10, shown=10)
    assert found.missed_L.tolist() == [3, 1, 0]
    assert found.alone_L.tolist() == [2, 0, 0]
    assert found.false_alarms_L.tolist() == [2, 0, 2]
    assert found.pairs_P3.tolist() == [[0, 2, 1], [1, 0, 1], [1, 2, 1]]
    assert found.matrix_HH.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_the_pairs_are_the_most_frequent_of_all() -> None:
    targets_NL, _, given_NL = cells(400, 30)
    missed_NL = ((targets_NL == 1) & ~given_NL).astype(int)
    wrong_NL = ((targets_NL == 0) & given_NL).astype(int)
    together_LL = missed_NL.T @ wrong_NL
    found = confusions(targets_NL, given_NL, pairs=50, shown=8)
    best = np.sort(together_LL.ravel())[::-1][:50]
    assert found.pairs_P3[:, 2].tolist() == best.tolist()
    for missed, given, documents in found.pairs_P3:
        assert together_LL[missed, given] == documents
    assert len(found.shown_H) == 8
    assert set(found.shown_H) <= set(found.pairs_P3[:8, :2].ravel())
    np.testing.assert_array_equal(
        found.matrix_HH, together_LL[np.ix_(found.shown_H, found.shown_H)]
    )


def test_nothing_missed_confuses_nothing() -> None:
    targets_NL = np.ones((3, 40), np.float32)
    found = confusions(targets_NL, targets_NL == 1, pairs=5, shown=5)
    assert found.pairs_P3.shape == (0, 3)
    assert not found.missed_L.any()
    assert found.matrix_HH.shape == (0, 0)


def test_the_costliest_are_wrong_decisions_by_loss_with_both_kinds_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CELLS", 64)  # several blocks
    targets_NL, scores_NL, given_NL = cells(90, 7)
    found = costliest(targets_NL, scores_NL, given_NL, count=12)
    assert sum(cell.missed for cell in found) == sum(not cell.missed for cell in found) == 12
    for missed in (True, False):
        wrong = np.argwhere((targets_NL == missed) & (given_NL != missed))
        right = [scores_NL[n, j] if missed else 1 - scores_NL[n, j] for n, j in wrong]
        order = sorted(range(len(wrong)), key=lambda at: (round(float(right[at]), 6), *wrong[at]))
        expected = [tuple(wrong[at]) for at in order[:12]]
        ours = [(cell.document, cell.label) for cell in found if cell.missed == missed]
        assert ours == expected
    for cell in found:
        assert cell.has == tuple(np.flatnonzero(targets_NL[cell.document] == 1))
        assert cell.gets == tuple(np.flatnonzero(given_NL[cell.document]))
        assert (cell.label in cell.has) == cell.missed == (cell.label not in cell.gets)
    losses = [cell.loss for cell in found]
    assert losses == sorted(losses, reverse=True)


def test_a_score_that_misleads_below_its_threshold_is_no_mistake() -> None:
    targets_NL = np.array([[0, 1]], np.float32)
    scores_NL = np.array([[0.9, 0.2]], np.float32)
    given_NL = np.array([[False, True]])  # thresholds 0.95 and 0.1
    assert costliest(targets_NL, scores_NL, given_NL, count=5) == []


def test_a_sure_mistake_has_a_finite_loss() -> None:
    targets_NL, scores_NL = np.array([[0, 1]], np.float32), np.array([[1, 0]], np.float32)
    found = costliest(targets_NL, scores_NL, scores_NL >= 0.5, count=5)
    assert [cell.loss for cell in found] == pytest.approx([-np.log(1e-7)] * 2)
