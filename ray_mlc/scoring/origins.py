"""What a run reads: a corpus, or the stored scores of a finished run.

The second kind is a run as any other, with the plan, the columns and the engine of the one that it
reads; `run.json` names that one under `origin`. It is continued by `ray-mlc retag` alone: `score`
would write rows of another making beside its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray_mlc.errors import RunMismatchError

KEY = "origin"
"""Of `run.json`."""


@dataclass(frozen=True)
class Origin:
    """A finished run whose stored scores another run decides anew."""

    output: str
    """Its output folder, as it was named first."""
    run: str
    """Its digest."""
    asked: Mapping[str, Any]
    """Where the decision came from: digest of a decision, or objective and examples."""

    def dump(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides rows; where the output lies does not."""
        return {"retag.run": self.run, "retag.asked": dict(self.asked)}


def origin_of(record: Mapping[str, Any]) -> Origin | None:
    """What `run.json` says; None: the run scores a corpus."""
    found = record.get(KEY)
    return None if found is None else Origin(**found)


def refuse_retagged(record: Mapping[str, Any], *, uri: str) -> None:
    """Refuse to score into the output of `retag`.

    Raises:
        RunMismatchError: If the run decides stored scores anew.
    """
    origin = origin_of(record)
    if origin is not None:
        raise RunMismatchError(
            f"{uri}: holds labels that `ray-mlc retag` has decided from the scores in "
            f"{origin.output}: continue it with that command, or choose another output"
        )
