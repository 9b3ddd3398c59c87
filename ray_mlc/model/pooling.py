"""A classifier whose head sees the first token, or the mean over all tokens, and nothing between.

The heads that transformers builds differ from encoder to encoder, and each comes with a layer of
its own before the last. Where a class can be told what to pool (`STOCK_POOLING`), it is told, and
the folder stays one that transformers loads. For all others there is `PooledClassifier`: encoder,
pooling, dropout, one linear layer. Its folder carries a `model_type` that transformers does not
know, so that `pipeline` refuses the folder instead of scoring with a head that is not there.

The mean counts every token of a document, special ones included, as sentence encoders do (Reimers
and Gurevych 2019, "Sentence-BERT", section 3).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_model
from torch import nn

from ray_mlc.errors import ModelError
from ray_mlc.model.encoder import POOLED_TYPE, load_config

STOCK_POOLING: Mapping[str, Mapping[str, str]] = {
    "eurobert": {"cls": "bos", "mean": "mean"},
    "modernbert": {"cls": "cls", "mean": "mean"},
}
"""By `model_type`: what the class calls our poolings in its `classifier_pooling`. What it pools
goes through a dense layer of its own before the last one."""
WEIGHTS = "model.safetensors"
_ENCODER = "encoder."
_DROPOUTS = ("classifier_dropout", "hidden_dropout_prob", "hidden_dropout", "dropout")


def stock_options(config: Any, pooling: str) -> dict[str, str] | None:
    """What transformers' own class must be told to pool so; None if it cannot.

    Args:
        config: Of the encoder.
        pooling: `auto` (as the class does), `cls` or `mean`.
    """
    if pooling == "auto":
        return {}
    name = STOCK_POOLING.get(config.model_type, {}).get(pooling)
    return None if name is None else {"classifier_pooling": name}


class PooledClassifier(nn.Module):
    """Encoder, pooling, dropout, linear layer; called and saved like a transformers model."""

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, *, pooling: str, dropout: float, names: Sequence[str]) -> None:
        """Put a new head on an encoder.

        Args:
            encoder: transformers model whose output has a `last_hidden_state`.
            pooling: `cls` or `mean`.
            dropout: Share of the pooled values that training drops.
            names: Labels in column order.
        """
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.pooling = pooling
        self.names = list(names)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(self.names))
        with torch.no_grad():
            self.classifier.weight.normal_(std=getattr(self.config, "initializer_range", 0.02))
            self.classifier.bias.zero_()

    @property
    def base_model(self) -> Any:
        """The encoder, as transformers' classes call it."""
        return self.encoder

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's table of token embeddings, as of transformers' classes."""
        table: nn.Module = self.encoder.get_input_embeddings()
        return table

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> Any:
        """Logits of B documents.

        Args:
            input_ids: Shape [B, T].
            attention_mask: 0 for padding, shape [B, T]; None: there is none.
            options: For the encoder.

        Returns:
            `SequenceClassifierOutput` with `logits` of shape [B, L].
        """
        from transformers.modeling_outputs import SequenceClassifierOutput

        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **options)
        hidden_BTH = output.last_hidden_state
        if self.pooling == "cls":
            pooled_BH = hidden_BTH[:, 0]
        else:
            pooled_BH = masked_mean(hidden_BTH, attention_mask)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled_BH)))

    @classmethod
    def start(cls, folder: Path, names: Sequence[str], *, pooling: str) -> PooledClassifier:
        """A model to train, from a checkpoint of any kind; the head is new.

        From a folder of this class the encoder is taken, and `auto` means the pooling that it has.

        Raises:
            ModelError: If the encoder cannot be pooled so, or its weights are not all there.
        """
        config = load_config(folder)
        own = _own_content(folder)
        if own is not None:
            model = cls.load(folder)
            encoder = model.encoder
            pooling = model.pooling if pooling == "auto" else pooling
            _refuse_unfit(folder, config, pooling)
        else:
            _refuse_unfit(folder, config, pooling)
            kind = _encoder_class(folder, config)
            encoder, report = kind.from_pretrained(
                folder, dtype="float32", output_loading_info=True, **_without_pooler(kind)
            )
            _refuse_missing(folder, report, "is this the checkpoint of an encoder?")
        return cls(encoder, pooling=pooling, dropout=_dropout(config), names=names)

    @classmethod
    def load(cls, folder: Path) -> PooledClassifier:
        """The model of a folder that `save_pretrained` wrote, in float32.

        Raises:
            ModelError: If weights are missing.
        """
        content = _own_content(folder)
        assert content is not None, "the caller has looked at the model_type"
        if content.get("pooling") not in ("cls", "mean"):
            raise ModelError(
                f"{folder}: config.json has pooling {content.get('pooling')!r}, expected cls, mean"
            )
        config = load_config(folder)
        kind = _encoder_class(folder, config)
        weights = load_file(folder / WEIGHTS)
        encoder, report = kind.from_pretrained(
            None,
            config=config,
            state_dict={
                name.removeprefix(_ENCODER): value
                for name, value in weights.items()
                if name.startswith(_ENCODER)
            },
            dtype="float32",
            output_loading_info=True,
            **_without_pooler(kind),
        )
        remedy = "is this a fine-tuned model?"
        _refuse_missing(folder, report, remedy)
        id2label = content["id2label"]
        model = cls(
            encoder,
            pooling=content["pooling"],
            dropout=content["dropout"],
            names=[id2label[key] for key in sorted(id2label, key=int)],
        )
        for name, parameter in model.classifier.named_parameters():
            if f"classifier.{name}" not in weights:
                raise ModelError(f"{folder}: the weights lack 'classifier.{name}': {remedy}")
            with torch.no_grad():
                parameter.copy_(weights[f"classifier.{name}"])
        return model

    def save_pretrained(self, folder: Path) -> None:
        """Write weights and configuration; the encoder's own configuration lies in ours."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self, str(folder / WEIGHTS), metadata={"format": "pt"})
        encoder = json.loads(self.config.to_json_string())
        for key in ("id2label", "label2id", "problem_type"):
            encoder.pop(key, None)
        content = {
            "model_type": POOLED_TYPE,
            "architectures": [type(self).__name__],
            "pooling": self.pooling,
            "dropout": self.dropout.p,
            "problem_type": "multi_label_classification",
            "id2label": {str(column): name for column, name in enumerate(self.names)},
            "label2id": {name: column for column, name in enumerate(self.names)},
            "encoder": encoder,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def masked_mean(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    """Mean over a document's tokens, padding left out; shape [B, H].

    Summed in no less than float32: a document's hundreds of tokens are more than the 8 bits of a
    bfloat16 can count.
    """
    wide_BTH = hidden_BTH.to(torch.promote_types(hidden_BTH.dtype, torch.float32))
    if mask_BT is None:
        return wide_BTH.mean(dim=1).to(hidden_BTH.dtype)
    padding_BT1 = (mask_BT == 0)[:, :, None]
    total_BH = wide_BTH.masked_fill(padding_BT1, 0.0).sum(dim=1)
    counts_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return (total_BH / counts_B1).to(hidden_BTH.dtype)


def _own_content(folder: Path) -> dict[str, Any] | None:
    """`config.json` of a folder of this class; None for other folders."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content if content.get("model_type") == POOLED_TYPE else None


def _encoder_class(folder: Path, config: Any) -> Any:
    from transformers import MODEL_MAPPING

    try:
        found = MODEL_MAPPING[type(config)]
    except KeyError:
        raise ModelError(
            f"{folder}: transformers has no bare encoder of type {config.model_type}: set "
            "training.pooling=auto"
        ) from None
    return found[0] if isinstance(found, tuple) else found


def _without_pooler(kind: Any) -> dict[str, bool]:
    """Arguments that leave out the layer after the encoder that only a stock head uses."""
    known = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if known else {}


def _refuse_missing(folder: Path, report: Mapping[str, Any], remedy: str) -> None:
    missing = [name for name in report["missing_keys"] if "pooler" not in name]
    if missing:
        raise ModelError(f"{folder}: the weights lack {min(missing)!r}: {remedy}")


def _refuse_unfit(folder: Path, config: Any, pooling: str) -> None:
    """Refuse encoders for which a pooling means nothing.

    Raises:
        ModelError: For an encoder with a decoder behind it, and for the first token of one whose
            tokens do not see those after them.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(
            f"{folder}: training.pooling is {pooling}, but a {kind} model is an encoder with a "
            "decoder: set training.pooling=auto"
        )
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False)
    )
    if pooling == "cls" and causal:
        raise ModelError(
            f"{folder}: training.pooling is cls, but the first token of a {kind} model sees none "
            "of the others: set training.pooling=auto, or mean"
        )


def _dropout(config: Any) -> float:
    """Dropout before the head, as the encoder's own class would have it."""
    values = (getattr(config, name, None) for name in _DROPOUTS)
    return next((float(value) for value in values if isinstance(value, int | float)), 0.1)
