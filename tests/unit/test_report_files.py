"""A report replaces an earlier report, says so, and refuses to replace anything else."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.cli import run

from ray_mlc import synthetic
from ray_mlc.cli.printing import size
from ray_mlc.labels import listed


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("examples") / "test.parquet"
    pq.write_table(synthetic.documents(40, seed=3), file)
    return str(file)


def test_a_report_replaces_a_report_and_says_so(
    examples: str,
    tiny_tfidf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, names in (
        (["data", "explore", examples, "--near", "0"], ["x.html"]),
        (["evaluate", str(tiny_tfidf), examples], ["y.json", "y.html"]),
    ):
        command += ["--output", str(tmp_path / names[0])]
        (tmp_path / names[0]).touch()  # as `mktemp` leaves it
        assert run(monkeypatch, *command) == 0
        assert "replacing" not in capsys.readouterr().err
        assert run(monkeypatch, *command) == 0
        told = capsys.readouterr().err
        for name in names:
            assert f"replacing the report that is there: {tmp_path / name}" in told


@pytest.mark.parametrize("content", ["<html>mine</html>", "{}", "[1]", "id,text\n1,x\n", "\x00"])
def test_another_file_is_left_alone_before_anything_is_read(
    content: str,
    examples: str,
    tiny_tfidf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page, figures = tmp_path / "x.html", tmp_path / "x.json"
    for command, output, mine in (
        (["data", "explore", examples], page, page),
        (["evaluate", str(tiny_tfidf), examples], figures, figures),
        (["evaluate", str(tiny_tfidf), examples], figures, page),
    ):
        for file in (page, figures):
            file.unlink(missing_ok=True)
        mine.write_text(content)
        assert run(monkeypatch, *command, "--output", str(output)) == 2
        told = capsys.readouterr().err
        assert "is there already, and no report of ray-mlc: name another --output" in told
        assert len(told.strip().splitlines()) == 1
        assert mine.read_text() == content
    # not even the examples themselves
    before = Path(examples).read_bytes()
    assert run(monkeypatch, "data", "explore", examples, "--output", examples) == 2
    assert Path(examples).read_bytes() == before


@pytest.mark.parametrize(
    ("bytes_", "shown"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (2_048, "2.0 KiB"), (3 * 2**30, "3.0 GiB")],
)
def test_a_small_size_is_not_nothing(bytes_: int, shown: str) -> None:
    assert size(bytes_) == shown


def test_labels_in_a_list_can_be_told_apart() -> None:
    names = ["a", "b, c", 'say "x"', " d", "e\nf", "日本", "it's"]
    assert listed(names) == 'a, "b, c", "say \\"x\\"", " d", "e\\nf", 日本, it\'s'
    assert listed(names, most=1) == "a and 6 more"
    assert listed([]) == ""
    assert listed(["a"], most=8) == "a"


def test_split_speaks_of_rows_and_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = synthetic.documents(60, seed=1)
    for name, rows, said in (
        ("once", table, "placing 60 rows (stratified)\n"),
        ("twice", table.take([0, *range(60)]), "; 2 of them stay together in 1 group(s)\n"),
    ):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        command = ["data", "split", str(tmp_path / f"{name}.parquet"), str(tmp_path / name)]
        assert run(monkeypatch, *command, "--near", "0") == 0
        told = capsys.readouterr().err
        assert said in told
        assert "unit" not in told
        assert "duplicates:" not in told
