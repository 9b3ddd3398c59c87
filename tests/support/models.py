"""Untrained models that look like trained ones: small, quick to write, with scores that spread."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ray_mlc import synthetic
from ray_mlc.labels import LabelSet

LIGHT_ENGINE = "openvino" if find_spec("openvino") else "torch"
"""For runs of many processes: each that imports PyTorch and transformers takes seconds to begin."""


def write_tiny_encoder(folder: Path, *, seed: int, max_tokens: int = 64) -> None:
    """An encoder of a few thousand weights."""
    synthetic.write_encoder(
        folder,
        texts=synthetic.documents(100, seed=2)["text"].to_pylist(),
        vocab_size=256,
        hidden_size=16,
        intermediate_size=16,
        max_tokens=max_tokens,
        seed=seed,
    )


def write_tiny_model(
    encoder: Path,
    folder: Path,
    label_set: LabelSet = synthetic.LABELS,
    *,
    max_tokens: int,
    threshold: float = 0.6,
    seed: int = 0,
    pooling: str = "auto",
) -> None:
    """A model folder with a random head.

    Its scores differ from text to text and lie all over 0 to 1, as of a trained model.
    """
    import torch

    from ray_mlc.config import LongConfig
    from ray_mlc.model.canaries import record_canaries
    from ray_mlc.model.classifier import Classifier
    from ray_mlc.model.decisions import Decision
    from ray_mlc.model.encoder import new_classifier_model, output_layer
    from ray_mlc.model.engines.torch_engine import TorchEngine
    from ray_mlc.model.folder import ModelInfo, write_model_folder
    from ray_mlc.model.tokenization import Tokenizer, load_pretrained_tokenizer

    bias = np.linspace(-1.5, 0.5, len(label_set))
    model = new_classifier_model(encoder, label_set, head_bias=bias, seed=seed, pooling=pooling)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "attention.self.value.weight" in name or "attention.output.dense" in name:
                weights.mul_(6)
        generator = torch.Generator().manual_seed(seed)
        output_layer(model, len(label_set)).weight.normal_(generator=generator)
    tokenizer = Tokenizer.load(encoder, max_tokens=max_tokens)
    engine = TorchEngine(model, pad_id=tokenizer.pad_id, device="cpu", dtype="float32")
    folder.mkdir(parents=True, exist_ok=True)
    write_model_folder(
        folder,
        model=model,
        tokenizer=load_pretrained_tokenizer(encoder),
        info=ModelInfo(
            labels=list(label_set.names),
            decision=Decision(threshold=threshold),
            long=LongConfig(policy="truncate", max_tokens=max_tokens),
        ),
        canaries=record_canaries(Classifier(label_set, tokenizer, engine, 4096)),
        history=[],
    )


def write_tiny_tfidf(folder: Path, *, threshold: float = 0.3, documents: int = 300) -> None:
    """A TF-IDF model folder for the synthetic labels, fitted on some documents."""
    from ray_mlc.config import LongConfig
    from ray_mlc.model.canaries import record_canaries
    from ray_mlc.model.decisions import Decision
    from ray_mlc.model.engines.tfidf_engine import tfidf_classifier
    from ray_mlc.model.folder import ModelInfo, write_tfidf_folder
    from ray_mlc.model.tfidf import MAX_TOKENS
    from ray_mlc.training.baselines import fit_tfidf

    label_set = synthetic.LABELS
    learn = synthetic.documents(documents, seed=3)
    given = learn["labels"].to_pylist()
    targets_NL = np.array([[name in row for name in label_set.names] for row in given], np.float32)
    model = fit_tfidf(learn["text"].to_pylist(), lambda label: targets_NL[:, label], len(label_set))
    write_tfidf_folder(
        folder,
        model=model,
        info=ModelInfo(
            kind="tfidf",
            labels=list(label_set.names),
            decision=Decision(threshold=threshold),
            long=LongConfig(policy="truncate", max_tokens=MAX_TOKENS),
        ),
        canaries=record_canaries(tfidf_classifier(model, label_set)),
    )


def classifier_of(model_type: str) -> Any:
    """An untrained transformers model of some kind, 40 positions, pad token 1, three labels."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24}
    own = {
        "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        "t5": {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8},
    }
    embedding = {"embedding_size": 16} if model_type in ("electra", "albert") else {}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(
        model_type,
        vocab_size=50,
        max_position_embeddings=40,
        pad_token_id=1,
        num_labels=3,
        **(ends if model_type == "modernbert" else {}),
        **own.get(model_type, sizes),
        **embedding,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # an untrained model hardly looks at its input
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embeddings" not in name:
                weights.mul_(12)
    return model
