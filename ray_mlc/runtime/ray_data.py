"""The scoring way on Ray Data: read tasks of whole units → actor pool → writing tasks.

    UnitSource ──▶ [tokenize] ──▶ ScoreActor × n ──▶ write ──▶ receipts to the driver

A read task yields ONE block of whole units: blocks that a task yields apart would be merged.
`target_max_block_size` is None, or Ray would split blocks again. The writer fails loudly on a piece
of a unit, so that a wrong guess about Ray costs a run and never a row. The driver pulls receipts,
a few bytes per unit, and so knows exactly what is committed while the run goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from ray_mlc.config import Range, ScoreJob, TokenizersConfig
from ray_mlc.corpus.rows import BLOCK_UNIT_FIRST, block_schema, unread_block
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import RayMlcError, ResourceError
from ray_mlc.model.classifier import ForwardStats
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.engines.kernels import keep_few_kernels
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.runtime.actor_plan import IO_CPUS, ActorPlan, least_needed, places_on, plan_actors
from ray_mlc.runtime.backend import resolve_engine
from ray_mlc.runtime.growth import plan_or_grow
from ray_mlc.runtime.interrupt import Stop
from ray_mlc.runtime.nodes import refuse_unshared, telling_changes
from ray_mlc.runtime.probe import Probe, Prober
from ray_mlc.runtime.pulse import (
    READ,
    READING,
    SCORED,
    SCORING,
    WRITING,
    Reporter,
    Watch,
    start_pulse,
)
from ray_mlc.runtime.ray_errors import own_errors
from ray_mlc.runtime.ray_private import limit_blocks_ahead, map_whole_blocks
from ray_mlc.runtime.session import (
    NodeResources,
    carrying,
    cluster_nodes,
    free_resources,
    ray_session,
    session_starts,
)
from ray_mlc.runtime.steps import ReadStep, ScoreStep, TokenizeStep, Work, write
from ray_mlc.scoring.forecast import Kind
from ray_mlc.scoring.parts import Receipt, split_units
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.sample import sample_units
from ray_mlc.scoring.score import DIED_OVER_IT, died_scoring, set_aside
from ray_mlc.scoring.standing import Vitals

BLOCKS_AHEAD = 2
"""Blocks per actor that wait before a stage at most."""
RESERVED = 0.001
"""Share of the cluster that Ray Data sets aside for its stages, beyond one task of each."""
MAX_DEATHS = 3
"""Processes that may die over a unit before it is set aside."""
PROBE_START_S = 300.0
"""Seconds that actors may take to load a model in order to be timed."""
WORK_COLUMN, RECEIPT_COLUMN = "work", "receipt"
BEAT_S = 1.0
"""Seconds between two signs of life of an actor."""


class UnitSource(Datasource):  # type: ignore[misc]
    """Read tasks of whole units, one block each."""

    def __init__(
        self,
        plan: CorpusPlan,
        reads: Sequence[NDArray[np.int64]],
        step: ReadStep,
        reporter: Reporter,
    ) -> None:
        """Take note of what is to be read; nothing is read here."""
        super().__init__()
        self._plan, self._reads, self._step, self._reporter = plan, reads, step, reporter

    def get_name(self) -> str:
        """Name of the operator."""
        return "Units"

    def estimate_inmemory_data_size(self) -> int | None:
        """Uncompressed bytes of everything, as the footers say."""
        return int(sum(self._plan.units["bytes"].to_pylist()))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per read, however many Ray would like."""
        del parallelism, per_task_row_limit, data_context
        sizes = self._plan.units["bytes"].to_numpy()
        tasks = []
        for read in self._reads:
            units = self._plan.units_at(read)
            metadata = BlockMetadata(
                num_rows=sum(unit.rows for unit in units),
                size_bytes=int(sizes[read].sum()),
                input_files=None,
                exec_stats=None,
            )
            tasks.append(ReadTask(_reader(self._step, units, self._reporter), metadata))
        return tasks


