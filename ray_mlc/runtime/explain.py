"""Say which words carried labels: of predicted texts, and of the worst mistakes of an evaluation.

Encoders are loaded once more for it, because gradients need PyTorch and float32 whatever the engine
that scored. A TF-IDF model is explained from the weights that scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray_mlc.evaluation.mistakes import Mistake
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.encoder import load_classifier_model
from ray_mlc.model.engines.tfidf_engine import TfidfEngine
from ray_mlc.model.explain import Explanation, explain_linear, explain_text, require_captum
from ray_mlc.model.folder import ModelFolder
from ray_mlc.model.tfidf import TfidfTokenizer
from ray_mlc.model.tokenization import Tokenizer
from ray_mlc.runtime.progress import Display

EXPLAINED = 20
"""Mistakes that an evaluation explains at most, the most costly ones."""

Explain = Callable[[str, Sequence[tuple[int, str]]], Iterator[Explanation]]
"""Explains labels, named by column and name, of one text."""


@dataclass(frozen=True)
class ExplainedMistakes:
    """What an evaluation explained."""

    found: list[tuple[Mistake, Explanation]]
    """The most costly ones first."""
    wanted: int
    """How many there were to explain."""
    seconds: float
    """What it took."""


class _TimeIsUp(Exception):
    """The rest of the explanations is not made."""


def check_explainable(folder: ModelFolder) -> None:
    """Find out before the work that nothing could be explained.

    Raises:
        ResourceError: If captum is needed and not installed.
    """
    if folder.info.kind == "encoder":
        require_captum()


def explainer(
    folder: ModelFolder, classifier: Classifier, *, on_pass: Callable[[], None] = lambda: None
) -> Explain:
    """What explains a model's scores.

    Args:
        folder: The model.
        classifier: Its tokenizer is used, and its device.
        on_pass: Called before each forward pass of an encoder; what it raises ends the work.
    """
    tokenizer = classifier.tokenizer
    if isinstance(classifier.engine, TfidfEngine):
        assert isinstance(tokenizer, TfidfTokenizer)
        linear, terms = classifier.engine.model, tokenizer
        return lambda text, labels: explain_linear(linear, terms, text, labels)
    assert isinstance(tokenizer, Tokenizer)
    pieces = tokenizer
    model = load_classifier_model(folder.path).to(classifier.engine.device)
    # gradients go to the embeddings' output alone: nothing need be kept for those of the weights
    model.requires_grad_(False)
    return lambda text, labels: explain_text(model, pieces, text, labels, on_pass=on_pass)


def explain_predictions(
    folder: ModelFolder,
    classifier: Classifier,
    results: Sequence[Mapping[str, Any]],
    display: Display,
) -> list[list[dict[str, Any]]]:
    """Explanations of each text's labels, or of its best one where none is given.

    Args:
        folder: The model.
        classifier: See `explainer`.
        results: As `runtime.evaluate.predict_texts` returns them.
        display: Told about progress.

    Returns:
        Per text a list of `model.explain.Explanation` as mappings; empty for texts not scored.

    Raises:
        ResourceError: If captum is needed and not installed.
    """
    index = folder.label_set.index
    asked: list[list[tuple[int, str]]] = []
    for result in results:
        names: Sequence[str] = ()
        if result["status"] == "ok":
            best = max(result["scores"], key=result["scores"].__getitem__)
            names = result["labels"] or [best]
        asked.append([(index[name], name) for name in names])
    with display.stage("explain", sum(map(len, asked)), "labels") as stage:
        explain = explainer(folder, classifier)
        explained: list[list[dict[str, Any]]] = []
        for result, labels in zip(results, asked, strict=True):
            explained.append([])
            for found in explain(result["text"], labels) if labels else ():
                explained[-1].append(asdict(found))
                stage.advance(1)
    return explained


def explain_mistakes(
    folder: ModelFolder,
    classifier: Classifier,
    documents: Sequence[str],
    mistakes: Sequence[Mistake],
    *,
    seconds: float,
    display: Display,
) -> ExplainedMistakes:
    """Explain the most costly mistakes, `EXPLAINED` at most and as many as there is time for.

    Left out are labels that the model does not know, and texts without a word.

    Args:
        folder: The model.
        classifier: See `explainer`.
        documents: All texts.
        mistakes: The most costly ones first.
        seconds: When to stop, in the middle of an explanation if need be.
        display: Told about progress.
    """
    known = len(folder.label_set)
    asked = [
        mistake
        for mistake in mistakes
        if mistake.label < known and documents[mistake.document].strip()
    ][:EXPLAINED]
    started = time.monotonic()

    def check() -> None:
        if time.monotonic() - started > seconds:
            raise _TimeIsUp

    found: list[tuple[Mistake, Explanation]] = []
    with display.stage("explain", len(asked), "mistakes") as stage:
        try:
            explain = explainer(folder, classifier, on_pass=check) if asked else None
            for mistake in asked:
                assert explain is not None
                check()
                label = (mistake.label, folder.label_set.names[mistake.label])
                found += [(mistake, item) for item in explain(documents[mistake.document], [label])]
                stage.advance(1)
        except _TimeIsUp:
            display.say(
                f"note: {len(found)} of {len(asked)} mistakes were explained in {seconds:g} s "
                "(--explain-seconds)"
            )
    return ExplainedMistakes(found, len(asked), time.monotonic() - started)
