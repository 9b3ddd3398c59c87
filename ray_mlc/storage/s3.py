"""What both clients of S3, obstore's and Arrow's, take from the environment.

The same variables must serve both, for Amazon, MinIO and any other server.
"""

from __future__ import annotations

import configparser
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

REQUEST_TIMEOUT_S = 90.0
"""Longest time of one request, its body included; a part must get through in it."""
CONNECT_TIMEOUT_S = 10.0
"""Longest time until a connection stands."""
CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""With any of these obstore finds credentials by itself."""


def endpoint() -> str:
    """URL of an S3 server other than Amazon's; empty for Amazon."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def region_of(bucket: str) -> str | None:
    """Region of the requests: the environment's, else the bucket's own."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or endpoint():
        return region or None  # other servers than Amazon's do not mind
    return _region_of_bucket(bucket)


@lru_cache(maxsize=256)
def _region_of_bucket(bucket: str) -> str | None:
    import pyarrow.fs as pa_fs

    try:
        return str(pa_fs.resolveregion_of(bucket))
    except OSError:
        return None  # the first request will say what is wrong


def shared_credentials() -> dict[str, str]:
    """Keys of the profile in AWS's credentials file, which Arrow reads and obstore does not."""
    if any(os.environ.get(name) for name in CREDENTIAL_VARIABLES):
        return {}
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    parser = configparser.RawConfigParser()
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(path, encoding="utf-8")
    profile = os.environ.get("AWS_PROFILE", "default")
    found = parser[profile] if parser.has_section(profile) else {}
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return {name.removeprefix("aws_"): found[name] for name in names if name in found}


def bucket_of(uri: str) -> str:
    """`bucket` of `s3://bucket/key`."""
    return uri.split("://", 1)[1].split("/", 1)[0]
