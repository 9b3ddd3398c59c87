"""What every node of a cluster sees: the same versions, the same folders.

A path without a scheme means another folder on each machine unless it is mounted from one place.
Ray would not mind: parts would lie scattered over the nodes. So nodes are asked before a run.
"""

from __future__ import annotations

import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray

from ray_mlc.errors import RayMlcError, ResourceError, StorageError, first_line
from ray_mlc.scoring.identity import versions
from ray_mlc.storage import LocalStorage, local_path, open_storage

ANSWER_S = 120.0
"""Longest time that a node may take: it starts a process, and imports Arrow."""
SCRATCH = "_ray_mlc"
"""Folder below an output for what probes write, as for all that is not a part."""
BUSY_S = 30.0
"""Longest time that a GPU may take: one that others hold all of does not answer."""
ROLL_S = 2.0
"""Seconds between two looks at which nodes there are."""
Answer = TypeVar("Answer")


class SilentNodeError(RayMlcError):
    """A node did not answer in time."""


@dataclass(frozen=True)
class NodeFacts:
    """What one node says about itself."""

    versions: Mapping[str, str]
    """Packages that scores depend on, and Python's minor version."""
    gpus_present: int
    """GPUs that NVIDIA's driver has there."""
    cuda: str
    """Name of the device that PyTorch finds where Ray counts GPUs, or why it finds none."""
    cuda_works: bool
    """Whether it finds one, or there are none to find."""
    gpus: float
    """GPUs that Ray counts there."""
    cpus: float
    """CPUs that Ray counts there."""


