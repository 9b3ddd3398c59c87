"""`ray-mlc cluster`: manifests and scripts for the clusters that jobs run on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_mlc.errors import ConfigError

GO_ON = {
    "kuberay": (
        "kubectl apply -f {folder}                  # the cluster, and its nightly job",
        "kubectl apply -f {folder}/jobs/score.yaml  # or once, on a cluster of its own",
    ),
    "ray-up": (
        "ray get-auth-token --generate && ray up {folder}/aws.yaml",
        "ray dashboard {folder}/aws.yaml  # and beside it: ray-mlc jobs submit "
        "{folder}/jobs/cloud-score.yaml --address http://127.0.0.1:8265 --follow",
    ),
    "slurm": (
        "cd {folder} && sbatch score.sbatch",
        "scancel --batch --signal=INT JOBID  # stops it cleanly; sbatch again continues",
    ),
}
"""What to do with the files, by kind."""


def render(
    kind: Annotated[str, typer.Argument(help="kuberay, ray-up or slurm.")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of the cluster (kind: cluster).", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any key of the cluster: section.key=value; `config schema cluster` has them all.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder to write to, or - for stdout; default cluster/KIND.", show_default=False
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="One of the files, such as aws.yaml.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there and differ.")
    ] = False,
) -> None:
    """Write manifests and scripts for a cluster, all from one typed config."""
    from ray_mlc.cluster.config import ClusterConfig
    from ray_mlc.cluster.render import placeholders, render, write_files
    from ray_mlc.job_files import load_job

    cluster = load_job(ClusterConfig, config, overrides=set_ or ())
    files, left_out = render(kind, cluster)
    if only is not None:
        if only not in files:
            why = left_out.get(only, f"expected one of {', '.join(files)}")
            raise ConfigError(f"--only {only}: {why}")
        files, left_out = {only: files[only]}, {}
    if output == "-":
        if len(files) > 1 and kind != "kuberay":
            raise ConfigError(
                f"--output - prints one file: add --only, such as {next(iter(files))}"
            )
        sys.stdout.write("---\n".join(files.values()))
    else:
        folder = Path(output or f"cluster/{kind}")
        for name, state in write_files(files, folder, overwrite=overwrite).items():
            typer.echo(f"{state} {folder / name}")
    for name, reason in left_out.items():
        typer.echo(f"left out {name}: {reason}", err=True)
    if unset := placeholders(kind, cluster):
        typer.echo(f"placeholders, to be set: {', '.join(unset)}", err=True)
    if output != "-":
        for line in GO_ON[kind]:
            typer.echo("  " + line.replace("{folder}", output or f"cluster/{kind}"), err=True)
