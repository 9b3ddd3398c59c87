r"""The text of a row: one column, or several by a template such as `{title}\n\n{body}`.

Scoring and training make their texts here, so that a model meets in a corpus what it was trained
on, to the character. Only Arrow arrays are seen: no files.
"""

from __future__ import annotations

import string
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.corpus.fields import column_at
from ray_mlc.corpus.types import is_bytes, is_string
from ray_mlc.errors import DataError


def text_columns(text: str) -> tuple[str, ...]:
    """Columns named by a text option: the option itself, or what a template has in braces.

    Raises:
        DataError: If the template is malformed.
    """
    if "{" not in text:
        return (text,)
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DataError(f"text {text!r} is not a template: {error}") from None
    fields = [name for _, name, _, _ in pieces if name is not None]
    if any(format_ or conversion for _, _, format_, conversion in pieces):
        raise DataError(f"text {text!r}: expected bare column names in braces, no formats")
    if not fields or not all(fields):
        raise DataError(f"text {text!r}: expected column names in braces, as in {{title}}")
    return tuple(dict.fromkeys(fields))


def read_texts(
    rows: pa.Table | Mapping[str, pa.Array], text: str
) -> tuple[pa.Array, NDArray[np.bool_]]:
    r"""The text of each row, and where its bytes are not UTF-8.

    Args:
        rows: The columns of N rows in which the text is, see `corpus.fields`.
        text: Column, path to a field of a struct, or template such as `{title}\n\n{body}`: a null
            piece counts as empty, a row of which every piece is null has no text.

    Returns:
        large_string, shape [N], null where there is no text or it cannot be decoded; and where
        that is so, shape [N].
    """
    if "{" not in text:
        return _decode(column_at(rows, text))
    pieces: list[pa.Array | pa.Scalar] = []
    decoded: dict[str, pa.Array] = {}
    bad = missing = np.zeros(0, np.bool_)
    for name in text_columns(text):
        values, undecodable = _decode(column_at(rows, name))
        null = values.is_null().to_numpy(zero_copy_only=False)
        bad, missing = (bad | undecodable, missing & null) if decoded else (undecodable, null)
        decoded[name] = pc.fill_null(values, "")
    for literal, field, _, _ in string.Formatter().parse(text):
        if literal:
            pieces.append(pa.scalar(literal, pa.large_string()))
        if field is not None:
            pieces.append(decoded[field])
    joined = pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))
    return pc.if_else(pa.array(missing | bad), pa.scalar(None, pa.large_string()), joined), bad


def _decode(column: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.bool_]]:
    """A column as large_string, and where its bytes are not UTF-8.

    Parquet does not check that strings are UTF-8, so string columns are checked as well as binary
    ones.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column.type, pa.BaseExtensionType):  # such as a UUID in a template
        column = column.cast(column.type.storage_type)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.large_string()), np.zeros(len(column), np.bool_)
    fixed = pa.types.is_fixed_size_binary(column.type)
    if not (fixed or is_bytes(column.type) or is_string(column.type)):
        column = column.cast(pa.string())  # a number in a template
    raw = column.cast(pa.large_binary())
    if isinstance(raw, pa.ChunkedArray):
        raw = pa.concat_arrays(raw.chunks) if raw.num_chunks else pa.array([], pa.large_binary())
    bad = np.zeros(len(raw), np.bool_)
    try:
        return raw.cast(pa.large_string()), bad
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for position, value in enumerate(raw.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                bad[position] = True
        return pa.array(texts, pa.large_string()), bad
