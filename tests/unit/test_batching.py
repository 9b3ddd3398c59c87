from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.errors import ConfigError
from ray_mlc.model.batching import padded_tokens, padding_fraction, plan_batches

LENGTHS = st.lists(st.integers(1, 64), max_size=80).map(lambda x: np.array(x, np.int64))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths_N=LENGTHS, budget=st.integers(64, 600))
def test_every_document_lands_in_exactly_one_batch_within_the_budget(
    lengths_N: np.ndarray, budget: int
) -> None:
    batches = plan_batches(lengths_N, max_batch_tokens=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths_N)))
    assert all(len(batch) * lengths_N[batch].max() <= budget for batch in batches)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths_N=LENGTHS, budget=st.integers(64, 600))
def test_batches_are_longest_first(lengths_N: np.ndarray, budget: int) -> None:
    batches = plan_batches(lengths_N, max_batch_tokens=budget)
    in_order = [lengths_N[index] for batch in batches for index in batch]
    assert in_order == sorted(in_order, reverse=True)


def cost(lengths_N: np.ndarray, batches: list[np.ndarray], batch_cost: int) -> int:
    return padded_tokens(lengths_N, batches) + batch_cost * len(batches)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths_N=LENGTHS, budget=st.integers(64, 600), batch_cost=st.integers(0, 200))
def test_no_plan_costs_more_than_full_batches(
    lengths_N: np.ndarray, budget: int, batch_cost: int
) -> None:
    order_N = np.argsort(-lengths_N, kind="stable")
    full = []
    while len(order_N):
        size = budget // lengths_N[order_N[0]]
        full.append(order_N[:size])
        order_N = order_N[size:]
    planned = plan_batches(lengths_N, max_batch_tokens=budget, batch_cost=batch_cost)
    assert cost(lengths_N, planned, batch_cost) <= cost(lengths_N, full, batch_cost)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    lengths_N=st.lists(st.integers(1, 64), min_size=1, max_size=9).map(np.array),
    batch_cost=st.integers(0, 100),
)
def test_where_the_budget_does_not_bind_a_plan_is_the_best_there_is(
    lengths_N: np.ndarray, batch_cost: int
) -> None:
    order_N = np.argsort(-lengths_N, kind="stable")
    best = min(
        cost(lengths_N, np.split(order_N, cuts), batch_cost)
        for number in range(len(lengths_N))
        for cuts in combinations(range(1, len(lengths_N)), number)
    )
    planned = plan_batches(lengths_N, max_batch_tokens=10_000, batch_cost=batch_cost)
    assert cost(lengths_N, planned, batch_cost) == best


def test_dear_batches_are_full_and_cheap_ones_are_not_padded() -> None:
    lengths_N = np.random.default_rng(0).integers(1, 256, size=2000)
    real = int(lengths_N.sum())

    def plan(batch_cost: int) -> list[np.ndarray]:
        return plan_batches(lengths_N, max_batch_tokens=4096, batch_cost=batch_cost)

    assert padded_tokens(lengths_N, plan(0)) == real
    assert 1 < padded_tokens(lengths_N, plan(32)) / real < 1.01
    assert len(plan(10**6)) <= real / 4096 * 1.05


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths_N=LENGTHS, budget=st.integers(64, 600))
def test_padding_is_what_the_batches_cost_beyond_their_tokens(
    lengths_N: np.ndarray, budget: int
) -> None:
    batches = plan_batches(lengths_N, max_batch_tokens=budget)
    real, padded = int(lengths_N.sum()), padded_tokens(lengths_N, batches)
    wasted = sum(int((lengths_N[batch].max() - lengths_N[batch]).sum()) for batch in batches)
    assert padded == real + wasted
    assert padding_fraction(real, padded) == pytest.approx(wasted / padded if padded else 0.0)


def test_a_budget_beyond_every_number_of_the_machine_binds_nothing() -> None:
    (batch,) = plan_batches(np.array([7, 7, 7]), max_batch_tokens=10**30)
    assert len(batch) == 3
    assert plan_batches(np.array([], np.int64), max_batch_tokens=10**30) == []


def test_a_document_beyond_the_budget_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"max_batch_tokens is 8, but a document has 9 tokens"):
        plan_batches(np.array([3, 9]), max_batch_tokens=8)
