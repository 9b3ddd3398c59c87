"""Curves: complete, in order, once; and a training that no tracker can hold up."""

from __future__ import annotations

import math
import os
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.curves import events

from ray_mlc.config import TrackingConfig, TrainJob
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import load_job
from ray_mlc.runtime import tracking as module
from ray_mlc.runtime.ray_train import Monitor
from ray_mlc.runtime.tracking import StepPoint, Tracking, check_tracking, tracking

DIGEST = "0123456789abcdef" * 4
POINTS = [StepPoint(step, 1 / step, 1e-5 * step) for step in range(1, 8)]
RECORD = {
    "epoch": 1,
    "train_loss": 0.5,
    "threshold": 0.4,
    "learning_rate": 1e-5,
    "seconds": 2.5,
    "at_half": {"f1_micro": 0.6, "roc_auc_macro": None},
    "decision": {"f1_micro": 0.7, "roc_auc_macro": None, "loss": math.nan},
}


def job(tmp_path: Path, *overrides: str) -> TrainJob:
    options = {"data.train": "t", "data.validation": "v", "output": str(tmp_path / "model")}
    return load_job(TrainJob, options=options, overrides=overrides)


def end_with(
    error: BaseException, spec: TrainJob, digest: str, folder: Path, points: list[StepPoint]
) -> None:
    """A training that tells some steps and ends with an error."""
    with tracking(spec, digest, folder, say=pytest.fail) as curves:
        curves.steps(points)
        raise error


def test_every_step_and_epoch_is_in_the_event_files_of_the_run(tmp_path: Path) -> None:
    with tracking(job(tmp_path), DIGEST, tmp_path / "model", say=pytest.fail) as curves:
        curves.steps(POINTS[:4])
        curves.steps([])
        curves.steps(POINTS[4:])
        curves.epoch(RECORD, 7)
    found = events(tmp_path / "model" / "_tensorboard" / DIGEST[:16])
    losses = [(step, value) for tag, step, value in found if tag == "train/loss"]
    assert losses == [(point.step, pytest.approx(point.loss)) for point in POINTS]
    rates = [value for tag, _, value in found if tag == "train/learning_rate"]
    assert rates == pytest.approx([point.learning_rate for point in POINTS])
    epoch = {tag: value for tag, step, value in found if step == 7}
    assert epoch["validation/f1_micro"] == pytest.approx(0.7)
    assert epoch["validation_at_half/f1_micro"] == pytest.approx(0.6)
    assert math.isnan(epoch["validation/loss"])
    assert "validation/roc_auc_macro" not in epoch  # undefined there


def test_steps_that_a_restarted_worker_does_again_are_noted_once(tmp_path: Path) -> None:
    with tracking(job(tmp_path), DIGEST, tmp_path, say=pytest.fail) as curves:
        curves.steps(POINTS[:5])
        curves.epoch(RECORD, 5)
        curves.steps(POINTS[2:6])
        curves.epoch(RECORD, 5)
    found = events(tmp_path)
    assert [step for tag, step, _ in found if tag == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert [tag for tag, *_ in found].count("validation/f1_micro") == 1


def test_a_run_that_goes_on_tells_tensorboard_which_steps_it_replaces(tmp_path: Path) -> None:
    for first, last in ((0, 5), (3, 7)):
        with tracking(job(tmp_path), DIGEST, tmp_path, say=pytest.fail) as curves:
            curves.steps(POINTS[first:last])
    found = events(tmp_path)
    assert [step for tag, step, _ in found if tag == "session"] == [4]
    with tracking(job(tmp_path), "f" * 64, tmp_path, say=pytest.fail) as curves:
        curves.steps(POINTS)
    folders = sorted(path.name for path in (tmp_path / "_tensorboard").iterdir())
    assert folders == [DIGEST[:16], "f" * 16]


def test_a_training_that_ends_before_its_first_step_leaves_no_files(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="broken"),
        tracking(job(tmp_path), DIGEST, tmp_path, say=pytest.fail),
    ):
        raise RuntimeError("broken")
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """A tracker that remembers what it was told, and fails if asked to."""

    def __init__(self, name: str, fail_at: int | None = None) -> None:
        self.name, self.fail_at = name, fail_at
        self.told: list[Any] = []

    def _note(self, what: Any) -> None:
        self.told.append(what)
        if self.fail_at is not None and len(self.told) > self.fail_at:
            raise OSError("disk full\nat https://me:secret@host/")

    def steps(self, points: Sequence[StepPoint]) -> None:
        self._note([point.step for point in points])

    def epoch(self, values: Any, step: int) -> None:
        self._note(("epoch", step))

    def close(self, status: str) -> None:
        self._note(status)


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_tracker_that_fails_is_cut_off_with_one_warning_and_the_others_go_on(
    fail_at: int,
) -> None:
    said: list[str] = []
    broken, whole = Recorder("broken", fail_at), Recorder("whole")
    curves = Tracking([broken, whole], said.append)
    for point in POINTS:
        curves.steps([point])
    curves.epoch(RECORD, 7)
    curves.close("FINISHED")
    assert whole.told == [[1], [2], [3], [4], [5], [6], [7], ("epoch", 7), "FINISHED"]
    assert len(broken.told) == fail_at + 1
    assert len(said) == 1
    assert "broken gets no more curves (disk full)" in said[0]
    assert "\n" not in said[0]


