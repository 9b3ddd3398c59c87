"""Where the work of a scoring run is done: what one process and Ray have in common."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import first_line
from ray_mlc.model.engines.choose import ResolvedEngine, Sample, resolve
from ray_mlc.model.engines.remembered import key_of, recall, remember
from ray_mlc.model.folder import ModelFolder
from ray_mlc.runtime.interrupt import Stop
from ray_mlc.runtime.session import usable_cores
from ray_mlc.runtime.steps import Work
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.sample import sample_texts
from ray_mlc.scoring.standing import Vitals

log = logging.getLogger(__name__)

BUSY_LOAD = 2.0
"""Processes that want each core, in the last minute, from which a measurement is not kept."""


class Backend(Protocol):
    """Where the work is done."""

    @property
    def starting(self) -> str | None:
        """What `start` does, for the user to see; None: nothing that takes time."""

    def start(self) -> AbstractContextManager[None]:
        """Make ready for a block; entered when the lease is held, because it may cost a while."""

    def resolve(self, folder: ModelFolder, plan: CorpusPlan, job: ScoreJob) -> ResolvedEngine:
        """Turn every `auto` of the engine into a fact, on the hardware that will score."""

    def actors(self, job: ScoreJob) -> int:
        """Processes that will hold the model."""

    def process(
        self,
        plan: CorpusPlan,
        works: Sequence[Work],
        reads: Sequence[NDArray[np.int64]],
        job: ScoreJob,
        *,
        scored: Callable[[Vitals], None],
        stop: Stop,
    ) -> Iterator[list[list[Receipt]]]:
        """Read, score and commit; yields receipts as units are done, those of each run apart.

        Args:
            plan: What there is to read.
            works: What every process needs of each run that the units are scored for.
            reads: Positions of the units of each read.
            job: How many processes, and their limits.
            scored: Told, now and then and maybe from another thread, what has been through the
                model: a unit can take minutes, and nothing else is known of it before its receipt.
            stop: When requested, no read is begun, and this ends when what is in flight is done.
        """


def resolve_engine(
    job: ScoreJob,
    folder: ModelFolder,
    units: Sequence[Unit],
    spec: ReadSpec,
    *,
    cuda: bool,
    threads: int | None = None,
) -> ResolvedEngine:
    """Resolve the engine; documents of some units are fetched if there is anything to try.

    On CPUs what was found within the last week is taken again, if the job allows it (`remembers`).
    """
    name, dtype = job.engine.name, job.engine.dtype
    tries = "auto" in (dtype, job.batching.max_batch_tokens, job.units.rows)
    tries = tries or (name == "auto" and dtype != "float32")
    sample = cache(partial(sample_texts, units, spec, max_text_bytes=job.input.max_text_bytes))
    find = partial(
        resolve,
        folder,
        job.engine,
        job.batching,
        cuda=cuda,
        long=job.long,
        threads=threads,
        sample=sample if tries else None,
    )
    keeps = tries and remembers(job, folder, cuda=cuda)
    key = _key_of(job, folder, sample, threads=threads) if keeps else None
    found = recall(key) if key else None
    if found is not None:
        at, choice = found
        when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        with suppress(ValidationError):  # whatever else lies in the cache
            return ResolvedEngine.model_validate({**choice, "measured_at": when})
    chosen = find()
    if key and chosen.documents_per_s is not None and not _is_busy():
        remember(key, chosen.model_dump(mode="json"))
    return chosen


def remembers(job: ScoreJob, folder: ModelFolder, *, cuda: bool) -> bool:
    """Whether what `auto` comes to is kept on the machine, and looked up there.

    TF-IDF has one engine, int8 is bound to bytes and a decision of its own, and without recorded
    canaries nobody would notice that a choice does not hold any more.
    """
    is_encoder = folder.info.kind != "tfidf" and job.engine.dtype != "int8"
    return job.engine.remember and is_encoder and not cuda and folder.canaries() is not None


def _is_busy() -> bool:
    """Whether others compute on this machine so much that its figures are theirs, too."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY_LOAD * (os.cpu_count() or 1)


def _key_of(
    job: ScoreJob, folder: ModelFolder, sample: Sample, *, threads: int | None
) -> str | None:
    """A name for what the choice of an engine hangs on; None: it cannot be had."""
    canaries, long = folder.canaries(), folder.long(job.long)
    limit = long.max_tokens or folder.max_tokens
    if canaries is None or limit is None:
        return None
    windows = long.windows.max_windows if long.windows else 1
    try:
        texts = sample(max_tokens=windows * limit)
    except Exception as error:  # as in `resolve`: scoring finds the guilty document, and names it
        log.info("no choice of an engine is looked up: %s", first_line(error))
        return None
    asked = {
        "model": folder.digest,
        "canaries": hashlib.sha256(canaries.model_dump_json().encode()).hexdigest(),
        "decision": folder.info.decision.digest,
        "engine": job.engine.model_dump(mode="json"),
        "batching": job.batching.model_dump(mode="json"),
        "long": long.model_dump(mode="json"),
        "threads": threads or [usable_cores(), os.environ.get("OMP_NUM_THREADS")],
    }
    return key_of(asked, texts)
