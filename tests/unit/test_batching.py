from __future__ import annotations

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
def test_batches_are_longest_first_and_none_could_take_one_more(
    lengths_N: np.ndarray, budget: int
) -> None:
    batches = plan_batches(lengths_N, max_batch_tokens=budget)
    in_order = [lengths_N[index] for batch in batches for index in batch]
    assert in_order == sorted(in_order, reverse=True)
    assert all((len(batch) + 1) * lengths_N[batch].max() > budget for batch in batches[:-1])


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


def test_a_document_beyond_the_budget_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"max_batch_tokens is 8, but a document has 9 tokens"):
        plan_batches(np.array([3, 9]), max_batch_tokens=8)
