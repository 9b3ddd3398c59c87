"""Quantize a model to int8, measure what that changes, and keep it only if that is little."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, GateError, ModelError
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules, decide
from ray_mlc.model.engines import int8
from ray_mlc.model.engines.choose import (
    CPU_BATCH_TOKENS,
    load_encoder_tokenizer,
    load_int8_engine,
    reference_canaries,
)
from ray_mlc.model.folder import Canaries, ModelFolder, open_model
from ray_mlc.runtime.evaluate import load_here, read_known
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import local_path
from ray_mlc.training.examples import Examples, read_examples


def quantize_model(
    model: str,
    *,
    calibration: Sequence[str],
    validation: Sequence[str],
    text: str,
    labels: str | Sequence[str],
    documents: int,
    max_flips: float,
    max_loss: float,
    seed: int,
    display: Display,
) -> dict[str, Any]:
    """Add the int8 form of a model to its folder, if it agrees with float32.

    Args:
        model: Model folder.
        calibration: Examples whose texts give the ranges of activations; none: those that the model
            was trained on.
        validation: Examples on which the agreement is measured, none of them used for calibration;
            none: those that the model was validated on.
        text: Column, or template, of the text.
        labels: Column or columns of the labels.
        documents: Documents to calibrate with; at most `8 x documents` are compared.
        max_flips: Labels that may come out differently, as a share of those that float32 gives.
        max_loss: Largest loss of micro-F1.
        seed: Of the choice of documents.
        display: Told about progress.

    Returns:
        What `int8.json` holds.

    Raises:
        GateError: If it does not agree; nothing is kept then.
        ModelError: If the folder cannot be written, or the model cannot be quantized.
    """
    folder = open_model(model)
    if folder.info.kind != "encoder":
        raise ModelError(
            f"{model}: is a TF-IDF model: there is no int8 form of it, only of encoders"
        )
    path = local_path(model)
    if path is None or path != folder.path:
        raise ModelError(f"{model}: its int8 form is written beside it: name a local folder")
    calibration = list(calibration) or _recorded(folder, "train", "--calibration")
    validation = list(validation) or _recorded(folder, "validation", "--validation")
    if _overlap(calibration, validation):
        raise ConfigError("--validation: names examples that are calibrated with, too")
    data = read_examples(calibration, text=text, labels=labels, label_set=folder.label_set)
    drawn = data.texts.take(_some(len(data), 2 * documents, seed)).to_pylist()
    texts = [document for document in drawn if document and document.strip()][:documents]
    held_out = read_known(folder, validation, text=text, labels=labels)
    held_out = held_out.take(_some(len(held_out), 8 * documents, seed))
    tokenizer = load_encoder_tokenizer(folder, max_tokens=folder.max_tokens, windows=folder.windows)
    with ExitStack() as stack:
        # how often it goes through them is NNCF's affair
        with display.stage("calibrate", None, "examples") as stage:
            ids, pad_id = tokenizer.encode(texts), tokenizer.pad_id
            scratch = stack.enter_context(
                int8.quantized(folder, ids, pad_id=pad_id, progress=stage.advance)
            )
        engine = load_int8_engine(scratch, pad_id=pad_id, threads=None)
        budget = max(CPU_BATCH_TOKENS, tokenizer.max_tokens)
        eight = Classifier(folder.label_set, tokenizer, engine, budget)
        found = _compare(folder, eight, held_out, display)
        if found.flips_of_given > max_flips or found.loss > max_loss:
            raise GateError(
                f"{model}: int8 does not agree with float32: {found}; the limits are "
                f"{max_flips:.2%} (--max-flips) and a loss of {max_loss:g} (--max-loss); nothing "
                "is kept"
            )
        neutral = reference_canaries(folder, tokenizer).texts
        scores_NL = eight.predict_proba(neutral)
        info = int8.Int8Info(
            model=folder.digest,
            weights=int8.weights_digest(scratch),
            calibration=[_absolute(path) for path in calibration],
            calibration_documents=len(texts),
            validation=[_absolute(path) for path in validation],
            agreement=found,
            decision=folder.info.decision,
            max_tokens=tokenizer.max_tokens,
            canaries=Canaries(texts=neutral, scores=scores_NL.astype(float).tolist()),
            versions=int8.versions(),
        )
        int8.install(scratch, info, folder)
    return info.model_dump(mode="json")


def _compare(
    folder: ModelFolder, eight: Classifier, held_out: Examples, display: Display
) -> int8.Agreement:
    """Score the same documents in float32 and in int8."""
    exact = load_here(folder, dtype="float32", device="cpu")
    texts, scores = held_out.texts.to_pylist(), []
    with display.stage("compare", 2 * len(texts), "examples") as stage:
        for classifier in (exact, eight):
            scores.append(classifier.predict_proba(texts, progress=stage.advance))
    if not np.isfinite(scores[1]).all():
        raise GateError(f"{folder.name}: int8 gives scores that are not finite; nothing is kept")
    rules = folder.info.decision.rules(folder.label_set)
    return agreement(held_out.targets_NL(), scores[0], scores[1], rules)


def agreement(
    targets_NL: NDArray[np.float32],
    exact_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    rules: Rules,
) -> int8.Agreement:
    """Compare scores with those of float32, on annotated documents.

    Args:
        targets_NL: 0, 1, or NaN where nobody annotated.
        exact_NL: Scores in float32.
        scores_NL: Scores in int8.
        rules: The decision.
    """
    expected, given = decide(exact_NL, rules), decide(scores_NL, rules)
    flips = int((expected != given).sum())
    f1 = [
        evaluate_scores(targets_NL, scores, labels)["f1_micro"] or 0.0
        for scores, labels in ((scores_NL, given), (exact_NL, expected))
    ]
    return int8.Agreement(
        documents=len(targets_NL),
        flips=flips / max(1, expected.size),
        flips_of_given=flips / max(1, int(expected.sum())),
        max_difference=float(np.abs(scores_NL - exact_NL).max(initial=0)),
        f1_micro=f1[0],
        f1_micro_float32=f1[1],
    )


def _recorded(folder: ModelFolder, kind: str, option: str) -> list[str]:
    """Examples that the model folder names."""
    recorded = folder.info.training.get(kind)
    if not recorded:
        raise ConfigError(f"{folder.name}: does not say what it was trained on: give {option}")
    return [recorded] if isinstance(recorded, str) else list(recorded)


def _absolute(path: str) -> str:
    local = local_path(path)
    return str(local.absolute()) if local is not None else path


def _overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of paths name a file, or a folder and what is in it."""
    pairs = [(Path(_absolute(one)), Path(_absolute(other))) for one in some for other in others]
    resolved = [(one.resolve(), other.resolve()) for one, other in pairs]
    return any(a.is_relative_to(b) or b.is_relative_to(a) for a, b in resolved)


def _some(count: int, most: int, seed: int) -> NDArray[np.intp]:
    """Rows drawn at random, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])
