"""A piece of labelled rows: some consecutive rows of a source, in the columns asked for.

Fields of structs are named with dots, see `corpus.fields`. A template names several columns of
text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_mlc.corpus.fields import near_name, such_as_a_field
from ray_mlc.corpus.text import read_texts, text_columns
from ray_mlc.corpus.types import is_bytes, is_string
from ray_mlc.errors import DataError

UNANNOTATED = "unannotated"
"""Column of examples that lists a row's labels that nobody decided: neither set nor not set."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a source mean what."""

    text: str
    """Column, or template over columns; empty: the source has labels only."""
    labels: str | tuple[str, ...]
    """Column of lists, or 0/1 columns; none: the source has texts only."""
    id: str | None
    unclear: str | None = None
    """0/1 column that is 1 where nobody could decide any label of the row."""

    @classmethod
    def of(
        cls, *, text: str, labels: str | Sequence[str], id: str | None, unclear: str | None = None
    ) -> Columns:
        """Check the options.

        Raises:
            DataError: If no label column is named, or a column has two meanings.
        """
        if not isinstance(labels, str):
            labels = tuple(labels)
            if not labels:
                raise DataError("labels names no column: expected a column or a list of columns")
            for name in labels:
                if labels.count(name) > 1:
                    raise DataError(f"labels names column {name!r} twice: name it once")
        for name in text_columns(text):
            if name in ((labels,) if isinstance(labels, str) else labels):
                raise DataError(
                    f"column {name!r} is named as text and in labels: expected two columns"
                )
        return cls(text, labels, id, unclear)

    @property
    def required(self) -> dict[str, str]:
        """Columns that must be there, with the option that names them."""
        label_columns = (self.labels,) if isinstance(self.labels, str) else self.labels
        named = dict.fromkeys(text_columns(self.text) if self.text else (), "text")
        named |= dict.fromkeys(label_columns, "labels")
        if self.unclear is not None:
            named[self.unclear] = "labels"
        return named if self.id in (None, "id") else {**named, str(self.id): "id"}

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that are read where they exist."""
        names = [name for name in (self.id,) if name == "id"]
        if isinstance(self.labels, str) and self.labels != UNANNOTATED:
            names.append(UNANNOTATED)
        return tuple(name for name in names if name not in self.required)

    def texts_only(self) -> Columns:
        """The same without labels."""
        return replace(self, labels=(), unclear=None)

    def labels_only(self) -> Columns:
        """The same without text."""
        return replace(self, text="")


@dataclass(frozen=True, eq=False)
class Piece:
    """Some consecutive rows of a source, in the columns asked for."""

    source: str
    format: str
    first_row: int
    columns: Mapping[str, pa.Array]
    places: Sequence[str] | None = None
    """Where each row is, if that is not the row number."""
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)
    """Key-value metadata of the source's schema."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, index: int) -> str:
        """Where row `index` of the piece is, for messages."""
        if self.places is not None:
            return self.places[index]
        return f"{self.source}: row {self.first_row + index + 1}"

    def texts(self, text: str) -> pa.Array:
        """The text of each row as large_string, null where there is none.

        Args:
            text: Column, or template over columns that hold text or numbers.

        Raises:
            DataError: If a column holds something else, or bytes that are not UTF-8.
        """
        if "{" not in text:
            return self.text(text)
        names = text_columns(text)
        for name in names:
            if pa.types.is_nested(self.columns[name].type):
                raise DataError(
                    f"{self.source}: column {name!r} is {self.columns[name].type}, expected text "
                    "or a number"
                )
        values, bad = read_texts(self.columns, text)
        if bad.any():
            row = int(np.argmax(bad))
            self._refuse_bytes(
                row, next(name for name in names if not is_utf8(self.columns[name].slice(row, 1)))
            )
        return values

    def text(self, name: str) -> pa.Array:
        """A column as large_string, nulls kept.

        Raises:
            DataError: If it holds anything but strings, or bytes that are not UTF-8.
        """
        column = self.columns[name]
        if not is_text(column.type):
            raise DataError(
                f"{self.source}: column {name!r} is {column.type}, expected strings: "
                f"name a column of text{such_as_a_field(name, column.type)}"
            )
        try:
            decoded = column.cast(pa.large_string())
            decoded.validate(full=True)  # Parquet readers take any bytes for a string
        except pa.ArrowInvalid:
            self._refuse_bytes(
                next(i for i in range(len(column)) if not is_utf8(column.slice(i, 1))), name
            )
        return decoded

    def _refuse_bytes(self, row: int, name: str) -> None:
        raise DataError(
            f"{self.place(row)}: column {name!r} is not valid UTF-8: save the file as UTF-8"
        )

    def keys(self, name: str) -> pa.Array:
        """An id column as string, null where there is none.

        Raises:
            DataError: If it holds neither strings nor numbers.
        """
        column = self.columns[name]
        if is_text(column.type):
            column = self.text(name)
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(
                f"{self.source}: id column {name!r} is {column.type}, expected strings or integers"
            )
        named = column.cast(pa.string())
        return pc.if_else(pc.equal(named, ""), pa.scalar(None, pa.string()), named)

    def ids(self, name: str | None, start: int) -> pa.Array:
        """Ids as string; the row number, counted from `start`, where it is null or empty.

        Raises:
            DataError: If the id column holds neither strings nor numbers.
        """
        numbers = pa.array(np.arange(start, start + len(self)).astype(str), pa.string())
        if name is None or name not in self.columns:
            return numbers
        return pc.coalesce(self.keys(name), numbers)


def wanted_columns(source: str, have: Sequence[str], columns: Columns) -> list[str]:
    """The names of `have` to read.

    Raises:
        DataError: If a column asked for is absent or there twice; near misses are named.
    """
    for name, option in columns.required.items():
        if name not in have:
            near = near_name(name, have)
            hint = f"did you mean {near!r}? " if near else ""
            shown = ", ".join(have[:20]) + (f" and {len(have) - 20} more" * (len(have) > 20))
            raise DataError(
                f"{source}: there is no column {name!r} ({option}): {hint}it has {shown or 'none'}"
            )
    names = [*columns.required, *(name for name in columns.optional if name in have)]
    for name in names:
        if list(have).count(name) > 1:
            raise DataError(f"{source}: there are two columns {name!r}: rename one")
    return names


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def is_text(found: pa.DataType) -> bool:
    """Strings, bytes, either as a dictionary, or nothing but nulls."""
    if pa.types.is_dictionary(found):
        return is_text(found.value_type)
    return is_string(found) or pa.types.is_null(found) or has_bytes(found)


def has_bytes(found: pa.DataType) -> bool:
    """Whether Arrow stores the type as bytes, be their number fixed or not."""
    return is_bytes(found) or bool(pa.types.is_fixed_size_binary(found))


def is_list(found: pa.DataType) -> bool:
    """Whether the type is a list of any kind."""
    types = pa.types
    some = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    return bool(some or types.is_list_view(found) or types.is_large_list_view(found))


def is_utf8(one: pa.Array) -> bool:
    """Whether every value of the array is UTF-8."""
    try:
        one.cast(pa.large_string()).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def brief(value: object) -> str:
    """A value as it is shown in a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
