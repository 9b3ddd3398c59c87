"""A night in figures: what went in and came out, rates beside those of before, speed, what is near.

Plain data, as `ray-mlc report --json` prints it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.model.folder import ModelInfo
from ray_mlc.scoring.accounts import BAD_STATUSES
from ray_mlc.scoring.drift import rate_interval, rates_apart
from ray_mlc.scoring.ledger import FAILURES_FILE, SUCCESS_FILE, Run
from ray_mlc.scoring.overnight import Look, Spread, look_at
from ray_mlc.scoring.sums import LENGTH_EDGES, NEAR, SCORE_BINS, Sums
from ray_mlc.storage import ObjectInfo

FILES_LISTED = 500
"""Files, and units set aside, that are named: those of which something is missing first."""
TOGETHER = 30
"""Labels of the square of what comes together."""
UNCERTAIN = 60
"""Rows that are named as uncertain."""
SLOWEST = 20
ACTORS_SHOWN = 64
STEPS = 120
"""Points in time of the curve of speed, at most."""
_STEP_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True)
class Training:
    """What the model was trained on, as far as its folder says."""

    rates_L: NDArray[np.float64] | None
    """Label rates in column order; None: not known."""
    rows: int | None
    """Examples they are from."""
    cut: float | None
    """Share of the texts that were longer than what the model reads."""

    @classmethod
    def of(cls, info: ModelInfo | None, names: Sequence[str]) -> Training:
        """What a model's `ray_mlc.json` says; None, or one with other labels, says nothing."""
        if info is None or list(names) != info.labels:
            return cls(None, None, None)
        data = info.training.get("data") or {}
        rows = (data.get("train") or {}).get("rows") or info.training.get("train_rows")
        rates = info.label_rates
        return cls(
            None if rates is None else np.array(rates, np.float64),
            rows if isinstance(rows, int) else None,
            (data.get("lengths") or {}).get("cut"),
        )


