"""The TF-IDF baseline: it learns what words tell, and nothing from unannotated cells."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ray_mlc.errors import DataError
from ray_mlc.labels import LabelSet
from ray_mlc.model.engines.tfidf_engine import tfidf_classifier
from ray_mlc.model.tfidf import TfidfModel
from ray_mlc.training import baselines, logistic
from ray_mlc.training.baselines import MAX_WEIGHTS, fit_tfidf, max_features_for
from ray_mlc.training.examples import read_examples
from ray_mlc.training.logistic import fit_logistic

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


def fit(texts: Sequence[str], targets_NL: NDArray[np.float32], **options: Any) -> TfidfModel:
    labels = targets_NL.shape[1]
    return fit_tfidf(texts, lambda label: targets_NL[:, label], labels, **options)


def scores(model: TfidfModel, texts: Sequence[str]) -> NDArray[np.float32]:
    labels = LabelSet(tuple(f"label {label}" for label in range(len(model.bias_L))))
    return tfidf_classifier(model, labels).predict_proba(texts)


def theirs_NF(texts: Sequence[str]) -> Any:
    """scikit-learn's features."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    return vectorizer.fit_transform(texts)


def test_scores_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-9)
    texts, targets_NL = topical(200, seed=0)
    scores_NL = scores(fit(texts, targets_NL), texts)
    features_NF = theirs_NF(texts)
    for label in range(len(TOPICS)):
        reference = LogisticRegression(C=15.0, solver="liblinear", tol=1e-10).fit(
            features_NF, targets_NL[:, label]
        )
        expected_N = reference.predict_proba(features_NF)[:, 1]
        np.testing.assert_allclose(scores_NL[:, label], expected_N, atol=1e-6)


def test_labels_that_a_word_tells_are_found_in_new_texts() -> None:
    model = fit(*topical(400, seed=0))
    texts, targets_NL = topical(100, seed=1)
    scores_NL = scores(model, texts)
    assert scores_NL.shape == targets_NL.shape
    assert scores_NL.dtype == np.float32
    np.testing.assert_array_equal(scores_NL >= 0.5, targets_NL == 1)


def test_word_pairs_count_too() -> None:
    texts = ["not good", "good not", "not very good", "very good not"] * 10
    targets_NL = np.array([[1], [0], [0], [0]] * 10, dtype=np.float32)
    scores_NL = scores(fit(texts, targets_NL), texts[:4])
    assert scores_NL[0, 0] > 0.5 > scores_NL[1:, 0].max()


def test_the_same_input_gives_the_same_scores() -> None:
    texts, targets_NL = topical(100, seed=0)
    one, other = (scores(fit(texts, targets_NL), texts) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_unannotated_documents_take_no_part_in_a_labels_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-9)
    texts, targets_NL = topical(200, seed=0)
    gaps_NL = targets_NL.copy()
    gaps_NL[::4, 1] = np.nan
    model = fit(texts, gaps_NL)
    full = fit(texts, targets_NL)
    np.testing.assert_array_equal(model.weights_FL[:, ::2], full.weights_FL[:, ::2])
    known_N = ~np.isnan(gaps_NL[:, 1])
    reference = LogisticRegression(C=15.0, solver="liblinear", tol=1e-10).fit(
        theirs_NF(texts)[known_N], targets_NL[known_N, 1]
    )
    np.testing.assert_allclose(model.weights_FL[:, 1], reference.coef_[0], atol=1e-5)
    assert not np.allclose(model.weights_FL[:, 1], full.weights_FL[:, 1], rtol=1e-6)


def test_a_label_that_never_varies_gets_its_only_value() -> None:
    texts, targets_NL = topical(50, seed=0)
    always, never, unknown = np.ones(50), np.zeros(50), np.full(50, np.nan)
    partly = np.where(np.arange(50) % 2, 1, np.nan)
    constant_NL = np.stack([always, never, unknown, partly], axis=1).astype(np.float32)
    model = fit(texts, np.hstack([targets_NL, constant_NL]))
    scores_NL = scores(model, [*texts[:3], ""])
    np.testing.assert_array_equal(scores_NL[:, 3:], [[1, 0, 0, 1]] * 4)
    learned = scores(fit(texts, targets_NL), [*texts[:3], ""])
    np.testing.assert_array_equal(scores_NL[:, :3], learned)


