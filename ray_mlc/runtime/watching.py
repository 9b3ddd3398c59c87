"""Put together what is known of a night while it works, and tell it to everybody who looks.

Receipts come from the main thread, signs of life from another one; a lock keeps them apart. A run
may have a million units: they are counted once a second, not at each receipt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ray_mlc.model.batching import padding_fraction
from ray_mlc.runtime.metrics import Metrics, open_metrics
from ray_mlc.runtime.progress import Shown, StageHandle
from ray_mlc.scoring.accounts import BAD_STATUSES, PENDING, SET_ASIDE, Tally
from ray_mlc.scoring.forecast import work_of
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.standing import END_TO_END, Crew, Pace, Standing, Vitals, published
from ray_mlc.storage import Storage

COUNT_EVERY_S = 1.0
"""Seconds between two counts of all units."""


class NightWatch:
    """A night at work, as far as its driver knows."""

    def __init__(
        self,
        tally: Tally,
        stage: StageHandle | None,
        metrics: Metrics,
        *,
        actors: int,
        gpus: bool,
        documents_per_s: float | None,
    ) -> None:
        """Begin to watch.

        Args:
            tally: What has become of each unit; told about receipts here.
            stage: What the user sees; None: another night of the same pass is shown.
            metrics: What Prometheus sees.
            actors: Actors asked for.
            gpus: Whether they have GPUs, and others tokenize.
            documents_per_s: Speed expected of an actor, if anything is.
        """
        self._tally, self._stage, self._actors, self._gpus = tally, stage, actors, gpus
        self._metrics = metrics
        self._lock = threading.Lock()
        self._started_s = self._counted_s = time.monotonic()
        self._vitals, self._crew = Vitals(), Crew()
        units, resolved = tally.run.plan.units, tally.run.resolved
        self._rows_U, bytes_U = (units[name].to_numpy() for name in ("rows", "bytes"))
        self._work_U = work_of(self._rows_U, bytes_U, max_tokens=resolved.most_tokens)
        self._count()
        self._pending_rows, self._pending_work = self._rows_S[PENDING], self._work_S[PENDING]
        self._row_work = self._pending_work / max(1, self._pending_rows)
        expected = None if documents_per_s is None else documents_per_s * actors * END_TO_END
        self._work = Pace(None if expected is None else expected * self._row_work)
        self._rows, self._tokens = Pace(expected), Pace()

    def _count(self) -> None:
        """Count units, rows and work by state; the lock is held."""
        state_U, options = self._tally.state_U, {"minlength": SET_ASIDE + 1}
        self._units_S = np.bincount(state_U, **options)
        self._rows_S = np.bincount(state_U, self._rows_U, **options)
        self._work_S = np.bincount(state_U, self._work_U, **options)

    def heard(self, vitals: Vitals) -> None:
        """Take note of signs of life."""
        with self._lock:
            # one that died and came back has said so twice
            vitals = replace(vitals, actors=min(vitals.actors, self._actors))
            self._metrics.heard(vitals)
            self._vitals = vitals
            news = self._note()
        self._show(0, news=news)

    def receipts(self, receipts: Sequence[Receipt]) -> None:
        """Take note of units that are done."""
        with self._lock:
            self._metrics.receipts([item for item in receipts if self._tally.awaits(item)])
            rows = self._tally.add(receipts)
            news = self._note()
        self._show(rows, news=news)

    def _note(self) -> bool:
        """Bring counts and speeds up to date, if it is time; the lock is held."""
        now_s = time.monotonic()
        if now_s - self._counted_s < COUNT_EVERY_S:
            return False
        self._counted_s = now_s
        self._count()
        self._crew.look(self._vitals)
        if self._begun:
            self._work.note(self._pending_work - self._work_left, now_s)
            self._rows.note(self._pending_rows - self._rows_S[PENDING] + self._ahead, now_s)
            self._tokens.note(self._vitals.real_tokens, now_s)
        return True

    @property
    def _begun(self) -> bool:
        """Whether anything has been through the model here."""
        return bool(self._vitals.rows or self._tally.here.rows)

    @property
    def _ahead(self) -> float:
        """Rows that are scored, but not committed; lost blocks are told twice."""
        left = self._rows_S[PENDING]
        return float(min(max(0.0, self._vitals.rows - (self._pending_rows - left)), left))

    @property
    def _work_left(self) -> float:
        left = self._work_S[PENDING] - self._ahead * self._row_work
        return float(max(0.0, left))

    @property
    def standing(self) -> Standing:
        """The night at the last count."""
        with self._lock:
            return self._standing()

    def _standing(self) -> Standing:
        tally, vitals, speed = self._tally, self._vitals, self._work.per_s
        padded = vitals.padded_tokens
        return Standing(
            rows_planned=int(self._rows_S.sum()),
            rows_done=int(self._rows_S.sum() - self._rows_S[PENDING]),
            units_planned=int(self._units_S.sum()),
            units_done=int(self._units_S.sum() - self._units_S[PENDING]),
            rows_set_aside=int(self._rows_S[SET_ASIDE]),
            rows_bad=sum(tally.here.statuses[name] for name in BAD_STATUSES),
            rows_per_s=self._rows.per_s if self._begun else None,
            tokens_per_s=self._tokens.per_s,
            padding=padding_fraction(vitals.real_tokens, padded) if padded else None,
            actors_ready=vitals.actors,
            actors=self._actors,
            busy=self._crew.busy,
            waits_for=self._crew.waits_for(vitals.actors, tokenizers=self._gpus),
            blocks=vitals.blocks,
            seconds=time.monotonic() - self._started_s,
            seconds_left=self._work_left / speed if self._begun and speed else None,
        )

    def _show(self, rows: int, *, news: bool) -> None:
        shown = None
        standing = self.standing if news else None
        if standing is not None:
            self._metrics.standing(standing)
        if standing is not None and standing.actors_ready:  # else the stage says what is doing
            shown = Shown(
                standing.lines(), standing.to_dict(), standing.rows_per_s, standing.seconds_left
            )
        if self._stage is not None and (rows or shown is not None):
            self._stage.advance(rows, shown=shown)


@contextmanager
def watching(
    tally: Tally,
    stage: StageHandle | None,
    storage: Storage,
    *,
    actors: int,
    gpus: bool,
    token: str | None,
    documents_per_s: float | None,
) -> Iterator[NightWatch]:
    """Watch a night while the block runs, and tell others by `_ray_mlc/progress.json`.

    Args:
        tally: What has become of each unit.
        stage: What the user sees; None: another night of the same pass is shown.
        storage: The output folder.
        actors: Actors asked for.
        gpus: Whether they have GPUs.
        token: Of the lease; None: there is none.
        documents_per_s: Speed expected of an actor, if anything is.
    """
    metrics = open_metrics(storage.uri)
    watch = NightWatch(
        tally, stage, metrics, actors=actors, gpus=gpus, documents_per_s=documents_per_s
    )

    def describe() -> dict[str, Any]:
        return watch.standing.to_dict()

    with published(storage, describe, token=token):
        yield watch
