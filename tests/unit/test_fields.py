"""Fields of struct columns as texts: found by one rule, read alone, null where a struct is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.columns import fit_columns, resolve_columns
from ray_mlc.corpus.fields import column_at, field_paths, find_field, near_name, type_of
from ray_mlc.corpus.footers import Footer
from ray_mlc.corpus.listing import InputFile, list_corpus
from ray_mlc.corpus.rows import BLOCK_STATUS, BLOCK_TEXT, STATUSES, read_block
from ray_mlc.corpus.text import read_texts
from ray_mlc.errors import DataError
from ray_mlc.scoring.plan import inspect_corpus
from ray_mlc.scoring.verify import verify
from ray_mlc.training.examples import read_examples

MakeJob = Callable[..., ScoreJob]
TRANSLATED = pa.struct([("en", pa.string()), ("de", pa.string())])
DEEP = pa.struct([("by", pa.struct([("name", pa.string()), ("age", pa.int32())]))])


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def texts_of(rows: pa.Table, text: str) -> list[str | None]:
    return read_texts(rows, text)[0].to_pylist()


def test_a_field_is_null_where_it_or_a_struct_around_it_is() -> None:
    rows = table(
        text=pa.array([{"en": "a", "de": "b"}, None, {"en": None, "de": "c"}, {"de": "d"}, {}],
                      TRANSLATED),
        meta=pa.array([{"by": {"name": "x", "age": 3}}, {"by": None}, None, {}, {"by": {}}], DEEP),
    )  # fmt: skip
    assert texts_of(rows, "text.en") == ["a", None, None, None, None]
    assert texts_of(rows, "meta.by.name") == ["x", None, None, None, None]
    assert texts_of(rows, "{text.de}: {meta.by.age}") == ["b: 3", None, "c: ", "d: ", None]
    assert texts_of(rows.slice(2), "text.de") == ["c", "d", None]
    pieces = pa.concat_tables([rows.slice(3), rows.slice(0, 1), rows.slice(0, 0)])
    assert texts_of(pieces, "text.de") == ["d", None, "b"]
    assert texts_of(rows.slice(0, 0), "text.de") == []


def test_a_struct_with_garbage_below_its_nulls_shows_none_of_it() -> None:
    inner = pa.array(["seen", "hidden"])
    struct = pa.StructArray.from_arrays([inner], ["en"], mask=pa.array([False, True]))
    assert texts_of(table(text=struct), "text.en") == ["seen", None]


def test_a_column_whose_own_name_has_a_dot_wins() -> None:
    rows = table(**{
        "text": pa.array([{"en": "of the struct", "de": "b"}], TRANSLATED),
        "text.en": ["of the column"],
    })  # fmt: skip
    assert texts_of(rows, "text.en") == ["of the column"]
    assert texts_of(rows, "text.de") == ["b"]
    assert field_paths(rows.schema) == ["text", "text.de", "text.en"]
    dotted = pa.struct([("b.c", pa.string()), ("b", pa.struct([("c", pa.int8())]))])
    rows = table(a=pa.array([{"b.c": "own", "b": {"c": 1}}], dotted))
    assert texts_of(rows, "a.b.c") == ["own"]
    rows = table(**{"a.b": pa.array([{"c": "deep"}], pa.struct([("c", pa.string())])), "a": [1]})
    assert texts_of(rows, "a.b.c") == ["deep"]


@pytest.mark.parametrize(
    "name", ["text.EN", "Text.en", "text.", ".en", "text..en", "en", "text.en.x", "", "id.x"]
)
def test_other_names_find_nothing(name: str) -> None:
    schema = pa.schema([("text", TRANSLATED), ("id", pa.int64())])
    assert find_field(list(schema), name) is None
    assert type_of(schema, name) is None
    with pytest.raises(KeyError):
        column_at(schema.empty_table(), name)


def test_a_field_that_is_there_twice_is_not_guessed() -> None:
    twice = pa.struct([pa.field("en", pa.string()), pa.field("en", pa.string())])
    assert find_field([pa.field("text", twice)], "text.en") is None
    assert find_field([pa.field("a", pa.string()), pa.field("a", pa.string())], "a") is None


def test_a_near_miss_is_found_whatever_its_case() -> None:
    paths = ["id", "text", "text.en", "text.de"]
    assert near_name("Text.EN", paths) == "text.en"
    assert near_name("TEXT", paths) == "text"
    assert near_name("summary", paths) is None


def footer(source: str, *fields: Any) -> Footer:
    return Footer(InputFile(source, 1, 1), pa.schema(list(fields)))


def test_files_that_lack_the_field_are_set_aside_and_others_fit() -> None:
    footers = [
        footer("a.parquet", ("text", TRANSLATED), ("id", pa.int64())),
        footer("b.parquet", ("text", pa.struct([("fr", pa.string())])), ("id", pa.int64())),
        footer("c.parquet", ("text", pa.string()), ("id", pa.int64())),
        footer("d.parquet", ("text.en", pa.string()), ("id", pa.int64())),
        footer("e.parquet", ("text", pa.struct([("en", pa.list_(pa.string()))]))),
    ]
    spec, judged = resolve_columns(footers, root="/r", text="text.en", keep=None, reserved=())
    assert [item.fault for item in judged[:4]] == [
        None,
        "schema: there is no text column 'text.en'",
        "schema: there is no text column 'text.en'",
        None,
    ]
    assert "text column 'text.en' is list<" in str(judged[4].fault)
    assert [column.name for column in spec.kept] == ["id"]  # neither the text nor what holds it
    later = footer("f.parquet", ("text", TRANSLATED), ("id", pa.int64()), ("new", pa.int8()))
    assert fit_columns([later], spec)[1] == ["new"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text.fr", r"no file has a column 'text\.fr': .* columns are text, text\.en, text\.de$"),
        ("Text.En", r"no file has a column 'Text\.En': did you mean 'text\.en'\?"),
        ("text", r"text column 'text' is struct<.*expected string: name a column of text, such as "
                 r"text\.en$"),
        ("{text}", r"."),
        ("text.en.x", r"no file has a column 'text\.en\.x'"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_what_there_is(text: str, said: str) -> None:
    footers = [footer("a.parquet", ("text", TRANSLATED))]
    if text == "{text}":
        fault = resolve_columns(footers, root="/r", text=text, keep=None, reserved=())[1][0].fault
        assert "expected text or a number" in str(fault)
        return
    with pytest.raises(DataError, match=said):
        resolve_columns(footers, root="/r", text=text, keep=None, reserved=())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files: a struct of two languages, one of which is large; and a null struct."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        rows = [{"en": f"word {number} {row}", "de": "x" * 5_000} for row in range(30)]
        rows[3], rows[4], rows[5] = None, {"en": None, "de": "d"}, {"en": " ", "de": "e"}  # type: ignore[call-overload]
        data = table(text=pa.array(rows, TRANSLATED), id=pa.array(range(30)))
        pq.write_table(data, tmp_path / f"in/{number}.parquet", row_group_size=10)
    return tmp_path / "in"


def test_a_corpus_is_scored_by_a_field_and_verified(
    corpus: Path, tmp_path: Path, score_locally: Any, read_output: Callable[[Path], pa.Table]
) -> None:
    summary = score_locally(corpus, tmp_path / "out", "input.text=text.en")
    assert summary["statuses"] == {"empty": 2, "null_text": 4, "ok": 54}
    rows = read_output(tmp_path / "out")
    assert rows["status"].to_pylist()[3:6] == ["null_text", "null_text", "empty"]
    assert "text" not in rows.column_names
    assert verify(str(tmp_path / "out"), deep=True).holds
    score_locally(corpus, tmp_path / "both", "input.text='{text.en}{id}'", "output.keep=[text]")
    kept = read_output(tmp_path / "both")
    assert (
        kept["text"].to_pylist()[:2] == pq.read_table(corpus / "0.parquet")["text"].to_pylist()[:2]
    )
    assert set(kept["status"].to_pylist()) == {"ok"}  # an id is always there


def test_only_the_field_is_read(
    corpus: Path, score_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[pa.Table] = []
    real = pq.ParquetFile.read_row_groups

    def spy(self: Any, *args: Any, **options: Any) -> pa.Table:
        read.append(real(self, *args, **options))
        return read[-1]

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    job = score_job(corpus, tmp_path / "out", "input.text=text.en", "output.keep=[]")
    plan = inspect_corpus(list_corpus(job.input.path), job, reserved=()).cut(
        max_rows=30, max_bytes=2**20
    )
    units = plan.units_at(pa.array(range(len(plan.units))).to_numpy())
    block = read_block(units, plan.spec, max_text_bytes=100)
    assert {item.schema.field("text").type for item in read} == {pa.struct([("en", pa.string())])}
    assert all(item.column_names == ["text"] for item in read)
    assert block[BLOCK_TEXT].to_pylist()[:5] == ["word 0 0", "word 0 1", "word 0 2", None, None]
    assert STATUSES[block[BLOCK_STATUS][3].as_py()] == "null_text"


def test_training_and_scoring_read_the_same_texts(tmp_path: Path, score_job: MakeJob) -> None:
    rows = table(**{
        "text": pa.array([{"en": "of the struct", "de": "b"}, None], TRANSLATED),
        "text.en": ["of the column", "second"],
        "labels": pa.array([["a"], ["b"]]),
    })  # fmt: skip
    (tmp_path / "in").mkdir()
    pq.write_table(rows, tmp_path / "in/a.parquet")
    for text in ("text.en", "{text.en}!", "text.de"):
        if text == "text.de":  # a row without a text teaches nothing: keep those that have one
            pq.write_table(rows.slice(0, 1), tmp_path / "in/a.parquet")
        job = score_job(tmp_path / "in", tmp_path / "out", f"input.text='{text}'")
        plan = inspect_corpus(list_corpus(job.input.path), job, reserved=()).cut(
            max_rows=30, max_bytes=2**20
        )
        block = read_block(plan.units_at(pa.array([0]).to_numpy()), plan.spec, max_text_bytes=100)
        learned = read_examples(str(tmp_path / "in/a.parquet"), text=text, labels="labels")
        assert block[BLOCK_TEXT].to_pylist() == learned.texts.to_pylist()


def test_a_column_that_is_gone_since_planning_sets_its_unit_aside(
    corpus: Path, score_job: MakeJob, tmp_path: Path
) -> None:
    job = score_job(corpus, tmp_path / "out", "input.text=text.en")
    plan = inspect_corpus(list_corpus(job.input.path), job, reserved=()).cut(
        max_rows=30, max_bytes=2**20
    )
    units = plan.units_at(pa.array([0]).to_numpy())
    gone = table(text=pa.array([{"de": "x"}] * 30), id=pa.array(range(30)))
    pq.write_table(gone, corpus / "0.parquet")
    from dataclasses import replace

    block = read_block([replace(units[0], file_size=-1)], plan.spec, max_text_bytes=100)
    assert "the text column 'text.en', which was planned, is gone" in str(block.to_pylist())
