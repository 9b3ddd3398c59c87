"""How long a night will take, what it costs and what it leaves: a model, without doing any of it.

    night   = begin + choose the engine + load + score + end, with its report
    score   = tokens ÷ (actors × speed × share) × imbalance, or blocks × `BLOCK_S` if that is more

Tokens come from a sample that is stratified over the corpus, speed from a probe in which as many
actors as a node holds work at once. `share` is what they keep of the cores when reading, writing
and Ray itself run beside them; `imbalance` is found by dealing the reads to the actors as Ray will.
Everything that can be measured beforehand is; what cannot is a constant below, with its source.

Only numbers are seen here: no files, no model, no Ray.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRIVER_CORES = 0.14
"""Cores that the driver, Ray's processes, reading and writing take on the driver's node:
benchmarks/results/2026-11-24-end-to-end.md, where two actors had 0.93 of a core each."""
NODE_CORES = 0.06
"""The same on other nodes: raylet, store, agent, reading and writing at 0.01 to 0.02 each there."""
BLOCK_S = 0.033
"""Seconds of the driver per block, whatever is in it: benchmarks/results/2026-11-24-growth.md."""
IMPORT_S = 1.0
"""Start of Python and of the command: 2026-11-24-end-to-end.md has 0.7."""
RECALL_S = 1.5
"""A process that finds on its machine which engine is the fastest: 2026-11-29-first-part.md has 1.2
to 1.8."""
RAY_DATA_S = 3.0
"""From the start of Ray Data to actors that load, beyond what the probe's took; the same file."""
END_S = 3.0
"""Accounting for every row, and the end of Ray: the same file."""
REPORT_S, REPORT_SCORES_PER_S = 2.0, 10e6
"""Making the page of a night, and the scores read for it in a second by one core:
benchmarks/results/2026-11-29-report.md has 10 million of sparse rows, 18 million of wide ones."""
READ_BYTES_PER_S = 150e6
"""Decoded bytes that one process reads in a second where it does everything: zstd and text."""
MODEL_ERROR = 0.1
"""Share by which a forecast may be off although tokens and speed are right: a margin that was
chosen, twice what share and fixed costs varied by in 2026-11-24-end-to-end.md."""
RAY_BYTES = 1100 * 2**20
"""Memory beside the actors: 860 MB in Ray's own processes, the driver and its helpers, counted
process by process on 2026-11-29, and two processes of 120 MB that read and write."""
CHOOSER_BYTES = 400 * 2**20
"""What the process that chose the engine keeps beyond an actor's: PyTorch and transformers, by
benchmarks/results/2026-11-24-end-to-end.md. Ray leaves it idle for some minutes."""
COPIES = 3
"""Times that a block is in memory at once: as it is read, in the object store, as it is scored."""
FOOTER_BYTES = 3000
"""What the footer key of a part takes, beside Parquet's own."""
BYTES_PER_TOKEN = 5.0
"""Decoded bytes of a row by its tokens, where nothing better is known: English comments, abstracts
and laws with their ids have 5.0 with a WordPiece vocabulary of 30,522."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """One that is known."""
        return cls(value, value, value)

    @property
    def error(self) -> float:
        """Half the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def widened(self, *errors: float) -> Estimate:
        """With further independent errors, as shares; never below zero."""
        share = math.hypot(self.error, *errors)
        return Estimate(self.value, max(0.0, self.value * (1 - share)), self.value * (1 + share))

    def to_dict(self) -> dict[str, float]:
        """For machines."""
        return {name: float(f"{getattr(self, name):.6g}") for name in ("value", "low", "high")}


def work_of(
    rows_U: NDArray[np.int64], bytes_U: NDArray[np.int64], *, max_tokens: int
) -> NDArray[np.float64]:
    """How much work units are, by each other: decoded bytes, but of each row no more than is read.

    Args:
        rows_U: Rows of each unit.
        bytes_U: Decoded bytes of each unit.
        max_tokens: Tokens of a document that are read at most, in all its windows.
    """
    row_U = bytes_U / np.maximum(rows_U, 1)
    # a row without a byte takes its time all the same
    return np.asarray(rows_U * np.clip(row_U, 1.0, max_tokens * BYTES_PER_TOKEN), np.float64)


