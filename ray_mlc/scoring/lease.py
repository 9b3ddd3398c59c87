"""The lease: it keeps two commands from doing the same work.

Correctness never rests on it: two writers give their parts the same names and the same content.
Without a lease they would pay twice, and each would wonder about the other's progress.

`OUT/_ray_mlc/lease.json` names the owner and holds a counter that the owner raises every few
seconds. No clock is compared with another machine's: a newcomer watches the counter by its own
monotonic clock. An owner that is a dead process of this host is replaced at once.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ray_mlc.errors import LeaseError, StorageError
from ray_mlc.storage import Storage, join

LEASE_FILE = "_ray_mlc/lease.json"
HEARTBEAT_S = 5.0
"""Seconds between two raises of the counter."""
SETTLE_S = 0.2
"""Seconds after which a takeover looks whether another one came in between."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    token: str
    """Random, one per command."""
    host: str
    boot_id: str
    """Changes when the host starts again; empty where the system has none."""
    pid: int
    started: float
    """Start time of the process: a pid alone is used again."""
    since: str
    """When the lease was taken, for people."""
    counter: int = 0
    """Raised by the owner while it lives."""

    @classmethod
    def this_process(cls) -> Owner:
        """A new owner: this process."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    @property
    def is_dead(self) -> bool:
        """Whether it is certain that the process is gone: it was one of this host."""
        if self.host != socket.gethostname() or self.boot_id != _boot_id():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > 1.0)
        except psutil.NoSuchProcess:
            return True

    def to_bytes(self) -> bytes:
        """The lease file's content."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lease:
    """A lease that this process holds, kept alive by a thread."""

    def __init__(self, storage: Storage, owner: Owner, *, heartbeat_s: float) -> None:
        """Take note; `hold_lease` makes these."""
        self._storage, self._owner, self._heartbeat_s = storage, owner, heartbeat_s
        self._taken_by: Owner | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Stop a run that lost its lease.

        Raises:
            LeaseError: Naming the new owner.
        """
        if self._taken_by is not None:
            raise LeaseError(
                f"{self._storage.uri}: the lease was taken over by {self._taken_by}: this run stops"
            )

    def release(self) -> None:
        """Let others in at once."""
        self._stop.set()
        self._thread.join()
        with suppress(StorageError):
            if (read := read_owner(self._storage)) and read.token == self._owner.token:
                self._storage.delete(LEASE_FILE)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            # a store that does not answer for a while costs the lease only if somebody takes it
            with suppress(StorageError):
                found = read_owner(self._storage)
                if found is not None and found.token != self._owner.token:
                    self._taken_by = found
                    return
                self._owner = replace(self._owner, counter=self._owner.counter + 1)
                self._storage.put(LEASE_FILE, self._owner.to_bytes())


@contextmanager
def hold_lease(
    storage: Storage,
    *,
    expiry_s: float,
    take_over: bool = False,
    say: Callable[[str], None] = lambda _: None,
    heartbeat_s: float = HEARTBEAT_S,
) -> Iterator[Lease]:
    """Hold the lease of an output folder for the block.

    Args:
        storage: The output folder.
        expiry_s: An owner whose counter stands still for so long is replaced.
        take_over: Replace any owner at once.
        say: Told why it takes a while.
        heartbeat_s: Seconds between two raises of the counter.

    Raises:
        LeaseError: If another command is at work there.
    """
    owner = Owner.this_process()
    while not storage.create(LEASE_FILE, owner.to_bytes()):
        found = read_owner(storage)
        if found is None:
            continue  # released in between
        if not (take_over or found.is_dead):
            _wait_until_silent(storage, found, expiry_s, say)
        if _replace(storage, owner):
            break
    lease = Lease(storage, owner, heartbeat_s=heartbeat_s)
    try:
        yield lease
    finally:
        lease.release()


def read_owner(storage: Storage) -> Owner | None:
    """Who holds the lease; None if nobody, or nobody who can be told."""
    data = storage.read(LEASE_FILE)
    if data is None:
        return None
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        # not written by us; treated as an owner that never raises its counter
        return Owner("", "an unknown host", "", 0, 0.0, "an unknown time")


def _wait_until_silent(
    storage: Storage, found: Owner, expiry_s: float, say: Callable[[str], None]
) -> None:
    """Return when the counter has stood still for `expiry_s`, or the lease is free.

    Raises:
        LeaseError: As soon as the counter moves.
    """
    say(f"the output is leased by {found}; waiting up to {expiry_s:.0f} s for a sign of life")
    deadline = time.monotonic() + expiry_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, expiry_s / 10))
        now = read_owner(storage)
        if now is None:
            return
        if (now.token, now.counter) != (found.token, found.counter):
            raise LeaseError(
                f"{join(storage.uri)}: another command is writing there: {now}: wait for it, stop "
                "it, or give --take-over"
            )


def _replace(storage: Storage, owner: Owner) -> bool:
    """Put ourselves in; False if another newcomer did so after us."""
    storage.put(LEASE_FILE, owner.to_bytes())
    time.sleep(SETTLE_S * (1 + random.random()))
    found = read_owner(storage)
    return found is not None and found.token == owner.token


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
