"""`data split`: every row in one part with all its columns, parts whole or not at all."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run

from ray_mlc.errors import StorageError
from ray_mlc.training.examples import read_examples
from ray_mlc.training.sources import find_files
from ray_mlc.training.split_files import RECORD, split_folder, write_parts

PARTS = ("train", "validation", "test")


def rich_table(rows: int = 60) -> pa.Table:
    """Columns of many kinds, nulls in all of them but two."""
    some = [row if row % 7 else None for row in range(rows)]
    return pa.table(
        {
            "id": [f"id{row}" for row in range(rows)],
            "text": [None if row == 3 else f"text {row % 50}" for row in range(rows)],
            "labels": pa.array(
                [None if row == 5 else [f"l{row % 4}"] * (row % 3 > 0) for row in range(rows)],
                pa.list_(pa.string()),
            ),
            "kind": pa.array([f"k{row % 3}" for row in range(rows)]).dictionary_encode(),
            "when": pa.array(
                [datetime(2026, 1, 1 + row % 28) for row in range(rows)], pa.timestamp("us", "UTC")
            ),
            "nested": pa.array([None if n is None else {"a": n, "b": [n]} for n in some]),
            "vector": pa.array(
                [None if n is None else [n, 0.5] for n in some], pa.list_(pa.float32(), 2)
            ),
            "big": pa.array(some, pa.int64()),
        }
    ).replace_schema_metadata({"origin": "a test"})


def write(table: pa.Table, path: Path) -> str:
    pq.write_table(table, path, row_group_size=17)
    return str(path)


def split(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    return run(monkeypatch, "data", "split", *map(str, arguments), "--quiet")


def result_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--by", "random", "--seed", "3"],
        ["--by", "time", "--column", "when"],
        ["--by", "given", "--column", "kind"],
        ["--group", "kind", "--parts", "a=0.5,b=0.5"],
        ["--group-duplicates", "near", "--near", "0.5"],
    ],
)
def test_every_row_is_in_one_part_with_all_that_it_had(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = rich_table()
    source = write(table, tmp_path / "all.parquet")
    assert split(monkeypatch, source, tmp_path / "out", *options, "--json") == 0
    result = result_of(capsys)
    tables = [pq.read_table(path) for path in result["files"]]
    assert [len(one) for one in tables] == [part["rows"] for part in result["parts"]]
    table = pq.read_table(source)  # Parquet names the items of lists
    for one in tables:
        assert one.schema.equals(table.schema, check_metadata=True)
        ids = one["id"].to_pylist()
        assert ids == sorted(ids, key=lambda name: int(name[2:]))  # the source's order is kept
    together = pa.concat_tables(tables)
    place = {name: at for at, name in enumerate(table["id"].to_pylist())}
    order = np.argsort([place[name] for name in together["id"].to_pylist()])
    assert together.take(pa.array(order)).to_pylist() == table.to_pylist()
    texts = [set(one["text"].drop_null().to_pylist()) for one in tables]
    if "given" not in options:  # texts 0 to 9 are there twice
        assert all(not texts[a] & texts[b] for a in range(len(texts)) for b in range(a))


def test_the_record_says_how_the_parts_were_made_and_readers_pass_it_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(rich_table(), tmp_path / "all.parquet")
    out = tmp_path / "out"
    assert split(monkeypatch, source, out, "--seed", "7", "--json") == 0
    result = result_of(capsys)
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    assert (record["by"], record["seed"], record["source"]) == ("stratified", 7, source)
    assert record == {key: result[key] for key in record}
    assert sorted(path.name for path in out.iterdir()) == [
        RECORD,
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    assert len(read_examples(str(out))) == 60
    asked = [part["asked"] for part in record["parts"]]
    assert asked == [48, 6, 6]
    assert record["units"] == {"count": 51, "largest": 2, "rows_in_groups": 18}


def test_the_same_command_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(rich_table(), tmp_path / "all.parquet")
    for out in ("one", "two"):
        assert split(monkeypatch, source, tmp_path / out) == 0
    for part in PARTS:
        name = f"{part}.parquet"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_leaks_between_given_parts_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(f"w{at}" for at in range(40))
    table = pa.table(
        {
            "text": ["one", "ONE ", long, long + " more", "alone"],
            "labels": [["a"], ["a"], ["b"], ["b"], ["a"]],
            "split": ["train", "test", "train", "test", "test"],
        }
    )
    source = write(table, tmp_path / "all.parquet")
    options = ["--by", "given", "--column", "split"]
    assert split(monkeypatch, source, tmp_path / "out", *options) == 0
    said = capsys.readouterr().out
    assert "test: the text of 1 row(s) (33.33%) is in train too, 1 more nearly so" in said
    assert split(monkeypatch, source, tmp_path / "two", *options, "--near", "0", "--json") == 0
    leaks = result_of(capsys)["leakage"]
    assert leaks["jaccard"] is None
    assert [leak["near"] for leak in leaks["parts"]] == [None, None]


def test_csv_keeps_its_columns_and_zero_one_columns_become_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        f'{row},"a ""text"" {row}",{row % 2},{"" if row == 4 else -1},x{row}' for row in range(20)
    ]
    (tmp_path / "all.csv").write_text("no,body,good,bad,more\n" + "\n".join(rows), encoding="utf-8")
    options = ["--text", "body", "--labels", "good,bad", "--parts", "a=0.5,b=0.5"]
    assert split(monkeypatch, tmp_path / "all.csv", tmp_path / "out", *options) == 0
    table = pa.concat_tables(pq.read_table(tmp_path / "out" / f"{part}.parquet") for part in "ab")
    assert table.schema.field("good").type == pa.int8()
    assert table["bad"].null_count == 20
    by_no = {row["no"]: row for row in table.to_pylist()}
    assert by_no["7"] == {"no": "7", "body": 'a "text" 7', "good": 1, "bad": None, "more": "x7"}
    again = read_examples(str(tmp_path / "out"), text="body", labels=["good", "bad"])
    assert again.label_counts().tolist() == [10, 0]
    assert again.annotated_counts().tolist() == [20, 0]


def test_a_key_that_only_the_last_line_has_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"text": f"t{row}", "labels": ["a"] * (row % 2), "n": row} for row in range(5_000)]
    lines[-1]["late"] = {"x": 1}
    lines[-1]["n"] = 0.5
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "all.jsonl").write_text(text, encoding="utf-8")
    options = ["--by", "random", "--parts", "a=0.5,b=0.5", "--near", "0"]
    assert split(monkeypatch, tmp_path / "all.jsonl", tmp_path / "out", *options) == 0
    table = pa.concat_tables(pq.read_table(tmp_path / "out" / f"{part}.parquet") for part in "ab")
    rows = {row["text"]: row for row in table.to_pylist()}
    assert len(rows) == 5_000
    assert rows["t4999"]["late"] == {"x": 1}
    assert rows["t4999"]["n"] == 0.5
    assert rows["t7"]["n"] == 7
    assert rows["t0"]["late"] is None


def test_an_existing_part_is_kept_unless_it_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(rich_table(), tmp_path / "all.parquet")
    out = tmp_path / "out"
    out.mkdir()
    (out / "test.parquet").write_bytes(b"precious")
    assert split(monkeypatch, source, out) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (out / "test.parquet").read_bytes() == b"precious"
    assert [path.name for path in out.iterdir()] == ["test.parquet"]
    assert split(monkeypatch, source, out, "--overwrite") == 0
    # parts that the new split does not have would be taken for its own
    assert split(monkeypatch, source, out, "--parts", "train=0.5,held=0.5") == 2
    capsys.readouterr()
    assert split(monkeypatch, source, out, "--parts", "train=0.5,held=0.5", "--overwrite") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [RECORD, "held.parquet", "train.parquet"]


def test_a_record_can_have_no_file_outside_of_the_folder_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(rich_table(), tmp_path / "all.parquet")
    (tmp_path / "other.parquet").write_bytes(b"precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / RECORD).write_text('{"parts": [{"name": "../other"}, {"name": "x"}]}', encoding="utf-8")
    assert split(monkeypatch, source, out, "--overwrite") == 0
    assert (tmp_path / "other.parquet").read_bytes() == b"precious"


@pytest.mark.parametrize("failing", range(4))
def test_a_disk_that_fails_at_the_end_leaves_nothing(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_files(write(rich_table(), tmp_path / "all.parquet"))
    out = tmp_path / "a/b"
    replace, calls = Path.replace, []

    def sometimes(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", sometimes)
    folder = split_folder(str(out), files, PARTS, overwrite=False)
    with pytest.raises(StorageError, match="No space left"):
        write_parts(files, folder, np.arange(60) % 3, PARTS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet"]


def test_examples_that_grew_meanwhile_are_refused(tmp_path: Path) -> None:
    files = find_files(write(rich_table(), tmp_path / "all.parquet"))
    for rows in (59, 61):
        with pytest.raises(Exception, match="changed while they were read"):
            write_parts(files, tmp_path / "out", np.zeros(rows, np.int64), PARTS, {})
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(rich_table(), tmp_path / "train.parquet")
    before = Path(source).read_bytes()
    assert split(monkeypatch, source, tmp_path, "--overwrite") == 2
    assert "also the source" in capsys.readouterr().err
    assert Path(source).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "label"], "expected one of stratified, time, random, given"),
        (["--by", "time"], "needs --column"),
        (["--by", "time", "--column", "wen"], "did you mean 'when'?"),
        (["--by", "given", "--column", "kind", "--parts", "a=0.5,b=0.5"], "--parts is not for"),
        (["--by", "given", "--column", "kind", "--group", "kind"], "--group is not for"),
        (["--column", "kind"], "--column is for --by time"),
        (["--group", "knd"], "did you mean 'kind'?"),
        (["--group", "nested"], "expected text or numbers"),
        (["--group-duplicates", "fuzzy"], "expected one of exact, near, none"),
        (["--group-duplicates", "near", "--near", "0"], "needs --near"),
        (["--near", "0.1"], "expected a Jaccard similarity from 0.3 to 1"),
        (["--parts", "train=0.5,test=0.4"], "adds up to 0.9"),
        (["--labels", "lables"], "did you mean 'labels'?"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(rich_table(), tmp_path / "all.parquet")
    assert split(monkeypatch, source, tmp_path / "out", *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "out").exists()