def test_a_tracker_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.1)
    release, said = threading.Event(), []

    class Stuck(Recorder):
        def steps(self, points: Sequence[StepPoint]) -> None:
            release.wait(20)

    whole = Recorder("whole")
    curves = Tracking([Stuck("stuck"), whole], said.append)
    for point in POINTS:
        curves.steps([point])
    curves.close("FINISHED")
    release.set()
    assert whole.told[-1] == "FINISHED"
    assert said == ["note: stuck does not answer: the last part of its curves is lost"]


# MLflow


class Server:
    """What a fake MLflow knows; by the names of the client of MLflow 3."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.down = False


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            assert tracking_uri == "http://host:5000"
            if server.down:
                raise ConnectionError("refused\nmany lines")

        def get_experiment_by_name(self, name: str) -> Any:
            found = server.experiments.get(name)
            return found and types.SimpleNamespace(experiment_id=found)

        def create_experiment(self, name: str) -> str:
            server.experiments[name] = f"e{len(server.experiments)}"
            return server.experiments[name]

        def search_runs(
            self, experiment_ids: list[str], filter_string: str, max_results: int
        ) -> list[Any]:
            wanted = filter_string.split("'")[1]
            assert filter_string == f"tags.`ray_mlc.run` = '{wanted}'"
            return [
                types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))
                for run_id, run in server.runs.items()
                if run["tags"]["ray_mlc.run"] == wanted and run["experiment"] in experiment_ids
            ][:max_results]

        def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
            run_id = f"r{len(server.runs)}"
            run = {"experiment": experiment_id, "name": run_name, "tags": tags, "status": "RUNNING"}
            server.runs[run_id] = {**run, "metrics": [], "params": {}}
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        def update_run(self, run_id: str, status: str) -> None:
            server.runs[run_id]["status"] = status

        def set_terminated(self, run_id: str, status: str) -> None:
            server.runs[run_id]["status"] = status

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(metrics) <= 1000
            assert len(params) <= 100
            assert all(len(value) <= 500 for _, value in params)
            server.runs[run_id]["metrics"] += metrics
            server.runs[run_id]["params"].update(params)

    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
    client = types.ModuleType("mlflow.tracking")
    client.MlflowClient = Client  # type: ignore[attr-defined]
    for name, part in (
        ("", types.ModuleType("mlflow")),
        (".entities", entities),
        (".tracking", client),
    ):
        monkeypatch.setitem(sys.modules, f"mlflow{name}", part)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    return server


MLFLOW = ("tracking.mlflow=http://host:5000", "tracking.experiment=night")


def test_mlflow_gets_parameters_steps_and_epochs_and_the_end(
    server: Server, tmp_path: Path
) -> None:
    many = [StepPoint(step, 1.0, 0.1) for step in range(1, 1201)]
    spec = job(tmp_path, *MLFLOW, "training.loss=focal", f"encoder={'e' * 900}")
    check_tracking(spec.tracking)
    with tracking(spec, DIGEST, tmp_path / "toxic", say=pytest.fail) as curves:
        curves.steps(many)
        curves.epoch(RECORD, 1200)
    (run,) = server.runs.values()
    assert (run["experiment"], run["name"]) == ("e0", f"toxic-{DIGEST[:16]}")
    assert run["status"] == "FINISHED"
    steps = [step for key, _, step in run["metrics"] if key == "train/loss"]
    assert steps == list(range(1, 1201))
    assert ("validation/f1_micro", 0.7, 1200) in run["metrics"]
    assert run["params"]["loss.name"] == "focal"
    assert run["params"]["encoder"] == "e" * 500
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_resumed_training_continues_its_run_and_another_has_its_own(
    server: Server, tmp_path: Path
) -> None:
    spec = job(tmp_path, *MLFLOW)
    with pytest.raises(KeyboardInterrupt):
        end_with(KeyboardInterrupt(), spec, DIGEST, tmp_path, POINTS[:3])
    assert [run["status"] for run in server.runs.values()] == ["KILLED"]
    with tracking(spec, DIGEST, tmp_path, say=pytest.fail) as curves:
        curves.steps(POINTS[3:])
    assert [run["status"] for run in server.runs.values()] == ["FINISHED"]
    steps = [step for key, _, step in server.runs["r0"]["metrics"] if key == "train/loss"]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(RuntimeError, match="broken"):
        end_with(RuntimeError("broken"), spec, "f" * 64, tmp_path, POINTS)
    assert [run["status"] for run in server.runs.values()] == ["FINISHED", "FAILED"]
    assert server.experiments == {"night": "e0"}


def test_a_server_that_is_down_costs_one_warning(server: Server, tmp_path: Path) -> None:
    server.down = True
    said: list[str] = []
    with tracking(job(tmp_path, *MLFLOW), DIGEST, tmp_path, say=said.append) as curves:
        for point in POINTS:
            curves.steps([point])
    assert said == ["note: MLflow gets no more curves (refused); training goes on"]
    assert [step for tag, step, _ in events(tmp_path) if tag == "train/loss"] == list(range(1, 8))


def test_mlflow_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    check_tracking(TrackingConfig())
    with pytest.raises(ConfigError, match=r"pip install 'ray-mlc\[mlflow\]'") as caught:
        check_tracking(TrackingConfig(mlflow="http://host:5000"))
    assert "\n" not in str(caught.value)


# What the driver learns from rank 0


def test_workers_that_begin_again_say_where_they_continue() -> None:
    monitor = Monitor()
    monitor.begun(2, {"epoch": 0, "step": 0})
    monitor.begun(2, {"epoch": 0, "step": 0})
    monitor.begun(1, {"epoch": 3, "step": 0})
    monitor.begun(2, {"epoch": 3, "step": 20})
    assert monitor.state(0)[5] == [
        (2, ""),  # nothing to say: they begin
        (2, "2 worker(s) begin again: there is no checkpoint yet"),
        (1, "1 worker(s) continue from the last checkpoint: epoch 4"),
        (2, "2 worker(s) continue from the last checkpoint: epoch 4, after 20 of its steps"),
    ]


def test_the_monitor_hands_out_each_step_until_the_driver_has_it() -> None:
    monitor = Monitor()
    monitor.steps(8, "a", POINTS[:2])
    assert monitor.state(0)[3] == POINTS[:2]
    monitor.steps(16, "b", POINTS[2:5])
    assert monitor.state(0)[3] == POINTS[:5]  # the driver did not get the answer
    assert monitor.state(5)[3] == []
    monitor.steps(24, "c", POINTS[5:])
    monitor.epoch(RECORD, 7)
    examples, detail, records, points, doing, starts = monitor.state(5)
    assert doing == ""
    assert starts == []
    monitor.steps(24, "c", [], "epoch 3: validating")
    assert monitor.state(7)[4] == "epoch 3: validating"
    assert (examples, detail, records) == (24, "c", [(RECORD, 7)])
    assert points == POINTS[5:]
