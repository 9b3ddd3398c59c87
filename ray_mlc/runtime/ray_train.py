"""The training way on Ray Train: examples → tokens → workers → best epoch → model folder.

The driver tokenizes once and shares the numbers through Ray's object store; every worker sees all
of them and takes its share of each step by the global plan of `training.loop`. Checkpoints hold
weights, optimizer and validation scores; the threshold is fitted on those scores, by the driver,
with the epoch that is kept.

A run is named by the digest of its data, encoder and settings, so that the same command resumes
it and another one does not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
from numpy.typing import NDArray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer

from ray_mlc.config import Range, TrainJob, WorkersConfig
from ray_mlc.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    ModelError,
    RayMlcError,
    ResourceError,
)
from ray_mlc.evaluation.evaluate import evaluate_scores_at
from ray_mlc.evaluation.metrics import METRIC_NAMES, is_better
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.labels import LabelSet
from ray_mlc.model.canaries import record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Decision
from ray_mlc.model.encoder import fetch, load_config, max_positions, new_classifier_model
from ray_mlc.model.engines.choose import CPU_BATCH_TOKENS
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import ModelInfo, read_info, write_model_folder
from ray_mlc.model.tokenization import Tokenizer, load_pretrained_tokenizer
from ray_mlc.runtime.progress import Display, StageHandle
from ray_mlc.runtime.ray_private import check_version
from ray_mlc.runtime.session import (
    NodeResources,
    cluster_nodes,
    free_resources,
    places,
    ray_session,
)
from ray_mlc.scoring.ledger import versions
from ray_mlc.storage import join, local_path, scheme_of
from ray_mlc.training.examples import Examples, read_examples
from ray_mlc.training.loop import (
    MODEL_STATE,
    Fitter,
    TokenizedExamples,
    freeze_unused,
    head_bias,
    load_weights,
    read_progress,
    training_dtype,
)

VALIDATION_SCORES = "validation.npy"
WITHIN_EPOCH = -1e9
"""Score of a checkpoint within an epoch: never the best one."""
WRAPPED = ("cause", "controller_failure", "_base_exc")
"""Attributes under which Ray Train keeps the error that it wraps."""
REPORT_EVERY_S = 0.5
"""Seconds between two progress reports of a worker."""


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
    fingerprint: str
    """Digest of data, encoder and settings: the name of the run."""


def train(job: TrainJob, display: Display) -> dict[str, Any]:
    """Fine-tune an encoder, on the Ray that is connected or else on one started for it.

    Args:
        job: What to learn from, and how.
        display: Told about progress.

    Returns:
        `model`, `best_epoch`, `history`, `threshold` and the validation `metrics`.

    Raises:
        ConfigError: If the job contradicts itself.
        DataError: If the examples cannot be used.
        ModelError: If the encoder cannot, or the output holds another model.
        ResourceError: If the cluster is too small.
        RayMlcError: If a worker fails more often than `workers.max_failures`.
    """
    check_version()
    if job.training.best_metric not in METRIC_NAMES:
        raise ConfigError(
            f"training.best_metric is {job.training.best_metric!r}, expected one of "
            f"{', '.join(METRIC_NAMES)}"
        )
    output = local_path(job.output)
    if output is None:
        raise ConfigError(f"output {job.output}: train writes to a local or mounted folder")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {job.output}: is a file, expected a folder to write")
    prepared = prepare(job, display)
    finished = _finished(output, prepared.fingerprint)
    if finished is not None:
        display.say(f"{job.output} is trained already: same data, encoder and settings")
        return finished
    # not earlier: a typo should not cost a start of Ray
    with ray_session(job.ray.address):
        scaling = plan_workers(job.workers, cluster_nodes(), free_resources())
        result = _fit(job, prepared, scaling, output, display)
        summary = _finish(job, prepared, result, output, display)
    if job.checkpoints.path is None:
        shutil.rmtree(output / "_checkpoints", ignore_errors=True)
    return summary


def prepare(job: TrainJob, display: Display) -> Prepared:
    """Read and tokenize the examples; find the encoder."""
    data = job.data
    with display.stage("read", None, "examples") as stage:
        train_set = read_examples(data.train, text=data.text, labels=data.labels)
        stage.advance(len(train_set))
        validation_set = read_examples(
            data.validation, text=data.text, labels=data.labels, label_set=train_set.label_set
        )
        stage.advance(len(validation_set))
    # labels that only validation has: the model gets a column for them, and misses them
    label_set = validation_set.label_set
    train_set, validation_set = (
        _annotated(train_set, "train"),
        _annotated(validation_set, "validation"),
    )
    counts = np.zeros(len(label_set), np.int64)
    counts[: len(train_set.label_set)] = train_set.label_counts()
    if never := [name for name, count in zip(label_set.names, counts, strict=True) if not count]:
        display.say(f"note: {len(never)} label(s) are in no training row, such as {never[0]!r}")
    encoder = fetch(job.encoder)
    tokenizer = Tokenizer.load(encoder, max_tokens=_token_limit(job, encoder))
    with display.stage("tokenize", len(train_set) + len(validation_set), "examples") as stage:
        tokenized = []
        for examples in (train_set, validation_set):
            tokenized.append(_tokenize(examples, tokenizer, len(label_set)))
            stage.advance(len(examples))
    long = float(np.mean(tokenized[0].ids.n_tokens > tokenizer.max_tokens))
    if long > 0.01:
        display.say(
            f"note: {long:.1%} of the training texts are longer than {tokenizer.max_tokens} tokens "
            "and are cut (training.max_tokens)"
        )
    annotated = len(train_set) - _unannotated_counts(tokenized[0])
    rates_L = counts / np.maximum(annotated, 1)
    fingerprint = _fingerprint(job, encoder, label_set, tokenized)
    targets = _targets(validation_set, label_set)
    return Prepared(
        encoder, tokenizer, label_set, tokenized[0], tokenized[1], targets, rates_L, fingerprint
    )


def _annotated(examples: Examples, name: str) -> Examples:
    rows = np.flatnonzero(examples.annotated)
    if not len(rows):
        raise DataError(f"data.{name}: no row is annotated: every label is null")
    return examples if len(rows) == len(examples) else examples.take(rows)


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
    job: TrainJob, encoder: Path, label_set: LabelSet, data: Sequence[TokenizedExamples]
) -> str:
    digest = hashlib.sha256()
    settings = job.training.model_dump(mode="json")
    digest.update(json.dumps([settings, label_set.names], sort_keys=True).encode())
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
            examples.positive_offsets,
            examples.positive_columns,
            examples.unannotated_offsets,
            examples.unannotated_columns,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _finished(output: Path, fingerprint: str) -> dict[str, Any] | None:
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


@dataclass(frozen=True)
class WorkerPlan:
    """The worker group, resolved."""

    count: int | tuple[int, int]
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """CPU threads of each worker."""
        return max(1, int(self.cpus))


def plan_workers(
    config: WorkersConfig, nodes: Sequence[NodeResources], free: NodeResources
) -> WorkerPlan:
    """Size the worker group.

    Raises:
        ResourceError: If it does not fit into what is free: Ray would wait for ever.
    """
    all_gpus = sum(node.gpus for node in nodes)
    gpus = (1.0 if all_gpus else 0.0) if config.gpus == "auto" else config.gpus
    low = config.count.min if isinstance(config.count, Range) else config.count
    low = max(1, low)
    if config.cpus == "auto":
        most = max(1, int(free.cpus // low))
        cpus = next((float(n) for n in range(most, 1, -1) if places(nodes, n, gpus) >= low), 1.0)
    else:
        cpus = config.cpus
    scarce = low * cpus > free.cpus + 1e-6 or low * gpus > free.gpus + 1e-6
    if scarce or low > places(nodes, cpus, gpus):
        asked = f"{low} worker(s) of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        has = f"{free.cpus:g} CPUs" + (f" and {free.gpus:g} GPUs" if gpus else "")
        raise ResourceError(
            f"{asked} are more than the {has} that are free on {len(nodes)} node(s): "
            "lower workers.count or workers.cpus"
        )
    count = (low, config.count.max) if isinstance(config.count, Range) else low
    return WorkerPlan(count, cpus, gpus)


def _fit(
    job: TrainJob, prepared: Prepared, workers: WorkerPlan, output: Path, display: Display
) -> Result:
    storage = job.checkpoints.path or join(str(output), "_checkpoints")
    if scheme_of(storage) == "file":
        storage = str(local_path(storage))
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    loop_config = {
        "job": job,
        "encoder": str(prepared.encoder),
        "labels": prepared.label_set.names,
        "rates_L": prepared.rates_L,
        "pad_id": prepared.tokenizer.pad_id,
        "threads": workers.threads,
        "train": ray.put(prepared.train),
        "validation": ray.put(prepared.validation),
        "targets": ray.put(prepared.validation_targets),
        "monitor": monitor,
    }
    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    trainer = TorchTrainer(
        _worker,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=prepared.fingerprint[:16],
            storage_path=storage,
            failure_config=FailureConfig(max_failures=job.workers.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=max(2, job.checkpoints.keep),
                checkpoint_score_attribute="score",
            ),
        ),
    )
    total = len(prepared.train) * job.training.epochs
    count = workers.count if isinstance(workers.count, int) else workers.count[0]
    display.say(
        f"{len(prepared.train):,} training and {len(prepared.validation):,} validation examples, "
        f"{len(prepared.label_set)} labels; {count} worker(s) on "
        f"{'GPU' if workers.gpus else f'{workers.threads} CPU thread(s)'} each"
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with display.stage("train", total, "examples") as stage, _watching(monitor, stage, display):
            return trainer.fit()
    except (KeyboardInterrupt, SystemExit):  # Ray Train's own handler of Ctrl-C exits
        raise InterruptedRunError(
            "interrupted; the last checkpoint stays, run the same command to continue"
        ) from None
    except Exception as error:
        raise _training_error(error) from error
    finally:
        signal.signal(signal.SIGINT, on_interrupt)


def _training_error(error: BaseException) -> RayMlcError:
    """An error of ours inside what Ray Train raised, or the innermost cause in one line."""
    seen, innermost = error, error
    while seen is not None:
        if isinstance(seen, RayMlcError):
            return type(seen)(str(seen))
        failures = getattr(seen, "worker_failures", None)
        wrapped = [getattr(seen, name, None) for name in WRAPPED]
        if isinstance(failures, Mapping):
            wrapped += list(failures.values())
        innermost = seen
        inner = next((item for item in wrapped if isinstance(item, BaseException)), None)
        seen = inner or seen.__cause__  # type: ignore[assignment]
    lines = [line for line in str(innermost).strip().splitlines() if line.strip()]
    shown = lines[-1].strip() if lines else type(innermost).__name__
    return RayMlcError(
        f"training failed: {shown}: run the same command to continue from the last checkpoint"
    )


class Monitor:
    """An actor that workers tell where they stand; the driver asks it."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._examples = 0
        self._detail = ""
        self._epochs: list[dict[str, Any]] = []

    def step(self, examples: int, detail: str) -> None:
        """Examples seen since the start of training, and a few words."""
        self._examples, self._detail = examples, detail

    def epoch(self, record: dict[str, Any]) -> None:
        """The record of a finished epoch."""
        self._epochs.append(record)

    def state(self) -> tuple[int, str, list[dict[str, Any]]]:
        """All that is known."""
        return self._examples, self._detail, self._epochs


