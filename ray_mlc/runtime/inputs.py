"""What scoring jobs name: models and corpus, found and checked, and where they are worked on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.listing import Listing, list_corpus
from ray_mlc.model.decisions import read_decision
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.scoring.compare import Side
from ray_mlc.scoring.identity import refuse_output_in_input

if TYPE_CHECKING:
    from ray_mlc.runtime.plan import PlanBackend
    from ray_mlc.runtime.progress import Display


@dataclass(frozen=True)
class Inputs:
    """What a job names, found and checked before anything costs time."""

    folder: ModelFolder
    listing: Listing
    validation: Side | None
    """What the model gave at its validation, if drift is limited. Read once: a training into the
    same folder, or `thresholds`, may replace it while the night goes on."""


def find_inputs(job: ScoreJob, *, listing: Listing | None = None) -> Inputs:
    """Find model and corpus.

    Args:
        job: What names them.
        listing: The corpus, if it has been listed; None: it is listed here.

    Raises:
        ModelError: If the model is missing, incomplete or not multi-label.
        ConfigError: If the decision cannot be read, or is not for its labels.
        DataError: If there is nothing to read, the output lies where it would be read, or drift is
            limited and the model's folder does not say what to hold it against.
    """
    folder = open_model(job.model)
    if job.decision is not None:
        folder = folder.with_decision(read_decision(job.decision, folder.label_set))
    # raises where it does not say: not at the end of the night
    validation = Side.of_model(folder) if job.limits.drift is not None else None
    listing = listing or list_corpus(job.input.path)
    refuse_output_in_input(job, listing)
    return Inputs(folder, listing, validation)


def find_all_inputs(jobs: Mapping[str, ScoreJob]) -> dict[str, Inputs]:
    """`find_inputs` of jobs over one corpus, which is listed once."""
    found: dict[str, Inputs] = {}
    for name, job in jobs.items():
        known = next(iter(found.values()), None)
        found[name] = find_inputs(job, listing=None if known is None else known.listing)
    return found


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
