"""Random corpora: what people have in Parquet files, and what befalls such files.

A recipe is small and prints well; `write_corpus` turns it into files. Hypothesis draws the shape;
the values beside the text follow from a seed, so that an example costs few draws.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

LEAVES: tuple[pa.DataType, ...] = (
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null()),
    *(pa.decimal32(5, 2), pa.decimal64(12, 0), pa.decimal128(38, 9), pa.decimal256(60, 3)),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us", "Asia/Kathmandu")),
    *(pa.timestamp("ns"), pa.timestamp("ns", "-03:30")),
    *(pa.duration("s"), pa.duration("ms"), pa.duration("us"), pa.duration("ns")),
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.binary(16)),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    *(pa.dictionary(pa.int32(), pa.int64()), pa.dictionary(pa.uint16(), pa.binary())),
    *(pa.uuid(), pa.json_()),
)
TEXT_TYPES = (
    *(pa.string(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
    *(pa.string_view(), pa.binary_view(), pa.dictionary(pa.int32(), pa.string())),
    *(pa.dictionary(pa.int8(), pa.binary()), pa.null()),
)
NO_TEXT_TYPES = (
    pa.binary(6),
    pa.int32(),
    pa.float64(),
    pa.list_(pa.string()),
    pa.struct([("a", pa.string())]),
)
COLUMN_NAMES = (
    *("id", "url", "n", "", " ", "a.b", "with space", "Ünïcode", "e\u0301", "x" * 200, "a\nb"),
    *("Score_x", "score_Spam", "SCORE_spam_2", "LABELS", "labels", "Row", "source", "status"),
    *("n_tokens", "TOP", "scores", "input_row", "input_Row", "ID", "Text", "{brace}", "day", "k"),
    *("__ray_mlc_text", "__ray_mlc_fault", "list.element", "'", '"', "\u202e", "title"),
)
TEXTS: tuple[bytes | None, ...] = (
    *(b"the meeting starts at nine", b"Yes", b"x", b"it was so", b"a b c d e f g h i j k l m n o"),
    *(b"word " * 60, b"x" * 500, None, None, b"", b" ", b"\t\n\r\x0b\x0c", b"\x1c\x1d\x1e\x1f"),
    *("\u2003\u00a0\u3000".encode(), "\u2028\u2029\u0085".encode(), "\u200b".encode()),
    *("\u180e\u2060".encode(), "\ufeff".encode(), "\ufeffbom".encode(), b"\x00", b"a\x00b\x07"),
    *("שלום עולם مرحبا".encode(), "\u202eabc\u202c".encode(), ("e" + "\u0301" * 40).encode()),
    *("👩‍👩‍👧‍👦 🏳️‍🌈".encode(), "\U0010ffff\ue000".encode(), "图书馆九点开门".encode()),
    *(b"\xff\xfe", b"ok until \xc3", b"\xed\xa0\xbd", b"\xed\xa0\xbd\xed\xb8\x80", b"\xc0\x80"),
    *(b"\xf4\x90\x80\x80", b"caf\xe9", b"[CLS] [SEP] [PAD] [MASK]", b"##s ##", b"{text}"),
)
FOLDERS = (
    *("", "", "", "a/", "deep/er/", "day=1/", "day=2026-11-20/", "day=007/", "Day=3/", "k=/"),
    *("=v/", "day=%2F/", "LABELS=x/", "text=y/", "b.parquet/", "_hidden/", ".h/", "sp ace/"),
    *("k=__HIVE_DEFAULT_PARTITION__/", "day=5/k=é/", "n=1=2/", "..x/", "x_/"),
)
BASES = (
    *("a", "b", "c", "a b", "é", "e\u0301", "x.y", "#1", "100%", "what?", "[z]", "*", "{b}", "A"),
    *("a\nb", "\u202ex", "_x", ".h", "-", "'", '"', "a\\b", "000000000000", "_SUCCESS", "~"),
    *("bad\udce9", "x" * 200, "a\tb", "%20", "file:x", "s3:", "a.parquet"),
)
COMPRESSIONS = ("none", "snappy", "gzip", "brotli", "zstd", "lz4")
DAMAGES = ("empty", "cut", "flip", "flip", "flip", "garbage", "magic", "tail", "head", "footer")
_INTEGER_ENCODINGS = ("PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT")
_STRING_ENCODINGS = ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")


@dataclass(frozen=True)
class Column:
    """A column of one file."""

    name: str
    type: pa.DataType
    encoding: int = 0
    texts: tuple[bytes | None, ...] | None = None
    """Values of a text column; others follow from the file's seed."""


