"""Which backend does the work: this process, or Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_mlc.runtime.local import LocalBackend

if TYPE_CHECKING:
    from ray_mlc.config import ScoreJob
    from ray_mlc.runtime.score import Backend


def backend_of(job: ScoreJob, *, local: bool) -> Backend:
    """The backend of a job; Ray is imported only for the one that needs it.

    Args:
        job: What is scored.
        local: In this process, without Ray.
    """
    if local:
        return LocalBackend()
    from ray_mlc.runtime.session import set_environment

    set_environment()  # Ray reads some of it when it is imported
    from ray_mlc.runtime.ray_data import RayBackend

    return RayBackend(job)
