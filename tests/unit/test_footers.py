"""From many footers to one schema: columns widened or renamed, files that do not fit named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.corpus.columns import ReadSpec, resolve_columns, widest
from ray_mlc.corpus.footers import Footer, read_footers
from ray_mlc.corpus.listing import InputFile, list_corpus
from ray_mlc.corpus.text import text_columns
from ray_mlc.errors import DataError

RESERVED = ("source", "row", "labels", "score_x", "status")
DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def footer(source: str, *fields: tuple[str, pa.DataType]) -> Footer:
    return Footer(InputFile(source, 1, 1), pa.schema([pa.field(*field) for field in fields]))


def resolve(
    *footers: Footer, text: str = "text", keep: Sequence[str] | str | None = None
) -> tuple[ReadSpec, dict[str, str | None]]:
    """The read spec and the fault of each file."""
    spec, judged = resolve_columns(footers, root="/in", text=text, keep=keep, reserved=RESERVED)
    assert [item.file for item in judged] == [item.file for item in footers]
    return spec, {item.file.source: item.fault for item in judged}


def kept(spec: ReadSpec) -> dict[str, Any]:
    """Output name and type of each kept column."""
    return {column.output: column.type for column in spec.kept}


@pytest.mark.parametrize(
    ("one", "other", "wide"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint32(), pa.int32(), pa.int64()),
        (pa.int32(), pa.float64(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), pa.string_view(), pa.large_string()),
        (pa.string_view(), pa.string_view(), pa.large_string()),
        (pa.list_(pa.binary_view()), pa.list_(pa.binary()), pa.list_(pa.large_binary())),
        (pa.null(), pa.int64(), pa.int64()),
        (DICTIONARY, pa.string(), pa.string()),
        (DICTIONARY, pa.dictionary(pa.int8(), pa.string()), pa.string()),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.int64(), pa.float64(), None),
        (pa.int32(), pa.float32(), None),
        (pa.uint64(), pa.int64(), None),
        (pa.decimal128(10, 2), pa.float64(), None),
        (pa.string(), pa.int64(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.timestamp("us", "UTC"), pa.timestamp("us"), None),
        (DICTIONARY, pa.int64(), None),
    ],
)
def test_a_wider_type_holds_both_exactly_or_there_is_none(
    one: pa.DataType, other: pa.DataType, wide: pa.DataType | None
) -> None:
    assert widest(one, other) == wide
    assert widest(other, one) == wide


NUMBERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()]
NUMBERS += [pa.float32(), pa.float64()]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
def test_every_number_survives_widening(
    one: pa.DataType, other: pa.DataType, data: st.DataObject
) -> None:
    wide = widest(one, other)
    if wide is None:
        return
    if pa.types.is_integer(one):
        low = 0 if pa.types.is_unsigned_integer(one) else -(2 ** (one.bit_width - 1))
        value: Any = data.draw(st.integers(low, low + 2**one.bit_width - 1))
    else:
        value = data.draw(st.floats(allow_nan=False, width=one.bit_width))
    assert pa.scalar(value, one).cast(wide).as_py() == value


def test_columns_are_the_union_of_all_files_without_the_text() -> None:
    spec, faults = resolve(
        footer("a.parquet", ("id", pa.int32()), ("text", pa.string())),
        footer("b.parquet", ("text", pa.large_string()), ("id", pa.int64()), ("url", pa.string())),
    )
    assert kept(spec) == {"id": pa.int64(), "url": pa.string()}
    assert set(faults.values()) == {None}


def test_a_file_whose_column_fits_no_other_is_set_aside_as_schema() -> None:
    spec, faults = resolve(
        footer("a.parquet", ("text", pa.string()), ("n", pa.int64())),
        footer("b.parquet", ("text", pa.string()), ("n", pa.float64())),
        footer("c.parquet", ("text", pa.string()), ("n", pa.int32())),
    )
    assert kept(spec) == {"n": pa.int64()}
    assert faults == {
        "a.parquet": None,
        "b.parquet": "schema: column 'n' is double, int64 in the files before",
        "c.parquet": None,
    }


def test_a_column_that_is_not_kept_cannot_set_a_file_aside() -> None:
    files = (
        footer("a.parquet", ("text", pa.string()), ("n", pa.int64())),
        footer("b.parquet", ("text", pa.string()), ("n", pa.string())),
    )
    for keep in ([], ["text"]):
        assert set(resolve(*files, keep=keep)[1].values()) == {None}


def test_columns_named_like_ours_are_kept_under_another_name() -> None:
    names = ("labels", "Row", "score_x", "score_y", "STATUS")
    spec, _ = resolve(
        footer("a.parquet", ("text", pa.string()), *((name, pa.int64()) for name in names))
    )
    assert list(kept(spec)) == [
        "input_labels",
        "input_Row",
        "input_score_x",
        "score_y",
        "input_STATUS",
    ]
    assert [column.name for column in spec.kept] == list(names)


def test_columns_that_fold_alike_stay_apart() -> None:
    names = ("Id", "id", "input_row", "row")
    spec, _ = resolve(
        footer("a.parquet", ("text", pa.string()), *((name, pa.int64()) for name in names))
    )
    assert list(kept(spec)) == ["Id", "id_2", "input_row", "input_row_2"]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(None, ["id", "url"]), ("*", ["id", "text", "url"]), (["url", "url"], ["url"]), ([], [])],
)
def test_keep_says_which_columns_come_out(keep: Any, expected: list[str]) -> None:
    fields = (("id", pa.int64()), ("text", pa.string()), ("url", pa.string()))
    assert list(kept(resolve(footer("a.parquet", *fields), keep=keep)[0])) == expected


def test_a_column_to_keep_that_no_file_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no file has a column 'ulr': did you mean 'url'\?"):
        resolve(footer("a.parquet", ("text", pa.string()), ("url", pa.string())), keep=["ulr"])


def test_a_text_column_that_no_file_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"column 'txt': did you mean 'text'\?; columns are id"):
        resolve(footer("a.parquet", ("id", pa.int64()), ("text", pa.string())), text="txt")


def test_a_file_without_the_text_column_is_set_aside() -> None:
    _, faults = resolve(
        footer("a.parquet", ("id", pa.int64())),
        footer("b.parquet", ("text", pa.string())),
    )
    assert faults == {"a.parquet": "schema: there is no text column 'text'", "b.parquet": None}


def test_a_file_set_aside_does_not_widen_the_columns() -> None:
    spec, _ = resolve(
        footer("a.parquet", ("text", pa.int64()), ("n", pa.int64())),
        footer("b.parquet", ("text", pa.string()), ("n", pa.int8())),
    )
    assert kept(spec) == {"n": pa.int8()}


def test_a_text_column_of_the_wrong_type_is_refused_in_all_and_set_aside_in_one() -> None:
    wrong = footer("a.parquet", ("text", pa.list_(pa.string())))
    with pytest.raises(DataError, match=r"a\.parquet: text column 'text' is list"):
        resolve(wrong)
    _, faults = resolve(wrong, footer("b.parquet", ("text", pa.string())))
    assert (
        faults["a.parquet"] == "schema: text column 'text' is list<item: string>, expected string"
    )
    assert faults["b.parquet"] is None


def test_a_column_name_that_is_there_twice_sets_the_file_aside() -> None:
    twice = footer("a.parquet", ("text", pa.string()), ("id", pa.int8()), ("id", pa.int64()))
    spec, faults = resolve(twice, footer("b.parquet", ("text", pa.string()), ("id", pa.int32())))
    assert faults["a.parquet"] == "schema: column 'id' is there twice"
    assert kept(spec) == {"id": pa.int32()}


def test_a_text_column_that_is_there_twice_in_every_file_is_refused_as_such() -> None:
    twice = footer("a.parquet", ("text", pa.string()), ("text", pa.string()))
    with pytest.raises(DataError, match="'text' is there twice"):
        resolve(twice)


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("text", ("text",)),
        ("{title}\n\n{body}", ("title", "body")),
        ("{a} {a} {{literal}}", ("a",)),
        ("my text", ("my text",)),
    ],
)
def test_a_template_names_its_columns(template: str, columns: tuple[str, ...]) -> None:
    assert text_columns(template) == columns


@pytest.mark.parametrize("template", ["{title", "{}", "{{no field}}", "{title} {}", "a } {b}"])
def test_a_malformed_template_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="text"):
        text_columns(template)


@pytest.mark.parametrize("template", ["{title:>10}", "{title!r}"])
def test_a_template_with_a_format_is_refused(template: str) -> None:
    with pytest.raises(DataError, match=r"text .*title"):
        text_columns(template)


def test_a_template_may_hold_numbers_but_no_lists() -> None:
    fields = (("n", pa.int64()), ("text", pa.string()), ("l", pa.list_(pa.int64())))
    for template in ("{n}: {text}", "{n}"):
        assert resolve(footer("a.parquet", *fields), text=template)[1] == {"a.parquet": None}
    _, faults = resolve(footer("a.parquet", *fields), text="{l} {text}")
    assert "expected text or a number" in str(faults["a.parquet"])


def test_hive_keys_are_kept_as_numbers_where_all_are() -> None:
    spec, _ = resolve(
        footer("year=2026/lang=en/a.parquet", ("text", pa.string())),
        footer("year=2027/lang=7/b.parquet", ("text", pa.string())),
    )
    assert kept(spec) == {"year": pa.int64(), "lang": pa.string()}
    spec, _ = resolve(footer("n=007/a.parquet", ("text", pa.string())))
    assert kept(spec) == {"n": pa.string()}


def read(folder: Path) -> list[Footer]:
    return read_footers(list_corpus(str(folder)))


def test_a_footer_gives_rows_and_uncompressed_bytes(tmp_path: Path) -> None:
    table = pa.table({"text": ["a" * 100, "b"] * 50, "other": ["x" * 1000] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40, use_dictionary=False)
    calls: list[int] = []
    (one,) = read_footers(list_corpus(str(tmp_path)), progress=calls.append)
    assert one.group_rows.tolist() == [40, 40, 20]
    assert one.rows == 100
    assert 40 * 1050 < one.group_bytes[0] < 40 * 1150
    assert calls == [1]


def test_a_nested_column_counts_with_all_its_leaves(tmp_path: Path) -> None:
    table = pa.table({"text": [{"a": "x" * 500, "b": "y" * 500}] * 10})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    assert read(tmp_path)[0].group_bytes[0] > 10_000


def test_a_file_that_is_no_parquet_carries_a_fault(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"] * 100})
    pq.write_table(table, tmp_path / "a_good.parquet")
    data = (tmp_path / "a_good.parquet").read_bytes()
    (tmp_path / "b_empty.parquet").write_bytes(b"")
    (tmp_path / "c_text.parquet").write_bytes(b"this is a text, not Parquet")
    (tmp_path / "d_cut.parquet").write_bytes(data[: len(data) // 2])
    footer_at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    broken = data[:footer_at] + b"\xff" * 12 + data[footer_at + 12 :]
    (tmp_path / "e_broken.parquet").write_bytes(broken)
    good, *others = read(tmp_path)
    assert good.fault is None
    assert others[0].fault == "footer: the file has no bytes"
    for item in others:
        assert item.fault is not None
        assert item.fault.startswith("footer: ")
        assert "\n" not in item.fault
        assert (item.schema, item.rows) == (None, 0)


def test_a_corpus_of_unreadable_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"no file could be read; a\.parquet: footer: the file has"):
        resolve(*read(tmp_path))
