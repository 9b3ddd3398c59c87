"""The order of a training, whichever runtime does the work: what it starts from, what it leaves.

Examples are read, checked and tokenized once; the digest of data, encoder and settings names the
run. At the end the best epoch's checkpoint becomes a model folder: threshold, metrics, canaries.
Nothing here knows Ray.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import DataConfig, LongConfig, TrainingConfig, TrainJob, WindowsConfig
from ray_mlc.errors import DataError, ModelError
from ray_mlc.evaluation.evaluate import evaluate_scores_at
from ray_mlc.evaluation.metrics import evaluate_scores, is_better
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.labels import LabelSet
from ray_mlc.model.canaries import record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Decision, decide
from ray_mlc.model.encoder import fetch, load_config, max_positions, new_classifier_model
from ray_mlc.model.engines.choose import CPU_BATCH_TOKENS
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import ModelInfo, read_info, write_model_folder
from ray_mlc.model.hierarchy import read_hierarchy
from ray_mlc.model.tokenization import Tokenizer, load_pretrained_tokenizer
from ray_mlc.model.windows import AGGREGATES, Aggregate
from ray_mlc.runtime.progress import Display
from ray_mlc.scoring.identity import versions
from ray_mlc.training.examples import Examples, annotated_rows, read_examples
from ray_mlc.training.loop import (
    MODEL_STATE,
    Fitter,
    TokenizedExamples,
    freeze_unused,
    head_bias,
    load_weights,
    parameter_groups,
    training_dtype,
)

VALIDATION_SCORES = "validation.npy"
"""Validation scores in a checkpoint: the threshold is fitted on those of the epoch that is kept."""


@dataclass(frozen=True)
class Prepared:
    """What training starts from."""

    encoder: Path
    tokenizer: Tokenizer
    label_set: LabelSet
    train: TokenizedExamples
    validation: TokenizedExamples
    validation_targets: NDArray[np.float32]
    rates_L: NDArray[np.float64]
    """Share of the annotated training examples that have each label."""
    hierarchy: dict[str, list[str]]
    """Parents of labels."""
    fingerprint: str
    """Digest of data, encoder and settings: the name of the run."""
    vocabulary_size: int | None = None
    """Embeddings that special tokens of the job ask for; None: those of the encoder."""

    @property
    def material(self) -> Material:
        """What a worker needs of it."""
        return Material(
            encoder=str(self.encoder),
            labels=self.label_set.names,
            rates_L=self.rates_L,
            pad_id=self.tokenizer.pad_id,
            vocabulary_size=self.vocabulary_size,
            train=self.train,
            validation=self.validation,
            targets_NL=self.validation_targets,
        )

    def check(self, job: TrainJob) -> None:
        """Refuse settings that the encoder cannot do.

        Raises:
            ModelError: If it cannot be pooled, or its learning rates not be decayed, as asked.
        """
        _check_encoder(job, self.encoder, self.label_set, self.train)

    def for_settings(self, job: TrainJob) -> Prepared:
        """The same, with the fingerprint of a job that reads and tokenizes the examples alike."""
        data = (self.train, self.validation)
        fingerprint = _fingerprint(job, self.encoder, self.label_set, data, self.hierarchy)
        return replace(self, fingerprint=fingerprint)


@dataclass(frozen=True)
class Material:
    """What a worker trains from; in the hands of Ray, arrays may be references to them."""

    encoder: str
    labels: Sequence[str]
    rates_L: NDArray[np.float64]
    pad_id: int
    vocabulary_size: int | None
    train: Any
    """`TokenizedExamples`."""
    validation: Any
    """`TokenizedExamples`."""
    targets_NL: Any
    """Targets of the validation examples, as floats."""


@dataclass(frozen=True)
class Splits:
    """The examples of a job, read and checked."""

    train: Examples
    validation: Examples
    label_set: LabelSet
    counts_L: NDArray[np.int64]
    """Training examples that have each label."""
    hierarchy: dict[str, list[str]]


def prepare(job: TrainJob, display: Display) -> Prepared:
    """Read and tokenize the examples; find the encoder."""
    return tokenize(job, read_splits(job.data, display), display)


def read_splits(data: DataConfig, display: Display) -> Splits:
    """Read the examples of a job."""
    with display.stage("read", None, "examples") as stage:
        train_set = read_examples(data.train, text=data.text, labels=data.labels)
        stage.advance(len(train_set))
        validation_set = read_examples(
            data.validation, text=data.text, labels=data.labels, label_set=train_set.label_set
        )
        stage.advance(len(validation_set))
    # labels that only validation has: the model gets a column for them, and misses them
    label_set = validation_set.label_set
    hierarchy = read_hierarchy(Path(data.hierarchy), label_set) if data.hierarchy else {}
    train_set = annotated_rows(train_set, "data.train")
    validation_set = annotated_rows(validation_set, "data.validation")
    counts = np.zeros(len(label_set), np.int64)
    counts[: len(train_set.label_set)] = train_set.label_counts()
    held_out = validation_set.label_counts()
    if held_out.any() and not held_out[counts > 0].any():
        raise DataError(
            f"data.validation: none of its labels, such as {label_set.names[held_out.argmax()]!r}, "
            f"is in a training row; labels there are such as {label_set.names[counts.argmax()]!r}"
        )
    if never := [name for name, count in zip(label_set.names, counts, strict=True) if not count]:
        display.say(f"note: {len(never)} label(s) are in no training row, such as {never[0]!r}")
    return Splits(train_set, validation_set, label_set, counts, hierarchy)


def tokenize(job: TrainJob, splits: Splits, display: Display) -> Prepared:
    """Find the encoder, and tokenize the examples for it."""
    train_set, validation_set, label_set = splits.train, splits.validation, splits.label_set
    encoder = fetch(job.encoder)
    special_tokens, windows = job.training.special_tokens, job.training.windows
    tokenizer = Tokenizer.load(
        encoder,
        max_tokens=_token_limit(job, encoder),
        windows=windows,
        special_tokens=special_tokens,
    )
    with display.stage("tokenize", len(train_set) + len(validation_set), "examples") as stage:
        tokenized = []
        for examples in (train_set, validation_set):
            tokenized.append(_tokenize(examples, tokenizer, len(label_set)))
            stage.advance(len(examples))
    long = float(np.mean(~tokenizer.covered(tokenized[0].ids.n_tokens)))
    if long > 0.01:
        of, keys = "", "training.max_tokens, or training.windows to read them whole"
        if windows is not None:
            of, keys = f"{windows.max_windows} windows of ", "training.windows.max_windows"
        display.say(
            f"note: {long:.1%} of the training texts are longer than {of}{tokenizer.max_tokens} "
            f"tokens and are cut ({keys})"
        )
    annotated = len(train_set) - _unannotated_counts(tokenized[0])
    rates_L = splits.counts_L / np.maximum(annotated, 1)
    _check_encoder(job, encoder, label_set, tokenized[0])
    fingerprint = _fingerprint(job, encoder, label_set, tokenized, splits.hierarchy)
    targets = _targets(validation_set, label_set)
    return Prepared(
        encoder=encoder,
        tokenizer=tokenizer,
        label_set=label_set,
        train=tokenized[0],
        validation=tokenized[1],
        validation_targets=targets,
        rates_L=rates_L,
        hierarchy=splits.hierarchy,
        fingerprint=fingerprint,
        vocabulary_size=tokenizer.vocabulary_size if special_tokens else None,
    )


def _check_encoder(
    job: TrainJob, encoder: Path, label_set: LabelSet, train: TokenizedExamples
) -> None:
    """Refuse what an encoder cannot do before Ray is started: each worker would, again and again.

    Raises:
        ModelError: If it cannot be pooled, or its learning rates not be decayed, as asked.
    """
    settings = job.training
    if settings.pooling == "auto" and settings.layer_decay == 1:
        return
    model = new_classifier_model(
        encoder, label_set, head_bias=None, seed=settings.seed, pooling=settings.pooling
    )
    parameter_groups(model, settings)
    first_tokens = train.ids.values[train.ids.offsets[:-1]]
    if settings.pooling == "cls" and len(np.unique(first_tokens)) > 1:
        raise ModelError(
            f"{job.encoder}: training.pooling is cls, but its tokenizer puts no token before the "
            "text that could stand for the whole: set training.pooling=auto, or mean"
        )


def _token_limit(job: TrainJob, encoder: Path) -> int:
    """The job's `max_tokens`, or what the encoder allows if that is less."""
    config = load_config(encoder)
    tokenizer_limit = int(load_pretrained_tokenizer(encoder).model_max_length)
    limits = [job.training.max_tokens, tokenizer_limit, max_positions(config) or tokenizer_limit]
    return min(limits)


