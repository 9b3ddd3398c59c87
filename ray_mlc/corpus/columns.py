"""Fit the files of a later night to the columns that the first one fixed.

The output's schema never changes within a run: readers would otherwise find parts that do not go
together. A column that is new is left out, one that is missing is null, and a file whose column
holds values that the fixed type cannot hold is set aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from ray_mlc.corpus.footers import Footer, ReadSpec, judge_schema


def fit_columns(footers: Sequence[Footer], spec: ReadSpec) -> tuple[list[Footer], list[str]]:
    """Set aside files that do not fit; name columns that are left out.

    Args:
        footers: One per file.
        spec: Columns of the run.

    Returns:
        The footers with `fault` set on files that do not fit, and the names of columns of readable
        files that the run does not have.
    """
    known = {*spec.text_columns, *(column.name for column in spec.kept)}
    unknown: dict[str, None] = {}
    verdicts: dict[tuple[str, ...], str | None] = {}
    result = []
    for footer in footers:
        if footer.schema is None:
            result.append(footer)
            continue
        keys = footer.file.hive_keys
        schema_key = tuple(f"{item.name}:{item.type}" for item in footer.schema)
        key = (*schema_key, *(f"/{name}={value}" for name, value in keys.items()))
        if key not in verdicts:
            verdicts[key] = _misfit(footer.schema, keys, spec)
        if (verdict := verdicts[key]) is not None:
            result.append(replace(footer, schema=None, fault=f"schema: {verdict}"))
            continue
        result.append(footer)
        unknown.update(dict.fromkeys(n for n in (*footer.schema.names, *keys) if n not in known))
    return result, list(unknown)


def _misfit(schema: pa.Schema, hive_keys: dict[str, str], spec: ReadSpec) -> str | None:
    """Why a file does not fit the run; None if it does."""
    fixed = {column.name: column.type for column in spec.kept}
    widened = dict(fixed)
    verdict = judge_schema(schema, spec.text, list(fixed), widened)
    if verdict is not None:
        return verdict
    for name, type_ in fixed.items():
        if not widened[name].equals(type_):
            found = schema.field(schema.get_field_index(name)).type
            return f"column {name!r} is {found}, {type_} in this run"
        if schema.get_field_index(name) < 0 and name in hive_keys:
            try:
                pa.scalar(hive_keys[name], pa.string()).cast(type_)
            except pa.ArrowException:
                return f"the path says {name}={hive_keys[name]}, {type_} in this run"
    return None
