"""What Parquet footers say: rows, row groups, and the columns that a run reads and keeps.

Each footer is read once, at planning. A file whose footer cannot be read, or whose columns do not
fit the others, is set aside with its reason; the rest goes on.
"""

from __future__ import annotations

import difflib
import string
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
from numpy.typing import NDArray

from ray_mlc.corpus.listing import InputFile, Listing, file_path
from ray_mlc.corpus.reading import open_parquet
from ray_mlc.errors import DataError, first_line
from ray_mlc.labels import unique_when_folded
from ray_mlc.storage import filesystem_of

_WITHOUT_VIEW = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
"""Arrow widens no views: where another file has the plain type, so has the output."""
FOOTER_THREADS = 32
"""Footers read at once: each is a few small reads that mostly wait for storage."""


@dataclass(frozen=True)
class Footer:
    """One file's footer, reduced to what planning needs."""

    file: InputFile
    schema: pa.Schema | None = None
    """Arrow schema; None if the footer could not be read."""
    group_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of each row group."""
    group_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Uncompressed bytes of each row group over the columns that are read, as the footer says."""
    fault: str | None = None
    """Why the file is set aside: `footer` or `schema`, and a sentence."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.group_rows.sum())


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
    """Column name or template."""
    kept: tuple[KeptColumn, ...]
    """Columns to keep, in output order."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns that the text is made of."""
        return text_columns(self.text)

    @property
    def kept_schema(self) -> pa.Schema:
        """Output schema of the kept columns."""
        return pa.schema([pa.field(column.output, column.type) for column in self.kept])


def text_columns(text: str) -> tuple[str, ...]:
    """Columns named by a text option: the option itself, or the fields of a template.

    Raises:
        DataError: If the template is malformed.
    """
    if "{" not in text:
        return (text,)
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DataError(f"input.text {text!r} is not a template: {error}") from None
    fields = [name for _, name, _, _ in pieces if name is not None]
    if any(format_ or conversion for _, _, format_, conversion in pieces):
        raise DataError(f"input.text {text!r}: expected bare column names in braces, no formats")
    if not fields or not all(fields):
        raise DataError(f"input.text {text!r}: expected column names in braces, as in {{title}}")
    return tuple(dict.fromkeys(fields))


def read_footers(
    listing: Listing,
    *,
    columns: Callable[[Sequence[str]], Iterable[str]],
    progress: Callable[[int], None] | None = None,
) -> list[Footer]:
    """Read the footer of every file, several at a time.

    Args:
        listing: Files to look at.
        columns: From a file's column names, those whose bytes count.
        progress: Called with 1 after each file.

    Returns:
        One footer per file in the listing's order; unreadable ones carry a `fault`.

    Raises:
        StorageError: If a remote store fails for longer than reads are repeated.
    """
    filesystem, _ = filesystem_of(listing.root)
    cancelled = threading.Event()

    def read(file: InputFile) -> Footer:
        path = file_path(listing.root, file.source)
        footer = _read_footer(filesystem, path, file, columns, cancelled)
        if progress is not None:
            progress(1)
        return footer

    with ThreadPoolExecutor(max_workers=min(FOOTER_THREADS, len(listing.files) or 1)) as pool:
        try:
            return list(pool.map(read, listing.files))
        except BaseException:
            cancelled.set()  # leaving the block waits for reads that go on
            raise


