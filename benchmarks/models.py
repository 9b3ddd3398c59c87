"""Models to measure with: an encoder as it is, and a head fitted to its frozen features.

    python benchmarks/models.py ENCODER EXAMPLES OUT [--max-tokens 256] [--rows 4000]

ENCODER is a checkpoint folder, or `bert-base` or `minilm` for one of that size with random weights.
The head is a logistic regression per label on the first token's features, so that scores lie as a
trained model's do: a random head would say little about flipped labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ray_mlc.config import LongConfig
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.labels import LabelSet
from ray_mlc.model.batching import plan_batches
from ray_mlc.model.canaries import record_canaries
from ray_mlc.model.classifier import Classifier, sigmoid
from ray_mlc.model.decisions import Decision
from ray_mlc.model.encoder import new_classifier_model, output_layer
from ray_mlc.model.engines.protocol import pad
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import ModelInfo, write_model_folder
from ray_mlc.model.tokenization import Tokenizer, load_pretrained_tokenizer
from ray_mlc.training.examples import read_examples

SIZES = {
    # for what costs nothing of the model: growth, storage, Ray
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
    },
    "bert-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
BATCH_TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoder")
    parser.add_argument("examples")
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--tokenizer", help="folder; default: the encoder's")
    asked = parser.parse_args()
    data = read_examples(asked.examples)
    rows = np.random.default_rng(0).permutation(len(data))[: asked.rows]
    texts = data.texts.take(rows).to_pylist()
    build(
        asked.encoder, asked.tokenizer or asked.encoder, texts, data.targets_NL()[rows],
        data.label_set, asked.out, asked.max_tokens,
    )  # fmt: skip


def build(
    encoder: str,
    tokenizer_folder: str,
    texts: list[str],
    targets_NL: NDArray[Any],
    label_set: LabelSet,
    out: Path,
    max_tokens: int,
) -> None:
    """Write the model folder."""
    tokenizer = Tokenizer.load(tokenizer_folder, max_tokens=max_tokens)
    if encoder in SIZES:
        model = random_bert(SIZES[encoder], len(tokenizer.vocabulary), label_set)
    else:
        model = new_classifier_model(Path(encoder), label_set, head_bias=None, seed=0)
    model.eval()
    head = output_layer(model, len(label_set))
    features_NH = features(model, head, tokenizer, texts)
    with torch.no_grad():
        for column in range(len(label_set)):
            fitted = LogisticRegression(C=1.0, max_iter=2000)
            fitted.fit(features_NH, targets_NL[:, column])
            head.weight[column] = torch.from_numpy(fitted.coef_[0])
            head.bias[column] = float(fitted.intercept_[0])
        logits_NL = head(torch.from_numpy(features_NH)).numpy()
    threshold = fit_global_threshold(targets_NL, sigmoid(logits_NL))
    engine = TorchEngine(model, pad_id=tokenizer.pad_id, device="cpu", dtype="float32")
    canaries = record_canaries(Classifier(label_set, tokenizer, engine, BATCH_TOKENS))
    if encoder in SIZES:
        threshold = widest_gap(np.ravel(canaries.scores))
    out.mkdir(parents=True, exist_ok=True)
    saved = load_pretrained_tokenizer(tokenizer_folder)
    saved.model_max_length = max_tokens
    write_model_folder(
        out,
        model=model,
        tokenizer=saved,
        info=ModelInfo(
            labels=list(label_set.names),
            decision=Decision(threshold=threshold),
            long=LongConfig(policy="truncate", max_tokens=max_tokens),
        ),
        canaries=canaries,
        history=[],
    )
    print(f"{out}: threshold {threshold:.3f} on {len(texts)} examples")


def widest_gap(scores: NDArray[np.float64]) -> float:
    """A threshold that no score is near: labels of random weights would flip by rounding alone."""
    inner = np.sort(scores[(scores > 0.05) & (scores < 0.95)])
    widest = int(np.argmax(np.diff(inner)))
    return float(inner[widest] + inner[widest + 1]) / 2


def random_bert(sizes: dict[str, int], vocab_size: int, label_set: LabelSet) -> Any:
    """An encoder with random weights: only its speed and its rounding are of interest."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    names = dict(enumerate(label_set.names))
    config = BertConfig(
        vocab_size=vocab_size,
        num_labels=len(label_set),
        id2label=names,
        label2id={name: column for column, name in names.items()},
        problem_type="multi_label_classification",
        **sizes,
    )
    return BertForSequenceClassification(config)


def features(model: Any, head: Any, tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.float32]:
    """What the head sees of each text, shape [N, H]."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    ragged = tokenizer.encode(texts)
    result = np.zeros((len(texts), head.in_features), np.float32)
    with torch.inference_mode():
        for batch in plan_batches(ragged.lengths, max_batch_tokens=BATCH_TOKENS):
            ids_BT, mask_BT = pad(ragged.windows(batch), tokenizer.pad_id)
            model(input_ids=torch.from_numpy(ids_BT), attention_mask=torch.from_numpy(mask_BT))
            result[batch] = seen.pop().numpy()
    hook.remove()
    return result


if __name__ == "__main__":
    main()
