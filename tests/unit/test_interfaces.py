"""Which network interface workers of a training use."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mlc.runtime.interfaces import VARIABLE, _use_node_address, interface_of

INTERFACES: dict[str, list[Any]] = {
    "lo": [SimpleNamespace(address="127.0.0.1"), SimpleNamespace(address="::1")],
    "eth0": [SimpleNamespace(address="10.0.0.7"), SimpleNamespace(address="fe80::7%eth0")],
}


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.7", "eth0"), ("127.0.0.1", "lo"), ("fe80::7", "eth0"), ("10.0.0.8", None)],
)
def test_the_interface_with_the_nodes_address_is_found(address: str, name: str | None) -> None:
    assert interface_of(address, INTERFACES) == name


def test_a_worker_uses_it_unless_somebody_has_chosen_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil
    import ray

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: INTERFACES)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setenv(VARIABLE, "ib0")
    _use_node_address()
    assert os.environ[VARIABLE] == "ib0"
    monkeypatch.delenv(VARIABLE)
    _use_node_address()
    assert os.environ[VARIABLE] == "eth0"
