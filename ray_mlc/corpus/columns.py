"""Which columns come out of a run: fixed once over all files, and kept for all nights.

The first night fixes the kept columns: the union over its files, widened where that is exact. The
schema never changes afterwards, or readers would find parts that do not go together: in later
nights a column that is new is left out, one that is missing is null, and a file whose column holds
values that the fixed type cannot hold is set aside.

Only schemas are seen here: no rows, no storage.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from ray_mlc.corpus.fields import (
    field_paths,
    near_name,
    such_as_a_field,
    top_column,
    type_of,
)
from ray_mlc.corpus.footers import Footer
from ray_mlc.corpus.listing import InputFile
from ray_mlc.corpus.text import text_columns
from ray_mlc.corpus.types import is_bytes, is_string, without_views
from ray_mlc.errors import DataError, as_line
from ray_mlc.labels import unique_when_folded


@dataclass(frozen=True)
class Readable:
    """A file whose footer could be read."""

    file: InputFile
    schema: pa.Schema

    @property
    def column_names(self) -> list[str]:
        """Columns of the file, those that its path says included."""
        return [*self.schema.names, *self.file.hive_keys]


@dataclass(frozen=True)
class KeptColumn:
    """An input column that is written to the output."""

    name: str
    """Name in the input, or the Hive key."""
    output: str
    """Name in the output: differs where the input's is one of ours."""
    type: pa.DataType
    """The widest type over all files."""


@dataclass(frozen=True)
class ReadSpec:
    """Which columns are read, and how the text is made of them."""

    root: str
    """URI of the folder that sources are relative to."""
    text: str
    """Column name, path to a field of a struct, or template over such."""
    kept: tuple[KeptColumn, ...]
    """Columns to keep, in output order."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns, and fields of structs, that the text is made of."""
        return text_columns(self.text)

    @property
    def kept_schema(self) -> pa.Schema:
        """Output schema of the kept columns."""
        return pa.schema([pa.field(column.output, column.type) for column in self.kept])


def resolve_columns(
    footers: Sequence[Footer],
    *,
    root: str,
    text: str,
    keep: Sequence[str] | str | None,
    reserved: Iterable[str],
) -> tuple[ReadSpec, list[Footer]]:
    """Fix the output's kept columns over all files; set aside files that do not fit.

    Args:
        footers: One per file.
        root: URI that sources are relative to.
        text: Text column or template.
        keep: Columns to keep: a list, `*` for all, None for all but the text; of a text in a struct
            the whole column is left out.
        reserved: Output columns of ours; an input column that equals one after case folding is
            kept as `input_<name>`.

    Returns:
        The read spec, and the footers with `fault` set on files that do not fit.

    Raises:
        DataError: If no file can be read at all, or none has the text column, or `keep` names a
            column that no file has.
    """
    needed = text_columns(text)
    readable = [Readable(item.file, item.schema) for item in footers if item.schema is not None]
    if footers and not readable:
        raise DataError(
            f"{root}: no file could be read; {footers[0].file.source}: {footers[0].fault}"
        )
    known = list(dict.fromkeys(name for item in readable for name in item.column_names))
    _check_text(readable, text, needed)
    if keep is None:
        tops = {top_column(item.schema, name) for item in readable for name in needed}
        wanted = [name for name in known if name not in tops]
    elif keep == "*":
        wanted = known
    else:
        wanted = list(dict.fromkeys(keep))
        for name in wanted:
            if name not in known:
                raise DataError(
                    f"output.keep: no file has a column {name!r}{did_you_mean(name, known)}"
                )
    types: dict[str, pa.DataType] = _hive_types(readable, wanted)
    verdicts: dict[tuple[str, ...], str | None] = {}
    result = []
    for footer in footers:
        if footer.schema is None:
            result.append(footer)
            continue
        # 100,000 files share a few schemas: judge each schema once
        key = tuple(f"{item.name}:{item.type}" for item in footer.schema)
        if key not in verdicts:
            verdicts[key] = judge_schema(footer.schema, text, wanted, types)
        result.append(_judged(footer, verdicts[key]))
    # only now are the types as wide as all files make them
    result = [
        footer
        if footer.schema is None
        else _judged(footer, _bad_path_value(footer.schema, footer.file.hive_keys, types))
        for footer in result
    ]
    outputs = output_names(wanted, reserved)
    kept = tuple(
        KeptColumn(name, output, types[name])
        for name, output in zip(wanted, outputs, strict=True)
        if name in types
    )
    return ReadSpec(root, text, kept), result


def output_names(wanted: Iterable[str], reserved: Iterable[str]) -> list[str]:
    """What input columns are called beside `reserved` ones of ours, whatever the case."""
    ours = {name.casefold() for name in reserved}
    named = [f"input_{name}" if _is_ours(name.casefold(), ours) else name for name in wanted]
    return unique_when_folded(named, taken=ours)


def _is_ours(folded: str, ours: Container[str]) -> bool:
    """Whether a case-folded name is one of the output's columns, or of a block's own."""
    return folded in ours or folded.startswith("__ray_mlc_")


