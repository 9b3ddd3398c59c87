"""What a submitted job is called, which attempt comes next, which job a name means. No Ray."""

from __future__ import annotations

import datetime
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ray_mlc import __version__
from ray_mlc.config import EvaluateJob, ManyScoreJob, ScoreJob, TrainJob, TuneJob
from ray_mlc.errors import ConfigError, LeaseError, UsageError
from ray_mlc.job_files import load_job, load_score_job
from ray_mlc.runtime.job_ids import (
    PASSED,
    Attempt,
    check_stop_wait,
    command_of,
    entrypoint,
    find_attempt,
    metadata_of,
    outputs_of,
    plan_submit,
    resources_of,
    run_id,
    with_absolute_paths,
)
from ray_mlc.runtime.jobs import shipped_text

SCORE = {"model": "/m", "input": "/in", "output": "/out"}
TRAIN = {"data.train": "/t", "data.validation": "/v", "output": "/model"}
NIGHT = datetime.date(2026, 11, 24)


def score(*overrides: str, **places: Any) -> ScoreJob:
    return load_job(ScoreJob, options={**SCORE, **places}, overrides=overrides)


def train(*overrides: str) -> TrainJob:
    return load_job(TrainJob, options=TRAIN, overrides=overrides)


def tune(*overrides: str) -> TuneJob:
    options = {f"train.{key}": value for key, value in TRAIN.items()}
    return load_job(
        TuneJob, options=options, overrides=("search.training.epochs=[1, 2]", *overrides)
    )


def evaluate(*overrides: str) -> EvaluateJob:
    options = {"model": "/m", "examples": ["/t"], "output": "/figures.json"}
    return load_job(EvaluateJob, options=options, overrides=overrides)


def attempt(run: str, number: int, status: str, **more: Any) -> Attempt:
    known = {"job": "-".join(run.split("-")[:2]), "kind": "score", "output": "/out", **more}
    return Attempt(f"{run}-{number}", run, number=number, status=status, **known)


@pytest.mark.parametrize(
    ("make", "overrides"),
    [
        (score, "ray.address=http://head:8265"),
        (score, "ray.job_stop_wait=5m"),
        (score, "actors.count=8"),
        (score, "limits.grace=10s"),
        (score, "limits.stop_at=06:00"),
        (score, "units.bytes=64MiB"),  # a default that is said
        (train, "workers.count=4"),
        (train, "checkpoints.keep=5"),
        (train, "ray.address=auto"),
        (tune, "concurrent=3"),
        (tune, "train.workers.cpus=1"),
        (evaluate, "gpus=1"),
        (evaluate, "ray.address=auto"),
    ],
)
def test_how_a_job_is_done_does_not_change_what_it_is_called(make: Any, overrides: str) -> None:
    assert run_id(make(overrides)) == run_id(make())


@pytest.mark.parametrize(
    ("make", "overrides"),
    [
        (score, "model=/other"),
        (score, "input.path=[/in, /in2]"),
        (score, "output.path=/elsewhere"),
        (score, "output.k=3"),
        (score, "limits.bad_rows=0.5"),
        (score, "engine.dtype=float32"),
        (train, "training.seed=1"),
        (train, "encoder=/e"),
        (tune, "trials=21"),
        (tune, "train.training.max_tokens=9"),
        (evaluate, "examples=[/t, /t2]"),
        (evaluate, "decision=/d.json"),
        (evaluate, "output=/other.json"),
    ],
)
def test_what_comes_out_of_a_job_is_in_its_name(make: Any, overrides: str) -> None:
    assert run_id(make(overrides)) != run_id(make())


def test_a_window_left_to_the_model_is_another_job_than_the_same_number_said() -> None:
    left, said = score("long.windows={overlap: 8}"), score("long.windows={overlap: 8, top: 3}")
    assert run_id(left) != run_id(said)


def test_names_tell_kind_and_night_and_stay_the_same_from_release_to_release() -> None:
    # a name that changes makes another run of a job that is under way
    assert run_id(score()) == "score-c4c06346577c"
    assert run_id(score(), night=NIGHT) == "score-c4c06346577c-20261124"
    assert run_id(train()).startswith("train-")
    assert outputs_of(tune()) == ["/model"]


