"""Account for every unit of a run, and declare it a success.

While a run goes on, the driver keeps a state per unit and sums, never rows or receipts. At the end
every unit must be written or set aside by name; parts of earlier processes say in their footers
what they hold.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.config import LimitsConfig
from ray_mlc.corpus.reading import open_parquet
from ray_mlc.errors import LimitError, RayMlcError, RunMismatchError, StorageError, first_line
from ray_mlc.scoring.ledger import FAILURES_FILE, SCRATCH, SUCCESS_FILE, SUMMARY_FILE, Run
from ray_mlc.scoring.night_drift import accepted_nights, describe_drift, is_beyond
from ray_mlc.scoring.nights import to_json
from ray_mlc.scoring.origins import Origin
from ray_mlc.scoring.parts import Receipt, map_parts, read_footer_key
from ray_mlc.scoring.standing import PROGRESS_FILE
from ray_mlc.storage import filesystem_of, sweep

LAG_S = 60.0
"""Longest time that a listing may lag behind writes before a part counts as lost."""
PENDING, WRITTEN, EARLIER, SET_ASIDE = range(4)
_SUMMED = (
    *("rows", "labels", "tokens", "truncated", "k_cut", "real_tokens", "padded_tokens"),
    *("labels_before", "unsettled"),
)
BAD_STATUSES = ("decode_error", "not_finite", "too_long")


@dataclass
class Sums:
    """Totals over written units."""

    rows: int = 0
    labels: int = 0
    tokens: int = 0
    truncated: int = 0
    k_cut: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    labels_before: int = 0
    unsettled: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Rows per message of what the tokenizer or engine raised over them."""

    def add(self, receipt: Receipt) -> None:
        """Add a unit."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(receipt, name))
        self.statuses.update(receipt.statuses)
        self.errors.update(receipt.errors)


class Tally:
    """What has become of each unit of a run."""

    def __init__(self, run: Run, pending: NDArray[np.int64]) -> None:
        """Nothing is known yet but what is pending."""
        self.run = run
        self.state_U = np.full(len(run.plan.units), EARLIER, np.int8)
        """PENDING, WRITTEN by this process, written EARLIER, or SET_ASIDE, per unit."""
        self.state_U[pending] = PENDING
        self.here, self.all = Sums(), Sums()
        self.faults: dict[int, Receipt] = {}
        """Units that this process set aside, by position."""
        self._positions = {run.part_paths[index]: index for index in pending.tolist()}
        self._rows_U = run.plan.units["rows"].to_numpy()

    def awaits(self, receipt: Receipt) -> bool:
        """Whether nothing is known yet of a receipt's unit: a task that is retried tells twice."""
        return bool(self.state_U[self._positions[receipt.part]] == PENDING)

    def add(self, receipts: Iterable[Receipt]) -> int:
        """Take note of units done or set aside; the rows that were not noted before."""
        rows = 0
        for receipt in receipts:
            if not self.awaits(receipt):
                continue
            position = self._positions[receipt.part]
            rows += receipt.rows
            if receipt.fault is not None:
                self.state_U[position] = SET_ASIDE
                self.faults[position] = receipt
                continue
            self.state_U[position] = WRITTEN
            self.here.add(receipt)
            self.all.add(receipt)
        return rows

    def reopen(self, is_meant: Callable[[str], bool]) -> NDArray[np.int64]:
        """Take back units that this process set aside, so that they are tried once more.

        Args:
            is_meant: Whether a reason to set aside is one of those.

        Returns:
            Their positions.
        """
        again = [
            position
            for position, receipt in self.faults.items()
            if receipt.fault is not None and is_meant(receipt.fault)
        ]
        for position in again:
            del self.faults[position]
        found = np.array(sorted(again), np.int64)
        self.state_U[found] = PENDING
        return found

    def rows(self, *states: int) -> int:
        """Rows of the units in some states."""
        return int(self._rows_U[np.isin(self.state_U, states)].sum(dtype=np.int64))

    def note_orphans(self, there: set[str]) -> None:
        """Units that are pending here, but were committed by a task of an earlier process."""
        for part, position in self._positions.items():
            if self.state_U[position] == PENDING and part in there:
                self.state_U[position] = EARLIER


