"""What would fail tonight, found out now."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from ray_mlc.errors import RayMlcError, StorageError
from ray_mlc.runtime.session import usable_cores
from ray_mlc.storage import local_path, open_storage

MIN_FREE_MEMORY = 4 * 2**30
MIN_FREE_DISK = 2 * 2**30
MIN_SHARED_MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    state: str
    """`ok`, `warning` or `fails`."""
    finding: str
    """What was found, and what to do about it."""


def run_checks(
    *, output: str | None = None, model: str | None = None, address: str | None = None
) -> Iterator[Check]:
    """Look at everything a run needs; each check stands alone.

    Args:
        output: Folder to try to write to.
        model: Model to load and check.
        address: Ray cluster, whose nodes are looked at too; None: as the commands choose.
    """
    yield _python()
    yield from _packages()
    yield _cores()
    yield _memory()
    yield _shared_memory()
    yield _accelerator()
    if address or os.environ.get("RAY_ADDRESS"):
        from ray_mlc.runtime.cluster_checks import check_cluster

        yield from check_cluster(address, output)
    else:
        yield _guarded("ray", _ray)
    if output is not None:
        yield _guarded("output", lambda: _output(output))
    if model is not None:
        yield _guarded("model", lambda: _model(model))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except RayMlcError as error:
        return Check(name, "fails", str(error))


def _python() -> Check:
    found = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check("python", "ok" if good else "fails", found if good else f"{found}: use 3.11-3.13")


def _packages() -> Iterator[Check]:
    import re

    from packaging.requirements import Requirement

    try:
        needs = importlib.metadata.requires("ray-mlc") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("ray-mlc", "warning", "runs from a folder, not installed: versions unchecked")
        return
    for need in needs:
        requirement = Requirement(need)
        if requirement.marker is not None:
            continue  # an extra
        if not re.fullmatch(r"ray|torch|transformers|pyarrow", requirement.name):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, "fails", f"missing: pip install '{need}'")
            continue
        good = requirement.specifier.contains(found.split("+")[0], prereleases=True)
        finding = found if good else f"{found}: pip install '{need}'"
        yield Check(requirement.name, "ok" if good else "fails", finding)


def _cores() -> Check:
    return Check("cores", "ok", f"{usable_cores()} usable of {os.cpu_count()}")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    finding = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    if memory.available >= MIN_FREE_MEMORY:
        return Check("memory", "ok", finding)
    advice = "end what else runs here, or set actors.count=1 and a smaller units.rows"
    return Check("memory", "warning", f"{finding}: {advice}")


def _shared_memory() -> Check:
    if not os.path.isdir("/dev/shm"):  # noqa: PTH112 - a mount point, not a path of ours
        return Check("/dev/shm", "warning", "absent: Ray keeps its objects on disk, slowly")
    free = shutil.disk_usage("/dev/shm").free
    good = free >= MIN_SHARED_MEMORY
    advice = "" if good else ": in a container, start it with --shm-size=4g or more"
    return Check("/dev/shm", "ok" if good else "warning", f"{free / 2**30:.1f} GiB free{advice}")


def _accelerator() -> Check:
    import torch

    from ray_mlc.model.engines.torch_engine import cpu_has_bfloat16

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("accelerator", "ok", f"{len(names)} × {names[0]}, CUDA {torch.version.cuda}")
    bf16 = "with" if cpu_has_bfloat16() else "without"
    return Check("accelerator", "ok", f"no GPU; CPU {bf16} bfloat16 in hardware")


def _ray() -> Check:
    from ray_mlc.runtime.ray_private import check_version
    from ray_mlc.runtime.session import cluster_nodes, ray_session

    check_version()
    started = time.monotonic()
    with ray_session() as ray:
        nodes = cluster_nodes()
        ray.get(ray.remote(num_cpus=0.1)(lambda: None).remote(), timeout=120)
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        seconds = time.monotonic() - started
    return Check(
        "ray",
        "ok",
        f"a Ray of our own: {cpus:g} CPUs, {gpus:g} GPUs; a task ran after {seconds:.1f} s",
    )


def _output(output: str) -> Check:
    """Try what a run rests on: whole replacement, exclusive creation, conditional update."""
    storage = open_storage(output)
    name = f"_ray_mlc/doctor-{uuid.uuid4().hex}"

    def fails(what: str) -> Check:
        return Check("output", "fails", f"{output}: {what}")

    try:
        with ThreadPoolExecutor(max_workers=8) as pool:
            created = list(pool.map(lambda n: storage.create(name, b"%d" % n), range(8)))
        if sum(created) != 1:
            return fails(
                f"{sum(created)} of 8 exclusive creations of one file succeeded, expected 1: two "
                "runs would not see each other; make sure that only one runs, and give --no-lease"
            )
        storage.put(name, b"doctor")
        if storage.read(name) != b"doctor":
            return fails("what was replaced reads back differently")
        if storage.update(name, b"again", expected=b"other"):
            return fails("a conditional update overwrites what it should not")
        if not storage.update(name, b"again", expected=b"doctor"):
            return fails("a conditional update is refused although nothing has changed")
        if name not in {info.path for info in storage.list("_ray_mlc")}:
            return Check(
                "output",
                "warning",
                f"{output}: listings lag behind writes: what a killed run had just written is "
                "scored again; mount it without caching of listings, if it can be",
            )
    finally:
        with suppress(StorageError):  # what failed before says more
            storage.delete(name)
    proven = "replaces whole files, creates exclusively"
    path = local_path(output)
    if path is None:
        return Check("output", "ok", f"{output}: writable, {proven}")
    free = shutil.disk_usage(path).free
    finding = f"{output}: writable, {proven}, {free / 2**30:.1f} GiB free"
    if free >= MIN_FREE_DISK:
        return Check("output", "ok", finding)
    advice = "`ray-mlc plan` says what a run writes; make room, or name another disk"
    return Check("output", "warning", f"{finding}: {advice}")


def _model(model: str) -> Check:
    from ray_mlc.model.folder import open_model
    from ray_mlc.runtime.evaluate import load_here

    folder = open_model(model)
    started = time.monotonic()
    classifier = load_here(folder, dtype="auto", device="auto")
    engine = classifier.engine
    return Check(
        "model",
        "ok",
        f"{model}: {len(folder.label_set)} labels; {engine.dtype} on {engine.device} reproduces "
        f"the canaries; loaded in {time.monotonic() - started:.1f} s",
    )
