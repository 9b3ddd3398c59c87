"""Untrained models that look like trained ones: small, quick to write, with scores that spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ray_mlc import synthetic
from ray_mlc.labels import LabelSet


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
    model = new_classifier_model(encoder, label_set, head_bias=bias, seed=seed)
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