def _read_footer(
    filesystem: pa_fs.FileSystem,
    path: str,
    file: InputFile,
    columns: Callable[[Sequence[str]], Iterable[str]],
    cancelled: threading.Event,
) -> Footer:
    try:
        with open_parquet(filesystem, path, cancelled=cancelled) as opened:
            metadata = opened.metadata
        schema = metadata.schema.to_arrow_schema().remove_metadata()
    except (OSError, pa.ArrowException, ValueError) as error:
        if file.size == 0:
            return Footer(file, fault="footer: the file has no bytes")
        return Footer(file, fault=f"footer: {first_line(error)}")
    wanted = set(columns(schema.names))
    groups = range(metadata.num_row_groups)
    leaves = [
        index
        for index in range(metadata.num_columns)
        if metadata.schema.column(index).path.split(".")[0] in wanted
    ]
    group_rows = np.zeros(len(groups), np.int64)
    group_bytes = np.zeros(len(groups), np.int64)
    for group in groups:
        row_group = metadata.row_group(group)
        group_rows[group] = row_group.num_rows
        group_bytes[group] = sum(row_group.column(leaf).total_uncompressed_size for leaf in leaves)
    return Footer(file, schema, group_rows, group_bytes)


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
        keep: Columns to keep: a list, `*` for all, None for all but the text.
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
    _check_text(readable, text, needed, known)
    if keep is None:
        wanted = [name for name in known if name not in needed]
    elif keep == "*":
        wanted = known
    else:
        wanted = list(dict.fromkeys(keep))
        for name in wanted:
            if name not in known:
                raise DataError(f"output.keep: no file has a column {name!r}{_near(name, known)}")
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
        verdict = verdicts[key]
        result.append(
            footer
            if verdict is None
            else Footer(
                footer.file, None, footer.group_rows, footer.group_bytes, f"schema: {verdict}"
            )
        )
    ours = {name.casefold() for name in reserved}
    named = [f"input_{name}" if _is_ours(name.casefold(), ours) else name for name in wanted]
    outputs = unique_when_folded(named, taken=ours)
    kept = tuple(
        KeptColumn(name, output, types[name])
        for name, output in zip(wanted, outputs, strict=True)
        if name in types
    )
    return ReadSpec(root, text, kept), result


def _is_ours(folded: str, ours: Container[str]) -> bool:
    """Whether a case-folded name is one of the output's columns, or of a block's own."""
    return folded in ours or folded.startswith("__ray_mlc_")


def _check_text(
    readable: Sequence[Readable], text: str, needed: Sequence[str], known: Sequence[str]
) -> None:
    """Refuse at once what would set every file aside."""
    for name in needed:
        having = [item for item in readable if item.schema.get_field_index(name) >= 0]
        if not having and readable:
            for item in readable:
                if name in item.schema.names:
                    raise DataError(f"{item.file.source}: text column {name!r} is there twice")
            raise DataError(
                f"input.text: no file has a column {name!r}{_near(name, known)}; "
                f"columns are {', '.join(known[:12])}"
            )
        if (
            having
            and not any(is_text(item.schema.field(name).type) for item in having)
            and (text == name)
        ):
            source, type_ = having[0].file.source, having[0].schema.field(name).type
            raise DataError(f"{source}: text column {name!r} is {type_}, expected string")


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold the text."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_null(type_)
    )


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
        if schema.get_field_index(name) < 0:
            return f"there is no text column {name!r}"
        if text == name and not is_text(schema.field(name).type):
            return f"text column {name!r} is {schema.field(name).type}, expected string"
        if pa.types.is_nested(schema.field(name).type):
            return f"text column {name!r} is {schema.field(name).type}, expected text or a number"
    widened: dict[str, pa.DataType] = {}
    for name in wanted:
        if (index := schema.get_field_index(name)) < 0:
            continue
        type_ = schema.field(index).type
        if name in types:
            wider = widest(types[name], type_)
            if wider is None:
                return f"column {name!r} is {type_}, {types[name]} in the files before"
            type_ = wider
        widened[name] = type_
    types.update(widened)
    return None


def widest(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds every value of both exactly; None if there is none."""
    if one.equals(other):
        return one
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        plain = [item.value_type if pa.types.is_dictionary(item) else item for item in (one, other)]
        return widest(*plain)
    one, other = (_WITHOUT_VIEW.get(item, item) for item in (one, other))
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


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else ""
