"""Whether the documents of a night are like those that its model was validated on.

Labels of a night are not annotated; but what shifts in the documents shifts the scores, long before
anybody looks. So the scores of the last night are read again, of some units if there are many, and
held against the model's `distribution.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ray_mlc.config import DriftConfig
from ray_mlc.labels import quoted
from ray_mlc.model.folder import ModelFolder
from ray_mlc.scoring.compare import File, Pairing, Side, Tally, figures
from ray_mlc.scoring.ledger import Run

UNITS = 256
"""Units that are read at most, spread over the night: of the largest units four million rows."""
SHOWN = 20
"""Labels beyond the limit that a summary names."""

Each = Callable[[Callable[[File], Tally], Iterable[File]], Iterator[Tally]]


def measure_drift(
    run: Run, folder: ModelFolder, limit: DriftConfig, *, each: Each = map
) -> dict[str, Any]:
    """Hold the last night of a run against its model's validation.

    Args:
        run: The run.
        folder: Its model.
        limit: How far they may be apart.
        each: Calls a function for every file; `map`, or something that does so in threads.

    Returns:
        `night`, `rows` (read), `validation_rows`, `limit`, `beyond` (how many labels are), `labels`
        (of the most extreme of these `label`, `psi`, `rate` and `validation_rate`), `largest` (the
        label that is farthest, whether beyond or not), and `same_decision`: whether both rates are
        by one decision.

    Raises:
        DataError: If the model's folder does not say what it gave.
    """
    night = len(run.nights)
    side = Side.of_run(run.storage.uri, run, night)
    count = len(side.positions)
    if count > UNITS:
        chosen = np.linspace(0, count - 1, UNITS).astype(np.int64)
        side = replace(side, positions=side.positions[chosen])
    pairing = Pairing(Side.of_model(folder), side)
    tally = pairing.start()
    for found in each(pairing.compare_file, pairing.files()):
        tally.add(found)
    rows = tally.counts[1].rows
    result: dict[str, Any] = {
        "night": night,
        "rows": rows,
        "validation_rows": tally.counts[0].rows,
        "limit": limit.model_dump(mode="json"),
        "beyond": 0,
        "of_labels": len(pairing.common),
        "labels": [],
        "largest": None,
        "same_decision": pairing.sides[0].decision == pairing.sides[1].decision,
    }
    if not rows or not tally.counts[0].rows:
        return result
    found_L = sorted(figures(pairing, tally)["per_label"], key=lambda row: -row["psi"])
    beyond = [row for row in found_L if row["psi"] > max(limit.psi, row["psi_by_chance"])]
    said = [
        {
            "label": row["label"],
            "psi": round(row["psi"], 6),
            "rate": row["rate_b"],
            "validation_rate": row["rate_a"],
        }
        for row in (found_L[0], *beyond[:SHOWN])
    ]
    return result | {"beyond": len(beyond), "labels": said[1:], "largest": said[0]}


def is_beyond(drift: Mapping[str, Any]) -> bool:
    """Whether more labels have moved than the limit allows."""
    limit = float(drift["limit"]["labels"])
    allowed = limit * drift["of_labels"] if limit < 1 else limit
    return bool(drift["beyond"] > allowed)


def describe_drift(drift: Mapping[str, Any]) -> str | None:
    """What moved, in a sentence; None: nothing did."""
    if not drift["beyond"]:
        return None
    shown = ", ".join(_label(label, drift) for label in drift["labels"][:3])
    more = " …" if drift["beyond"] > 3 else ""
    return (
        f"the scores of {drift['beyond']:,} of {drift['of_labels']:,} label(s) have moved away "
        f"from the model's validation by a psi above {drift['limit']['psi']:g}: {shown}{more}"
    )


def _label(label: Mapping[str, Any], drift: Mapping[str, Any]) -> str:
    rates = ""
    if drift["same_decision"]:
        rates = f", given to {label['rate']:.2%}, there {label['validation_rate']:.2%}"
    return f"{quoted(label['label'])} ({label['psi']:.2f}{rates})"
