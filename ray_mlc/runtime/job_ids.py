"""What a submitted job is called, which attempt comes next, and which job a name means.

A run is what a job file asks for: its kind, its output and everything that its result depends on,
in a digest. Submitting it again is another attempt of the same run, and resumes it:

    score-3f2a9c1b04d7-1                 first attempt
    score-3f2a9c1b04d7-20261124-2        second attempt of the night that was submitted on that day

Ray takes a submission id once and for good, so that of two submits at one moment one wins; the
other is told, looks again, and attaches. Nothing here talks to a cluster.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ray_mlc import __version__
from ray_mlc.config import EvaluateJob, ManyScoreJob, ScoreJob, TrainJob, TuneJob
from ray_mlc.errors import ConfigError, LeaseError, UsageError
from ray_mlc.job_files import kind_of, load_job, load_score_job
from ray_mlc.storage import scheme_of

Job = ScoreJob | ManyScoreJob | TrainJob | TuneJob | EvaluateJob
KINDS: dict[str, type[ScoreJob | TrainJob | TuneJob | EvaluateJob]] = {
    "score": ScoreJob,
    "train": TrainJob,
    "tune": TuneJob,
    "evaluate": EvaluateJob,
}
"""Jobs that can be submitted, by kind; that of `ManyScoreJob` is `score` too."""
JOB_FILE = "ray_mlc_job.yaml"
"""Name under which a resolved job travels."""
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
"""States that a job of Ray does not leave."""

_HOW = {
    "score": (
        *("ray", "lease", "actors", "tokenizers", "report"),
        *("limits.no_progress", "limits.grace", "limits.stop_at"),
    ),
    "train": ("ray", "workers", "tracking", "checkpoints"),
    "tune": ("concurrent", "train.ray", "train.workers", "train.tracking", "train.checkpoints"),
    "evaluate": ("ray", "cpus", "gpus"),
}
"""Keys that say how the work is done, not what comes out: a run may be resumed with others."""
_INPUTS: dict[str, tuple[str, ...]] = {
    "score": ("model", "model.*", "input.path", "decision", "decision.*"),
    "train": ("data.train", "data.validation", "data.hierarchy", "encoder"),
    "evaluate": ("model", "examples", "decision"),
}
_OUTPUTS: dict[str, tuple[str, ...]] = {
    "score": ("output.path", "output.*.path"),
    "train": ("output", "checkpoints.path"),
    "evaluate": ("output",),
}
_INPUTS["tune"] = tuple(f"train.{key}" for key in _INPUTS["train"])
_OUTPUTS["tune"] = tuple(f"train.{key}" for key in _OUTPUTS["train"])
_HUB = ("model", "model.*", "encoder", "train.encoder")
"""Keys that may name a model of the Hugging Face hub, which looks like a relative path."""


def is_submitted() -> bool:
    """Whether this process is the command of a job that was submitted to a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # Ray sets it for those


def read_job(path: Path, *, overrides: Sequence[str] = ()) -> Job:
    """A job of any of these kinds.

    Raises:
        ConfigError: One line, if it is none, or a key or value of it is wrong.
    """
    if (kind := kind_of(path)) not in KINDS:
        raise ConfigError(f"{path}: kind is {kind!r}, expected {', '.join(KINDS)}")
    if kind == "score":
        return load_score_job(path, overrides=overrides)
    return load_job(KINDS[kind], path, overrides=overrides)


def run_id(job: Job, *, night: datetime.date | None = None) -> str:
    """What the attempts of a run have in common.

    Args:
        job: With absolute paths, so that it means the same wherever it was submitted.
        night: The day on which a night is submitted; None: the job is submitted once, not nightly.
    """
    # without defaults: a key that a later version adds makes no other run of a job under way
    tree = job.model_dump(mode="json", exclude_defaults=True)
    for key in _HOW[job.kind]:
        _drop(tree, key.split("."))
    for key in _OUTPUTS[job.kind]:
        _change(tree, key.split("."), lambda path: path.rstrip("/") or path)
    if isinstance(job, ScoreJob | ManyScoreJob) and job.long is not None:
        # what it does not say, the model folder does: a default is not the same as silence
        tree["long"] = job.long.model_dump(mode="json", exclude_unset=True)
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
    return f"{job.kind}-{digest}" + ("" if night is None else f"-{night:%Y%m%d}")


def _drop(tree: dict[str, Any], path: Sequence[str]) -> None:
    if len(path) == 1:
        tree.pop(path[0], None)
    elif isinstance(section := tree.get(path[0]), dict):
        _drop(section, path[1:])
        if not section:
            del tree[path[0]]


def outputs_of(job: Job) -> list[str]:
    """Where a job's results go; a slash at the end says nothing.

    Raises:
        ConfigError: If an evaluation does not say: a model folder may be one that it cannot write.
    """
    match job:
        case ScoreJob():
            outputs = [job.output.path]
        case ManyScoreJob():
            outputs = [output.path for output in job.output.values()]
        case TrainJob():
            outputs = [job.output]
        case TuneJob():
            outputs = [job.train.output]
        case EvaluateJob(output=None):
            raise ConfigError("output is missing: a submitted evaluation says where its JSON goes")
        case EvaluateJob(output=str(output)):
            outputs = [output]
    return [output.rstrip("/") or output for output in outputs]


