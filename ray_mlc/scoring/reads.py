"""Units grouped into what is read at once, in the order in which it is begun."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.units import group_reads
from ray_mlc.scoring.ledger import Run

READS_PER_ACTOR = 4
"""Reads that a small input is cut into per actor, so that all of them work to the end."""
GROUP_SHARE = 1 / 16
"""Share of a row group that a read takes at least, where the speed of scoring is not known."""
DECODED_PER_S = 1_000_000
"""Rows of text that are decoded in a second, roughly."""
STARTER_SHARE = 1 / 4
"""A unit of at most this fraction of the largest is read alone where an actor has nothing yet."""
OVERHEAD = 0.02
"""Share of scoring that decoding a row group again and again may cost."""


def plan_reads(
    run: Run,
    pending: NDArray[np.int64],
    job: ScoreJob,
    *,
    actors: int,
    documents_per_s: float | None,
) -> list[NDArray[np.int64]]:
    """Group the pending units into reads, in the order in which they are begun.

    Few rows are cut finer, so that every actor works to the end.

    Args:
        run: The run.
        pending: Positions of its pending units.
        job: What limits a read.
        actors: How many.
        documents_per_s: Speed of an actor, if it is known.
    """
    reads = order_reads(
        run.plan.units.take(pa.array(pending)),
        max_rows=run.identity["units.rows"],
        max_bytes=job.units.bytes,
        documents_per_s=documents_per_s,
        actors=actors,
    )
    return [pending[read] for read in reads]


def order_reads(
    units: pa.Table, *, max_rows: int, max_bytes: int, documents_per_s: float | None, actors: int
) -> list[NDArray[np.int64]]:
    """Group units into reads, as positions in `units`, in the order in which they are begun.

    Args:
        units: `corpus.units.UNITS_SCHEMA`.
        max_rows: Most rows of a unit.
        max_bytes: Most decoded bytes of a read.
        documents_per_s: Speed of an actor, if it is known.
        actors: How many.
    """
    rows = int(units["rows"].to_numpy().sum(dtype=np.int64))
    max_rows = min(max_rows, max(1, -(-rows // (actors * READS_PER_ACTOR))))
    share = (
        GROUP_SHARE
        if documents_per_s is None
        else min(4 * GROUP_SHARE, documents_per_s / DECODED_PER_S / OVERHEAD)
    )
    sizes, rows_U = units["bytes"].to_numpy(), units["rows"].to_numpy()
    # a small one for each actor, so that results show soon; then the longest first, so that none
    # is left to a single actor at the end
    soon = np.flatnonzero(rows_U <= STARTER_SHARE * rows_U.max(initial=0))[:actors]
    rest = np.setdiff1d(np.arange(len(units)), soon)
    grouped = group_reads(
        units.take(pa.array(rest)), max_rows=max_rows, max_bytes=max_bytes, group_share=share
    )
    reads = [rest[read] for read in grouped]
    order = np.argsort([-sizes[read].sum() for read in reads], kind="stable")
    last = len(reads) - (actors - len(soon))
    order = np.concatenate([order[max(0, last) :], order[: max(0, last)]])
    return [*soon[:, np.newaxis], *(reads[index] for index in order)]
