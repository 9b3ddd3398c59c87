"""Machines on this machine: network namespaces on one bridge, each with an address of its own.

Nothing of it is seen from outside, and nothing stays: a namespace is held open by this process and
by those that run in it, and ends with the last of them, its interfaces with it. It takes root and
`ip`; where either is missing there is none, and all nodes are on the loopback interface.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

CLONE_NEWNET = 0x40000000
SUBNET = "10.83.0"
"""Only between the namespaces: it is routed nowhere."""
BRIDGE = "bridge"


@dataclass(frozen=True)
class Namespace:
    """A network of its own, with one address besides loopback."""

    handle: int
    """Descriptor that keeps it alive."""
    address: str

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread, and the processes that it starts, be in it for the block."""
        with _kept() as before:
            _call("setns", self.handle, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", before, CLONE_NEWNET)


@dataclass
class Network:
    """A bridge in a namespace, where commands run, and a namespace for each node."""

    hub: Namespace
    stack: ExitStack
    nodes: list[Namespace] = field(default_factory=list)

    def add(self) -> Namespace:
        """A new namespace, connected to the others."""
        number = len(self.nodes)
        node = Namespace(_new_namespace(self.stack), f"{SUBNET}.{10 + number}")
        plug = f"node{number}"
        with self.hub.entered():
            peer = f"/proc/self/fd/{node.handle}"
            _ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", keep=node.handle)
            _ip("link", "set", "eth0", "netns", peer, keep=node.handle)
            _ip("link", "set", plug, "master", BRIDGE, "up")
        _set_up(node, "eth0")
        self.nodes.append(node)
        return node


@contextmanager
def network() -> Iterator[Network | None]:
    """A network for the block; None where this process may not make one."""
    with ExitStack() as stack:
        try:
            hub = Namespace(_new_namespace(stack), f"{SUBNET}.1")
            with hub.entered():
                _ip("link", "add", BRIDGE, "type", "bridge")
            _set_up(hub, BRIDGE)
        except (OSError, subprocess.CalledProcessError):
            found = None
        else:
            found = Network(hub, stack)
        yield found


def _set_up(namespace: Namespace, interface: str) -> None:
    with namespace.entered():
        _ip("address", "add", f"{namespace.address}/24", "dev", interface)
        _ip("link", "set", interface, "up")
        _ip("link", "set", "lo", "up")
        # so that a process that asks which address it would come from gets an answer
        _ip("route", "add", "default", "dev", interface)


def _new_namespace(stack: ExitStack) -> int:
    with _kept() as before:
        _call("unshare", CLONE_NEWNET)
        try:
            handle = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        finally:
            _call("setns", before, CLONE_NEWNET)
    stack.callback(os.close, handle)
    return handle


@contextmanager
def _kept() -> Iterator[int]:
    handle = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _ip(*words: str, keep: int | None = None) -> None:
    handles = () if keep is None else (keep,)
    subprocess.run(["ip", *words], check=True, capture_output=True, pass_fds=handles)