@dataclass(frozen=True)
class FileRecipe:
    """One file of a corpus."""

    path: str
    columns: tuple[Column, ...]
    rows: int
    group_rows: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    encodings: bool = False
    damage: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class CorpusRecipe:
    """A corpus, and how a job names it."""

    files: tuple[FileRecipe, ...]
    text: str
    """Text option of the job."""
    form: str
    """`folder`, `glob`, `list` or `file`."""


def _nested(leaf: pa.DataType, other: pa.DataType, shape: int) -> pa.DataType:
    match shape:
        case 0:
            return pa.list_(leaf)
        case 1:
            return pa.large_list(leaf)
        case 2:
            return pa.list_(leaf, 2)
        case 3:
            return pa.struct([("a", leaf), ("b.c", other)])
        case 4:
            return pa.map_(pa.string(), leaf)
        case 5:
            return pa.list_(pa.struct([("x", leaf), ("y", pa.list_(other))]))
        case 6:
            return pa.struct([("s", pa.struct([("t", leaf)])), ("l", pa.large_list(other))])
        case 7:
            return pa.list_(pa.list_(pa.list_(leaf)))
        case 8:
            return pa.map_(pa.int32(), pa.struct([("v", leaf)]))
        case _:
            return pa.list_view(leaf)


TYPES = st.one_of(
    st.sampled_from(LEAVES),
    st.builds(_nested, st.sampled_from(LEAVES), st.sampled_from(LEAVES), st.integers(0, 9)),
)
TEXT_VALUES = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(TEXTS),
    st.sampled_from(TEXTS),
    st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=8),
)


@st.composite
def corpora(draw: st.DrawFn) -> CorpusRecipe:
    """Corpora of one to four small files."""
    text_name = draw(st.sampled_from(("text",) * 12 + ("Body text", "a.b", " ", "labels", "é")))
    template = draw(st.sampled_from(("",) * 9 + ("{title}: {text}", "{{}} {text}", "{n}|{title}")))
    names = draw(st.lists(st.sampled_from(COLUMN_NAMES), max_size=4))
    if "{n}" in template or "{title}" in template:
        names += [name for name in ("title", "n") if f"{{{name}}}" in template]
    names = names if draw(_one_in(12)) else list(dict.fromkeys(names))
    shared = [(name, _column_type(draw, name, template)) for name in names if name != text_name]
    text_type = draw(st.sampled_from(TEXT_TYPES))
    files = [
        draw(_file(text_name, text_type, shared, template))
        for _ in range(draw(st.sampled_from((1, 1, 2, 2, 3, 4))))
    ]
    files = list({recipe.path: recipe for recipe in files}.values())
    form = draw(st.sampled_from(("folder",) * 8 + ("glob", "list", "file")))
    return CorpusRecipe(tuple(files), template or text_name, form)


def _column_type(draw: st.DrawFn, name: str, template: str) -> pa.DataType:
    if "{title}" in template and name == "title":
        return draw(st.sampled_from((pa.string(), pa.large_string(), pa.binary())))
    if "{n}" in template and name == "n":
        return draw(st.sampled_from((pa.int64(), pa.int8(), pa.uint64())))
    return draw(TYPES)


