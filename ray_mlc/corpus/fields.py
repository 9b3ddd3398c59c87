"""Columns by name, and fields of struct columns by a path with dots.

`text.en` is the field `en` of the column `text`; `a.b.c` goes deeper. A column, or field, whose own
name has dots wins over a path that reads the same. Names are exact, their case included. Scoring
and training find texts by the same rule, here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc


def field_paths(schema: pa.Schema) -> list[str]:
    """Names of the columns and, after dots, of the fields of structs: all that can be asked for.

    A column that is there twice is listed twice; a path that reads like a column's name is not.
    """
    own = set(schema.names)
    return [path for path, is_column in _paths(schema) if is_column or path not in own]


def _paths(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[tuple[str, bool]]:
    for item in fields:
        yield prefix + item.name, not prefix
        if pa.types.is_struct(item.type):
            yield from _paths(_inner(item.type), f"{prefix}{item.name}.")


def find_field(fields: Sequence[pa.Field], name: str) -> tuple[int, ...] | None:
    """Where a column or field is.

    Args:
        fields: Columns of a schema, or fields of a struct.
        name: Name of one, or a path with dots.

    Returns:
        Position of the column, then of the field in it, and so on; None if there is none, or if
        there are two.
    """
    same = [index for index, item in enumerate(fields) if item.name == name]
    if same:
        return (same[0],) if len(same) == 1 else None
    for index, item in enumerate(fields):
        if pa.types.is_struct(item.type) and name.startswith(f"{item.name}."):
            below = find_field(_inner(item.type), name.removeprefix(f"{item.name}."))
            if below is not None:
                return (index, *below)
    return None


def type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Type of a column or field; None if there is none, or there are two."""
    path = find_field(list(schema), name)
    if path is None:
        return None
    found = schema.field(path[0]).type
    for index in path[1:]:
        found = found.field(index).type
    return found


def top_column(schema: pa.Schema, name: str) -> str:
    """The column in which a column or field is; `name` itself if there is none."""
    path = find_field(list(schema), name)
    return name if path is None else str(schema.field(path[0]).name)


def column_at(columns: pa.Table | Mapping[str, pa.Array], name: str) -> pa.Array | pa.ChunkedArray:
    """A column, or a field of a struct column, null where a struct around it is.

    Raises:
        KeyError: If there is none.
    """
    names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    arrays = columns.columns if isinstance(columns, pa.Table) else list(columns.values())
    fields = [pa.field(own, array.type) for own, array in zip(names, arrays, strict=True)]
    path = find_field(fields, name)
    if path is None:
        raise KeyError(name)
    found = arrays[path[0]]
    return pc.struct_field(found, list(path[1:])) if path[1:] else found


def near_name(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that is most like another, whatever the case; None if none is."""
    folded = {other.casefold(): other for other in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[near[0]] if near else None


def such_as_a_field(name: str, found: pa.DataType) -> str:
    """Names a field of a struct that was taken for a column of text; empty for other types."""
    if not pa.types.is_struct(found) or not found.num_fields:
        return ""
    return f", such as {name}.{found.field(0).name}"


def _inner(struct: pa.StructType) -> list[pa.Field]:
    return [struct.field(index) for index in range(struct.num_fields)]
