"""The command line in the test's own process."""

from __future__ import annotations

import sys

import pytest

from ray_mlc.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of `ray-mlc ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["ray-mlc", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