@st.composite
def _file(
    draw: st.DrawFn,
    text_name: str,
    text_type: pa.DataType,
    shared: Sequence[tuple[str, pa.DataType]],
    template: str,
) -> FileRecipe:
    rows = draw(st.sampled_from((0, 1, 2, 3, 5, 8, 12)))
    columns = []
    for name, type_ in shared:
        change = draw(st.integers(0, 15))
        if change == 15:
            continue
        if change == 14:
            type_ = draw(TYPES)
        columns.append(Column(name, type_, draw(st.integers(0, 2))))
    change = draw(st.integers(0, 19))
    if change == 19:
        text_type = draw(st.sampled_from(NO_TEXT_TYPES))
    elif change >= 16:
        text_type = draw(st.sampled_from(TEXT_TYPES))
    if change != 15 or draw(_one_in(2)):
        texts = tuple(draw(st.lists(TEXT_VALUES, min_size=rows, max_size=rows)))
        place = draw(st.integers(0, len(columns)))
        columns.insert(place, Column(text_name, text_type, draw(st.integers(0, 2)), texts))
    options = {
        "compression": draw(st.sampled_from(COMPRESSIONS)),
        "data_page_version": draw(st.sampled_from(("1.0", "2.0"))),
        "version": draw(st.sampled_from(("2.6", "2.4", "1.0"))),
    }
    flags = draw(st.integers(0, 63))
    options |= {
        "use_dictionary": bool(flags & 1),
        "store_schema": not flags & 2,
        "write_page_checksum": bool(flags & 4),
        "use_deprecated_int96_timestamps": flags & 24 == 24,
        "use_compliant_nested_type": not flags & 32,
    }
    damage = None
    if draw(_one_in(6)):
        kind = draw(st.sampled_from(DAMAGES))
        damage = (kind, draw(st.integers(0, 2**16)), draw(st.integers(1, 255)))
    return FileRecipe(
        path=draw(st.sampled_from(FOLDERS)) + draw(_base_names()) + ".parquet",
        columns=tuple(columns),
        rows=rows,
        group_rows=draw(st.sampled_from((1, 2, 3, 5, 100))),
        seed=draw(st.integers(0, 2**16)),
        options=options,
        encodings=draw(_one_in(2)),
        damage=damage,
    )


def _base_names() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from("abcdefgh"), st.sampled_from(BASES))


def _one_in(count: int) -> st.SearchStrategy[bool]:
    return st.integers(0, count - 1).map(lambda value: value == count - 1)


def write_corpus(recipe: CorpusRecipe, folder: Path) -> list[str]:
    """Write the files; the paths of those that could be made, relative to `folder`."""
    made = []
    for item in recipe.files:
        path = folder / item.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_file(item, path)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file stands where a folder is wanted, or the other way round
        made.append(item.path)
    return made


def _write_file(recipe: FileRecipe, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(path)
    fields, arrays, encodings = [], [], {}
    for index, column in enumerate(recipe.columns):
        array = column_values(column, recipe.rows, random.Random(recipe.seed * 31 + index))
        fields.append(pa.field(column.name, array.type))
        arrays.append(array)
        if encoding := _encoding(array.type, column.encoding):
            encodings[column.name] = encoding
    options = dict(recipe.options)
    attempts: list[dict[str, Any]] = [options, {**options, "store_schema": True}, {}]
    if recipe.encodings and encodings:
        with_encodings = {**options, "use_dictionary": False, "column_encoding": encodings}
        attempts.insert(0, with_encodings)
    while True:
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
        for attempt in attempts:
            if _try_write(table, path, recipe.group_rows, attempt):
                data = path.read_bytes()
                path.write_bytes(damaged(data, recipe.damage))
                return
        # pyarrow cannot write one of the types: leave out what is no text
        alone = (_try_write(table.select([at]), path, 100, {}) for at in range(len(fields)))
        place = next((at for at, written in enumerate(alone) if not written), 0)
        del fields[place], arrays[place]
        if not fields:
            fields, arrays = [pa.field("text", pa.string())], [pa.nulls(recipe.rows, pa.string())]


def _try_write(table: pa.Table, path: Path, group_rows: int, options: dict[str, Any]) -> bool:
    # with Python's own file: a name that is not UTF-8 is no obstacle to it
    try:
        with (
            path.open("wb") as sink,
            pq.ParquetWriter(sink, table.schema, **options) as writer,
        ):
            if table.num_rows or group_rows > 1:  # else a file without row groups
                writer.write_table(table, row_group_size=group_rows)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError):
        return False
    return True


