"""Time engines and batch sizes on documents like the corpus's.

What is fastest depends on the model, the processor, the threads that an actor gets and the lengths
of the documents: it is measured, not guessed. Batches are taken in random order, each is run once
before it is timed (the first runs allocate memory, and compile kernels, a few of which are kept),
and all candidates run the same ones, in turns, so that a busy moment of the machine hits none
alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_mlc.model.batching import plan_batches
from ray_mlc.model.engines.protocol import Engine, OutOfMemoryError
from ray_mlc.model.tokenization import Ragged

ROUNDS = 3
"""Turns of each candidate; the best one counts, as the least disturbed."""
WORTH_IT = 1.02
"""Speed-up for which a batch twice as large is taken: it costs memory, and padding."""


def sample_batches(
    sample: Ragged, *, max_batch_tokens: int, batch_cost: int, seed: int
) -> list[list[NDArray[np.int32]]]:
    """Batches of a sample as scoring would make them, in random order."""
    batches = plan_batches(sample.lengths, max_batch_tokens=max_batch_tokens, batch_cost=batch_cost)
    order = np.random.default_rng(seed).permutation(len(batches))
    return [sample.windows(batches[index]) for index in order]


def race(
    engines: Sequence[Engine], sample: Ragged, *, max_batch_tokens: int, seconds: float, seed: int
) -> list[float]:
    """Tokens per second of each engine, padding not counted.

    Args:
        engines: The candidates, all on one device.
        sample: Documents of at least one token each.
        max_batch_tokens: Padded tokens per batch.
        seconds: About how long each runs: a quarter to warm up, then `ROUNDS` turns.
        seed: Of the order of batches.

    Raises:
        OutOfMemoryError: If a batch does not fit.
    """
    batches = sample_batches(
        sample, max_batch_tokens=max_batch_tokens, batch_cost=engines[0].batch_cost, seed=seed
    )
    # the slowest decides how many batches are run by all
    counts = [_warm_up(engine, batches, seconds / (ROUNDS + 1)) for engine in engines]
    timed = batches[: min(counts)]
    tokens = sum(len(row) for batch in timed for row in batch)
    best = [float("inf")] * len(engines)
    for _ in range(ROUNDS):
        for index, engine in enumerate(engines):
            started = time.perf_counter()
            for batch in timed:
                engine.logits(batch)
            best[index] = min(best[index], time.perf_counter() - started)
    return [tokens / taken for taken in best]


def _warm_up(engine: Engine, batches: Sequence[list[NDArray[np.int32]]], seconds: float) -> int:
    """Run batches for some time; how many that were."""
    started = time.perf_counter()
    for count, batch in enumerate(batches, 1):
        engine.logits(batch)
        if time.perf_counter() - started > seconds:
            return count
    return len(batches)


def probe_budget(
    engine: Engine,
    sample: Ragged,
    budgets: Sequence[int],
    *,
    first: float,
    seconds: float,
    seed: int,
) -> dict[int, float]:
    """Try larger and larger batches for as long as that pays.

    Args:
        engine: The engine.
        sample: Documents.
        budgets: Padded tokens per batch, rising.
        first: Tokens per second with the first of them, which has been timed already.
        seconds: About how long each of the others runs.
        seed: Of the order of batches.

    Returns:
        Tokens per second by budget, for those that were tried and fit into memory.
    """
    speeds = {budgets[0]: first}
    for budget in budgets[1:]:
        try:
            (speed,) = race([engine], sample, max_batch_tokens=budget, seconds=seconds, seed=seed)
        except OutOfMemoryError:
            break
        pays = speed > WORTH_IT * max(speeds.values())
        speeds[budget] = speed
        if not pays:
            break
    return speeds


def best_budget(speeds: dict[int, float]) -> int:
    """The smallest budget that no larger one beats by `WORTH_IT`."""
    fastest = max(speeds.values())
    return min(budget for budget, speed in speeds.items() if speed * WORTH_IT >= fastest)
