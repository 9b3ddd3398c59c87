"""Long documents in windows: cut as Hugging Face cuts, joined label by label, in any batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoTokenizer

from ray_mlc import synthetic
from ray_mlc.config import LongConfig, ScoreJob, WindowsConfig
from ray_mlc.errors import ConfigError, ModelError, RunMismatchError
from ray_mlc.job_files import load_job
from ray_mlc.model.classifier import Classifier, sigmoid
from ray_mlc.model.folder import ModelFolder, ModelInfo, open_model
from ray_mlc.model.tokenization import Ragged, Tokenizer
from ray_mlc.model.windows import AGGREGATES, Aggregate, aggregate_logits, aggregate_tensors
from ray_mlc.runtime.evaluate import load_here, score_documents
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score

LOGITS = st.floats(-30, 30, width=32)
WORDS = [f"{word}" for word in synthetic.documents(50, seed=1)["text"].to_pylist()]
LONG = [" ".join(WORDS[:count]) for count in (0, 1, 1, 3, 8, 20)]


def windows(**changes: Any) -> WindowsConfig:
    return WindowsConfig(**{"overlap": 4, "aggregate": "max", **changes})


def joined(counts: Sequence[int], logits_WL: Any, how: Aggregate, top: int = 2) -> NDArray[Any]:
    firsts = np.append(0, np.cumsum(counts)).astype(np.int64)
    return aggregate_logits(np.asarray(logits_WL, np.float32), firsts, how=how, top=top)


# Joining


@given(st.lists(st.tuples(LOGITS, LOGITS), min_size=1, max_size=6), st.integers(1, 4))
@settings(deadline=None)
def test_every_way_lies_where_its_definition_says(rows: list[Any], top: int) -> None:
    logits_CL = np.array(rows, np.float32)
    chances_CL = 1 / (1 + np.exp(-logits_CL.astype(np.float64)))
    expected = {
        "max": logits_CL.max(axis=0),
        "mean": logits_CL.mean(axis=0, dtype=np.float64),
        "top_mean": np.sort(logits_CL, axis=0)[-top:].mean(axis=0, dtype=np.float64),
    }
    for how, value in expected.items():
        found = joined([len(rows)], logits_CL, how, top)  # type: ignore[arg-type]
        np.testing.assert_allclose(found[0], value, rtol=1e-5, atol=1e-5)
    scores_L = sigmoid(joined([len(rows)], logits_CL, "noisy_or"))[0]
    np.testing.assert_allclose(scores_L, 1 - np.prod(1 - chances_CL, axis=0), atol=1e-6)


@pytest.mark.parametrize("how", AGGREGATES)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 999))
@settings(deadline=None)
def test_tensors_are_joined_as_arrays_are(how: Aggregate, counts: list[int], seed: int) -> None:
    logits_WL = np.random.default_rng(seed).normal(0, 6, (sum(counts), 3)).astype(np.float32)
    tensors = aggregate_tensors(torch.from_numpy(logits_WL), counts, how=how, top=2)
    np.testing.assert_allclose(tensors.numpy(), joined(counts, logits_WL, how), atol=2e-4)


@pytest.mark.parametrize("how", AGGREGATES)
def test_a_single_window_keeps_its_logit_to_the_last_bit(how: Aggregate) -> None:
    logits_WL = np.random.default_rng(0).normal(0, 20, (50, 7)).astype(np.float32)
    assert joined([1] * 50, logits_WL, how).tolist() == logits_WL.tolist()


@pytest.mark.parametrize("how", AGGREGATES)
def test_no_document_sees_the_windows_of_another(how: Aggregate) -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 6, 30)
    logits_WL = rng.normal(0, 3, (counts.sum(), 4)).astype(np.float32)
    together = joined(counts, logits_WL, how)
    parts = np.split(logits_WL, np.cumsum(counts)[:-1])
    alone = np.concatenate([joined([len(part)], part, how) for part in parts])
    assert together.tolist() == alone.tolist()


@pytest.mark.parametrize("how", AGGREGATES)
@pytest.mark.parametrize("accident", [np.nan, np.inf, -np.inf])
def test_an_accident_in_one_window_is_not_hidden_by_the_others(
    how: Aggregate, accident: float
) -> None:
    logits_WL = np.array([[5, 5], [accident, 1], [7, 7], [2, 2]], np.float32)
    found = joined([3, 1], logits_WL, how)
    assert np.isnan(found[0, 0])
    assert np.isfinite(found[[0, 1, 1], [1, 0, 1]]).all()


@pytest.mark.parametrize("how", AGGREGATES)
def test_a_rising_window_never_lowers_its_document(how: Aggregate) -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        logits_CL = rng.normal(0, 8, (4, 3)).astype(np.float32)
        higher_CL = logits_CL.copy()
        higher_CL[rng.integers(4)] += np.float32(3)
        assert (joined([4], higher_CL, how) >= joined([4], logits_CL, how) - 1e-5).all()


@pytest.mark.parametrize("how", AGGREGATES)
def test_gradients_reach_windows_and_stay_finite_where_all_are_sure(how: Aggregate) -> None:
    logits = torch.tensor([[-80.0, 3.0], [-90.0, -2.0], [80.0, 0.0]], requires_grad=True)
    aggregate_tensors(logits, [2, 1], how=how, top=2).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] > 0


# Cutting


@pytest.mark.parametrize("overlap", [0, 1, 7, 12])
def test_windows_are_those_of_hugging_face(tiny_encoder: Path, overlap: int) -> None:
    size = 16
    theirs = AutoTokenizer.from_pretrained(tiny_encoder)
    ours = Tokenizer.load(
        tiny_encoder, max_tokens=size, windows=windows(overlap=overlap, max_windows=10_000)
    )
    ragged = ours.encode(LONG)
    for row, text in enumerate(LONG):
        expected = theirs(
            text,
            truncation=True,
            max_length=size,
            stride=overlap,
            return_overflowing_tokens=True,
        )["input_ids"]
        found = [ids.tolist() for ids in ragged.windows(ragged.windows_of(np.array([row])))]
        assert found == expected
    assert ours.covered(ragged.n_tokens).all()


def test_what_lies_beyond_the_last_window_is_cut_and_said(tiny_encoder: Path) -> None:
    short = Tokenizer.load(tiny_encoder, max_tokens=16, windows=windows(max_windows=3))
    whole = Tokenizer.load(tiny_encoder, max_tokens=16, windows=windows(max_windows=999))
    some, all_ = short.encode(LONG), whole.encode(LONG)
    assert some.n_windows.max() == 3 < all_.n_windows.max()
    assert some.n_windows.tolist() == np.minimum(all_.n_windows, 3).tolist()
    assert short.covered(some.n_tokens).tolist() == (all_.n_windows <= 3).tolist()
    assert some.n_tokens.tolist() == all_.n_tokens.tolist()


@pytest.mark.parametrize("n", range(1, 40))
def test_a_document_is_covered_just_when_its_last_token_is_in_a_window(
    tiny_encoder: Path, n: int
) -> None:
    tokenizer = Tokenizer.load(
        tiny_encoder, max_tokens=10, windows=windows(overlap=2, max_windows=3)
    )
    pieces = tokenizer._windows(list(range(n)))
    assert pieces[0][0] == 0
    assert (pieces[-1][-1] == n - 1) == bool(tokenizer.covered(np.array([n + 2]))[0])
    assert len(pieces) <= 3


def test_an_overlap_that_lets_no_window_advance_is_refused(tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"overlap is 14, expected less than the 14 tokens"):
        Tokenizer.load(tiny_encoder, max_tokens=16, windows=windows(overlap=14))


def test_documents_taken_from_ragged_ids_keep_their_windows(tiny_encoder: Path) -> None:
    ragged = Tokenizer.load(tiny_encoder, max_tokens=16, windows=windows()).encode(LONG)
    order = np.array([5, 0, 3, 3])
    taken = ragged.take(order)
    assert taken.n_windows.tolist() == ragged.n_windows[order].tolist()
    assert taken.sizes.tolist() == ragged.sizes[order].tolist()
    for place, document in enumerate(order):
        own = ragged.windows(ragged.windows_of(np.array([document])))
        found = taken.windows(taken.windows_of(np.array([place])))
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in own]


# Scoring


@pytest.fixture(scope="module")
def windowed(tiny_model: Path) -> Classifier:
    folder = open_model(str(tiny_model))
    long = LongConfig(policy="windows", max_tokens=16, windows=windows(aggregate="noisy_or"))
    info = folder.info.model_copy(update={"long": long})
    classifier = load_here(folder, dtype="float32", device="cpu")
    tokenizer = Tokenizer.load(
        tiny_model, max_tokens=16, windows=ModelFolder("", tiny_model, info).windows
    )
    return Classifier(classifier.label_set, tokenizer, classifier.engine, 256)


def test_scores_of_long_texts_are_the_same_alone_and_together(windowed: Classifier) -> None:
    together_NL = windowed.predict_proba(LONG)
    alone_NL = np.concatenate([windowed.predict_proba([text]) for text in LONG])
    np.testing.assert_allclose(together_NL, alone_NL, rtol=0, atol=1e-6)


def test_progress_counts_documents_and_not_windows(windowed: Classifier) -> None:
    done: list[int] = []
    windowed.predict_proba(LONG * 3, progress=done.append)
    assert sum(done) == len(LONG) * 3


def test_beginnings_alone_are_what_a_model_that_cuts_would_score(windowed: Classifier) -> None:
    cutting = Tokenizer(_state(windowed), max_tokens=16)
    expected_NL = Classifier(windowed.label_set, cutting, windowed.engine, 256).predict_proba(LONG)
    ragged = windowed.tokenizer.encode(LONG)
    scored = score_documents(windowed, ragged, progress=lambda _: None)
    assert scored.first_NL is not None
    np.testing.assert_allclose(scored.first_NL, expected_NL, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scored.scores_NL, windowed.predict_proba(LONG), rtol=0, atol=1e-6)


def _state(classifier: Classifier) -> Any:
    from ray_mlc.model.tokenization import TokenizerState

    tokenizer = classifier.tokenizer
    return TokenizerState(tokenizer._backend.to_str(), tokenizer.pad_id, False, None)


class FailsOver:
    """An engine that fails over one token id."""

    name, device, dtype, depth = "double", "cpu", "float32", 1
    packed, batch_cost = False, 32

    def __init__(self, poison: int) -> None:
        self.poison = poison

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        if any(self.poison in row for row in ids):
            raise ValueError("poisoned")
        return np.zeros((len(ids), 2), np.float32)

    def begin(self, ids: Sequence[NDArray[np.int32]]) -> Any:
        return lambda: self.logits(ids)


def test_a_document_is_named_over_whose_third_window_the_engine_fails(
    windowed: Classifier,
) -> None:
    values = np.array([9, 9, 9, 9, 7, 9], np.int32)
    ragged = Ragged(values, np.arange(7), np.array([1, 4, 1], np.int32), np.array([0, 1, 5, 6]))
    told: list[tuple[int, str]] = []
    classifier = Classifier(windowed.label_set, windowed.tokenizer, FailsOver(7), 64)  # type: ignore[arg-type]
    classifier.label_set = type(windowed.label_set)(("a", "b"))
    scores_NL = classifier.scores(ragged, fault=lambda row, why: told.append((row, why)))
    assert told == [(1, "poisoned")]
    assert np.isnan(scores_NL).all(axis=1).tolist() == [False, True, False]


def test_scores_do_not_depend_on_how_many_windows_are_held_at_once(
    windowed: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_NL = windowed.predict_proba(LONG)
    monkeypatch.setattr("ray_mlc.model.classifier.WINDOW_CELLS", 1)
    np.testing.assert_allclose(windowed.predict_proba(LONG), whole_NL, rtol=0, atol=1e-6)


# Runs


def job_of(model: Path, folder: Path, **long: Any) -> ScoreJob:
    options = {"model": str(model), "input": str(folder / "in"), "output": str(folder / "out")}
    options |= {"engine.dtype": "float32", "long": {"policy": "windows", "max_tokens": 16, **long}}
    return load_job(ScoreJob, options=options)


def write_input(folder: Path) -> list[str | None]:
    texts: list[str | None] = [*LONG, None, *LONG[::-1]]
    (folder / "in").mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "in" / "a.parquet")
    return texts


def test_a_run_writes_windows_and_the_scores_that_one_text_alone_gets(
    tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_input(tmp_path)
    how = windows(max_windows=6, aggregate="mean")
    job = job_of(tiny_model, tmp_path, windows=how.model_dump())
    score(job, LocalBackend(), Display(quiet=True))
    found = pq.read_table(tmp_path / "out" / "a")
    tokenizer = Tokenizer.load(tiny_model, max_tokens=16, windows=how)
    engine = load_here(open_model(str(tiny_model)), dtype="float32", device="cpu").engine
    names = open_model(str(tiny_model)).label_set
    classifier = Classifier(names, tokenizer, engine, 512)
    for row, text in enumerate(texts):
        if not text:
            assert found["n_windows"][row].as_py() == 0
            continue
        ragged = tokenizer.encode([text])
        assert found["n_windows"][row].as_py() == ragged.n_windows[0]
        assert found["truncated"][row].as_py() == (not tokenizer.covered(ragged.n_tokens)[0])
        expected = classifier.scores(ragged)[0]
        written = [found[f"score_{name}"][row].as_py() for name in names.column_names]
        np.testing.assert_allclose(written, expected, rtol=0, atol=1e-6)
    assert found["truncated"].to_pylist().count(True) > 0
    summary = json.loads((tmp_path / "out" / "_ray_mlc" / "summary.json").read_text())
    # what is the same after cutting is scored once
    computed = {tuple(tokenizer.encode([text]).values.tolist()) for text in texts if text}
    assert summary["this_process"]["real_tokens"] == sum(map(len, computed))
    footer = pq.read_metadata(next((tmp_path / "out" / "a").glob("*.parquet"))).metadata[b"ray_mlc"]
    assert b'"aggregate": "mean"' in footer or b'"aggregate":"mean"' in footer


@pytest.mark.parametrize(
    "change", [{"aggregate": "mean"}, {"overlap": 5}, {"max_windows": 7}, {"aggregate": "top_mean"}]
)
def test_a_run_goes_on_with_no_other_windows(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    write_input(tmp_path)
    first = windows(max_windows=6).model_dump()
    score(job_of(tiny_model, tmp_path, windows=first), LocalBackend(), Display(quiet=True))
    score(job_of(tiny_model, tmp_path, windows=first), LocalBackend(), Display(quiet=True))
    other = job_of(tiny_model, tmp_path, windows={**first, **change})
    with pytest.raises(RunMismatchError, match=r"long\.windows"):
        score(other, LocalBackend(), Display(quiet=True))


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ("mean", None, "mean"),
        ("mean", LongConfig(policy="windows"), "mean"),
        ("mean", LongConfig(policy="windows", windows=WindowsConfig(overlap=3)), "mean"),
        ("mean", LongConfig(policy="windows", windows=windows(aggregate="max")), "max"),
        ("mean", LongConfig(max_tokens=20), "mean"),
        ("mean", LongConfig(windows=WindowsConfig(max_windows=3)), "mean"),
        ("mean", LongConfig(policy="truncate"), None),
        (None, LongConfig(windows=WindowsConfig(max_windows=3)), "max"),
        (None, LongConfig(policy="windows"), "max"),
        (None, None, None),
    ],
)
def test_a_job_says_what_it_wants_and_the_model_folder_the_rest(
    own: Aggregate | None, asked: LongConfig | None, expected: str | None
) -> None:
    long = LongConfig(policy="windows", windows=windows(aggregate=own)) if own else LongConfig()
    folder = ModelFolder("m", Path(), ModelInfo(labels=["a"], long=long))
    found = folder.long(asked)
    assert (found.windows.aggregate if found.windows else None) == expected


def test_what_a_job_does_not_say_of_windows_is_the_models() -> None:
    own = WindowsConfig(overlap=32, aggregate="top_mean", top=5, max_windows=9)
    info = ModelInfo(labels=["a"], long=LongConfig(policy="windows", max_tokens=99, windows=own))
    folder = ModelFolder("m", Path(), info)
    found = folder.long(LongConfig(windows=WindowsConfig(max_windows=4)))
    assert found.windows == own.model_copy(update={"max_windows": 4})
    assert found.max_tokens == 99
    assert folder.long(LongConfig(max_tokens=50)).windows == own


def test_windows_with_another_policy_are_a_mistake() -> None:
    options = {"model": "m", "input": "i", "output": "o", "long.policy": "truncate"}
    with pytest.raises(ConfigError, match=r"windows has no meaning with policy: truncate"):
        load_job(ScoreJob, options={**options, "long.windows.overlap": 3})