def _check_text(readable: Sequence[Readable], text: str, needed: Sequence[str]) -> None:
    """Refuse at once what would set every file aside."""
    for name in needed:
        types = [(item, type_of(item.schema, name)) for item in readable]
        having = [(item.file.source, type_) for item, type_ in types if type_ is not None]
        if not having and readable:
            for item in readable:
                if name in item.schema.names:
                    raise DataError(f"{item.file.source}: text column {name!r} is there twice")
            every = (path for item in readable for path in field_paths(item.schema))
            paths = list(dict.fromkeys(every))
            raise DataError(
                f"input.text: no file has a column {name!r}{did_you_mean(name, paths)}; "
                f"columns are {', '.join(paths[:12])}"
            )
        if having and text == name and not any(is_text(type_) for _, type_ in having):
            source, type_ = having[0]
            raise DataError(
                f"{source}: text column {name!r} is {type_}, expected string: name a column of "
                f"text{such_as_a_field(name, type_)}"
            )


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold the text."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return is_string(type_) or is_bytes(type_) or bool(pa.types.is_null(type_))


def judge_schema(
    schema: pa.Schema,
    text: str,
    wanted: Sequence[str],
    types: dict[str, pa.DataType],
) -> str | None:
    """Widen `types` by a file's schema; a sentence if the file does not fit."""
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        return f"column {twice!r} is there twice"
    for name in text_columns(text):
        found = type_of(schema, name)
        if found is None:
            return f"there is no text column {name!r}"
        if text == name and not is_text(found):
            return f"text column {name!r} is {found}, expected string"
        if pa.types.is_nested(found):
            return f"text column {name!r} is {found}, expected text or a number"
    widened: dict[str, pa.DataType] = {}
    for name in wanted:
        if (index := schema.get_field_index(name)) < 0:
            continue
        type_ = schema.field(index).type
        wider = widest(types.get(name, type_), type_)
        if wider is None:
            return f"column {name!r} is {type_}, {types[name]} in the files before"
        widened[name] = wider
    types.update(widened)
    return None


def widest(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type without views that holds every value of both exactly; None if there is none."""
    one, other = without_views(one), without_views(other)
    if one.equals(other):
        return one
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        plain = [item.value_type if pa.types.is_dictionary(item) else item for item in (one, other)]
        return widest(*plain)
    for exact, real in ((one, other), (other, one)):
        digits = {pa.float32(): 24, pa.float64(): 53, pa.float16(): 11}.get(real, 0)
        if pa.types.is_integer(exact) and digits and exact.bit_width > digits:
            return None  # 2**53 + 1 is no float64
        if pa.types.is_decimal(exact) and digits:
            return None
        if exact == pa.uint64() and pa.types.is_signed_integer(real):
            return None  # Arrow would say int64
    try:
        schemas = [pa.schema([("x", one)]), pa.schema([("x", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, ValueError):
        return None


def _hive_types(readable: Sequence[Readable], wanted: Sequence[str]) -> dict[str, pa.DataType]:
    """Types of wanted columns that only paths say: int64 where every value is a number."""
    in_files = {name for footer in readable for name in footer.schema.names}
    types = {}
    for name in wanted:
        if name in in_files:
            continue
        values = [item.file.hive_keys[name] for item in readable if name in item.file.hive_keys]
        # `007` is a name, not the number 7
        numbers = all(value.isascii() and value.isdecimal() for value in values)
        plain = numbers and all(str(int(value)) == value for value in values)
        types[name] = pa.int64() if plain else pa.string()
    return types


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """What to add to an error over a column that is not among those known."""
    near = near_name(name, known)
    return f": did you mean {near!r}?" if near else ""


def fit_columns(footers: Sequence[Footer], spec: ReadSpec) -> tuple[list[Footer], list[str]]:
    """Set aside files that do not fit; name columns that are left out.

    Args:
        footers: One per file.
        spec: Columns of the run.

    Returns:
        The footers with `fault` set on files that do not fit, and the names of columns of readable
        files that the run does not have.
    """
    known = {column.name for column in spec.kept}
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
        result.append(_judged(footer, verdicts[key]))
        if verdicts[key] is None:
            names = (*footer.schema.names, *keys)
            here = known | {top_column(footer.schema, name) for name in spec.text_columns}
            unknown.update(dict.fromkeys(name for name in names if name not in here))
    return result, list(unknown)


def _misfit(schema: pa.Schema, hive_keys: dict[str, str], spec: ReadSpec) -> str | None:
    """Why a file does not fit the run; None if it does."""
    fixed = {column.name: column.type for column in spec.kept}
    widened = dict(fixed)
    verdict = judge_schema(schema, spec.text, list(fixed), widened)
    if verdict is not None:
        return verdict
    for name, type_ in fixed.items():
        if not widened[name].equals(without_views(type_)):
            found = schema.field(schema.get_field_index(name)).type
            return f"column {name!r} is {found}, {type_} in this run"
    return _bad_path_value(schema, hive_keys, fixed)


def _judged(footer: Footer, verdict: str | None) -> Footer:
    """The footer, its file set aside if there is something against it."""
    if verdict is None:
        return footer
    return replace(footer, schema=None, fault=as_line(f"schema: {verdict}"))


def _bad_path_value(
    schema: pa.Schema, hive_keys: dict[str, str], types: dict[str, pa.DataType]
) -> str | None:
    """What is wrong with the values that a path gives to columns that its file lacks."""
    for name, type_ in types.items():
        if schema.get_field_index(name) < 0 and name in hive_keys:
            try:
                pa.scalar(hive_keys[name], pa.string()).cast(type_)
            except pa.ArrowException:
                return f"the path says {name}={hive_keys[name]}, but column {name!r} is {type_}"
    return None