def test_texts_without_a_known_word_all_get_one_score() -> None:
    model = fit(*topical(100, seed=0))
    scores_NL = scores(model, ["", " \n", "zzz qqq"])
    np.testing.assert_array_equal(scores_NL, np.broadcast_to(scores_NL[0], scores_NL.shape))
    assert ((scores_NL > 0) & (scores_NL < 0.5)).all()


def test_no_texts_get_no_scores() -> None:
    assert scores(fit(*topical(20, seed=0)), []).shape == (0, 3)


def test_the_model_does_not_depend_on_blocks_or_on_how_many_labels_are_fitted_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, targets_NL = topical(60, seed=0)
    targets_NL = np.tile(targets_NL, 6)  # five blocks
    one = fit(texts, targets_NL)
    monkeypatch.setattr(baselines, "_BLOCK_DOCUMENTS", 7)
    other = fit(texts, targets_NL, workers=3)
    np.testing.assert_array_equal(one.weights_FL, other.weights_FL)
    np.testing.assert_array_equal(one.bias_L, other.bias_L)


def test_the_order_of_rows_does_not_decide_which_words_are_kept() -> None:
    texts, targets_NL = topical(100, seed=0)
    order = np.random.default_rng(0).permutation(len(texts))
    moved = [texts[row] for row in order]
    for size in (1, 3, 10, 40):  # many pairs are in equally many texts
        kept = [fit(some, targets_NL, max_features=size).vocabulary for some in (texts, moved)]
        assert kept[0] == kept[1]
        assert len(kept[0]) == size


def test_a_failure_or_ctrl_c_drops_the_labels_that_were_not_begun() -> None:
    texts, targets_NL = topical(30, seed=0)
    begun: list[int] = []

    def targets_of(label: int) -> NDArray[np.float32]:
        if threading.current_thread() is not threading.main_thread():
            begun.append(label)
            if len(begun) == 3:
                raise KeyboardInterrupt
            time.sleep(0.01)
        return targets_NL[:, 0]

    before = set(threading.enumerate())  # others in this process have theirs
    with pytest.raises(KeyboardInterrupt):
        fit_tfidf(texts, targets_of, 4_000, workers=2)
    assert 3 <= len(begun) < 50
    assert not set(threading.enumerate()) - before


def test_a_failure_or_ctrl_c_ends_the_labels_that_were_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, targets_NL = topical(30, seed=0)
    first, told = threading.Event(), []

    def long_fit(*_: Any, stopped: Callable[[], bool], **__: Any) -> Any:
        if first.is_set():
            raise KeyboardInterrupt
        first.set()
        for _ in range(3_000):
            if stopped():
                told.append(True)
                break
            time.sleep(0.01)
        return 0, 0

    monkeypatch.setattr(baselines, "fit_logistic", long_fit)
    with pytest.raises(KeyboardInterrupt):
        fit_tfidf(texts, lambda _: targets_NL[:, 0], 40, workers=2)
    assert told


