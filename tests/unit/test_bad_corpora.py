"""Corpora from the wild: what cannot be read is set aside by name, the rest is scored."""

from __future__ import annotations

import json
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
from ray_mlc.scoring.parts import Receipt
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
