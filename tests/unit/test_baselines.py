"""The TF-IDF baseline: it learns what words tell, and nothing from unannotated cells."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ray_mlc.errors import DataError
from ray_mlc.training.baselines import TfidfBaseline

TOPICS = ("river", "engine", "violin")
FILLERS = ("today", "people", "around", "small", "again", "never", "because", "while")


def topical(documents: int, seed: int) -> tuple[list[str], NDArray[np.float32]]:
    """Texts of filler words that name some topics; a label is a topic named."""
    rng = np.random.default_rng(seed)
    targets_NL = (rng.random((documents, len(TOPICS))) < 0.3).astype(np.float32)
    texts = []
    for row in targets_NL:
        named = [topic for topic, given in zip(TOPICS, row, strict=True) if given]
        words = [*rng.choice(FILLERS, size=6), *named]
        rng.shuffle(words)
        texts.append(" ".join(words))
    return texts, targets_NL


def test_labels_that_a_word_tells_are_found_in_new_texts() -> None:
    model = TfidfBaseline.fit(*topical(400, seed=0))
    texts, targets_NL = topical(100, seed=1)
    scores_NL = model.predict_proba(texts)
    assert scores_NL.shape == targets_NL.shape
    assert scores_NL.dtype == np.float32
    np.testing.assert_array_equal(scores_NL >= 0.5, targets_NL == 1)


def test_word_pairs_count_too() -> None:
    texts = ["not good", "good not", "not very good", "very good not"] * 10
    targets_NL = np.array([[1], [0], [0], [0]] * 10, dtype=np.float32)
    scores_NL = TfidfBaseline.fit(texts, targets_NL).predict_proba(texts[:4])
    assert scores_NL[0, 0] > 0.5 > scores_NL[1:, 0].max()


def test_the_same_input_gives_the_same_scores() -> None:
    texts, targets_NL = topical(100, seed=0)
    one, other = (TfidfBaseline.fit(texts, targets_NL).predict_proba(texts) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_unannotated_documents_take_no_part_in_a_labels_model() -> None:
    texts, targets_NL = topical(200, seed=0)
    gaps_NL = targets_NL.copy()
    gaps_NL[::4, 1] = np.nan
    model = TfidfBaseline.fit(texts, gaps_NL)
    full = TfidfBaseline.fit(texts, targets_NL)
    np.testing.assert_array_equal(model.weights_FL[:, ::2], full.weights_FL[:, ::2])
    known_N = ~np.isnan(gaps_NL[:, 1])
    reference = LogisticRegression(C=15.0, solver="liblinear").fit(
        model.vectorizer.transform(texts)[known_N], targets_NL[known_N, 1]
    )
    np.testing.assert_allclose(model.weights_FL[:, 1], reference.coef_[0], rtol=1e-6)
    assert not np.allclose(model.weights_FL[:, 1], full.weights_FL[:, 1], rtol=1e-6)


def test_a_label_that_never_varies_gets_its_only_value() -> None:
    texts, targets_NL = topical(50, seed=0)
    always, never, unknown = np.ones(50), np.zeros(50), np.full(50, np.nan)
    partly = np.where(np.arange(50) % 2, 1, np.nan)
    constant_NL = np.stack([always, never, unknown, partly], axis=1).astype(np.float32)
    model = TfidfBaseline.fit(texts, np.hstack([targets_NL, constant_NL]))
    scores_NL = model.predict_proba([*texts[:3], ""])
    np.testing.assert_array_equal(scores_NL[:, 3:], [[1, 0, 0, 1]] * 4)
    learned = TfidfBaseline.fit(texts, targets_NL).predict_proba([*texts[:3], ""])
    np.testing.assert_array_equal(scores_NL[:, :3], learned)


def test_texts_without_a_known_word_all_get_one_score() -> None:
    model = TfidfBaseline.fit(*topical(100, seed=0))
    scores_NL = model.predict_proba(["", " \n", "zzz qqq"])
    np.testing.assert_array_equal(scores_NL, np.broadcast_to(scores_NL[0], scores_NL.shape))
    assert ((scores_NL > 0) & (scores_NL < 0.5)).all()


def test_no_texts_get_no_scores() -> None:
    assert TfidfBaseline.fit(*topical(20, seed=0)).predict_proba([]).shape == (0, 3)


def test_scores_do_not_depend_on_the_neighbours_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets_NL = topical(60, seed=0)
    model = TfidfBaseline.fit(texts, targets_NL)
    together_NL = model.predict_proba(texts)
    monkeypatch.setattr("ray_mlc.training.baselines._BLOCK_DOCUMENTS", 7)
    np.testing.assert_array_equal(model.predict_proba(texts), together_NL)


def test_the_vocabulary_can_be_bounded() -> None:
    texts, targets_NL = topical(100, seed=0)
    assert TfidfBaseline.fit(texts, targets_NL, max_features=5).weights_FL.shape == (5, 3)
    rare = ["an unheardof word", *texts[1:]]
    assert "unheardof" not in TfidfBaseline.fit(rare, targets_NL).vectorizer.vocabulary_
    assert "unheardof" in TfidfBaseline.fit(rare, targets_NL, min_df=1).vectorizer.vocabulary_


@pytest.mark.parametrize("texts", [["a b", "c d"], ["one two", "three four"], ["", ""]])
def test_texts_that_share_no_word_are_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no word is in 2 of the 2 texts"):
        TfidfBaseline.fit(texts, np.array([[0], [1]], dtype=np.float32))


def test_targets_that_do_not_fit_the_texts_are_refused() -> None:
    texts, targets_NL = topical(10, seed=0)
    with pytest.raises(DataError, match="expected 10 × labels"):
        TfidfBaseline.fit(texts, targets_NL[:9])
    with pytest.raises(DataError, match="expected 10 × labels"):
        TfidfBaseline.fit(texts, targets_NL[:, 0])
    targets_NL[3, 1] = -1
    with pytest.raises(DataError, match="another value"):
        TfidfBaseline.fit(texts, targets_NL)


def test_importing_the_metrics_and_the_baseline_leaves_scikit_learn_alone() -> None:
    code = (
        "import sys, ray_mlc.training.baselines, ray_mlc.evaluation.thresholds; "
        "print([name for name in ('sklearn', 'scipy', 'threadpoolctl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
