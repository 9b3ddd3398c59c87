"""Say which words carried the labels of predicted texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ray_mlc.model.classifier import Classifier
from ray_mlc.model.encoder import load_classifier_model
from ray_mlc.model.explain import explain_text
from ray_mlc.model.folder import ModelFolder
from ray_mlc.model.tokenization import Tokenizer


def explain_predictions(
    folder: ModelFolder, classifier: Classifier, results: Sequence[Mapping[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Explanations of each text's labels, or of its best one where none is given.

    Args:
        folder: The model.
        classifier: Its tokenizer is used, and its device; the model is loaded once more, because
            gradients need PyTorch and float32 whatever the engine.
        results: As `runtime.evaluate.predict_texts` returns them.

    Returns:
        Per text a list of `model.explain.Explanation` as mappings; empty for texts not scored.

    Raises:
        ResourceError: If captum is not installed.
    """
    tokenizer = classifier.tokenizer
    assert isinstance(tokenizer, Tokenizer)  # an encoder's
    model = load_classifier_model(folder.path).to(classifier.engine.device)
    explained: list[list[dict[str, Any]]] = []
    for result in results:
        if result["status"] != "ok":
            explained.append([])
            continue
        best = max(result["scores"], key=result["scores"].__getitem__)
        labels = [(folder.label_set.index[name], name) for name in result["labels"] or [best]]
        found = explain_text(model, tokenizer, result["text"], labels)
        explained.append([asdict(item) for item in found])
    return explained
