"""Small trainings for tests: documents of a dozen tokens, encoders of a layer or two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification

from ray_mlc.config import TrainingConfig
from ray_mlc.model.pooling import PooledClassifier
from ray_mlc.model.tokenization import Ragged
from ray_mlc.training.epoch import TokenizedExamples
from ray_mlc.training.loop import Fitter
from ray_mlc.training.parameters import freeze_unused

VOCABULARY, LABEL_COUNT = 30, 3


def examples(
    count: int,
    *,
    seed: int = 0,
    longest: int = 12,
    unannotated: bool = False,
    windowed: bool = False,
) -> TokenizedExamples:
    """Random documents; label 0 is whether token 5 is there, the others are random."""
    rng = np.random.default_rng(seed)
    documents = [
        rng.integers(3, VOCABULARY, size=rng.integers(2, longest + 1)).astype(np.int32)
        for _ in range(count)
    ]
    positive = [
        sorted({*([0] if 5 in row else []), *np.flatnonzero(rng.random(3) < [0, 0.3, 0.1])})
        for row in documents
    ]
    missing = [[1] if unannotated and rng.random() < 0.3 else [] for _ in documents]
    packed = pack(documents, positive, missing)
    return replace(packed, ids=in_windows(packed.ids)) if windowed else packed


def in_windows(ids: Ragged, size: int = 4) -> Ragged:
    """The same documents in windows of `size` tokens."""
    n_windows = -(-ids.lengths // size)
    bounds = [
        int(low) + step * size
        for low, count in zip(ids.offsets, n_windows, strict=False)
        for step in range(int(count))
    ]
    return Ragged.of(ids.values, np.array([*bounds, len(ids.values)]), ids.n_tokens, n_windows)


def pack(
    documents: list[NDArray[np.int32]], positive: list[Any], missing: list[Any]
) -> TokenizedExamples:
    def offsets(rows: list[Any]) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)

    def flat(rows: list[Any]) -> NDArray[np.int32]:
        return np.array([column for row in rows for column in row], np.int32)

    lengths = np.array([len(row) for row in documents], np.int32)
    return TokenizedExamples(
        ids=Ragged.of(flat(documents), offsets(documents), lengths),
        positive_offsets=offsets(positive),
        positive_columns=flat(positive),
        unannotated_offsets=offsets(missing),
        unannotated_columns=flat(missing),
        label_count=LABEL_COUNT,
    )


def settings_of(**changes: Any) -> TrainingConfig:
    values = {
        "epochs": 2,
        "batch_size": 8,
        "max_batch_tokens": 4096,
        "learning_rate": 5e-3,
        "head_learning_rate": 1e-2,
        "dtype": "float32",
        **changes,
    }
    return TrainingConfig(**values)


def tiny_bert(*, dropout: float = 0.0, layers: int = 1) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        num_labels=LABEL_COUNT,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.25,
    )
    model = BertForSequenceClassification(config)
    freeze_unused(model)
    return model


def tiny_mean() -> Any:
    """A model of our own class, of two layers."""
    bert = tiny_bert(layers=2).bert
    bert.pooler = None
    return PooledClassifier(bert, pooling="mean", dropout=0.0, names=["a", "b", "c"])


def fitter_of(
    train: TokenizedExamples,
    *,
    model: Any = None,
    wrap: Callable[[Any], Any] = lambda model: model,
    rank: int = 0,
    world_size: int = 1,
    **changes: Any,
) -> Fitter:
    model = tiny_bert() if model is None else model
    return Fitter(
        model=model,
        wrapped=wrap(model),
        train=train,
        config=settings_of(**changes),
        pad_id=0,
        device=torch.device("cpu"),
        amp_dtype=None,
        rank=rank,
        world_size=world_size,
    )
