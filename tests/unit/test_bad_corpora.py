"""Corpora from the wild: what cannot be read is set aside by name, the rest is scored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.errors import DataError, LimitError
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.parts import FOOTER_KEY, Receipt
from ray_mlc.scoring.verify import verify

ScoreLocally = Callable[..., dict[str, Any]]
MakeJob = Callable[..., ScoreJob]
ReadOutput = Callable[[Path], pa.Table]

ALL_ALLOWED = ("limits.bad_files=100", "limits.bad_rows=100000")


def texts(count: int, start: int = 0) -> list[str]:
    return [f"the text of row {row} and {row * 7919 % 997}" for row in range(start, start + count)]


def write(path: Path, table: pa.Table, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, use_dictionary=False, compression="zstd", **options)


def damage(path: Path, *, group: int) -> None:
    """Flip the bits of the text's data pages in one row group."""
    metadata = pq.read_metadata(path)
    chunk = metadata.row_group(group).column(metadata.schema.names.index("text"))
    data = bytearray(path.read_bytes())
    # behind the page's header
    for at in range(
        chunk.data_page_offset + 25, chunk.data_page_offset + chunk.total_compressed_size
    ):
        data[at] ^= 0x5A
    path.write_bytes(bytes(data))


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    """One good file and one of each fault; 100 good rows in all."""
    corpus = tmp_path / "in"
    good = pa.table({"text": texts(40), "n": range(40)})
    write(corpus / "a_good.parquet", good)
    (corpus / "b_no_bytes.parquet").write_bytes(b"")
    (corpus / "c_no_parquet.parquet").write_bytes(b"id,text\n1,hello\n" * 20)
    data = (corpus / "a_good.parquet").read_bytes()
    (corpus / "d_cut.parquet").write_bytes(data[: len(data) * 2 // 3])
    write(corpus / "e_other_type.parquet", pa.table({"text": texts(7), "n": [0.5] * 7}))
    write(corpus / "f_no_text.parquet", pa.table({"n": range(9)}))
    write(
        corpus / "g_bad_page.parquet",
        pa.table({"text": texts(80), "n": range(80)}),
        row_group_size=20,
    )
    damage(corpus / "g_bad_page.parquet", group=2)
    return corpus


def failures(output: Path) -> list[dict[str, Any]]:
    return list(json.loads((output / "_ray_mlc/failures.json").read_text()))


def test_what_cannot_be_read_is_set_aside_by_name_rows_and_reason(
    wild: Path, tmp_path: Path, score_locally: ScoreLocally, read_output: ReadOutput
) -> None:
    output = tmp_path / "out"
    summary = score_locally(wild, output, "units.rows=10", *ALL_ALLOWED)
    found = [(item["source"], item["first_row"], item["rows"]) for item in failures(output)]
    assert found == [
        ("b_no_bytes.parquet", None, None),
        ("c_no_parquet.parquet", None, None),
        ("d_cut.parquet", None, None),
        ("e_other_type.parquet", None, 7),
        ("f_no_text.parquet", None, 9),
        ("g_bad_page.parquet", 40, 10),
        ("g_bad_page.parquet", 50, 10),
    ]
    kinds = [item["reason"].split(":")[0] for item in failures(output)]
    assert kinds == ["footer"] * 3 + ["schema"] * 2 + ["read"] * 2
    assert summary["rows"] == {"planned": 136, "written": 100, "set_aside": 36}
    assert (summary["bad_rows"], summary["bad_files"], summary["files"]) == (36, 6, 7)
    assert (output / "_SUCCESS").exists()

    out = read_output(output)
    rows = [*range(40), *range(40), *range(60, 80)]
    assert out["n"].to_pylist() == rows
    assert out["row"].to_pylist() == rows
    assert set(out["status"].to_pylist()) == {"ok"}


def test_the_proof_accounts_for_rows_set_aside(
    wild: Path, tmp_path: Path, score_locally: ScoreLocally
) -> None:
    output = tmp_path / "out"
    score_locally(wild, output, "units.rows=10", *ALL_ALLOWED)
    verdict = verify(str(output), deep=True)
    assert verdict.holds
    counts = {item.source: (item.planned, item.written, item.set_aside) for item in verdict.files}
    assert counts == {
        "a_good.parquet": (40, 40, 0),
        "b_no_bytes.parquet": (0, 0, 0),
        "c_no_parquet.parquet": (0, 0, 0),
        "d_cut.parquet": (0, 0, 0),
        "e_other_type.parquet": (7, 0, 7),
        "f_no_text.parquet": (9, 0, 9),
        "g_bad_page.parquet": (80, 60, 20),
    }
    # a part that goes missing later is not excused by what was set aside
    (output / "g_bad_page/000000000000.parquet").unlink()
    verdict = verify(str(output))
    assert not verdict.holds
    assert verdict.total("missing") == 10


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (("limits.bad_files=5", ALL_ALLOWED[1]), "6 bad files, limits.bad_files allows 5"),
        (("limits.bad_files=0.5", ALL_ALLOWED[1]), "6 bad files, limits.bad_files allows 50.00%"),
        ((ALL_ALLOWED[0], "limits.bad_rows=35"), "36 bad rows, limits.bad_rows allows 35"),
        ((ALL_ALLOWED[0], "limits.bad_rows=0.2"), "allows 20.00% of 136"),
        ((), "36 bad rows, limits.bad_rows allows 1.00% of 136"),
    ],
)
def test_beyond_the_limits_the_run_ends_without_success(
    wild: Path,
    tmp_path: Path,
    score_locally: ScoreLocally,
    limits: tuple[str, ...],
    named: str,
) -> None:
    output = tmp_path / "out"
    with pytest.raises(LimitError) as caught:
        score_locally(wild, output, "units.rows=10", *limits)
    assert named in str(caught.value)
    assert caught.value.exit_code == 3
    assert not (output / "_SUCCESS").exists()
    assert len(failures(output)) == 7
    summary = json.loads((output / "_ray_mlc/summary.json").read_text())
    assert summary["rows"]["written"] == 100


