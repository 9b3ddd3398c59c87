"""The proof: it holds for a good run, and each kind of tampering is found and named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc import synthetic
from ray_mlc.errors import UsageError
from ray_mlc.scoring.parts import FOOTER_KEY
from ray_mlc.scoring.verify import FileAccount, Verdict, progress_of, verify

PART = "part-00001/000000000025.parquet"
TWIN = "part-00001/000000000000.parquet"
"""Another part with as many rows."""


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run that the test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a part's rows and keep its footer key."""
    table = pq.ParquetFile(path).read()
    key = {FOOTER_KEY: pq.read_metadata(path).metadata[FOOTER_KEY]}
    pq.write_table(change(table).replace_schema_metadata(key), path)


def judge(output: Path, *, deep: bool = False) -> Verdict:
    return verify(str(output), deep=deep)


def account(verdict: Verdict, source: str = "part-00001.parquet") -> FileAccount:
    (found,) = [item for item in verdict.files if item.source == source]
    return found


@pytest.mark.parametrize("deep", [False, True])
def test_a_good_run_holds(tiny_run: Path, deep: bool) -> None:
    verdict = judge(tiny_run, deep=deep)
    assert (verdict.holds, verdict.complete, verdict.problems) == (True, True, [])
    rows = verdict.to_dict()["rows"]
    assert rows == {
        "planned": 240,
        "written": 240,
        "set_aside": 0,
        "duplicated": 0,
        "missing": 0,
    }
    assert [item.source for item in verdict.files] == [
        f"part-{number:05d}.parquet" for number in range(3)
    ]


def test_a_missing_part_is_missing_rows_of_its_file(run_copy: Path) -> None:
    (run_copy / PART).unlink()
    verdict = judge(run_copy)
    assert not verdict.holds
    assert (account(verdict).written, account(verdict).missing) == (55, 25)
    assert [item.source for item in verdict.files if not item.holds] == ["part-00001.parquet"]


def test_an_unfinished_run_is_not_complete(run_copy: Path) -> None:
    (run_copy / "_SUCCESS").unlink()
    assert not judge(run_copy).complete


def test_rows_that_are_to_come_are_told_from_rows_that_are_gone(run_copy: Path) -> None:
    (run_copy / PART).unlink()
    assert not judge(run_copy).is_on_its_way  # it was complete
    (run_copy / "_SUCCESS").unlink()
    verdict = judge(run_copy)
    assert verdict.is_on_its_way
    assert not verdict.holds
    (run_copy / "part-00000/000000000099.parquet").write_bytes(b"PAR1")
    assert not judge(run_copy).is_on_its_way


@pytest.mark.parametrize("keep", [0, 10, -5])
def test_a_truncated_part_is_named(run_copy: Path, keep: int) -> None:
    path = run_copy / PART
    path.write_bytes(path.read_bytes()[:keep])
    verdict = judge(run_copy)
    assert not verdict.holds
    assert [problem.split(": ")[0] for problem in verdict.problems] == [PART]
    assert "cannot be read" in verdict.problems[0]
    assert account(verdict).missing == 25


def test_a_part_of_another_run_is_named(
    run_copy: Path, tiny_corpus: Path, tmp_path: Path, score_locally: Callable[..., Any]
) -> None:
    other = tmp_path / "other"
    score_locally(tiny_corpus, other, "output.k=7")
    shutil.copy(other / PART, run_copy / PART)
    verdict = judge(run_copy)
    assert not verdict.holds
    assert [PART in problem for problem in verdict.problems] == [True]
    assert "belongs to another run" in verdict.problems[0]


def test_a_part_replaced_by_another_part_of_the_run_is_named(run_copy: Path) -> None:
    shutil.copy(run_copy / TWIN, run_copy / PART)
    verdict = judge(run_copy)
    assert not verdict.holds
    assert verdict.problems == [f"{PART}: is the part of part-00001.parquet from row 0"]


def test_an_extra_part_is_named_and_counts_as_rows_that_are_there_twice(run_copy: Path) -> None:
    extra = "part-00001/000000000026.parquet"
    shutil.copy(run_copy / PART, run_copy / extra)
    verdict = judge(run_copy)
    assert not verdict.holds
    assert verdict.problems == [f"{extra}: is in no plan"]
    assert account(verdict).duplicated == 25


def test_a_parquet_file_of_another_program_is_named(run_copy: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), run_copy / "part-00001/theirs.parquet")
    assert judge(run_copy).problems == ["part-00001/theirs.parquet: is not a part of ray-mlc"]
    pq.write_table(pa.table({"a": [1]}), run_copy / PART)
    assert f"{PART}: is not a part of ray-mlc" in judge(run_copy).problems
    assert account(judge(run_copy)).missing == 25


