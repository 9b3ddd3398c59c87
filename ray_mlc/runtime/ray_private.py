"""The one place that leans on Ray's developer APIs; checked against the versions we allow."""

from __future__ import annotations

from typing import Any

import ray
from ray.data import Dataset
from ray.data._internal.execution import streaming_executor_state

from ray_mlc.errors import ResourceError

TESTED = ((2, 60), (2, 64))
"""Ray versions from the first up to, not including, the second."""


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


def map_whole_blocks(data: Dataset, function: Any, **options: Any) -> Dataset:
    """`map_batches` with whole blocks as batches, for CPU and GPU stages alike.

    The public method refuses `batch_size=None` where `num_gpus` is given; the internal one, which
    `map_groups` uses, takes it.
    """
    check_version()
    return data.map_batches_internal(
        function, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **options
    )


def set_scheduling_wait(seconds: float) -> None:
    """How long Ray Data's loop waits at most for all tasks in flight before it starts others.

    It starts tasks only between two such waits, a tenth of a second each by default, and so few a
    second where tasks are short. A loop without waits takes CPU of its own; see `Pace`.
    """
    check_version()
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = seconds
