"""The training way on Ray Train: examples → tokens → workers → best epoch → model folder.

The driver tokenizes once and shares the numbers through Ray's object store; every worker sees all
of them and takes its share of each step by the global plan of `training.epoch`. Checkpoints hold
weights, optimizer and validation scores; the threshold is fitted on those scores, by the driver,
with the epoch that is kept.

A run is named by the digest of its data, encoder and settings, so that the same command resumes
it and another one does not.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    InterruptedRunError,
    RayMlcError,
    ResourceError,
)
from ray_mlc.evaluation.metrics import METRIC_NAMES
from ray_mlc.runtime.growth import Need, plan_or_grow
from ray_mlc.runtime.interfaces import NodeAddressConfig
from ray_mlc.runtime.interrupt import completing
from ray_mlc.runtime.nodes import beside_driver, refuse_unshared, telling_changes
from ray_mlc.runtime.prepare import Material, Prepared, about_head, prepare
from ray_mlc.runtime.progress import Display, Shown, Stage, StageHandle
from ray_mlc.runtime.ray_private import check_version
from ray_mlc.runtime.session import (
    NodeResources,
    cluster_nodes,
    free_resources,
    places,
    ray_session,
)
from ray_mlc.runtime.tracking import StepPoint, Tracking, check_tracking, tracking
from ray_mlc.runtime.train import (
    State,
    finished_summary,
    first_state,
    keep_score,
    new_fitter,
    run_epochs,
    save_checkpoint,
    write_trained,
)
from ray_mlc.storage import join, local_path, scheme_of
from ray_mlc.training.loop import Fitter, read_progress

WITHIN_EPOCH = -1e9
"""Score of a checkpoint within an epoch: never the best one."""
WRAPPED = ("cause", "controller_failure", "_base_exc")
"""Attributes under which Ray Train keeps the error that it wraps."""
REPORT_EVERY_S = 0.5
"""Seconds between two progress reports of a worker."""


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
    output = check_job(job)
    prepared = prepare(job, display)
    finished = finished_summary(output, prepared.fingerprint)
    if finished is not None:
        display.say(f"{job.output} is trained already: same data, encoder and settings")
        return finished
    if (note := about_head(job, prepared)) is not None:
        display.say(note)
    # not earlier: a typo should not cost a start of Ray
    with completing(display.say) as results, ray_session(job.ray.address):
        checkpoints = job.checkpoints.path or str(output)
        scaling = plan_or_grow(
            lambda: plan_workers(job.workers, cluster_nodes(), free_resources()),
            workers_needed(job.workers),
            wait_s=job.ray.node_wait,
            say=display.say,
            settle_s=0,
        )
        refuse_unshared({"encoder": job.encoder}, {"output": checkpoints})
        result = _fit(job, prepared, scaling, output, display)
        results.append(_finish(job, prepared, result, output, display))
    if job.checkpoints.path is None:
        shutil.rmtree(output / "_checkpoints", ignore_errors=True)
    return results[0]


def check_job(job: TrainJob) -> Path:
    """Refuse what costs nothing to see; the folder to write.

    Raises:
        ConfigError: If the job contradicts itself.
        ResourceError: If Ray is a version that this was not written for.
    """
    check_version()
    if job.training.best_metric not in METRIC_NAMES:
        raise ConfigError(
            f"training.best_metric is {job.training.best_metric!r}, expected one of "
            f"{', '.join(METRIC_NAMES)}"
        )
    check_tracking(job.tracking)
    output = local_path(job.output)
    if output is None:
        raise ConfigError(f"output {job.output}: a model is written to a local or mounted folder")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {job.output}: is a file, expected a folder to write")
    return output


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
    config: WorkersConfig,
    nodes: Sequence[NodeResources],
    free: NodeResources,
    *,
    remedy: str = "lower workers.count or workers.cpus",
) -> WorkerPlan:
    """Size the worker group.

    Args:
        config: What is asked for.
        nodes: What the cluster has.
        free: What of it is not taken.
        remedy: What to do where that is less.

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
            f"{asked} are more than the {has} that are free on {len(nodes)} node(s): {remedy}"
        )
    count = (low, config.count.max) if isinstance(config.count, Range) else low
    return WorkerPlan(count, cpus, gpus)


def workers_needed(config: WorkersConfig) -> list[Need]:
    """What a training cannot begin without; `auto` knows no GPUs but those that are there."""
    cpus = 1.0 if config.cpus == "auto" else config.cpus
    gpus = 0.0 if config.gpus == "auto" else config.gpus
    low = config.count.min if isinstance(config.count, Range) else config.count
    return [Need(cpus, gpus)] * max(1, low)