@pytest.mark.parametrize("deep", [False, True])
def test_dropped_rows_are_counted(run_copy: Path, deep: bool) -> None:
    rewrite(run_copy / PART, lambda table: table.slice(0, 20))
    verdict = judge(run_copy, deep=deep)
    assert not verdict.holds
    assert verdict.problems == [f"{PART}: has 20 rows, 25 were planned"]
    assert account(verdict).missing == 5


def test_rows_in_another_order_are_found_by_a_deep_look(run_copy: Path) -> None:
    order = pa.array([1, 0, *range(2, 25)])
    rewrite(run_copy / PART, lambda table: table.take(order))
    assert judge(run_copy).holds  # footers alone cannot tell
    verdict = judge(run_copy, deep=True)
    assert not verdict.holds
    assert verdict.problems == [f"{PART}: its rows are not those of its unit, in order"]


def test_rows_of_another_file_are_found_by_a_deep_look(run_copy: Path) -> None:
    def rename(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("source")
        other = pa.array(["part-00002.parquet"] * len(table)).dictionary_encode()
        return table.set_column(index, "source", other)

    rewrite(run_copy / PART, rename)
    assert judge(run_copy, deep=True).problems == [f"{PART}: its source is not part-00001.parquet"]


def test_a_row_that_is_there_twice_is_found_by_a_deep_look(run_copy: Path) -> None:
    order = pa.array([0, 0, *range(2, 25)])
    rewrite(run_copy / PART, lambda table: table.take(order))
    assert not judge(run_copy, deep=True).holds


def test_a_good_runs_sample_scores_as_it_did(tiny_run: Path) -> None:
    again = judge(tiny_run, deep=True).rescored
    assert again is not None
    assert again.rows >= 200
    assert (again.cells, again.flips) == (again.rows * len(synthetic.LABELS), 0)
    assert again.engine == "torch float32 on cpu"
    assert again.max_difference <= 1e-6
    assert judge(tiny_run).rescored is None


def change_column(name: str, change: Callable[[list[Any]], list[Any]]) -> Any:
    def apply(table: pa.Table) -> pa.Table:
        index, field = table.schema.get_field_index(name), table.schema.field(name)
        return table.set_column(index, field, pa.array(change(table[name].to_pylist()), field.type))

    return apply


@pytest.mark.parametrize(
    ("column", "change", "problem"),
    [
        ("score_law", lambda v: [x and x + 1e-3 for x in v], r"scores differ by 0\.001 from"),
        ("labels", lambda v: [x and [] for x in v], "labels are not those that its scores give"),
        ("id", lambda v: v[::-1], "its column 'id' is not what the input gives"),
        ("n_tokens", lambda v: [x and x + 1 for x in v], "its column 'n_tokens' is not what"),
        ("n_windows", lambda v: [9] * len(v), "its column 'n_windows' is not what the input"),
        ("status", lambda v: ["empty"] * len(v), "its column 'status' is not what the input gives"),
    ],
)
def test_rows_that_the_model_would_not_give_are_found_by_scoring_again(
    run_copy: Path, column: str, change: Any, problem: str
) -> None:
    for part in run_copy.glob("part-*/*.parquet"):
        rewrite(part, change_column(column, change))
    assert judge(run_copy).holds  # footers alone cannot tell
    verdict = judge(run_copy, deep=True)
    assert not verdict.holds
    assert all(re.search(problem, text) for text in verdict.problems)


def test_another_model_cannot_vouch_for_a_run(tiny_run: Path, make_model: Any) -> None:
    other = make_model(seed=3)
    with pytest.raises(UsageError, match=r"is not the model of the run .* with --model"):
        verify(str(tiny_run), deep=True, model=str(other))


def test_the_sample_follows_from_the_seed(tiny_run: Path) -> None:
    twice = [verify(str(tiny_run), deep=True, sample=20, seed=1).rescored for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0] is not None
    assert twice[0].rows >= 20


@pytest.mark.parametrize("format_", ["sparse", "dense"])
def test_other_forms_are_scored_again_too(
    tiny_corpus: Path, tmp_path: Path, score_locally: Callable[..., Any], format_: str
) -> None:
    settings = (f"output.format={format_}", "output.floor=0.3", "output.k=2")
    score_locally(tiny_corpus, tmp_path / "out", *settings)
    verdict = judge(tmp_path / "out", deep=True)
    assert (verdict.holds, verdict.problems) == (True, [])


def test_several_problems_are_all_named(run_copy: Path) -> None:
    (run_copy / TWIN).unlink()
    (run_copy / PART).write_bytes(b"PAR1")
    pq.write_table(pa.table({"a": [1]}), run_copy / "theirs.parquet")
    verdict = judge(run_copy, deep=True)
    assert {problem.split(": ")[0] for problem in verdict.problems} == {PART, "theirs.parquet"}
    assert account(verdict).missing == 50


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["row"]),
        lambda table: table.drop_columns(["score_law"]),
        lambda table: table.append_column("more", pa.nulls(len(table))),
    ],
)
def test_a_part_with_other_columns_is_named(run_copy: Path, change: Any) -> None:
    rewrite(run_copy / PART, change)
    assert judge(run_copy, deep=True).problems == [f"{PART}: has other columns than the run"]


