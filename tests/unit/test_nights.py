"""A run that goes on for more than one night: new files, repaired files, a schema that stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.displays import Spoken

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob
from ray_mlc.corpus.footers import read_footers
from ray_mlc.corpus.listing import Listing, list_corpus
from ray_mlc.errors import DataError, LimitError, RunMismatchError
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.ledger import _Planner, read_run
from ray_mlc.scoring.verify import verify
from ray_mlc.storage import open_storage

MakeJob = Callable[..., ScoreJob]
ReadOutput = Callable[[Path], pa.Table]


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """A corpus that the test may change."""
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


@pytest.fixture
def tag(score_job: MakeJob, corpus: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Scores the corpus into `out` and returns what was said."""

    def run(*overrides: str, **options: bool) -> list[str]:
        display = Spoken()
        score(score_job(corpus, tmp_path / "out", *overrides), LocalBackend(), display, **options)
        return display.said

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def identities(output: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every part: one that was written again has others."""
    return {
        str(path.relative_to(output)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in output.glob("**/*.parquet")
    }


def sources(table: pa.Table) -> dict[str, int]:
    names = table["source"].to_pylist()
    return {name: names.count(name) for name in sorted(set(names))}


def test_new_files_join_as_the_next_night_and_old_parts_stay(
    corpus: Path, out: Path, tag: Callable[..., list[str]], read_output: ReadOutput
) -> None:
    tag()
    before = identities(out)
    recorded = (out / "_ray_mlc/run.json").read_bytes()
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    said = tag(add_new=True)
    assert "note: 1 new file(s) join the run, such as tuesday.parquet" in said
    after = identities(out)
    assert before.items() <= after.items()
    assert {part.split("/")[0] for part in after.keys() - before.keys()} == {"tuesday"}
    assert (out / "_ray_mlc/run.json").read_bytes() == recorded
    table = read_output(out)
    assert sources(table) == dict.fromkeys(
        ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "tuesday.parquet"], 80
    )
    rows = table.filter(pa.compute.equal(table["source"], "tuesday.parquet"))
    twin = table.filter(pa.compute.equal(table["source"], "part-00000.parquet"))
    assert rows["labels"].to_pylist() == twin["labels"].to_pylist()
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.complete, verdict.total("written")) == (True, True, 320)
    summary = json.loads((out / "_ray_mlc/summary.json").read_text())
    assert summary["rows"] == {"planned": 320, "written": 320, "set_aside": 0}
    assert summary["nights"] == 2
    assert summary["this_process"]["rows"] == 80


def test_three_nights_account_for_every_row(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    tag()
    for night in ("b", "a", "0"):  # in an order that is not that of their names
        shutil.copy(corpus / "part-00001.parquet", corpus / f"{night}.parquet")
        tag(add_new=True)
    run = read_run(open_storage(str(out)))
    assert [night.number for night in run.nights] == [1, 2, 3, 4]
    assert run.plan.sources[-3:] == ["b.parquet", "a.parquet", "0.parquet"]
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.total("written")) == (True, 480)


def test_without_new_files_add_new_does_nothing(out: Path, tag: Callable[..., list[str]]) -> None:
    tag()
    said = [line for line in tag(add_new=True) if not line.endswith("…")]
    assert said == ["note: there are no new files", "complete already: nothing to do"]
    assert not (out / "_ray_mlc/runs/2").exists()
    assert (out / "_SUCCESS").exists()


def test_the_first_command_may_say_add_new_already(
    out: Path, tag: Callable[..., list[str]]
) -> None:
    tag(add_new=True)
    assert verify(str(out)).complete


def test_new_files_stay_out_unless_asked_for(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    tag()
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    said = tag()
    assert any("not part of this run, such as tuesday.parquet: --add-new" in line for line in said)
    assert verify(str(out)).total("planned") == 240


def test_success_goes_first_when_a_night_is_added(
    corpus: Path, out: Path, score_job: MakeJob, tag: Callable[..., list[str]]
) -> None:
    tag()

    def killed(*args: Any, **options: Any) -> None:
        assert not (out / "_SUCCESS").exists()
        raise RuntimeError("killed")

    class Killed(LocalBackend):
        """Dies before the new night has written anything."""

        def process(self, *args: Any, **options: Any) -> Any:
            killed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_mlc.scoring.ledger.write_night", killed)
        shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
        with pytest.raises(RuntimeError, match="killed"):
            score(score_job(corpus, out), LocalBackend(), Display(quiet=True), add_new=True)
    tag()  # no new night is planned: the first one is complete again
    assert (out / "_SUCCESS").exists()
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    with pytest.raises(RuntimeError, match="killed"):
        score(score_job(corpus, out), Killed(), Display(quiet=True), add_new=True)
    assert not (out / "_SUCCESS").exists()
    tag()  # the night is planned: the plain command goes on with it
    assert verify(str(out)).total("written") == 320
    assert (out / "_SUCCESS").exists()


def test_a_night_whose_planning_was_killed_is_planned_again(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    tag()
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    tag(add_new=True)
    for part in (out / "tuesday").iterdir():
        part.unlink()
    (out / "_ray_mlc/runs/2/night.json").unlink()  # what is created last was not created
    (out / "_SUCCESS").unlink()
    tag(add_new=True)
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.complete, verdict.total("written")) == (True, True, 320)


def test_a_run_killed_before_its_first_plan_was_valid_starts_with_its_record(
    out: Path, tag: Callable[..., list[str]]
) -> None:
    tag()
    recorded = (out / "_ray_mlc/run.json").read_bytes()
    for path in [*out.glob("part-*/*"), out / "_ray_mlc/runs/1/night.json", out / "_SUCCESS"]:
        path.unlink()
    tag()
    assert (out / "_ray_mlc/run.json").read_bytes() == recorded
    assert verify(str(out), deep=True).complete


def test_a_run_killed_before_its_first_plan_has_the_units_of_an_undisturbed_one(
    tmp_path: Path, score_job: MakeJob
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(synthetic.documents(240, seed=3), tmp_path / "in/a.parquet")
    job = score_job(tmp_path / "in", tmp_path / "out", "units.rows=auto")
    score(job, LocalBackend(), Display(quiet=True))
    parts = sorted((tmp_path / "out").glob("a/*"))
    assert len(parts) == 8
    for path in [*parts, *(tmp_path / "out").glob("_ray_mlc/runs/1/*"), tmp_path / "out/_SUCCESS"]:
        path.unlink()
    score(job, LocalBackend(), Display(quiet=True))
    assert sorted((tmp_path / "out").glob("a/*")) == parts


def test_a_new_column_is_left_out_and_a_missing_one_is_null(
    corpus: Path, out: Path, tag: Callable[..., list[str]], read_output: ReadOutput
) -> None:
    tag()
    table = pq.read_table(corpus / "part-00000.parquet")
    table = table.drop_columns(["url"]).append_column("lang", pa.array(["en"] * 80))
    pq.write_table(table, corpus / "tuesday.parquet")
    said = tag(add_new=True)
    assert "note: the run has no column lang: left out of the new files' parts" in said
    result = read_output(out)
    assert "lang" not in result.column_names
    urls = result.filter(pa.compute.equal(result["source"], "tuesday.parquet"))["url"]
    assert urls.null_count == 80
    schemas = {pq.read_schema(part).remove_metadata() for part in out.glob("**/*.parquet")}
    assert len(schemas) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("id", pa.array([b"\xff"] * 80)), "column 'id' is binary, string in this run"),
        (("text", pa.array([1] * 80)), "text column 'text' is int64, expected string"),
        (("url", pa.array([[1]] * 80)), "column 'url' is list<"),
    ],
)
def test_a_file_that_does_not_fit_the_runs_columns_is_set_aside(
    corpus: Path, out: Path, tag: Callable[..., list[str]], change: Any, reason: str
) -> None:
    tag()
    table = pq.read_table(corpus / "part-00000.parquet")
    name, values = change
    table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, corpus / "tuesday.parquet")
    with pytest.raises(LimitError, match="80 bad rows"):
        tag(add_new=True)
    (failure,) = json.loads((out / "_ray_mlc/failures.json").read_text())
    assert failure["source"] == "tuesday.parquet"
    assert failure["reason"].startswith("schema: ")
    assert reason in failure["reason"]
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.complete, verdict.total("set_aside")) == (True, False, 80)


def test_a_broken_file_that_was_repaired_is_scored_by_the_next_run(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    broken = corpus / "part-00001.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    with pytest.raises(LimitError):
        tag()
    before = identities(out)
    with pytest.raises(LimitError):
        tag()  # still broken: no new night
    assert not (out / "_ray_mlc/runs/2").exists()
    broken.write_bytes(whole)
    said = tag()
    assert any("are planned again, such as part-00001.parquet" in line for line in said)
    assert before.items() <= identities(out).items()
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.complete, verdict.total("written")) == (True, True, 240)
    assert json.loads((out / "_ray_mlc/failures.json").read_text()) == []


def test_a_file_of_which_no_unit_could_be_read_may_be_replaced(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    broken = corpus / "part-00001.parquet"
    whole = broken.read_bytes()
    damaged = bytearray(whole)
    damaged[4:-2000] = bytes(len(damaged) - 2004)  # the footer stays, the pages are lost
    broken.write_bytes(damaged)
    with pytest.raises(LimitError):
        tag()
    table = pq.read_table(corpus / "part-00000.parquet").slice(0, 30)
    pq.write_table(table, broken)
    tag()
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.complete, verdict.total("written")) == (True, True, 190)


def test_a_changed_file_is_refused_but_by_add_new_once_all_of_it_is_written(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    tag()
    os.utime(corpus / "part-00001.parquet", ns=(1, 1))
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    with pytest.raises(RunMismatchError, match=r"^part-00001\.parquet: changed since"):
        tag()
    said = tag(add_new=True)
    assert any("1 file(s) have changed since they were scored" in line for line in said)
    assert verify(str(out)).total("written") == 320
    night = json.loads((out / "_ray_mlc/runs/2/night.json").read_text())
    assert night["changed"] == ["part-00001.parquet"]
    (out / "part-00001/000000000000.parquet").unlink()
    with pytest.raises(RunMismatchError, match=r"^part-00001\.parquet: changed since"):
        tag(add_new=True)  # its rows would be of two versions


def test_a_new_file_that_shares_a_part_folder_with_a_planned_one_is_refused(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    (corpus / "a").mkdir()
    shutil.copy(corpus / "part-00000.parquet", corpus / "a/b.parquet")
    tag()
    shutil.rmtree(corpus / "a")  # gone from the listing, but not from the run
    (corpus / "a.parquet").mkdir()
    shutil.copy(corpus / "part-00000.parquet", corpus / "a.parquet/b.parquet")
    with pytest.raises(DataError, match=r"would share the part folder a/b/ with a/b\.parquet"):
        tag(add_new=True)
    assert verify(str(out)).holds


def test_hive_values_of_a_new_night_must_fit_the_type_of_the_first(
    corpus: Path, out: Path, tag: Callable[..., list[str]], read_output: ReadOutput
) -> None:
    for day in ("1", "2", "later"):
        (corpus / f"day={day}").mkdir()
    (corpus / "part-00000.parquet").rename(corpus / "day=1/a.parquet")
    tag()
    shutil.copy(corpus / "day=1/a.parquet", corpus / "day=2/a.parquet")
    shutil.copy(corpus / "day=1/a.parquet", corpus / "day=later/a.parquet")
    with pytest.raises(LimitError, match="day=later"):
        tag(add_new=True)
    assert sources(read_output(out))["day=2/a.parquet"] == 80
    days = read_output(out)["day"]
    assert days.type == pa.int64()
    assert set(days.to_pylist()) == {1, 2, None}


def test_a_missing_night_in_between_is_noticed(
    corpus: Path, out: Path, tag: Callable[..., list[str]]
) -> None:
    tag()
    for name in ("x", "y"):
        shutil.copy(corpus / "part-00000.parquet", corpus / f"{name}.parquet")
        tag(add_new=True)
    shutil.rmtree(out / "_ray_mlc/runs/2")
    with pytest.raises(Exception, match=r"nights \[1, 3\]: one is missing"):
        verify(str(out))


def test_two_planners_of_one_night_do_not_damage_the_run(
    corpus: Path, out: Path, score_job: MakeJob, tag: Callable[..., list[str]]
) -> None:
    tag()
    job = score_job(corpus, out)
    model, storage = open_model(job.model), open_storage(str(out))
    run = read_run(storage)
    shutil.copy(corpus / "part-00000.parquet", corpus / "x.parquet")
    early = list_corpus(str(corpus))
    shutil.copy(corpus / "part-00000.parquet", corpus / "y.parquet")
    tag(add_new=True)  # the other planner, which sees more, is faster and finishes
    slow = _Planner(job, model, storage, None, lambda: None, read_footers, lambda _: None)
    new = Listing(early.root, tuple(f for f in early.files if f.source == "x.parquet"), ())
    with pytest.raises(RunMismatchError, match="another command has planned this night"):
        slow.add(2, run.record, new, {})
    verdict = verify(str(out), deep=True)
    assert (verdict.holds, verdict.complete, verdict.total("written")) == (True, True, 400)
    tag(add_new=True)


def test_auto_units_are_resolved_once_and_kept_for_later_nights(
    tmp_path: Path, score_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_mlc.runtime import backend

    corpus, output = tmp_path / "in", tmp_path / "out"
    synthetic.write_corpus(corpus, rows=700, files=1, seed=1)
    job = score_job(corpus, output, "units.rows=auto")
    real = backend.resolve

    def at(speed: float) -> None:
        def resolve(*args: Any, **options: Any) -> ResolvedEngine:
            assert options["sample"] is not None  # there is something to find out
            found = real(*args, **{**options, "sample": None})
            return found.model_copy(update={"documents_per_s": speed})

        monkeypatch.setattr(backend, "resolve", resolve)

    at(60.0)
    score(job, LocalBackend(), Display(quiet=True))
    record = json.loads((output / "_ray_mlc/run.json").read_text())
    assert record["identity"]["units.rows"] == 256  # five seconds of it
    names = [path.name for path in sorted((output / "part-00000").iterdir())]
    starters = [233 * piece // 8 for piece in range(8)]  # of the first unit
    assert names == [f"{first:012d}.parquet" for first in (*starters, 233, 466)]
    at(6000.0)
    synthetic.write_corpus(tmp_path / "more", rows=300, files=1, seed=2)
    (tmp_path / "more/part-00000.parquet").rename(corpus / "part-00001.parquet")
    score(job, LocalBackend(), Display(quiet=True), add_new=True)
    assert len(list((output / "part-00001").iterdir())) == 2
    named = score_job(corpus, output, "units.rows=256")  # what is recorded may be named
    score(named, LocalBackend(), Display(quiet=True))
    other = score_job(corpus, output, "units.rows=257")
    with pytest.raises(RunMismatchError, match=r"units.rows 256, the command has 257"):
        score(other, LocalBackend(), Display(quiet=True))
