"""Kinds of Arrow types that texts and labels come in."""

from __future__ import annotations

import pyarrow as pa
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


def without_views(found: DataType) -> DataType:
    """The same type with plain strings and bytes where it has views of them.

    Arrow reads views, but writes no slices of structs and lists that hold them, and widens none.
    Views of lists stay: Arrow 26 makes broken arrays of them when it casts them to lists.
    """
    if types.is_string_view(found):
        return pa.large_string()
    if types.is_binary_view(found):
        return pa.large_binary()
    if types.is_struct(found):
        return pa.struct([_field(found.field(index)) for index in range(found.num_fields)])
    if types.is_map(found):
        return pa.map_(_field(found.key_field), _field(found.item_field), found.keys_sorted)
    if types.is_fixed_size_list(found):
        return pa.list_(_field(found.value_field), found.list_size)
    if types.is_list(found):
        return pa.list_(_field(found.value_field))
    if types.is_large_list(found):
        return pa.large_list(_field(found.value_field))
    return found


def _field(field: pa.Field) -> pa.Field:
    return field.with_type(without_views(field.type))
