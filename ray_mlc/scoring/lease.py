"""The lease: it keeps two commands from doing the same work.

Correctness never rests on it: two writers give their parts the same names and the same content.
Without a lease they would pay twice, and each would wonder about the other's progress.

`OUT/_ray_mlc/lease.json` names the owner and holds a counter that the owner raises every few
seconds. No clock is compared with another machine's, nor may setting it matter: a newcomer watches
the counter by its own monotonic clock. An owner that is a dead process of this host is replaced at
once. Writers look at the lease before each commit and stop when it is not theirs any more.
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

from ray_mlc.errors import LeaseError, ResourceError, StorageError
from ray_mlc.storage import Storage

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
    pid_namespace: str
    """Containers of one host may share its name, but not its pids."""
    pid: int
    started: float
    """Start time of the process, see `_start_time`: a pid alone is used again."""
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
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    @property
    def is_dead(self) -> bool:
        """Whether it is certain that the process is gone: it was one of this host."""
        here = (socket.gethostname(), _boot_id(), _pid_namespace())
        if (self.host, self.boot_id, self.pid_namespace) != here:
            return False
        try:
            return _start_time(self.pid) != self.started
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
        self._lost: LeaseError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What the lease file names while it is ours."""
        return self._owner.token

    def check(self) -> None:
        """Stop a run that lost its lease.

        Raises:
            LeaseError: Naming the new owner, if there still is one.
        """
        if self._lost is not None:
            raise self._lost

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
                found = self._storage.read(LEASE_FILE)
                owner = None if found is None else _decode(found)
                if found is None or owner is None or owner.token != self._owner.token:
                    # gone: who took it over may have finished while this process stood still
                    self._lost = _lost(self._storage, owner)
                    return
                raised = replace(self._owner, counter=self._owner.counter + 1)
                if self._storage.update(LEASE_FILE, raised.to_bytes(), expected=found):
                    self._owner = raised


def check_holder(storage: Storage, token: str) -> None:
    """Refuse to commit under a lease that is gone: for writers in other processes.

    Raises:
        LeaseError: If the lease is another's, or was released.
    """
    owner = read_owner(storage)
    if owner is None or owner.token != token:
        raise _lost(storage, owner)


def _lost(storage: Storage, owner: Owner | None) -> LeaseError:
    if owner is None:
        return LeaseError(
            f"{storage.uri}: the lease is gone, as after another run took it over and finished: "
            "this run stops; run the same command again to see what is left"
        )
    return LeaseError(f"{storage.uri}: the lease was taken over by {owner}: this run stops")


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
        ResourceError: If the store overwrites where it is told to create only.
    """
    owner = Owner.this_process()
    while not storage.create(LEASE_FILE, owner.to_bytes()):
        data = storage.read(LEASE_FILE)
        if data is None:
            continue  # released in between
        found = _decode(data)
        if not (take_over or found.is_dead):
            silent = _wait_until_silent(storage, data, expiry_s, say)
            if silent is None:
                continue
            data = silent
        if _replace(storage, owner, data):
            break
    else:
        # of two creators at least one must learn that it was not the first; with other content,
        # or a store that failed in between would take it for the first one's, repeated
        if storage.create(LEASE_FILE, replace(owner, token="probe").to_bytes()):
            storage.delete(LEASE_FILE)
            raise ResourceError(
                f"{storage.uri}: the store ignores conditional writes, so two runs would not see "
                "each other: make sure that only one runs, and give --no-lease"
            )
    lease = Lease(storage, owner, heartbeat_s=heartbeat_s)
    try:
        yield lease
    finally:
        lease.release()


def read_owner(storage: Storage) -> Owner | None:
    """Who holds the lease; None if nobody."""
    data = storage.read(LEASE_FILE)
    return None if data is None else _decode(data)


def _decode(data: bytes) -> Owner:
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        # not written by us; treated as an owner that never raises its counter
        return Owner("", "an unknown host", "", "", 0, 0.0, "an unknown time")


def _wait_until_silent(
    storage: Storage, data: bytes, expiry_s: float, say: Callable[[str], None]
) -> bytes | None:
    """The lease file's content when it has stood still for `expiry_s`; None if it is gone.

    Raises:
        LeaseError: As soon as the counter moves.
    """
    found = _decode(data)
    say(f"the output is leased by {found}; waiting up to {expiry_s:.0f} s for a sign of life")
    deadline = time.monotonic() + expiry_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, expiry_s / 10))
        read = storage.read(LEASE_FILE)
        if read is None:
            return None
        now = _decode(read)
        if (now.token, now.counter) != (found.token, found.counter):
            raise LeaseError(
                f"{storage.uri}: another command is writing there: {now}: wait for it, stop it, "
                "or give --take-over"
            )
        if now.is_dead:
            break
    return data


def _replace(storage: Storage, owner: Owner, data: bytes) -> bool:
    """Put ourselves in the place of `data`'s owner; False if another newcomer was faster."""
    if not storage.update(LEASE_FILE, owner.to_bytes(), expected=data):
        return False
    # where reading, comparing and writing are not one step, look whether somebody came in between
    time.sleep(SETTLE_S * (1 + random.random()))
    found = read_owner(storage)
    return found is not None and found.token == owner.token


def _start_time(pid: int) -> float:
    """When a process started, on a scale that does not move when the clock is set.

    Raises:
        psutil.NoSuchProcess: If there is none.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # the name may hold spaces and brackets; field 22 is in clock ticks since the host started
        state, ticks = stat.rpartition(")")[2].split()[0], stat.rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        # no such process, or no /proc: psutil knows which
        return float(psutil.Process(pid).create_time())
    if state in "ZX":  # killed, but its parent has not asked for its exit code yet
        raise psutil.NoSuchProcess(pid)
    return float(ticks)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    except OSError:
        return ""
