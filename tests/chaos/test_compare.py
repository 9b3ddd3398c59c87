"""The comparison itself can fail: whatever is wrong with an output, it is reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chaos.compare import compare, compare_unfinished
from chaos.trial import Moment, Result, Trial
from chaos.workload import Workload
from ray_mlc.scoring.parts import FOOTER_KEY

pytestmark = pytest.mark.chaos

LARGE = "large/000000000000.parquet"
OTHER = "large/000000000010.parquet"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def output(workload: Workload, tmp_path: Path) -> Path:
    """A copy of the undisturbed output, to be spoiled."""
    shutil.copytree(workload.folder / "expected", tmp_path / "out")
    return tmp_path / "out"


def rewrite(path: Path, change: Change) -> None:
    """Change the rows of a part, and leave its footer as it is."""
    table = pq.read_table(path, partitioning=None)
    key = {FOOTER_KEY: pq.read_metadata(path).metadata[FOOTER_KEY]}
    pq.write_table(change(table).replace_schema_metadata(key), path)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with other values in a column."""
    index = table.column_names.index(name)
    return table.set_column(index, table.schema.field(name), values)


def drop_last_row(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows - 1)


def double_last_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(table.num_rows - 1)])


def swap_two_rows(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def swap_two_texts_answers(table: pa.Table) -> pa.Table:
    """Keys stay in order; what was kept of two rows changes places."""
    return with_column(table, "number", table["number"].take([1, 0, *range(2, table.num_rows)]))


def move_a_score(table: pa.Table) -> pa.Table:
    name = next(name for name in table.column_names if name.startswith("score_"))
    scores = table[name].to_numpy(zero_copy_only=False).copy()
    scores[np.flatnonzero(~np.isnan(scores))[0]] += 1e-4
    return with_column(table, name, pa.array(scores, pa.float32(), from_pandas=True))


def lose_a_score(table: pa.Table) -> pa.Table:
    name = next(name for name in table.column_names if name.startswith("score_"))
    scores = table[name].to_pylist()
    scores[1] = None
    return with_column(table, name, pa.array(scores, pa.float32()))


def lose_a_column(table: pa.Table) -> pa.Table:
    return table.drop_columns(["number"])


def test_the_undisturbed_output_equals_itself(workload: Workload, output: Path) -> None:
    found = compare(workload.expected, output)
    assert found.problems == []
    assert (found.lost, found.duplicated) == (0, 0)
    assert found.expected == workload.expected.rows == 360
    assert workload.parts > 30
    assert compare_unfinished(workload.expected, output) == []


@pytest.mark.parametrize(
    ("change", "said", "lost", "duplicated"),
    [
        (drop_last_row, "has 9 rows, expected 10", 1, 0),
        (double_last_row, "has 11 rows, expected 10", 0, 1),
        (swap_two_rows, "its rows are others, or in another order", 0, 0),
        (swap_two_texts_answers, "number: has other values", 0, 0),
        (move_a_score, "differs by 1.00e-04", 0, 0),
        (lose_a_score, "other rows have no score", 0, 0),
        (lose_a_column, "has the columns", 0, 0),
    ],
)
def test_a_changed_part_is_reported(
    change: Change, said: str, lost: int, duplicated: int, workload: Workload, output: Path
) -> None:
    rewrite(output / LARGE, change)
    found = compare(workload.expected, output)
    assert any(text.startswith(LARGE) and said in text for text in found.problems)
    assert (found.lost, found.duplicated) == (lost, duplicated)
    assert any(text.startswith(LARGE) for text in compare_unfinished(workload.expected, output))


def test_a_missing_part_is_reported_with_its_rows(workload: Workload, output: Path) -> None:
    (output / LARGE).unlink()
    found = compare(workload.expected, output)
    assert f"{LARGE}: is missing" in found.problems
    assert (found.lost, found.duplicated) == (10, 0)
    # but it is no fault of a run that is still at work
    assert compare_unfinished(workload.expected, output) == []


def test_a_doubled_part_is_reported_with_its_rows(workload: Workload, output: Path) -> None:
    twice = "large/000000000005.parquet"
    shutil.copy(output / LARGE, output / twice)
    found = compare(workload.expected, output)
    assert f"{twice}: is too much" in found.problems
    assert (found.lost, found.duplicated) == (0, 10)
    assert compare_unfinished(workload.expected, output) == [f"{twice}: is too much"]


def test_a_part_in_the_place_of_another_is_reported(workload: Workload, output: Path) -> None:
    shutil.copy(output / LARGE, output / OTHER)
    found = compare(workload.expected, output)
    assert (found.lost, found.duplicated) == (10, 10)


def test_half_a_part_is_reported(workload: Workload, output: Path) -> None:
    data = (output / LARGE).read_bytes()
    (output / LARGE).write_bytes(data[: len(data) // 2])
    assert f"{LARGE}: cannot be read" in compare(workload.expected, output).problems
    assert compare_unfinished(workload.expected, output) == [f"{LARGE}: cannot be read"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("large/notes.txt", "is too much"),
        ("_SUCCESS.tmp", "is too much"),
        ("_ray_mlc/tmp/0123.tmp", "was left behind"),
        ("_ray_mlc/lease.json", "was left behind"),
        ("_ray_mlc/notes.json", "is too much"),
    ],
)
def test_anything_extra_is_reported(name: str, said: str, workload: Workload, output: Path) -> None:
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_bytes(b"x")
    assert f"{name}: {said}" in compare(workload.expected, output).problems


@pytest.mark.parametrize("name", ["_SUCCESS", "_ray_mlc/summary.json"])
def test_a_missing_file_of_the_run_is_reported(name: str, workload: Workload, output: Path) -> None:
    (output / name).unlink()
    assert f"{name}: is missing" in compare(workload.expected, output).problems


def test_a_list_of_inputs_may_have_another_name_but_not_company(
    workload: Workload, output: Path
) -> None:
    (listed,) = (output / "_ray_mlc/runs/1").glob("files-*.arrow")
    shutil.copy(listed, listed.with_name("files-0123456789abcdef.arrow"))
    problems = compare(workload.expected, output, proof=False).problems
    assert problems == ["_ray_mlc/runs/1/files-….arrow (2): is too much"]
    listed.unlink()  # from here on the one of another storage
    assert compare(workload.expected, output, proof=False).problems == []


def test_a_part_that_is_written_again_is_counted(workload: Workload, tmp_path: Path) -> None:
    trial = Trial(workload, "self-test", 0, tmp_path / "trial")
    shutil.copytree(workload.folder / "expected", tmp_path / "trial" / "out")
    trial.struck("nobody")
    part = tmp_path / "trial" / "out" / LARGE
    data = part.read_bytes()
    part.unlink()
    part.write_bytes(data)
    trial.log.write_text(f"1.0 1 {LARGE}\n2.0 2 {LARGE}\n3.0 1 {OTHER}\n")
    trial.close()
    trial.abandon()
    assert trial.result.problems == []
    assert (trial.result.rewritten, trial.result.committed_twice) == (1, 1)


def test_a_fault_counts_as_between_only_after_the_first_and_before_the_last_commit() -> None:
    def fell(committed: int | None) -> bool:
        return Result("x", 0, injected=True, committed=committed, parts=40).between

    assert [fell(count) for count in (0, 1, 39, 40, None)] == [False, True, True, False, False]


def test_moments_come_from_the_seed_and_most_are_between(
    workload: Workload, tmp_path: Path
) -> None:
    def moment(seed: int, attempt: int) -> Moment:
        trial = Trial(workload, "self-test", seed, tmp_path / f"{seed}-{attempt}")
        try:
            return trial.draw_moment(local=True)
        finally:
            trial.abandon()

    moments = [moment(seed, 0) for seed in range(24)]
    assert moments == [moment(seed, 1) for seed in range(24)]
    counts = [found.parts for found in moments if found.parts is not None]
    assert len(counts) == 20
    assert min(counts) >= 1
    assert max(counts) < workload.parts
    assert len(set(counts)) > 10