@contextmanager
def _watching(monitor: Any, stage: StageHandle, display: Display) -> Iterator[None]:
    """Show what the monitor knows while the block runs."""
    done = threading.Event()

    def watch() -> None:
        shown = epochs = 0
        last = False
        while not last:
            last = done.wait(1.0)
            try:
                examples, detail, records = ray.get(monitor.state.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue
            stage.advance(examples - shown, detail)
            shown = examples
            for record in records[epochs:]:
                display.say(describe_epoch(record))
            epochs = len(records)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def describe_epoch(record: Mapping[str, Any]) -> str:
    """An epoch in one line."""
    decided = record["decision"]
    return (
        f"epoch {record['epoch']}: train loss {record['train_loss']:.4f}, validation loss "
        f"{decided['loss']:.4f}, f1 micro {decided['f1_micro']:.4f} macro "
        f"{decided['f1_macro']:.4f} at {record['threshold']:.3f}, {record['seconds']:.0f} s"
    )


def _worker(config: dict[str, Any]) -> None:
    """One rank of the worker group."""
    import torch

    job: TrainJob = config["job"]
    settings = job.training
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    train_set, validation, targets = ray.get(
        [config["train"], config["validation"], config["targets"]]
    )
    label_set = LabelSet(tuple(config["labels"]))
    model = new_classifier_model(
        Path(config["encoder"]),
        label_set,
        head_bias=head_bias(settings.head_bias, config["rates_L"], len(train_set)),
        seed=settings.seed,
    )
    freeze_unused(model)
    device = ray.train.torch.get_device()
    wrapped = ray.train.torch.prepare_model(model)
    fitter = Fitter(
        model=model,
        wrapped=wrapped,
        train=train_set,
        config=settings,
        pad_id=config["pad_id"],
        device=device,
        amp_dtype=training_dtype(settings.dtype, device),
        rank=rank,
        world_size=world_size,
    )
    state: dict[str, Any] = {"epoch": 0, "step": 0, "history": [], "best_epoch": None}
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = fitter.load(Path(folder))
    _epochs(fitter, state, validation, targets, config, rank)


def _epochs(
    fitter: Fitter,
    state: dict[str, Any],
    validation: TokenizedExamples,
    targets: NDArray[np.float32],
    config: dict[str, Any],
    rank: int,
) -> None:
    """Train from `state` to the last epoch, or until patience ends."""
    job: TrainJob = config["job"]
    settings = job.training
    for epoch in range(state["epoch"], settings.epochs):
        if _out_of_patience(state, settings.patience):
            return
        started = time.monotonic()

        def save_within(step: int, epoch: int = epoch, state: Mapping[str, Any] = state) -> None:
            every = job.checkpoints.every_steps
            if every and (step + 1) % every == 0 and step + 1 < fitter.steps_per_epoch:
                partial = {**state, "epoch": epoch, "step": step + 1}
                _report(fitter, partial, {"score": WITHIN_EPOCH}, rank)

        on_step = _step_reporter(fitter, config["monitor"], epoch, rank, save_within)
        loss = fitter.run_epoch(epoch, first_step=state["step"], on_step=on_step)
        scores = fitter.predict(validation)
        threshold = fit_global_threshold(targets, scores)
        metrics = evaluate_scores_at(targets, scores, np.float32(threshold))
        record = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "threshold": threshold,
            "learning_rate": fitter.optimizer.param_groups[0]["lr"],
            "seconds": round(time.monotonic() - started, 3),
            "at_half": evaluate_scores_at(targets, scores, np.float32(0.5)),
            "decision": metrics,
        }
        best = next(
            (item for item in state["history"] if item["epoch"] == state["best_epoch"]), None
        )
        name = settings.best_metric
        improved = best is None or is_better(name, metrics[name], best["decision"][name])
        state = {
            "epoch": epoch + 1,
            "step": 0,
            "history": [*state["history"], record],
            "best_epoch": epoch + 1 if improved else state["best_epoch"],
        }
        if rank == 0:
            config["monitor"].epoch.remote(record)
        # not the metric itself: of equal ones Ray would keep the later, and we name the earlier
        score = float(epoch + 1 if improved else -epoch - 1)
        _report(fitter, state, {"score": score}, rank, scores=scores)


