"""Reading units: every row keeps its place, bad text is marked, an unreadable unit is one row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.corpus.columns import ReadSpec, resolve_columns
from ray_mlc.corpus.footers import read_footers
from ray_mlc.corpus.listing import list_corpus
from ray_mlc.corpus.rows import (
    BLOCK_FAULT,
    BLOCK_STATUS,
    BLOCK_TEXT,
    BLOCK_UNIT_FIRST,
    BLOCK_UNIT_ROWS,
    STATUSES,
    block_schema,
    make_text,
    read_block,
)
from ray_mlc.corpus.units import Unit, plan_units, units_at

NOT_UTF8 = b"\xff\xfe\x00"
LONE_SURROGATE = "\ud800".encode("utf-8", "surrogatepass")


def plan(
    folder: Path,
    *,
    text: str = "text",
    keep: Sequence[str] | str | None = None,
    max_rows: int = 1000,
) -> tuple[list[Unit], ReadSpec]:
    listing = list_corpus(str(folder))
    footers = read_footers(listing)
    spec, footers = resolve_columns(
        footers, root=listing.root, text=text, keep=keep, reserved=("source", "row")
    )
    units = plan_units(footers, max_rows=max_rows, max_bytes=10**9)
    sources = [item.file.source for item in footers]
    folders = [item.file.part_folder for item in footers]
    return units_at(units, np.arange(len(units)), sources, folders), spec


def read(folder: Path, *, max_text_bytes: int = 10**6, **options: Any) -> pa.Table:
    units, spec = plan(folder, **options)
    block = read_block(units, spec, max_text_bytes=max_text_bytes)
    assert block.schema == block_schema(spec)
    return block


def statuses(block: pa.Table) -> list[str]:
    return [STATUSES[code] for code in block[BLOCK_STATUS].to_pylist()]


def unchecked_strings(values: Sequence[bytes | None]) -> pa.Array:
    """A string array of any bytes: writers that do not check make such files."""
    raw = pa.array(values, pa.binary())
    valid, offsets, data = raw.buffers()
    return pa.StringArray.from_buffers(len(raw), offsets, data, valid)


def text_of(array: pa.Array, **options: Any) -> tuple[list[str | None], list[str]]:
    options = {"text": "text", "max_text_bytes": 1000, **options}
    text, status = make_text(pa.table({"text": array}), options.pop("text"), **options)
    assert text.type == pa.large_string()
    return text.to_pylist(), [STATUSES[code] for code in status]


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_text_type_gives_the_same_text(tmp_path: Path, type_: pa.DataType) -> None:
    texts = ["plain", None, "größer 🙂", "", "plain", "\u200b", " \t\n\u3000"]
    values = pa.array(texts)
    values = values.dictionary_encode().cast(type_) if "dict" in str(type_) else values.cast(type_)
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    block = read(tmp_path)
    expected = ["plain", None, "größer 🙂", None, "plain", "\u200b", None]
    assert block[BLOCK_TEXT].to_pylist() == expected
    assert statuses(block) == ["ok", "null_text", "ok", "empty", "ok", "ok", "empty"]


def test_a_column_of_nulls_is_a_column_without_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    assert statuses(read(tmp_path)) == ["null_text"] * 3


@pytest.mark.parametrize("as_string", [False, True])
def test_bytes_that_are_not_utf8_mark_their_row_only(tmp_path: Path, as_string: bool) -> None:
    values = [b"one", NOT_UTF8, None, LONE_SURROGATE, "ü".encode(), b" "]
    array = unchecked_strings(values) if as_string else pa.array(values, pa.binary())
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    block = read(tmp_path)
    assert statuses(block) == ["ok", "decode_error", "null_text", "decode_error", "ok", "empty"]
    assert block[BLOCK_TEXT].to_pylist() == ["one", None, None, None, "ü", None]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=6), st.text(max_size=4))), st.booleans())
def test_a_text_is_what_python_decodes_or_marked(
    values: list[bytes | str | None], as_string: bool
) -> None:
    raw = [
        value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        for value in values
    ]
    array = unchecked_strings(raw) if as_string else pa.array(raw, pa.binary())
    texts, status = text_of(array)
    for value, text, what in zip(raw, texts, status, strict=True):
        assert (text is None) == (what != "ok")
        if value is None:
            assert what == "null_text"
            continue
        try:
            decoded = value.decode()
        except UnicodeDecodeError:
            assert what == "decode_error"
            continue
        if what == "ok":
            assert text == decoded
            assert decoded.strip()
        else:
            assert what == "empty"
            assert not decoded.strip()


def test_a_text_is_too_long_from_one_byte_above_the_limit() -> None:
    texts, status = text_of(pa.array(["éé", "ééé", "é é"]), max_text_bytes=5)
    assert status == ["ok", "too_long", "ok"]
    assert texts == ["éé", None, "é é"]


def test_an_undecodable_text_is_a_decode_error_however_long() -> None:
    assert text_of(pa.array([NOT_UTF8 * 100], pa.binary()), max_text_bytes=5)[1] == ["decode_error"]


def test_a_template_joins_columns_and_takes_null_as_empty() -> None:
    rows = pa.table(
        {
            "title": ["A", None, None, "D", ""],
            "body": pa.array([b"a", b"b", None, NOT_UTF8, b""]),
            "n": [1, 2, None, 4, None],
        }
    )
    text, status = make_text(rows, "{title}\n{body} {{{n}}}", max_text_bytes=100)
    names = [STATUSES[code] for code in status]
    assert text.to_pylist() == ["A\na {1}", "\nb {2}", None, None, "\n {}"]
    assert names == ["ok", "ok", "null_text", "decode_error", "ok"]


def test_a_template_of_empty_pieces_only_is_empty() -> None:
    rows = pa.table({"a": ["", None, " "], "b": [None, "", "x"]})
    text, status = make_text(rows, "{a} {b}", max_text_bytes=100)
    assert text.to_pylist() == [None, None, "  x"]
    assert [STATUSES[code] for code in status] == ["empty", "empty", "ok"]


@pytest.mark.parametrize("max_rows", [1, 3, 7, 1000])
def test_units_of_any_size_give_the_rows_in_order(tmp_path: Path, max_rows: int) -> None:
    for name, count in (("a", 10), ("b", 1), ("c", 23)):
        table = pa.table({"text": [f"{name}{row}" for row in range(count)]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    block = read(tmp_path, max_rows=max_rows)
    assert block.num_rows == 34
    keys = list(zip(block["source"].to_pylist(), block["row"].to_pylist(), strict=True))
    assert block[BLOCK_TEXT].to_pylist() == [f"{source[0]}{row}" for source, row in keys]
    assert keys == sorted(keys)
    ends = [
        first <= row < first + rows
        for first, row, rows in zip(
            block[BLOCK_UNIT_FIRST].to_pylist(),
            block["row"].to_pylist(),
            block[BLOCK_UNIT_ROWS].to_pylist(),
            strict=True,
        )
    ]
    assert all(ends)


def test_kept_columns_are_widened_filled_and_renamed(tmp_path: Path) -> None:
    (tmp_path / "year=2026").mkdir()
    one = pa.table({"text": ["a"], "n": pa.array([1], pa.int8()), "row": ["x"]})
    other = pa.table(
        {"n": pa.array([2**40]), "text": ["b"], "tag": pa.array(["t"]).dictionary_encode()}
    )
    pq.write_table(one, tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "year=2026" / "b.parquet")
    block = read(tmp_path)
    assert block.select(["n", "input_row", "year"]).to_pylist() == [
        {"n": 1, "input_row": "x", "year": None},
        {"n": 2**40, "input_row": None, "year": 2026},
    ]
    assert block["tag"].to_pylist() == [None, "t"]


def test_the_text_may_be_kept_beside_being_scored(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    block = read(tmp_path, keep="*")
    assert block["text"].to_pylist() == ["a", None]


def flip(path: Path, *, group: int, column: str) -> None:
    """Damage the data pages of one column chunk."""
    metadata = pq.read_metadata(path)
    index = metadata.schema.names.index(column)
    chunk = metadata.row_group(group).column(index)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset + 25  # behind the page's header
    stop = chunk.data_page_offset + chunk.total_compressed_size
    data[start:stop] = bytes(byte ^ 0x5A for byte in data[start:stop])
    path.write_bytes(bytes(data))


def test_a_corrupt_row_group_marks_its_units_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {row} {row * 7919 % 1000}" for row in range(60)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        row_group_size=20,
        compression="zstd",
        use_dictionary=False,
    )
    flip(path, group=1, column="text")
    block = read(tmp_path, max_rows=10)
    broken = block.filter(pa.array([fault is not None for fault in block[BLOCK_FAULT].to_pylist()]))
    assert broken["row"].to_pylist() == [20, 30]
    assert broken[BLOCK_UNIT_FIRST].to_pylist() == [20, 30]
    assert broken[BLOCK_UNIT_ROWS].to_pylist() == [10, 10]
    assert broken[BLOCK_TEXT].to_pylist() == [None, None]
    assert all(fault.startswith("read: ") for fault in broken[BLOCK_FAULT].to_pylist())
    whole = block.filter(block[BLOCK_FAULT].is_null())
    assert whole[BLOCK_TEXT].to_pylist() == texts[:20] + texts[40:]
    assert whole["row"].to_pylist() == [*range(20), *range(40, 60)]


def test_the_other_files_of_a_read_survive_a_file_that_is_gone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pq.write_table(pa.table({"text": [name] * 4}), tmp_path / f"{name}.parquet")
    units, spec = plan(tmp_path, max_rows=2)
    (tmp_path / "b.parquet").unlink()
    block = read_block(units, spec, max_text_bytes=100)
    assert block.num_rows == 4 + 2 + 4
    broken = block.slice(4, 2)
    assert broken["source"].to_pylist() == ["b.parquet"] * 2
    assert broken["row"].to_pylist() == [0, 2]
    assert all("b.parquet" in fault for fault in broken[BLOCK_FAULT].to_pylist())
    assert [text for text in block[BLOCK_TEXT].to_pylist() if text] == ["a"] * 4 + ["c"] * 4


def test_a_file_that_was_rewritten_with_fewer_rows_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 10}), path)
    units, spec = plan(tmp_path)
    pq.write_table(pa.table({"text": ["x"] * 9}), path)
    block = read_block(units, spec, max_text_bytes=100)
    assert block[BLOCK_FAULT].to_pylist() == ["read: 9 rows at 0, 10 were planned"]


def test_a_row_group_that_is_gone_since_the_plan_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 10}), path, row_group_size=5)
    units, spec = plan(tmp_path, max_rows=5)
    pq.write_table(pa.table({"text": ["x"] * 5}), path)
    block = read_block(units, spec, max_text_bytes=100)
    assert block.num_rows == 6
    assert block[BLOCK_FAULT].null_count == 5


def test_a_value_that_its_widened_column_cannot_hold_marks_its_unit(tmp_path: Path) -> None:
    far = pa.array([253402300799], pa.timestamp("s"))  # the last second of the year 9999
    near = pa.array([0], pa.timestamp("ns"))
    for name, times in (("a", far), ("b", near)):
        pq.write_table(
            pa.table({"text": ["x"], "time": times}), tmp_path / f"{name}.parquet", version="2.6"
        )
    fault, none = read(tmp_path)[BLOCK_FAULT].to_pylist()
    assert fault.startswith("read: ")
    assert none is None


def test_a_file_that_lost_its_text_column_since_the_plan_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), path)
    units, spec = plan(tmp_path)
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), path)
    (fault,) = read_block(units, spec, max_text_bytes=100)[BLOCK_FAULT].to_pylist()
    assert "'text'" in fault
