"""Evaluate and predict in this process: few texts, all cores, no Ray."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc import __version__
from ray_mlc.config import BatchingConfig, EngineConfig, EvaluateJob
from ray_mlc.errors import ConfigError, DataError
from ray_mlc.evaluation.calibration import calibration_error
from ray_mlc.evaluation.evaluate import evaluate
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.evaluation.study import study
from ray_mlc.job_files import section
from ray_mlc.model.classifier import Classifier, sigmoid
from ray_mlc.model.decisions import Decision, decide, read_decision
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.folder import ModelFolder, ModelInfo, open_model
from ray_mlc.model.tokenization import Ragged
from ray_mlc.report.evaluation import evaluation_page
from ray_mlc.runtime.explain import (
    ExplainedMistakes,
    check_explainable,
    explain_mistakes,
    explain_predictions,
)
from ray_mlc.runtime.job_ids import is_submitted
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.report_files import check_replaceable_in
from ray_mlc.storage import Storage, join, local_path, open_storage
from ray_mlc.training.examples import Examples, annotated_rows, read_examples

_SCRATCH = ".tmp"
DTYPES = ("float32", "bfloat16", "float16", "int8", "auto")
ENGINES = ("torch", "openvino", "auto")


def load_here(
    folder: ModelFolder,
    *,
    dtype: str,
    device: str,
    engine: str = "auto",
    threads: int | None = None,
) -> Classifier:
    """A classifier in this process, which has reproduced the model's canaries.

    Args:
        folder: The model.
        dtype: `float32`, `bfloat16`, `float16`, `int8` or `auto`.
        device: `cpu`, `cuda` or `auto`.
        engine: `torch`, `openvino` or `auto`: the first that holds, there is no race.
        threads: CPU threads; None: the library's default.

    Raises:
        ConfigError: If a name is none of these, or they contradict one another.
        ModelError: If the model cannot run as asked.
    """
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(f"device is {device!r}, expected cpu, cuda or auto")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if device == "cuda" and (dtype == "int8" or engine == "openvino"):
        which = "dtype is int8" if dtype == "int8" else "engine is openvino"
        raise ConfigError(f"{which}, which runs on CPUs: leave out device cuda")
    if folder.info.kind == "tfidf" and device == "cuda":
        raise ConfigError(f"{folder.name}: is a TF-IDF model, which runs on CPUs: leave out device")
    on_cpu = dtype == "int8" or engine == "openvino" or folder.info.kind == "tfidf"
    cuda = device == "cuda" or (device == "auto" and not on_cpu and _has_cuda())
    asked = section(EngineConfig, {"name": engine, "dtype": dtype})
    resolved = resolve(folder, asked, BatchingConfig(), cuda=cuda, threads=threads)
    return load_classifier(folder, resolved, threads=threads)


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


@dataclass(frozen=True)
class Scored:
    """Scores of N texts."""

    scores_NL: NDArray[np.float32]
    """As the model gives them."""
    first_NL: NDArray[np.float32] | None
    """Those of the first windows alone; None for a model that reads no others."""


def score_documents(
    classifier: Classifier, ragged: Ragged, *, progress: Callable[[int], None]
) -> Scored:
    """Score tokenized documents, some thousand windows at a time where they have several."""
    if classifier.tokenizer.windows is None:
        return Scored(classifier.scores(ragged, progress=progress), None)
    scores, first = [], []
    for rows in classifier.parts(ragged):
        part = ragged.take(rows)
        logits_WL = classifier.window_logits(part, progress=progress)
        scores.append(sigmoid(classifier.join(logits_WL, part.firsts)))
        first.append(sigmoid(logits_WL[part.firsts[:-1]]))
    return Scored(np.concatenate(scores), np.concatenate(first))


def evaluate_model(job: EvaluateJob, display: Display) -> tuple[dict[str, Any], str]:
    """Measure a model on examples; save the figures, and beside them a report to look at.

    Args:
        job: What is measured on what. Without an `output` the JSON goes into the model folder,
            named after the examples. The report is the file of the same name that ends in .html; it
            alone shows texts, if `texts` says so.
        display: Told about progress.

    Returns:
        The figures (`evaluation.study.Study.summary`, and `model`, `examples`, `threshold`,
        `calibration`, `unknown_labels`, `seconds`, `report`, with `explain` the `explained` and
        `wanted` mistakes and `seconds`; of a model that reads windows
        `first_window`, the metrics of the decision where only beginnings are read, and
        `several_windows`, the share of documents that have more), and the file they were written
        to. Of `calibration`, `scores` and `calibrated` are
        `evaluation.calibration.calibration_error` over the labels that the model knows; `method`
        and `calibrated` are null without one.

    Raises:
        ConfigError: If `output` names a file that is none of ours, or there is no such decision.
        DataError: If the examples cannot be used.
        ResourceError: If explanations need captum, which is not installed.
        StorageError: If nothing can be written there.
    """
    model, explain = job.model, job.explain
    examples = [job.examples] if isinstance(job.examples, str) else job.examples
    folder = open_model(model)
    if explain:  # not after the scoring
        check_explainable(folder)
    label_set = folder.label_set
    decided = folder.info.decision
    if job.decision is not None:
        decided = read_decision(job.decision, label_set)
    storage, name = _place(folder.path / "evaluation", examples[0], job.output)
    page = str(PurePath(name).with_suffix(".html"))
    for file in (name, page):
        check_replaceable_in(storage, file, display)
    data = read_examples(examples, text=job.text, labels=job.labels, label_set=label_set)
    data = annotated_rows(data, examples[0])
    unknown = data.label_set.names[len(label_set) :]
    if unknown:
        display.say(
            f"note: {len(unknown)} label(s) of the examples are unknown to the model, such as "
            f"{unknown[0]!r}: every one of them counts as a miss"
        )
    started = time.monotonic()
    # as a job on a cluster it has what it asked for; elsewhere the machine is its own
    threads = max(1, int(job.cpus)) if is_submitted() else None
    classifier = load_here(folder, dtype=job.dtype, device=job.device, threads=threads)
    documents = data.texts.to_pylist()
    with display.stage("evaluate", len(data), "examples") as stage:
        ragged = classifier.tokenizer.encode(documents)
        scored = score_documents(classifier, ragged, progress=stage.advance)
    scores_NL = scored.scores_NL
    if not np.isfinite(scores_NL).all():
        raise DataError(f"{model}: the model gives scores that are not finite")
    extra = len(unknown)
    targets_NL = data.targets_NL()
    calibrated_NL = None
    if decided.calibration is not None:
        calibrated_NL = decided.calibration.probabilities(scores_NL, label_set)
    known_NL = targets_NL[:, : len(label_set)]
    calibration = _calibration_of(decided, known_NL, scores_NL, calibrated_NL)
    rules = decided.rules(label_set)
    given_NL = np.pad(decide(scores_NL, rules), ((0, 0), (0, extra)))
    thresholds_L = np.pad(rules.thresholds_L, (0, extra), constant_values=1)
    if extra:  # padding copies
        scores_NL = np.pad(scores_NL, ((0, 0), (0, extra)))
        if calibrated_NL is not None:
            calibrated_NL = np.pad(calibrated_NL, ((0, 0), (0, extra)))
    rates = folder.info.label_rates
    figures = evaluate(
        targets_NL,
        scores_NL,
        label_set=data.label_set,
        given_NL=given_NL,
        rates_L=np.pad(np.array(rates or data.label_rates()[: len(label_set)]), (0, extra)),
    )
    windows: dict[str, Any] = {}
    if scored.first_NL is not None:
        # what the same decision gives to who reads the beginnings only
        first_NL = np.pad(scored.first_NL, ((0, 0), (0, extra)))
        first_given_NL = np.pad(decide(scored.first_NL, rules), ((0, 0), (0, extra)))
        windows["first_window"] = evaluate_scores(targets_NL, first_NL, first_given_NL)
        windows["several_windows"] = float(np.mean(ragged.n_windows > 1))
    with display.stage("report", len(data), "examples") as stage:
        found = study(
            figures,
            targets_NL,
            scores_NL,
            given_NL,
            thresholds_L=thresholds_L,
            n_tokens_N=ragged.n_tokens,
            truncated_N=~classifier.tokenizer.covered(ragged.n_tokens),
            max_tokens=classifier.tokenizer.max_tokens,
            calibrated_NL=calibrated_NL,
        )
        stage.advance(len(data))
    explained: ExplainedMistakes | None = None
    if explain:
        explained = explain_mistakes(
            folder,
            classifier,
            documents,
            found.costliest,
            seconds=job.explain_seconds,
            display=display,
        )
    ids = data.ids.to_pylist()
    result = found.summary(ids) | windows
    result |= {
        "model": model,
        "examples": list(examples),
        "threshold": decided.threshold,
        "calibration": calibration,
        "unknown_labels": list(unknown),
        "dtype": classifier.engine.dtype,
        "seconds": round(time.monotonic() - started, 3),
        "tokens": int(classifier.stats.real_tokens),
        "padding": round(classifier.stats.padding, 4),
        "report": join(storage.uri, page),
    }
    if explained is not None:
        result["explained"] = {
            "mistakes": len(explained.found),
            "wanted": explained.wanted,
            "seconds": round(explained.seconds, 3),
        }
    html = evaluation_page(
        found,
        title=f"Evaluation of {model}",
        facts=_facts(result, decided, folder.info, classifier),
        ids=ids,
        texts=documents if job.texts else None,
        explained=None if explained is None else explained.found,
        wanted=0 if explained is None else explained.wanted,
    )
    storage.put(page, html.encode())
    storage.put(name, json.dumps(result, indent=1, ensure_ascii=False).encode())
    _clear(storage)
    return result, join(storage.uri, name)


def _facts(
    result: Mapping[str, Any], decision: Decision, info: ModelInfo, classifier: Classifier
) -> list[tuple[str, str]]:
    """What the reader of a report must know first."""
    thresholds = f"threshold {decision.threshold:.4g}"
    if decision.per_label:
        thresholds += f", {len(decision.per_label):,} labels have their own"
    if decision.objective:
        thresholds += f"; fitted for {decision.objective}"
    tokenizer = classifier.tokenizer
    kept = f"{tokenizer.max_tokens:,} per document"
    if (windows := tokenizer.windows) is not None:
        kept = (
            f"{tokenizer.max_tokens:,} in each of at most {windows.max_windows} windows, joined by "
            f"{windows.aggregate}"
        )
    labels = f"{len(result['per_label']):,}"
    if result["unknown_labels"]:
        labels += f", {len(result['unknown_labels']):,} of them unknown to the model"
    return [
        ("model", result["model"]),
        ("examples", ", ".join(result["examples"])),
        ("documents", f"{result['n']:,}"),
        ("labels", labels),
        ("decision", thresholds),
        (
            "dummy",
            f"label rates of {'the training data' if info.label_rates else 'these examples'}",
        ),
        ("tokens kept", kept),
        ("precision", f"{classifier.engine.dtype} on {classifier.engine.device}"),
        ("made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, ray-mlc {__version__}"),
    ]


def _calibration_of(
    decision: Decision,
    targets_NL: NDArray[np.float32],
    scores_NL: NDArray[np.float32],
    calibrated_NL: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """How far scores, and what the calibration makes of them, are from probabilities."""
    calibration = decision.calibration
    return {
        "method": calibration.method if calibration is not None else None,
        "scores": calibration_error(targets_NL, scores_NL),
        "calibrated": None
        if calibrated_NL is None
        else calibration_error(targets_NL, calibrated_NL),
    }


def _place(where: Path, examples: str, output: str | None) -> tuple[Storage, str]:
    """Where the figures go, tried before the work: the folder, and the name in it.

    Raises:
        StorageError: If nothing can be written there.
    """
    # two files of one name in different folders are different examples
    digest = hashlib.sha256(str(Path(examples).absolute()).encode()).hexdigest()[:8]
    folder, name = str(where), f"{Path(examples.rstrip('/')).stem}-{digest}.json"
    if output is not None:
        path = local_path(output)
        if path is None:
            folder, _, name = output.rstrip("/").rpartition("/")
        elif path.is_dir():
            folder = str(path)
        else:
            folder, name = str(path.parent), path.name
    storage = open_storage(folder, scratch=_SCRATCH)
    storage.put(".writable", b"")
    storage.delete(".writable")
    _clear(storage)
    return storage, name


def _clear(storage: Storage) -> None:
    """Remove the folder of temporary files of a local storage, if it is empty."""
    if (folder := local_path(storage.uri)) is not None:
        with suppress(OSError):
            (folder / _SCRATCH).rmdir()


def predict_texts(
    model: str,
    texts: Sequence[str],
    *,
    dtype: str,
    device: str,
    explain: bool = False,
    display: Display | None = None,
) -> list[dict[str, Any]]:
    """Labels, scores and latency of single texts.

    A text that is empty or white space only is not scored, as in `score`.

    Args:
        model: Model folder or hub id.
        texts: What to score.
        dtype: See `load_here`.
        device: See `load_here`.
        explain: Also say which words carried each label that is given, or the best one where none
            is: `explanations`, see `model.explain.Explanation`.
        display: Told about the progress of explanations; None: nobody is.

    Returns:
        Per text: `text`, `status` (`ok` or `empty`), `labels` (best first), `scores` by label,
        `probabilities` by label (calibrated scores; null where the model has no calibration),
        `latency_ms` (tokenizing, one forward pass and decision, after a warm-up), `n_tokens`,
        `truncated`, `n_windows`.
    """
    folder = open_model(model)
    if explain:  # not after the scoring
        check_explainable(folder)
    classifier = load_here(folder, dtype=dtype, device=device)
    decision, label_set = folder.info.decision, folder.label_set
    rules = decision.rules(label_set)
    classifier.predict_proba(list(texts[:1]))  # the first pass pays for allocations
    results: list[dict[str, Any]] = []
    for text in texts:
        if not text.strip():
            results.append(
                {
                    "text": text,
                    "status": "empty",
                    "labels": [],
                    "scores": {},
                    "probabilities": None if decision.calibration is None else {},
                    "latency_ms": 0.0,
                    "n_tokens": 0,
                    "truncated": False,
                    "n_windows": 0,
                }
            )
            continue
        started = time.perf_counter()
        ragged = classifier.tokenizer.encode([text])
        scores_NL = classifier.scores(ragged)
        given = decide(scores_NL, rules)[0]
        latency = time.perf_counter() - started
        scores_L = scores_NL[0]
        order = np.argsort(-scores_L, kind="stable")
        names = label_set.names
        probabilities = None
        if decision.calibration is not None:
            values = decision.calibration.probabilities(scores_NL, label_set)[0]
            probabilities = dict(zip(names, values.tolist(), strict=True))
        results.append(
            {
                "text": text,
                "status": "ok",
                "labels": [names[column] for column in order if given[column]],
                "scores": {name: float(score) for name, score in zip(names, scores_L, strict=True)},
                "probabilities": probabilities,
                "latency_ms": round(latency * 1000, 3),
                "n_tokens": int(ragged.n_tokens[0]),
                "truncated": not classifier.tokenizer.covered(ragged.n_tokens)[0],
                "n_windows": int(ragged.n_windows[0]),
            }
        )
    if explain:
        explained = explain_predictions(folder, classifier, results, display or Display(quiet=True))
        for result, found in zip(results, explained, strict=True):
            result["explanations"] = found
    return results
