"""One Ray on this machine for all tests here, and a way to kill its processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """A Ray of four logical CPUs: starting it costs more than most tests that use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token files in a home folder
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
        patch.setenv("RAY_DEDUP_LOGS", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # 15 starves workers beside the other tests
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray_mlc.runtime.session import ray_session

        with ray_session(num_cpus=4) as ray:
            yield ray


@dataclass
class Killer:
    """Kills one process of this Ray, once, while the block runs."""

    killed: list[int] = field(default_factory=list)
    """Process ids that were killed."""
    seen: list[Any] = field(default_factory=list)
    """What `when` returned at that moment."""

    @contextmanager
    def kill(self, name: str, *, when: Callable[[], Any]) -> Iterator[None]:
        """Kill a process whose title holds `name` as soon as `when` returns something true."""
        done = threading.Event()

        def watch() -> None:
            while not done.is_set() and not self.killed:
                if found := when():
                    for process in ray_processes(name)[:1]:
                        self.seen.append(found)
                        os.kill(process.pid, signal.SIGKILL)
                        self.killed.append(process.pid)
                time.sleep(0.01)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10)


def ray_processes(name: str) -> list[psutil.Process]:
    """Processes below this one whose title holds `name`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in word for word in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def killer() -> Killer:
    """See `Killer`."""
    return Killer()