def test_relative_paths_are_made_absolute_and_said(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    job = score(model="model", input=["in", "s3://b/in"], output="out/../tags/", decision="~/d")
    found, notes = with_absolute_paths(job, base=tmp_path)
    assert isinstance(found, ScoreJob)
    assert found.model == f"{tmp_path}/model"
    assert found.input.path == [f"{tmp_path}/in", "s3://b/in"]
    assert found.output.path == f"{tmp_path}/tags"
    assert found.decision == str(Path("~/d").expanduser())
    assert len(notes) == 4
    assert all("every node must see it there" in note for note in notes)
    assert with_absolute_paths(found, base=Path("/elsewhere")) == (found, [])


def many(**paths: Any) -> ManyScoreJob:
    """A job of two models."""
    job = load_score_job(
        options={
            "model": {"a": "/models/a", "b": "/models/b"},
            "input": "/in",
            "output": {"a": "/out/a/", "b": "/out/b"},
            **paths,
        }
    )
    assert isinstance(job, ManyScoreJob)
    return job


def test_a_job_of_several_models_has_a_name_and_all_its_outputs(tmp_path: Path) -> None:
    assert outputs_of(many()) == ["/out/a", "/out/b"]
    assert run_id(many()) == run_id(many(output={"a": "/out/a", "b": "/out/b/"}))
    assert run_id(many()) != run_id(many(model={"a": "/models/a", "b": "/models/c"}))
    (tmp_path / "m").mkdir()
    job = many(model={"a": "m", "b": "hub/id"}, output={"a": "x", "b": "s3://b/x"})
    found, notes = with_absolute_paths(job, base=tmp_path)
    assert isinstance(found, ManyScoreJob)
    assert found.model == {"a": f"{tmp_path}/m", "b": "hub/id"}
    assert [output.path for output in found.output.values()] == [f"{tmp_path}/x", "s3://b/x"]
    assert notes[0].startswith(f"model m is {tmp_path}/m on the cluster")
    assert notes[1].startswith(f"output.path x is {tmp_path}/x on the cluster")


def test_two_jobs_that_share_an_output_are_not_at_work_at_one_time() -> None:
    other = score(output="/out/b/")
    metadata = metadata_of(many(), run_id(many()), 1, stop_wait_s=60)
    live = attempt(run_id(many()), 1, "RUNNING", output=metadata["ray_mlc.output"])
    with pytest.raises(LeaseError, match="writes to /out/b, and is from another job file"):
        plan_submit(other, run_id(other), [live])
    for name in ("/out/a", "/out/b/"):
        assert find_attempt(name, [live], base=Path("/")) is live


def test_a_hub_id_is_no_path_and_a_folder_of_that_name_is(tmp_path: Path) -> None:
    job = train("encoder=some/encoder")
    assert with_absolute_paths(job, base=tmp_path)[0] == job
    (tmp_path / "some/encoder").mkdir(parents=True)
    found, _ = with_absolute_paths(job, base=tmp_path)
    assert isinstance(found, TrainJob)
    assert found.encoder == f"{tmp_path}/some/encoder"


def test_what_travels_along_keeps_its_relative_path_but_an_output_never(tmp_path: Path) -> None:
    shipped = tmp_path / "ship"
    (shipped / "out").mkdir(parents=True)
    (shipped / "decision.json").touch()
    job = score(decision="decision.json", output="out")
    found, _ = with_absolute_paths(job, base=tmp_path, shipped=shipped)
    assert isinstance(found, ScoreJob)
    assert (found.decision, found.output.path) == ("decision.json", f"{tmp_path}/out")


def test_encoders_that_a_search_tries_are_found_from_elsewhere_too(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    job = tune("search.encoder=[small, hub/large]")
    found, _ = with_absolute_paths(job, base=tmp_path)
    assert isinstance(found, TuneJob)
    assert found.search["encoder"] == [f"{tmp_path}/small", "hub/large"]


@pytest.mark.parametrize("make", [score, train, tune, evaluate])
def test_the_file_that_travels_reads_back_as_the_same_job(make: Any, tmp_path: Path) -> None:
    job = make()
    file = tmp_path / "job.yaml"
    file.write_text(shipped_text(job))
    again = load_job(type(job), file)
    assert again == job
    assert again.model_fields_set <= {*job.model_fields_set, "kind"}  # nothing is said for it


def test_the_file_that_travels_names_no_cluster() -> None:
    for job in (score("ray.address=http://secret-host:1"), tune("train.ray.address=secret-host:1")):
        assert "secret-host" not in shipped_text(job)


def test_the_first_attempt_is_submitted() -> None:
    plan = plan_submit(score(), run_id(score()), [])
    assert (plan.action, plan.id) == ("submitted", f"{run_id(score())}-1")


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_an_attempt_that_is_under_way_is_attached_to(status: str) -> None:
    run = run_id(score())
    known = [attempt(run, 1, "FAILED"), attempt(run, 2, status)]
    assert plan_submit(score(), run, known).action == "attached"
    assert plan_submit(score(), run, known, again=True).id == f"{run}-2"


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_an_attempt_that_did_not_succeed_is_followed_by_the_next(status: str) -> None:
    run = run_id(score())
    known = [attempt(run, number, status) for number in (1, 10, 2)]  # by number, not by letters
    assert plan_submit(score(), run, known).id == f"{run}-11"


def test_what_has_succeeded_is_said_unless_it_is_asked_for_again() -> None:
    run = run_id(score())
    known = [attempt(run, 1, "STOPPED"), attempt(run, 2, "SUCCEEDED")]
    plan = plan_submit(score(), run, known)
    assert (plan.action, plan.id) == ("succeeded", f"{run}-2")
    assert plan_submit(score(), run, known, again=True).id == f"{run}-3"


def test_a_night_begins_at_one_each_day_and_joins_one_that_is_still_running() -> None:
    yesterday = run_id(score(), night=NIGHT - datetime.timedelta(days=1))
    tonight = run_id(score(), night=NIGHT)
    over = [attempt(yesterday, 1, "FAILED"), attempt(yesterday, 2, "SUCCEEDED")]
    assert plan_submit(score(), tonight, over, again=True).id == f"{tonight}-1"
    running = [*over, attempt(yesterday, 3, "RUNNING")]
    assert plan_submit(score(), tonight, running, again=True).id == f"{yesterday}-3"


def test_a_night_does_not_take_a_plain_job_for_one() -> None:
    """That would take no new files in, and verify nothing."""
    plain, tonight = run_id(score()), run_id(score(), night=NIGHT)
    running = [attempt(plain, 1, "RUNNING", output=score().output.path)]
    with pytest.raises(LeaseError, match=f"{plain}-1 is RUNNING, writes to .* and is no night"):
        plan_submit(score(), tonight, running, again=True)
    night = [attempt(tonight, 1, "RUNNING", output=score().output.path)]
    assert plan_submit(score(), plain, night).action == "attached"


def test_a_slash_at_the_end_of_an_output_makes_no_other_run() -> None:
    assert run_id(score(output="/out/")) == run_id(score(output="/out"))
    assert outputs_of(score(output="s3://b/tags/")) == ["s3://b/tags"]


def test_another_job_that_writes_to_the_same_output_is_named_with_what_to_do() -> None:
    running = [attempt("score-other", 4, "RUNNING")]
    with pytest.raises(LeaseError, match="ray-mlc jobs stop score-other-4"):
        plan_submit(score(), run_id(score()), running)
    done = [attempt("score-other", 4, "SUCCEEDED")]
    assert plan_submit(score(), run_id(score()), done).action == "submitted"


KNOWN = [
    attempt("score-aa11", 1, "FAILED", started_s=1.0),
    attempt("score-aa11", 2, "SUCCEEDED", started_s=2.0),
    attempt("score-aa22", 1, "RUNNING", started_s=3.0, output="/base/tags"),
    attempt("train-bb11", 1, "RUNNING", started_s=4.0, output="s3://b/model/"),
    Attempt("raysubmit_x", "raysubmit_x", "raysubmit_x", 0, "", "", "RUNNING"),
]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("score-aa11-1", "score-aa11-1"),
        ("score-aa11", "score-aa11-2"),
        ("score-aa1", "score-aa11-2"),
        ("train", "train-bb11-1"),
        ("tags", "score-aa22-1"),
        ("./tags/", "score-aa22-1"),
        ("/base/tags", "score-aa22-1"),
        ("s3://b/model", "train-bb11-1"),
        ("/out", "score-aa11-2"),
        ("raysubmit_x", "raysubmit_x"),
    ],
)
def test_a_name_means_the_latest_attempt_of_one_job(name: str, found: str) -> None:
    assert find_attempt(name, KNOWN, base=Path("/base")).id == found


