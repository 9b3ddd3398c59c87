"""Several models in one pass: each run is the one that its model alone would have made."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.displays import Spoken
from support.models import write_tiny_model

from ray_mlc import synthetic
from ray_mlc.config import ManyScoreJob, ScoreJob
from ray_mlc.errors import (
    ConfigError,
    InterruptedRunError,
    LeaseError,
    LimitError,
    ModelError,
    RayMlcError,
)
from ray_mlc.job_files import load_job, load_score_job
from ray_mlc.labels import LabelSet
from ray_mlc.runtime import steps
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score, score_many
from ray_mlc.scoring.bundle import bundle, unbundle
from ray_mlc.scoring.lease import LEASE_FILE, Owner
from ray_mlc.scoring.ledger import read_run
from ray_mlc.scoring.score import died_scoring
from ray_mlc.scoring.verify import verify
from ray_mlc.storage import open_storage

ReadOutput = Callable[[Path], pa.Table]
FEW = LabelSet(("angry", "short"))


class Counting(LocalBackend):
    """Counts the units that are read, by how many runs they are for."""

    def __init__(self) -> None:
        self.read: dict[int, int] = {}

    def process(self, plan: Any, works: Any, *args: Any, **options: Any) -> Iterator[Any]:
        for receipts in super().process(plan, works, *args, **options):
            self.read[len(works)] = self.read.get(len(works), 0) + len(receipts[0])
            yield receipts


class Stopped(LocalBackend):
    """Ctrl-C after the second read."""

    def process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for number, receipts in enumerate(super().process(*args, **options)):
            yield receipts
            if number == 1:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def models(tiny_model: Path, make_model: Callable[..., Path], tiny_tfidf: Path) -> dict[str, Path]:
    """Two of one encoder with other labels, and one of another kind."""
    return {"all": tiny_model, "few": make_model(FEW, seed=3), "words": tiny_tfidf}


@pytest.fixture
def jobs(
    models: Mapping[str, Path], tiny_corpus: Path, tmp_path: Path
) -> Callable[..., dict[str, ScoreJob]]:
    """Jobs of one pass: `jobs("all", "few", "units.rows=7", corpus=…)`."""

    def make(*words: str, corpus: Path = tiny_corpus) -> dict[str, ScoreJob]:
        names = [word for word in words if "=" not in word]
        settings = [word for word in words if "=" in word]
        job = load_score_job(
            options={
                "model": {name: str(models.get(name, tmp_path / name)) for name in names},
                "input": str(corpus),
                "output": {name: str(tmp_path / "out" / name) for name in names},
            },
            overrides=[
                *("engine.dtype=float32", "batching.max_batch_tokens=4096", "units.rows=30"),
                *("report.at_end=false", *settings),
            ],
        )
        assert isinstance(job, ManyScoreJob)
        return job.each()

    return make


def run(jobs: Mapping[str, ScoreJob], backend: Any = None, **options: Any) -> Any:
    return score_many(jobs, backend or LocalBackend(), Display(quiet=True), **options)


# What comes out


def test_each_output_is_the_one_that_its_model_alone_would_have_made(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path, read_output: ReadOutput
) -> None:
    together = jobs("all", "few", "words")
    summaries = run(together)
    for name, job in together.items():
        elsewhere = {"output": {"path": str(tmp_path / "alone" / name)}}
        tree = {**job.model_dump(), **elsewhere}
        if name == "words":  # what is said of encoders is not meant for it
            tree |= {"engine": {}, "batching": {}}
        alone = ScoreJob.model_validate(tree)
        summary = score(alone, LocalBackend(), Display(quiet=True))
        outputs = [tmp_path / "out" / name, tmp_path / "alone" / name]
        tables = [read_output(output) for output in outputs]
        assert tables[0].equals(tables[1])
        assert tables[0].num_rows == 240
        runs = [read_run(open_storage(str(output))) for output in outputs]
        assert runs[0].digest == runs[1].digest
        for key in ("rows", "statuses", "labels_per_row", "tokens"):
            assert summaries[name][key] == summary[key]
        assert verify(str(outputs[0]), deep=True).holds


def test_units_are_read_once_and_texts_tokenized_once_for_models_of_one_encoder(
    jobs: Callable[..., dict[str, ScoreJob]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[int] = []
    real = steps.tokenize_block

    def counted(block: pa.Table, *args: Any, **options: Any) -> pa.Table:
        tokenized.append(block.num_rows)
        return real(block, *args, **options)

    monkeypatch.setattr(steps, "tokenize_block", counted)
    backend = Counting()
    run(jobs("all", "few"), backend)
    assert sum(tokenized) == 240
    assert backend.read == {2: 9}


@pytest.mark.parametrize("other", ["words", "shorter"])
def test_models_that_see_other_tokens_have_their_own(
    other: str,
    tiny_encoder: Path,
    jobs: Callable[..., dict[str, ScoreJob]],
    tmp_path: Path,
    read_output: ReadOutput,
) -> None:
    if other == "shorter":
        write_tiny_model(tiny_encoder, tmp_path / "shorter", FEW, max_tokens=9)
    together = jobs("all", other)
    backend = Counting()
    run(together, backend)
    assert backend.read == {2: 9}
    cut = {
        name: read_output(Path(job.output.path))["truncated"].to_pylist().count(True)
        for name, job in together.items()
    }
    assert cut["all"] < cut["shorter"] if other == "shorter" else not cut["words"]


def test_an_input_column_with_the_name_of_one_models_score_is_kept_by_both(
    jobs: Callable[..., dict[str, ScoreJob]],
    tiny_corpus: Path,
    tmp_path: Path,
    read_output: ReadOutput,
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "in"))
    for path in corpus.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("score_angry", pa.array(range(80))), path)
    backend = Counting()
    run(jobs("all", "few", corpus=corpus), backend)
    tables = {name: read_output(tmp_path / "out" / name) for name in ("all", "few")}
    assert tables["few"]["input_score_angry"].to_pylist() == [*range(80)] * 3
    assert tables["all"]["score_angry"].to_pylist() == [*range(80)] * 3
    assert set(backend.read) == {1}  # they read other columns


# Where they stop, and go on


def test_after_ctrl_c_the_same_command_goes_on_with_all(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    together = jobs("all", "few", "units.rows=10")
    with pytest.raises(InterruptedRunError, match=r"interrupted after \d+ of 240 rows"):
        run(together, Stopped())
    parts = {name: set((tmp_path / "out" / name).glob("*/*.parquet")) for name in together}
    assert all(parts.values())
    before = {part: part.stat().st_mtime_ns for part in parts["all"] | parts["few"]}
    run(together)
    assert all(part.stat().st_mtime_ns == when for part, when in before.items())
    assert all(verify(str(tmp_path / "out" / name)).holds for name in together)


def test_a_model_that_is_ahead_waits_for_no_unit_twice(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    together = jobs("all", "few", "units.rows=10")
    with pytest.raises(InterruptedRunError):
        score(together["all"], Stopped(), Display(quiet=True))
    ahead = len(list((tmp_path / "out/all").glob("*/*.parquet")))
    backend = Counting()
    run(together, backend)
    assert 0 < ahead < 24
    assert backend.read == {2: 24 - ahead, 1: ahead}
    assert all(verify(str(tmp_path / "out" / name)).holds for name in together)


def test_a_model_that_joins_later_leaves_the_others_alone(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    run(jobs("all", "few"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/*.parquet")}
    backend, display = Counting(), Spoken()
    score_many(jobs("all", "few", "words"), backend, display)
    assert backend.read == {1: 9}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "few: complete already: nothing to do" in display.said
    assert verify(str(tmp_path / "out/words")).holds


def test_a_run_that_was_cut_into_other_units_keeps_them(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError):
        score(jobs("all", "few", "units.rows=10")["all"], Stopped(), Display(quiet=True))
    backend = Counting()
    run(jobs("all", "few", "units.rows=auto"), backend)
    runs = [read_run(open_storage(str(tmp_path / "out" / name))) for name in ("all", "few")]
    assert [run.identity["units.rows"] for run in runs] == [10, 10]  # the new one follows
    assert all(verify(str(tmp_path / "out" / name)).holds for name in ("all", "few"))


def test_a_run_that_joins_one_under_way_shares_the_pieces_of_its_first_unit(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    pq.write_table(synthetic.documents(240, seed=3), tmp_path / "one/a.parquet")
    together = jobs("all", "few", "units.rows=auto", corpus=tmp_path / "one")
    with pytest.raises(InterruptedRunError):
        score(together["all"], Stopped(), Display(quiet=True))
    backend = Counting()
    run(together, backend)
    runs = [read_run(open_storage(str(tmp_path / "out" / name))) for name in ("all", "few")]
    assert runs[0].plan.units["rows"].to_pylist() == [30] * 8
    assert runs[0].part_paths == runs[1].part_paths


def test_new_files_are_the_next_night_of_all(
    jobs: Callable[..., dict[str, ScoreJob]], tiny_corpus: Path, tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "in"))
    run(jobs("all", "few", corpus=corpus))
    shutil.copy(corpus / "part-00001.parquet", corpus / "tuesday.parquet")
    backend = Counting()
    summaries = run(jobs("all", "few", corpus=corpus), backend, add_new=True)
    assert backend.read == {2: 3}
    assert [summary["rows"]["written"] for summary in summaries.values()] == [320, 320]


# Where one of them is not well


def test_one_beyond_its_limits_keeps_no_other_from_success(
    jobs: Callable[..., dict[str, ScoreJob]],
    tiny_corpus: Path,
    tmp_path: Path,
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "in"))
    together = jobs("all", "few", "long.policy=skip", "long.max_tokens=9", corpus=corpus)
    strict = {"limits": {**together["all"].limits.model_dump(), "bad_rows": 0.0}}
    lax = {"limits": {**together["all"].limits.model_dump(), "bad_rows": 240.0}}
    together["all"] = ScoreJob.model_validate({**together["all"].model_dump(), **strict})
    together["few"] = ScoreJob.model_validate({**together["few"].model_dump(), **lax})
    with pytest.raises(LimitError, match="out/all: "):
        run(together)
    assert not (tmp_path / "out/all/_SUCCESS").exists()
    assert (tmp_path / "out/few/_SUCCESS").exists()
    summary = tmp_path / "out/all/_ray_mlc/summary.json"
    before = summary.read_bytes()
    display = Spoken()
    with pytest.raises(LimitError, match="out/all: "):  # and it says so again
        score_many(together, LocalBackend(), display)
    assert "few: complete already: nothing to do" in display.said
    assert summary.read_bytes() != before  # it was looked at once more


@pytest.mark.parametrize("names", [["all"], ["all", "few"]])
def test_limits_that_are_tighter_than_those_it_was_finished_with_are_looked_at_and_no_more(
    names: list[str], jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    cut = ("long.policy=skip", "long.max_tokens=9")
    run(jobs(*names, *cut, "limits.bad_rows=240"))
    summaries = [tmp_path / "out" / name / "_ray_mlc/summary.json" for name in names]
    before = [summary.read_bytes() for summary in summaries]
    display = Spoken()
    with pytest.raises(LimitError, match="out/all: "):
        score_many(jobs(*names, *cut), LocalBackend(), display)
    assert [summary.read_bytes() for summary in summaries] == before
    told = [text for text in display.said if text.startswith("error: ")]
    assert len(told) == len(names) - 1


def test_the_error_of_a_run_that_is_not_finished_comes_before_that_of_a_limit(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.scoring.accounts.LAG_S", 0.1)

    class Losing(LocalBackend):
        """Says that all is written, but a part of one run is gone."""

        def process(self, *args: Any, **options: Any) -> Iterator[Any]:
            yield from super().process(*args, **options)
            next((tmp_path / "out/few").glob("*/*.parquet")).unlink()

    together = jobs("all", "few", "long.policy=skip", "long.max_tokens=9")
    with pytest.raises(RayMlcError, match=r"out/few: 1 unit\(s\) were not written") as caught:
        run(together, Losing())
    assert caught.value.exit_code == 1


def test_a_unit_that_kills_processes_of_all_models_is_tried_by_each_alone(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    class Deadly(LocalBackend):
        """The model `few` dies over the first unit of each read."""

        def process(self, plan: Any, works: Any, *args: Any, **options: Any) -> Iterator[Any]:
            deadly = any("few" in work.commit.storage.uri for work in works)
            for receipts in super().process(plan, works, *args, **options):
                if deadly:
                    for place, (work, (first, *rest)) in enumerate(
                        zip(works, receipts, strict=True)
                    ):
                        work.commit.storage.delete(first.part)
                        killed = replace(first, fault=died_scoring(3))
                        receipts[place] = [killed, *rest]
                yield receipts

    together = jobs("all", "few", "limits.bad_rows=240", "limits.bad_files=3")
    backend = Deadly()
    summaries = run(together, backend)
    assert summaries["all"]["rows"] == {"planned": 240, "written": 240, "set_aside": 0}
    assert summaries["few"]["rows"]["set_aside"] > 0
    assert verify(str(tmp_path / "out/few")).holds


def test_ctrl_c_between_two_passes_begins_no_other(
    jobs: Callable[..., dict[str, ScoreJob]], tiny_corpus: Path, tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "in"))
    for path in corpus.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("score_angry", pa.array(range(80))), path)

    class Asked(Counting):
        """Ctrl-C with the last read of the first pass."""

        def process(self, plan: Any, works: Any, reads: Any, *args: Any, **options: Any) -> Any:
            read = super().process(plan, works, reads, *args, **options)
            for number, receipts in enumerate(read):
                if number + 1 == len(reads):
                    signal.raise_signal(signal.SIGINT)
                yield receipts

    display, backend = Spoken(), Asked()
    with pytest.raises(InterruptedRunError, match="few: interrupted after 0 of 240 rows"):
        score_many(jobs("all", "few", corpus=corpus), backend, display)
    assert backend.read == {1: 9}
    assert any(text.startswith("note: all and few keep or rename") for text in display.said)
    assert sum("loading" in text for text in display.said) == 1 + 2  # engines, then one pass


def test_nothing_is_created_before_all_models_were_found_to_do(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    class Refusing(LocalBackend):
        def resolve(self, folder: Any, *args: Any) -> Any:
            if folder.name == job_of["few"].model:
                raise ModelError("it does not hold here")
            return super().resolve(folder, *args)

    job_of = jobs("all", "few")
    with pytest.raises(ModelError, match="does not hold here"):
        run(job_of, Refusing())
    assert not (tmp_path / "out/all/_ray_mlc/run.json").exists()
    run(jobs("all", "few", "output.all.k=3"))  # nothing is pinned


def test_an_output_that_another_command_writes_to_stops_all_before_anything_is_written(
    jobs: Callable[..., dict[str, ScoreJob]], tmp_path: Path
) -> None:
    together = jobs("all", "few", "lease.expiry=1s")
    storage = open_storage(str(tmp_path / "out/few"))
    owner = Owner.this_process()
    storage.create(LEASE_FILE, owner.to_bytes())

    class Beating(Spoken):
        """The other command shows that it lives."""

        def say(self, text: str) -> None:
            data = storage.read(LEASE_FILE)
            raised = json.loads(data or b"{}")
            raised["counter"] += 1
            storage.put(LEASE_FILE, json.dumps(raised).encode())

    with pytest.raises(LeaseError, match="out/few: another command is writing there"):
        score_many(together, LocalBackend(), Beating())
    assert list((tmp_path / "out/all").glob("**/*.parquet")) == []
    assert not (tmp_path / "out/all" / LEASE_FILE).exists()


# What is said


def test_people_are_told_what_is_read_for_whom(jobs: Callable[..., dict[str, ScoreJob]]) -> None:
    display = Spoken()
    score_many(jobs("all", "few", "words"), LocalBackend(), display)
    begun = display.said[[text.startswith("240 rows") for text in display.said].index(True) :]
    assert begun[:3] == [
        "240 rows in 9 units of 3 files, each read once for 3 models, and tokenized in 2 ways",
        "all: torch float32 on cpu, at most 32 tokens",
        "few: torch float32 on cpu, at most 32 tokens",
    ]
    assert begun[3].startswith("words: tfidf float32 on cpu")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"model.m{n}=m" for n in range(63)], "model is {"),
        (["output.b=out/a/b"], "/out/a/b/) lies in output.a ("),
        (["output.b=out/a"], "/out/a/) lies in output.a ("),
        (["output.b=./out/c/../a"], "/out/a/) lies in output.a ("),
        (["output={a: out/a}"], "output.b is missing: each model has a folder of its own"),
        (["output.bb=out/c"], "output.bb: did you mean b?"),
        (["decision={c: x.json}"], "decision.c: model has no such name"),
        (["output.b.formt=dense"], "unknown key output.b.formt: did you mean format?"),
        (["model={'a b': m}"], "model.a b"),
        (["engine.dtype=int8", "decision={a: x.json}"], "decision has no meaning with engine"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: list[str], message: str) -> None:
    options = {"model": {"a": "m/a", "b": "m/b"}, "input": "in", "output": {"a": "out/a"}}
    with pytest.raises(ConfigError) as caught:
        load_score_job(options=options, overrides=["output.b=out/b", *overrides])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_output_for_several_models_is_refused() -> None:
    job = {"model": {"a": "m/a", "b": "m/b"}, "input": "in", "output": "out"}
    with pytest.raises(ConfigError, match="output is 'out': expected"):
        load_score_job(job)


def test_outputs_of_a_job_take_all_that_an_output_takes() -> None:
    options = {"model": {"a": "m/a", "b": "m/b"}, "input": "in", "output": {"a": "out/a"}}
    job = load_score_job(
        options=options,
        overrides=["output.b=out/b", "output.b.format=dense", "decision.a=strict.json"],
    )
    assert isinstance(job, ManyScoreJob)
    moved = load_score_job(job.model_dump(mode="json"), overrides=["output.b=elsewhere"])
    assert isinstance(moved, ManyScoreJob)
    assert (moved.output["b"].path, moved.output["b"].format) == ("elsewhere", "dense")
    one, other = job.each().values()
    assert (one.output.path, one.output.format, one.decision) == ("out/a", "auto", "strict.json")
    assert (other.output.path, other.output.format, other.decision) == ("out/b", "dense", None)


def test_commands_for_one_model_say_so() -> None:
    options = {"model": {"a": "m/a"}, "input": "in", "output": {"a": "out/a"}}
    with pytest.raises(ConfigError, match="model names several models, which this command"):
        load_job(ScoreJob, options=options)


# Blocks


def test_tables_side_by_side_come_apart_again() -> None:
    rows = pa.array(range(3))
    tables = [
        pa.table({"row": rows, "labels": pa.array([[text]] * 3), f"score_{text}": rows})
        for text in ("a", "b")
    ]
    block = bundle(tables, {"row"})
    assert block.column_names.count("row") == 1
    assert unbundle(block, 2) == tables
    assert bundle(tables[:1], {"row"}) is tables[0]
    assert unbundle(tables[0], 1) == tables[:1]
