"""What is started for a Ray of our own stays out of reach of signals that are meant for us."""

from __future__ import annotations

import os
import subprocess
import sys

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