def test_memory_bounds_the_blocks_and_how_many_are_fitted_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, targets_NL = topical(100, seed=0)
    free = fit(texts, np.tile(targets_NL, 6))
    sizes: list[int] = []
    lock, together, most = threading.Lock(), 0, 0

    def watched(features: Any, targets_NK: NDArray[np.float32], **options: Any) -> Any:
        nonlocal together, most
        sizes.append(targets_NK.shape[1])
        with lock:
            together += 1
            most = max(most, together)
        for _ in range(3_000):  # the others come, or are never let in
            if most == threads:
                break
            time.sleep(0.01)
        time.sleep(0.01)
        with lock:
            together -= 1
        return fit_logistic(features, targets_NK, **options)

    monkeypatch.setattr(baselines, "fit_logistic", watched)
    for block_bytes, expected in ((2**30, [4, 4, 4, 4, 2]), (1, [1] * 18)):
        monkeypatch.setattr(baselines, "_BLOCK_BYTES", block_bytes)
        for room, threads in ((2**32, 3), (1, 1)):
            monkeypatch.setattr(baselines, "_BLOCKS_BYTES", room)
            sizes.clear()
            most = 0
            model = fit(texts, np.tile(targets_NL, 6), workers=3)
            assert sorted(sizes, reverse=True) == expected
            assert most == threads
            np.testing.assert_allclose(model.weights_FL, free.weights_FL, atol=1e-3)


def test_thousands_of_labels_bound_the_words_and_every_label_is_reported() -> None:
    assert max_features_for(28) > 4_000_000
    assert 30_000 < max_features_for(4_271) < 32_000
    assert max_features_for(4_271) * 4_271 <= MAX_WEIGHTS
    assert max_features_for(10**9) == 1
    texts, targets_NL = topical(40, seed=0)
    rare_N = np.zeros(40, np.float32)
    done: list[int] = []
    model = fit_tfidf(
        texts,
        lambda label: targets_NL[:, label] if label < 3 else rare_N,
        4_000,
        progress=done.append,
    )
    assert sum(done) == 4_000
    assert model.weights_FL.shape == (len(model.vocabulary), 4_000)
    assert not model.weights_FL[:, 3:].any()  # they have no positive, and no model
    np.testing.assert_array_equal(scores(model, texts)[:, 3:], 0)


def test_targets_of_a_label_are_a_column_of_all_targets(tmp_path: Path) -> None:
    rows = {
        "text": ["a", "b", "c", "d", "e"],
        "labels": [["x", "y"], [], None, ["y"], ["y"]],
        "unannotated": [None, ["y"], ["x"], [], ["x"]],
    }
    lists = pa.list_(pa.string())
    schema = pa.schema([("text", pa.string()), ("labels", lists), ("unannotated", lists)])
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "a.parquet")
    wider = LabelSet(("never", "x", "y"))
    for label_set in (None, wider):
        examples = read_examples(str(tmp_path / "a.parquet"), label_set=label_set)
        for data in (examples, examples.take(np.array([4, 0, 2, 0])), examples.take([])):
            columns = [data.targets_N(label) for label in range(len(data.label_set))]
            np.testing.assert_array_equal(np.stack(columns, axis=1), data.targets_NL())
    assert np.isnan(examples.targets_NL()).sum() == 3 + 2


def test_the_vocabulary_can_be_bounded() -> None:
    texts, targets_NL = topical(100, seed=0)
    assert fit(texts, targets_NL, max_features=5).weights_FL.shape == (5, 3)
    rare = ["an unheardof word", *texts[1:]]
    assert "unheardof" not in fit(rare, targets_NL).vocabulary
    assert "unheardof" in fit(rare, targets_NL, min_df=1).vocabulary


@pytest.mark.parametrize("texts", [["a b", "c d"], ["one two", "three four"], ["", ""]])
def test_texts_that_share_no_word_are_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no word is in 2 of the 2 texts"):
        fit(texts, np.array([[0], [1]], dtype=np.float32))


def test_targets_that_do_not_fit_the_texts_are_refused() -> None:
    texts, targets_NL = topical(10, seed=0)
    with pytest.raises(DataError, match="expected one for each of 10"):
        fit(texts, targets_NL[:9])
    targets_NL[3, 1] = -1
    with pytest.raises(DataError, match="another value"):
        fit(texts, targets_NL)


def test_importing_the_metrics_and_the_baseline_leaves_scikit_learn_alone() -> None:
    code = (
        "import sys, ray_mlc.training.baselines, ray_mlc.evaluation.thresholds; "
        "print([name for name in ('sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
