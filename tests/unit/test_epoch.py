from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_mlc.training.epoch import plan_epoch, share_of_rank

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=120).map(
    lambda lengths: np.array(lengths, np.int64)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths_N=LENGTHS, batch_size=st.integers(1, 20), seed=st.integers(0, 9))
def test_an_epoch_holds_each_document_once_in_full_steps(
    lengths_N: NDArray[np.int64], batch_size: int, seed: int
) -> None:
    plan = plan_epoch(lengths_N, batch_size=batch_size, seed=seed, epoch=1)
    again = plan_epoch(lengths_N, batch_size=batch_size, seed=seed, epoch=1)
    assert [batch.tolist() for batch in plan] == [batch.tolist() for batch in again]
    assert sorted(np.concatenate(plan)) == list(range(len(lengths_N)))
    assert len(plan) == math.ceil(len(lengths_N) / batch_size)
    assert sorted(map(len, plan))[1:] == [batch_size] * (len(plan) - 1)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths_N = np.random.default_rng(0).integers(1, 30, size=400)
    orders = {
        tuple(np.concatenate(plan_epoch(lengths_N, batch_size=8, seed=seed, epoch=epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_neighbors_are_of_like_length() -> None:
    lengths_N = np.random.default_rng(0).integers(1, 500, size=4_000)
    plan = plan_epoch(lengths_N, batch_size=16, seed=0, epoch=0)
    padded = sum(len(batch) * lengths_N[batch].max() for batch in plan)
    assert padded < 1.1 * lengths_N.sum()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    lengths_N=LENGTHS,
    batch=st.sets(st.integers(0, 119), min_size=1),
    world_size=st.integers(1, 5),
    budget=st.integers(8, 200),
)
def test_ranks_share_a_step_without_loss_in_equal_numbers_of_passes(
    lengths_N: NDArray[np.int64], batch: set[int], world_size: int, budget: int
) -> None:
    rows = np.array(sorted({index % len(lengths_N) for index in batch}), np.intp)
    shares = [
        share_of_rank(rows, lengths_N, rank=rank, world_size=world_size, max_batch_tokens=budget)
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    passes = [rows for share in shares for rows in share]
    assert sorted(np.concatenate(passes)) == rows.tolist()
    # what no pass can hold goes alone, and makes no other pass larger
    assert all(len(p) == 1 or len(p) * lengths_N[p].max(initial=0) <= budget for p in passes)
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1
