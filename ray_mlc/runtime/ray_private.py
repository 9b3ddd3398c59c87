"""The one place that leans on Ray's developer APIs; checked against the versions we allow."""

from __future__ import annotations

from typing import Any

import ray
from ray.data import DataContext, Dataset
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator

from ray_mlc.errors import ResourceError

TESTED = ((2, 60), (2, 64))
"""Ray versions from the first up to, not including, the second."""
BLOCKS_AHEAD_KEY = "ray_mlc.blocks_ahead"


def check_version() -> None:
    """Refuse a Ray that this module was not written for.

    Raises:
        ResourceError: Naming the version and the range.
    """
    found = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if not TESTED[0] <= found < TESTED[1]:
        low, high = (".".join(map(str, bound)) for bound in TESTED)
        raise ResourceError(
            f"ray {ray.__version__} is installed, expected {low} up to before {high}"
        )


def server_version(client: Any) -> str:
    """Version of the Ray that a Jobs client talks to; empty where it does not say.

    The client asks for it when it connects, and has no public name for the answer.
    """
    return str(getattr(client, "_server_ray_version", None) or "")


def dashboard_of_head() -> str | None:
    """`IP:PORT` at which the head of the connected cluster takes jobs; None: not known.

    The public way, another `ray.init`, reads the environment again and resets signals and loggers.
    """
    node = getattr(ray._private.worker, "_global_node", None)
    return getattr(node, "webui_url", None) or None


def map_whole_blocks(data: Dataset, function: Any, **options: Any) -> Dataset:
    """`map_batches` with whole blocks as batches, for CPU and GPU stages alike.

    The public method refuses `batch_size=None` where `num_gpus` is given; the internal one, which
    `map_groups` uses, takes it.
    """
    check_version()
    return data.map_batches_internal(
        function, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **options
    )


class BlocksAhead(BackpressurePolicy):  # type: ignore[misc]
    """Holds a stage back while so many of its blocks have not been begun by the next one.

    Ray Data's own rules let reading run ahead until half of the object store is full. What is read
    then lies there for hours, and the processes that could write are taken by reading.
    """

    @property
    def name(self) -> str:
        """Name in Ray Data's statistics."""
        return "BlocksAhead"

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether a stage may begin another block."""
        following = [next_op for next_op in op.output_dependencies if _makes_blocks(next_op)]
        if not _makes_blocks(op) or not following:
            return True
        # an actor pool's tasks are bounded by the pool; others may start as many as there are CPUs
        pool = isinstance(op, ActorPoolMapOperator)
        made = op.metrics.num_tasks_finished if pool else op.metrics.num_tasks_submitted
        ahead = made - following[0].metrics.num_tasks_submitted
        return bool(ahead < self._data_context.get_config(BLOCKS_AHEAD_KEY))


def _makes_blocks(op: PhysicalOperator) -> bool:
    return isinstance(op, MapOperator)


def limit_blocks_ahead(context: DataContext, blocks: int) -> None:
    """Let each stage be so many blocks ahead of the next one; each task makes one block."""
    check_version()
    policies = [*ENABLED_BACKPRESSURE_POLICIES, BlocksAhead]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    context.set_config(BLOCKS_AHEAD_KEY, blocks)
