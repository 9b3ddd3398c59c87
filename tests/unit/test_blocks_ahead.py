"""How far stages may run ahead of one another, without a Ray."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from ray.data import DataContext
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.task_pool_map_operator import TaskPoolMapOperator

from ray_mlc.runtime.ray_private import BlocksAhead, limit_blocks_ahead

AHEAD = 4


@pytest.fixture(scope="module")
def policy() -> BlocksAhead:
    context = DataContext()
    limit_blocks_ahead(context, AHEAD)
    return BlocksAhead(context, {}, None)


def stage(kind: type, following: list[Any], *, submitted: int, finished: int) -> Any:
    """An operator with so many tasks begun, and so many of them done."""
    op = Mock(spec=kind)
    op.output_dependencies = following
    op.metrics = Mock(num_tasks_submitted=submitted, num_tasks_finished=finished)
    return op


@pytest.mark.parametrize(("submitted", "may"), [(9, True), (10, False), (11, False)])
def test_reading_counts_what_it_has_begun(policy: BlocksAhead, submitted: int, may: bool) -> None:
    score = stage(ActorPoolMapOperator, [], submitted=6, finished=2)
    read = stage(TaskPoolMapOperator, [score], submitted=submitted, finished=6)
    assert policy.can_add_input(read) is may


def test_a_pool_larger_than_the_limit_works_as_long_as_its_results_are_wanted(
    policy: BlocksAhead,
) -> None:
    """Eight tokenizers before one GPU: what they are at does not wait for anybody yet."""
    score = stage(ActorPoolMapOperator, [], submitted=2, finished=0)
    busy = stage(ActorPoolMapOperator, [score], submitted=2 + 8, finished=2 + 1)
    assert policy.can_add_input(busy)
    ahead = stage(ActorPoolMapOperator, [score], submitted=2 + 8, finished=2 + AHEAD)
    assert not policy.can_add_input(ahead)


def test_the_last_stage_and_what_makes_no_blocks_are_never_held_back(policy: BlocksAhead) -> None:
    write = stage(TaskPoolMapOperator, [], submitted=1000, finished=0)
    assert policy.can_add_input(write)
    source = stage(PhysicalOperator, [write], submitted=2000, finished=2000)
    assert policy.can_add_input(source)
