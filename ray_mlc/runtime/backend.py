"""Where the work of a scoring run is done: what one process and Ray have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.units import Unit
from ray_mlc.model.engines.choose import ResolvedEngine, resolve
from ray_mlc.model.folder import ModelFolder
from ray_mlc.runtime.interrupt import Stop
from ray_mlc.runtime.steps import Work
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.sample import sample_texts
from ray_mlc.scoring.standing import Vitals


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
    """Resolve the engine; documents of some units are fetched if there is anything to try."""
    name, dtype = job.engine.name, job.engine.dtype
    tries = "auto" in (dtype, job.batching.max_batch_tokens, job.units.rows)
    tries = tries or (name == "auto" and dtype != "float32")
    return resolve(
        folder,
        job.engine,
        job.batching,
        cuda=cuda,
        long=job.long,
        threads=threads,
        sample=partial(sample_texts, units, spec, max_text_bytes=job.input.max_text_bytes)
        if tries
        else None,
    )
