"""Evaluate and predict in this process: few texts, all cores, no Ray."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ray_mlc.config import BatchingConfig, EngineConfig
from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.evaluate import evaluate
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import decide
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import Storage, open_storage
from ray_mlc.training.examples import Examples, annotated_rows, read_examples

DTYPES = ("float32", "bfloat16", "float16", "int8", "auto")


def load_here(folder: ModelFolder, *, dtype: str, device: str) -> Classifier:
    """A classifier in this process.

    Args:
        folder: The model.
        dtype: `float32`, `bfloat16`, `float16`, `int8` or `auto`.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        ConfigError: If a name is none of these.
        ModelError: If the model cannot run as asked.
    """
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(f"--device is {device!r}, expected cpu, cuda or auto")
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype == "int8" and device == "cuda":
        raise ConfigError("--dtype is int8, which runs on CPUs: leave out --device cuda")
    if folder.info.kind == "tfidf" and device == "cuda":
        raise ConfigError(
            f"{folder.name}: is a TF-IDF model, which runs on CPUs: leave out --device"
        )
    free = device == "auto" and dtype != "int8" and folder.info.kind == "encoder"
    cuda = device == "cuda" or (free and _has_cuda())
    engine = EngineConfig(dtype=dtype)  # type: ignore[arg-type]
    resolved = resolve(folder, engine, BatchingConfig(), cuda=cuda, max_tokens=None)
    return load_classifier(folder, resolved)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def read_known(
    folder: ModelFolder, examples: Sequence[str], *, text: str, labels: str | Sequence[str]
) -> Examples:
    """Annotated examples whose labels the model knows.

    Raises:
        DataError: If they have another label, or cannot be used.
    """
    known = folder.label_set
    data = read_examples(list(examples), text=text, labels=labels, label_set=known)
    if len(data.label_set) > len(known):
        raise DataError(
            f"{examples[0]}: has label {data.label_set.names[len(known)]!r}, which the model does "
            "not know"
        )
    return annotated_rows(data, examples[0])


def evaluate_model(
    model: str,
    examples: Sequence[str],
    *,
    text: str,
    labels: str | Sequence[str],
    dtype: str,
    device: str,
    output: Path | None,
    display: Display,
) -> tuple[dict[str, Any], Path]:
    """Measure a model on examples, and save the figures.

    Returns:
        The figures (`evaluation.evaluate.evaluate`, and `model`, `examples`, `threshold`,
        `unknown_labels`, `seconds`), and the file they were written to.
    """
    folder = open_model(model)
    label_set = folder.label_set
    storage, name = _place(output or folder.path / "evaluation", examples[0], output)
    data = read_examples(list(examples), text=text, labels=labels, label_set=label_set)
    data = annotated_rows(data, examples[0])
    unknown = data.label_set.names[len(label_set) :]
    if unknown:
        display.say(
            f"note: {len(unknown)} label(s) of the examples are unknown to the model, such as "
            f"{unknown[0]!r}: every one of them counts as a miss"
        )
    started = time.monotonic()
    classifier = load_here(folder, dtype=dtype, device=device)
    with display.stage("evaluate", len(data), "examples") as stage:
        scores_NL = classifier.predict_proba(data.texts.to_pylist(), progress=stage.advance)
    if not np.isfinite(scores_NL).all():
        raise DataError(f"{model}: the model gives scores that are not finite")
    extra = len(unknown)
    rates = folder.info.label_rates
    result = evaluate(
        data.targets_NL(),
        np.pad(scores_NL, ((0, 0), (0, extra))),
        label_set=data.label_set,
        thresholds_L=np.pad(
            folder.info.decision.thresholds_L(label_set), (0, extra), constant_values=1
        ),
        rates_L=np.pad(np.array(rates or data.label_rates()[: len(label_set)]), (0, extra)),
    )
    result |= {
        "model": model,
        "examples": list(examples),
        "threshold": folder.info.decision.threshold,
        "unknown_labels": list(unknown),
        "dtype": classifier.engine.dtype,
        "seconds": round(time.monotonic() - started, 3),
        "tokens": int(classifier.stats.real_tokens),
        "padding": round(classifier.stats.padding, 4),
    }
    storage.put(name, json.dumps(result, indent=1, ensure_ascii=False).encode())
    return result, Path(storage.uri) / name


def _place(where: Path, examples: str, output: Path | None) -> tuple[Storage, str]:
    """Where the figures go, tried before the work: the folder, and the name in it.

    Raises:
        StorageError: If nothing can be written there.
    """
    folder, name = (output.parent, output.name) if output is not None else (where, "")
    if not name:
        # two files of one name in different folders are different examples
        digest = hashlib.sha256(str(Path(examples).absolute()).encode()).hexdigest()[:8]
        name = f"{Path(examples.rstrip('/')).stem}-{digest}.json"
    storage = open_storage(str(folder), scratch=".tmp")
    storage.put(".writable", b"")
    storage.delete(".writable")
    with suppress(OSError):
        (folder / ".tmp").rmdir()
    return storage, name


def predict_texts(
    model: str, texts: Sequence[str], *, dtype: str, device: str
) -> list[dict[str, Any]]:
    """Labels, scores and latency of single texts.

    A text that is empty or white space only is not scored, as in `score`.

    Returns:
        Per text: `text`, `status` (`ok` or `empty`), `labels` (best first), `scores` by label,
        `latency_ms` (tokenizing, one forward pass and decision, after a warm-up), `n_tokens`,
        `truncated`.
    """
    folder = open_model(model)
    classifier = load_here(folder, dtype=dtype, device=device)
    thresholds_L = folder.info.decision.thresholds_L(folder.label_set)
    classifier.predict_proba(list(texts[:1]))  # the first pass pays for allocations
    results = []
    for text in texts:
        if not text.strip():
            results.append(
                {
                    "text": text,
                    "status": "empty",
                    "labels": [],
                    "scores": {},
                    "latency_ms": 0.0,
                    "n_tokens": 0,
                    "truncated": False,
                }
            )
            continue
        started = time.perf_counter()
        ragged = classifier.tokenizer.encode([text])
        scores_L = classifier.scores(ragged)[0]
        given = decide(scores_L, thresholds_L)
        latency = time.perf_counter() - started
        order = np.argsort(-scores_L, kind="stable")
        names = folder.label_set.names
        results.append(
            {
                "text": text,
                "status": "ok",
                "labels": [names[column] for column in order if given[column]],
                "scores": {name: float(score) for name, score in zip(names, scores_L, strict=True)},
                "latency_ms": round(latency * 1000, 3),
                "n_tokens": int(ragged.n_tokens[0]),
                "truncated": bool(ragged.n_tokens[0] > classifier.tokenizer.max_tokens),
            }
        )
    return results
