"""A night in one command: what has arrived since is scored, and the output proven.

The first step that does not hold decides how the night ends; a night that set too much aside is
proven all the same, because its files are written.
"""

from __future__ import annotations

from typing import Any

from ray_mlc.config import ScoreJob
from ray_mlc.errors import LimitError
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import Backend, Inputs, score
from ray_mlc.scoring.ledger import read_run
from ray_mlc.scoring.verify import Verdict, verify
from ray_mlc.storage import open_storage


def run_night(
    job: ScoreJob, backend: Backend, display: Display, *, inputs: Inputs | None = None
) -> tuple[dict[str, Any], Verdict, LimitError | None]:
    """Score new files as the run's next night, then verify all of the output.

    Returns:
        The summary of scoring, the verdict, and what `limits` do not allow, if anything: to be
        raised when both have been shown.

    Raises:
        RayMlcError: As `score` does, without having verified.
    """
    beyond: LimitError | None = None
    try:
        summary = score(job, backend, display, inputs=inputs, add_new=True)
    except LimitError as error:
        beyond = error
        summary = read_run(open_storage(job.output.path)).summary
    return summary, verify(job.output.path), beyond