def test_a_footer_key_that_only_looks_like_ours_is_named(run_copy: Path) -> None:
    table = pq.ParquetFile(run_copy / PART).read()
    pq.write_table(table.replace_schema_metadata({"ray_mlc": '{"a": 1}'}), run_copy / PART)
    assert judge(run_copy, deep=True).problems == [f"{PART}: is not a part of ray-mlc"]


def test_a_label_that_the_model_does_not_have_is_named(run_copy: Path) -> None:
    for part in run_copy.glob("part-*/*.parquet"):
        rewrite(part, change_column("labels", lambda v: [x and [*x, "nonsense"] for x in v]))
    problems = judge(run_copy, deep=True).problems
    assert problems
    assert all("label that the model does not have: 'nonsense'" in text for text in problems)


def test_an_input_that_was_changed_or_removed_since_is_left_out_of_the_sample(
    tiny_corpus: Path, tmp_path: Path, score_locally: Callable[..., Any]
) -> None:
    corpus, output = shutil.copytree(tiny_corpus, tmp_path / "in"), tmp_path / "out"
    score_locally(corpus, output)
    (corpus / "part-00000.parquet").unlink()
    table = pq.read_table(corpus / "part-00001.parquet")
    pq.write_table(table.take(list(range(80))[::-1]), corpus / "part-00001.parquet")
    verdict = judge(output, deep=True)
    assert (verdict.holds, verdict.problems) == (True, [])
    assert verdict.rescored is not None
    assert verdict.rescored.left_out == 6
    assert verdict.rescored.rows > 0


def test_status_notices_a_part_that_was_removed_after_success(run_copy: Path) -> None:
    whole = progress_of(str(run_copy))
    assert (whole["state"], whole["missing"], whole["extra"]) == ("complete", [], [])
    (run_copy / PART).unlink()
    found = progress_of(str(run_copy))
    assert (found["state"], found["missing"], found["extra"]) == ("damaged", [PART], [])
    assert found["rows"]["written"] < found["rows"]["planned"]
    (run_copy / "_SUCCESS").unlink()
    found = progress_of(str(run_copy))  # of an unfinished run no part is missing: it is to come
    assert (found["state"], found["missing"]) == ("unfinished", [])


@pytest.mark.parametrize("complete", [True, False])
def test_status_notices_parquet_files_that_no_plan_knows(run_copy: Path, complete: bool) -> None:
    shutil.copy(run_copy / PART, run_copy / "part-00001/copy of 0.parquet")
    (run_copy / "part-00001/notes.txt").write_text("no part, and no Parquet")
    if not complete:
        (run_copy / "_SUCCESS").unlink()
    found = progress_of(str(run_copy))
    assert (found["state"], found["extra"]) == ("damaged", ["part-00001/copy of 0.parquet"])


def test_status_reads_no_footer_and_lists_once(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a footer was read")

    monkeypatch.setattr("ray_mlc.scoring.verify.open_parquet", never)
    for part in run_copy.glob("**/*.parquet"):
        part.write_bytes(b"")
    assert progress_of(str(run_copy))["state"] == "complete"


def test_a_unit_that_was_set_aside_is_not_missing(
    tiny_corpus: Path, tmp_path: Path, score_locally: Callable[..., Any]
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "in"))
    damaged = bytearray((corpus / "part-00001.parquet").read_bytes())
    damaged[4:400] = bytes(396)
    (corpus / "part-00001.parquet").write_bytes(damaged)
    out = tmp_path / "out"
    summary = score_locally(corpus, out, "limits.bad_rows=0.9", "limits.bad_files=3")
    assert summary["rows"]["set_aside"] > 0
    assert progress_of(str(out))["state"] == "complete"
    (out / PART.replace("00001", "00000")).unlink()
    assert progress_of(str(out))["missing"] == [PART.replace("00001", "00000")]
