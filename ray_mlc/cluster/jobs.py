"""The jobs that a cluster runs: of a job file, or written for the cluster's storage and groups."""

from __future__ import annotations

from typing import Any

from ray_mlc.cluster.config import ClusterConfig, is_below
from ray_mlc.config import ACTORS_PER_NODE, ScoreJob, TrainJob
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import load_job
from ray_mlc.storage import scheme_of

GROUP_LABEL = "ray-mlc.io/group"
"""Ray node label that says of which group a node is: `cpu` or `gpu`."""
SPOT_STEPS = 200
"""Optimizer steps between two checkpoints of a training whose nodes may be taken away."""
NO_TRAINING = "training writes its model to a folder that all nodes see, and there is no volume"


class NotSeenError(ConfigError):
    """A job names a path of one machine, which the others do not see."""


def score_job(config: ClusterConfig, *, machines: int | None = None) -> dict[str, Any]:
    """The scoring job as a mapping of what differs from the defaults.

    Args:
        config: The cluster.
        machines: How many machines there are from the start, all alike; None: groups that grow,
            whose nodes carry `GROUP_LABEL`.

    Raises:
        ConfigError: If the job file is wrong.
        NotSeenError: If it names what other nodes do not see.
    """
    if config.jobs.score is not None:
        job = load_job(ScoreJob, config.jobs.score)
        inputs = [job.input.path] if isinstance(job.input.path, str) else job.input.path
        paths = {"output": job.output.path, **{f"input {path}": path for path in inputs}}
        if job.decision is not None:
            paths["decision"] = job.decision
        _check(config, "jobs.score", paths, {"model": job.model}, job.ray.address)
        return job.model_dump(mode="json", exclude_unset=True) | {"kind": "score"}
    root, volume = config.storage.root, config.volume
    model = f"{volume.mount if volume else root}/models/classifier"
    tree: dict[str, Any] = {
        "kind": "score",
        "model": model,
        "input": {"path": f"{root}/corpus/"},
        "output": {"path": f"{root}/tags/"},
    }
    # where groups grow, nodes come when there is work for them: what is there at the start says
    # nothing
    labels = {GROUP_LABEL: "cpu"}
    if config.gpu is not None:
        tree["actors"] = {"gpus": 1}
        if machines is None:
            tree["actors"]["count"] = {"min": 1, "max": config.gpu.max * config.gpu.count}
            tree["actors"]["labels"] = {GROUP_LABEL: "gpu"}
            if config.cpu.max:
                # a CPU of each node is left for reading
                most = config.cpu.max * max(1, config.cpu.cpus - 1)
                tree["tokenizers"] = {"count": {"min": 1, "max": most}, "labels": labels}
    elif machines is None:
        most = config.cpu.max * min(config.cpu.cpus, ACTORS_PER_NODE)
        tree["actors"] = {"count": {"min": 1, "max": most}, "labels": labels}
    # no block is finished while the first nodes are still on their way
    tree["limits"] = {"no_progress": max(600.0, config.jobs.startup)}
    if machines is None:
        tree["ray"] = {"node_wait": config.jobs.startup}
    ScoreJob.model_validate(tree)
    return tree


def train_job(config: ClusterConfig, *, machines: int | None = None) -> dict[str, Any] | None:
    """The training job as a mapping; None where there is no shared folder for its model.

    Args:
        config: The cluster.
        machines: As for `score_job`.

    Raises:
        ConfigError: If the job file is wrong.
        NotSeenError: If it names what other nodes do not see.
    """
    if config.jobs.train is not None:
        job = load_job(TrainJob, config.jobs.train)
        paths = {"output": job.output}
        if job.checkpoints.path is not None:
            paths["checkpoints.path"] = job.checkpoints.path
        if job.data.hierarchy is not None:
            paths["data.hierarchy"] = job.data.hierarchy
        for key in ("train", "validation"):
            given = getattr(job.data, key)
            listed = [given] if isinstance(given, str) else given
            paths |= {f"data.{key} {path}": path for path in listed}
        _check(config, "jobs.train", paths, {"encoder": job.encoder}, job.ray.address)
        if scheme_of(job.output) != "file":
            raise ConfigError(
                f"jobs.train: output {job.output}: a model is written to a folder: choose one "
                "below volume.mount"
            )
        return job.model_dump(mode="json", exclude_unset=True) | {"kind": "train"}
    if config.volume is None:
        return None
    root, mount = config.storage.root, config.volume.mount
    tree: dict[str, Any] = {
        "kind": "train",
        "data": {
            "train": f"{root}/examples/train.parquet",
            "validation": f"{root}/examples/validation.parquet",
        },
        "output": f"{mount}/models/classifier",
    }
    nodes = machines or (config.gpu.max if config.gpu else config.cpu.max)
    most = nodes * (config.gpu.count if config.gpu else 1)
    tree["workers"] = {"count": {"min": 1, "max": most}, "gpus": 1 if config.gpu else 0}
    node = config.gpu or config.cpu
    if machines is None and node.spot:
        tree["checkpoints"] = {"every_steps": SPOT_STEPS}
    if machines is None:
        tree["ray"] = {"node_wait": config.jobs.startup}
    TrainJob.model_validate(tree)
    return tree


def _check(
    config: ClusterConfig,
    where: str,
    paths: dict[str, str],
    models: dict[str, str],
    address: str | None,
) -> None:
    """Refuse what works on one machine only."""
    if address is not None:
        raise ConfigError(f"{where}: ray.address is set: leave it out, the cluster has its own")
    # `distilbert/distilbert-base-uncased` is a name of the hub
    local = {key: path for key, path in models.items() if path.startswith((".", "/", "~"))}
    mount = config.volume.mount if config.volume else None
    for key, path in (paths | local).items():
        if scheme_of(path) == "file" and not is_below(path.removeprefix("file://"), mount):
            raise NotSeenError(
                f"{where}: {key}: {path} is a local path, which other nodes do not see: "
                + (f"put it below {mount}, or into a bucket" if mount else "put it into a bucket")
            )
