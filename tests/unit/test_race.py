from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_mlc.model.engines import race as race_module
from ray_mlc.model.engines.protocol import OneByOne, OutOfMemoryError
from ray_mlc.model.engines.race import best_budget, probe_budget, race, sample_batches
from ray_mlc.model.tokenization import Ragged


class Clock:
    """Time that passes only while an engine works."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(race_module, "time", clock)
    return clock


class Engine(OneByOne):
    """Takes a time for each batch, and another for each padded token; the first run costs more."""

    name, device, dtype = "double", "cpu", "float32"

    def __init__(
        self, clock: Clock, *, token_s: float, batch_s: float = 0.0, room: int = 10**9
    ) -> None:
        self.clock, self.token_s, self.batch_s, self.room = clock, token_s, batch_s, room
        self.seen: set[tuple[int, int]] = set()
        self.calls = 0

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        shape = len(ids), max(len(row) for row in ids)
        if shape[0] * shape[1] > self.room:
            raise OutOfMemoryError("too much")
        self.calls += 1
        self.clock.now += self.batch_s + shape[0] * shape[1] * self.token_s
        self.clock.now += 0.0 if shape in self.seen else 5.0  # compiles its kernels
        self.seen.add(shape)
        return np.zeros((len(ids), 1), np.float32)


def documents(lengths: Sequence[int]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged.of(
        np.zeros(offsets[-1], np.int32), offsets.astype(np.int64), np.array(lengths, np.int32)
    )


SAMPLE = documents(np.random.default_rng(0).integers(1, 64, size=500).tolist())


def test_every_document_of_the_sample_is_in_one_batch_in_the_same_order_each_time() -> None:
    one, two = (
        sample_batches(SAMPLE, max_batch_tokens=256, batch_cost=32, seed=3) for _ in range(2)
    )
    assert [[len(row) for row in batch] for batch in one] == [
        [len(row) for row in batch] for batch in two
    ]
    assert sorted(len(row) for batch in one for row in batch) == sorted(SAMPLE.lengths.tolist())
    longest = [max(len(row) for row in batch) for batch in one]
    assert longest != sorted(longest, reverse=True)  # not the longest first: all lengths count


def test_a_race_measures_tokens_per_second_without_the_first_run_of_a_shape(clock: Clock) -> None:
    slow, fast = Engine(clock, token_s=0.01), Engine(clock, token_s=0.001)
    speeds = race([slow, fast], SAMPLE, max_batch_tokens=256, seconds=30.0, seed=0)
    assert speeds[1] / speeds[0] == pytest.approx(10)
    assert 0.8 * 100 < speeds[0] <= 100  # what padding costs is in it
    assert slow.calls < len(sample_batches(SAMPLE, max_batch_tokens=256, batch_cost=32, seed=0)) * 4


def test_a_candidate_that_is_slow_does_not_take_longer_than_its_time(clock: Clock) -> None:
    race([Engine(clock, token_s=1.0)], SAMPLE, max_batch_tokens=256, seconds=30.0, seed=0)
    assert clock.now < 256 + 5 + 3 * 256 + 1  # one batch warm, the same one timed three times


def probe(engine: Engine, budgets: tuple[int, ...]) -> dict[int, float]:
    options = {"seconds": 1e6, "seed": 0}
    (first,) = race([engine], SAMPLE, max_batch_tokens=budgets[0], **options)
    return probe_budget(engine, SAMPLE, budgets, first=first, **options)


def test_batches_grow_while_that_pays(clock: Clock) -> None:
    speeds = probe(Engine(clock, token_s=0.001, batch_s=0.5), (64, 128, 256, 512))
    assert list(speeds) == [64, 128, 256, 512]
    assert best_budget(speeds) == 512
    speeds = probe(Engine(clock, token_s=0.001), (64, 128, 256, 512))
    assert 512 not in speeds  # larger ones only add padding
    assert best_budget(speeds) == 64


def test_batches_stop_growing_where_memory_ends(clock: Clock) -> None:
    speeds = probe(Engine(clock, token_s=0.001, batch_s=0.5, room=200), (64, 128, 256, 512))
    assert list(speeds) == [64, 128]
    with pytest.raises(OutOfMemoryError):
        race(
            [Engine(clock, token_s=0.001, room=200)],
            SAMPLE,
            max_batch_tokens=512,
            seconds=1.0,
            seed=0,
        )


def test_a_larger_batch_must_be_worth_its_memory() -> None:
    assert best_budget({64: 100.0, 128: 101.0}) == 64
    assert best_budget({64: 100.0, 128: 110.0, 256: 111.0}) == 128
