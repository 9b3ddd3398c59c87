"""What decides a run's rows, and refusing a command that would decide otherwise.

A run records at its first start all that its rows depend on. `auto` and null in a job leave a value
to that record; whatever a later command does say must be equal to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ray_mlc import __version__
from ray_mlc.config import ScoreJob
from ray_mlc.corpus.listing import Listing, would_list
from ray_mlc.errors import DataError, RunMismatchError
from ray_mlc.model.decisions import Decision
from ray_mlc.model.engines.int8 import read_int8
from ray_mlc.model.folder import ModelFolder
from ray_mlc.storage import filesystem_of, local_path, place_of, scheme_of

_VERSIONED = ("ray-mlc", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def asked_for(job: ScoreJob, model: ModelFolder) -> dict[str, Any]:
    """What a command says about the rows' content; `auto` and null are left to `resolve`."""
    long = model.long(job.long)
    asked: dict[str, Any] = {
        "model": model.digest,
        "decision": model.info.decision.digest,
        "input.root": _list_root(job),
        "input.text": job.input.text,
        "input.max_text_bytes": job.input.max_text_bytes,
        "output.keep": job.output.keep,
        "output.k": job.output.k,
        "output.floor": job.output.floor,
        "units.bytes": job.units.bytes,
        "long.policy": long.policy,
    }
    if long.windows is not None:
        asked["long.windows"] = long.windows.model_dump()
    optional = {
        "output.format": job.output.format,
        "units.rows": job.units.rows,
        "long.max_tokens": long.max_tokens,
        "engine.name": job.engine.name,
        "engine.dtype": job.engine.dtype,
        "batching.max_batch_tokens": job.batching.max_batch_tokens,
    }
    return asked | {key: value for key, value in optional.items() if value not in ("auto", None)}


def _list_root(job: ScoreJob) -> str:
    """What the job names as input, in a form that two commands can be compared by."""
    paths = [job.input.path] if isinstance(job.input.path, str) else job.input.path
    return " ".join(sorted(_spelled(path) for path in paths))


def _spelled(path: str) -> str:
    """A path as it is written down: of a local one without `.` and `..`."""
    if local_path(path) is not None:
        return place_of(path)
    return filesystem_of(path)[1].rstrip("/")


def refuse_output_in_input(job: ScoreJob, listing: Listing) -> None:
    """Refuse an output that the next run would read as input.

    Raises:
        DataError: If the input's paths would find the parts.
    """
    folders = [item.part_folder for item in listing.files]
    refuse_place_in_input(job.output.path, job.input.path, listing.root, folders)


def refuse_place_in_input(
    output: str, paths: str | Sequence[str], root: str, part_folders: Iterable[str]
) -> None:
    """As `refuse_output_in_input`, of an input that need not be there any more.

    Args:
        output: Where parts are to go.
        paths: What the job names as input.
        root: Folder that sources are relative to.
        part_folders: Part folder of each file.

    Raises:
        DataError: If `paths` would find the parts.
    """
    if scheme_of(output) != scheme_of(root):
        return
    folder = filesystem_of(output)[1].rstrip("/")
    # one part for each depth of folders: all that a glob can tell apart
    parts = {name.count("/"): name for name in part_folders}
    if any(would_list(paths, f"{folder}/{part}/0.parquet") for part in parts.values()):
        raise DataError(
            f"output.path {output} lies inside the input {root}: the next run would read "
            "its own results"
        )


def refuse_difference(
    record: Mapping[str, Any], decision: Decision, job: ScoreJob, model: ModelFolder, *, uri: str
) -> list[str]:
    """Refuse a command that would make other rows than the run.

    A decision that only the model folder has is no difference: it may be fitted again while a run
    or its nights go on, which have their own.

    Args:
        record: Content of `run.json`.
        decision: The run's.
        job: The command.
        model: Its model.
        uri: Output, for the error text.

    Returns:
        Sentences that the user should see.

    Raises:
        RunMismatchError: With the first difference.
    """
    recorded = {**record["identity"], "decision": decision.digest}
    notes: list[str] = []
    weights = recorded.get("engine.weights")
    if weights is not None and read_int8(model).weights != weights:
        raise RunMismatchError(
            f"{uri}: holds a run with another int8 form of {model.name}, which was quantized again "
            "since: choose another output"
        )
    for key, value in asked_for(job, model).items():
        if recorded.get(key) != value:
            if key == "decision" and job.decision is None:
                notes.append(
                    f"the decision of {model.name} is not the one that this run was started with: "
                    "the run goes on with its own; a new output takes the model's"
                )
                continue
            shown = (recorded.get(key), value)
            if key == "model":
                shown = (
                    f"{record['model']} ({recorded[key][:12]})",
                    f"{model.name} ({value[:12]})",
                )
            if key == "decision":
                shown = _apart(
                    *(d.model_dump(mode="json") for d in (decision, model.info.decision))
                )
            raise RunMismatchError(
                f"{uri}: holds a run with {key} {_short(shown[0])}, the command has "
                f"{_short(shown[1])}: repeat the first command, or choose another output"
            )
    return notes


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Any, Any]:
    """What two decisions do not share: the whole of one can be very long."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    first, second = ({key: item.get(key) for key in keys} for item in (one, other))
    return first, second


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 120 else text[:117] + "..."


def versions() -> dict[str, str]:
    """Versions of what scores depend on."""
    return {name: _version(name) for name in _VERSIONED}


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return __version__ if name == "ray-mlc" else "absent"
