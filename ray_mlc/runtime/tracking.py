"""The curves of a training: TensorBoard's event files always, MLflow where the job names a server.

The driver writes them, from what rank 0 tells it: of each step its loss and learning rate, of each
epoch its metrics, by the optimizer steps done. Each tracker has a thread of its own and is cut off
with one warning when it fails: no disk and no server can hold up or end a training.

A run has the name of its digest, in TensorBoard and in MLflow, so that a resumed training goes on
in the same curves.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ray_mlc.config import TrackingConfig, TrainJob
from ray_mlc.errors import ConfigError, first_line, redact
from ray_mlc.job_files import dump_job

FOLDER = "_tensorboard"
"""Folder of the event files in the output."""
CLOSE_S = 30.0
"""Seconds that a tracker has at the end for what it was told."""
FLUSH_S = 10
"""Seconds after which TensorBoard sees a step."""
RUN_TAG = "ray_mlc.run"
"""MLflow tag that holds the digest of data, encoder and settings."""
MLFLOW_BATCH = 500
"""Values in one request; MLflow's servers take 1,000."""
MLFLOW_TEXT = 500
"""Characters of a parameter; MLflow's servers take 500 to 6,000."""
INSTALL = "pip install 'ray-mlc[mlflow]'"


class StepPoint(NamedTuple):
    """One optimizer step."""

    step: int
    """Counts from 1, over all epochs."""
    loss: float
    learning_rate: float
    """Of the encoder's top layer."""


class Tracker(Protocol):
    """A place for curves; any method may fail."""

    name: str
    """For the warning."""

    def steps(self, points: Sequence[StepPoint]) -> None:
        """Note steps, in their order."""

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        """Note what was measured after `step` steps."""

    def close(self, status: str) -> None:
        """The end: `FINISHED`, `FAILED` or `KILLED`."""


