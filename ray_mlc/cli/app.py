"""The table of commands: what each is called, and where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ray_mlc.cli import cluster, data, jobs, models, outputs, runs

app = typer.Typer(
    name="ray-mlc",
    help="Fine-tune encoders for multi-label text classification, and tag corpora of any size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make, look at and split examples.", no_args_is_help=True)
config_app = typer.Typer(help="Job files: their schema, and what they come to.")
jobs_app = typer.Typer(
    help="The same jobs on a cluster, by the Ray Jobs API.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
app.add_typer(jobs_app, name="jobs")
app.add_typer(config_app, name="config")
cluster_app = typer.Typer(help="Clusters that jobs run on.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


def _version(shown: bool) -> None:
    if shown:
        from ray_mlc import __version__

        typer.echo(f"ray-mlc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def _add(group: typer.Typer, *commands: Callable[..., None]) -> None:
    """Commands by the names of their functions, in the order in which `--help` lists them."""
    for command in commands:
        group.command()(command)


_add(app, runs.demo, models.train, models.tune, models.baseline, models.evaluate)
_add(app, models.thresholds, models.quantize, models.predict, models.export)
_add(app, runs.plan, runs.score, runs.nightly, runs.status, runs.verify, runs.report)
_add(app, outputs.retag, outputs.compare, runs.doctor)
_add(data_app, data.convert, data.explore, data.split)
_add(config_app, jobs.schema, jobs.render)
_add(jobs_app, jobs.submit)
jobs_app.command("list")(jobs.list_)
_add(jobs_app, jobs.status, jobs.logs, jobs.stop)
_add(cluster_app, cluster.render)
