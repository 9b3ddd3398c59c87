"""Arrow's file systems, through which Parquet is read."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ray_mlc.errors import DataError, first_line
from ray_mlc.storage import s3
from ray_mlc.storage.locations import local_path, refuse_credentials, scheme_of

if TYPE_CHECKING:
    import pyarrow.fs as pa_fs

ARROW_ATTEMPTS = 10
"""Attempts of one request when Arrow reads from S3."""


def filesystem_of(uri: str) -> tuple[pa_fs.FileSystem, str]:
    """The Arrow file system of `uri` and the path in it, for reading.

    Raises:
        ConfigError: If the URI carries credentials.
        DataError: If no library here reads that scheme.
    """
    import pyarrow.fs as pa_fs

    refuse_credentials(uri)
    path = local_path(uri)
    if path is not None:
        return pa_fs.LocalFileSystem(), str(path)
    scheme = scheme_of(uri)
    rest = uri.split("://", 1)[1]
    try:
        if scheme in ("s3", "s3a"):
            anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
            return _s3_filesystem(s3.endpoint(), s3.region_of(s3.bucket_of(uri)), anonymous), rest
        if scheme == "az":
            return _azure_filesystem(os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")), rest
        if scheme in ("gs", "gcs", "abfs", "abfss"):
            authority, _, key = rest.partition("/")
            filesystem, base = _filesystem_by_arrow(f"{scheme}://{authority}")
            return filesystem, f"{base.rstrip('/')}/{key}" if key else base
        import fsspec

        return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(fsspec.filesystem(scheme))), rest
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{uri}: cannot read from {scheme}:// ({first_line(error)})") from None


# One client per store: making one reads configuration files and opens connections.
@lru_cache(maxsize=32)
def _s3_filesystem(endpoint: str, region: str | None, anonymous: bool) -> pa_fs.FileSystem:
    import pyarrow.fs as pa_fs

    scheme, _, host = endpoint.rpartition("://")
    options: dict[str, Any] = {"region": region} if region else {}
    if host:
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    return pa_fs.S3FileSystem(
        anonymous=anonymous,
        connect_timeout=s3.CONNECT_TIMEOUT_S,
        request_timeout=s3.REQUEST_TIMEOUT_S,
        retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=ARROW_ATTEMPTS),
        **options,
    )


@lru_cache(maxsize=32)
def _azure_filesystem(account: str) -> pa_fs.FileSystem:
    import pyarrow.fs as pa_fs

    return pa_fs.AzureFileSystem(account_name=account)


@lru_cache(maxsize=32)
def _filesystem_by_arrow(store: str) -> tuple[pa_fs.FileSystem, str]:
    import pyarrow.fs as pa_fs

    filesystem, base = pa_fs.FileSystem.from_uri(store)
    return filesystem, str(base)
