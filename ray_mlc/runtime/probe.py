"""How fast an actor is on documents of a corpus, and how much memory it takes.

The real steps run on real rows, in as many processes at once as a node will hold: they share its
caches and its memory's bandwidth, and one alone would promise too much.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa

from ray_mlc.runtime.steps import ScoreStep, Work
from ray_mlc.scoring.parts import serialize

PROBE_S = 12.0
"""Seconds that each process is timed."""
PASS_S = 2.0
"""About how long a pass takes: a block of a run, or less of it where documents are slow."""
FIRST_ROWS = 16
"""Rows of the first pass, which is not counted: everything is done there for the first time."""


@dataclass(frozen=True)
class Pass:
    """One block through the steps."""

    rows: int
    real_tokens: int
    padded_tokens: int
    seconds: float


@dataclass(frozen=True)
class Probe:
    """What one process found."""

    passes: Sequence[Pass]
    load_s: float
    """Until the model was loaded and proven."""
    memory_bytes: int
    """Of the process, afterwards."""
    row_bytes: float
    """Bytes of a row of a part."""
    part_bytes: int
    """Bytes of a part without rows."""


class Prober:
    """Holds a classifier, as a `ScoreActor` does."""

    def __init__(self, work: Work, threads: int | None = None, tokenizes: bool = True) -> None:
        """Load and prove it."""
        started = time.monotonic()
        self._work, self._tokenizes = work, tokenizes
        self._step = ScoreStep((work,), threads=threads)
        self._step.tokenize  # noqa: B018 - loaded before the clock starts
        self._load_s = time.monotonic() - started

    def ready(self) -> bool:
        """Answered when everything is loaded."""
        return True

    def run(self, block: pa.Table, block_rows: int, seconds: float = PROBE_S) -> Probe:
        """Score rows of a block again and again for some time.

        Args:
            block: As `corpus.rows.read_block` returns it, in random order.
            block_rows: Rows of a block of the run.
            seconds: How long.
        """
        tokenized = None if self._tokenizes else self._step.tokenize(block)
        passes: list[Pass] = []
        rows, low = min(FIRST_ROWS, block.num_rows), 0
        ends_s = None
        scored: list[pa.Table] = []
        while ends_s is None or time.monotonic() < ends_s:
            if low + rows > block.num_rows:
                low = 0
            done, out = self._pass(block if tokenized is None else tokenized, low, rows)
            low += rows
            if sum(map(len, scored)) < block.num_rows:
                scored.append(out)
            if ends_s is None:
                ends_s = time.monotonic() + seconds
            else:
                passes.append(done)
            wanted = int(rows * PASS_S / max(1e-3, done.seconds))
            rows = max(1, min(wanted, 4 * rows, block_rows, block.num_rows))
        row_bytes, part_bytes = self._sizes(pa.concat_tables(scored))
        memory = psutil.Process().memory_full_info().uss
        return Probe(passes, self._load_s, memory, row_bytes, part_bytes)

    def _pass(self, block: pa.Table, low: int, rows: int) -> tuple[Pass, pa.Table]:
        (stats,) = self._step.stats
        real, padded = stats.real_tokens, stats.padded_tokens
        started = time.monotonic()
        piece = block.slice(low, rows)
        out = self._step.both(piece) if self._tokenizes else self._step(piece)
        seconds = time.monotonic() - started
        return Pass(rows, stats.real_tokens - real, stats.padded_tokens - padded, seconds), out

    def _sizes(self, scored: pa.Table) -> tuple[float, int]:
        """Bytes of a row, and of a part besides its rows."""
        schema = self._work.output.schema
        table = scored.select(schema.names).unify_dictionaries()
        empty = len(serialize(table.slice(0, 0), schema, {}))
        return (len(serialize(table, schema, {})) - empty) / max(1, table.num_rows), empty


def speed_of(probes: Sequence[Probe]) -> tuple[float, float]:
    """Tokens per second of one process, and the standard error of it as a share.

    The error is that of the passes' mean: documents differ, and moments of a machine.
    """
    passes = [one for probe in probes for one in probe.passes if one.real_tokens]
    if not passes:
        return 0.0, 0.0
    tokens = np.array([one.real_tokens for one in passes], np.float64)
    seconds = np.array([one.seconds for one in passes])
    speed = float(tokens.sum() / seconds.sum())
    if len(passes) < 2:
        return speed, 0.1
    # of a ratio: residuals about it, by Taylor's linearization
    residual = tokens - speed * seconds
    error = float(np.sqrt(np.square(residual).sum() / (len(passes) - 1) * len(passes)))
    return speed, error / float(tokens.sum())


def padding_of(probes: Sequence[Probe]) -> float:
    """Share of the computed tokens that was padding."""
    passes = [one for probe in probes for one in probe.passes]
    padded = sum(one.padded_tokens for one in passes)
    return 1 - sum(one.real_tokens for one in passes) / padded if padded else 0.0
