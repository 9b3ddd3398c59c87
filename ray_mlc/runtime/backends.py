"""What a scoring job names, and which backend does the work: this process, or Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.score import Inputs, find_all_inputs

if TYPE_CHECKING:
    from ray_mlc.config import ScoreJob
    from ray_mlc.runtime.plan import PlanBackend
    from ray_mlc.runtime.progress import Display


def open_job(
    job: ScoreJob, display: Display, *, local: bool, writes: bool = True
) -> tuple[Inputs, PlanBackend]:
    """Model and corpus of a job, found before anything costs time, and where it is worked on.

    Args:
        job: What is scored.
        display: Told what goes on.
        local: In this process, without Ray.
        writes: Whether the output will be written to, and every node has to be able to.

    Raises:
        RayMlcError: As `find_inputs` says.
    """
    inputs, backend = open_jobs({"": job}, display, local=local, writes=writes)
    return inputs[""], backend


def open_jobs(
    jobs: Mapping[str, ScoreJob], display: Display, *, local: bool, writes: bool = True
) -> tuple[dict[str, Inputs], PlanBackend]:
    """As `open_job`, for jobs that are alike but for model, output and decision; by name."""
    first, *_ = jobs.values()
    paths = first.input.path
    shown = paths if isinstance(paths, str) else f"{len(paths)} paths"
    models = ", ".join(job.model for job in jobs.values())
    with display.doing(f"opening {models} and listing {shown}"):
        inputs = find_all_inputs(jobs)  # a typo should not cost an import of Ray
    if local:
        return inputs, LocalBackend()
    with display.doing("importing Ray"):
        from ray_mlc.runtime.session import set_environment

        set_environment()  # Ray reads some of it when it is imported
        from ray_mlc.runtime.ray_data import RayBackend

        return inputs, RayBackend(list(jobs.values()), display.say, writes=writes)