def finish_run(
    run: Run,
    tally: Tally,
    limits: LimitsConfig,
    *,
    seconds: float,
    check: Callable[[], None] = lambda: None,
    drift: Callable[[NDArray[np.int64]], list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Account for every unit, write failures and summary, and `_SUCCESS` if the limits hold.

    Args:
        run: The run.
        tally: What this process has done; parts of earlier ones are read from their footers.
        limits: How much may be set aside.
        seconds: Time that this process took.
        check: Called before anything is declared; raises if the run is no longer ours.
        drift: Gives `night_drift.measure_drift` of the run by the positions of the units that
            have a part; None: nobody wants to know.

    Returns:
        The summary.

    Raises:
        RayMlcError: If a unit is neither written nor set aside; safe to run again.
        LimitError: If more was set aside than the limits allow.
    """
    there = _settled_listing(run, tally)
    tally.note_orphans(there)
    paths = run.part_paths
    for receipt in earlier_receipts(run, np.flatnonzero(tally.state_U == EARLIER)):
        tally.all.add(receipt)
    written_U = np.isin(tally.state_U, (WRITTEN, EARLIER))
    lost = [paths[index] for index in np.flatnonzero(written_U) if paths[index] not in there]
    missing = [paths[index] for index in np.flatnonzero(tally.state_U == PENDING)]
    if missing or lost:
        raise RayMlcError(
            f"{run.storage.uri}: {len(missing) + len(lost)} unit(s) were not written, such as "
            f"{(missing or lost)[0]}: run the same command again"
        )
    failures = _failures(run, tally)
    summary = _summarize(run, tally, failures, seconds=seconds)
    if drift is not None:
        summary["drift"] = drift(np.flatnonzero(written_U))
    summary["accepted_nights"] = _accepted_nights(run, summary, limits)
    check()
    run.storage.put(FAILURES_FILE, to_json(failures))
    run.storage.put(SUMMARY_FILE, to_json(summary))
    sweep(run.storage, SCRATCH)  # of writers that were killed while this process went on
    run.storage.delete(PROGRESS_FILE)  # the same
    check_limits(run, summary, limits)
    check()
    run.storage.put(SUCCESS_FILE, b"")
    return summary


def _settled_listing(run: Run, tally: Tally) -> set[str]:
    """A listing that holds every part that we have a receipt for, if patience brings one."""
    ours = [run.part_paths[index] for index in np.flatnonzero(tally.state_U == WRITTEN)]
    deadline, pause_s = time.monotonic() + LAG_S, 0.5
    while True:
        there = run.listing()
        if all(part in there for part in ours) or time.monotonic() > deadline:
            return there
        time.sleep(min(pause_s, LAG_S))
        pause_s *= 2


def check_limits(run: Run, summary: Mapping[str, Any], limits: LimitsConfig) -> None:
    """Refuse a run of which more was set aside than `limits` allow; it is no success then.

    Raises:
        LimitError: Naming the limit and the largest file or unit that was set aside.
    """
    problem = _beyond_limits(summary, limits)
    if problem is None:
        _check_drift(run, summary, limits)
        return
    run.storage.delete(SUCCESS_FILE)  # of an earlier command with wider limits
    failures = json.loads(run.storage.read(FAILURES_FILE) or b"[]")
    worst = max(failures, key=lambda item: item["rows"] or 0, default=None)
    named = f" ({worst['source']}: {worst['reason']})" if worst else ""
    origin = run.origin
    advice = (
        "repair the input and run the same command again, or raise the limit"
        if origin is None
        else f"complete {origin.output} by its own command, then run the same command again"
    )
    raise LimitError(
        f"{run.storage.uri}: {problem}{named}; see {FAILURES_FILE} and {SUMMARY_FILE}: {advice}"
    )


def _check_drift(run: Run, summary: Mapping[str, Any], limits: LimitsConfig) -> None:
    drifted = _drifted_nights(summary, limits)
    if drifted:
        run.storage.delete(SUCCESS_FILE)
        first = f"{run.storage.uri}@{drifted[0]['night']}"
        others = ", ".join(str(drift["night"]) for drift in drifted[1:])
        also = f", and so have those of night(s) {others}" if others else ""
        raise LimitError(
            f"{first}: {describe_drift(drifted[0])}{also}; `ray-mlc compare {run.record['model']} "
            f"{first}` says more: see to the input, train again, or raise limits.drift"
        )


def _drifted_nights(summary: Mapping[str, Any], limits: LimitsConfig) -> list[dict[str, Any]]:
    """The nights whose drift stops a success."""
    if limits.drift is None or limits.drift.action == "warn":
        return []
    return [drift for drift in summary.get("drift", ()) if is_beyond(drift)]


def _accepted_nights(run: Run, summary: Mapping[str, Any], limits: LimitsConfig) -> int:
    """How many nights are part of a success: all if this becomes one.

    Otherwise as many as before, but none that was measured now: it is measured again, until it is
    part of one.
    """
    if _beyond_limits(summary, limits) is None and not _drifted_nights(summary, limits):
        return len(run.nights)
    measured = [int(drift["night"]) - 1 for drift in summary.get("drift", ())]
    return min([accepted_nights(run.summary), *measured])


def earlier_receipts(run: Run, positions: NDArray[np.int64]) -> Iterator[Receipt]:
    """Receipts of parts that another process committed, from their footers.

    Raises:
        RunMismatchError: If a part belongs to another run.
        StorageError: If one cannot be read.
    """
    filesystem, base = filesystem_of(run.storage.uri)

    def read(position: int) -> Receipt:
        part = run.part_paths[position]
        try:
            with open_parquet(filesystem, f"{base}/{part}") as file:
                footer = read_footer_key(file.metadata)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"{run.storage.uri}/{part}: cannot be read back ({first_line(error)}): delete it "
                "and run the same command again"
            ) from None
        if footer is None or footer["run"] != run.digest:
            raise RunMismatchError(f"{run.storage.uri}: {part} belongs to another run")
        return Receipt(**footer["receipt"])

    return map_parts(read, positions.tolist())


def _failures(run: Run, tally: Tally) -> list[dict[str, Any]]:
    """Files and units that were set aside."""
    files = [
        {"source": row["source"], "first_row": None, "rows": row["rows"], "reason": row["fault"]}
        for row in run.plan.faulty_files()
    ]
    units = [
        {
            "source": item.source,
            "first_row": item.first_row,
            "rows": item.rows,
            "reason": item.fault,
        }
        for item in tally.faults.values()
    ]
    return files + sorted(units, key=lambda item: (item["source"], item["first_row"]))


def _summarize(
    run: Run, tally: Tally, failures: Sequence[Mapping[str, Any]], *, seconds: float
) -> dict[str, Any]:
    sums, here = tally.all, tally.here
    set_aside = sum(item["rows"] or 0 for item in failures)
    of_files = sum(item["rows"] or 0 for item in failures if item["first_row"] is None)
    return {
        "rows": {
            "planned": run.plan.rows + of_files,
            "written": sums.rows,
            "set_aside": set_aside,
        },
        "statuses": dict(sorted(sums.statuses.items())),
        "errors": dict(sums.errors.most_common(10)),
        "bad_rows": sum(sums.statuses[name] for name in BAD_STATUSES) + set_aside,
        "files": len(run.plan.files),
        "bad_files": len({item["source"] for item in failures}),
        "nights": len(run.nights),
        "parts": int(np.isin(tally.state_U, (WRITTEN, EARLIER)).sum()),
        "labels_per_row": sums.labels / max(1, sums.statuses["ok"]),
        "tokens": sums.tokens,
        "truncated": sums.truncated,
        "k_cut": sums.k_cut,
        **({} if run.origin is None else {"retag": _decided_again(run.origin, sums)}),
        "this_process": _work_here(int((tally.state_U == WRITTEN).sum()), here, seconds),
        "engine": run.resolved.model_dump(),
    }


def _work_here(units: int, here: Sums, seconds: float) -> dict[str, Any]:
    """What the summary says of the command that ends a run: its own share, and how fast it was."""
    padded = here.padded_tokens
    return {
        "units": units,
        "rows": here.rows,
        "seconds": round(seconds, 3),
        "rows_per_s": round(here.rows / seconds, 2) if seconds else None,
        "tokens_per_s": round(here.real_tokens / seconds, 1) if seconds else None,
        "real_tokens": here.real_tokens,
        "padding": round(1 - here.real_tokens / padded, 4) if padded else 0.0,
    }


def summary_of_complete(run: Run) -> dict[str, Any]:
    """The summary of a run that was complete before this command, which did nothing for it."""
    return {**run.summary, "this_process": _work_here(0, Sums(), 0.0)}


def _decided_again(origin: Origin, sums: Sums) -> dict[str, Any]:
    """What the summary of a run says that decides stored scores anew."""
    return {
        "output": origin.output,
        "labels_per_row_before": sums.labels_before / max(1, sums.statuses["ok"]),
        "unsettled": sums.unsettled,
    }


def _beyond_limits(summary: Mapping[str, Any], limits: LimitsConfig) -> str | None:
    """The limit that does not hold, as a sentence."""
    for name, total in (("bad_rows", summary["rows"]["planned"]), ("bad_files", summary["files"])):
        limit, count = getattr(limits, name), summary[name]
        allowed = limit * total if limit < 1 else limit
        if count > allowed:
            shown = f"{limit:.2%} of {total:,}" if limit < 1 else f"{limit:,.0f}"
            return f"{count:,} {name.replace('_', ' ')}, limits.{name} allows {shown}"
    return None
