"""Fine-tune encoders for multi-label text classification and tag corpora of any size, on Ray.

From Python, as in `docs/python.md`:

    from ray_mlc import Classifier, ScoreActor, evaluate, score, train, verify

Each of them is imported when it is first asked for: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_mlc.api.actor import ScoreActor
    from ray_mlc.api.classifier import Classifier
    from ray_mlc.api.commands import Summary, evaluate, score, train, verify

__version__ = "0.1.0"
__all__ = ["Classifier", "ScoreActor", "Summary", "evaluate", "score", "train", "verify"]

_HOMES = {"Classifier": "classifier", "ScoreActor": "actor"}
"""Modules of `ray_mlc.api` other than `commands`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"ray_mlc.api.{_HOMES.get(name, 'commands')}"), name)
    globals()[name] = found  # once
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
