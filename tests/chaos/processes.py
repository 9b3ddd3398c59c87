"""The command under test as a process tree of its own, which can be stopped, killed and searched.

Every process of a trial carries the trial's folder in its environment, Ray's too: so they are found
after their parent has been killed, and no other process of this machine is ever touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FAULTS = Path(__file__).parent / "faults"
POLL_S = 0.01
CLEAN = {"TERM": "dumb", "NO_COLOR": "1"}


class TrialError(Exception):
    """A trial did not come to an end as it must."""


@dataclass
class Command:
    """A started command."""

    process: subprocess.Popen[bytes]
    """The command itself, leader of a session of its own."""
    stderr_path: Path
    """Where it talks."""
    started_s: float
    """When it was started, by the monotonic clock."""

    @property
    def stderr(self) -> str:
        """What it said so far."""
        return self.stderr_path.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def error_line(self) -> str:
        """The last line that names an error; empty if there is none."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return lines[-1] if lines else ""

    def wait(self, timeout_s: float) -> int:
        """Its exit code.

        Raises:
            TrialError: If it does not end in time.
        """
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TrialError(f"a command did not end within {timeout_s:.0f} s") from None


def environment(told: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: our faults, and a Ray of its own."""
    paths = [str(FAULTS), os.environ.get("PYTHONPATH", "")]
    result = {
        **os.environ,
        **CLEAN,
        "RAY_AUTH_MODE": "disabled",  # no token files in a home folder
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "RAY_MLC_CHAOS": json.dumps(dict(told)),
        **extra,
    }
    result.pop("RAY_ADDRESS", None)
    return result


def start(words: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> Command:
    """Start a command in a session of its own."""
    with stderr.open("wb") as talk:
        process = subprocess.Popen(
            list(words),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=talk,
            start_new_session=True,
            # Ray puts the working folder into its workers' path
            cwd=stderr.parent,
        )
    return Command(process, stderr, time.monotonic())


def start_cluster(*, env: Mapping[str, str], stderr: Path) -> tuple[Command, dict[str, Any]]:
    """Start a three-node Ray (see `cluster.py`); the command, and what it says about itself."""
    with stderr.open("wb") as talk:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "cluster.py")],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            start_new_session=True,
        )
    command = Command(process, stderr, time.monotonic())
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"{"):
            return command, json.loads(line)
    raise TrialError("the cluster did not start")


def processes_with(mark: str) -> list[psutil.Process]:
    """Living processes whose environment holds `mark` in `RAY_MLC_CHAOS`."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.environ().get("RAY_MLC_CHAOS", "") and (
                process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def titled(processes: Sequence[psutil.Process], word: str) -> list[psutil.Process]:
    """Those whose title holds `word`: Ray names its workers after what they do."""
    found = []
    for process in processes:
        try:
            if any(word in part for part in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def names_of(processes: Sequence[psutil.Process]) -> list[str]:
    """Short names, for the record."""
    names = []
    for process in processes:
        try:
            words = process.cmdline()
            names.append(" ".join(Path(word).name for word in words[:3])[:60])
        except psutil.Error:
            continue
    return names


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL exactly these."""
    for process in processes:
        try:
            process.send_signal(signal.SIGCONT)
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(list(processes), timeout=10)


def wait_until(condition: Callable[[], bool], *, timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Poll; False if it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True
