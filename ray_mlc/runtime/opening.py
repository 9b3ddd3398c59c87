"""The runs that a command is for, opened one beside the other, so that they share what they can.

A command with several models is for as many runs. Which of them are there already, in which units
the new ones are cut, and with which engines, is decided here before anything is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import BatchingConfig, DriftConfig, EngineConfig, LimitsConfig, ScoreJob
from ray_mlc.corpus.footers import KnownFooters, read_footers
from ray_mlc.model.engines.choose import ResolvedEngine, describe_trials
from ray_mlc.model.folder import ModelFolder
from ray_mlc.runtime.backend import Backend
from ray_mlc.runtime.inputs import Inputs
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.steps import Work
from ray_mlc.runtime.threads import in_threads
from ray_mlc.scoring.accounts import (
    EARLIER,
    SET_ASIDE,
    WRITTEN,
    Tally,
    check_limits,
    finish_run,
    summary_of_complete,
)
from ray_mlc.scoring.compare import Side
from ray_mlc.scoring.lease import Lease, check_holder
from ray_mlc.scoring.ledger import RUN_FILE, Run, open_run
from ray_mlc.scoring.night_drift import measure_drift
from ray_mlc.scoring.passes import UnitPass
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.storage import Storage, open_storage


@dataclass(frozen=True)
class Asked:
    """One of the runs that a command is for, before it is open."""

    name: str
    """What the job calls it; empty where it is the only one."""
    job: ScoreJob
    inputs: Inputs
    lease: Lease | None

    @cached_property
    def storage(self) -> Storage:
        """The output folder."""
        return open_storage(self.job.output.path)

    @property
    def token(self) -> str | None:
        """Of the lease."""
        return None if self.lease is None else self.lease.token

    def check(self) -> None:
        """Stop if the output is no longer ours."""
        if self.lease is not None:
            check_holder(self.storage, self.lease.token)

    def named(self, text: str) -> str:
        """A sentence about this run."""
        return f"{self.name}: {text}" if self.name else text


class Opened:
    """One of these runs, and where its work stands."""

    def __init__(self, asked: Asked, run: Run, pending: NDArray[np.int64]) -> None:
        self.asked, self.run, self.pending = asked, run, pending
        self.tally = Tally(run, pending)
        self.drift = _drift_of(run, asked.inputs.validation, asked.job.limits)

    @property
    def limits(self) -> LimitsConfig:
        """How much may be set aside."""
        return self.asked.job.limits

    @cached_property
    def complete(self) -> bool:
        """Whether an earlier command has left nothing to do."""
        known = self.drift is None or _limit_of(self.run.summary) == self.limits.drift
        return self.run.succeeded and not len(self.pending) and known

    def work(self) -> tuple[Work, ModelFolder]:
        """What processes need for it, and its model."""
        folder = self.asked.inputs.folder
        return Work.of(self.run, folder, holder=self.asked.token), folder

    def finish(self, seconds: float) -> dict[str, Any]:
        """Account for every unit; see `finish_run`."""
        return finish_run(
            self.run,
            self.tally,
            self.limits,
            seconds=seconds,
            check=self.asked.check,
            drift=self.drift,
        )

    def checked(self) -> dict[str, Any]:
        """The summary of a run that is complete."""
        check_limits(self.run, self.run.summary, self.limits)
        return summary_of_complete(self.run)


def open_runs(
    asked: Sequence[Asked], ready: Callable[[], Backend], display: Display, *, add_new: bool
) -> list[Opened]:
    """Start or continue each run.

    Those that are there come first. New ones take their units from one that is being continued,
    and else have units for all of them together: with the same units they share every read. No
    new run is created before all models were found to do.
    """
    new = [item for item in asked if item.storage.read(RUN_FILE) is None]
    engines = _Engines(new, ready, display)
    read = KnownFooters().read if len(asked) > 1 else read_footers
    found: dict[str, Opened] = {}
    for item in sorted(asked, key=lambda item: item in new):
        job, starters = item.job, None
        if item in new and job.units.rows == "auto":
            there = (other for other in found.values() if other.asked not in new)
            ahead = next((other for other in there if len(other.pending)), None)
            if ahead is not None:
                rows = ahead.run.identity["units.rows"]
                job = job.model_copy(update={"units": job.units.model_copy(update={"rows": rows})})
                starters = ahead.run.starters
        with display.stage("plan", None, "footers") as stage:
            stage.doing("looking at the output and new footers")
            run, pending, notes = open_run(
                job,
                item.inputs.folder,
                item.inputs.listing,
                partial(engines, item),
                add_new=add_new,
                check=item.check,
                progress=stage.advance,
                read=read,
                speed=engines.speed,
                starters=starters,
            )
        for note in notes:
            display.say(f"note: {item.named(note)}")
        found[item.name] = Opened(item, run, pending)
    return [found[item.name] for item in asked]


class _Engines:
    """Engines of the runs that are not there yet, all of them resolved with the first."""

    def __init__(
        self, new: Sequence[Asked], ready: Callable[[], Backend], display: Display
    ) -> None:
        self._new, self._ready, self._display = new, ready, display
        self._found: dict[str, ResolvedEngine] = {}

    def __call__(self, item: Asked, model: ModelFolder, plan: CorpusPlan) -> ResolvedEngine:
        """The engine of a run."""
        del model
        if item.name not in self._found:
            there = self._ready()
            for other in self._new if item in self._new else (item,):
                with self._display.doing(other.named("loading the model, trying engines")):
                    folder = other.inputs.folder
                    self._found[other.name] = there.resolve(folder, plan, other.job)
        return self._found[item.name]

    def speed(self, engine: ResolvedEngine) -> float | None:
        """Documents per second that a process takes through all of them."""
        del engine
        return speed_of_all([engine.documents_per_s for engine in self._found.values()])


def of_its_kind(job: ScoreJob, folder: ModelFolder) -> ScoreJob:
    """The job of one model of several: what it says of encoders is not meant for TF-IDF."""
    if folder.info.kind != "tfidf":
        return job
    actors = job.actors.model_copy(update={"gpus": 0.0})  # beside encoders it runs on CPUs
    engine = EngineConfig(remember=job.engine.remember)
    other = {"engine": engine, "batching": BatchingConfig(), "actors": actors}
    return job.model_copy(update=other)


def why_apart(nights: Sequence[Opened], passes: Sequence[UnitPass]) -> str | None:
    """What keeps runs that wait for the same rows from being read for as one."""
    if len(passes) < 2:
        return None
    first, *others = nights
    for night in others:
        both = f"{first.asked.name} and {night.asked.name}"
        if night.run.plan.spec != first.run.plan.spec:
            return (
                f"{both} keep or rename other columns: the corpus is read and tokenized for each "
                "(the same output.keep lets them share; so do labels that no input column is "
                "called by)"
            )
        rows = [run.identity["units.rows"] for run in (first.run, night.run)]
        if rows[0] != rows[1]:
            return f"{both} have units of {rows[0]:,} and {rows[1]:,} rows: they are read for each"
    return None


def _drift_of(
    run: Run, validation: Side | None, limits: LimitsConfig
) -> Callable[[NDArray[np.int64]], list[dict[str, Any]]] | None:
    """What measures the drift of the nights since the last success, if that is limited."""
    if limits.drift is None or validation is None:
        return None
    return partial(measure_drift, run, validation, limits.drift, each=in_threads)


def _limit_of(summary: Mapping[str, Any]) -> DriftConfig | None:
    """The limit that a summary's drift was measured for."""
    return DriftConfig(**summary["drift"][0]["limit"]) if "drift" in summary else None