class TensorBoard:
    """Event files, as `tensorboard --logdir` reads them."""

    name = "TensorBoard"

    def __init__(self, folder: Path, job: str) -> None:
        """Prepare event files.

        Args:
            folder: Of this run; may hold files of the same run, interrupted.
            job: The resolved job, shown beside the curves.
        """
        self._folder, self._job = folder, job
        self._writer: Any = None

    def steps(self, points: Sequence[StepPoint]) -> None:
        """See `Tracker.steps`."""
        writer = self._open(points[0].step)
        for point in points:
            writer.add_scalar("train/loss", point.loss, point.step)
            writer.add_scalar("train/learning_rate", point.learning_rate, point.step)

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.epoch`."""
        writer = self._open(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def close(self, status: str) -> None:
        """See `Tracker.close`."""
        del status
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            resumed = any(self._folder.glob("events.*"))
            # steps that are done again replace those after the checkpoint
            purge = {"purge_step": step} if resumed else {}
            self._writer = SummaryWriter(str(self._folder), flush_secs=FLUSH_S, **purge)
            if not resumed:
                self._writer.add_text("job", f"```yaml\n{self._job}\n```")
        return self._writer


class Mlflow:
    """A run on an MLflow server; by its client, which leaves MLflow's global state alone."""

    name = "MLflow"

    def __init__(
        self, config: TrackingConfig, *, run: str, digest: str, parameters: Mapping[str, object]
    ) -> None:
        """Prepare a run; no server is asked yet.

        Args:
            config: Where.
            run: Name of the run.
            digest: Of data, encoder and settings: a run that has it is continued.
            parameters: What is recorded of the job.
        """
        self._config, self._name, self._digest = config, run, digest
        self._parameters = parameters
        self._client: Any = None
        self._run_id = ""

    def steps(self, points: Sequence[StepPoint]) -> None:
        """See `Tracker.steps`."""
        values = [
            (name, value, point.step)
            for point in points
            for name, value in (
                ("train/loss", point.loss),
                ("train/learning_rate", point.learning_rate),
            )
        ]
        self._log(values)

    def epoch(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.epoch`."""
        self._log([(name, value, step) for name, value in values.items()])

    def close(self, status: str) -> None:
        """See `Tracker.close`."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, status=status)

    def _log(self, values: Sequence[tuple[str, float, int]]) -> None:
        self._begin()
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for start in range(0, len(values), MLFLOW_BATCH):
            metrics = [
                Metric(name, value, now, step)
                for name, value, step in values[start : start + MLFLOW_BATCH]
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def _begin(self) -> None:
        """Continue the run of this digest, or create it."""
        if self._client is not None:
            return
        # it reports its use to its makers unless told not to
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._config.mlflow)
        experiment = client.get_experiment_by_name(self._config.experiment)
        place = (
            client.create_experiment(self._config.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        found = client.search_runs(
            [place], filter_string=f"tags.`{RUN_TAG}` = '{self._digest}'", max_results=1
        )
        if found:
            self._run_id = found[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            created = client.create_run(place, run_name=self._name, tags={RUN_TAG: self._digest})
            self._run_id = created.info.run_id
            texts = {key: str(value)[:MLFLOW_TEXT] for key, value in self._parameters.items()}
            client.log_batch(self._run_id, params=[Param(key, text) for key, text in texts.items()])
        self._client = client


class Tracking:
    """All trackers of a training; never raises."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        """Start a thread for each.

        Args:
            trackers: Where curves go.
            say: Told of a tracker that fails, once.
        """
        self._say = say
        self._last_step = self._last_epoch = 0
        self._queues: list[queue.SimpleQueue[Callable[[Tracker], None] | None]] = []
        self._threads: list[tuple[str, threading.Thread]] = []
        for tracker in trackers:
            told: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._serve, args=(tracker, told), daemon=True)
            self._queues.append(told)
            self._threads.append((tracker.name, thread))
            thread.start()

    def steps(self, points: Sequence[StepPoint]) -> None:
        """Note steps; those that a worker which was lost has told already are passed over."""
        new = [point for point in points if point.step > self._last_step]
        if new:
            self._last_step = new[-1].step
            self._tell(lambda tracker: tracker.steps(new))

    def epoch(self, record: Mapping[str, Any], step: int) -> None:
        """Note an epoch.

        Args:
            record: As in `history.jsonl`.
            step: Optimizer steps done by its end.
        """
        if record["epoch"] > self._last_epoch:
            self._last_epoch = record["epoch"]
            values = epoch_values(record)
            self._tell(lambda tracker: tracker.epoch(values, step))

    def close(self, status: str) -> None:
        """The end; waits a while for trackers that are behind."""
        self._tell(lambda tracker: tracker.close(status))
        self._tell(None)
        deadline = time.monotonic() + CLOSE_S
        for name, thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._say(f"note: {name} does not answer: the last part of its curves is lost")

    def _tell(self, what: Callable[[Tracker], None] | None) -> None:
        for told in self._queues:
            told.put(what)

    def _serve(
        self, tracker: Tracker, told: queue.SimpleQueue[Callable[[Tracker], None] | None]
    ) -> None:
        failed = False
        while (what := told.get()) is not None:
            if failed:
                continue
            try:
                what(tracker)
            except Exception as error:  # whatever a disk, a library or a server comes up with
                failed = True
                self._say(
                    f"note: {tracker.name} gets no more curves ({redact(first_line(error))}); "
                    "training goes on"
                )


def epoch_values(record: Mapping[str, Any]) -> dict[str, float]:
    """Figures of an epoch by the names of their curves; those that are undefined are left out."""
    values = {
        "train/epoch_loss": record["train_loss"],
        "train/seconds_per_epoch": record["seconds"],
        "validation/threshold": record["threshold"],
        **{f"validation/{name}": value for name, value in record["decision"].items()},
        **{f"validation_at_half/{name}": value for name, value in record["at_half"].items()},
    }
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def check_tracking(config: TrackingConfig) -> None:
    """Refuse a job whose curves cannot go where it says, before it costs anything.

    Raises:
        ConfigError: If MLflow is asked for and not installed here.
    """
    if config.mlflow is not None and "mlflow" not in sys.modules and find_spec("mlflow") is None:
        raise ConfigError(f"tracking.mlflow is set, but MLflow is not installed here: {INSTALL}")


@contextmanager
def tracking(
    job: TrainJob, digest: str, output: Path, say: Callable[[str], None]
) -> Iterator[Tracking]:
    """The trackers of a training, for the block that does it.

    Args:
        job: What is trained.
        digest: Of data, encoder and settings.
        output: Its model folder.
        say: Told of a tracker that fails.
    """
    run = digest[:16]
    trackers: list[Tracker] = [TensorBoard(output / FOLDER / run, dump_job(job))]
    if job.tracking.mlflow is not None:
        parameters = {
            "encoder": job.encoder,
            "train": job.data.train,
            "validation": job.data.validation,
            "workers": job.workers.count,
            **flat(job.training.model_dump(mode="json")),
        }
        name = f"{output.name}-{run}"
        trackers.append(Mlflow(job.tracking, run=name, digest=digest, parameters=parameters))
    curves = Tracking(trackers, say)
    status = "FAILED"
    try:
        yield curves
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        curves.close(status)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted keys."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
