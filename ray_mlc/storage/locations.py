"""Locations: plain paths and URIs, and the secrets that they must not carry."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ray_mlc.errors import SECRET_PARAMETER, SECRET_USER_INFO, ConfigError

OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
"""Schemes that `open_storage` takes beside local paths."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


def scheme_of(uri: str) -> str:
    """`s3` of `s3://bucket/key`; `file` for a plain path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else "file"


def local_path(uri: str) -> Path | None:
    """The path of a local location (plain or `file://`); None for a remote one."""
    if scheme_of(uri) != "file":
        return None
    return Path(uri.removeprefix("file://")).expanduser().absolute()


def place_of(uri: str) -> str:
    """A location in one spelling: absolute if it is local, without a slash at its end."""
    path = local_path(uri)
    return uri.rstrip("/") if path is None else os.path.abspath(path).rstrip("/")  # noqa: PTH100


def join(uri: str, *elements: str) -> str:
    """`uri` with path elements added."""
    return "/".join([uri.rstrip("/"), *(element.strip("/") for element in elements)])


def refuse_credentials(uri: str) -> None:
    """Refuse a location that carries a key, a password or a signature.

    Raises:
        ConfigError: Without the location, which would spread the secret.
    """
    authority = uri.split("://", 1)[1].split("/", 1)[0] if "://" in uri else ""
    found = SECRET_PARAMETER.search(uri) or SECRET_USER_INFO.search(uri)
    if scheme_of(uri) in ("s3", "s3a", "gs", "gcs", "az"):
        # no bucket has these in its name; in abfs://container@account one is a place
        found = found or re.search("[@:]", authority)
    if found:
        raise ConfigError(
            f"a {scheme_of(uri)}:// location carries credentials: leave them out, and put them "
            "into the environment (such as AWS_ACCESS_KEY_ID) or give the node a role"
        )
