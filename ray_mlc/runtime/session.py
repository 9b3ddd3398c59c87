"""Start or join a Ray, and end what was started.

A command joins a cluster only when it is told to (`--address` or `RAY_ADDRESS`); otherwise it
starts a Ray of its own that ends with it. `ray.init()` alone might join somebody's.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ray_mlc.errors import RayMlcError, ResourceError, first_line

IDLE_WORKERS = 4
"""Idle processes that a Ray of ours keeps for reading and writing, besides one per core."""
JOB_SCHEMES = ("http://", "https://")
"""Addresses of dashboards, which take jobs."""
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray.air")


@dataclass(frozen=True)
class NodeResources:
    """What one node has for tasks and actors."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


def set_environment(*, quiet: bool = True) -> None:
    """Tell Ray what it reads from the environment, some of it when it is imported.

    Called by commands, not at import: whoever imports this keeps their environment.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ctrl-C is ours, and a search has progress, a table and curves of its own; the new output of
    # Ray Tune prints to stdout whatever its verbosity
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Ray ends workers that are idle for a second as soon as there are more than cores. Actors hold
    # all cores here, so that every short read and write would pay for a new Python process.
    os.environ.setdefault("RAY_num_workers_soft_limit", str((os.cpu_count() or 1) + IDLE_WORKERS))
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "300000")
    if quiet:
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # Ray's C++ side writes to the terminal past every logger
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextmanager
def ray_session(
    address: str | None = None, *, num_cpus: int | None = None, quiet: bool = True
) -> Iterator[Any]:
    """A Ray for the block: joined if an address is known, else started and ended here.

    Args:
        address: Address of a cluster; None: `RAY_ADDRESS`, else a Ray of our own.
        num_cpus: Logical CPUs of a Ray of our own; None: those of the machine.
        quiet: Keep Ray's own talk off the terminal.

    Yields:
        The `ray` module, connected.

    Raises:
        ResourceError: If the cluster does not answer, or the address is one for jobs.
        RayMlcError: If a Ray of our own does not start.
    """
    address = _address(address)
    set_environment(quiet=quiet)
    if address and address.startswith(JOB_SCHEMES):
        raise ResourceError(
            f"{address} takes jobs (`ray-mlc jobs submit`), no other commands: those run on a "
            "node of the cluster, with --address auto"
        )
    import ray

    if ray.is_initialized():
        yield ray
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    level = logging.ERROR if quiet else logging.INFO
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": not quiet}
    try:
        with stderr_closed() if quiet else nullcontext():
            if address:
                with _address_of_the_environment_apart():
                    ray.init(address=address, **options)
            else:
                with _groups_of_their_own():
                    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)
    except Exception as error:  # Ray raises bare ones, such as for a node that starts too slowly
        line = first_line(error)
        if address:
            raise ResourceError(
                f"the Ray cluster at {address} does not answer: {line}{_about_tokens()}"
            ) from None
        # such as one that takes longer than Ray's half a minute, on a busy machine
        raise RayMlcError(
            f"a local Ray did not start: {line}: run the same command again"
        ) from None
    if threading.current_thread() is threading.main_thread():
        # Ray puts a handler of its own there, which ends the driver without a word
        signal.signal(signal.SIGTERM, on_sigterm)
    if quiet:
        _silence()
    try:
        yield ray
    finally:
        ray.shutdown()


def session_starts(address: str | None) -> str:
    """What `ray_session` does first, for the user to see."""
    joined = _address(address)
    return f"joining the Ray cluster at {joined}" if joined else "starting Ray"


def _address(asked: str | None) -> str | None:
    return asked or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def _address_of_the_environment_apart() -> Iterator[None]:
    """Keep a `RAY_ADDRESS` that is for jobs from Ray, which reads it for `auto`, and refuses it.

    Any other stays: by it `auto` finds the cluster that a job runs on, and not one beside it.
    """
    found = os.environ.get("RAY_ADDRESS")
    if found is None or not found.startswith(JOB_SCHEMES):
        yield
        return
    del os.environ["RAY_ADDRESS"]
    try:
        yield
    finally:
        os.environ["RAY_ADDRESS"] = found


def _about_tokens() -> str:
    """What to look at where a cluster does not let in: Ray says the same of one that is down."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return "; RAY_AUTH_MODE=token is set: is the token that of the cluster (~/.ray/auth_token)?"
    return "; if it asks for a token, set RAY_AUTH_MODE=token in this shell"


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Keep processes that are started in the block out of reach of signals to our process group.

    `timeout`, job schedulers and terminals signal whole groups. A raylet that ends on such a signal
    takes the driver along without a word, before that has finished what is in flight. What is
    started here still ends with us. Ray has no option for it, but starts all by `subprocess`.
    """
    start = subprocess.Popen.__init__

    def start_in_group(self: Any, *args: Any, **options: Any) -> None:
        if not options.get("start_new_session"):
            options.setdefault("process_group", 0)
        start(self, *args, **options)

    subprocess.Popen.__init__ = start_in_group  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]


@contextmanager
def stderr_closed() -> Iterator[None]:
    """Drop what C++ code writes to file descriptor 2; exceptions still say what failed."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _silence() -> None:
    """Keep Ray's loggers to errors; importing the libraries first, which set their levels."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # it logs what it then raises
    logging.getLogger("ray.data._internal").setLevel(logging.CRITICAL)


def usable_cores() -> int:
    """Cores of this machine that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cluster_nodes() -> list[NodeResources]:
    """What each living node of the connected cluster has."""
    import ray

    return [
        NodeResources(
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node.get("Labels", {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def carrying(nodes: Sequence[NodeResources], selector: Mapping[str, str]) -> list[NodeResources]:
    """Nodes whose labels a selector of Ray lets pass: all for an empty one.

    Args:
        nodes: Nodes.
        selector: What each label must be: `value`, `!value`, `in(value,value)`, `!in(value)`; a
            label that is not there is none of the values.
    """

    def passes(node: NodeResources, key: str, wanted: str) -> bool:
        values = wanted.removeprefix("!")
        if values.startswith("in("):
            values = values.removeprefix("in(").removesuffix(")")
        found = node.labels.get(key) in values.split(",")  # Ray 2.60 takes blanks as they are
        return found != wanted.startswith("!")

    return [
        node for node in nodes if all(passes(node, key, value) for key, value in selector.items())
    ]


def places(nodes: Sequence[NodeResources], cpus: float, gpus: float) -> int:
    """Processes of that size that the nodes can hold: none is spread over two nodes."""
    total = 0
    for node in nodes:
        fits = math.floor(node.cpus / cpus + 1e-6)
        total += min(fits, math.floor(node.gpus / gpus + 1e-6)) if gpus else fits
    return total


def free_resources() -> NodeResources:
    """What is not taken in the connected cluster."""
    import ray

    free = ray.available_resources()
    return NodeResources(free.get("CPU", 0.0), free.get("GPU", 0.0))
