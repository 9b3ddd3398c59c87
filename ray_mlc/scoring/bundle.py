"""Blocks that several models have made of the same rows, as one table.

On its way through a pass a block is one table, whatever the number of models: its rows, units and
kept columns are there once, and what a model (or a tokenizer) has made of them is there for each,
under names that say whose it is. Nothing is copied by that.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import pyarrow as pa


def bundle(tables: Sequence[pa.Table], shared: Container[str]) -> pa.Table:
    """Put tables with the same rows side by side.

    Args:
        tables: One for each owner; a single one is returned as it is.
        shared: Columns that are the same in all of them, and there once afterwards.
    """
    first, *others = tables
    if not others:
        return first
    fields = [field for field in first.schema if field.name in shared]
    columns = [first.column(field.name) for field in fields]
    for position, table in enumerate(tables):
        for field, column in zip(table.schema, table.columns, strict=True):
            if field.name not in shared:
                fields.append(field.with_name(_prefix(position) + field.name))
                columns.append(column)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def unbundle(block: pa.Table, count: int) -> list[pa.Table]:
    """The tables that were put together, `count` of them; shared columns come first in each."""
    if count == 1:
        return [block]
    prefixes = tuple(_prefix(position) for position in range(count))
    names = block.schema.names
    shared = [name for name in names if not name.startswith(prefixes)]
    tables = []
    for prefix in prefixes:
        own = [name for name in names if name.startswith(prefix)]
        table = block.select([*shared, *own])
        tables.append(table.rename_columns([*shared, *(name[len(prefix) :] for name in own)]))
    return tables


def _prefix(position: int) -> str:
    """What the columns of an owner are called by."""
    return f"__ray_mlc_{position}:"