def ray_of(job: Job) -> Any:
    """A job's `ray` section."""
    return job.train.ray if isinstance(job, TuneJob) else job.ray


def with_absolute_paths(
    job: Job, *, base: Path, shipped: Path | None = None
) -> tuple[Job, list[str]]:
    """The job with paths that mean the same in another folder and on another machine.

    Args:
        job: As it was read.
        base: Folder that its relative paths are meant from.
        shipped: Folder that travels with the job: what is in it keeps its relative path.

    Returns:
        The job, and a sentence for each path that was made absolute.
    """
    tree = job.model_dump(mode="json", exclude_unset=True)
    notes: list[str] = []

    def absolute(key: str, path: str) -> str:
        plain = path.removeprefix("file://")
        if scheme_of(path) != "file" or Path(plain).is_absolute():
            return path
        is_output = key in _OUTPUTS[job.kind]
        if not is_output and shipped is not None and (shipped / plain).exists():
            return path
        if key in _HUB and not _looks_local(plain, base):
            return path
        full = os.path.normpath(base / Path(plain).expanduser())
        shown = key.replace(".*", "")  # the path says whose it is
        notes.append(f"{shown} {path} is {full} on the cluster: every node must see it there")
        return full

    for key in (*_INPUTS[job.kind], *_OUTPUTS[job.kind]):
        _change(tree, key.split("."), partial(absolute, key))
    if isinstance(job, TuneJob):
        for key in _INPUTS["train"]:
            space = tree["search"].get(key)
            if isinstance(space, list):
                tree["search"][key] = [
                    absolute(f"train.{key}", value) if isinstance(value, str) else value
                    for value in space
                ]
    return type(job).model_validate({"kind": job.kind, **tree}), notes


def _looks_local(path: str, base: Path) -> bool:
    """Whether a model's name is a folder rather than a hub id, by the rule of `fetch`."""
    return path.startswith((".", "~")) or path.count("/") > 1 or (base / path).is_dir()


def _change(tree: dict[str, Any], path: Sequence[str], change: Callable[[str], str]) -> None:
    """Replace the text, or each of the texts, at a dotted key, if it is there; `*` is any key."""
    if path[0] == "*":
        for key in tree:
            _change(tree, [key, *path[1:]], change)
        return
    value = tree.get(path[0])
    if len(path) > 1:
        if isinstance(value, dict):
            _change(value, path[1:], change)
    elif isinstance(value, str):
        tree[path[0]] = change(value)
    elif isinstance(value, list):
        tree[path[0]] = [change(item) for item in value]


@dataclass(frozen=True)
class Attempt:
    """One submission, as a cluster knows it."""

    id: str
    """Submission id."""
    run: str
    """Id of its run; of a job that is none of ours, the submission id."""
    job: str
    """Run id without the date of a night."""
    number: int
    """1 for the first attempt."""
    kind: str
    """`score`, `train`, `tune`, `evaluate`; empty where it is none of ours."""
    output: str
    """Where its result goes; of several models a line each."""
    status: str
    """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`."""
    started_s: float = 0.0
    """Seconds since 1970."""
    ended_s: float | None = None
    """The same; None while it has not ended."""
    exit_code: int | None = None
    """Of the command on the cluster; None while it runs, and where Ray has none."""
    message: str = ""
    """What Ray says about its end."""
    stop_wait_s: float = 0.0
    """Time that it has to stop."""

    @property
    def outputs(self) -> list[str]:
        """Where its results go."""
        return self.output.splitlines()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    @property
    def result(self) -> int:
        """Exit code that a command which waited for it ends with.

        Ray kills what does not stop in time, and then has no exit code or a negative one.
        """
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        code = self.exit_code
        return code if code is not None and 0 < code < 256 else 1


def metadata_of(job: Job, run: str, number: int, *, stop_wait_s: int) -> dict[str, str]:
    """What a submission is found again by; it is shown to everybody who may see the dashboard."""
    return {
        "ray_mlc": __version__,
        "ray_mlc.run": run,
        "ray_mlc.job": run_id(job),
        "ray_mlc.attempt": str(number),
        "ray_mlc.kind": job.kind,
        "ray_mlc.output": "\n".join(outputs_of(job)),
        "ray_mlc.stop_wait": str(stop_wait_s),
    }


@dataclass(frozen=True)
class Plan:
    """What a submit comes to."""

    action: Literal["submitted", "attached", "succeeded"]
    """`submitted`: a new attempt; `attached`: one is under way; `succeeded`: nothing is left."""
    id: str
    """Submission id of that attempt."""
    number: int
    """Its number."""


