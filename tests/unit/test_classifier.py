from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_mlc import synthetic
from ray_mlc.errors import RayMlcError
from ray_mlc.labels import LabelSet
from ray_mlc.model.classifier import Classifier, sigmoid
from ray_mlc.model.encoder import load_classifier_model, output_layer
from ray_mlc.model.engines.protocol import OneByOne, OutOfMemoryError
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.tokenization import Ragged, Tokenizer

TEXTS = [*synthetic.documents(40, seed=4)["text"].to_pylist(), "", "a", "図書館 " * 50]
LABELS = LabelSet(("first", "sum"))


class ToyEngine(OneByOne):
    """Logits that follow from each document alone; runs out of memory above a size.

    With a depth, batches are begun before others are fetched, as on a GPU; `early` ones fail when
    they are begun, others when they are fetched.
    """

    name, device, dtype = "toy", "cpu", "float32"

    def __init__(self, *, memory: int = 10**9, depth: int = 1, early: bool = False) -> None:
        self.memory, self.depth, self.early = memory, depth, early
        self.flying = self.most_flying = 0
        self.scored: list[int] = []
        self.failures = 0

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        if len(ids) * max(map(len, ids)) > self.memory:
            self.failures += 1
            raise OutOfMemoryError("too large")
        self.scored += [int(row[0]) for row in ids]
        return np.array([[row[0], row.sum()] for row in ids], np.float32) / 100

    def begin(self, ids: Sequence[NDArray[np.int32]]) -> Callable[[], NDArray[np.float32]]:
        fetch = super().begin(ids)
        result = fetch() if self.early else None
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)

        def fetched() -> NDArray[np.float32]:
            self.flying -= 1
            return fetch() if result is None else result

        return fetched


class LongDocuments:
    """All of a tokenizer that the classifier asks for beside its ids."""

    max_tokens = 40


def ragged(lengths: Sequence[int]) -> Ragged:
    """Documents whose first id is their position."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.ones(int(offsets[-1]), np.int32)
    values[offsets[:-1]] = np.arange(len(lengths))
    return Ragged.of(values, offsets, np.array(lengths, np.int32))


def toy(engine: Any, budget: int) -> Classifier:
    return Classifier(LABELS, LongDocuments(), engine, budget)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    picked=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=20),
    max_batch_tokens=st.integers(32, 4096),
)
def test_float32_scores_are_the_same_alone_and_in_any_batch(
    classifier: Classifier, alone_NL: Any, picked: list[int], max_batch_tokens: int
) -> None:
    batched = replace(classifier, max_batch_tokens=max_batch_tokens)
    scores_NL = batched.predict_proba([TEXTS[index] for index in picked])
    np.testing.assert_allclose(scores_NL, alone_NL[picked], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    """The tiny model with logits of the size that training makes: up to about ten.

    Rounding of a logit grows with its summands: small logits would hide it.
    """
    tokenizer = Tokenizer.load(tiny_model)
    model = load_classifier_model(tiny_model)
    with torch.no_grad():
        layer = output_layer(model, len(synthetic.LABELS))
        layer.weight.mul_(2 / layer.weight.std())
    engine = TorchEngine(model, pad_id=tokenizer.pad_id, device="cpu", dtype="float32")
    return Classifier(synthetic.LABELS, tokenizer, engine, 512)


@pytest.fixture(scope="module")
def alone_NL(classifier: Classifier) -> NDArray[np.float32]:
    """Scores of each text in a batch of its own: they take a while for a property's examples."""
    return np.concatenate([classifier.predict_proba([text]) for text in TEXTS])


def test_the_texts_above_have_scores_that_differ(alone_NL: NDArray[np.float32]) -> None:
    assert alone_NL.std(axis=0).max() > 0.01  # else constants were compared
    logits = np.log(alone_NL.astype(np.float64) / (1 - alone_NL.astype(np.float64)))
    assert 5 < np.abs(logits).max() < 15


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    budget=st.integers(40, 1000),
    memory=st.integers(40, 400),
    depth=st.integers(1, 3),
    early=st.booleans(),
)
def test_when_memory_runs_out_batches_are_halved_and_each_document_is_scored_once(
    lengths: list[int], budget: int, memory: int, depth: int, early: bool
) -> None:
    engine = ToyEngine(memory=memory, depth=depth, early=early)
    classifier = toy(engine, budget)
    done: list[int] = []
    with silence():
        scores_NL = classifier.scores(ragged(lengths), progress=done.append)
    assert sorted(engine.scored) == list(range(len(lengths)))
    assert sum(done) == len(lengths)
    assert engine.flying == 0
    assert engine.most_flying <= depth
    np.testing.assert_array_equal(scores_NL, toy(ToyEngine(), 10**6).scores(ragged(lengths)))
    assert classifier.stats.real_tokens == sum(lengths)
    assert classifier.stats.padded_tokens >= sum(lengths)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    budget=st.integers(40, 2000),
    memory=st.integers(40, 400),
    depth=st.integers(1, 3),
    early=st.booleans(),
)
def test_the_budget_falls_to_what_fits_and_no_lower(
    lengths: list[int], budget: int, memory: int, depth: int, early: bool
) -> None:
    engine = ToyEngine(memory=memory, depth=depth, early=early)
    classifier = toy(engine, budget)
    with silence():
        classifier.scores(ragged(lengths))
        # each failure halves: a budget that fits is left alone, however many batches were planned
        assert classifier.max_batch_tokens >= min(budget, memory) // 4
        assert classifier.max_batch_tokens >= LongDocuments.max_tokens
        failures = engine.failures
        assert failures <= np.ceil(np.log2(max(2, budget / memory))) + 8 + 2 * (depth - 1)
        # a block of longer documents comes next: it must still be let in
        classifier.scores(ragged([40, 1]))