def introduction(nights: Sequence[Opened], units: NDArray[np.int64], *, ways: int) -> list[str]:
    """What is begun, for people: the corpus, and the engine of each run."""
    plan = nights[0].run.plan
    engines = [_describe(night.run.resolved) for night in nights]
    trials = [
        night.asked.named(measured)
        for night in nights
        if not night.tally.rows(EARLIER, WRITTEN, SET_ASIDE)
        and (measured := describe_trials(night.run.resolved))
    ]
    corpus = f"{plan.rows:,} rows in {len(plan.units):,} units of {len(plan.files):,} files"
    if not nights[0].asked.name:
        return [f"{corpus}; {engines[0]}", *trials]
    if len(units) < len(plan.units):
        corpus = f"{corpus}; {len(units):,} of these units"
    each = [night.asked.named(engine) for night, engine in zip(nights, engines, strict=True)]
    if len(nights) == 1:
        return [f"{corpus} are read for {each[0]}", *trials]
    often = "once" if ways == 1 else f"in {ways} ways"
    together = f"{corpus}, each read once for {len(nights)} models, and tokenized {often}"
    return [together, *each, *trials]


def _describe(engine: ResolvedEngine) -> str:
    text = f"{engine.name} {engine.dtype} on {engine.device}, at most {engine.max_tokens} tokens"
    return f"{text} in each of {engine.windows.max_windows} windows" if engine.windows else text


def speed_of_all(speeds: Sequence[float | None]) -> float | None:
    """Documents per second that one process takes through several models; None: not known."""
    known = [speed for speed in speeds if speed]
    return 1 / sum(1 / speed for speed in known) if known and len(known) == len(speeds) else None