def _reader(step: ReadStep, units: list[Unit], reporter: Reporter) -> Callable[[], list[pa.Table]]:
    def read() -> list[pa.Table]:
        name = _name(units[0].source, units[0].first_row)
        dropped, deaths = reporter.enter(name, READING)
        if dropped:
            return [block_schema(step.spec).empty_table()]
        if not deaths:
            block = step(units)
        else:
            block = _joined([_read_carefully(step, unit, reporter) for unit in units])
        reporter.pass_on(name, READING, READ)
        return [block]

    return read


def _read_carefully(step: ReadStep, unit: Unit, reporter: Reporter) -> pa.Table:
    """Read one unit of a block over which a process died: Arrow aborts over some damages."""
    name = f"the unit of {_name(unit.source, unit.first_row)}"
    _, deaths = reporter.enter(name, READING)
    if deaths >= MAX_DEATHS:
        block = unread_block(unit, step.spec, DIED_OVER_IT.format(deaths))
    else:
        block = step([unit])
    reporter.leave(name)
    return block


def _joined(blocks: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(blocks).unify_dictionaries().combine_chunks()


def _name(source: str, first_row: int) -> str:
    """A block's name for the pulse: that of its first unit."""
    return f"{source} from row {first_row}"


def _name_of(block: pa.Table) -> str:
    return _name(block["source"][0].as_py(), block[BLOCK_UNIT_FIRST][0].as_py())


class TokenizeActor:
    """Holds tokenizers."""

    def __init__(self, works: Sequence[Work]) -> None:
        """Load them."""
        os.environ["RAYON_NUM_THREADS"] = "1"
        self._step = TokenizeStep(works)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Tokenize one block."""
        return self._step(block) if block.num_rows else block


class ScoreActor:
    """Holds classifiers on one device; tokenizes too where it has the CPUs for it.

    A block whose process died is scored unit by unit the next time, so that only the unit that
    kills is set aside, after `MAX_DEATHS` deaths.
    """

    def __init__(
        self, works: Sequence[Work], threads: int, tokenizes: bool, reporter: Reporter
    ) -> None:
        """Load and prove them on the canaries."""
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        keep_few_kernels()
        step = ScoreStep(works, threads=threads)
        self._call = step.both if tokenizes else step
        self._reporter = reporter
        self._nothing = step.nothing
        self._beats = [Beat(work, stats) for work, stats in enumerate(step.stats)]
        self._sent_s = time.monotonic()
        reporter.ready()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score one block."""
        if not block.num_rows:
            return self._nothing
        name = _name_of(block)
        dropped, deaths = self._reporter.enter(name, SCORING)
        if dropped:
            self._reporter.leave(name)
            return self._nothing
        if not deaths:
            scored = self._call(block, self._progress)
        else:
            scored = _joined([self._carefully(unit) for unit in split_units(block)])
        self._beat()
        self._reporter.pass_on(name, SCORING, SCORED)
        return scored

    def _carefully(self, unit: pa.Table) -> pa.Table:
        """Score one unit of a block over which a process died."""
        name = f"the unit of {_name_of(unit)}"
        _, deaths = self._reporter.enter(name, SCORING)
        if deaths >= MAX_DEATHS:
            unit = set_aside(unit, died_scoring(deaths))
        scored = self._call(unit, self._progress)
        self._reporter.leave(name)
        return scored

    def _progress(self, work: int, rows: int) -> None:
        self._beats[work].rows += rows
        if time.monotonic() - self._sent_s >= BEAT_S:
            self._beat()

    def _beat(self) -> None:
        """Tell what has been scored since the last time."""
        for beat in self._beats:
            beat.send(self._reporter)
        self._sent_s = time.monotonic()


class Beat:
    """What an actor has scored with one of its models and not told yet."""

    def __init__(self, work: int, stats: ForwardStats) -> None:
        """Begin to count."""
        self._work, self._stats = work, stats
        self.rows = self._real = self._padded = 0

    def send(self, reporter: Reporter) -> None:
        """Tell it."""
        real, padded = self._stats.real_tokens, self._stats.padded_tokens
        reporter.beat(self.rows, real - self._real, padded - self._padded, self._work)
        self.rows, self._real, self._padded = 0, real, padded


def _write(scored: pa.Table, works: Sequence[Work], reporter: Reporter) -> pa.Table:
    places: list[int] = []
    lines: list[str] = []
    if scored.num_rows:
        name = _name_of(scored)
        reporter.tell(name, WRITING)
        for place, receipts in enumerate(write(scored, works)):
            places += [place] * len(receipts)
            lines += [receipt.to_json() for receipt in receipts]
        reporter.leave(name)
    columns = {WORK_COLUMN: pa.array(places, pa.int32())}
    return pa.table({**columns, RECEIPT_COLUMN: pa.array(lines, pa.string())})


def _receipts(batch: pa.Table, count: int) -> list[list[Receipt]]:
    """What `_write` has told of each of `count` works."""
    receipts: list[list[Receipt]] = [[] for _ in range(count)]
    columns = (batch[name].to_pylist() for name in (WORK_COLUMN, RECEIPT_COLUMN))
    for place, line in zip(*columns, strict=True):
        receipts[place].append(Receipt.from_json(line))
    return receipts


def _paths_of(jobs: Sequence[ScoreJob]) -> tuple[dict[str, str], dict[str, str]]:
    """What every node reads, and what it writes to; of many inputs the first stands for all."""
    path = jobs[0].input.path
    inputs = {"input.path": path if isinstance(path, str) else path[0]}
    outputs: dict[str, str] = {}
    for place, job in enumerate(jobs):
        mark = f" {place + 1}" if len(jobs) > 1 else ""
        inputs[f"model{mark}"] = job.model
        outputs[f"output.path{mark}"] = job.output.path
    return inputs, outputs


def _labelled(
    nodes: Sequence[NodeResources], key: str, labels: Mapping[str, str]
) -> list[NodeResources]:
    """Nodes that a job's labels let pass.

    Raises:
        ResourceError: If none does: Ray would wait for one for ever.
    """
    found = carrying(nodes, labels)
    if not found:
        shown = ", ".join(f"{name}: {value}" for name, value in labels.items())
        raise ResourceError(
            f"{key} is {{{shown}}}, which none of the {len(nodes)} node(s) carries: `ray list "
            "nodes --detail` shows their labels"
        )
    return found


class RayBackend:
    """Ray Data: on the cluster that the job names, or on the Ray that is connected already."""

    def __init__(
        self, jobs: Sequence[ScoreJob], say: Callable[[str], None], *, writes: bool = True
    ) -> None:
        """Take note of the jobs; nothing is started here.

        Args:
            jobs: One, or several that are alike but for model, output and decision.
            say: Told about nodes: which are waited for, come and go.
            writes: Whether nodes have to be able to write the output.
        """
        self._jobs, self._job, self._say, self._writes = jobs, jobs[0], say, writes
        self.plan: ActorPlan

    @property
    def starting(self) -> str | None:
        """See `Backend.starting`."""
        if ray.is_initialized():
            return None
        return session_starts(self._job.ray.address)

    @contextmanager
    def start(self) -> Iterator[None]:
        """See `Backend.start`: connect, and size the pool once, while nothing of ours runs yet.

        Raises:
            ResourceError: If the cluster does not answer, is too small for what the job asks, or
                its nodes do not see the job's local paths.
        """
        with ray_session(self._job.ray.address), _context_kept():
            self.plan = plan_or_grow(
                partial(self._plan, self._jobs),
                least_needed(self._job),
                wait_s=self._job.ray.node_wait,
                say=self._say,
            )
            inputs, outputs = _paths_of(self._jobs)
            refuse_unshared(inputs, outputs if self._writes else {})
            yield

    @staticmethod
    def _plan(jobs: Sequence[ScoreJob]) -> ActorPlan:
        job = jobs[0]
        actors = job.actors
        if actors.gpus == "auto" and all(
            open_model(job.model).info.kind == "tfidf" for job in jobs
        ):
            actors = actors.model_copy(update={"gpus": 0.0})  # it runs on CPUs alone
        nodes = cluster_nodes()
        plan = plan_actors(
            actors,
            _labelled(nodes, "actors.labels", actors.labels),
            free_resources(),
            tokenizer_cpus=job.tokenizers.cpus,
        )
        if plan.gpus:
            _labelled(nodes, "tokenizers.labels", job.tokenizers.labels)
        return plan

    def resolve(self, folder: ModelFolder, plan: CorpusPlan, job: ScoreJob) -> ResolvedEngine:
        """See `Backend.resolve`: a task with an actor's resources does it."""
        actors, spec, location = self.plan, plan.spec, folder.location
        decision = folder.info.decision  # the job may have another than the model
        cuda = actors.gpus > 0 and job.actors.gpus != 0

        def work(units: list[Unit]) -> ResolvedEngine:
            model = open_model(location).with_decision(decision)
            return resolve_engine(job, model, units, spec, cuda=cuda, threads=actors.threads)

        options: dict[str, Any] = {"num_cpus": actors.cpus, "num_gpus": actors.gpus}
        if job.actors.labels:
            options["label_selector"] = job.actors.labels
        task = ray.remote(max_retries=0, **options)(work)
        with own_errors():
            try:
                return ray.get(task.remote(sample_units(plan)))  # type: ignore[no-any-return]
            except ray.exceptions.WorkerCrashedError:
                # a document or page of the sample kills its process: scoring finds out which
                return ray.get(task.remote([]))  # type: ignore[no-any-return]

    def actors(self, job: ScoreJob) -> int:
        """See `Backend.actors`."""
        del job
        return self.plan.max_count

    def kind(self, job: ScoreJob) -> Kind:
        """See `PlanBackend.kind`: the cluster's nodes are taken to be like its largest."""
        plan = self.plan
        nodes = carrying(cluster_nodes(), job.actors.labels)
        nodes = [node for node in nodes if node.cpus > 0]
        if plan.gpus:
            nodes = [node for node in nodes if node.gpus >= plan.gpus] or nodes
        return Kind(
            actors_per_node=max(places_on(node, plan) for node in nodes),
            cores_per_node=max(node.cpus for node in nodes),
            threads=plan.threads,
            gpus=plan.gpus,
        )

    def probe(self, work: Work, block: pa.Table, block_rows: int) -> list[Probe]:
        """See `PlanBackend.probe`: actors with the resources of a run's, all at the same time."""
        plan = self.plan
        options: dict[str, Any] = {"num_cpus": plan.cpus, "num_gpus": plan.gpus}
        if self._job.actors.labels:
            options["label_selector"] = self._job.actors.labels
        shared = ray.put(block)
        count = min(plan.max_count, self.kind(self._job).actors_per_node)
        count = max(1, min(count, places_on(free_resources(), plan)))
        with own_errors():
            probers = [
                ray.remote(**options)(Prober).remote(work, plan.threads, not plan.gpus)
                for _ in range(count)
            ]
            try:
                ray.get([prober.ready.remote() for prober in probers], timeout=PROBE_START_S)
            except ray.exceptions.GetTimeoutError:
                raise ResourceError(
                    f"{count} actor(s) to measure with did not start in {PROBE_START_S:.0f} s: no "
                    "node has room, or none has actors.labels"
                ) from None
            probes: list[Probe] = ray.get(
                [prober.run.remote(shared, block_rows) for prober in probers]
            )
        return probes

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
        """See `Backend.process`.

        Raises:
            RayMlcError: If nothing is heard of any process for `limits.no_progress`.
        """
        _set_context(self.plan)
        pulse = start_pulse(len(works))
        data = self._pipeline(plan, works, reads, job, Reporter(pulse))
        watch = Watch(pulse, job.limits.no_progress, scored, stop)
        try:
            with own_errors(), telling_changes(self._say):
                for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
                    watch.alive()
                    yield _receipts(batch, len(works))
        except KeyboardInterrupt:
            if watch.stuck_in is None:
                raise
            raise RayMlcError(
                f"nothing was heard for {job.limits.no_progress:.0f} s (limits.no_progress) while "
                f"{watch.stuck_in}: run the same command to continue"
            ) from None
        finally:
            watch.close()

    def _pipeline(
        self,
        corpus: CorpusPlan,
        works: Sequence[Work],
        reads: Sequence[NDArray[np.int64]],
        job: ScoreJob,
        reporter: Reporter,
    ) -> ray.data.Dataset:
        """The stages; nothing runs yet."""
        plan = self.plan
        pool = ActorPoolStrategy(min_size=plan.min_count, max_size=plan.max_count)
        actor_options: dict[str, Any] = {"num_cpus": plan.cpus}
        if job.actors.labels:
            actor_options["label_selector"] = job.actors.labels
        data = ray.data.read_datasource(
            UnitSource(corpus, reads, works[0].reading, reporter),
            num_cpus=IO_CPUS,
            override_num_blocks=len(reads),
        )
        if plan.gpus:
            actor_options["num_gpus"] = plan.gpus
            data = map_whole_blocks(
                data,
                TokenizeActor,
                compute=tokenizer_pool(job.tokenizers, cluster_nodes()),
                fn_constructor_args=(works,),
                num_cpus=job.tokenizers.cpus,
                **({"label_selector": job.tokenizers.labels} if job.tokenizers.labels else {}),
            )
        data = map_whole_blocks(
            data,
            ScoreActor,
            compute=pool,
            fn_constructor_args=(works, plan.threads, not plan.gpus, reporter),
            **actor_options,
        )
        return map_whole_blocks(data, _write, fn_args=(works, reporter), num_cpus=IO_CPUS)


def tokenizer_pool(config: TokenizersConfig, nodes: Sequence[NodeResources]) -> ActorPoolStrategy:
    """Actors that tokenize: by themselves as many as half of the CPUs that they may use hold."""
    if isinstance(config.count, Range):
        return ActorPoolStrategy(min_size=max(1, config.count.min), max_size=config.count.max)
    if config.count == "auto":
        total = sum(node.cpus for node in carrying(nodes, config.labels))
        return ActorPoolStrategy(min_size=1, max_size=max(1, int(total / 2 / config.cpus)))
    return ActorPoolStrategy(size=config.count)


@contextmanager
def _context_kept() -> Iterator[None]:
    """Leave Ray Data's settings as they were: a notebook has pipelines of its own after the run."""
    with DataContext.current(DataContext.get_current().copy()):
        yield


def _set_context(plan: ActorPlan) -> None:
    """What a run needs of Ray Data, set in one place."""
    context = DataContext.get_current()
    context.target_max_block_size = None  # whole units stay in one block
    context.max_errored_blocks = 0  # a dropped block would be lost rows
    context.enable_progress_bars = False  # ours knows the total
    context.print_on_execution_start = False
    limit_blocks_ahead(context, BLOCKS_AHEAD * plan.max_count)
    # with a larger share, reading would be given CPUs that actors hold, and writing none at all for
    # as long as anything is unread
    context.op_resource_reservation_ratio = RESERVED
    # Ray's own guard sees whole blocks only, and would end slow models; see `Watch`
    context.execution_no_progress_timeout_s = -1
