"""The decision of a run: kept once beside `run.json`, and what of it every part says.

    OUT/_ray_mlc/decision-<digest>.json     the whole decision, written before `run.json` is created

A calibration of thousands of labels is megabytes, which a run has once and not in every part. So
`run.json` names the decision by its digest, and so does the footer of each part. Beside the digest
a footer says how scores became labels (thresholds, hierarchy, fall-back) where the labels are
`WIDE_UP_TO` or fewer: a reader of one such part needs no other file for that. A calibration makes
no labels, and is in no footer.

The file is named by its content: of two commands that start a run at once neither overwrites what
the other's `run.json` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_mlc.errors import UsageError
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision
from ray_mlc.scoring.nights import LEDGER
from ray_mlc.scoring.parts import WIDE_UP_TO
from ray_mlc.storage import Storage, join


def write_decision(storage: Storage, decision: Decision) -> None:
    """Keep a decision in a run's ledger."""
    storage.put(_file_of(decision.digest), decision.model_dump_json().encode())


def read_decision(storage: Storage, recorded: str | Mapping[str, Any]) -> Decision:
    """The decision that `run.json` names.

    Args:
        storage: The output folder.
        recorded: The decision's digest; or the decision itself, which the runs of schema 2 hold.

    Raises:
        UsageError: If it is missing, or another one.
    """
    if not isinstance(recorded, str):
        return Decision.model_validate(recorded)
    place = join(storage.uri, _file_of(recorded))
    data = storage.read(_file_of(recorded))
    if data is None:
        raise UsageError(f"{place}: missing: the run is damaged")
    try:
        decision = Decision.model_validate_json(data)
    except ValueError:
        decision = None
    if decision is None or decision.digest != recorded:
        raise UsageError(
            f"{place}: is not the decision that the run was started with: the run is damaged"
        )
    return decision


def footer_of(decision: Decision, label_set: LabelSet) -> dict[str, Any]:
    """What a part says of the decision; see above."""
    said = {"digest": decision.digest}
    if len(label_set) <= WIDE_UP_TO:
        said |= decision.uncalibrated.model_dump(mode="json")
    return said


def _file_of(digest: str) -> str:
    return f"{LEDGER}/decision-{digest[:16]}.json"
