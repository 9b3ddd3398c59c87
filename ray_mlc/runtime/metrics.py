"""Figures of a night for Prometheus, beside those that Ray exports itself.

Ray puts `ray_` before each name, adds where it comes from, and offers all of it on every node's
metrics port: `ray_mlc_rows_total{run="s3://tags", …}`. `cluster/grafana/ray_mlc.json` is a
dashboard of these. Without Ray there is nobody to ask, and nothing is done.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from ray_mlc.scoring.accounts import BAD_STATUSES
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.standing import Standing, Vitals

log = logging.getLogger(__name__)

RUN, STAGE = "run", "stage"
"""Labels: the output of a run; where a block is."""
SECONDS = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)


@dataclass(frozen=True)
class Metric:
    """One of the figures."""

    name: str
    """Without the prefix that Ray gives it."""
    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: tuple[str, ...] = (RUN,)

    @property
    def exported(self) -> tuple[str, ...]:
        """What Prometheus calls it."""
        name = f"ray_{self.name}"
        if self.kind == "histogram":
            return f"{name}_bucket", f"{name}_sum", f"{name}_count"
        return (name,)


ROWS = Metric("mlc_rows_total", "counter", "Rows written")
UNITS = Metric("mlc_units_total", "counter", "Units committed")
ASIDE = Metric("mlc_set_aside_rows_total", "counter", "Rows set aside with their units")
BAD = Metric("mlc_bad_rows_total", "counter", "Rows written with a status that counts as bad")
TOKENS = Metric("mlc_tokens_total", "counter", "Tokens scored, padding not counted")
PADDED = Metric("mlc_padded_tokens_total", "counter", "Tokens computed, padding included")
PLANNED = Metric("mlc_rows_planned", "gauge", "Rows of the run, all nights")
DONE = Metric("mlc_rows_done", "gauge", "Rows of the run that are written or set aside")
LEFT = Metric("mlc_seconds_left", "gauge", "Seconds until all is scored")
ACTORS = Metric("mlc_actors", "gauge", "Actors asked for")
READY = Metric("mlc_actors_ready", "gauge", "Actors that have loaded the model and proven it")
BUSY = Metric("mlc_actors_busy_ratio", "gauge", "Share of the ready actors at work, last minute")
BLOCKS = Metric("mlc_blocks", "gauge", "Blocks of rows by stage", (RUN, STAGE))
UNIT_SECONDS = Metric("mlc_unit_seconds", "histogram", "Seconds of an actor for a unit")
METRICS = (
    *(ROWS, UNITS, ASIDE, BAD, TOKENS, PADDED, PLANNED, DONE, LEFT),
    *(ACTORS, READY, BUSY, BLOCKS, UNIT_SECONDS),
)


class Metrics(Protocol):
    """Told about a night by its driver."""

    def receipts(self, receipts: Sequence[Receipt]) -> None:
        """Units are done."""

    def heard(self, vitals: Vitals) -> None:
        """Processes have said what they did."""

    def standing(self, standing: Standing) -> None:
        """The night has been counted."""


class Silent:
    """Where there is no Ray."""

    def receipts(self, receipts: Sequence[Receipt]) -> None:
        """See `Metrics.receipts`."""

    def heard(self, vitals: Vitals) -> None:
        """See `Metrics.heard`."""

    def standing(self, standing: Standing) -> None:
        """See `Metrics.standing`."""


class RayMetrics:
    """Hands figures to Ray, which keeps them."""

    def __init__(self, run: str, make: Callable[[Metric], Any] | None = None) -> None:
        """Register the figures.

        Args:
            run: What the label `run` says.
            make: Makes a figure; None: Ray's.
        """
        self._run = {RUN: run}
        self._made = {metric: (make or _make)(metric) for metric in METRICS}
        self._told = Vitals()

    def receipts(self, receipts: Sequence[Receipt]) -> None:
        """See `Metrics.receipts`."""
        written = [item for item in receipts if item.fault is None]
        bad = sum(item.statuses.get(name, 0) for item in written for name in BAD_STATUSES)
        self._add(ROWS, sum(item.rows for item in written))
        self._add(UNITS, len(written))
        self._add(ASIDE, sum(item.rows for item in receipts if item.fault is not None))
        self._add(BAD, bad)
        for item in written:
            if item.seconds is not None:
                with _harmless():
                    self._made[UNIT_SECONDS].observe(item.seconds, self._run)

    def heard(self, vitals: Vitals) -> None:
        """See `Metrics.heard`."""
        told, self._told = self._told, vitals
        self._add(TOKENS, vitals.real_tokens - told.real_tokens)
        self._add(PADDED, vitals.padded_tokens - told.padded_tokens)

    def standing(self, standing: Standing) -> None:
        """See `Metrics.standing`."""
        self._set(PLANNED, standing.rows_planned)
        self._set(DONE, standing.rows_done)
        self._set(ACTORS, standing.actors)
        self._set(READY, standing.actors_ready)
        self._set(LEFT, standing.seconds_left)
        self._set(BUSY, standing.busy)
        if standing.blocks is not None:
            for stage, count in asdict(standing.blocks).items():
                self._set(BLOCKS, count, {STAGE: stage})

    def _add(self, metric: Metric, count: float) -> None:
        if count > 0:  # Ray refuses 0, and a pulse that was lost begins again at it
            with _harmless():
                self._made[metric].inc(count, self._run)

    def _set(self, metric: Metric, value: float | None, more: Mapping[str, str] = {}) -> None:
        if value is not None:
            with _harmless():
                self._made[metric].set(value, {**self._run, **more})


@contextmanager
def _harmless() -> Iterator[None]:
    """Whatever Ray's figures raise: a night does not end over them."""
    try:
        yield
    except Exception as error:
        log.debug("a figure is not told: %s", error)


def _make(metric: Metric) -> Any:
    from ray.util import metrics

    options: dict[str, Any] = {"description": metric.says, "tag_keys": metric.labels}
    match metric.kind:
        case "counter":
            return metrics.Counter(metric.name, **options)
        case "gauge":
            return metrics.Gauge(metric.name, **options)
        case _:
            return metrics.Histogram(metric.name, boundaries=list(SECONDS), **options)


def open_metrics(run: str) -> Metrics:
    """Where a driver tells its figures: Ray, if this process is connected to one.

    Args:
        run: Output of the run.
    """
    ray = sys.modules.get("ray")  # not imported for it
    if ray is None or not ray.is_initialized():
        return Silent()
    return RayMetrics(run)