@dataclass(frozen=True)
class Pick:
    """Rows of one unit to look at."""

    unit: int
    """Position of the unit."""
    rows: NDArray[np.int64]
    """Positions in the unit, rising."""


def pick_rows(rows_U: NDArray[np.int64], *, strata: int, rows: int, seed: int) -> list[Pick]:
    """Choose rows that speak for all: of each of some equal strata, one unit is looked at.

    Every row has about the same chance. Whole units are read to get at a few of their rows, because
    Parquet decodes whole row groups: so there are few of them, and they are spread.

    Args:
        rows_U: Rows of each unit, in corpus order.
        strata: How many units are looked at, at most.
        rows: How many rows, all together, at most.
        seed: Of the draw.

    Returns:
        In corpus order; every row there is, if they are no more than `rows`.
    """
    ends_U = np.cumsum(rows_U, dtype=np.int64)
    total = int(ends_U[-1]) if len(ends_U) else 0
    if total <= rows:
        return [Pick(unit, np.arange(count)) for unit, count in enumerate(rows_U.tolist()) if count]
    rng = np.random.default_rng(seed)
    bounds = np.linspace(0, total, min(strata, rows) + 1).astype(np.int64)
    picks = []
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        unit = int(np.searchsorted(ends_U, rng.integers(low, high), side="right"))
        first = int(ends_U[unit] - rows_U[unit])
        within = max(low, first) - first, min(high, int(ends_U[unit])) - first
        count = min(rows // min(strata, rows), within[1] - within[0])
        drawn = rng.choice(within[1] - within[0], count, replace=False) + within[0]
        picks.append(Pick(unit, np.sort(drawn)))
    return picks


def mean_of(strata: Sequence[NDArray[np.float64]], *, whole: bool) -> Estimate:
    """Mean of a figure per row, with its interval.

    The variance is that of successive differences between strata (Wolter, Introduction to Variance
    Estimation, ch. 8): a trend over the corpus, such as files by date, does not count as chance.

    Args:
        strata: Values of the rows that were drawn of each stratum, in corpus order.
        whole: Whether these are all rows there are.
    """
    filled = [np.asarray(values, np.float64) for values in strata if len(values)]
    if not filled:
        return Estimate.exact(0.0)
    if whole:
        return Estimate.exact(float(np.concatenate(filled).mean()))
    means_S = np.array([values.mean() for values in filled])
    mean, count = float(means_S.mean()), len(means_S)
    if count < 2:
        values = filled[0]
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else mean
        count = max(2, len(values))
    else:
        # systematic draws have no closed form; neighbors are alike but for chance
        error = math.sqrt(float(np.square(np.diff(means_S)).sum()) / (2 * count * (count - 1)))
    half = _student(count - 1) * error
    return Estimate(mean, max(0.0, mean - half), mean + half)


def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Kind:
    """What the actors of a forecast are, and the nodes that they run on."""

    actors_per_node: int
    cores_per_node: float
    threads: int
    """Threads of each actor."""
    gpus: float = 0.0
    """GPUs of each actor."""
    ray: bool = True
    """Whether Ray runs them; else one process does everything."""

    def nodes(self, actors: int) -> int:
        """Nodes that so many actors fill."""
        return -(-actors // max(1, self.actors_per_node))

    def share(self, actors: int) -> float:
        """Part of the probe's speed that actors keep when the rest of a night runs beside them."""
        if not self.ray:
            return 1.0
        nodes = self.nodes(actors)
        beside = (DRIVER_CORES + NODE_CORES * (nodes - 1)) / nodes
        wanted = min(actors, self.actors_per_node) * self.threads
        return min(1.0, max(0.1, (self.cores_per_node - beside) / max(1, wanted)))


@dataclass(frozen=True)
class Load:
    """What there is to do."""

    rows: int
    bytes: int
    """Decoded."""
    tokens: Estimate
    """To be scored: after cutting, padding not counted."""
    reads: Callable[[int], NDArray[np.float64]]
    """Work of each block, see `work_of`, in the order in which so many actors begin them."""
    block_bytes: int
    """Decoded bytes of the largest."""
    report_scores: int = 0
    """Scores that the report at the end reads; 0: none is made."""


@dataclass(frozen=True)
class Probed:
    """What the probe found."""

    tokens_per_s: float
    """Of one actor beside as many as a node holds."""
    error: float
    """Standard error of that, as a share."""
    actor_bytes: int
    """Memory of one actor's process."""
    load_s: float
    """Until it had loaded and proven the model."""
    begin_s: float
    """Listing, footers, Ray."""
    choose_s: float
    """Choosing the engine; 0 where a run has chosen already."""


@dataclass(frozen=True)
class Forecast:
    """A night on so many actors."""

    actors: int
    nodes: int
    seconds: Estimate
    """From the command to its end."""
    until_scoring_s: float
    """Of it, before the first document is scored."""
    memory_bytes: int
    """Of the fullest node."""

    @property
    def node_hours(self) -> Estimate:
        """Nodes times hours."""
        return self.seconds.times(self.nodes / 3600)

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "actors": self.actors,
            "nodes": self.nodes,
            "seconds": self.seconds.to_dict(),
            "until_scoring_s": round(self.until_scoring_s, 1),
            "node_hours": self.node_hours.to_dict(),
            "memory_bytes_per_node": self.memory_bytes,
        }


def imbalance(reads: NDArray[np.float64], actors: int) -> float:
    """Time until the last actor is done, by the time that all would take if work were fluid.

    Each read goes to the actor that is free first, as Ray does it.
    """
    if not len(reads) or not reads.sum():
        return 1.0
    free = [0.0] * min(actors, len(reads))
    for size in reads.tolist():
        heapq.heapreplace(free, free[0] + size)
    return float(max(free) * actors / reads.sum())


def forecast(load: Load, probed: Probed, kind: Kind, *, actors: int) -> Forecast:
    """A night on so many actors of a kind."""
    begin_s = IMPORT_S + probed.begin_s
    if load.rows:
        begin_s += probed.choose_s + probed.load_s + (RAY_DATA_S if kind.ray else 0.0)
    speed = actors * probed.tokens_per_s * kind.share(actors)
    reads = load.reads(actors)
    # no text to score in all of the sample: there is no speed, and nothing that takes time
    slowness = imbalance(reads, actors) / speed if speed else 0.0
    work = load.tokens.times(slowness).widened(2 * probed.error)
    fixed_s = begin_s + (END_S if kind.ray else 0.0)
    if load.report_scores:
        fixed_s += REPORT_S + load.report_scores / REPORT_SCORES_PER_S
    if kind.ray:
        least_s = len(reads) * BLOCK_S
    else:
        least_s, fixed_s = 0.0, fixed_s + load.bytes / READ_BYTES_PER_S
    seconds = Estimate(*(fixed_s + max(s, least_s) for s in (work.value, work.low, work.high)))
    return Forecast(
        actors,
        kind.nodes(actors),
        seconds.widened(MODEL_ERROR),
        begin_s,
        _memory(load.block_bytes, probed, kind, actors=actors),
    )


def _memory(largest: int, probed: Probed, kind: Kind, *, actors: int) -> int:
    """Peak memory of the fullest node, in bytes; `largest` is the largest read's."""
    here = min(actors, kind.actors_per_node) if kind.ray else 1
    actors_bytes = here * (probed.actor_bytes + COPIES * largest)
    if not kind.ray:
        return actors_bytes
    chooser_bytes = probed.actor_bytes + CHOOSER_BYTES if probed.choose_s else 0
    return actors_bytes + RAY_BYTES + chooser_bytes


MOST_ACTORS = 4096
"""More are not looked for."""


def actors_for(
    load: Load, probed: Probed, kind: Kind, *, seconds: float
) -> tuple[int, Forecast] | None:
    """Fewest actors that are done in time even if all is at the slow end of its interval.

    Returns:
        How many, and their night; None if no number is enough: starting alone takes too long, or
        there are too few blocks to share.
    """
    # not from the top: beyond some number the blocks of more actors cost the driver more
    low = high = 1
    while forecast(load, probed, kind, actors=high).seconds.high > seconds:
        low, high = high + 1, 2 * high
        if high > MOST_ACTORS or not kind.ray:
            return None
    while low < high:
        middle = (low + high) // 2
        if forecast(load, probed, kind, actors=middle).seconds.high <= seconds:
            high = middle
        else:
            low = middle + 1
    return low, forecast(load, probed, kind, actors=low)