def damaged(data: bytes, damage: tuple[str, int, int] | None) -> bytes:
    """What is left of a file."""
    if damage is None:
        return data
    kind, where, value = damage
    at = where * 7919 % max(1, len(data))
    changed = bytearray(data)
    match kind:
        case "empty":
            return b""
        case "cut":
            return data[:at]
        case "head":
            return data[at:]
        case "garbage":
            return random.Random(where).randbytes(value)
        case "magic":
            return b"PAR1" + random.Random(where).randbytes(value % 20) + b"PAR1"
        case "tail":
            return data + bytes([value]) * (where % 9 + 1)
        case "footer":
            length = int.from_bytes(data[-8:-4], "little")
            at = len(data) - 8 - where * 7919 % (length + 8)
            changed[min(at, len(data) - 1)] ^= value
        case _:
            changed[at] ^= value
    return bytes(changed)


def _encoding(type_: pa.DataType, choice: int) -> str | None:
    if pa.types.is_integer(type_) and type_.bit_width >= 32:
        return _INTEGER_ENCODINGS[choice]
    if pa.types.is_string(type_) or pa.types.is_binary(type_) or pa.types.is_large_string(type_):
        return _STRING_ENCODINGS[choice]
    if pa.types.is_float32(type_) or pa.types.is_float64(type_):
        return ("PLAIN", "BYTE_STREAM_SPLIT", "BYTE_STREAM_SPLIT")[choice]
    if pa.types.is_fixed_size_binary(type_):
        return ("PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BYTE_ARRAY")[choice]
    if pa.types.is_boolean(type_):
        return ("PLAIN", "RLE", "RLE")[choice]
    return None


def column_values(column: Column, count: int, rng: random.Random) -> pa.Array:
    """The values of a column: of its type where Arrow can make them."""
    if column.texts is not None:
        return _text_values(column.type, list(column.texts))
    type_ = column.type
    if is_binary_like(type_) and not pa.types.is_fixed_size_binary(type_) and rng.random() < 0.3:
        return _text_values(type_, [rng.choice(TEXTS) for _ in range(count)])
    if pa.types.is_dictionary(type_):
        cells = [cell(type_.value_type, rng) for _ in range(count)]
        return pa.array(cells, type_.value_type).dictionary_encode().cast(type_)
    try:
        if isinstance(type_, pa.BaseExtensionType):
            cells = [cell(type_, rng) for _ in range(count)]
            return pa.ExtensionArray.from_storage(type_, pa.array(cells, type_.storage_type))
        return pa.array([cell(type_, rng) for _ in range(count)], type_)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, NotImplementedError):
        return pa.array([rng.choice(("x", None, "yy")) for _ in range(count)], pa.string())


def is_binary_like(type_: pa.DataType) -> bool:
    """Whether values of the type are bytes."""
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_fixed_size_binary(type_)
    )


