"""`ray-mlc config`: job files, their schema and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_mlc.cli.options import Set, print_json
from ray_mlc.errors import ConfigError


def schema(
    kind: Annotated[str, typer.Argument(help="score, train, tune or cluster.")],
) -> None:
    """JSON schema of a job or cluster file, for editors."""
    print_json(_kind(kind).model_json_schema())


def render(job: Annotated[Path, typer.Argument(help="YAML job file.")], set_: Set = None) -> None:
    """The job with every default filled in."""
    from ray_mlc.config import dump_job, kind_of, load_job

    kind = _kind(kind_of(job))
    typer.echo(dump_job(load_job(kind, job, overrides=set_ or ())), nl=False)


def _kind(kind: str) -> Any:
    from ray_mlc.cluster.config import ClusterConfig
    from ray_mlc.config import ScoreJob, TrainJob, TuneJob

    kinds = {"score": ScoreJob, "train": TrainJob, "tune": TuneJob, "cluster": ClusterConfig}
    if kind not in kinds:
        raise ConfigError(f"kind is {kind!r}, expected score, train, tune or cluster")
    return kinds[kind]
