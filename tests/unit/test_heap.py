"""What a process frees goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ray_mlc.runtime import heap

HOLES = """
import psutil, sys
from ray_mlc.runtime import heap
resident = lambda: psutil.Process().memory_info().rss / 2**20
# half of many small pieces, so that no arena ends in free memory
pieces = [bytearray(60_000) for _ in range(4_000)]
del pieces[::2]
before = resident()
heap.trim()
print(before - resident())
"""


@pytest.mark.skipif(heap._malloc_trim() is None, reason="this C library cannot")
def test_holes_between_live_pieces_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 60


def test_a_c_library_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.trim()
