"""The scoring way in one process: the reference that Ray must match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.folder import ModelFolder
from ray_mlc.runtime.backend import resolve_engine
from ray_mlc.runtime.interrupt import Stop
from ray_mlc.runtime.probe import Probe, Prober
from ray_mlc.runtime.session import usable_cores
from ray_mlc.runtime.steps import ScoreStep, Work, write
from ray_mlc.scoring.forecast import Kind
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.sample import sample_units
from ray_mlc.scoring.standing import Vitals


class LocalBackend:
    """Every step in this process, one read after the other."""

    @property
    def starting(self) -> str | None:
        """See `Backend.starting`."""
        return None

    def start(self) -> AbstractContextManager[None]:
        """See `Backend.start`."""
        return nullcontext()

    def resolve(self, folder: ModelFolder, plan: CorpusPlan, job: ScoreJob) -> ResolvedEngine:
        """See `Backend.resolve`."""
        cuda = bool(job.actors.gpus != "auto" and job.actors.gpus > 0)
        return resolve_engine(job, folder, sample_units(plan), plan.spec, cuda=cuda)

    def actors(self, job: ScoreJob) -> int:
        """See `Backend.actors`."""
        del job
        return 1

    def kind(self, job: ScoreJob) -> Kind:
        """See `PlanBackend.kind`."""
        del job
        cores = usable_cores()
        return Kind(actors_per_node=1, cores_per_node=cores, threads=cores, ray=False)

    def probe(self, work: Work, block: pa.Table, block_rows: int) -> list[Probe]:
        """See `PlanBackend.probe`."""
        return [Prober(work).run(block, block_rows)]

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
        """See `Backend.process`."""
        del job
        step = ScoreStep(works)
        totals = [0] * len(works)

        def progress(work: int, rows: int) -> None:
            totals[work] += rows
            stats = step.stats[work]
            told = Vitals(totals[work], stats.real_tokens, stats.padded_tokens, actors=1, work=work)
            scored(told)
            stop.check()

        for read in reads:
            if stop.requested:
                return
            block = works[0].reading(plan.units_at(read))
            yield write(step.both(block, progress), works)
