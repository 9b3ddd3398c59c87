"""What Ray raises becomes an error of ours: the one inside it, or one line about its cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ray_mlc import errors
from ray_mlc.errors import RayMlcError, first_line


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn what Ray raises into an error of ours: the one inside it, or one line about its cause.

    An exception of a task or actor that is none of ours is a bug and keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        inner = own_error_in(error) or failure_of_ray(error)
        if inner is None:
            raise
        raise inner from None


def own_error_in(error: BaseException) -> RayMlcError | None:
    """The error of ours that Ray wrapped: as an object, or as the text of a dead actor's trace."""
    for seen in _chain(error):
        if isinstance(seen, RayMlcError) and not isinstance(seen, ray.exceptions.RayError):
            return type(seen)(str(seen))
    traced = re.findall(r"ray_mlc\.errors\.(\w+): (.+)", str(error))
    if traced:
        name, message = traced[-1]
        kind = getattr(errors, name, RayMlcError)
        return kind(message)
    return None


def failure_of_ray(error: BaseException) -> RayMlcError | None:
    """What a lost process, node or object comes to; None for an exception of our own code."""
    chain = list(_chain(error))
    if any(isinstance(seen, ray.exceptions.RayTaskError) for seen in chain):
        return None
    for seen in chain:
        if isinstance(seen, ray.exceptions.RayError):
            # the text of a dead actor ends with the traceback of what its constructor raised
            causes = re.findall(r"^\s*((?:\w+\.)*\w*(?:Error|Exception): .+)$", str(seen), re.M)
            line = causes[-1].strip() if causes else first_line(seen)
            return RayMlcError(
                f"Ray lost a process ({type(seen).__name__}): {line[:300]}: run the same command "
                "again, and see Ray's logs if it stays"
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what Ray wrapped in it, and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