@pytest.mark.parametrize("name", ["score-aa", "score", "nope", "", "/base"])
def test_a_name_that_means_none_or_several_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"could be score-aa11, score-aa22|knows no such job"):
        find_attempt(name, KNOWN, base=Path("/base"))


def test_nights_of_one_job_are_not_ambiguous() -> None:
    nights = [
        attempt(f"score-aa11-2026112{day}", 1, "SUCCEEDED", started_s=day) for day in (3, 5, 4)
    ]
    assert find_attempt("score-aa", nights, base=Path("/")).id == "score-aa11-20261125-1"


@pytest.mark.parametrize(
    ("status", "code", "result"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 130),
        *(("FAILED", code, code) for code in (1, 2, 3, 4, 130)),
        ("FAILED", None, 1),  # its supervisor or its node is gone
        ("FAILED", -9, 1),  # killed
        ("FAILED", 0, 1),
    ],
)
def test_the_exit_code_of_a_job_comes_back(status: str, code: int | None, result: int) -> None:
    assert attempt("score-a", 1, status, exit_code=code).result == result


def test_a_job_that_ray_would_kill_within_its_grace_is_refused() -> None:
    assert check_stop_wait(score("ray.job_stop_wait=90.5s")) == 91
    with pytest.raises(
        ConfigError, match=r"job_stop_wait is 30 s, expected more than limits.grace"
    ):
        check_stop_wait(score("ray.job_stop_wait=30s"))
    assert check_stop_wait(tune()) == 120