def _tokenize(examples: Examples, tokenizer: Tokenizer, label_count: int) -> TokenizedExamples:
    ids = tokenizer.encode(examples.texts.to_pylist())
    positive = examples.positives
    if examples.unannotated is None:
        open_offsets = np.zeros(len(examples) + 1, np.int64)
        open_columns = np.zeros(0, np.int32)
    else:
        open_offsets = examples.unannotated.offsets.to_numpy().astype(np.int64)
        open_columns = examples.unannotated.values.to_numpy().astype(np.int32)
    return TokenizedExamples(
        ids=ids,
        positive_offsets=positive.offsets.to_numpy().astype(np.int64),
        positive_columns=positive.values.to_numpy().astype(np.int32),
        unannotated_offsets=open_offsets,
        unannotated_columns=open_columns,
        label_count=label_count,
    )


def _unannotated_counts(examples: TokenizedExamples) -> NDArray[np.int64]:
    return np.bincount(examples.unannotated_columns, minlength=examples.label_count)


def _targets(examples: Examples, label_set: LabelSet) -> NDArray[np.float32]:
    """Dense targets with a column for each label of `label_set`, whose first ones are ours."""
    own = examples.targets_NL()
    missing = len(label_set) - own.shape[1]
    return np.pad(own, ((0, 0), (0, missing))) if missing else own


