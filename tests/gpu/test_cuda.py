"""The same model on CUDA: scores within the stated tolerance of float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig
from ray_mlc.model.canaries import TOLERANCE, check_canaries
from ray_mlc.model.classifier import Classifier, sigmoid
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.engines.race import race
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import open_model
from ray_mlc.model.tokenization import Ragged, Tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]

TEXTS = [*synthetic.documents(300, seed=5)["text"].to_pylist(), "", "a"]
DTYPES = ("float32", "bfloat16", "float16")
CUDA_FLOAT32 = 1e-5
"""Largest difference of a float32 score between kernels: the limit of the canaries."""


@pytest.fixture(scope="module")
def exact_NL(tiny_model: Path) -> NDArray[np.float32]:
    """Float32 scores on the CPU: what every other way is measured against."""
    return classifier_on("cpu", "float32", tiny_model).predict_proba(TEXTS)


def classifier_on(device: str, dtype: str, folder: Path, budget: int = 2048) -> Classifier:
    tokenizer = Tokenizer.load(folder)
    engine = TorchEngine.load(folder, pad_id=tokenizer.pad_id, device=device, dtype=dtype)
    return Classifier(open_model(str(folder)).label_set, tokenizer, engine, budget)


def seen(scores_NL: NDArray[np.float32], exact_NL: NDArray[np.float32]) -> dict[str, str]:
    """Cells of the table: how scores differ from the exact ones."""
    differ = (scores_NL >= 0.5) != (exact_NL >= 0.5)
    return {
        "largest difference": f"{np.abs(scores_NL - exact_NL).max():.1e}",
        "labels that differ": f"{differ.sum()} of {differ.size:,}",
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_near_those_of_the_cpu(
    dtype: str, tiny_model: Path, exact_NL: NDArray[np.float32], tell: Callable[..., None]
) -> None:
    scores_NL = classifier_on("cuda", dtype, tiny_model).predict_proba(TEXTS)
    tell(engine=f"tiny, {dtype}", **seen(scores_NL, exact_NL))
    assert exact_NL.std(axis=0).max() > 0.01  # else constants would be compared
    limit = CUDA_FLOAT32 if dtype == "float32" else TOLERANCE[dtype]
    assert np.abs(scores_NL - exact_NL).max() <= limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_canaries_hold(dtype: str, tiny_model: Path) -> None:
    model = open_model(str(tiny_model))
    rules = model.info.decision.rules(model.label_set)
    report = check_canaries(classifier_on("cuda", dtype, tiny_model), model.canaries(), rules)
    assert report.max_difference <= TOLERANCE[dtype], str(report)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("budget", [32, 500, 20_000])
def test_packed_scores_are_near_those_of_the_cpu(
    dtype: str,
    budget: int,
    tiny_model: Path,
    exact_NL: NDArray[np.float32],
    tell: Callable[..., None],
) -> None:
    tokenizer = Tokenizer.load(tiny_model)
    engine = TorchEngine.load(
        tiny_model, pad_id=tokenizer.pad_id, device="cuda", dtype=dtype, packed=True
    )
    label_set = open_model(str(tiny_model)).label_set
    scores_NL = Classifier(label_set, tokenizer, engine, budget).predict_proba(TEXTS)
    tell(engine=f"tiny, {dtype} packed, {budget:,} a batch", **seen(scores_NL, exact_NL))
    assert np.abs(scores_NL - exact_NL).max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_heads_of_our_own_agree_with_the_cpu_packed_or_not(
    pooling: str, packed: bool, make_model: Callable[..., Path], tell: Callable[..., None]
) -> None:
    folder = make_model(pooling=pooling)
    exact_NL = classifier_on("cpu", "float32", folder).predict_proba(TEXTS)
    tokenizer = Tokenizer.load(folder)
    engine = TorchEngine.load(
        folder, pad_id=tokenizer.pad_id, device="cuda", dtype="bfloat16", packed=packed
    )
    classifier = Classifier(open_model(str(folder)).label_set, tokenizer, engine, 2048)
    scores_NL = classifier.predict_proba(TEXTS)
    tell(engine=f"tiny, {pooling}{' packed' if packed else ''}", **seen(scores_NL, exact_NL))
    assert np.abs(scores_NL - exact_NL).max() <= TOLERANCE["bfloat16"]


@pytest.mark.parametrize("budget", [32, 500, 20_000])
def test_float32_scores_do_not_depend_on_the_batch(tiny_model: Path, budget: int) -> None:
    whole_NL = classifier_on("cuda", "float32", tiny_model, 4096).predict_proba(TEXTS)
    scores_NL = classifier_on("cuda", "float32", tiny_model, budget).predict_proba(TEXTS)
    np.testing.assert_allclose(scores_NL, whole_NL, rtol=0, atol=1e-6)


def test_what_auto_resolves_to_on_cuda_is_loaded_again(tiny_model: Path) -> None:
    model = open_model(str(tiny_model))
    resolved = resolve(model, EngineConfig(), BatchingConfig(), cuda=True)
    assert resolved.device == "cuda"
    classifier = load_classifier(model, resolved)
    assert classifier.engine.dtype == resolved.dtype
    assert np.isfinite(classifier.predict_proba(TEXTS)).all()


@pytest.mark.parametrize("packed", [False, True])
def test_an_encoder_of_the_size_of_bert_base_agrees_packed_or_not(
    packed: bool, tell: Callable[..., None]
) -> None:
    """Random weights: the speed is that of real ones, and is told, not judged."""
    documents = ragged_documents(np.random.default_rng(0), 4000)
    engine = TorchEngine(bert_base(), pad_id=0, device="cuda", dtype="bfloat16", packed=packed)
    exact = TorchEngine(bert_base(), pad_id=0, device="cuda", dtype="float32")
    few = documents.windows(np.arange(64))
    difference = np.abs(sigmoid(engine.logits(few)) - sigmoid(exact.logits(few))).max()
    (speed,) = race([engine], documents, max_batch_tokens=32_768, seconds=2.0, seed=0)
    name = f"bert-base, bfloat16{' packed' if packed else ''}"
    tell(engine=name, **{"largest difference": f"{difference:.1e}", "tokens/s": f"{speed:,.0f}"})
    assert difference <= TOLERANCE["bfloat16"]


def bert_base() -> Any:
    """An untrained encoder of BERT's size with six labels."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=6))


