"""Scoring on Ray equals scoring in one process, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from support.models import LIGHT_ENGINE

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob
from ray_mlc.errors import (
    InterruptedRunError,
    LimitError,
    ModelError,
    RayMlcError,
    ResourceError,
)
from ray_mlc.labels import LabelSet
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

UNITS = ("units.rows=24", "actors.cpus=1.0", f"engine.name={LIGHT_ENGINE}")
SMALL_FILES = (5, 7, 9, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files, one large row group, several row groups; null and blank texts."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = synthetic.documents(300, seed=8)
    texts = documents["text"].to_pylist()
    for row, text in {0: None, 4: "", 30: " \n", 60: None, 150: None, 299: None}.items():
        texts[row] = text
    table = pa.table(
        {
            "id": documents["id"],
            "text": pa.array(texts, pa.string()),
            "number": pa.array(range(300), pa.int32()),
            "dropped": ["x"] * 300,
        }
    )
    start = 0
    for index, rows in enumerate(SMALL_FILES):
        pq.write_table(table.slice(start, rows), folder / f"small-{index}.parquet")
        start += rows
    (folder / "day=2").mkdir()
    pq.write_table(table.slice(start, 120), folder / "day=2" / "large.parquet")  # one row group
    pq.write_table(table.slice(start + 120), folder / "groups.parquet", row_group_size=20)
    return folder


@pytest.fixture(scope="module")
def make_job(score_job: Callable[..., ScoreJob]) -> Callable[..., ScoreJob]:
    """A job over a corpus: `make_job(corpus, output, "actors.count=2")`."""

    def make(corpus: Path, output: Path, *overrides: str, **options: Any) -> ScoreJob:
        keep = "output.keep=[id, number]"
        return score_job(corpus, output, *UNITS, keep, *overrides, **options)

    return make


@pytest.fixture(scope="module")
def expected(
    corpus: Path, make_job: Callable[..., ScoreJob], tmp_path_factory: pytest.TempPathFactory
) -> pa.Table:
    """What one process makes of the corpus."""
    from ray_mlc.runtime.local import LocalBackend

    output = tmp_path_factory.mktemp("local") / "out"
    score(make_job(corpus, output), LocalBackend(), Display(quiet=True))
    return rows_of(output)


@pytest.fixture(scope="module")
def scored(
    ray_local: Any,
    corpus: Path,
    make_job: Callable[..., ScoreJob],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """A run on two actors and its summary; the tests below look at it, and one goes on with it."""
    output = tmp_path_factory.mktemp("ray") / "out"
    return output, on_ray(make_job(corpus, output, "actors.count=2"))


def on_ray(job: ScoreJob) -> dict[str, Any]:
    from ray_mlc.runtime.ray_data import RayBackend

    display = Display(quiet=True)
    return score(job, RayBackend([job], display.say), display)


def parts_of(output: Path) -> list[Path]:
    return sorted(output.glob("**/*.parquet"))


def rows_of(output: Path) -> pa.Table:
    table = pads.dataset([str(part) for part in parts_of(output)], format="parquet").to_table()
    source = table["source"].cast(pa.string())  # Arrow sorts no dictionaries
    table = table.set_column(table.column_names.index("source"), "source", source)
    return table.sort_by([("source", "ascending"), ("row", "ascending")])


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """All columns equal; scores to 1e-6, because other batches are padded otherwise."""
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows
    for name in expected.column_names:
        if name.startswith("score_"):
            mine, theirs = (table[name].to_numpy() for table in (found, expected))
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6, equal_nan=True)
        else:
            assert found[name].to_pylist() == expected[name].to_pylist(), name


def test_ray_equals_one_process_row_by_row(
    scored: tuple[Path, dict[str, Any]], expected: pa.Table
) -> None:
    output, _ = scored
    found = rows_of(output)
    assert_same(found, expected)
    assert found.num_rows == 300
    assert sorted(found["number"].to_pylist()) == list(range(300))
    statuses = found["status"].to_pylist()
    assert (statuses.count("null_text"), statuses.count("empty")) == (4, 2)
    assert any(found["labels"].to_pylist())


@pytest.mark.slow
def test_two_models_in_one_pass_on_ray_are_what_each_is_alone(
    ray_local: Any,
    corpus: Path,
    make_job: Callable[..., ScoreJob],
    make_model: Callable[..., Path],
    expected: pa.Table,
    tmp_path: Path,
) -> None:
    from ray_mlc.runtime.local import LocalBackend
    from ray_mlc.runtime.ray_data import RayBackend
    from ray_mlc.runtime.score import score_many

    few = make_model(LabelSet(("angry", "short")), seed=3)
    jobs = {
        "all": make_job(corpus, tmp_path / "all", "actors.count=2"),
        "few": make_job(corpus, tmp_path / "few", "actors.count=2", model=few),
    }
    display = Display(quiet=True)
    summaries = score_many(jobs, RayBackend(list(jobs.values()), display.say), display)
    alone = make_job(corpus, tmp_path / "alone", model=few)
    score(alone, LocalBackend(), display)
    assert_same(rows_of(tmp_path / "all"), expected)
    assert_same(rows_of(tmp_path / "few"), rows_of(tmp_path / "alone"))
    for name in jobs:
        assert verify(str(tmp_path / name)).holds
        assert summaries[name]["rows"]["written"] == expected.num_rows


def test_parts_are_those_of_the_units_and_the_account_holds(
    scored: tuple[Path, dict[str, Any]],
) -> None:
    output, summary = scored
    names = [str(part.relative_to(output)) for part in parts_of(output)]
    # the large row group is split, small files have a part each
    assert [name for name in names if "large" in name] == [
        f"day=2/large/{first:012}.parquet" for first in range(0, 120, 24)
    ]
    assert len([name for name in names if "small" in name]) == len(SMALL_FILES)
    verdict = verify(str(output), deep=True)
    assert verdict.holds
    assert verdict.complete
    assert verdict.total("written") == 300
    assert summary["rows"]["written"] == 300


def test_a_resumed_run_makes_the_missing_parts_and_no_other(
    scored: tuple[Path, dict[str, Any]],
    expected: pa.Table,
    corpus: Path,
    make_job: Callable[..., ScoreJob],
) -> None:
    output, _ = scored
    parts = parts_of(output)
    (output / "_SUCCESS").unlink()
    lost = parts[1::3]
    for part in lost:
        part.unlink()
    before = {part: part.stat().st_mtime_ns for part in parts_of(output)}
    on_ray(make_job(corpus, output, "actors.count=1"))
    assert parts_of(output) == parts
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert_same(rows_of(output), expected)
    assert verify(str(output), deep=True).complete


def test_a_killed_actor_costs_no_row_and_doubles_none(
    ray_local: Any,
    corpus: Path,
    expected: pa.Table,
    make_job: Callable[..., ScoreJob],
    killer: Any,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    units = "units.rows=4"  # many, so that the kill comes in the middle
    with killer.kill("ScoreActor", when=lambda: len(parts_of(output))):
        on_ray(make_job(corpus, output, "actors.count=2", units))
    assert len(killer.killed) == 1
    assert killer.seen[0] < len(parts_of(output))
    assert_same(rows_of(output), expected)
    assert verify(str(output), deep=True).holds


@pytest.mark.slow
def test_a_unit_that_kills_its_process_is_set_aside_and_the_rest_is_there(
    ray_local: Any,
    make_job: Callable[..., ScoreJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    texts = [f"word {number}" for number in range(60)]
    texts[17] = "a ~ that no engine survives"
    corpus.mkdir()
    pq.write_table(
        pa.table({"id": range(60), "number": range(60), "text": texts}), corpus / "a.parquet"
    )
    from ray_mlc.runtime import ray_data

    monkeypatch.setattr(ray_data, "ScoreActor", deadly(ray_data.ScoreActor))
    job = make_job(corpus, output, "actors.count=1", "units.rows=10", "limits.bad_rows=10")
    summary = on_ray(
        job.model_copy(update={"limits": job.limits.model_copy(update={"bad_files": 1})})
    )
    assert summary["rows"] == {"planned": 60, "written": 50, "set_aside": 10}
    (failure,) = json.loads((output / "_ray_mlc" / "failures.json").read_text())
    assert (failure["source"], failure["first_row"]) == ("a.parquet", 10)
    assert failure["reason"] == "score: 3 processes died over it, one after the other"
    assert rows_of(output)["row"].to_pylist() == [*range(10), *range(20, 60)]
    assert verify(str(output), deep=True).holds


@pytest.mark.slow
def test_a_unit_that_one_of_two_models_dies_over_is_scored_by_the_other(
    ray_local: Any,
    make_job: Callable[..., ScoreJob],
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray_mlc.runtime import ray_data
    from ray_mlc.runtime.score import score_many

    corpus = tmp_path / "corpus"
    texts = [f"word {number}" for number in range(60)]
    texts[17] = "a ~ that one model does not survive"
    corpus.mkdir()
    pq.write_table(
        pa.table({"id": range(60), "number": range(60), "text": texts}), corpus / "a.parquet"
    )
    few = make_model(LabelSet(("angry", "short")), seed=3)
    monkeypatch.setattr(ray_data, "ScoreActor", deadly(ray_data.ScoreActor, labels=2))
    limits = ("actors.count=1", "units.rows=10", "limits.bad_rows=10", "limits.bad_files=1")
    jobs = {
        "all": make_job(corpus, tmp_path / "all", *limits),
        "few": make_job(corpus, tmp_path / "few", *limits, model=few),
    }
    display = Display(quiet=True)
    summaries = score_many(jobs, ray_data.RayBackend(list(jobs.values()), display.say), display)
    assert summaries["all"]["rows"] == {"planned": 60, "written": 60, "set_aside": 0}
    assert summaries["few"]["rows"] == {"planned": 60, "written": 50, "set_aside": 10}
    assert rows_of(tmp_path / "few")["row"].to_pylist() == [*range(10), *range(20, 60)]
    assert all(verify(str(tmp_path / name), deep=True).holds for name in jobs)


def slow(actor: type, ready: Path) -> type:
    """An actor that takes its time, and a file that says that one has started.

    Defined here, so that Ray ships it by value.
    """

    class ScoreActor(actor):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            ready.touch()

        def __call__(self, block: pa.Table) -> pa.Table:
            time.sleep(0.4)
            return super().__call__(block)

    return ScoreActor


def deadly(actor: type, labels: int = 0) -> type:
    """An actor that dies over a text with `~`; defined here, so that Ray ships it by value.

    With `labels` only one that holds a model of so many.
    """

    class ScoreActor(actor):  # type: ignore[misc]
        def __init__(self, works: Any, *args: Any) -> None:
            super().__init__(works, *args)
            if labels and all(len(work.output.label_set) != labels for work in works):
                return
            call = self._call

            def dying(block: pa.Table, progress: Any) -> pa.Table:
                texts = block["__ray_mlc_text"].to_pylist()
                if block["__ray_mlc_fault"].null_count == block.num_rows and any(
                    "~" in (text or "") for text in texts
                ):
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(block, progress)

            self._call = dying

    return ScoreActor


def test_a_stopped_run_finishes_what_is_in_flight_and_goes_on(
    ray_local: Any,
    corpus: Path,
    expected: pa.Table,
    make_job: Callable[..., ScoreJob],
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    job = make_job(corpus, output, "actors.count=2", "units.rows=4")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def stop_in_the_middle() -> None:
        while len(parts_of(output)) < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_in_the_middle)
    thread.start()
    try:
        with pytest.raises(InterruptedRunError, match="run the same command to continue"):
            on_ray(job)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    stopped = parts_of(output)
    assert 5 <= len(stopped) < 70
    assert verify(str(output), deep=True).problems == []
    assert list((output / "_ray_mlc").glob("tmp/*")) == []
    on_ray(job)
    assert set(stopped) < set(parts_of(output))
    assert_same(rows_of(output), expected)


@pytest.mark.slow
def test_parts_are_committed_while_most_of_the_corpus_is_unread(
    ray_local: Any,
    make_job: Callable[..., ScoreJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, output, reads = tmp_path / "corpus", tmp_path / "out", tmp_path / "reads"
    ready = tmp_path / "ready"
    corpus.mkdir()
    documents = synthetic.documents(500, seed=1).select(["id", "text"])
    pq.write_table(documents, corpus / "groups.parquet", row_group_size=5)
    from ray_mlc.runtime import ray_data

    def watched(step: Any, units: Any, reporter: Any) -> Callable[[], list[pa.Table]]:
        read = real(step, units, reporter)

        def watching() -> list[pa.Table]:
            # while actors start and nothing else goes on, Ray Data reads on whatever rules say
            while not ready.exists():
                time.sleep(0.05)
            written = sum(1 for _ in output.glob("*/*.parquet"))
            with reads.open("a") as stream:
                stream.write(f"{written}\n")
            return read()

        return watching

    real = ray_data._reader
    monkeypatch.setattr(ray_data, "_reader", watched)
    monkeypatch.setattr(ray_data, "ScoreActor", slow(ray_data.ScoreActor, ready))
    # Ray Data's own rule leaves writing nothing of what such actors leave
    settings = ("actors.count=2", "actors.cpus=1.6", "units.rows=5", "output.keep=[id]")
    on_ray(make_job(corpus, output, *settings))
    written = [int(line) for line in reads.read_text().splitlines()]
    assert written[0] == 0
    # before each read what was read before is there, but for what is on its way
    assert len(written) == 100
    assert written[-1] > 50, written


@pytest.mark.slow
def test_a_unit_whose_reading_kills_is_set_aside_and_the_rest_is_there(
    ray_local: Any,
    make_job: Callable[..., ScoreJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    synthetic.write_corpus(corpus, rows=60, files=1, seed=1)
    from ray_mlc.runtime import ray_data

    def dying(step: Any, units: Any, reporter: Any) -> Callable[[], list[pa.Table]]:
        """Arrow aborts over a damage in rows 10 to 19."""

        class Deadly:
            spec = step.spec

            def __call__(self, units: Any) -> pa.Table:
                if any(unit.first_row == 10 for unit in units):
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(units)

        return real(Deadly(), units, reporter)

    real = ray_data._reader
    monkeypatch.setattr(ray_data, "_reader", dying)
    with pytest.raises(LimitError, match="10 bad rows"):
        on_ray(make_job(corpus, output, "actors.count=1", "units.rows=10", "output.keep=[id]"))
    (failure,) = json.loads((output / "_ray_mlc" / "failures.json").read_text())
    assert (failure["source"], failure["first_row"]) == ("part-00000.parquet", 10)
    assert failure["reason"] == "read: 3 processes died over it, one after the other"
    assert rows_of(output)["row"].to_pylist() == [*range(10), *range(20, 60)]
    assert verify(str(output), deep=True).holds


@pytest.mark.slow
def test_a_sample_that_kills_its_process_is_left_to_scoring(
    ray_local: Any,
    corpus: Path,
    make_job: Callable[..., ScoreJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray_mlc.runtime import ray_data

    real = ray_data.resolve_engine

    def deadly(job: Any, model: Any, units: Any, *args: Any, **options: Any) -> Any:
        if units:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(job, model, units, *args, **options)

    monkeypatch.setattr(ray_data, "resolve_engine", deadly)
    summary = on_ray(make_job(corpus, tmp_path / "out", "batching.max_batch_tokens=auto"))
    assert summary["rows"]["written"] == 300
    assert summary["engine"]["documents_per_s"] is None


@pytest.mark.slow
def test_actors_that_cannot_start_say_why_in_one_line(
    ray_local: Any,
    corpus: Path,
    make_job: Callable[..., ScoreJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray_mlc.runtime import ray_data

    class ScoreActor:
        def __init__(self, *args: Any) -> None:
            raise ImportError("libcudart.so.13: cannot open shared object file")

        def __call__(self, block: pa.Table) -> pa.Table:
            return block

    monkeypatch.setattr(ray_data, "ScoreActor", ScoreActor)
    with pytest.raises(RayMlcError, match=r"libcudart\.so\.13: cannot open") as caught:
        on_ray(make_job(corpus, tmp_path / "out", "actors.count=1"))
    assert "\n" not in str(caught.value)


def test_tf_idf_on_ray_equals_one_process_to_the_last_bit(
    ray_local: Any,
    corpus: Path,
    score_job: Callable[..., ScoreJob],
    tiny_tfidf: Path,
    tmp_path: Path,
) -> None:
    from ray_mlc.runtime.local import LocalBackend

    settings = (*UNITS, "engine.name=auto", "batching.max_batch_tokens=auto", "actors.gpus=0")
    alone = score_job(corpus, tmp_path / "alone", *settings, model=tiny_tfidf)
    score(alone, LocalBackend(), Display(quiet=True))
    job = score_job(corpus, tmp_path / "out", *settings, "actors.count=2", model=tiny_tfidf)
    summary = on_ray(job)
    assert rows_of(tmp_path / "out").equals(rows_of(tmp_path / "alone"))
    assert (summary["engine"]["name"], summary["this_process"]["padding"]) == ("tfidf", 0)
    assert summary["engine"]["documents_per_s"] is not None
    assert verify(str(tmp_path / "out"), deep=True).holds


def test_too_many_actors_are_refused_at_once(
    ray_local: Any, corpus: Path, make_job: Callable[..., ScoreJob], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=r"9 actor\(s\) of 1 CPU.* free"):
        on_ray(make_job(corpus, tmp_path / "out", "actors.count=9"))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_an_engine_that_cannot_be_resolved_is_an_error_of_one_line(
    ray_local: Any, corpus: Path, make_job: Callable[..., ScoreJob], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"max_batch_tokens is 8, expected") as caught:
        on_ray(make_job(corpus, tmp_path / "out", "actors.count=1", "batching.max_batch_tokens=8"))
    assert "\n" not in str(caught.value)
    assert not parts_of(tmp_path / "out")


def test_a_corrupt_file_is_set_aside_and_the_rest_is_there(
    ray_local: Any, make_job: Callable[..., ScoreJob], tmp_path: Path
) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    synthetic.write_corpus(corpus, rows=90, files=3, seed=1)
    bad = corpus / "part-00001.parquet"
    content = bytearray(bad.read_bytes())
    content[4:-2000] = bytes(len(content) - 2004)  # the footer stays, the pages are lost
    bad.write_bytes(content)
    job = make_job(corpus, output, "actors.count=1", "output.keep=[id]")
    with pytest.raises(LimitError, match=r"30 bad rows"):
        on_ray(job)
    failures = json.loads((output / "_ray_mlc" / "failures.json").read_text())
    assert {item["source"] for item in failures} == {"part-00001.parquet"}
    found = rows_of(output)
    sources = found["source"].to_pylist()
    assert {name: sources.count(name) for name in set(sources)} == {
        "part-00000.parquet": 30,
        "part-00002.parquet": 30,
    }
    verdict = verify(str(output), deep=True)
    assert verdict.holds
    assert not verdict.complete
    assert verdict.total("set_aside") == 30


def test_a_run_of_which_nothing_is_heard_is_stopped(
    ray_local: Any, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from ray_mlc.runtime.interrupt import Stop
    from ray_mlc.runtime.pulse import SCORING, Reporter, Watch, start_pulse
    from ray_mlc.scoring.standing import Blocks, Vitals

    pulse = start_pulse()
    reporter = Reporter(pulse)
    reporter.ready()
    reporter.beat(7, 70, 72)
    assert reporter.enter("a.parquet from row 0", SCORING) == (False, 0)
    heard: list[Vitals] = []
    # a process in the background of a script ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = Watch(pulse, 3.0, heard.append, Stop())
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(60)  # as the driver waits for receipts that do not come
    finally:
        watch.close()
        signal.signal(signal.SIGINT, before)
    assert watch.stuck_in == "scoring a.parquet from row 0"
    assert set(heard) == {Vitals(7, 70, 72, actors=1, blocks=Blocks(scoring=1))}