def test_metadata_holds_text_only_and_no_address() -> None:
    job = score("ray.address=http://secret:1")
    found = metadata_of(job, run_id(job), 3, stop_wait_s=120)
    assert all(isinstance(value, str) for value in found.values())  # Ray takes nothing else
    assert not any("secret" in value for value in found.values())
    assert found["ray_mlc.attempt"] == "3"


def test_an_evaluation_is_a_process_without_ray_that_takes_what_it_says() -> None:
    assert command_of(evaluate()) == "evaluate ray_mlc_job.yaml"
    assert resources_of(evaluate()) == {"entrypoint_num_cpus": 1}
    asked = {"entrypoint_num_cpus": 2, "entrypoint_num_gpus": 0.5}
    assert resources_of(evaluate("cpus=2", "gpus=0.5")) == asked
    # those that begin a run are its driver, and ask for nothing themselves
    assert command_of(train()) == "train ray_mlc_job.yaml --address auto"
    assert command_of(score(), add_new=True) == "nightly ray_mlc_job.yaml --address auto"
    assert resources_of(train()) == resources_of(score()) == {}


def test_an_evaluation_on_a_cluster_says_where_its_figures_go(tmp_path: Path) -> None:
    job = evaluate("output=null")
    with pytest.raises(ConfigError, match="output is missing"):
        outputs_of(job)
    job = evaluate("output=figures.json", "examples=[test.parquet, s3://b/t]", "model=hub/name")
    found, notes = with_absolute_paths(job, base=tmp_path)
    assert isinstance(found, EvaluateJob)
    assert found.examples == [f"{tmp_path}/test.parquet", "s3://b/t"]
    assert (found.output, found.model) == (f"{tmp_path}/figures.json", "hub/name")
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["output=x.html"], "names the JSON; the report lies beside it"),
        (["output=s3://bucket/"], "expected a file below it, such as s3://bucket/evaluation.json"),
        (["output=''"], "expected a file, or null"),
        (["explain=true"], "set texts as well"),
        (["cpus=.inf"], "cpus"),
        (["examples=[]"], "non-empty list"),
    ],
)
def test_what_an_evaluation_cannot_be_is_said_before_anything_is_done(
    overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate(*overrides)


def test_an_evaluation_on_cuda_asks_the_cluster_for_a_gpu() -> None:
    with pytest.raises(ConfigError, match="gpus: 1"):
        resources_of(evaluate("device=cuda"))
    assert resources_of(evaluate("device=cuda", "gpus=1"))["entrypoint_num_gpus"] == 1


def test_an_evaluation_keeps_no_key_in_its_places() -> None:
    for key in ("model", "examples", "output", "decision"):
        with pytest.raises(ConfigError, match="carries credentials") as caught:
            evaluate(f"{key}=s3://me:secret@b/x")
        assert "secret" not in str(caught.value)


def run_entrypoint(tmp_path: Path, script: str | None) -> subprocess.CompletedProcess[str]:
    """Run the shell line with a `ray-mlc` of the test's making."""
    tools = tmp_path / "bin"
    tools.mkdir()
    if script is not None:
        (tools / "ray-mlc").write_text(f"#!/bin/sh\n{script}")
        (tools / "ray-mlc").chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-c", entrypoint("score job.yaml")],
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_same_version_on_the_cluster_is_run_and_gives_its_exit_code(tmp_path: Path) -> None:
    say = f"ray-mlc {__version__}"
    script = f'[ "$1" = --version ] && echo {shlex.quote(say)} && exit 0\necho "$@"; exit 3'
    done = run_entrypoint(tmp_path, script)
    assert done.returncode == 3
    assert done.stdout == f"{say}\nscore job.yaml\n"
    assert PASSED in f"\n{done.stdout}"


@pytest.mark.parametrize("script", ["echo ray-mlc 0.0.1", "echo broken >&2; exit 1", None])
def test_another_version_or_none_on_the_cluster_is_refused(
    tmp_path: Path, script: str | None
) -> None:
    done = run_entrypoint(tmp_path, script)
    assert done.returncode == 2
    assert done.stdout == ""
    has = "ray-mlc 0.0.1" if script == "echo ray-mlc 0.0.1" else "no ray-mlc in the PATH"
    assert done.stderr.startswith(f"error: the cluster has {has}")
    assert f"submitted by ray-mlc {__version__}" in done.stderr
    assert PASSED not in f"\n{done.stdout}\n{done.stderr}"
