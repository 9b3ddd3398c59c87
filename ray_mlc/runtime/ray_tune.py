"""A search for settings on Ray Tune: many trainings, the best of which becomes a model folder.

Each trial is the training that `train` does, by one worker: same loop, same seeds, so that its
values given to `train` lead to the same model. Examples are tokenized once for all trials that
need the same tokens, and lie in Ray's object store.

Ray Tune places trials, moves their checkpoints and ends the worse ones early; what was done is
written down by `runtime.trials`, from which the same command continues.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import ray.tune
from numpy.typing import NDArray
from ray.tune import Callback, Checkpoint, CheckpointConfig
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from ray_mlc.config import TrainJob, TuneJob, WorkersConfig
from ray_mlc.errors import (
    ConfigError,
    InterruptedRunError,
    ModelError,
    RayMlcError,
    first_line,
    redact,
)
from ray_mlc.job_files import with_values
from ray_mlc.model.folder import read_info
from ray_mlc.runtime.growth import plan_or_grow
from ray_mlc.runtime.interrupt import Stop, completing, listen
from ray_mlc.runtime.nodes import refuse_unshared
from ray_mlc.runtime.prepare import Material, Prepared
from ray_mlc.runtime.progress import Display, StageHandle
from ray_mlc.runtime.ray_train import (
    WorkerPlan,
    check_job,
    fetched,
    plan_workers,
    shared,
    training_error,
    workers_needed,
)
from ray_mlc.runtime.session import (
    NodeResources,
    cluster_nodes,
    free_resources,
    places,
    ray_session,
)
from ray_mlc.runtime.tracking import Tracking, tracking
from ray_mlc.runtime.train import (
    State,
    first_state,
    keep_score,
    new_fitter,
    run_epochs,
    save_checkpoint,
    write_trained,
)
from ray_mlc.runtime.trials import (
    EVENTS_FILE,
    IDENTITY_FILE,
    STATE_FOLDER,
    Ledger,
    Trial,
    best_trial,
    check_identity,
    comparable,
    how_it_ended,
    read_identity,
    read_table,
    score_of,
    write_identity,
    write_table,
)
from ray_mlc.runtime.tune import Search, preparation_key, prepare_all
from ray_mlc.storage import local_path, scheme_of
from ray_mlc.training.search import (
    check_optuna,
    trial_job,
)

QUIET = ("ray.tune", "ray.train", "ray.air")
"""Loggers of Ray that report as errors what we report ourselves."""


def tune(job: TuneJob, display: Display) -> dict[str, Any]:
    """Search for settings, on the Ray that is connected or else on one started for it.

    Args:
        job: What to vary, and how.
        display: Told about progress.

    Returns:
        `model`, `best_trial`, `values`, `metric`, `best_epoch`, `threshold`, `metrics` and the
        rows of `trials`.

    Raises:
        ConfigError: If the job contradicts itself, or names what the training refuses.
        DataError: If the examples cannot be used.
        ModelError: If an encoder cannot, or the output holds a model of another command.
        ResourceError: If the cluster is too small.
        RunMismatchError: If the output holds another search.
        InterruptedRunError: If it was asked to stop.
        RayMlcError: If all trials failed.
    """
    search = Search.of(job)
    if job.algorithm == "optuna":
        check_optuna()
    output = check_job(job.train)
    info = read_info(output)
    if info is not None and read_identity(output) is None:
        raise ModelError(
            f"{output}: holds a model that is no result of tune: choose another output, or "
            "remove it"
        )
    check_identity(output, job, None)
    prepared = prepare_all(search, display)
    data = _digest(sorted(item.fingerprint for item in prepared.values()))
    check_identity(output, job, data)
    if info is not None:
        display.say(f"{output} is tuned already: same search, examples and encoder")
        shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)
        return _summary(job, output, read_table(output))
    write_identity(output, job, data)
    ledger = Ledger(output / STATE_FOLDER / EVENTS_FILE)
    # not earlier: a typo should not cost a start of Ray
    with completing(display.say) as results, ray_session(job.train.ray.address):
        refuse_unshared({"train.encoder": job.train.encoder}, {"train.output": str(output)})
        run = Run(search, prepared, ledger, output, display)
        try:
            run.train_all(_digest([*comparable(job), data]))
        finally:
            rows = write_table(output, ledger.trials)
        best = best_trial(list(ledger.trials.values()), job.train.training.best_metric)
        if best is None:
            shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)
            (output / IDENTITY_FILE).unlink(missing_ok=True)
            raise RayMlcError(
                f"all {len(rows)} trials failed, the first one: {ledger.trials[0].error}"
            )
        _write_best(search, prepared, best, output, display)
        results.append(_summary(job, output, rows))
    shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)
    return results[0]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def plan_trials(
    job: TuneJob, trials: int, nodes: Sequence[NodeResources], free: NodeResources
) -> WorkerPlan:
    """How many trials run at a time, and what each takes.

    Raises:
        ResourceError: If not even so many fit.
    """
    workers = job.train.workers
    count: int
    if job.concurrent != "auto":
        count = min(job.concurrent, trials)
    else:
        gpus = workers.gpus
        if gpus == "auto":
            gpus = 1.0 if any(node.gpus for node in nodes) else 0.0
        if workers.cpus != "auto":
            count = places(nodes, workers.cpus, gpus)
        elif gpus:
            count = places(nodes, 1.0, gpus)
        else:
            count = len(nodes)
        count = max(1, min(count, trials))
    asked = WorkersConfig(count=count, cpus=workers.cpus, gpus=workers.gpus)
    return plan_workers(
        asked, nodes, free, remedy="lower `concurrent`, train.workers.cpus or train.workers.gpus"
    )


class Run:
    """One session of a search: Ray Tune asks it for trials and tells it what became of them."""

    def __init__(
        self,
        search: Search,
        prepared: Mapping[str, Prepared],
        ledger: Ledger,
        output: Path,
        display: Display,
    ) -> None:
        """Take up a search where its ledger says that it stands."""
        self._search, self._prepared = search, prepared
        self._ledger, self._output, self._display = ledger, output, display
        self._keys = list(prepared)
        self._metric = search.job.train.training.best_metric
        self._proposals = search.proposals()
        self._begun = [trial.number for trial in ledger.trials.values() if not trial.over]
        self._curves: dict[int, tuple[ExitStack, Tracking]] = {}
        self._stage: StageHandle | None = None
        self._digest = ""
        for trial in ledger.trials.values():
            if trial.over:
                self._proposals.tell(trial.number, trial.values, self._score(trial))

    def train_all(self, digest: str) -> None:
        """Train what is not trained yet.

        Args:
            digest: Of the search: names it in curves and among checkpoints.

        Raises:
            InterruptedRunError: If it was asked to stop.
            ResourceError: If the cluster is too small.
            RayMlcError: If Ray fails.
        """
        job, ledger, total = self._search.job, self._ledger, self._search.trials
        self._digest = digest
        over = sum(trial.over for trial in ledger.trials.values())
        if over == total:
            return
        low = 1 if job.concurrent == "auto" else min(job.concurrent, total - over)
        plan = plan_or_grow(
            lambda: plan_trials(job, total - over, cluster_nodes(), free_resources()),
            workers_needed(job.train.workers.model_copy(update={"count": low})),
            wait_s=job.train.ray.node_wait,
            say=self._display.say,
            settle_s=0,
        )
        ledger.session()
        device = "GPU" if plan.gpus else f"{plan.threads} CPU thread(s)"
        self._display.say(
            f"{total} trials{f', {over} of them done before' if over else ''}; {plan.count} at a "
            f"time on {device} each"
        )
        levels = {name: logging.getLogger(name).level for name in QUIET}
        try:
            for name in QUIET:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            with (
                listen(0.0, lambda _: self._display.say(STOPPING)) as stop,
                self._display.stage("tune", total, "trials", done=over) as self._stage,
            ):
                self._fit(plan, total - over, stop)
        except (Stopped, KeyboardInterrupt, SystemExit):
            with suppress(KeyboardInterrupt):
                self._close_curves(KeyboardInterrupt())
            done = sum(trial.over for trial in ledger.trials.values())
            raise InterruptedRunError(
                f"interrupted; {done} of {total} trials are done, others go on from their last "
                "epoch: run the same command to continue"
            ) from None
        except RayMlcError:
            raise
        except Exception as error:
            raise training_error(error) from error
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            self._close_curves(None)

    def _fit(self, plan: WorkerPlan, trials: int, stop: Stop) -> None:
        job = self._search.job
        storage = job.train.checkpoints.path or str(self._output / STATE_FOLDER / "checkpoints")
        if scheme_of(storage) == "file":
            storage = str(local_path(storage))
        trainable = ray.tune.with_parameters(
            _trial,
            train=job.train,
            materials=[shared(item.material) for item in self._prepared.values()],
            threads=plan.threads,
            gpus=plan.gpus,
        )
        resources = {"cpu": plan.cpus, **({"gpu": plan.gpus} if plan.gpus else {})}
        # not `Tuner`: it pickles callbacks and scheduler for a `restore` that we do without
        ray.tune.run(
            trainable,
            name=f"{self._digest[:16]}-{self._ledger.sessions}",
            storage_path=storage,
            metric="score",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=plan.count if isinstance(plan.count, int) else plan.count[0],
            resources_per_trial=resources,
            search_alg=Source(self),
            scheduler=self._scheduler(),
            callbacks=[Watch(self, storage, stop)],
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="kept", checkpoint_score_order="max"
            ),
            max_failures=job.train.workers.max_failures,
            raise_on_failed_trial=False,
            trial_dirname_creator=_trial_folder,
            verbose=0,
        )

    def _scheduler(self) -> Any:
        config, most = self._search.job.scheduler, self._search.most_epochs
        if config.name == "none":
            return FIFOScheduler()
        return Halving(
            self._ledger,
            self._metric,
            time_attr="epoch",
            max_t=most,
            grace_period=min(config.grace, most),
            reduction_factor=config.reduction,
        )

    def next(self) -> dict[str, Any] | None:
        """What the worker of the next trial is told; None if there are no more."""
        while True:
            if self._begun:
                number = self._begun.pop(0)
            else:
                number = len(self._ledger.trials)
                if number >= self._search.trials:
                    return None
                self._ledger.begin(number, self._proposals.ask(number))
            trial = self._ledger.trials[number]
            try:
                job = trial_job(self._search.job.train, trial.values)
                key = preparation_key(job)
            except ConfigError as error:  # values that Optuna put together
                self.ended(trial.number, str(error))
                continue
            if how_it_ended(trial, job.training) == "finished":
                # killed between the last epoch and the end
                self.ended(number, None)
                continue
            return {
                "trial": number,
                "values": json.dumps(trial.values),
                "prepared": self._keys.index(key),
                "checkpoint": trial.latest_checkpoint,
            }

    def saved(self, number: int, result: Mapping[str, Any], checkpoint: str) -> None:
        """An epoch of a trial is done and saved."""
        record = result["record"]
        self._ledger.epoch(number, record, result["best_epoch"], checkpoint)
        self._curves_of(number).epoch(record, record["epoch"] * result["steps_per_epoch"])
        self.show()

    def ended(self, number: int, error: str | None) -> None:
        """A trial is over."""
        trial = self._ledger.trials[number]
        if trial.over:
            return
        if error is not None:
            self._ledger.end(number, "failed", error)
        else:
            settings = with_values(self._search.job.train, trial.values).training
            self._ledger.end(number, how_it_ended(trial, settings))
        self._proposals.tell(number, trial.values, self._score(trial))
        if number in self._curves:
            self._curves.pop(number)[0].close()
        self._remove_all_but_best()
        self._display.say(describe_trial(trial, self._metric))
        self.show(1)

    def show(self, over: int = 0) -> None:
        """Tell the display how many run, and what is best so far."""
        if self._stage is None:
            return
        trials = list(self._ledger.trials.values())
        best = best_trial(trials, self._metric)
        detail = f"{sum(not trial.over for trial in trials)} running"
        value = None if best is None else best.metric(self._metric)
        if best is not None and value is not None:
            detail += f", best {self._metric} {value:.4f} (trial {best.number})"
        self._stage.advance(over, detail)

    def _score(self, trial: Trial) -> float | None:
        if trial.state == "failed" or trial.best is None:
            return None
        return score_of(self._metric, trial.metric(self._metric))

    def _curves_of(self, number: int) -> Tracking:
        if number not in self._curves:
            stack = ExitStack()
            job = with_values(self._search.job.train, self._ledger.trials[number].values)
            name = f"trial-{number:04d}-{self._digest}"
            curves = stack.enter_context(tracking(job, name, self._output, self._display.say))
            self._curves[number] = (stack, curves)
        return self._curves[number][1]

    def _close_curves(self, error: BaseException | None) -> None:
        while self._curves:
            stack, _ = self._curves.popitem()[1]
            stack.__exit__(type(error) if error else None, error, None)

    def _remove_all_but_best(self) -> None:
        """Free the disk of what neither continues a trial nor can become the model."""
        # not the best of all: one that still runs may fail
        trials = [trial for trial in self._ledger.trials.values() if trial.over]
        best = best_trial(trials, self._metric)
        for trial in trials:
            keep = trial.training["best_epoch"] if trial is best else None
            for epoch in [epoch for epoch in trial.checkpoints if epoch != keep]:
                place = Checkpoint(trial.checkpoints.pop(epoch))
                with suppress(OSError):  # Ray keeps two of them and has removed the others
                    place.filesystem.delete_dir(place.path)


STOPPING = "stopping: epochs in flight are dropped; once more stops at once"


class Stopped(Exception):
    """Ends Ray Tune's loop, which then clears up."""


