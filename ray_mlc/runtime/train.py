"""The order of a training, whichever runtime does the work: its epochs, and what it leaves.

It starts from what `runtime.prepare` makes. At the end the best epoch's checkpoint becomes a model
folder: threshold, metrics, canaries. Nothing here knows Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import LongConfig, TrainingConfig, TrainJob, WindowsConfig
from ray_mlc.errors import ModelError, redact
from ray_mlc.evaluation.evaluate import evaluate_scores_at, validation_metrics
from ray_mlc.evaluation.metrics import is_better
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.labels import LabelSet
from ray_mlc.model.canaries import record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Decision, decide
from ray_mlc.model.distribution import ScoreCounts
from ray_mlc.model.encoder import fetch, hub_id, new_classifier_model
from ray_mlc.model.engines.choose import CPU_BATCH_TOKENS
from ray_mlc.model.engines.kernels import keep_few_kernels
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import ModelInfo, read_info, write_model_folder
from ray_mlc.model.tokenization import Tokenizer, load_pretrained_tokenizer
from ray_mlc.model.trained_head import trained_head
from ray_mlc.model.windows import AGGREGATES, Aggregate
from ray_mlc.runtime import heap
from ray_mlc.runtime.prepare import Material, Prepared
from ray_mlc.runtime.progress import Display
from ray_mlc.scoring.identity import versions
from ray_mlc.training.epoch import TokenizedExamples
from ray_mlc.training.linear_probe import fit_head
from ray_mlc.training.loop import MODEL_STATE, Fitter, load_weights, training_dtype
from ray_mlc.training.parameters import freeze_unused, head_bias

TRIM_STEPS = 50
"""Steps after which memory that was freed is given back."""
VALIDATION_SCORES = "validation.npy"
"""Validation scores in a checkpoint: the threshold is fitted on those of the epoch that is kept."""


@dataclass(frozen=True)
class Validated:
    """What an epoch's weights do on the validation examples."""

    aggregate: Aggregate
    """How windows are joined: of the ways that the job leaves open, the one that serves best."""
    scores_NL: NDArray[np.float32]
    threshold: float
    """The one for all labels that gives the highest micro-F1."""
    metrics: dict[str, float | None]
    """At the threshold."""
    aggregates: dict[str, float | None]
    """`best_metric` of each way that was tried."""


def validate(
    fitter: Fitter,
    validation: TokenizedExamples,
    targets_NL: NDArray[np.float32],
    settings: TrainingConfig,
) -> Validated:
    """Score the validation examples; all ranks get the same."""
    windows = settings.windows or WindowsConfig(aggregate="max")
    hows = AGGREGATES if windows.aggregate == "auto" else (windows.aggregate,)
    found: Validated | None = None
    name = settings.best_metric
    values: dict[str, float | None] = {}
    for how, scores_NL in fitter.predict(validation, hows).items():
        threshold = fit_global_threshold(targets_NL, scores_NL)
        metrics = evaluate_scores_at(targets_NL, scores_NL, np.float32(threshold))
        values[how] = metrics[name]
        if found is None or is_better(name, metrics[name], found.metrics[name]):
            # a copy: a slice would keep the scores of all ways alive
            found = Validated(how, scores_NL.copy(), threshold, metrics, values)
    assert found is not None
    return found


def new_fitter(
    settings: TrainingConfig,
    material: Material,
    *,
    device: Any,
    wrap: Callable[[Any], Any],
    rank: int = 0,
    world_size: int = 1,
) -> Fitter:
    """One rank's model, as it is before its first step.

    Args:
        settings: How it is fine-tuned.
        material: What from; the arrays themselves, no references.
        device: Of this rank.
        wrap: Puts a model on the device, and around it what gradients of several ranks need.
        rank: Of this worker.
        world_size: Workers.
    """
    keep_few_kernels()
    encoder = fetch(material.encoder)  # where this node has it
    label_set = LabelSet(tuple(material.labels))
    # before the new model: there is room for one
    head = trained_head(encoder, label_set, pooling=settings.pooling)
    model = new_classifier_model(
        encoder,
        label_set,
        head_bias=head_bias(settings.head_bias, material.rates_L, len(material.train)),
        seed=settings.seed,
        pooling=settings.pooling,
        vocabulary_size=material.vocabulary_size,
    )
    known_L = None if head is None else head.give(model, label_set)
    freeze_unused(model)
    return Fitter(
        model=model,
        wrapped=wrap(model),
        train=material.train,
        config=settings,
        pad_id=material.pad_id,
        device=device,
        amp_dtype=training_dtype(settings.dtype, device),
        rank=rank,
        world_size=world_size,
        known_L=known_L,
    )


