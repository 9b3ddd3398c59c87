"""A night in one command: what has arrived since is scored, the output proven, nights compared.

The first step that does not hold decides how the night ends; a night that set too much aside is
proven all the same, because its files are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_mlc.config import ScoreJob
from ray_mlc.errors import LimitError, first_line
from ray_mlc.runtime.compare import compare
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import Backend, Inputs, score
from ray_mlc.scoring.ledger import read_run
from ray_mlc.scoring.verify import Verdict, verify
from ray_mlc.storage import open_storage


@dataclass(frozen=True)
class Night:
    """What became of a night."""

    summary: dict[str, Any]
    """Of scoring."""
    verdict: Verdict
    """Of the whole output."""
    comparison: dict[str, Any] | None
    """`scoring.compare.figures` of the last night and the one before; None: there is but one."""
    beyond: LimitError | None
    """What `limits` do not allow: to be raised when the rest has been shown."""


def run_night(
    job: ScoreJob, backend: Backend, display: Display, *, inputs: Inputs | None = None
) -> Night:
    """Score new files as the run's next night, verify the whole output, compare the last nights.

    Raises:
        RayMlcError: As `score` does, without having verified.
    """
    beyond: LimitError | None = None
    try:
        summary = score(job, backend, display, inputs=inputs, add_new=True)
    except LimitError as error:
        beyond = error
        summary = read_run(open_storage(job.output.path)).summary
    output = job.output.path
    verdict = verify(output)
    nights = len(read_run(open_storage(output)).nights)
    comparison = None
    if nights > 1:
        try:
            comparison = compare(f"{output}@{nights - 1}", f"{output}@{nights}", (), display)
        except Exception as error:  # the night stands, whatever it is like
            display.say(f"warning: the nights are not compared: {first_line(error)}")
    return Night(summary, verdict, comparison, beyond)
