"""Faults in the processes of a run, without a hook in the package.

Python imports a module of this name by itself when it starts; `PYTHONPATH` brings this one into the
command and into every process of its Ray. It reads `RAY_MLC_CHAOS` (JSON) and replaces a few
functions of the standard library by ones that do the same until it is time to fail:

    output      folder of the run: nothing outside it is touched
    log         a line is appended to it for each part that came to be: time, process, path
    row_s       seconds that a document takes longer in the forward pass
    commit_s    seconds that the rename of a part takes longer
    fault       null, or {kind, parts, marker, …}: once `parts` parts have been committed,
                  before_rename, after_rename, before_success, before_run, before_night
                              SIGKILL to the process
                  disk_full   ENOSPC until the file `freed` is there
                  clock       the wall clock of the command moves by `shift_s`

The file `marker` is created exclusively: a kill happens once, however many processes there are.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

MODEL_MODULE = "ray_mlc.model.engines.torch_engine"


class Faults:
    """What this process has been told to do."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.output = os.path.abspath(told["output"])  # noqa: PTH100 - pathlib is not loaded yet
        self.log = told["log"]
        self.row_s, self.commit_s = told["row_s"], told["commit_s"]
        self.fault = told["fault"] or {"kind": "none"}
        self.kind = self.fault["kind"]

    def below(self, path: Any) -> str | None:
        """The path relative to the output; None if it is elsewhere."""
        text = os.path.abspath(os.fspath(path))  # noqa: PTH100
        if not isinstance(text, str) or not text.startswith(self.output + "/"):
            return None
        return text[len(self.output) + 1 :]

    def due(self) -> bool:
        """Whether enough parts have been committed."""
        try:
            with io.open(self.log, "rb") as file:  # noqa: UP020 - `open` may be ours
                committed = file.read().count(b"\n")
        except FileNotFoundError:
            committed = 0
        return bool(committed >= self.fault["parts"])

    def strike(self) -> None:
        """End this process, unless another one was first."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.fault["marker"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, path: str) -> None:
        """Write a commit down; short appends of several processes do not mix."""
        line = f"{time.monotonic():.3f} {os.getpid()} {path}\n"
        descriptor = os.open(self.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, line.encode())
        os.close(descriptor)


def is_part(path: str) -> bool:
    """Whether a path below the output is one of a part."""
    return path.endswith(".parquet") and not path.startswith("_ray_mlc/")


def patch_commits(faults: Faults) -> None:
    """Renames and links into the output."""

    def wrap(real: Callable[..., None]) -> Callable[..., None]:
        def commit(source: Any, target: Any, **options: Any) -> None:
            path = faults.below(target)
            part = path is not None and is_part(path)
            if part:
                time.sleep(faults.commit_s / 2)
            if path is not None:
                hit = (
                    (faults.kind == "before_rename" and part)
                    or (faults.kind == "before_success" and path == "_SUCCESS")
                    or (faults.kind == "before_run" and path == "_ray_mlc/run.json")
                    or (faults.kind == "before_night" and path.endswith("/night.json"))
                )
                if hit and faults.due():
                    faults.strike()
            real(source, target, **options)
            if part and path is not None:
                # after the rename, before anybody is told: the receipt is lost
                if faults.kind == "after_rename" and faults.due():
                    faults.note(path)
                    faults.strike()
                else:
                    faults.note(path)
                time.sleep(faults.commit_s / 2)

        return commit

    os.replace = wrap(os.replace)
    os.rename = wrap(os.rename)
    os.link = wrap(os.link)


def patch_fsync(faults: Faults) -> None:
    """A disk that is full from some part on: half of the bytes are there, then ENOSPC."""
    real = os.fsync

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        name = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        path = faults.below(name)
        full = path is not None and faults.due() and not os.path.exists(faults.fault["freed"])  # noqa: PTH110
        if full and not os.path.isdir(name):  # noqa: PTH112
            with contextlib.suppress(FileExistsError):
                os.close(os.open(faults.fault["marker"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.ftruncate(number, os.fstat(number).st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    os.fsync = fsync  # type: ignore[assignment]


def patch_clock(faults: Faults) -> None:
    """A wall clock that jumps while the command is at work; the monotonic one does not.

    The start of the machine, from which start times of processes are counted, jumps with it: that
    is what Linux does when the clock is set.
    """
    real, real_ns, real_open = time.time, time.time_ns, builtins.open
    shifted = False

    def shift() -> float:
        nonlocal shifted
        if not shifted and faults.due():
            shifted = True
            with contextlib.suppress(FileExistsError):
                os.close(os.open(faults.fault["marker"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return float(faults.fault["shift_s"]) if shifted else 0.0

    def moved(line: bytes) -> bytes:
        name, _, number = line.partition(b" ")
        return b"btime %d\n" % (int(number) + shift()) if name == b"btime" else line

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        stream = real_open(file, mode, *args, **options)
        if file != "/proc/stat" or mode != "rb":
            return stream
        with stream:
            return io.BytesIO(b"".join(map(moved, stream)))

    time.time = lambda: real() + shift()
    time.time_ns = lambda: real_ns() + int(shift() * 1e9)
    builtins.open = opened


class SlowModel:
    """Finds the engine's module as ever, and makes its forward pass slower."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        del path, target
        if name != MODEL_MODULE:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            logits = module.TorchEngine.logits

            def slow(engine: Any, ids: Any) -> Any:
                time.sleep(self.row_s * len(ids))
                return logits(engine, ids)

            module.TorchEngine.logits = slow

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install(told: dict[str, Any]) -> None:
    """Put the faults in place."""
    faults = Faults(told)
    patch_commits(faults)
    if faults.kind == "disk_full":
        patch_fsync(faults)
    if faults.kind == "clock" and any(word.endswith("/ray-mlc") for word in sys.orig_argv[:2]):
        patch_clock(faults)
    if faults.row_s:
        sys.meta_path.insert(0, SlowModel(faults.row_s))


if told := os.environ.get("RAY_MLC_CHAOS"):
    install(json.loads(told))