def _out_of_patience(state: Mapping[str, Any], patience: int | None) -> bool:
    if patience is None or state["best_epoch"] is None:
        return False
    return bool(state["epoch"] - state["best_epoch"] >= patience)


def _step_reporter(
    fitter: Fitter, monitor: Any, epoch: int, rank: int, then: Callable[[int], None]
) -> Callable[[int, float], None]:
    last = 0.0

    def on_step(step: int, loss: float) -> None:
        nonlocal last
        final = step + 1 == fitter.steps_per_epoch
        if rank == 0 and (final or time.monotonic() - last >= REPORT_EVERY_S):
            last = time.monotonic()
            within = min((step + 1) * fitter.config.batch_size, len(fitter.train))
            seen = epoch * len(fitter.train) + within
            monitor.step.remote(seen, f"epoch {epoch + 1} loss {loss:.4f}")
        then(step)

    return on_step


def _report(
    fitter: Fitter,
    state: dict[str, Any],
    metrics: dict[str, Any],
    rank: int,
    *,
    scores: NDArray[np.float32] | None = None,
) -> None:
    """Report to Ray Train on every rank; rank 0 brings the checkpoint."""
    metrics = {**metrics, "epoch": state["epoch"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        fitter.save(Path(folder), state)
        if scores is not None:
            np.save(Path(folder) / VALIDATION_SCORES, scores, allow_pickle=False)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _finish(
    job: TrainJob, prepared: Prepared, result: Result, output: Path, display: Display
) -> dict[str, Any]:
    """Turn the best checkpoint into a model folder."""
    checkpoints = [item for item, _ in result.best_checkpoints or []]
    if result.checkpoint is not None:
        checkpoints.append(result.checkpoint)
    if not checkpoints:
        raise RayMlcError("training ended without a checkpoint")
    states = []
    for checkpoint in checkpoints:
        with checkpoint.as_directory() as folder:
            states.append(read_progress(Path(folder)))
    latest = max(states, key=lambda state: (state["epoch"], state["step"]))
    kept = next(
        checkpoint
        for checkpoint, state in zip(checkpoints, states, strict=True)
        if state["epoch"] == latest["best_epoch"] and state["step"] == 0
    )
    settings = job.training
    model = new_classifier_model(
        prepared.encoder, prepared.label_set, head_bias=None, seed=settings.seed
    )
    with kept.as_directory() as folder:
        load_weights(model, Path(folder) / MODEL_STATE)
        scores = np.load(Path(folder) / VALIDATION_SCORES, allow_pickle=False)
    targets = prepared.validation_targets
    threshold = fit_global_threshold(targets, scores)
    decision = Decision(threshold=threshold, objective="f1_micro")
    metrics = {
        "at_half": evaluate_scores_at(targets, scores, np.float32(0.5)),
        "decision": evaluate_scores_at(targets, scores, np.float32(threshold)),
    }
    info = ModelInfo(
        labels=list(prepared.label_set.names),
        decision=decision,
        long={"policy": "truncate", "max_tokens": prepared.tokenizer.max_tokens},  # type: ignore[arg-type]
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
        classifier = Classifier(prepared.label_set, prepared.tokenizer, engine, budget)
        canaries = record_canaries(classifier)
        stage.advance(len(canaries.texts))
    write_model_folder(
        output,
        model=model,
        tokenizer=load_pretrained_tokenizer(prepared.encoder),
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
