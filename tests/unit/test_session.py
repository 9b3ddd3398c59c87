"""What is started for a Ray of our own stays out of reach of signals that are meant for us."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ray_mlc.runtime import session
from ray_mlc.runtime.session import _groups_of_their_own

CHILD = [sys.executable, "-Sc", "import os; print(os.getpgid(0) == os.getpid())"]


def leads_its_group() -> bool:
    return subprocess.run(CHILD, capture_output=True, text=True, check=True).stdout == "True\n"


def test_processes_started_in_the_block_lead_groups_of_their_own() -> None:
    before = os.getpgid(0)
    assert not leads_its_group()
    with _groups_of_their_own():
        assert leads_its_group()
        own_session = [*CHILD]
        done = subprocess.run(own_session, capture_output=True, check=True, start_new_session=True)
        assert done.stdout == b"True\n"
    assert not leads_its_group()
    assert os.getpgid(0) == before


@pytest.mark.parametrize(
    ("address", "seen"),
    [("http://head:8265", None), ("10.0.0.1:6379", "10.0.0.1:6379"), (None, None)],
)
def test_an_address_for_jobs_is_kept_from_ray_and_one_of_a_cluster_is_not(
    address: str | None, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the latter `auto` finds the cluster that a job runs on, and not one beside it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with session._address_of_the_environment_apart():
        assert os.environ.get("RAY_ADDRESS") == seen
    assert os.environ.get("RAY_ADDRESS") == address