def test_batches_are_begun_ahead_only_as_deep_as_the_engine_says() -> None:
    for depth in (1, 2, 3):
        engine = ToyEngine(depth=depth)
        toy(engine, 40).scores(ragged([40] * 10))
        assert engine.most_flying == depth


def test_a_document_that_does_not_fit_alone_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RayMlcError, match=r"of 40 tokens alone exceeds the memory.*max_tokens"):
        toy(ToyEngine(memory=39), 40).scores(ragged([40]))


class FragileEngine(ToyEngine):
    """Fails over every batch that holds one of the `guilty` documents; `dead`: over any."""

    def __init__(self, guilty: set[int], *, dead: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.guilty, self.dead = guilty, dead

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        if self.dead or self.guilty & {int(row[0]) for row in ids}:
            self.failures += 1
            raise RuntimeError("an index is out of range")
        return super().logits(ids)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    guilty=st.sets(st.integers(0, 59)),
    budget=st.integers(40, 500),
    depth=st.integers(1, 3),
    early=st.booleans(),
)
def test_a_failing_batch_is_halved_until_the_guilty_documents_are_found(
    lengths: list[int], guilty: set[int], budget: int, depth: int, early: bool
) -> None:
    engine = FragileEngine(guilty, depth=depth, early=early)
    classifier = toy(engine, budget)
    classifier.tokenizer = HarmlessTokenizer()  # type: ignore[assignment]
    told: dict[int, str] = {}
    scores_NL = classifier.scores(ragged(lengths), fault=told.__setitem__)
    expected = guilty & set(range(len(lengths)))
    assert told == dict.fromkeys(expected, "an index is out of range")
    assert set(np.flatnonzero(np.isnan(scores_NL).all(axis=1)).tolist()) == expected
    assert np.isfinite(np.delete(scores_NL, sorted(expected), axis=0)).all()


class HarmlessTokenizer(LongDocuments):
    """Makes one id, of no guilty document, of every text."""

    def encode(self, texts: Sequence[str]) -> Ragged:
        ids = np.full(len(texts), 10**6, np.int32)
        return Ragged.of(ids, np.arange(len(texts) + 1), np.ones(len(texts), np.int32))


def test_an_engine_that_fails_over_everything_is_an_error_and_no_row_is_blamed() -> None:
    classifier = toy(FragileEngine(set(), dead=True), 400)
    classifier.tokenizer = HarmlessTokenizer()  # type: ignore[assignment]
    told: dict[int, str] = {}
    with pytest.raises(RayMlcError, match=r"toy on cpu fails over every document \(an index"):
        classifier.scores(ragged([5] * 30), fault=told.__setitem__)
    assert told == {}


def test_where_nobody_is_told_of_faults_they_are_raised() -> None:
    with pytest.raises(RuntimeError, match="an index is out of range"):
        toy(FragileEngine({3}), 400).scores(ragged([5] * 30))


def test_logits_that_are_not_finite_become_nan_and_touch_no_other_row() -> None:
    class Broken(ToyEngine):
        def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
            logits = super().logits(ids)
            for row, document in enumerate(ids):
                if document[0] in (1, 2, 3):
                    logits[row, 0] = {1: np.inf, 2: -np.inf, 3: np.nan}[int(document[0])]
            return logits

    scores_NL = toy(Broken(), 400).scores(ragged([5] * 6))
    assert np.isnan(scores_NL[:, 0]).tolist() == [False, True, True, True, False, False]
    assert np.isfinite(scores_NL[:, 1]).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logits=st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_sigmoid_is_float32_and_silent_at_every_logit(logits: list[float]) -> None:
    array = np.array(logits, np.float32)
    scores = sigmoid(array)
    assert scores.dtype == np.float32
    finite = np.isfinite(array)
    assert np.isnan(scores[~finite]).all()
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-array[finite].astype(np.float64)))
    np.testing.assert_allclose(scores[finite], expected, rtol=1e-6, atol=1e-37)


def test_no_documents_have_no_scores(tiny_classifier: Classifier) -> None:
    assert tiny_classifier.predict_proba([]).shape == (0, len(synthetic.LABELS))


class silence:
    """Keep the log of hundreds of failures out of the report."""

    def __enter__(self) -> None:
        logging.getLogger("ray_mlc.model.classifier").setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("ray_mlc.model.classifier").setLevel(logging.NOTSET)
