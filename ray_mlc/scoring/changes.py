"""How the input differs from what a run has planned, and what follows from it.

A file that the run does not know joins it only when asked for. One that has changed cannot be mixed
with the rows of its earlier version; but as long as the output holds none of them, for instance
because the file was broken, its present version may as well be planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.corpus.footers import read_footers
from ray_mlc.corpus.listing import InputFile, Listing
from ray_mlc.errors import DataError, RunMismatchError
from ray_mlc.scoring.plan import CorpusPlan


@dataclass(frozen=True)
class Changes:
    """What a listing means for a run."""

    to_plan: tuple[InputFile, ...]
    """Files to plan as the next night."""
    record: Mapping[str, Any]
    """What `night.json` says about it."""
    notes: Sequence[str]
    """Sentences for the user."""


def compare_inputs(
    plan: CorpusPlan, pending: NDArray[np.int64], listing: Listing, *, uri: str, add_new: bool
) -> Changes:
    """Find new, changed, repaired and vanished files.

    Args:
        plan: What the run has planned.
        pending: Positions of the units without a part.
        listing: The input's files as they are now.
        uri: Output, for error texts.
        add_new: Whether files that the run does not know join it.

    Raises:
        RunMismatchError: If a file has changed of which rows are written. With `add_new` only if
            some are still to be written: a night must not fail over last week's file.
        DataError: If a new file would share another's part folder.
    """
    planned = {row["source"]: row for row in plan.files.to_pylist()}
    now = {file.source: file for file in listing.files}
    new = [file for source, file in now.items() if source not in planned]
    gone = [source for source in planned if source not in now]
    differing = [file for source, file in now.items() if _differs(planned.get(source), file)]
    written, unfinished = _sources_by_state(plan, pending) if differing else (set(), set())
    unreadable = [
        now[row["source"]]
        for row in plan.faulty_files()
        if row["rows"] is None and row["source"] in now and now[row["source"]] not in differing
    ]
    again = [file for file in differing if file.source not in written]
    again += _readable(listing.root, unreadable)
    changed = [file for file in differing if file.source in written]
    refused = [file for file in changed if not add_new or file.source in unfinished]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise RunMismatchError(
            f"{refused[0].source}{more}: changed since the run in {uri} was planned: to score the "
            f"present version, delete {uri}/{refused[0].part_folder}/ and run the same command "
            "again"
        )
    if add_new:
        _refuse_shared_folders(plan, new)
    record = {
        "new": len(new) if add_new else 0,
        "again": [file.source for file in again],
        "changed": [file.source for file in changed],
    }
    notes = _notes(new, again, changed, gone, add_new=add_new, idle=not len(pending))
    return Changes((*again, *(new if add_new else ())), record, notes)


def _notes(
    new: Sequence[InputFile],
    again: Sequence[InputFile],
    changed: Sequence[InputFile],
    gone: Sequence[str],
    *,
    add_new: bool,
    idle: bool,
) -> list[str]:
    notes = []
    if changed:
        notes.append(
            f"{len(changed)} file(s) have changed since they were scored, such as "
            f"{changed[0].source}: the output keeps the rows of the earlier version"
        )
    if again:
        notes.append(
            f"{len(again)} file(s) that could not be read, or have changed before any of their "
            f"rows was written, are planned again, such as {again[0].source}"
        )
    if new and add_new:
        notes.append(f"{len(new)} new file(s) join the run, such as {new[0].source}")
    elif new:
        notes.append(
            f"{len(new)} new file(s) are not part of this run, such as {new[0].source}: "
            "--add-new scores them too"
        )
    elif add_new and idle:  # else there is something to do, as in the first night
        notes.append("there are no new files")
    if gone:
        notes.append(f"{len(gone)} planned file(s) are gone, such as {gone[0]}")
    return notes


def _differs(row: Mapping[str, Any] | None, file: InputFile) -> bool:
    """Whether a planned file is another one now."""
    if row is None:
        return False
    if row["etag"] and file.etag:
        return bool((row["size"], row["etag"]) != (file.size, file.etag))
    return bool((row["size"], row["mtime_ns"]) != (file.size, file.mtime_ns))


def _sources_by_state(plan: CorpusPlan, pending: NDArray[np.int64]) -> tuple[set[str], set[str]]:
    """Files that have parts, and files that lack some."""
    file_U = plan.units["file"].to_numpy()
    done_U = np.ones(len(file_U), np.bool_)
    done_U[pending] = False
    states = (np.unique(file_U[mask]).tolist() for mask in (done_U, ~done_U))
    written, unfinished = ({plan.sources[index] for index in state} for state in states)
    return written, unfinished


def _readable(root: str, files: Sequence[InputFile]) -> list[InputFile]:
    """Those of some files whose footer can be read by now."""
    footers = read_footers(Listing(root, tuple(files), ()))
    return [footer.file for footer in footers if footer.fault is None]


def _refuse_shared_folders(plan: CorpusPlan, new: Sequence[InputFile]) -> None:
    """New files among themselves were compared when they were listed; these are the planned."""
    owner = dict(zip(plan.part_folders, plan.sources, strict=True))
    for file in new:
        if (other := owner.get(file.part_folder)) is not None:
            raise DataError(
                f"{file.source} would share the part folder {file.part_folder}/ with {other}, "
                "which this run has planned: rename the new file"
            )
