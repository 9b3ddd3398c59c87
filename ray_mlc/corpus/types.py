"""Kinds of Arrow types that texts and labels come in."""

from __future__ import annotations

from pyarrow import DataType, types


def is_string(found: DataType) -> bool:
    """Whether Arrow stores the type as text."""
    some = types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    return bool(some)


def is_bytes(found: DataType) -> bool:
    """Whether Arrow stores the type as bytes of any number."""
    return bool(
        types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found)
    )