def _text_values(type_: pa.DataType, raw: list[bytes | None]) -> pa.Array:
    """Bytes as a column of any type, also where they are no UTF-8: writers do not check."""
    if pa.types.is_null(type_):
        return pa.nulls(len(raw))
    if pa.types.is_dictionary(type_):
        plain = _text_values(type_.value_type, raw)
        values = sorted({value for value in raw if value is not None})
        indices = [None if value is None else values.index(value) for value in raw]
        del plain
        dictionary = _text_values(type_.value_type, list(values))
        return pa.DictionaryArray.from_arrays(pa.array(indices, type_.index_type), dictionary)
    if pa.types.is_fixed_size_binary(type_):
        width = type_.byte_width
        return pa.array([None if v is None else (v + b" " * width)[:width] for v in raw], type_)
    if pa.types.is_string(type_):
        return pa.array(raw, pa.binary()).view(type_)
    if pa.types.is_large_string(type_):
        return pa.array(raw, pa.large_binary()).view(type_)
    if pa.types.is_string_view(type_):
        return pa.array(raw, pa.binary_view()).view(type_)
    if is_binary_like(type_):
        return pa.array(raw, type_)
    return pa.array([cell(type_, random.Random(0)) for _ in raw], type_)


def _extension_cell(type_: Any, rng: random.Random) -> Any:
    return rng.randbytes(16) if type_ == pa.uuid() else rng.choice(("{}", "[1, null]", '"x"'))


def cell(type_: pa.DataType, rng: random.Random) -> Any:
    """One value of a type as `pa.array` takes it."""
    types = pa.types
    if types.is_null(type_) or rng.random() < 0.2:
        return None
    if isinstance(type_, pa.BaseExtensionType):
        return _extension_cell(type_, rng)
    if types.is_boolean(type_):
        return rng.random() < 0.5
    if types.is_integer(type_):
        bits = type_.bit_width
        signed = types.is_signed_integer(type_)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return rng.choice((low, high, 0, 1, rng.randint(low, high)))
    if types.is_floating(type_):
        value = rng.choice((math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.5, rng.gauss(0, 10)))
        return np.float16(value) if types.is_float16(type_) else value
    if types.is_decimal(type_):
        digits = rng.randint(0, 10 ** min(type_.precision, 25) - 1)
        return Decimal(rng.choice((0, 1, -digits, digits))).scaleb(-type_.scale)
    return _other_cell(type_, rng)


def _other_cell(type_: pa.DataType, rng: random.Random) -> Any:
    types = pa.types
    if types.is_date32(type_):
        return rng.choice((0, -1, 2932896, rng.randint(-700000, 700000)))
    if types.is_date64(type_):
        return rng.randint(-20000, 20000) * 86_400_000
    if types.is_time(type_):
        per_day = {"s": 86_400, "ms": 86_400_000, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}
        return rng.randrange(per_day[type_.unit])
    if types.is_timestamp(type_) or types.is_duration(type_):
        scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[type_.unit]
        return rng.choice((0, -1, rng.randint(-(10**9), 10**9) * scale + rng.randrange(scale)))
    if is_binary_like(type_):
        if types.is_fixed_size_binary(type_):
            return rng.randbytes(type_.byte_width)
        if "string" in str(type_):
            return rng.choice(("", "x", "é", "🙂", "\x00", "a longer one than twelve bytes"))
        return rng.randbytes(rng.choice((0, 1, 5, 20)))
    if types.is_map(type_):
        keys = {cell(type_.key_type, rng) for _ in range(rng.randint(0, 3))} - {None}
        return [(key, cell(type_.item_type, rng)) for key in sorted(keys)]
    if types.is_fixed_size_list(type_):
        return [cell(type_.value_type, rng) for _ in range(type_.list_size)]
    if types.is_struct(type_):
        return {item.name: cell(item.type, rng) for item in type_}
    return [cell(type_.value_type, rng) for _ in range(rng.randint(0, 3))]


def names_on_disk(folder: Path) -> list[str]:
    """Files below a folder that a corpus has, found without the product; hidden ones left out."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name).relative_to(folder)
            if name.endswith(".parquet") and not any(e[0] in "_." for e in path.parts):
                found.append(path.as_posix())
    return sorted(found)
