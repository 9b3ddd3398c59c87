"""A prefix of an object store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from ray_mlc.errors import StorageError, first_line
from ray_mlc.storage import s3
from ray_mlc.storage.locations import scheme_of
from ray_mlc.storage.protocol import ObjectInfo

RETRY_BUDGET_S = 180.0
"""Longest time for which a request to an object store is repeated."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 15.0


class _NotStoredError(StorageError):
    """A PUT failed, and the object is as it was before: it can be repeated."""


class ObjectStorage:
    """A prefix of an object store, through obstore; credentials come from the environment."""

    def __init__(self, uri: str) -> None:
        from obstore.store import from_url

        self.uri = uri.rstrip("/")
        options: dict[str, Any] = {
            "client_options": {
                "connect_timeout": timedelta(seconds=s3.CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=s3.REQUEST_TIMEOUT_S),
            },
        }
        repeated = {
            "max_retries": 1000,  # the time decides
            "retry_timeout": timedelta(seconds=RETRY_BUDGET_S),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_WAIT_S),
                "max_backoff": timedelta(seconds=LONGEST_WAIT_S),
                "base": 2,
            },
        }
        if scheme_of(uri) in ("s3", "s3a"):
            if endpoint := s3.endpoint():
                options["endpoint"] = endpoint
                # the user named a plain-HTTP server
                options["client_options"]["allow_http"] = endpoint.startswith("http://")
            if region := s3.region_of(s3.bucket_of(uri)):
                options["region"] = region
            options |= s3.shared_credentials()
        try:
            # a key is taken as it is written: a URL would end at `#`, and `%` would be decoded
            scheme, rest = self.uri.split("://", 1)
            place = f"{scheme}://{quote(rest, safe='/@:')}"
            self._store = from_url(place, retry_config=repeated, **options)
            self._unrepeated = from_url(place, retry_config={"max_retries": 0}, **options)
        except Exception as error:  # obstore has no common base class of its errors
            raise StorageError(f"{uri}: cannot be opened ({first_line(error)})") from None

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        """Only the location travels: each node takes credentials from its own environment."""
        return ObjectStorage, (self.uri,)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix`, a thousand per request."""
        import obstore

        stream: Any = None
        last: str | None = None

        def next_page() -> Any:
            nonlocal stream
            if stream is None:  # also after an error: stores list in the order of names
                stream = obstore.list(self._store, prefix or None, offset=last)
            try:
                return next(stream, None)
            except BaseException:
                stream = None
                raise

        while page := self._repeat("list", prefix, next_page, or_none=True):
            last = page[-1]["path"]
            # the root's own marker object, as some tools make one, has no path
            yield from (_object_info(meta) for meta in page if meta["path"])

    def stat(self, path: str) -> ObjectInfo | None:
        """One object's entry; None if there is none."""
        import obstore

        found = self._repeat("read", path, lambda: obstore.head(self._store, path), or_none=True)
        return None if found is None else _object_info(found)

    def read(self, path: str) -> bytes | None:
        """Content of an object; None if there is none."""
        found = self._get(path)
        return None if found is None else found[0]

    def put(self, path: str, data: bytes) -> None:
        """One PUT: an object appears whole or not at all."""
        import obstore

        self._repeat(
            "write", path, lambda: obstore.put(self._store, path, data, use_multipart=False)
        )

    def create(self, path: str, data: bytes) -> bool:
        """A conditional PUT (`If-None-Match: *`)."""
        return self._put_if(path, data, lambda: "create", expected=None)

    def update(self, path: str, data: bytes, *, expected: bytes) -> bool:
        """A conditional PUT (`If-Match` with the entity tag of the content that was compared)."""

        def version() -> dict[str, str] | None:
            found = self._get(path)
            if found is None or found[0] != expected:
                return None
            return {key: found[1][key] for key in ("e_tag", "version") if found[1][key]}

        return self._put_if(path, data, version, expected=expected)

    def delete(self, path: str) -> None:
        """Remove the object; stores do not say whether it was there."""
        import obstore

        self._repeat("delete", path, lambda: obstore.delete(self._store, path), or_none=True)

    def _get(self, path: str) -> tuple[bytes, Any] | None:
        import obstore

        def get() -> tuple[bytes, Any]:
            found = obstore.get(self._store, path)
            return bytes(found.bytes()), found.meta

        got: tuple[bytes, Any] | None = self._repeat("read", path, get, or_none=True)
        return got

    def _repeat(
        self, verb: str, path: str, act: Callable[[], Any], *, or_none: bool = False
    ) -> Any:
        """Do what may be done twice, again after errors that may pass; None for what is absent.

        obstore repeats most of it by itself, but not an answer that breaks off in its body.
        """
        try:
            return _retrying(_may_pass)(act)
        except Exception as error:
            if or_none and _is_absent(error):
                return None
            raise self._error(verb, path, error) from None

    def _put_if(
        self, path: str, data: bytes, condition: Callable[[], Any], *, expected: bytes | None
    ) -> bool:
        """A conditional PUT; False if the condition does not hold.

        obstore does not repeat these when the connection breaks, because their outcome is unknown
        then. A look at the object tells it: our content, still the old one, or somebody else's.
        """
        import obstore
        from obstore import exceptions

        unknown = False

        def attempt() -> bool:
            nonlocal unknown
            mode = condition()
            if mode is None:
                return unknown and self.read(path) == data
            try:
                obstore.put(self._unrepeated, path, data, mode=mode, use_multipart=False)
            except (
                exceptions.AlreadyExistsError,
                exceptions.PreconditionError,
            ):
                return unknown and self.read(path) == data
            except FileNotFoundError as error:
                if expected is None:  # nothing need be there but the bucket
                    raise self._error("write", path, error) from None
                return False
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise self._error("write", path, error) from None
            except Exception as error:
                unknown = True
                found = self.read(path)
                if found == data:
                    return True
                if found != expected:
                    return False
                raise _NotStoredError(str(self._error("write", path, error))) from None
            return True

        stored: bool = _retrying(lambda error: isinstance(error, _NotStoredError))(attempt)
        return stored

    def _error(self, verb: str, path: str, error: Exception) -> StorageError:
        return StorageError(f"{self.uri}/{path}: cannot {verb} ({first_line(error)})")


def _retrying(again: Callable[[BaseException], bool]) -> Any:
    """A caller that repeats while `again` says so and the budget lasts."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    return Retrying(
        retry=retry_if_exception(again),
        stop=stop_after_delay(RETRY_BUDGET_S),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    """Whether an error of obstore's is of a kind that a repetition can get around."""
    from obstore import exceptions

    # 4xx: the request is wrong, except for two that say "not now"
    refused = re.search(r"status code: 4(?!08|29)", str(error))
    return isinstance(error, exceptions.GenericError) and refused is None


def _is_absent(error: Exception) -> bool:
    # a listing of a bucket that is not there is no FileNotFoundError of obstore's
    return isinstance(error, FileNotFoundError) or "status code: 404" in str(error)


def _object_info(meta: Any) -> ObjectInfo:
    return ObjectInfo(
        meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or ""
    )