def ragged_documents(rng: np.random.Generator, count: int) -> Ragged:
    """Documents with the lengths of web text: a median of 120 tokens, cut at 512."""
    lengths = np.clip(rng.lognormal(np.log(120), 1.0, count).astype(np.int64), 4, 512)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(1000, 30_000, int(offsets[-1])).astype(np.int32)
    return Ragged.of(ids, offsets, lengths.astype(np.int32))


def test_a_block_is_scored_on_cuda_as_on_the_cpu(tiny_model: Path) -> None:
    from ray_mlc.corpus.rows import (
        BLOCK_FAULT,
        BLOCK_STATUS,
        BLOCK_TEXT,
        BLOCK_UNIT_FIRST,
        BLOCK_UNIT_ROWS,
        SOURCE_TYPE,
    )
    from ray_mlc.scoring.parts import OutputSpec
    from ray_mlc.scoring.score import score_block, tokenize_block

    count = len(TEXTS)
    block = pa.table(
        {
            "source": pa.array(["x.parquet"] * count).cast(SOURCE_TYPE),
            "row": pa.array(range(count), pa.int64()),
            BLOCK_TEXT: pa.array(TEXTS, pa.large_string()),
            BLOCK_STATUS: pa.array(np.zeros(count, np.int8)),
            BLOCK_UNIT_FIRST: pa.array(np.zeros(count, np.int64)),
            BLOCK_UNIT_ROWS: pa.array(np.full(count, count, np.int32)),
            BLOCK_FAULT: pa.nulls(count, pa.string()),
        }
    )
    model = open_model(str(tiny_model))
    output = OutputSpec(pa.schema([]), model.label_set, "wide", 1, 0.0)
    rules = model.info.decision.rules(model.label_set)
    tables = []
    for device in ("cpu", "cuda"):
        classifier = classifier_on(device, "float32", tiny_model)
        tokenized = tokenize_block(block, classifier.tokenizer, policy="truncate")
        tables.append(score_block(tokenized, classifier, rules, output))
    one, other = tables
    assert one["status"].to_pylist() == other["status"].to_pylist() == ["ok"] * count
    for name in [name for name in one.column_names if name.startswith("score_")]:
        np.testing.assert_allclose(
            one[name].to_numpy(), other[name].to_numpy(), rtol=0, atol=CUDA_FLOAT32
        )


def test_a_batch_that_does_not_fit_is_halved(
    tiny_model: Path, exact_NL: NDArray[np.float32], cap_memory: Callable[[int], None]
) -> None:
    classifier = classifier_on("cuda", "float32", tiny_model, 2**20)
    copies = 400
    classifier.predict_proba(TEXTS[:2])  # kernels and the first pools come into memory
    cap_memory(64 * 2**20)
    scores_NL = classifier.predict_proba(TEXTS * copies)
    assert classifier.max_batch_tokens < 2**20
    np.testing.assert_allclose(scores_NL, np.tile(exact_NL, (copies, 1)), rtol=0, atol=CUDA_FLOAT32)


@pytest.fixture
def cap_memory() -> Iterator[Callable[[int], None]]:
    """Lets this process take only so many bytes more than it has; other tests get all again."""

    def cap(extra_bytes: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        share = (torch.cuda.memory_reserved() + extra_bytes) / total
        torch.cuda.set_per_process_memory_fraction(share)

    yield cap
    torch.cuda.set_per_process_memory_fraction(1.0)