class Source(Searcher):  # type: ignore[misc]
    """Gives Ray Tune the trials of a run."""

    def __init__(self, run: Run) -> None:
        """Take a run."""
        super().__init__(metric="score", mode="max")
        self._run = run

    def suggest(self, trial_id: str) -> Any:
        """What the next trial is told."""
        del trial_id
        return self._run.next() or Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: `Watch` tells the run, for every end of a trial."""

    def save(self, checkpoint_path: str) -> None:
        """Write the file that Ray Tune moves about; there is nothing to keep in it."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `runtime.trials`."""


class Watch(Callback):  # type: ignore[misc]
    """Tells a run what became of its trials."""

    def __init__(self, run: Run, storage: str, stop: Stop) -> None:
        """Take a run, the place of its checkpoints, and what to look at before each step."""
        self._run, self._stop = run, stop
        self._scheme = "" if scheme_of(storage) == "file" else f"{scheme_of(storage)}://"

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Stop where that was asked for."""
        if self._stop.requested:
            raise Stopped

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """An epoch is done and saved."""
        place = f"{self._scheme}{checkpoint.path}"
        self._run.saved(trial.config["trial"], trial.last_result, place)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is over: trained to its end, ended early, or failed by an error of its own."""
        self._run.ended(trial.config["trial"], trial.last_result.get("failed"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker of a trial was lost more often than allowed."""
        error = trial.get_pickled_error() or RuntimeError("its worker was lost")
        lost = "lost its worker more often than train.workers.max_failures allows"
        self._run.ended(trial.config["trial"], f"{lost}: {redact(first_line(error))}")


class Halving(ASHAScheduler):  # type: ignore[misc]
    """Asynchronous Successive Halving that knows the trials of earlier sessions."""

    def __init__(self, ledger: Ledger, metric: str, **options: Any) -> None:
        """Take up what a ledger says.

        Args:
            ledger: Trials so far.
            metric: What they are compared by.
            options: Of Ray Tune's scheduler.
        """
        super().__init__(**options, metric="score", mode="max")
        self._histories = {
            number: [
                {"epoch": item["epoch"], "score": score_of(metric, item["decision"][metric])}
                for item in trial.training["history"]
            ]
            for number, trial in ledger.trials.items()
        }
        for number, trial in ledger.trials.items():
            if trial.over and trial.state != "failed":
                past = SimpleNamespace(trial_id=f"past-{number}", config={"trial": number})
                self.on_trial_add(None, past)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Nothing to set: they are known."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Compare what a trial has done before with the others, without ending it for that."""
        super().on_trial_add(tune_controller, trial)
        for result in self._histories.pop(trial.config["trial"], ()):
            self.on_trial_result(tune_controller, trial, result)


def _trial_folder(trial: Any) -> str:
    return f"trial-{trial.config['trial']:04d}"


def _trial(
    config: dict[str, Any],
    *,
    train: TrainJob,
    materials: Sequence[Material],
    threads: int,
    gpus: float,
) -> None:
    """The worker of a trial: an error of its own is a result, so that it is not tried again."""
    try:
        _train(config, train, materials[config["prepared"]], threads, gpus)
    except Exception as error:
        line = first_line(error)
        named = line if isinstance(error, RayMlcError) else f"{type(error).__name__}: {line}"
        ray.tune.report({"score": score_of("f1_micro", None), "failed": named})


def _train(
    config: dict[str, Any], train: TrainJob, material: Material, threads: int, gpus: float
) -> None:
    import torch

    torch.set_num_threads(threads)
    job = with_values(train, json.loads(config["values"]))
    material = fetched(material)
    device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
    fitter = new_fitter(job.training, material, device=device, wrap=lambda model: model.to(device))
    state = first_state()
    checkpoint = ray.tune.get_checkpoint()  # newer, where a worker was lost in this session
    if checkpoint is None and config["checkpoint"] is not None:
        checkpoint = Checkpoint(config["checkpoint"])
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = fitter.load(Path(folder))
    name = job.training.best_metric

    def on_epoch(state: State, scores_NL: NDArray[np.float32]) -> None:
        record = state["history"][-1]
        metrics = {
            "score": score_of(name, record["decision"][name]),
            "kept": keep_score(state),
            "epoch": state["epoch"],
            "best_epoch": state["best_epoch"],
            "steps_per_epoch": fitter.steps_per_epoch,
            "record": record,
        }
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(fitter, Path(folder), state, scores_NL)
            ray.tune.report(metrics, checkpoint=Checkpoint.from_directory(folder))
        if not math.isfinite(record["train_loss"]):
            raise FloatingPointError(
                f"the loss is {record['train_loss']} in epoch {state['epoch']}"
            )

    run_epochs(fitter, state, material, on_step=lambda *_: None, on_epoch=on_epoch)


def describe_trial(trial: Trial, metric: str) -> str:
    """A trial that is over, in one line."""
    if trial.state == "failed":
        said = f"failed: {trial.error}"
    else:
        value = trial.metric(metric)
        shown = "–" if value is None else f"{value:.4f}"
        epoch, done = trial.training["best_epoch"], trial.training["epoch"]
        said = f"{metric} {shown} in epoch {epoch} of {done}"
        said += ", ended early" if trial.state == "stopped" else ""
    values = ", ".join(f"{key}={json.dumps(value)}" for key, value in trial.values.items())
    return f"trial {trial.number}: {said} ({values})"


def _write_best(
    search: Search, prepared: Mapping[str, Prepared], best: Trial, output: Path, display: Display
) -> None:
    """Turn the best epoch of the best trial into a model folder."""
    job = trial_job(search.job.train, best.values)
    own = prepared[preparation_key(job)].for_settings(job)
    with Checkpoint(best.checkpoints[best.training["best_epoch"]]).as_directory() as folder:
        write_trained(job, own, Path(folder), best.training, output, display)


def _summary(job: TuneJob, output: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    info = read_info(output)
    assert info is not None
    metric = job.train.training.best_metric
    scored = [row for row in rows if row["metrics"] is not None and row["state"] != "failed"]
    best = max(scored, key=lambda row: score_of(metric, row["metrics"][metric]))
    return {
        "model": str(output),
        "best_trial": best["trial"],
        "values": best["values"],
        "metric": metric,
        "best_epoch": info.training.get("best_epoch"),
        "threshold": info.decision.threshold,
        "metrics": info.metrics,
        "trials": list(rows),
    }
