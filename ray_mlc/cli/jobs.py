"""`ray-mlc config`: job files and what they come to; `ray-mlc jobs`: job files on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_mlc.cli.options import Json, Quiet, Set, print_json
from ray_mlc.errors import ConfigError

if TYPE_CHECKING:
    from ray_mlc.config import Section
    from ray_mlc.runtime.job_client import JobClient

Cluster = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Cluster: http://HEAD:8265, https://…, HEAD:6379 or auto; default: RAY_ADDRESS.",
        show_default=False,
    ),
]
Verify = Annotated[
    str | None,
    typer.Option(
        help="Of an https address: a file of certificates to trust, or false; default: "
        "REQUESTS_CA_BUNDLE, else the system's.",
        show_default=False,
    ),
]
Name = Annotated[
    str, typer.Argument(help="Submission id, its beginning, run id, or the output of a job.")
]


def schema(
    kind: Annotated[str, typer.Argument(help="score, train, tune, evaluate or cluster.")],
) -> None:
    """JSON schema of a job or cluster file, for editors."""
    from ray_mlc.job_files import schema_of

    print_json(schema_of(_kind(kind)))


def render(job: Annotated[Path, typer.Argument(help="YAML job file.")], set_: Set = None) -> None:
    """The job with every default filled in."""
    from ray_mlc.job_files import dump_job, kind_of, load_job
    from ray_mlc.runtime.job_ids import KINDS, read_job

    spec: Section
    if (kind := kind_of(job)) in KINDS:
        spec = read_job(job, overrides=set_ or ())
    else:
        spec = load_job(_kind(kind), job, overrides=set_ or ())
    typer.echo(dump_job(spec), nl=False)


def _kind(kind: str) -> type[Section]:
    from ray_mlc.cluster.config import ClusterConfig
    from ray_mlc.runtime.job_ids import KINDS

    kinds: dict[str, type[Section]] = {**KINDS, "cluster": ClusterConfig}
    if kind not in kinds:
        *most, last = kinds
        raise ConfigError(f"kind is {kind!r}, expected {', '.join(most)} or {last}")
    return kinds[kind]


def submit(
    job: Annotated[Path, typer.Argument(help="YAML job file.")],
    set_: Set = None,
    address: Cluster = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what the job prints, to its end.")
    ] = False,
    add_new: Annotated[
        bool,
        typer.Option("--add-new", help="As a night: score new input files too, then verify."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Another attempt, also if the last one succeeded.")
    ] = False,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that travels with the job file.", show_default=False),
    ] = None,
    verify: Verify = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a job on a cluster, or attach to it; submit again to continue what did not succeed.

    With --follow the exit code is the job's; Ctrl-C detaches (130), and the job goes on.
    """
    from ray_mlc.runtime import jobs
    from ray_mlc.runtime.job_client import JobClient, choose_address
    from ray_mlc.runtime.job_ids import ray_of, read_job
    from ray_mlc.runtime.progress import Display

    say = Display(quiet=quiet).say
    spec = read_job(job, overrides=set_ or ())
    client = JobClient(choose_address(address, ray_of(spec).address), verify=verify)
    done = jobs.submit(spec, client, add_new=add_new, again=again, working_dir=working_dir, say=say)
    attempt = done.attempt
    if done.plan.action == "succeeded":
        files = "; --add-new scores what has arrived since" if spec.kind == "score" else ""
        say(f"{attempt.id} has SUCCEEDED already: --again submits it once more{files}")
    else:
        attached = "attached to" if done.plan.action == "attached" else "submitted"
        say(f"{attached} {attempt.id}")
    try:
        if done.plan.action != "succeeded" and follow:
            attempt = jobs.follow(client, attempt.id, _write_to_stderr)
        elif done.plan.action == "submitted":
            attempt = jobs.wait_until_begun(client, done)
            if not attempt.over:
                say(
                    f"{attempt.id} is {attempt.status}: watch it with `ray-mlc jobs logs "
                    f"{attempt.id} --follow`, end it with `ray-mlc jobs stop {attempt.id}`"
                )
    finally:
        if json:
            print_json({"action": done.plan.action, **jobs.as_dict(attempt)})
        else:
            typer.echo(attempt.id)
    jobs.check(attempt)


def list_(
    address: Cluster = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also jobs that ray-mlc did not submit.")
    ] = False,
    verify: Verify = None,
    json: Json = False,
) -> None:
    """Jobs that a cluster remembers, the latest first."""
    from ray_mlc.cli.run_tables import print_jobs
    from ray_mlc.runtime import jobs

    found = [
        jobs.as_dict(item) for item in jobs.listed(_client(address, verify), everything=everything)
    ]
    if json:
        print_json(found)
    else:
        print_jobs(found)


def status(name: Name, address: Cluster = None, verify: Verify = None, json: Json = False) -> None:
    """How a job is doing, and why it ended."""
    from ray_mlc.cli.run_tables import print_jobs
    from ray_mlc.runtime import jobs

    found = jobs.as_dict(jobs.find(_client(address, verify), name))
    if json:
        print_json(found)
        return
    print_jobs([found])
    if found["reason"]:
        typer.echo(f"failed: {found['reason']}")
    if found["kind"] == "score":
        for output in found["outputs"]:
            typer.echo(f"rows so far: ray-mlc status {output}")


def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; the exit code is its own.")
    ] = False,
    address: Cluster = None,
    verify: Verify = None,
    json: Json = False,
) -> None:
    """What a job has printed; --follow attaches to it."""
    from ray_mlc.runtime import jobs

    if json and follow:
        raise ConfigError("--json has no meaning with --follow: a log has no end yet")
    client = _client(address, verify)
    attempt = jobs.find(client, name)
    if follow:
        jobs.check(jobs.follow(client, attempt.id, lambda text: typer.echo(text, nl=False)))
    elif json:
        print_json({**jobs.as_dict(attempt), "log": client.log(attempt.id)})
    else:
        typer.echo(client.log(attempt.id), nl=False)


def stop(
    name: Name,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until it has ended.")
    ] = False,
    address: Cluster = None,
    verify: Verify = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Stop a job: what is in flight is finished; submit it again to continue."""
    from ray_mlc.runtime import jobs
    from ray_mlc.runtime.progress import Display

    client = _client(address, verify)
    attempt = jobs.find(client, name)
    attempt = jobs.stop(client, attempt, wait=not no_wait, say=Display(quiet=quiet).say)
    if json:
        print_json(jobs.as_dict(attempt))
    else:
        typer.echo(f"{attempt.id}: {attempt.status}")


def _client(address: str | None, verify: str | None) -> JobClient:
    from ray_mlc.runtime.job_client import JobClient, choose_address

    return JobClient(choose_address(address), verify=verify)


def _write_to_stderr(text: str) -> None:
    typer.echo(text, nl=False, err=True)
