from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.corpus.rows import NULL_TEXT, OK, make_text
from ray_mlc.errors import DataError
from ray_mlc.labels import LabelSet
from ray_mlc.training import formats as module
from ray_mlc.training.examples import Examples, read_examples

NAMES = ["ham", "spam", "Ünï", "a b"]
LISTS = st.lists(st.none() | st.lists(st.sampled_from(NAMES), max_size=5), min_size=1, max_size=30)
DATA = Path(os.environ.get("RAY_MLC_DATA", Path(__file__).parents[2] / "../shared/data"))


def write_parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def dense(lists: list[list[str] | None], names: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The definition of targets: one cell at a time."""
    rows = [
        [np.nan] * len(names) if row is None else [float(name in row) for name in names]
        for row in lists
    ]
    return np.array(rows, dtype=np.float32)


def message(path: str | list[str], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=50, deadline=None)
@given(lists=LISTS, data=st.data())
def test_targets_are_the_lists_cell_by_cell(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[str] | None], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lists") / "x.parquet"
    column = pa.array(lists, pa.list_(pa.string()))
    write_parquet(path, text=["t"] * len(lists), labels=column)
    labels = LabelSet(("spam", "never", "ham", "a b", "Ünï"))
    examples = read_examples(str(path), label_set=labels)
    assert examples.label_set == labels
    expected_NL = dense(lists, labels.names)
    np.testing.assert_array_equal(examples.targets_NL(), expected_NL)
    assert all(row == sorted(set(row)) for row in examples.positives.to_pylist())
    assert examples.label_counts().tolist() == (expected_NL == 1).sum(0).tolist()
    assert examples.annotated_counts().tolist() == (~np.isnan(expected_NL)).sum(0).tolist()
    rows = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=40)), dtype=np.intp)
    np.testing.assert_array_equal(examples.targets_NL(rows), expected_NL[rows])
    np.testing.assert_array_equal(examples.take(rows).targets_NL(), expected_NL[rows])
    assert examples.take(rows).ids.to_pylist() == [str(row) for row in rows]


@settings(max_examples=50, deadline=None)
@given(
    cells=st.lists(
        st.lists(st.sampled_from([0, 1, -1]), min_size=3, max_size=3), min_size=1, max_size=20
    ),
    texts=st.lists(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1),
        min_size=20,
        max_size=20,
    ),
)
def test_zero_one_columns_of_csv_are_read_cell_by_cell_and_texts_exactly(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[int]], texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("cells") / "x.csv"
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows(
        [["text", "c", "a", "b"], *([t, *c] for t, c in zip(texts, cells, strict=False))]
    )
    write(path, buffer.getvalue())
    examples = read_examples(str(path), labels=["c", "a", "b"])
    assert examples.label_set.names == ("c", "a", "b")
    assert examples.texts.to_pylist() == texts[: len(cells)]
    expected_NL = np.array(cells, dtype=np.float32)
    expected_NL[expected_NL == -1] = np.nan
    np.testing.assert_array_equal(examples.targets_NL(), expected_NL)
    assert examples.annotated.tolist() == [any(c != -1 for c in row) for row in cells]
    partly = any(-1 in row and set(row) != {-1} for row in cells)
    assert (examples.unannotated is not None) == partly


def test_rates_are_shares_of_annotated_cells_and_zero_where_there_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,a,b\nx,1,-1\ny,0,-1\nz,1,\nw,-1,-1\n")
    examples = read_examples(path, labels=["a", "b"])
    assert examples.label_rates().tolist() == [2 / 3, 0.0]
    assert examples.annotated_counts().tolist() == [3, 0]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 0, -1, None], pa.int8()),
        pa.array([True, False, None, None]),
        pa.array([1.0, 0.0, float("nan"), None]),
        pa.array(["1", "0", "-1", None]),
        pa.array(["True", " false", "", "NaN"]),
        pa.array(["1.0", "0.0", "-1.0", None]).dictionary_encode(),
        pa.array([b"1", b"0", b"-1", None]),
    ],
    ids=lambda column: str(column.type),
)
def test_zero_one_columns_may_be_of_any_type(tmp_path: Path, column: pa.Array) -> None:
    path = write_parquet(tmp_path / "x.parquet", text=list("abcd"), spam=column)
    targets_NL = read_examples(path, labels=["spam"]).targets_NL()
    np.testing.assert_array_equal(targets_NL[:, 0], [1, 0, np.nan, np.nan])


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["ä", None, ""]),
        pa.array(["ä", None, ""], pa.large_string()),
        pa.array(["ä", None, ""], pa.string_view()),
        pa.array(["ä", None, ""]).dictionary_encode(),
        pa.array(["ä".encode(), None, b""]),
    ],
    ids=lambda column: str(column.type),
)
def test_texts_may_be_of_any_string_type_and_null_texts_are_empty_and_counted(
    tmp_path: Path, column: pa.Array
) -> None:
    path = write_parquet(tmp_path / "x.parquet", text=column, labels=[["a"], [], None])
    examples = read_examples(path)
    assert examples.texts.to_pylist() == ["ä", "", ""]
    assert examples.texts.type == pa.large_string()
    assert examples.null_texts == 1
    assert examples.take(np.array([0, 2])).null_texts == 0
    assert examples.annotated.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_(pa.string(), 2),
        pa.list_(pa.binary()),
    ],
    ids=str,
)
def test_lists_of_labels_may_be_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([["b", "a"], None, ["b", "b"]], kind)
    path = write_parquet(tmp_path / "x.parquet", text=list("xyz"), labels=column)
    examples = read_examples(path)
    assert examples.label_set.names == ("a", "b")
    assert examples.positives.to_pylist() == [[0, 1], [], [1]]


def test_the_same_rows_read_the_same_from_every_format(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"text {i}\nü", "a": i % 2, "b": i % 3 % 2} for i in range(50)]
    lines = "\n".join(json.dumps(row) for row in rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["id", "text", "a", "b"])
    writer.writeheader()
    writer.writerows(rows)
    paths = [
        write(tmp_path / "x.jsonl", lines),
        write(tmp_path / "x.json", json.dumps(rows, indent=1)),
        write(tmp_path / "x.csv", "\ufeff" + buffer.getvalue()),
        write(tmp_path / "semicolon.csv", buffer.getvalue().replace(",", ";")),
        write(tmp_path / "x.tsv", buffer.getvalue().replace(",", "\t")),
        write_parquet(tmp_path / "x.parquet", **pa.Table.from_pylist(rows).to_pydict()),
    ]
    for path in (paths[0], paths[2]):
        Path(path + ".gz").write_bytes(gzip.compress(Path(path).read_bytes()))
        paths.append(path + ".gz")
    first, *others = [read_examples(path, labels=["b", "a"]) for path in paths]
    for other in others:
        assert other.ids.equals(first.ids)
        assert other.texts.equals(first.texts)
        np.testing.assert_array_equal(other.targets_NL(), first.targets_NL())


def test_reading_in_many_pieces_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"text": f"t{i}", "labels": None if i % 7 == 0 else rng.choice(NAMES, i % 4).tolist()}
        for i in range(200)
    ]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    whole = read_examples(path)
    monkeypatch.setattr(module, "PIECE_ROWS", 3)
    pieces = read_examples(path)
    assert pieces.label_set == whole.label_set
    assert pieces.positives.equals(whole.positives)
    assert pieces.ids.equals(whole.ids)
    assert pieces.annotated.tolist() == whole.annotated.tolist()


def test_labels_that_the_label_set_lacks_are_appended_in_order(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", text=["x"], labels=[["z", "m", "y"]])
    examples = read_examples(path, label_set=LabelSet(("y", "a")))
    assert examples.label_set.names == ("y", "a", "m", "z")
    assert examples.positives.to_pylist() == [[0, 2, 3]]


def test_a_label_without_a_zero_one_column_is_not_annotated(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,a,z\nx,1,1\ny,0,-1\nz,-1,-1\n")
    examples = read_examples(path, labels=["z", "a"], label_set=LabelSet(("b", "a")))
    assert examples.label_set.names == ("b", "a", "z")
    nan = np.nan
    expected_NL = [[nan, 1, 1], [nan, 0, nan], [nan, nan, nan]]
    np.testing.assert_array_equal(examples.targets_NL(), expected_NL)


def test_the_unannotated_column_is_read_back(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet",
        text=list("xyz"),
        labels=[["a"], [], None],
        unannotated=[["b", "c"], None, ["a"]],
    )
    examples = read_examples(path)
    nan = np.nan
    np.testing.assert_array_equal(
        examples.targets_NL(), [[1, nan, nan], [0, 0, 0], [nan, nan, nan]]
    )


def test_a_label_that_is_set_and_unannotated_is_refused(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet", text=["x", "y"], labels=[[], ["a"]], unannotated=[["a"], ["a"]]
    )
    assert "row 2: label 'a' is both set" in message(path)


def test_ids_come_from_the_column_or_are_row_numbers_over_all_files(tmp_path: Path) -> None:
    one = write_parquet(tmp_path / "1.parquet", text=["x", "y"], labels=[["a"], []], key=[7, None])
    two = write_parquet(tmp_path / "2.parquet", text=["z"], labels=[["a"]], key=[8])
    assert read_examples([one, two]).ids.to_pylist() == ["0", "1", "2"]
    assert read_examples([one, two], id="key").ids.to_pylist() == ["7", "1", "8"]
    assert read_examples(str(tmp_path), id=None).ids.to_pylist() == ["0", "1", "2"]
    assert read_examples(str(tmp_path / "[12].par*")).ids.to_pylist() == ["0", "1", "2"]
    assert "no column 'Key' (id): did you mean 'key'?" in message(one, id="Key")


def test_hidden_files_and_files_of_other_kinds_in_a_folder_are_skipped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", text=["x"], labels=[["a"]])
    (tmp_path / ".x.parquet").write_bytes(b"half")
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "_tmp" / "y.parquet").write_bytes(b"half")
    write(tmp_path / "README.md", "words")
    assert len(read_examples(str(tmp_path))) == 1


def test_paths_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    assert "there is no such file or folder" in message(str(tmp_path / "no.parquet"))
    assert "no path was given" in message([])
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in message(str(tmp_path / "empty"))
    assert "no file matches" in message(str(tmp_path / "*.csv"))
    note = write(tmp_path / "note.txt", "words")
    assert "cannot read this kind of file: expected .parquet, .csv" in message(note)
    assert "none of 1 file(s) in it can be read" in message(str(tmp_path))
    write(tmp_path / "x.csv", "text,a\n")
    write_parquet(tmp_path / "x.parquet", text=["x"], labels=[["a"]])
    assert "holds CSV and Parquet files: name the files" in message(str(tmp_path))
    assert "empty (0 bytes)" in message(write(tmp_path / "zero.jsonl", ""))
    assert "cannot be read as Parquet" in message(write(tmp_path / "bad.parquet", "PAR1 no"))
    assert "cannot be read as CSV" in message(write(tmp_path / "bad.csv.gz", "no"))


def test_columns_that_are_absent_are_named_with_what_there_is(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", txt=["x"], labels=[["a"]], url=["u"])
    said = message(path)
    assert said.endswith("no column 'text' (text): did you mean 'txt'? it has txt, labels, url")
    assert "no column 'tags' (labels): it has txt" in message(path, text="txt", labels="tags")
    assert "is named as text and in labels" in message(path, text="a", labels=["a"])
    assert "names column 'a' twice" in message(path, labels=["a", "b", "a"])
    assert "names no column" in message(path, labels=[])
    twice = write(tmp_path / "x.csv", "text,a,a\nx,1,1\n")
    assert "two columns 'a'" in message(twice, labels=["a"])


def test_columns_of_the_wrong_type_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet", text=["x"], n=[1], ids=[[1]], joined=["a|b"], pairs=[{"a": 1}]
    )
    assert "column 'n' is int64, expected strings" in message(path, text="n", labels="ids")
    assert "give 0/1 columns as a list" in message(path, labels="n")
    assert "with the names of the labels" in message(path, labels="ids")
    assert "--delimiter` splits" in message(path, labels="joined")
    assert "expected list<string>" in message(path, labels="pairs")
    assert "expected 0 and 1: name a list column alone" in message(path, labels=["ids"])
    assert "id column 'pairs' is struct" in message(path, labels=["n"], id="pairs")
    table = write(tmp_path / "x.csv", "text,labels\nx,a|b\n")
    assert "of a CSV file is text, not a list: `ray-mlc data convert --delimiter`" in message(table)


def test_values_that_are_wrong_are_named_with_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'text,a\nx,1\n"two\n\nlines",yes\n')
    assert message(path, labels=["a"]).startswith(f"{path}: row 2: column 'a' is 'yes', expected 0")
    path = write_parquet(
        tmp_path / "x.parquet", text=["x", "y"], labels=[["a"], ["a", None]], a=[1, 2]
    )
    assert f"{path}: row 2: column 'labels' lists None" in message(path)
    assert f"{path}: row 2: column 'a' is 2" in message(path, labels=["a"])
    path = write_parquet(tmp_path / "y.parquet", text=[b"x", b"\xff"], labels=[["a"], []])
    assert f"{path}: row 2: column 'text' is not valid UTF-8" in message(path)
    torn = pa.Array.from_buffers(pa.string(), 2, pa.array([b"x", b"\xff"]).buffers())
    path = write_parquet(tmp_path / "z.parquet", text=torn, labels=[["a"], []])
    assert f"{path}: row 2: column 'text' is not valid UTF-8" in message(path)


def test_rows_of_csv_that_do_not_fit_are_counted_as_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = '"a\n\nb",1\n' * 30
    path = write(tmp_path / "x.csv", "text,a\n" + rows + "short\n" + rows)
    expected = f"{path}: row 31 has 1 fields, expected 2"
    assert message(path, labels=["a"]).startswith(expected)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)
    assert message(path, labels=["a"]).startswith(expected)
    path = write(tmp_path / "open.csv", "text,a\n" + "x,1\n" * 30 + '"never closed' + "x" * 300)
    assert "a quote that is never closed" in message(path, labels=["a"])
    path = write(tmp_path / "wide.csv", "text,a\nx,1\n")
    Path(path).write_bytes("text,a\nx,1\n".encode("utf-16"))
    assert "UTF-16" in message(path, labels=["a"])
    assert "no header" in message(write(tmp_path / "blank.csv", "\n\n"), labels=["a"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "y", "labels": tru}', "line 3 is not JSON"),
        ("[1]", "line 3 is [1], expected an object"),
        ('{"text": 3, "labels": []}', "line 3: 'text' is 3, expected str as in the rows before"),
        ('{"text": "y", "labels": "a"}', "line 3: 'labels' is 'a', expected list"),
        ('{"text": "\\ud800", "labels": []}', "line 3: 'text' is '\\ud800', which cannot be read"),
        ('{"text": "y", "labels": [""]}', "line 3: column 'labels' lists '', which is no label"),
    ],
)
def test_json_lines_that_are_wrong_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "x.jsonl", f'{{"text": "x", "labels": ["a"]}}\n\n{line}\n')
    assert message(path).startswith(f"{path}: {said}")


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,a\n")
    assert "there is no row in it" in message(path, labels=["a"])
    path = write_parquet(
        tmp_path / "x.parquet", text=["x"], labels=pa.array([[]], pa.list_(pa.string()))
    )
    assert "has no label in any of 1 rows" in message(path)


def test_files_of_different_label_types_are_refused(tmp_path: Path) -> None:
    one = write_parquet(tmp_path / "1.parquet", text=["x"], labels=[["a"]])
    two = write_parquet(tmp_path / "2.parquet", text=["x"], labels=[[1]])
    none = write_parquet(tmp_path / "0.parquet", text=["x"], labels=pa.array([[]]))
    said = message([none, one, two])
    assert f"{two}: column 'labels' is list<element: int64>, but list<element: string>" in said


def test_a_text_may_be_made_of_several_columns(tmp_path: Path) -> None:
    rows = [
        {"title": "A", "n": 1, "body": "a", "labels": ["x"]},
        {"title": None, "n": None, "body": "b", "labels": []},
        {"title": None, "n": None, "body": None, "labels": None},
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "x.parquet")
    paths = [str(tmp_path / "x.parquet")]
    paths.append(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows))))
    template = "{title} {{{n}}}\n{body}"
    for path in paths:
        examples = read_examples(path, text=template)
        assert examples.texts.to_pylist() == ["A {1}\na", " {}\nb", ""]
        assert examples.null_texts == 1
    # as a corpus is scored, to the character
    scored, status = make_text(table, template, max_text_bytes=100)
    assert scored.to_pylist() == ["A {1}\na", " {}\nb", None]
    assert status.tolist() == [OK, OK, NULL_TEXT]
    said = message(paths[0], text="{titel}\n{body}")
    assert "no column 'titel' (text): did you mean 'title'?" in said
    assert "expected text or a number" in message(paths[0], text="{title}{labels}", labels=["n"])
    assert "'body' is named as text and in labels" in message(
        paths[0], text="{title}{body}", labels=["body"]
    )
    assert "is not a template" in message(paths[0], text="{title")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("a,b,x\nok,ok,1\nok,caf\xe9,0\n".encode("latin-1"))
    said = message(str(latin), text="{a} {b}", labels=["x"])
    assert said == f"{latin}: row 2: column 'b' is not valid UTF-8: save the file as UTF-8"


def test_fields_of_structs_are_columns_too(tmp_path: Path) -> None:
    rows = [
        {"text": {"en": "x", "de": "y"}, "tags": {"one": ["a"], "two": []}, "meta": {"key": "7"}},
        {"text": {"en": None, "de": "z"}, "tags": {"one": None, "two": ["b"]}, "meta": None},
        {"text": None, "tags": {"one": [], "two": None}, "meta": {"key": "9"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    paths = [str(tmp_path / "x.parquet")]
    paths.append(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows))))
    for path in paths:
        examples = read_examples(path, text="text.en", labels="tags.one", id="meta.key")
        assert examples.texts.to_pylist() == ["x", "", ""]
        assert examples.null_texts == 2
        assert examples.annotated.tolist() == [True, False, True]
        assert examples.ids.to_pylist() == ["7", "1", "9"]
        both = read_examples(path, text="{text.en}|{text.de}", labels="tags.one")
        assert both.texts.to_pylist() == ["x|y", "|z", ""]
        assert "no column 'text.eng' (text): did you mean 'text.en'?" in message(
            path, text="text.eng", labels="tags.one"
        )
        assert "such as text.en" in message(path, text="text", labels="tags.one")
    path = write(tmp_path / "y.jsonl", '{"text.en": "flat", "labels": ["a"], "text": {"en": "no"}}')
    assert read_examples(path, text="text.en").texts.to_pylist() == ["flat"]
    path = write(
        tmp_path / "z.jsonl", '{"t": {"en": "x"}, "labels": ["a"]}\n{"t": 3, "labels": []}'
    )
    assert "line 2: 3 is no object, expected one with 'en'" in message(path, text="t.en")


def test_the_extension_tsv_means_tabs_whatever_else_is_in_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "text, or title\ta;b\nx, y\t1\n")
    examples = read_examples(path, text="text, or title", labels=["a;b"])
    assert examples.texts.to_pylist() == ["x, y"]


@pytest.mark.data
def test_real_files_are_read() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent: set RAY_MLC_DATA")
    columns = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    path = DATA / "jigsaw_sample" / "train.csv"
    examples: Examples = read_examples(str(path), text="comment_text", labels=columns)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert examples.ids.to_pylist() == [row["id"] for row in rows]
    assert examples.texts.to_pylist() == [row["comment_text"] for row in rows]
    expected_NL = [[float(row[name]) for name in columns] for row in rows]
    np.testing.assert_array_equal(examples.targets_NL(), expected_NL)
    assert len(read_examples(str(DATA / "eurlex57k" / "train.parquet"))) == 45_000
