"""The same job on a cluster: submitted, attached to, followed, stopped, by the Ray Jobs API.

Only the resolved job file travels. What runs on the cluster is the `ray-mlc` that is installed
there, with the same command as on a laptop; where the work stands is recorded beside the output,
so that an attempt that failed, was stopped, or went down with its cluster is resumed by the next.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ray_mlc.errors import (
    ConfigError,
    InterruptedRunError,
    JobFailedError,
    RayMlcError,
    first_line,
)
from ray_mlc.runtime.job_client import (
    AlreadySubmittedError,
    JobClient,
    UnknownJobError,
    check_ray_version,
)
from ray_mlc.runtime.job_ids import (
    JOB_FILE,
    PASSED,
    Attempt,
    Job,
    Plan,
    check_stop_wait,
    command_of,
    entrypoint,
    find_attempt,
    metadata_of,
    outputs_of,
    plan_submit,
    resources_of,
    run_id,
    with_absolute_paths,
)

STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by the process of Ray that supervises the job, whose environment is the job's."""
START_WAIT_S = 60.0
"""Longest time for which a submit waits to see its job begin."""
TRIES = 5
"""Submits at one moment that may win before this one, each with another attempt."""
UNSHIPPED = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.pyc", ".*_cache")
"""What `--working-dir` leaves out, besides what the folder's `.gitignore` names."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Submitted:
    """What a submit came to."""

    plan: Plan
    run: str
    """Id of the run."""
    attempt: Attempt
    """As the cluster had it last."""


def submit(
    job: Job,
    client: JobClient,
    *,
    add_new: bool = False,
    again: bool = False,
    working_dir: Path | None = None,
    say: Say,
) -> Submitted:
    """Submit a job, or attach to the attempt that is under way.

    Args:
        job: As it was read here.
        client: Of the cluster.
        add_new: A night: score what has arrived since, then verify. Begins an attempt of today's
            run even if one has succeeded.
        again: Begin another attempt although the last one has succeeded; evaluations always do.
        working_dir: Folder that travels with the job file.
        say: Told what a user should know.

    Raises:
        ConfigError: If the job contradicts itself.
        LeaseError: If another job writes to the same output.
        RayMlcError: If the cluster refuses.
    """
    if add_new and job.kind != "score":
        raise ConfigError(f"--add-new is for kind: score, this job's is {job.kind}")
    stop_wait_s, resources = check_stop_wait(job), resources_of(job)
    outputs_of(job)  # refused before the cluster is asked
    # what it measures may have been trained again under the same path
    again = again or add_new or job.kind == "evaluate"
    job, notes = with_absolute_paths(job, base=Path.cwd(), shipped=working_dir)
    if note := check_ray_version(client):
        notes.append(note)
    night = datetime.date.today() if add_new else None  # as its people count days
    run = run_id(job, night=night)
    with _shipped(job, working_dir) as folder:
        for tries in range(TRIES):
            plan = plan_submit(job, run, client.attempts(), again=again)
            if plan.action != "submitted":
                break
            for note in notes:
                say(f"note: {note}")
            notes = []  # once
            try:
                client.submit(
                    plan.id,
                    entrypoint(command_of(job, add_new=add_new)),
                    folder=folder,
                    metadata=metadata_of(job, run, plan.number, stop_wait_s=stop_wait_s),
                    environment={STOP_WAIT_VARIABLE: str(stop_wait_s)},
                    resources=resources,
                    say=say,
                )
                break
            except AlreadySubmittedError:
                if tries == TRIES - 1:
                    raise
    return Submitted(plan, run, client.attempt(plan.id))


@contextmanager
def _shipped(job: Job, working_dir: Path | None) -> Iterator[Path]:
    """A folder with the resolved job file, and what the user adds."""
    with tempfile.TemporaryDirectory(prefix="ray-mlc-") as scratch:
        folder = Path(scratch) / "job"
        if working_dir is None:
            folder.mkdir()
        elif not working_dir.is_dir():
            raise ConfigError(f"--working-dir {working_dir}: there is no such folder")
        elif (working_dir / JOB_FILE).exists():
            raise ConfigError(f"--working-dir {working_dir}: holds {JOB_FILE}, a name of ours")
        else:
            try:
                shutil.copytree(working_dir, folder, ignore=UNSHIPPED)
            except OSError as error:
                # of several files shutil says more than it raises
                told = error.args[0][0][2] if isinstance(error, shutil.Error) else first_line(error)
                raise ConfigError(
                    f"--working-dir {working_dir}: cannot be copied ({told})"
                ) from None
        (folder / JOB_FILE).write_text(shipped_text(job), encoding="utf-8")
        yield folder


def shipped_text(job: Job) -> str:
    """The job file that travels: what was said, no address.

    Defaults stay unsaid, because what a job leaves open the model folder may say.
    """
    tree = {"kind": job.kind, **job.model_dump(mode="json", exclude_unset=True)}
    for owner in (tree, tree.get("train", {})):
        if isinstance(ray := owner.get("ray"), dict):
            ray.pop("address", None)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def wait_until_begun(client: JobClient, submitted: Submitted) -> Attempt:
    """Wait until the cluster's ray-mlc has been found to be this one and begins; how it is then.

    It may have failed by then, as with another version: see `check`.
    """

    def begun(attempt: Attempt) -> bool:
        return attempt.over or (
            attempt.status == "RUNNING" and PASSED in f"\n{client.log(attempt.id)}"
        )

    return client.wait(submitted.plan.id, begun, timeout_s=START_WAIT_S)


def follow(client: JobClient, id: str, write: Say) -> Attempt:
    """Pass on what a job prints until it has ended; how it has: see `check`.

    Raises:
        InterruptedRunError: On Ctrl-C or SIGTERM; the job goes on.
        RayMlcError: If the cluster was started anew meanwhile.
    """
    try:
        return client.follow(id, write)
    except UnknownJobError:
        raise RayMlcError(
            f"{client.address}: does not know {id} any more, as a cluster that was started anew: "
            "submit the job again, it goes on"
        ) from None
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"detached; {id} goes on: watch it with `ray-mlc jobs logs {id} --follow`, end it with "
            f"`ray-mlc jobs stop {id}`"
        ) from None


def check(attempt: Attempt) -> None:
    """Say why an attempt that is over has not succeeded.

    Raises:
        JobFailedError: With the exit code of the command on the cluster.
    """
    if not attempt.over or attempt.status == "SUCCEEDED":
        return
    if attempt.status == "STOPPED":
        again = "begin anew" if attempt.kind == "evaluate" else "continue"
        raise JobFailedError(
            f"{attempt.id} was stopped: submit the job again to {again}", attempt.result
        )
    raise JobFailedError(
        f"{attempt.id} failed{_with_code(attempt)}: {reason(attempt)}", attempt.result
    )


def _with_code(attempt: Attempt) -> str:
    code = attempt.exit_code
    if code is None:
        return ""
    return f" (killed by signal {-code})" if code < 0 else f" with exit code {code}"


def reason(attempt: Attempt) -> str:
    """Why an attempt has failed, in one line: what our command says, else what Ray says."""
    lines = [line.strip() for line in attempt.message.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    if own:
        return own[-1].removeprefix("error: ")
    return lines[-1] if lines else "see its log"


def stop(client: JobClient, attempt: Attempt, *, wait: bool, say: Say) -> Attempt:
    """Stop a job with grace: what is in flight is finished, the next attempt resumes.

    Args:
        client: Of the cluster.
        attempt: What to stop.
        wait: Whether to wait until it has ended.
        say: Told what happens.
    """
    if attempt.over:
        say(f"{attempt.id} is {attempt.status} already")
        return attempt
    client.stop(attempt.id)
    if not wait:
        return client.attempt(attempt.id)
    grace = attempt.stop_wait_s or 3.0  # Ray's own
    finished = "what is in flight is finished (limits.grace); " if attempt.kind == "score" else ""
    say(f"stopping {attempt.id}: {finished}what has not ended after {grace:.0f} s is killed by Ray")
    found = client.wait(attempt.id, lambda now: now.over, timeout_s=grace + 60)
    if not found.over:
        say(f"{attempt.id} is still {found.status}: look again with `ray-mlc jobs status`")
    return found


def find(client: JobClient, name: str) -> Attempt:
    """The attempt that a user means; see `find_attempt`."""
    return find_attempt(name, client.attempts(), base=Path.cwd())


def listed(client: JobClient, *, everything: bool = False) -> list[Attempt]:
    """Our submissions, the latest first; with `everything` those of others too."""
    found = [item for item in client.attempts() if everything or item.kind]
    return sorted(found, key=lambda item: (item.started_s, item.number), reverse=True)


def as_dict(attempt: Attempt) -> dict[str, Any]:
    """For `--json`."""

    def at(seconds: float | None) -> str | None:
        if not seconds:
            return None
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")

    return {
        "id": attempt.id,
        "run": attempt.run,
        "attempt": attempt.number or None,
        "kind": attempt.kind or None,
        "output": attempt.outputs[0] if attempt.outputs else None,
        "outputs": attempt.outputs,
        "status": attempt.status,
        "exit_code": attempt.result if attempt.over else None,
        "started": at(attempt.started_s),
        "ended": at(attempt.ended_s),
        "reason": reason(attempt) if attempt.status == "FAILED" else None,
    }
