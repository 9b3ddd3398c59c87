"""An output reads as one table, and as the same table, in every reader of Parquet."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from ray_mlc import synthetic

ScoreLocally = Callable[..., dict[str, Any]]
Rows = list[dict[str, Any]]


def read_with_arrow(output: Path) -> Rows:
    files = sorted(str(path) for path in output.glob("**/*.parquet"))
    return list(pads.dataset(files, format="parquet").to_table().to_pylist())


def read_with_duckdb(output: Path) -> Rows:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(":memory:") as connection:
        cursor = connection.execute(f"SELECT * FROM '{output}/**/*.parquet'")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def read_with_polars(output: Path) -> Rows:
    polars = pytest.importorskip("polars")
    return list(polars.scan_parquet(f"{output}/**/*.parquet").collect().to_dicts())


def read_with_datasets(output: Path) -> Rows:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about multiprocessing and its cache
        table = datasets.load_dataset(
            "parquet",
            data_files=f"{output}/**/*.parquet",
            split="train",
            cache_dir=str(output.parent / "cache"),
        )
        return list(table)


READERS = ("duckdb", "polars", "datasets")


def read_with(reader: str, output: Path) -> Rows:
    match reader:
        case "duckdb":
            return read_with_duckdb(output)
        case "polars":
            return read_with_polars(output)
        case _:
            return read_with_datasets(output)


def by_key(rows: Rows) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by source and row, each of which must be there once."""
    found = {(row["source"], row["row"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def assert_same(one: Any, other: Any) -> None:
    """The same value, floats within 1e-6, whatever the containers of a reader."""
    if isinstance(one, float):
        assert other == pytest.approx(one, abs=1e-6)
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


@pytest.fixture(scope="module")
def odd_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with different extra columns, some of them named like ours, and Hive keys."""
    folder = tmp_path_factory.mktemp("odd")
    texts = synthetic.documents(60, seed=4)["text"].to_pylist()
    one = pa.table(
        {
            "text": [*texts[:28], None, " "],
            "Labels": ["theirs"] * 30,
            "row": range(30),
            "score_finance": [0.5] * 30,
            "n": pa.array(range(30), pa.int16()),
        }
    )
    other = pa.table(
        {
            "text": texts[30:],
            "status": pa.array(["new", "old"] * 15).dictionary_encode(),
            "n": pa.array(range(2**40, 2**40 + 30), pa.int64()),
            "tags": [["x", "y"], []] * 15,
            "N": [True] * 30,
        }
    )
    for day, name, table in ((1, "one.parquet", one), (2, "other.parquet", other)):
        (folder / f"day={day}").mkdir()
        pq.write_table(table, folder / f"day={day}" / name, row_group_size=20)
    return folder


@pytest.fixture(scope="module")
def outputs(
    tiny_corpus: Path,
    odd_corpus: Path,
    tiny_run: Path,
    score_locally: ScoreLocally,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A finished output of each kind that readers must take."""
    folder = tmp_path_factory.mktemp("outputs")
    found = {kind: folder / kind / "out" for kind in ("sparse", "dense", "odd")}
    score_locally(tiny_corpus, found["sparse"], "output.format=sparse", "output.k=4")
    score_locally(tiny_corpus, found["dense"], "output.format=dense")
    score_locally(odd_corpus, found["odd"])
    return {"wide": tiny_run, **found}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["wide", "sparse", "dense", "odd"])
def test_a_reader_finds_the_rows_and_values_that_arrow_finds(
    outputs: dict[str, Path], kind: str, reader: str
) -> None:
    expected = by_key(read_with_arrow(outputs[kind]))
    found = by_key(read_with(reader, outputs[kind]))
    assert set(found) == set(expected)
    for key, row in expected.items():
        assert_same(row, {name: found[key][name] for name in row})


def test_arrow_finds_every_row_that_was_given(
    outputs: dict[str, Path], tiny_corpus: Path, odd_corpus: Path
) -> None:
    corpora = {"wide": tiny_corpus, "sparse": tiny_corpus, "dense": tiny_corpus, "odd": odd_corpus}
    for kind, corpus in corpora.items():
        given = {
            (str(path.relative_to(corpus)), row)
            for path in corpus.glob("**/*.parquet")
            for row in range(pq.read_metadata(path).num_rows)
        }
        assert set(by_key(read_with_arrow(outputs[kind]))) == given


def test_columns_named_like_ours_come_out_under_another_name(outputs: dict[str, Path]) -> None:
    row = by_key(read_with_arrow(outputs["odd"]))["day=1/one.parquet", 3]
    assert (row["input_Labels"], row["input_row"], row["input_score_finance"]) == ("theirs", 3, 0.5)
    assert (row["n"], row["N_2"], row["input_status"], row["tags"]) == (3, None, None, None)
    assert (row["day"], row["row"], row["status"]) == (1, 3, "ok")
    other = by_key(read_with_arrow(outputs["odd"]))["day=2/other.parquet", 1]
    assert (other["n"], other["input_status"], other["tags"]) == (2**40 + 1, "old", [])


@pytest.mark.parametrize("form", ["wide", "sparse"])
def test_duckdb_answers_what_the_night_brought(outputs: dict[str, Path], form: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = read_with_arrow(outputs[form])
    with duckdb.connect(":memory:") as connection:
        parts = f"'{outputs[form]}/**/*.parquet'"
        counts = connection.execute(f"SELECT source, count(*) FROM {parts} GROUP BY 1 ORDER BY 1")
        assert counts.fetchall() == [(f"part-{number:05d}.parquet", 80) for number in range(3)]
        mine = sum("health" in (row["labels"] or ()) for row in rows)
        query = f"SELECT count(*) FROM {parts} WHERE list_contains(labels, 'health')"
        assert connection.execute(query).fetchall() == [(mine,)]
        if form == "wide":
            names = synthetic.LABELS.names
            means = ", ".join(f"avg(score_{name})" for name in names)
            (found,) = connection.execute(f"SELECT {means} FROM {parts}").fetchall()
            for name, mean in zip(names, found, strict=True):
                scores = [row[f"score_{name}"] for row in rows if row["status"] == "ok"]
                assert mean == pytest.approx(sum(scores) / len(scores), abs=1e-6)