def node_names(nodes: Sequence[Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Living nodes of the connected cluster: id, and a name for people with some of it.

    Args:
        nodes: What Ray says of them; None: it is asked now.
    """
    names = {}
    for node in ray.nodes() if nodes is None else nodes:
        if node["Alive"]:
            head = " (head)" if "node:__internal_head__" in node["Resources"] else ""
            names[node["NodeID"]] = f"{node['NodeManagerHostname']} {node['NodeID'][:6]}{head}"
    return names


def beside_driver(cls: Any, *args: Any, **options: Any) -> Any:
    """An actor of this class on the driver's node, so that it is not lost with another one.

    Args:
        cls: The actor's class.
        args: What it is made of.
        options: How Ray runs it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # not soft: Ray 2.60 then puts an actor that asks for no CPU on any node
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here, **options)(cls).remote(*args)


class Roll:
    """Knows which nodes there are, and tells which have come and gone since it last did."""

    def __init__(self) -> None:
        """Call the roll for the first time."""
        self._names = node_names()

    def changes(self) -> list[str]:
        """A sentence for each node that has come or gone; none on most calls."""
        before, self._names = self._names, node_names()
        left = f"{len(self._names)} node(s) now"
        gone = [name for id, name in before.items() if id not in self._names]
        come = [name for id, name in self._names.items() if id not in before]
        return [
            *(f"node {name} is gone: {left}; what it was doing is done again" for name in gone),
            *(f"node {name} has joined: {left}" for name in come),
        ]


@contextmanager
def telling_changes(say: Callable[[str], None]) -> Iterator[None]:
    """Say which nodes come and go while the block runs.

    Ray does without a lost node, and so a run goes on. But whoever reads its log should know.
    """
    roll, over = Roll(), threading.Event()

    def tell() -> None:
        with suppress(Exception):  # to name nodes is not what a run is for
            for change in roll.changes():
                say(change)

    def watch() -> None:
        while not over.wait(ROLL_S):
            tell()

    thread = threading.Thread(target=watch, name="roll", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)
        tell()  # what has happened since


def on_every_node(
    function: Callable[[], Answer],
    *,
    names: Mapping[str, str] | None = None,
    gpus: float = 0.0,
    timeout_s: float = ANSWER_S,
) -> dict[str, Answer | RayMlcError]:
    """Call a function once on each node, all at a time.

    Args:
        function: What to call.
        names: Nodes by id; None: all that live.
        gpus: Share of a GPU that it needs.
        timeout_s: Longest time that an answer may take.

    Returns:
        For each node by name what the function returned, or why it did not.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = node_names() if names is None else names
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(function)
    asked = {
        name: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)
        ).remote()
        for id, name in names.items()
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    found: dict[str, Answer | RayMlcError] = {}
    for name, reference in asked.items():
        try:
            found[name] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            found[name] = SilentNodeError(f"did not answer within {timeout_s:.0f} s")
        except ray.exceptions.RayTaskError as error:
            found[name] = RayMlcError(first_line(error.cause or error))
        except ray.exceptions.RayError as error:
            found[name] = RayMlcError(f"{type(error).__name__}: {first_line(error)}")
    return found


def node_facts() -> dict[str, NodeFacts | RayMlcError]:
    """What each node of the connected cluster is made of."""
    ids = node_names(nodes := ray.nodes())  # of one moment: nodes come and go
    of_ray = {ids[node["NodeID"]]: node["Resources"] for node in nodes if node["Alive"]}
    with_gpus = {id: name for id, name in ids.items() if of_ray[name].get("GPU")}
    answers = on_every_node(_look_around, names=ids)
    devices: dict[str, str | RayMlcError] = {}
    if with_gpus:
        devices = on_every_node(_cuda, names=with_gpus, gpus=0.01, timeout_s=BUSY_S)
    found: dict[str, NodeFacts | RayMlcError] = {}
    for name, answer in answers.items():
        if isinstance(answer, RayMlcError):
            found[name] = answer
            continue
        known, present = answer
        device, counted = devices.get(name, ""), of_ray[name]
        if isinstance(device, SilentNodeError):
            device = "a GPU in use, not tried,"
        found[name] = NodeFacts(
            versions=known,
            gpus_present=present,
            cuda=str(device),
            cuda_works=not isinstance(device, RayMlcError),
            gpus=counted.get("GPU", 0.0),
            cpus=counted.get("CPU", 0.0),
        )
    return found


def _look_around() -> tuple[dict[str, str], int]:
    python = ".".join(platform.python_version_tuple()[:2])
    devices = Path("/proc/driver/nvidia/gpus")
    present = len(list(devices.iterdir())) if devices.is_dir() else 0
    return {"python": python, **versions()}, present


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RayMlcError(f"torch {torch.__version__} finds no CUDA device")
    return str(torch.cuda.get_device_name(0))


def write_from_every_node(output: str) -> dict[str, RayMlcError | None]:
    """Let each node write a file into an output, and each other see it; they are removed again.

    Returns:
        For each node by name what is wrong, or None.

    Raises:
        StorageError: If not even this process can write there.
    """
    name = f"{SCRATCH}/probe-{uuid.uuid4().hex}"
    storage = open_storage(output)
    try:
        storage.put(f"{name}-driver", b"driver")

        def probe() -> bool:
            there = open_storage(output)
            seen = there.read(f"{name}-driver") == b"driver"
            own = f"{name}-{ray.get_runtime_context().get_node_id()}"
            there.put(own, b"node")
            if not seen:
                there.delete(own)  # nobody else would find it
            return seen

        names = node_names()
        answers = on_every_node(probe, names=names)
        ids = {name: id for id, name in names.items()}
        wrong: dict[str, RayMlcError | None] = {}
        for node, answer in answers.items():
            if isinstance(answer, RayMlcError):
                wrong[node] = answer
            elif not answer:
                wrong[node] = RayMlcError("does not see what other nodes write there")
            elif storage.read(f"{name}-{ids[node]}") != b"node":
                wrong[node] = RayMlcError("writes there what other nodes do not see")
            else:
                wrong[node] = None
        return wrong
    finally:
        with suppress(StorageError):  # what failed before says more
            for info in list(storage.list(SCRATCH)):
                if info.path.startswith(name):
                    storage.delete(info.path)
            _remove_scratch(storage)


def _remove_scratch(storage: Any) -> None:
    """Leave a local folder as it was: without folders that only probes were in."""
    if isinstance(storage, LocalStorage):
        root = local_path(storage.uri)
        assert root is not None
        for folder in (root / SCRATCH / "tmp", root / SCRATCH, root):
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def refuse_unshared(inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Refuse local paths that mean something else on other nodes of the connected cluster.

    Args:
        inputs: Keys of the job and paths that every node reads.
        outputs: Keys and folders that every node writes to.

    Raises:
        ResourceError: Naming key, path and node. On a cluster of one node nothing is refused.
    """
    if len(node_names()) < 2:
        return
    paths = {key: path for key, path in inputs.items() if local_path(path) is not None}

    def missing() -> list[str]:
        return [key for key, path in paths.items() if not exists(path)]

    if paths:
        here = set(missing())  # a hub id, or what is refused with its own words
        for node, answer in _still_living(on_every_node(missing)):
            if isinstance(answer, RayMlcError):
                raise RayMlcError(f"node {node}: {answer}")
            for key in answer:
                if key not in here:
                    raise ResourceError(_advice(key, paths[key], f"node {node} has no such path"))
    for key, path in outputs.items():
        if local_path(path) is None:
            continue
        for node, wrong in _still_living(write_from_every_node(path)):
            if wrong is not None:
                raise ResourceError(_advice(key, path, f"node {node} {wrong}"))


def _still_living(answers: Mapping[str, Answer]) -> list[tuple[str, Answer]]:
    """Without nodes that went away meanwhile: a run survives that, and so does this."""
    names = set(node_names().values())
    return [(name, answer) for name, answer in answers.items() if name in names]


def _advice(key: str, path: str, finding: str) -> str:
    return (
        f"{key} {path} is a local path, and {finding}: name a folder on storage that all nodes "
        "mount at one place, or s3://, gs://, az://"
    )


def exists(path: str) -> bool:
    """Whether a local path, or the folder that a glob begins in, is there."""
    local = local_path(path)
    assert local is not None
    parts = Path(local).parts
    first = next((i for i, part in enumerate(parts) if any(mark in part for mark in "*?[")), None)
    return os.path.exists(Path(*parts[:first]))  # noqa: PTH110 - an error is an answer too