def night_figures(
    run: Run,
    number: int,
    training: Training,
    *,
    spread: Spread = map,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Look at a night, and at the labels of the one before.

    Args:
        run: The run.
        number: The night; see `overnight.night_of`.
        training: What the model was trained on.
        spread: As `map`; may read several parts at once.
        progress: Called with 1 after each part.

    Returns:
        Plain data; see `report/night.py` for what each part of it means.

    Raises:
        StorageError: If the store failed, and went on failing.
    """
    there = {info.path: info for info in run.storage.list()}
    units = run.units_of_night(number)
    paths = run.part_paths
    written = np.array([unit for unit in units if paths[unit] in there], np.int64)
    earlier = np.zeros(0, np.int64)
    if number > 1:
        before_units = run.units_of_night(number - 1)
        earlier = np.array([unit for unit in before_units if paths[unit] in there], np.int64)
    look = look_at(run, written, spread=spread, progress=progress)
    before = None
    if len(earlier):
        before = look_at(run, earlier, scores=False, spread=spread, progress=progress)
    account = _account(run, number, units, set(there))
    sums = look.sums
    return {
        "output": run.storage.uri,
        "night": number,
        "nights": len(run.nights),
        "planned": run.nights[number - 1].record.get("created"),
        "state": _state(account, succeeded=SUCCESS_FILE in there, last=number == len(run.nights)),
        **account,
        "drift": _drift(run, number),
        "problems": look.problems,
        "statuses": dict(sums.statuses.most_common()),
        "bad_rows": sum(sums.statuses[name] for name in BAD_STATUSES),
        "failed_rows": look.failed_rows,
        "scored": sums.scored,
        "truncated": sums.truncated,
        "several_windows": sums.several_windows,
        "before": None if before is None else _before(before.sums, number - 1),
        "training": {"rows": training.rows, "cut": training.cut},
        "labels": _labels(run, look, before, training),
        "labels_per_row": sums.per_row.tolist(),
        "scores": {
            **{key: run.identity[f"output.{key}"] for key in ("format", "k", "floor")},
            "counts": sums.bins_LB.tolist(),
            "k_cut": int(look.k_cut_U.sum()),
            "near": NEAR,
        },
        "together": _together(sums),
        "uncertain": _uncertain(run, sums),
        "lengths": _lengths(sums, None if before is None else before.sums),
        "speed": _speed(run, look, there, last=number == len(run.nights)),
        "used": _used(run),
    }


def _state(account: Mapping[str, Any], *, succeeded: bool, last: bool) -> str:
    if account["rows"]["missing"]:
        return "incomplete"
    return "complete" if succeeded or not last else "beyond limits"


def _account(run: Run, number: int, units: NDArray[np.int64], there: set[str]) -> dict[str, Any]:
    """Rows and files of a night: planned, written, set aside by name, missing."""
    plan, paths = run.plan, run.part_paths
    files = np.flatnonzero(run.night_of_files == number)
    failures = json.loads(run.storage.read(FAILURES_FILE) or b"[]")
    faults = {
        (item["source"], item["first_row"]): item["reason"]
        for item in failures
        if item["first_row"] is not None
    }
    rows: dict[str, Counter[str]] = {plan.sources[file]: Counter() for file in files}
    aside: list[dict[str, Any]] = []
    table = plan.units.take(units)
    columns = (table[name].to_pylist() for name in ("file", "first_row", "rows"))
    for unit, file, first, count in zip(units.tolist(), *columns, strict=True):
        source = plan.sources[file]
        state = "written" if paths[unit] in there else "missing"
        if state == "missing" and (reason := faults.get((source, first))) is not None:
            state = "set_aside"
            aside.append({"source": source, "first_row": first, "rows": count, "reason": reason})
        rows[source].update({"planned": count, state: count})
    unknown = set()
    for item in plan.faulty_files():
        if item["source"] in rows:
            count = item["rows"] or 0
            rows[item["source"]].update({"planned": count, "set_aside": count})
            if item["rows"] is None:
                unknown.add(item["source"])
            fault = {"rows": item["rows"], "reason": item["fault"]}
            aside.append({"source": item["source"], "first_row": None, **fault})
    names = ("planned", "written", "set_aside", "missing")
    bad = {item["source"] for item in aside}
    listed = [
        {
            "source": source,
            **{name: None if source in unknown else counts[name] for name in names},
        }
        for source, counts in rows.items()
    ]
    listed.sort(key=lambda item: (not item["missing"], item["source"] not in bad, item["source"]))
    aside.sort(key=lambda item: (-(item["rows"] or 0), item["source"], item["first_row"] or 0))
    return {
        "rows": {name: sum(counts[name] for counts in rows.values()) for name in names},
        "files": {
            "planned": len(rows),
            "set_aside": len(bad),
            "missing": sum(bool(counts["missing"]) for counts in rows.values()),
            "planned_again": len(run.nights[number - 1].files) - len(files),
        },
        "by_file": listed[:FILES_LISTED],
        "set_aside": aside[:FILES_LISTED],
        "set_aside_count": len(aside),
    }


def _drift(run: Run, number: int) -> list[dict[str, Any]]:
    """What was measured of this night, if `limits.drift` asked for it.

    At the end of the last night also what was measured of those before: it is no success if one of
    them is beyond the limit.
    """
    measured: list[dict[str, Any]] = run.summary.get("drift", [])
    if measured and measured[-1]["night"] == number:
        return measured
    return [drift for drift in measured if drift["night"] == number]


def _before(sums: Sums, number: int) -> dict[str, Any]:
    return {
        "night": number,
        "rows": sums.rows,
        "scored": sums.scored,
        "truncated": sums.truncated,
        "statuses": dict(sums.statuses.most_common()),
        "labels_per_row": sums.per_row.tolist(),
    }


def _labels(run: Run, look: Look, before: Look | None, training: Training) -> list[dict[str, Any]]:
    """Rates of each label, tonight and before, and how far they are apart in standard errors."""
    sums, count = look.sums, look.sums.scored
    rates_L = sums.given_L / max(1, count)
    columns: dict[str, Sequence[Any]] = {
        "label": sums.label_set.names,
        "given": sums.given_L.tolist(),
        "rate": rates_L.tolist(),
        "interval": [rate_interval(given, count) for given in sums.given_L.tolist()],
        "threshold": [round(float(value), 6) for value in sums.thresholds_L],
        "near": sums.near_L.tolist(),
        "stored": sums.bins_LB.sum(axis=1).tolist(),
    }
    nothing = [None] * len(run.label_set)
    columns |= {"training": nothing, "from_training": nothing}
    if training.rates_L is not None:
        z_L = rates_apart(rates_L, count, training.rates_L, training.rows)
        columns |= {"training": training.rates_L.tolist(), "from_training": z_L.round(2).tolist()}
    columns |= {"before": nothing, "before_interval": nothing, "from_before": nothing}
    if before is not None and before.sums.scored:
        old, total = before.sums.given_L, before.sums.scored
        z_L = rates_apart(rates_L, count, old / total, total)
        columns |= {"before": (old / total).tolist(), "from_before": z_L.round(2).tolist()}
        columns["before_interval"] = [rate_interval(given, total) for given in old.tolist()]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _together(sums: Sums) -> dict[str, Any]:
    """How often the most frequent labels are given together, and how that differs from chance."""
    counts_H = sums.given_L[sums.shown_H]
    order = np.argsort(-counts_H, kind="stable")[:TOGETHER]
    order = order[counts_H[order] > 0]
    both = sums.together_HH[np.ix_(order, order)].astype(np.float64)
    rows, count = np.diag(both), max(1, sums.scored)
    spread = np.sqrt(rows * (count - rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = (both * count - np.outer(rows, rows)) / np.outer(spread, spread)
        given = both / rows[:, None]
    return {
        "labels": [sums.label_set.names[label] for label in sums.shown_H[order]],
        "of_all": len(order) == len(sums.label_set),
        "both": both.astype(np.int64).tolist(),
        "phi": _or_none(phi),
        "given": _or_none(given),
    }


def _or_none(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[float(x) if math.isfinite(x) else None for x in row] for row in values]


def _uncertain(run: Run, sums: Sums) -> list[dict[str, Any]]:
    """The scores nearest to their thresholds, by source and row."""
    near = sums.nearest
    order = np.lexsort((near["row"], near["unit"], near["distance"]))[:UNCERTAIN]
    near = near[order]
    units = run.plan.units_at(near["unit"].astype(np.int64))
    return [
        {
            "source": unit.source,
            "row": unit.first_row + int(cell["row"]),
            "label": sums.label_set.names[cell["label"]],
            "score": float(cell["score"]),
            "threshold": float(sums.thresholds_L[cell["label"]]),
            "unit": int(cell["unit"]),
            "place": int(cell["row"]),
        }
        for unit, cell in zip(units, near, strict=True)
    ]


def _lengths(sums: Sums, before: Sums | None) -> dict[str, Any]:
    """Rows by number of tokens: edges of bins, and counts of tonight and of the night before."""
    counted = [sums] if before is None else [sums, before]
    used = np.flatnonzero(sum(item.length_counts for item in counted))
    last = int(used[-1]) + 1 if len(used) else 1
    edges = [*LENGTH_EDGES.tolist(), int(LENGTH_EDGES[-1]) * 2]
    return {
        "bins": edges[: last + 1],
        "counts": [item.length_counts[:last].tolist() for item in counted],
        "quantiles": {
            str(share): _quantile(sums.length_counts, share) for share in (0.5, 0.9, 0.99)
        },
    }


def _quantile(counts: NDArray[np.int64], share: float) -> int | None:
    """Tokens that so large a share of the rows does not exceed, to the end of a bin."""
    total = int(counts.sum())
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(counts), share * total))
    return int(LENGTH_EDGES[min(place + 1, len(LENGTH_EDGES) - 1)]) - 1


def _speed(run: Run, look: Look, there: Mapping[str, ObjectInfo], *, last: bool) -> dict[str, Any]:
    """When parts were written, by whom, and which took longest for their tokens."""
    units = look.positions
    rows_U = run.plan.units["rows"].to_numpy()[units].astype(np.int64)
    times_U = np.array([there[run.part_paths[unit]].modified_s for unit in units], np.float64)
    names = sorted(set(look.actors_U) - {""})
    place = {name: at for at, name in enumerate(names)}
    actor_U = np.array([place.get(name, -1) for name in look.actors_U], np.int64)
    return {
        **_over_time(times_U, rows_U, look.real_U, actor_U, names),
        "by_actor": _by_actor(look, rows_U, actor_U, names)[:ACTORS_SHOWN],
        "actors": len(names),
        "slowest": _slowest(run, look, rows_U),
        "median": _finite(_per_second(look)),
        # of the last command that came to an end: it worked on the last night
        "process": run.summary.get("this_process") if last else None,
    }


def _over_time(
    times_U: NDArray[np.float64],
    rows_U: NDArray[np.int64],
    tokens_U: NDArray[np.int64],
    actor_U: NDArray[np.int64],
    names: Sequence[str],
) -> dict[str, Any]:
    """Rows and tokens by the time at which their parts were written, in equal steps."""
    if not len(times_U) or not times_U.min():
        return {"steps": None}
    start, span = float(times_U.min()), float(np.ptp(times_U))
    step = next((step for step in _STEP_S if span / step < STEPS), _STEP_S[-1])
    places = ((times_U - start) / step).astype(np.int64)
    size = int(places.max()) + 1
    by_actor = {
        name: np.bincount(
            places[actor_U == actor], tokens_U[actor_U == actor], minlength=size
        ).tolist()
        for actor, name in enumerate(names[:ACTORS_SHOWN])
    }
    return {
        "first": _time(start),
        "last": _time(start + span),
        "seconds": span,
        "steps": {
            "start": start,
            "step_s": step,
            "rows": np.bincount(places, rows_U, minlength=size).tolist(),
            "tokens": np.bincount(places, tokens_U, minlength=size).tolist(),
            "tokens_by_actor": by_actor,
        },
    }


def _by_actor(
    look: Look, rows_U: NDArray[np.int64], actor_U: NDArray[np.int64], names: Sequence[str]
) -> list[dict[str, Any]]:
    found = []
    for actor, name in enumerate(names):
        own_U = actor_U == actor
        seconds, tokens = float(np.nansum(look.seconds_U[own_U])), int(look.real_U[own_U].sum())
        found.append(
            {
                "actor": name,
                "units": int(own_U.sum()),
                "rows": int(rows_U[own_U].sum()),
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_s": tokens / seconds if seconds else None,
            }
        )
    return found


def _per_second(look: Look) -> NDArray[np.float64]:
    """Tokens that each unit's actor scored in a second of its work."""
    with np.errstate(divide="ignore", invalid="ignore"):
        speed_U: NDArray[np.float64] = np.where(
            look.real_U > 0, look.real_U / look.seconds_U, np.nan
        )
    return speed_U


def _finite(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _slowest(run: Run, look: Look, rows_U: NDArray[np.int64]) -> list[dict[str, Any]]:
    speed_U = _per_second(look)
    known = np.flatnonzero(np.isfinite(speed_U))
    order = known[np.argsort(speed_U[known], kind="stable")][:SLOWEST]
    return [
        {
            "part": run.part_paths[look.positions[place]],
            "rows": int(rows_U[place]),
            "tokens": int(look.real_U[place]),
            "seconds": float(look.seconds_U[place]),
            "tokens_per_s": float(speed_U[place]),
            "actor": look.actors_U[place],
        }
        for place in order.tolist()
    ]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _used(run: Run) -> dict[str, Any]:
    """What the run is recorded for."""
    decision = run.decision
    return {
        "model": run.record["model"],
        "model_digest": run.identity["model"],
        "run": run.digest,
        "created": run.record["created"],
        "decision": decision.digest,
        "objective": decision.objective,
        "fallback": decision.fallback,
        "hierarchy": len(decision.hierarchy),
        "engine": run.resolved.model_dump(mode="json"),
        "units": {key: run.identity[f"units.{key}"] for key in ("rows", "bytes")},
        "policy": run.identity["long.policy"],
        "text": run.plan.spec.text,
        "input": run.plan.spec.root,
        "kept": list(run.plan.spec.kept_schema.names),
        "versions": dict(run.record["versions"]),
        "score_bins": SCORE_BINS,
    }