def test_wider_limits_finish_what_stopped_and_narrower_ones_take_success_back(
    wild: Path, tmp_path: Path, score_locally: ScoreLocally
) -> None:
    output = tmp_path / "out"
    with pytest.raises(LimitError):
        score_locally(wild, output, "units.rows=10")
    before = {path: path.stat().st_ino for path in output.glob("**/*.parquet")}
    score_locally(wild, output, "units.rows=10", *ALL_ALLOWED)
    assert {path: path.stat().st_ino for path in output.glob("**/*.parquet")} == before
    assert (output / "_SUCCESS").exists()
    with pytest.raises(LimitError):
        score_locally(wild, output, "units.rows=10")
    assert not (output / "_SUCCESS").exists()


def test_rows_that_cannot_be_scored_count_but_facts_of_the_input_do_not(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    values = [b"one", None, b"", b" ", b"\xff", b"x" * 2000]
    write(tmp_path / "in/a.parquet", pa.table({"text": pa.array(values, pa.binary())}))
    settings = ("input.max_text_bytes=1000", "limits.bad_rows=2")
    summary = score_locally(tmp_path / "in", tmp_path / "out", *settings)
    assert summary["statuses"] == {
        "decode_error": 1,
        "empty": 2,
        "null_text": 1,
        "ok": 1,
        "too_long": 1,
    }
    assert (summary["bad_rows"], summary["bad_files"]) == (2, 0)
    narrower = ("input.max_text_bytes=1000", "limits.bad_rows=1")
    with pytest.raises(LimitError, match="2 bad rows"):
        score_locally(tmp_path / "in", tmp_path / "other", *narrower)


def test_a_unit_that_was_set_aside_is_tried_again(
    tmp_path: Path, score_job: MakeJob, score_locally: ScoreLocally, read_output: ReadOutput
) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b"):
        write(corpus / f"{name}.parquet", pa.table({"text": texts(20)}))

    class Unplugged(LocalBackend):
        """A file is away while the corpus is read, and back afterwards."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            (corpus / "b.parquet").rename(tmp_path / "away")
            yield from super().process(*args, **options)
            (tmp_path / "away").rename(corpus / "b.parquet")

    job = score_job(corpus, output, "limits.bad_rows=1000", "limits.bad_files=1")
    summary = score(job, Unplugged(), Display(quiet=True))
    assert summary["rows"] == {"planned": 40, "written": 20, "set_aside": 20}
    assert verify(str(output)).holds
    assert score_locally(corpus, output)["rows"]["written"] == 40
    assert failures(output) == []
    assert read_output(output)["row"].to_pylist() == [*range(20), *range(20)]
    assert verify(str(output), deep=True).holds


def test_a_corpus_of_nothing_but_faults_is_refused_at_once(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(DataError, match=r"no file could be read; a\.parquet: footer"):
        score_locally(tmp_path / "in", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_column_that_is_called_like_one_of_a_blocks_own_is_kept_under_another_name(
    tmp_path: Path, score_locally: ScoreLocally, read_output: ReadOutput
) -> None:
    columns = {"text": texts(5), "__ray_mlc_fault": range(5), "__RAY_MLC_text": ["x"] * 5}
    write(tmp_path / "in/a.parquet", pa.table(columns))
    score_locally(tmp_path / "in", tmp_path / "out")
    out = read_output(tmp_path / "out")
    assert out["input___ray_mlc_fault"].to_pylist() == list(range(5))
    assert out["input___RAY_MLC_text"].to_pylist() == ["x"] * 5


def test_no_folder_of_the_output_ends_in_parquet(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    write(tmp_path / "in/b.parquet.parquet/a.parquet.parquet", pa.table({"text": texts(5)}))
    score_locally(tmp_path / "in", tmp_path / "out")
    found = [path.relative_to(tmp_path / "out") for path in tmp_path.glob("out/**/*.parquet")]
    assert found == [Path("b/a/000000000000.parquet")]


def test_bytes_of_a_fixed_size_fill_a_template_like_others(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    codes = pa.array([b"abc", b"\xff\xff\xff", None], pa.binary(3))
    ids = pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([b"x" * 16, b"x" * 16, b"\xff" * 16], pa.binary(16))
    )
    write(tmp_path / "in/a.parquet", pa.table({"text": texts(3), "code": codes, "id": ids}))
    for text, bad in (("{code}: {text}", 1), ("{id}{code}{text}", 2)):
        output = tmp_path / f"out{bad}"
        summary = score_locally(tmp_path / "in", output, f"input.text='{text}'", *ALL_ALLOWED)
        assert summary["statuses"] == {"decode_error": bad, "ok": 3 - bad}


NULLS = pa.array(
    [[{"y": [None] * 5}], None, [{"y": [None]}]], pa.list_(pa.struct([("y", pa.list_(pa.null()))]))
)
HARD_TO_COMPARE = {
    "not a number": pa.array([float("nan"), -0.0, None]),
    "not a number, nested": pa.array([[{"x": float("nan")}], [], None]),
    "no UTF-8": pa.array([b"caf\xe9", b"ok", None], pa.binary()).view(pa.string()),
    "a dictionary without UTF-8": pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1], pa.int32()),
        pa.array([b"\xff", b"ok"], pa.binary()).view(pa.string()),
    ),
    "views": pa.array(["a string of more than twelve bytes", "short", None], pa.string_view()),
    "views of bytes": pa.array([b"\xff" * 20, b"", None], pa.binary_view()),
    "nested lists of nothing": NULLS,
    "views in structs": pa.array(
        [{"a": "x" * 20}, None, {"a": "y"}], pa.struct([("a", pa.string_view())])
    ),
    "views in structs in lists": pa.array(
        [[{"a": "x"}], [], None], pa.list_(pa.struct([("a", pa.string_view())]))
    ),
    "views in maps": pa.array([[("a", b"\xff")], [], None], pa.map_(pa.string(), pa.binary_view())),
    "views without UTF-8": pa.array([b"\xff" * 20, b"", None], pa.binary_view()).view(
        pa.string_view()
    ),
    "views of lists": pa.array([[1, None], [], None], pa.list_view(pa.int8())),
}


@pytest.mark.parametrize("name", HARD_TO_COMPARE)
def test_any_kept_column_is_written_and_proven(
    tmp_path: Path, score_locally: ScoreLocally, read_output: ReadOutput, name: str
) -> None:
    values = HARD_TO_COMPARE[name]
    # there is something that Arrow writes only one by one, and something that it writes only whole
    groups = {"row_group_size": 1} if name == "views in structs in lists" else {}
    write(tmp_path / "in/a.parquet", pa.table({"text": texts(3), "x": values}), **groups)
    summary = score_locally(tmp_path / "in", tmp_path / "out", "units.rows=2")
    assert summary["rows"]["written"] == 3
    verdict = verify(str(tmp_path / "out"), deep=True)
    assert verdict.problems == []
    assert verdict.rescored is not None
    assert verdict.rescored.rows == 3


def test_the_proof_finds_a_kept_value_that_is_another(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    for name, value in (("a", float("nan")), ("b", 1.0)):
        folder = tmp_path / name
        write(folder / "in/a.parquet", pa.table({"text": texts(1), "x": [value]}))
        score_locally(folder / "in", folder / "out")
    part = "out/a/000000000000.parquet"
    wrong = pq.read_table(tmp_path / "a" / part)
    wrong = wrong.set_column(0, "x", pa.array([1.0]))
    key = {FOOTER_KEY: pq.read_metadata(tmp_path / "a" / part).metadata[FOOTER_KEY]}
    pq.write_table(wrong.replace_schema_metadata(key), tmp_path / "a" / part)
    assert (
        "'x' is not what the input gives" in verify(str(tmp_path / "a/out"), deep=True).problems[0]
    )


def test_a_unit_that_arrow_cannot_write_is_set_aside(
    tmp_path: Path, score_locally: ScoreLocally, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_mlc.scoring import parts

    real = parts.serialize

    def refuse(table: pa.Table, *args: Any) -> bytes:
        if table["row"][0].as_py() == 1:
            raise pa.ArrowNotImplementedError("Lists with non-zero length null components")
        return real(table, *args)

    monkeypatch.setattr(parts, "serialize", refuse)
    write(tmp_path / "in/a.parquet", pa.table({"text": texts(5)}))
    score_locally(tmp_path / "in", tmp_path / "out", "units.rows=2", *ALL_ALLOWED)
    (failure,) = failures(tmp_path / "out")
    assert (failure["first_row"], failure["rows"]) == (1, 2)
    assert failure["reason"] == "write: Lists with non-zero length null components"
    assert verify(str(tmp_path / "out")).holds
    monkeypatch.undo()
    assert score_locally(tmp_path / "in", tmp_path / "out", "units.rows=2")["rows"]["written"] == 5


def test_a_file_name_that_is_not_utf8_is_refused_in_one_line(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    write(tmp_path / "in/a.parquet", pa.table({"text": texts(5)}))
    (tmp_path / "in/a.parquet").rename(tmp_path / "in" / os.fsdecode(b"caf\xe9.parquet"))
    with pytest.raises(DataError, match="is not UTF-8"):
        score_locally(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match=r"is not UTF-8.*rename it"):
        score_locally([str(next((tmp_path / "in").iterdir()))], tmp_path / "out")


def test_an_error_is_one_line_whatever_a_file_is_called(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    write(tmp_path / "in/a\n\x1b[31mb.parquet", pa.table({"text": [1], "x" * 900: [1]}))
    with pytest.raises(DataError) as caught:
        score_locally(tmp_path / "in", tmp_path / "out")
    assert str(caught.value).isprintable()
    write(tmp_path / "in/c.parquet", pa.table({"text": ["x"], "x" * 900: [1]}))
    with pytest.raises(DataError) as caught:
        score_locally(tmp_path / "in", tmp_path / "out", "output.keep=[nope]")
    assert len(str(caught.value)) < 600


def test_a_reason_is_one_line_whatever_a_column_is_called(
    tmp_path: Path, score_locally: ScoreLocally
) -> None:
    nested = pa.array([[(1, 2)]], pa.map_(pa.int32(), pa.int32()))
    write(tmp_path / "in/a.parquet", pa.table({"text": texts(1), "a\nb": [1]}))
    write(tmp_path / "in/b.parquet", pa.table({"text": texts(1), "a\nb": nested}))
    score_locally(tmp_path / "in", tmp_path / "out", *ALL_ALLOWED)
    (failure,) = failures(tmp_path / "out")
    assert failure["source"] == "b.parquet"
    assert failure["reason"].isprintable()


def test_a_path_whose_value_a_column_cannot_hold_sets_its_file_aside_by_name(
    tmp_path: Path, score_locally: ScoreLocally, read_output: ReadOutput
) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    numbered = {"text": texts(3), "k": pa.array([1, 2, 3])}
    write(corpus / "a.parquet", pa.table(numbered))
    for folder in ("k=7", "k=seven", "=v"):  # `=v` names no column
        (corpus / folder).mkdir()
        write(corpus / folder / "b.parquet", pa.table({"text": texts(3)}))
    score_locally(corpus, output, "limits.bad_rows=100", "limits.bad_files=1")
    (failure,) = failures(output)
    assert failure["source"] == "k=seven/b.parquet"
    assert failure["reason"] == "schema: the path says k=seven, but column 'k' is int64"
    found = read_output(output)
    assert found["k"].to_pylist() == [None] * 3 + [1, 2, 3] + [7] * 3
    assert verify(str(output), deep=True).holds
