"""Whether the documents of a night are like those that its model was validated on.

Labels of a night are not annotated; but what shifts in the documents shifts the scores, long before
anybody looks. So the scores of each night since the last success are read again, of some units if
there are many, and held against the model's `distribution.json`. Each by itself: among the rows of
another night, or as none of the last one, a night that has moved would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import DriftConfig
from ray_mlc.errors import StorageError
from ray_mlc.labels import quoted
from ray_mlc.scoring.compare import File, Pairing, Side, Tally, figures
from ray_mlc.scoring.ledger import Run
from ray_mlc.scoring.retag import ScoredOutput

UNITS = 256
"""Units that are read at most, spread over the night: of the largest units four million rows."""
SHOWN = 20
"""Labels beyond the limit that a summary names."""

Each = Callable[[Callable[[File], Tally], Iterable[File]], Iterator[Tally]]


def measure_drift(
    run: Run,
    validation: Side,
    limit: DriftConfig,
    written: NDArray[np.int64],
    *,
    each: Each = map,
) -> list[dict[str, Any]]:
    """Hold every night since a run's last success against its model's validation.

    Args:
        run: The run.
        validation: What its model gave there, as it was when the command began.
        limit: How far they may be apart.
        written: Positions of the units that have a part.
        each: Calls a function for every file; `map`, or something that does so in threads.

    Returns:
        For each of the nights `night`, `rows` (read), `validation_rows`, `limit`, `beyond` (how
        many labels are), `labels` (of the most extreme of these `label`, `psi`, `rate` and
        `validation_rate`), `largest` (the label that is farthest, whether beyond or not), and
        `same_decision`: whether both rates are by one decision.

    Raises:
        StorageError: If parts that were written cannot be read back.
    """
    return [
        _measure_night(run, night, validation, limit, written, each)
        for night in nights_to_measure(run.summary, len(run.nights))
    ]


def nights_to_measure(summary: Mapping[str, Any], nights: int) -> range:
    """Those since the last success; where all are part of it, those that were measured for it.

    Args:
        summary: What the last command that came to an end has left; empty if none has.
        nights: How many the run has.
    """
    first = accepted_nights(summary) + 1
    if first > nights:
        first = min((drift["night"] for drift in summary.get("drift", ())), default=nights)
    return range(first, nights + 1)


def accepted_nights(summary: Mapping[str, Any]) -> int:
    """How many nights, from the first on, were part of a success.

    Summaries of versions that measured no drift do not say: of those every night counts.
    """
    return int(summary.get("accepted_nights", summary.get("nights", 0)))


def _measure_night(
    run: Run,
    night: int,
    validation: Side,
    limit: DriftConfig,
    written: NDArray[np.int64],
    each: Each,
) -> dict[str, Any]:
    side = Side.of_run(run.storage.uri, run, night)
    positions = np.intersect1d(side.positions, written)
    count = len(positions)
    if count > UNITS:
        positions = positions[np.linspace(0, count - 1, UNITS).astype(np.int64)]
    pairing = Pairing(validation, replace(side, positions=positions))
    tally = pairing.start()
    for found in each(pairing.compare_file, pairing.files()):
        tally.add(found)
    if unread := tally.missing[1]:
        raise StorageError(
            f"{run.storage.uri}: {unread:,} of {len(positions):,} part(s) of night {night} cannot "
            f"be held against the model's validation{_an_unread_part(run, positions)}: delete "
            "what is damaged and run the same command again"
        )
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


def _an_unread_part(run: Run, positions: NDArray[np.int64]) -> str:
    """One of those that cannot be read, and why, for people."""
    scored = ScoredOutput(run, {})
    for unit in run.plan.units_at(positions):
        try:
            scored.read(unit)
        except ValueError as error:
            return f", such as {unit.part}: {error}"
    return ""


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
