"""Batch scripts for Slurm: a constant body (`slurm.sh`) under a head of checked settings."""

from __future__ import annotations

import math
import shlex
from importlib import resources
from typing import Any

from ray_mlc.cluster.config import ClusterConfig
from ray_mlc.cluster.jobs import NO_TRAINING, score_job, train_job
from ray_mlc.cluster.rendered import Rendered


def render_slurm(config: ClusterConfig) -> Rendered:
    """One script for each job, and the job beside it.

    Raises:
        ConfigError: If a job file is wrong.
    """
    nodes = config.slurm.nodes
    score, train = score_job(config, machines=nodes), train_job(config, machines=nodes)
    files: dict[str, list[dict[str, Any]] | str] = {
        "score.sbatch": _script(config, "score"),
        "score.yaml": [score],
    }
    if train is None:
        return Rendered(files, {"train.sbatch": NO_TRAINING})
    files |= {"train.sbatch": _script(config, "train"), "train.yaml": [train]}
    return Rendered(files)


def _script(config: ClusterConfig, command: str) -> str:
    slurm, node = config.slurm, config.gpu or config.cpu
    options = {
        "job-name": f"{config.name}-{command}",
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": node.cpus,
        "mem": f"{math.ceil(node.memory / 2**20)}M",
        **({"gpus-per-node": config.gpu.count} if config.gpu else {}),
        "time": _clock(slurm.time),
        **({"partition": slurm.partition} if slurm.partition else {}),
        **({"account": slurm.account} if slurm.account else {}),
        # to this script alone, which stops the work and leaves the nodes up meanwhile
        "signal": f"B:TERM@{math.ceil(slurm.stop_before)}",
        "output": "%x-%j.log",
        "open-mode": "append",
    }
    variables = {
        "NAME": command,
        "ACTIVATE": slurm.activate or "",
        "SCRATCH": slurm.scratch,
        "STARTUP": math.ceil(config.jobs.startup),
        "RESTARTS": slurm.restarts,
    }
    if config.storage.endpoint is not None:
        variables["AWS_ENDPOINT_URL"] = config.storage.endpoint
    if config.storage.region is not None:
        variables["AWS_REGION"] = config.storage.region
    exported = {key for key in variables if key.startswith("AWS_")}
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in options.items()),
        "#SBATCH --requeue",
        "#SBATCH --no-kill",
        "",
        *(
            f"{'export ' if key in exported else ''}{key}={shlex.quote(str(value))}"
            for key, value in variables.items()
        ),
        "",
        (resources.files("ray_mlc.cluster") / "slurm.sh").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def _clock(duration: float) -> str:
    """A time limit as Slurm reads it: `8:00:00`, days before a dash."""
    minutes, seconds = divmod(math.ceil(duration), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:{seconds:02}"