def plan_submit(job: Job, run: str, attempts: Iterable[Attempt], *, again: bool = False) -> Plan:
    """Attach to the attempt that is under way, or begin the next one.

    Args:
        job: What is submitted.
        run: Its run id; with a date for a night.
        attempts: What the cluster knows.
        again: Begin another attempt although the last one has succeeded.

    Raises:
        LeaseError: If a job of another kind or content is writing to the same output.
    """
    attempts, name = list(attempts), run_id(job)
    live = [item for item in attempts if not item.over]
    is_night = run != name
    # a night that began the day before will do, as two could not write at one time anyway; a job
    # that is none will not: it takes no new files in, and proves nothing
    same = [item for item in live if item.job == name and (not is_night or item.run != item.job)]
    if same:
        latest = max(same, key=lambda item: item.started_s)
        return Plan("attached", latest.id, latest.number)
    mine_too = set(outputs_of(job))
    if other := next((item for item in live if mine_too.intersection(item.outputs)), None):
        shared = next(output for output in other.outputs if output in mine_too)
        which = "is no night" if other.job == name else "is from another job file"
        raise LeaseError(
            f"{other.id} is {other.status}, writes to {shared}, and {which}: wait for it, or "
            f"end it with `ray-mlc jobs stop {other.id}`"
        )
    mine = [item for item in attempts if item.run == run]
    last = max(mine, key=lambda item: item.number, default=None)
    if last is None:
        return Plan("submitted", f"{run}-1", 1)
    if last.status == "SUCCEEDED" and not again:
        return Plan("succeeded", last.id, last.number)
    return Plan("submitted", f"{run}-{last.number + 1}", last.number + 1)


def find_attempt(name: str, attempts: Iterable[Attempt], *, base: Path) -> Attempt:
    """The attempt that a user means: of several of one job the latest.

    Args:
        name: Submission id, run id, the beginning of one, or the output that it writes to.
        attempts: What the cluster knows.
        base: Folder that a relative output path is meant from.

    Raises:
        UsageError: If there is none, or it could be one of several jobs.
    """
    attempts = sorted(attempts, key=lambda item: (item.started_s, item.number))
    for item in attempts:
        if item.id == name:
            return item
    outputs = {name.rstrip("/"), os.path.normpath(base / name)}
    writers = [
        item for item in attempts if outputs.intersection(path.rstrip("/") for path in item.outputs)
    ]
    if writers:
        return writers[-1]
    found = [item for item in attempts if name in (item.run, item.job)]
    found = found or [item for item in attempts if name and item.id.startswith(name)]
    if len({item.job for item in found}) > 1:
        shown = ", ".join(list(dict.fromkeys(item.run for item in found))[:5])
        raise UsageError(f"{name} could be {shown}: give more of its name")
    if not found:
        raise UsageError(
            f"{name}: the cluster knows no such job, run or output: see `ray-mlc jobs list`"
        )
    return found[-1]


def check_stop_wait(job: Job) -> int:
    """Seconds that `jobs stop` will give a job; whole ones, because Ray reads no others.

    Raises:
        ConfigError: If what is in flight would be killed before its grace is over.
    """
    wait_s: float = ray_of(job).job_stop_wait
    if isinstance(job, ScoreJob | ManyScoreJob) and wait_s <= job.limits.grace:
        raise ConfigError(
            f"ray.job_stop_wait is {wait_s:g} s, expected more than limits.grace "
            f"({job.limits.grace:g} s): Ray would kill the job before what is in flight is finished"
        )
    return math.ceil(wait_s)


def command_of(job: Job, *, add_new: bool = False) -> str:
    """What a submitted job runs on the cluster, after `ray-mlc`."""
    if job.kind == "evaluate":
        return f"evaluate {JOB_FILE}"  # one process that asks for no Ray
    return f"{'nightly' if add_new else job.kind} {JOB_FILE} --address auto"


def resources_of(job: Job) -> dict[str, float]:
    """What a submitted job's own process takes of the cluster, by `submit_job`'s names.

    Where a job begins a run on Ray, its process is only the driver, and Ray starts it on the head.

    Raises:
        ConfigError: If an evaluation wants CUDA, and no GPU for it.
    """
    if not isinstance(job, EvaluateJob):
        return {}
    if job.device == "cuda" and not job.gpus:
        raise ConfigError("device is cuda, and gpus is 0: ask the cluster for a GPU with gpus: 1")
    gpus = {"entrypoint_num_gpus": job.gpus} if job.gpus else {}
    return {"entrypoint_num_cpus": job.cpus, **gpus}


def entrypoint(command: str) -> str:
    """The shell line that runs on the cluster: versions compared first, then nothing but `command`.

    `exec` leaves no shell between Ray and the command, which so gets its signals and gives its exit
    code. Nothing is pickled between here and there, so that Python and Ray may differ; a job file
    is read by the version that wrote it.
    """
    ours = f"ray-mlc {__version__}"
    has = "the cluster has ${have:-no ray-mlc in the PATH of its Ray processes}"
    refusal = f"{has}, the job was submitted by {ours}: install the same version on every node"
    return (
        'have="$(ray-mlc --version 2>/dev/null)"; '
        f'if [ "$have" != "{ours}" ]; then echo "error: {refusal}" >&2; exit 2; fi; '
        f'echo "$have"; exec ray-mlc {command}'
    )


PASSED = f"\nray-mlc {__version__}\n"
"""What the log holds from when on the versions have been found to be the same."""