def _fingerprint(
    job: TrainJob,
    encoder: Path,
    label_set: LabelSet,
    data: Sequence[TokenizedExamples],
    hierarchy: Mapping[str, Sequence[str]],
) -> str:
    digest = hashlib.sha256()
    settings = job.training.model_dump(mode="json")
    named = [settings, label_set.names, *([hierarchy] if hierarchy else [])]
    digest.update(json.dumps(named, sort_keys=True).encode())
    for file in sorted(
        [*encoder.glob("*.safetensors"), *encoder.glob("*.bin"), *encoder.glob("*.json")]
    ):
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    for examples in data:
        for array in (
            examples.ids.values,
            examples.ids.offsets,
            examples.ids.firsts,
            examples.positive_offsets,
            examples.positive_columns,
            examples.unannotated_offsets,
            examples.unannotated_columns,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
    for how, scores_NL in fitter.predict(validation, hows).items():
        threshold = fit_global_threshold(targets_NL, scores_NL)
        metrics = evaluate_scores_at(targets_NL, scores_NL, np.float32(threshold))
        if found is None or is_better(name, metrics[name], found.metrics[name]):
            # a copy: a slice would keep the scores of all ways alive
            found = Validated(how, scores_NL.copy(), threshold, metrics)
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
    model = new_classifier_model(
        Path(material.encoder),
        LabelSet(tuple(material.labels)),
        head_bias=head_bias(settings.head_bias, material.rates_L, len(material.train)),
        seed=settings.seed,
        pooling=settings.pooling,
        vocabulary_size=material.vocabulary_size,
    )
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
    )


State = dict[str, Any]
"""Where a training stands: `epoch` and `step` to go on with, `history`, `best_epoch`."""


def first_state() -> State:
    """Where a training stands before its first step."""
    return {"epoch": 0, "step": 0, "history": [], "best_epoch": None}


def run_epochs(
    fitter: Fitter,
    state: State,
    material: Material,
    *,
    on_step: Callable[[State, int, float], None],
    on_epoch: Callable[[State, NDArray[np.float32]], None],
) -> None:
    """Train from `state` to the last epoch, or until patience ends.

    Args:
        fitter: This rank's.
        state: Where training stands; not changed.
        material: The arrays themselves, no references.
        on_step: Called after each step with the state at the beginning of the epoch, the number
            of the step in it and its loss.
        on_epoch: Called after each epoch with the new state and the validation scores.
    """
    settings = fitter.config
    name = settings.best_metric
    while not is_over(state, settings):
        started = time.monotonic()
        epoch = state["epoch"]
        loss = fitter.run_epoch(epoch, first_step=state["step"], on_step=partial(on_step, state))
        validated = validate(fitter, material.validation, material.targets_NL, settings)
        scores_NL, metrics = validated.scores_NL, validated.metrics
        record = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "threshold": validated.threshold,
            **({"aggregate": validated.aggregate} if settings.windows else {}),
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
        `model`, `best_epoch`, `threshold`, `metrics`, `history`.
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
    metrics = {
        "at_half": evaluate_scores_at(targets, scores, np.float32(0.5)),
        "decision": evaluate_scores(targets, scores, given),
    }
    long = LongConfig(policy="truncate", max_tokens=prepared.tokenizer.max_tokens)
    if settings.windows is not None:
        best = next(item for item in latest["history"] if item["epoch"] == latest["best_epoch"])
        windows = settings.windows.model_copy(update={"aggregate": best["aggregate"]})
        long = LongConfig(policy="windows", max_tokens=long.max_tokens, windows=windows)
    info = ModelInfo(
        labels=list(prepared.label_set.names),
        decision=decision,
        long=long,
        metrics=metrics,
        training={
            "encoder": job.encoder,
            "fingerprint": prepared.fingerprint,
            "train": job.data.train,
            "validation": job.data.validation,
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
    )
    return {
        "model": str(output),
        "best_epoch": latest["best_epoch"],
        "threshold": threshold,
        "metrics": metrics,
        "history": latest["history"],
    }
