"""A night in one command: what has arrived since is scored, the output proven, nights compared.

The first step that does not hold decides how the night ends; a night that set too much aside is
proven all the same, because its files are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_mlc.config import ScoreJob
from ray_mlc.errors import LimitError, first_line
from ray_mlc.runtime.backend import Backend
from ray_mlc.runtime.compare import compare
from ray_mlc.runtime.inputs import Inputs
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score_many
from ray_mlc.scoring.ledger import read_run
from ray_mlc.scoring.verify import Verdict, verify
from ray_mlc.storage import open_storage


@dataclass(frozen=True)
class Night:
    """What became of the night of a run."""

    summary: dict[str, Any]
    """Of scoring."""
    verdict: Verdict
    """Of the whole output."""
    comparison: dict[str, Any] | None
    """`scoring.compare.figures` of the last night and the one before; None: there is but one."""


def run_nights(
    jobs: Mapping[str, ScoreJob],
    backend: Backend,
    display: Display,
    *,
    inputs: Mapping[str, Inputs] | None = None,
) -> tuple[dict[str, Night], LimitError | None]:
    """Score new files as the runs' next night, verify the outputs, compare the last nights.

    Args:
        jobs: One, or several models over one corpus; see `score_many`.
        backend: Where.
        display: Told about progress.
        inputs: What `find_all_inputs` found; None: it is called here.

    Returns:
        What became of each run's night, by the names of the jobs, and what `limits` do not allow,
        to be raised when the rest has been shown.

    Raises:
        RayMlcError: As `score` does, without having verified.
    """
    beyond: LimitError | None = None
    summaries: dict[str, dict[str, Any]] = {}
    try:
        summaries = score_many(jobs, backend, display, inputs=inputs, add_new=True)
    except LimitError as error:
        beyond = error
    nights = {
        name: _look_back(job.output.path, summaries.get(name), display)
        for name, job in jobs.items()
    }
    return nights, beyond


def _look_back(output: str, summary: dict[str, Any] | None, display: Display) -> Night:
    """Prove and compare what the night has left; without a summary that which was written."""
    run = read_run(open_storage(output))
    verdict = verify(output)
    count = len(run.nights)
    comparison = None
    if count > 1:
        try:
            comparison = compare(f"{output}@{count - 1}", f"{output}@{count}", (), display)
        except Exception as error:  # the night stands, whatever it is like
            display.say(f"warning: the nights are not compared: {first_line(error)}")
    return Night(summary or run.summary, verdict, comparison)
