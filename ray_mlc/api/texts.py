"""Texts as callers hold them, whatever holds them, as Arrow arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from ray_mlc.corpus.columns import is_text
from ray_mlc.errors import DataError

MISSING = ("NAType", "NaTType")
"""What pandas puts where there is nothing, beside None and NaN."""


def as_texts(texts: Iterable[object], name: str = "texts") -> pa.Array | pa.ChunkedArray:
    """Texts as one Arrow array; null where there is none.

    Args:
        texts: A list, a pandas or polars Series, a NumPy or an Arrow array of texts. None, NaN and
            pandas' own marks are no text; bytes are UTF-8.
        name: What to call them in an error.

    Raises:
        DataError: If they are one text, a table, or hold something else, naming the first.
    """
    if isinstance(texts, str | bytes):
        raise DataError(f"{name}: expected a list of texts, got one: put it in brackets")
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        if not is_text(texts.type):
            raise DataError(f"{name}: expected texts, got an Arrow array of {texts.type}")
        return texts
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        kind = type(texts).__name__
        raise DataError(f"{name}: expected a list of texts, got a {kind}: name one of its columns")
    try:
        values = list(texts)
    except TypeError:
        kind = type(texts).__name__
        raise DataError(f"{name}: expected a list of texts, got {kind}") from None
    # bytes: a str may hold half a character, which Arrow refuses and a status names
    raw = [_bytes(value, position, name) for position, value in enumerate(values)]
    return pa.array(raw, pa.large_binary())


def as_column(values: Any, name: str) -> pa.Array | pa.ChunkedArray:
    """A column that a template may name: texts, or numbers.

    Raises:
        DataError: If it holds something else.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if getattr(getattr(values, "dtype", None), "kind", "O") not in "biuf":
        return as_texts(values, name)
    numbers = pa.array(values, from_pandas=True)
    # where there is not one text, pandas has a column of NaN
    return numbers if numbers.null_count < len(numbers) else pa.nulls(len(numbers))


def _bytes(value: object, position: int, name: str) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    if (
        value is None
        or type(value).__name__ in MISSING
        or (isinstance(value, float) and value != value)
    ):
        return None
    raise DataError(
        f"{name}: expected texts, but at position {position} is {type(value).__name__}: convert it "
        "with str(), or put None for no text"
    )
