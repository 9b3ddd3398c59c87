"""The command line in the test's own process."""

from __future__ import annotations

import sys

import pytest

from ray_mlc.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of `ray-mlc ARGUMENTS`, in this process."""
    # for the command alone: a run that goes on around it has to put its own handlers back
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["ray-mlc", *arguments])
        patch.setattr("signal.signal", lambda *_: None)
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0
