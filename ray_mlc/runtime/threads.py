"""Work that Arrow and NumPy do without Python's lock, on all cores of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ray_mlc.runtime.session import usable_cores

T = TypeVar("T")
U = TypeVar("U")


def in_threads(act: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """What `act` gives for each item, in their order; one more than there are cores is in hand.

    When the caller leaves early, what is in hand is finished, and nothing new is begun.
    """
    cores = usable_cores()
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(max_workers=cores) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(act, item))
                if len(waiting) > cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