def _fit(
    job: TrainJob, prepared: Prepared, workers: WorkerPlan, output: Path, display: Display
) -> Result:
    storage = job.checkpoints.path or join(str(output), "_checkpoints")
    if scheme_of(storage) == "file":
        storage = str(local_path(storage))
    monitor = beside_driver(Monitor)
    loop_config = {
        "job": job,
        "material": shared(prepared.material),
        "threads": workers.threads,
        "monitor": monitor,
    }
    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    trainer = TorchTrainer(
        _worker,
        train_loop_config=loop_config,
        torch_config=NodeAddressConfig(),
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
    most = "" if isinstance(workers.count, int) else f" to {workers.count[1]}"
    display.say(
        f"{len(prepared.train):,} training and {len(prepared.validation):,} validation examples, "
        f"{len(prepared.label_set)} labels; {count}{most} worker(s) on "
        f"{'GPU' if workers.gpus else f'{workers.threads} CPU thread(s)'} each"
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with (
            tracking(job, prepared.fingerprint, output, display.say) as curves,
            display.stage("train", total, "examples") as stage,
            telling_changes(display.say),
            _watching(monitor, stage, display, curves, _Size.of(prepared, job, workers=count)),
        ):
            stage.doing("starting the workers")
            return trainer.fit()
    except (KeyboardInterrupt, SystemExit):  # Ray Train's own handler of Ctrl-C exits
        raise InterruptedRunError(
            "interrupted; the last checkpoint stays, run the same command to continue"
        ) from None
    except Exception as error:
        raise training_error(error) from error
    finally:
        signal.signal(signal.SIGINT, on_interrupt)


def shared(material: Material) -> Material:
    """The same with its arrays in Ray's object store, and references to them in their place."""
    return replace(
        material,
        train=ray.put(material.train),
        validation=ray.put(material.validation),
        targets_NL=ray.put(material.targets_NL),
    )


def fetched(material: Material) -> Material:
    """What `shared` put away, with the arrays themselves again."""
    train_set, validation, targets_NL = ray.get(
        [material.train, material.validation, material.targets_NL]
    )
    return replace(material, train=train_set, validation=validation, targets_NL=targets_NL)


def training_error(error: BaseException) -> RayMlcError:
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
        self._starts: list[tuple[int, str]] = []
        self._examples = 0
        self._detail = ""
        self._doing = ""
        self._epochs: list[tuple[dict[str, Any], int]] = []
        self._points: list[StepPoint] = []
        self._before = 0
        """Points that the driver has, and that are not kept."""

    def begun(self, workers: int, state: State) -> None:
        """Workers have begun, or begun again, at `state`."""
        said = describe_start(workers, state, again=bool(self._starts))
        self._starts.append((workers, said))

    def steps(
        self, examples: int, detail: str, points: Sequence[StepPoint], doing: str = ""
    ) -> None:
        """Examples seen since the start of training, a few words, and the steps since the last.

        `doing` says what follows, if that is no step.
        """
        self._examples, self._detail, self._doing = examples, detail, doing
        self._points += points

    def epoch(self, record: dict[str, Any], step: int) -> None:
        """The record of a finished epoch, and the optimizer steps done by its end."""
        self._epochs.append((record, step))

    def state(
        self, points: int = 0
    ) -> tuple[
        int, str, list[tuple[dict[str, Any], int]], list[StepPoint], str, list[tuple[int, str]]
    ]:
        """All that is known, and the steps beyond the first `points` that were told."""
        self._points = self._points[points - self._before :]
        self._before = points
        known = self._examples, self._detail, self._epochs, self._points, self._doing
        return *known, self._starts


@dataclass(frozen=True)
class _Size:
    """What the figures of a training are of."""

    workers: int
    epochs: int
    tokens_per_example: float

    @classmethod
    def of(cls, prepared: Prepared, job: TrainJob, *, workers: int) -> _Size:
        tokens = len(prepared.train.ids.values)
        return cls(workers, job.training.epochs, tokens / max(1, len(prepared.train)))


def _standing(stage: Stage, size: _Size, epochs_done: int, last: StepPoint | None) -> Shown:
    """How a training stands beside its count."""
    facts: dict[str, Any] = {
        "epoch": min(epochs_done + 1, size.epochs),
        "epochs": size.epochs,
        "workers": size.workers,
        "tokens_per_s": None,
        "step": None,
        "loss": None,
        "learning_rate": None,
    }
    said = [f"{size.workers} worker(s)"]
    if (speed := stage.mean_per_second) is not None:
        facts["tokens_per_s"] = round(speed * size.tokens_per_example, 1)
        said.insert(0, f"{facts['tokens_per_s']:,.0f} tokens/s")
    if last is not None:
        facts |= {"step": last.step, "loss": last.loss, "learning_rate": last.learning_rate}
        said.append(f"step {last.step:,}, learning rate {last.learning_rate:.2g}")
    return Shown([" · ".join(said)], facts, seconds_left=stage.mean_seconds_left)


@contextmanager
def _watching(
    monitor: Any, stage: StageHandle, display: Display, curves: Tracking, size: _Size
) -> Iterator[None]:
    """Show and track what the monitor knows while the block runs."""
    done = threading.Event()

    def watch() -> None:
        shown = epochs = told = begun = 0
        last, doing = False, ""
        point: StepPoint | None = None
        while not last:
            last = done.wait(1.0)
            try:
                state = ray.get(monitor.state.remote(told), timeout=5)
            except ray.exceptions.RayError:
                continue
            examples, detail, records, points, next_doing, starts = state
            for _, start in starts[begun:]:
                if start:
                    display.say(start)
            if begun and len(starts) > begun:
                stage.stage.begin_again()
            begun = len(starts)
            point = points[-1] if points else point
            if examples != shown:  # fewer, where workers have begun again
                # of an elastic group there may be more than it takes
                now = replace(size, workers=starts[-1][0]) if starts else size
                standing = _standing(stage.stage, now, len(records), point)
                stage.advance(examples - shown, detail, shown=standing)
            if next_doing != doing:
                doing = next_doing
                stage.doing(doing)
            shown = examples
            curves.steps(points)
            told += len(points)
            for record, step in records[epochs:]:
                display.say(describe_epoch(record))
                curves.epoch(record, step)
            epochs = len(records)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def describe_start(workers: int, state: State, *, again: bool) -> str:
    """Where workers go on, in one line; nothing to say where they first begin."""
    if not state["epoch"] and not state["step"]:
        return f"{workers} worker(s) begin again: there is no checkpoint yet" if again else ""
    within = f", after {state['step']} of its steps" if state["step"] else ""
    return (
        f"{workers} worker(s) continue from the last checkpoint: epoch {state['epoch'] + 1}{within}"
    )


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
    material = fetched(config["material"])
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    fitter = new_fitter(
        job.training,
        material,
        device=ray.train.torch.get_device(),
        wrap=ray.train.torch.prepare_model,
        rank=rank,
        world_size=context.get_world_size(),
    )
    state = first_state()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = fitter.load(Path(folder))
    if rank == 0:
        config["monitor"].begun.remote(context.get_world_size(), state)

    def on_head(share: float) -> None:
        if rank == 0 and share < 1:  # the first step speaks for itself
            done = f", {share:.0%} of its labels" if share else ""
            config["monitor"].steps.remote(0, "", [], f"fitting the head{done}")

    def on_epoch(state: State, scores_NL: NDArray[np.float32]) -> None:
        if rank == 0:
            record, steps = state["history"][-1], state["epoch"] * fitter.steps_per_epoch
            config["monitor"].epoch.remote(record, steps)
        _report(fitter, state, {"score": keep_score(state)}, rank, scores_NL=scores_NL)

    on_step = _step_reporter(fitter, config["monitor"], job.checkpoints.every_steps, rank)
    run_epochs(fitter, state, material, on_step=on_step, on_epoch=on_epoch, on_head=on_head)


def _step_reporter(
    fitter: Fitter, monitor: Any, save_every: int | None, rank: int
) -> Callable[[State, int, float], None]:
    last = 0.0
    points: list[StepPoint] = []

    def on_step(state: State, step: int, loss: float) -> None:
        nonlocal last
        epoch = state["epoch"]
        done = epoch * fitter.steps_per_epoch + step + 1
        if rank == 0:
            points.append(StepPoint(done, loss, fitter.learning_rate))
        final = step + 1 == fitter.steps_per_epoch
        if rank == 0 and (final or time.monotonic() - last >= REPORT_EVERY_S):
            last = time.monotonic()
            within = min((step + 1) * fitter.config.batch_size, len(fitter.train))
            seen = epoch * len(fitter.train) + within
            detail = f"epoch {epoch + 1} loss {loss:.4f}"
            doing = f"epoch {epoch + 1}: validating" if final else ""
            monitor.steps.remote(seen, detail, points.copy(), doing)
            points.clear()
        if save_every and (step + 1) % save_every == 0 and not final:
            _report(fitter, {**state, "step": step + 1}, {"score": WITHIN_EPOCH}, rank)

    return on_step


def _report(
    fitter: Fitter,
    state: State,
    metrics: dict[str, Any],
    rank: int,
    *,
    scores_NL: NDArray[np.float32] | None = None,
) -> None:
    """Report to Ray Train on every rank; rank 0 brings the checkpoint."""
    metrics = {**metrics, "epoch": state["epoch"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(fitter, Path(folder), state, scores_NL)
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
    with kept.as_directory() as folder:
        return write_trained(job, prepared, Path(folder), latest, output, display)