State = dict[str, Any]
"""Where a training stands: `epoch` and `step` to go on with, `history`, `best_epoch`."""


def first_state() -> State:
    """Where a training stands before its first step."""
    return {"epoch": 0, "step": 0, "history": [], "best_epoch": None}


def fits_head(state: State, settings: TrainingConfig) -> bool:
    """Whether the head is fitted before the first step: not where a checkpoint has one."""
    return settings.head_init == "linear_probe" and not state["epoch"] and not state["step"]


def run_epochs(
    fitter: Fitter,
    state: State,
    material: Material,
    *,
    on_step: Callable[[State, int, float], None],
    on_epoch: Callable[[State, NDArray[np.float32]], None],
    on_head: Callable[[float], None] = lambda share: None,
) -> None:
    """Train from `state` to the last epoch, or until patience ends.

    Args:
        fitter: This rank's.
        state: Where training stands; not changed.
        material: The arrays themselves, no references.
        on_step: Called after each step with the state at the beginning of the epoch, the number
            of the step in it and its loss.
        on_epoch: Called after each epoch with the new state and the validation scores.
        on_head: Called while `head_init` fits the head, with the share that is done: first with 0.
    """
    settings = fitter.config
    name = settings.best_metric
    if fits_head(state, settings):
        on_head(0.0)
        fit_head(fitter, on_head)
    while not is_over(state, settings):
        started = time.monotonic()
        epoch = state["epoch"]
        stepped = partial(_step_done, state, on_step)
        loss = fitter.run_epoch(epoch, first_step=state["step"], on_step=stepped)
        validated = validate(fitter, material.validation, material.targets_NL, settings)
        scores_NL, metrics = validated.scores_NL, validated.metrics
        record = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "threshold": validated.threshold,
            **(_windows_record(validated) if settings.windows else {}),
            "learning_rate": fitter.learning_rate,
            "seconds": round(time.monotonic() - started, 3),
            "at_half": evaluate_scores_at(material.targets_NL, scores_NL, np.float32(0.5)),
            "decision": metrics,
        }
        best = best_record(state)
        improved = best is None or is_better(name, metrics[name], best["decision"][name])
        state = {
            "epoch": epoch + 1,
            "step": 0,
            "history": [*state["history"], record],
            "best_epoch": epoch + 1 if improved else state["best_epoch"],
        }
        on_epoch(state, scores_NL)


def _step_done(
    state: State, on_step: Callable[[State, int, float], None], step: int, loss: float
) -> None:
    if step % TRIM_STEPS == 0:
        heap.trim()
    on_step(state, step, loss)


def _windows_record(validated: Validated) -> dict[str, Any]:
    return {"aggregate": validated.aggregate, "aggregates": validated.aggregates}


