"""Workers of a training on CPUs find each other on whichever nodes they are.

PyTorch's gloo listens at the address that the host's own name resolves to. On Debian and its kin
that is one of loopback, so that workers of two nodes wait for each other until they give up. They
are told to use the interface that has the node's address, the one at which Ray reaches it. (NCCL,
with GPUs, looks for an interface by itself, and never takes loopback.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"


class NodeAddressBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's set-up of the process group, with gloo's interface chosen before."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called by Ray Train whenever workers have been started."""
        worker_group.execute(_use_node_address)
        super().on_start(worker_group, backend_config)


class NodeAddressConfig(TorchConfig):  # type: ignore[misc]
    """For `TorchTrainer(torch_config=…)`."""

    @property
    def backend_cls(self) -> type[NodeAddressBackend]:
        """See `NodeAddressBackend`."""
        return NodeAddressBackend


def _use_node_address() -> None:
    """Runs in each worker; whoever has chosen an interface is left alone."""
    import psutil
    import ray

    if VARIABLE not in os.environ:
        name = interface_of(ray.util.get_node_ip_address(), psutil.net_if_addrs())
        if name is not None:
            os.environ[VARIABLE] = name


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]]) -> str | None:
    """Name of the interface that has an address; None if none has.

    Args:
        address: IP address.
        interfaces: As `psutil.net_if_addrs` gives them.
    """
    for name, found in interfaces.items():
        # a link-local IPv6 address carries its interface after a %
        if any(item.address.partition("%")[0] == address for item in found):
            return name
    return None
