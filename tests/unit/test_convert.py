from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.errors import DataError, StorageError
from ray_mlc.labels import LabelSet
from ray_mlc.training import convert as module
from ray_mlc.training import formats, writing
from ray_mlc.training.convert import ConvertSummary, convert
from ray_mlc.training.examples import read_examples
from ray_mlc.training.pieces import Piece

DATA = Path(os.environ.get("RAY_MLC_DATA", Path(__file__).parents[2] / "../shared/data"))
PLAIN = {"id": pa.string(), "text": pa.string(), "labels": pa.list_(pa.string())}


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def run(source: str, output: Path, **options: Any) -> ConvertSummary:
    return convert(
        source, str(output), **{"text": "text", "labels": "labels", "id": "id"} | options
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def message(source: str, output: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(source, output, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(
        st.lists(st.sampled_from([0, 1, 0, 1, -1]), min_size=3, max_size=3),
        min_size=1,
        max_size=40,
    ),
    groups=st.sampled_from([1, 3, 4_096]),
)
def test_reading_converted_examples_equals_reading_the_zero_one_columns(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[int]], groups: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    lines = [f"{i},t{i},{','.join(map(str, row))}" for i, row in enumerate(cells)]
    source = write(folder / "x.csv", "id,text,c,a,b\n" + "\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "ROW_GROUP", groups)
        patch.setattr(formats, "PIECE_ROWS", 2)
        summary = run(source, folder / "x.parquet", labels=["c", "a", "b"])
    direct = read_examples(source, labels=["c", "a", "b"])
    back = read_examples(str(folder / "x.parquet"), label_set=LabelSet(("c", "a", "b")))
    np.testing.assert_array_equal(back.targets_NL(), direct.targets_NL())
    assert back.ids.equals(direct.ids)
    assert back.texts.equals(direct.texts)
    partly = direct.unannotated is not None
    expected = {**PLAIN, "unannotated": pa.list_(pa.string())} if partly else PLAIN
    schema = pq.read_schema(folder / "x.parquet")
    assert dict(zip(schema.names, schema.types, strict=True)) == expected
    assert summary.labels == dict(zip("cab", direct.label_counts().tolist(), strict=True))
    assert list(summary.labels.values()) == sorted(summary.labels.values(), reverse=True)
    assert summary.not_annotated == int((~direct.annotated).sum())
    assert summary.rows == len(cells)
    assert names_in(folder) == ["x.csv", "x.parquet"]


def test_row_groups_have_4096_rows_and_zstd(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "text,a\n" + "x,1\n" * 10_000)
    assert run(source, tmp_path / "x.parquet", labels=["a"]).rows == 10_000
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [4_096, 4_096, 1_808]
    assert groups[0].column(0).compression == "ZSTD"


def test_lists_nulls_and_repeated_ids_are_kept_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "1", "text": None, "labels": ["b", "a", "b"]},
        {"id": "1", "text": "y", "labels": None},
        {"id": "2", "text": "z", "labels": []},
    ]
    source = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    summary = run(source, tmp_path / "new" / "x.parquet")
    rows[0]["labels"] = ["b", "a"]
    assert rows_of(tmp_path / "new" / "x.parquet") == rows
    assert (summary.null_texts, summary.not_annotated, summary.duplicate_ids) == (1, 1, 1)
    assert summary.labels == {"a": 1, "b": 1}


def test_a_text_column_is_split_at_the_delimiter(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "text,tags\nx,a | b c|\ny,\nz,|a\n")
    summary = run(source, tmp_path / "x.parquet", labels="tags", delimiter="|")
    assert [row["labels"] for row in rows_of(tmp_path / "x.parquet")] == [["a", "b c"], [], ["a"]]
    assert summary.labels == {"a": 2, "b c": 1}


def test_integers_become_names_that_are_given_or_in_the_file(tmp_path: Path) -> None:
    table = pa.table({"text": ["x", "y", "z"], "labels": [[2, 0], [], None]})
    pq.write_table(table, tmp_path / "plain.parquet")
    run(str(tmp_path / "plain.parquet"), tmp_path / "o1.parquet", names=["p", "q", "r"])
    feature = {"_type": "List", "feature": {"names": ["p", "q", "r"], "_type": "ClassLabel"}}
    said = json.dumps({"info": {"features": {"labels": feature}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": said}), tmp_path / "hf.parquet")
    run(str(tmp_path / "hf.parquet"), tmp_path / "o2.parquet")
    for made in ("o1.parquet", "o2.parquet"):
        assert [row["labels"] for row in rows_of(tmp_path / made)] == [["r", "p"], [], None]
    output = tmp_path / "o3.parquet"
    plain = str(tmp_path / "plain.parquet")
    assert "does not name its integers: give names" in message(plain, output)
    assert "row 1: column 'labels' lists 2, expected 0 to 1" in message(
        plain, output, names=["p", "q"]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ["a", "a"]}, "names column 'a' twice"),
        ({"labels": ["a"], "delimiter": "|"}, "delimiter splits one text column"),
        ({"delimiter": ""}, "delimiter splits one text column"),
        ({"labels": "tags"}, "`ray-mlc data convert --delimiter`"),
        ({"labels": "tags", "names": ["p"]}, "`ray-mlc data convert --delimiter`"),
        ({"labels": ["a"], "names": ["p"]}, "names are for a column that lists ids"),
        ({"names": []}, "names is empty"),
        ({"names": ["p", " "]}, "the name of 1 is blank"),
        ({"names": ["p", "p"]}, "has 'p' twice"),
        ({"labels": ["tags"]}, "row 1: column 'tags' is 'a|b', expected 0 or 1"),
        ({"labels": "nope"}, "no column 'nope' (labels): it has text, a, tags"),
        ({"labels": ["a"], "split": "train"}, "split and subset are of hub data sets"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    source = write(tmp_path / "x.csv", "text,a,tags\nx,1,a|b\n")
    assert said in message(source, tmp_path / "new" / "x.parquet", **options)
    assert names_in(tmp_path) == ["x.csv"]


def test_outputs_that_cannot_be_written_are_refused_before_reading(tmp_path: Path) -> None:
    source = str(tmp_path / "absent.csv")
    assert "ends in .parquet" in message(source, tmp_path / "x.csv")
    (tmp_path / "folder.parquet").mkdir()
    assert "this is a folder" in message(source, tmp_path / "folder.parquet")
    with pytest.raises(DataError, match="written to a local file"):
        convert(source, "s3://bucket/x.parquet", text="text", labels="labels", id=None)
    assert "no such file or folder" in message(source, tmp_path / "x.parquet")
    there = write(tmp_path / "x.csv", "text,a\nx,1\n")
    with pytest.raises(StorageError, match="cannot be written"):
        run(there, tmp_path / "x.csv" / "x.parquet", labels=["a"])


def test_an_existing_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "text,a\nx,1\n")
    output = tmp_path / "x.parquet"
    run(source, output, labels=["a"])
    before = output.read_bytes()
    assert "the file exists" in message(source, output, labels=["a"])
    write(tmp_path / "x.csv", "text,a\nx,1\ny,2\n")
    assert "row 2" in message(source, output, labels=["a"], overwrite=True)
    assert output.read_bytes() == before
    write(tmp_path / "x.csv", "text,a\nx,1\ny,0\n")
    assert run(source, output, labels=["a"], overwrite=True).rows == 2
    assert "the output is also a source" in message(str(output), output, overwrite=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    source = write(tmp_path / "x.csv", "text,a\n" + "x,1\n" * 10_000)
    seen = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        seen.append([name for name in names_in(tmp_path / "new") if name.endswith(".tmp")])
        if len(seen) == 3:
            raise error
        return encode(*args, **kwargs)

    encode = module.encode_labels
    monkeypatch.setattr(module, "encode_labels", interrupted)
    with pytest.raises(error):
        run(source, tmp_path / "new" / "x.parquet", labels=["a"])
    assert [len(names) for names in seen] == [1, 1, 1]
    assert names_in(tmp_path) == ["x.csv"]


def test_the_first_undecided_cell_after_row_groups_are_written_widens_the_output(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "x.csv", "text,a,b\n" + "x,1,0\n" * 9_000 + "y,1,-1\n" + "z,-1,-1\n")
    summary = run(source, tmp_path / "x.parquet", labels=["a", "b"])
    rows = rows_of(tmp_path / "x.parquet")
    assert len(rows) == summary.rows == 9_002
    assert all(row["unannotated"] == [] for row in rows[:9_000])
    assert rows[9_000]["labels"] == ["a"]
    assert rows[9_000]["unannotated"] == ["b"]
    assert rows[9_001]["labels"] is None
    assert (summary.unannotated_cells, summary.not_annotated) == (1, 1)
    assert names_in(tmp_path) == ["x.csv", "x.parquet"]


def test_no_row_at_all_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "text,a\n")
    assert "there is no row in it" in message(source, tmp_path / "x.parquet", labels=["a"])
    assert names_in(tmp_path) == ["x.csv"]


class HubDataset:
    """What `datasets` gives for a streamed split, as far as `convert` uses it."""

    def __init__(self, table: pa.Table, features: Any) -> None:
        self.table, self.features = table, features

    def select_columns(self, names: list[str]) -> HubDataset:
        return HubDataset(self.table.select(names), self.features)

    def with_format(self, name: str) -> HubDataset:
        assert name == "arrow"
        return self

    def iter(self, batch_size: int) -> Any:
        yield from (self.table.slice(i, 2) for i in range(0, len(self.table), 2))


@pytest.mark.parametrize("with_features", [True, False])
def test_a_hub_data_set_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_features: bool
) -> None:
    import datasets

    table = pa.table({"text": list("xyz"), "labels": [[0], [1, 0], []], "image": [b"", b"", b""]})
    features = datasets.Features(
        text=datasets.Value("string"),
        labels=datasets.List(datasets.ClassLabel(names=["p", "q"])),
        image=datasets.Value("binary"),
    )
    asked: list[Any] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append((path, options))
        data = HubDataset(table, features if with_features else None)
        return data if options["split"] else {"train": data, "test": data}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    names = None if with_features else ["p", "q"]
    summary = run("org/name@v1", tmp_path / "x.parquet", split="train", names=names)
    assert summary.labels == {"p": 2, "q": 1}
    assert [row["labels"] for row in rows_of(tmp_path / "x.parquet")] == [["p"], ["q", "p"], []]
    options = {"name": None, "split": "train", "revision": "v1", "streaming": True}
    assert asked == [("org/name", options)]
    said = message("org/name", tmp_path / "y.parquet")
    assert said == "org/name: name a split: it has train, test"


def test_the_stand_in_for_hub_data_sets_behaves_as_theirs(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "n": [1, 2, 3]})
    streamed = data.to_iterable_dataset().select_columns(["text"]).with_format("arrow")
    tables = list(streamed.iter(batch_size=2))
    assert [table.to_pydict() for table in tables] == [{"text": ["x", "y"]}, {"text": ["z"]}]
    assert b"huggingface" in data.features.arrow_schema.metadata


def test_a_hub_that_cannot_be_reached_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    said = message("org/name", tmp_path / "x.parquet")
    assert "the hub cannot be reached" in said
    assert said.endswith("pass a local CSV, JSONL or Parquet file")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("org/name", tmp_path / "x.parquet")
    assert names_in(tmp_path) == []


def test_memory_does_not_grow_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.csv", "text,a\nx,1\n")
    held: list[int] = []

    def many(*_: Any) -> Iterator[Piece]:
        for number in range(60):
            held.append(pa.total_allocated_bytes())
            texts = pa.array([f"{number} {row}".ljust(1_000) for row in range(2_500)])
            ones = pa.array(np.ones(2_500, np.int8))
            yield Piece(source, "CSV", number * 2_500, {"text": texts, "a": ones})

    monkeypatch.setattr(module, "read_pieces", many)
    assert run(source, tmp_path / "x.parquet", labels=["a"]).rows == 150_000
    # 150 MB in all; what is held beside a piece is less than a row group
    assert max(held[30:]) < max(held[:10]) + 10 * 2**20


def test_progress_counts_every_row(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "text,a\n" + "x,1\n" * 10_000)
    steps: list[int] = []
    run(source, tmp_path / "x.parquet", labels=["a"], progress=steps.append)
    assert (sum(steps), len(steps)) == (10_000, 3)


@pytest.mark.data
def test_a_real_csv_converts_to_what_reading_it_gives(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent: set RAY_MLC_DATA")
    columns = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    source = str(DATA / "jigsaw_sample" / "train.csv")
    summary = run(source, tmp_path / "x.parquet", text="comment_text", labels=columns)
    assert (summary.rows, summary.labels["toxic"], summary.duplicate_ids) == (7_830, 786, 0)
    direct = read_examples(source, text="comment_text", labels=columns)
    back = read_examples(str(tmp_path / "x.parquet"), label_set=direct.label_set)
    assert back.ids.equals(direct.ids)
    assert back.texts.equals(direct.texts)
    assert back.positives.equals(direct.positives)