def best_record(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the history says of the best epoch; None before the end of the first."""
    return next((item for item in state["history"] if item["epoch"] == state["best_epoch"]), None)


def is_over(state: Mapping[str, Any], settings: TrainingConfig) -> bool:
    """Whether the last epoch is done, or patience has ended."""
    if state["epoch"] >= settings.epochs:
        return True
    if settings.patience is None or state["best_epoch"] is None:
        return False
    return bool(state["epoch"] - state["best_epoch"] >= settings.patience)


def keep_score(state: Mapping[str, Any]) -> float:
    """What Ray ranks the checkpoint of an epoch by, so that it keeps the best one.

    Not the metric itself: of equal ones Ray would keep the later, and we name the earlier.
    """
    epoch = state["epoch"]
    return float(epoch if state["best_epoch"] == epoch else -epoch)


def save_checkpoint(
    fitter: Fitter, folder: Path, state: State, scores_NL: NDArray[np.float32] | None = None
) -> None:
    """Write what training resumes from; after an epoch also what its threshold is fitted on."""
    fitter.save(folder, state)
    if scores_NL is not None:
        np.save(folder / VALIDATION_SCORES, scores_NL, allow_pickle=False)


def finished_summary(output: Path, fingerprint: str) -> dict[str, Any] | None:
    """The summary of a finished model in `output`, if it is this one.

    Raises:
        ModelError: If it is another one.
    """
    info = read_info(output)
    if info is None:
        return None
    if info.training.get("fingerprint") != fingerprint:
        raise ModelError(
            f"{output}: holds a model that was trained from other data, encoder or settings: "
            "choose another output, or remove it"
        )
    return {
        "model": str(output),
        "best_epoch": info.training.get("best_epoch"),
        "threshold": info.decision.threshold,
        "metrics": info.metrics,
        "windows": info.training.get("windows"),
        "history": [],
    }


def write_trained(
    job: TrainJob,
    prepared: Prepared,
    checkpoint: Path,
    latest: Mapping[str, Any],
    output: Path,
    display: Display,
) -> dict[str, Any]:
    """Turn the checkpoint of the best epoch into a model folder.

    Args:
        job: What was trained.
        prepared: What it started from.
        checkpoint: Weights and validation scores of the epoch to keep.
        latest: Where training stood at its end: `epoch`, `best_epoch`, `history`.
        output: Model folder to write.
        display: Told about progress.

    Returns:
        `model`, `best_epoch`, `threshold`, `metrics`, `history` and `windows`: how windows are
        joined (`chosen`), and `metric` of each way that was tried (`values`); null without windows.
    """
    settings = job.training
    model = new_classifier_model(
        prepared.encoder,
        prepared.label_set,
        head_bias=None,
        seed=settings.seed,
        pooling=settings.pooling,
        vocabulary_size=prepared.vocabulary_size,
    )
    load_weights(model, checkpoint / MODEL_STATE)
    scores = np.load(checkpoint / VALIDATION_SCORES, allow_pickle=False)
    targets = prepared.validation_targets
    threshold = fit_global_threshold(targets, scores)
    decision = Decision(threshold=threshold, objective="f1_micro", hierarchy=prepared.hierarchy)
    given = decide(scores, decision.rules(prepared.label_set))
    with display.stage("measure", len(targets), "examples") as stage:
        metrics = validation_metrics(
            targets, scores, {"decision": given}, rates_L=prepared.rates_L, seed=settings.seed
        )
        stage.advance(len(targets))
    metrics["measured_on"] = {
        "examples": _paths(job.data.validation),
        "documents": len(targets),
        "per_label": False,
    }
    long = LongConfig(policy="truncate", max_tokens=prepared.tokenizer.max_tokens)
    joined: dict[str, Any] | None = None
    if settings.windows is not None:
        best = best_record(latest)
        assert best is not None
        joined = {
            "chosen": best["aggregate"],
            "metric": settings.best_metric,
            "values": best.get("aggregates", {}),  # a checkpoint of an earlier version has none
        }
        windows = settings.windows.model_copy(update={"aggregate": best["aggregate"]})
        long = LongConfig(policy="windows", max_tokens=long.max_tokens, windows=windows)
    info = ModelInfo(
        labels=list(prepared.label_set.names),
        decision=decision,
        long=long,
        metrics=metrics,
        training={
            "encoder": redact(job.encoder),
            **({"base_model": hub} if (hub := hub_id(job.encoder)) is not None else {}),
            "fingerprint": prepared.fingerprint,
            "train": _paths(job.data.train),
            "validation": _paths(job.data.validation),
            "data": prepared.about,
            **({"windows": joined} if joined is not None else {}),
            "train_rows": len(prepared.train),
            "validation_rows": len(prepared.validation),
            "settings": settings.model_dump(mode="json"),
            "workers": job.workers.model_dump(mode="json"),
            "epochs": latest["epoch"],
            "best_epoch": latest["best_epoch"],
            "versions": versions(),
        },
        label_rates=[float(rate) for rate in prepared.rates_L],
    )
    with display.stage("canaries", None, "texts") as stage:
        engine = TorchEngine(model, pad_id=prepared.tokenizer.pad_id, device="cpu", dtype="float32")
        budget = max(CPU_BATCH_TOKENS, prepared.tokenizer.max_tokens)
        tokenizer = Tokenizer.load(
            prepared.encoder,
            max_tokens=prepared.tokenizer.max_tokens,
            windows=long.windows,
            special_tokens=settings.special_tokens,
        )
        classifier = Classifier(prepared.label_set, tokenizer, engine, budget)
        canaries = record_canaries(classifier, special_tokens=settings.special_tokens)
        stage.advance(len(canaries.texts))
    write_model_folder(
        output,
        model=model,
        tokenizer=load_pretrained_tokenizer(prepared.encoder, settings.special_tokens),
        info=info,
        canaries=canaries,
        history=latest["history"],
        validation=ScoreCounts.of(scores, given),
    )
    return {
        "model": str(output),
        "best_epoch": latest["best_epoch"],
        "threshold": threshold,
        "metrics": metrics,
        "windows": joined,
        "history": latest["history"],
    }


def _paths(paths: str | list[str]) -> list[str]:
    return [redact(path) for path in ([paths] if isinstance(paths, str) else paths)]
