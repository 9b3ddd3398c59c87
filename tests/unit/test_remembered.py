"""An engine that was chosen on this machine is chosen again without trying any."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.listing import list_corpus
from ray_mlc.errors import ModelError
from ray_mlc.model.engines import choose, remembered
from ray_mlc.model.engines.choose import ResolvedEngine, describe_trials
from ray_mlc.model.folder import CANARIES_FILE, HISTORY_FILE, INFO_FILE, open_model
from ray_mlc.runtime import backend
from ray_mlc.runtime.backend import remembers, resolve_engine
from ray_mlc.scoring.plan import inspect_corpus
from ray_mlc.scoring.sample import sample_units

MakeJob = Callable[..., ScoreJob]
OPEN = ("batching.max_batch_tokens=auto", "engine.remember=true")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "TRIAL_S", 0.02)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # other tests run beside it
    return tmp_path / "cache/ray_mlc/engines"


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each choice that is really made."""
    made: list[int] = []
    real = backend.resolve

    def counting(*args: Any, **options: Any) -> ResolvedEngine:
        made.append(1)
        return real(*args, **options)

    monkeypatch.setattr(backend, "resolve", counting)
    return made


def chosen(job: ScoreJob, **options: Any) -> ResolvedEngine:
    plan = inspect_corpus(list_corpus(job.input.path), job, reserved=()).cut(
        max_rows=100, max_bytes=2**20
    )
    folder = open_model(job.model)
    units = sample_units(plan)
    return resolve_engine(job, folder, units, plan.spec, **{"cuda": False, "threads": 1, **options})


def assert_never_kept(job: ScoreJob, choices: list[int]) -> None:
    assert [chosen(job).measured_at for _ in range(2)] == [None, None]
    assert choices == [1, 1]


def test_a_choice_is_taken_again_and_says_when_it_was_made(
    tmp_path: Path, tiny_corpus: Path, score_job: MakeJob, choices: list[int]
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN)
    first, second = chosen(job), chosen(job)
    assert choices == [1]
    assert second.measured_at is not None
    assert second.model_copy(update={"measured_at": None}) == first
    assert f"as measured {second.measured_at}" in str(describe_trials(second))
    assert "on documents of this corpus" in str(describe_trials(first))


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ((*OPEN, "long.max_tokens=8"), {}),
        (OPEN, {"threads": 2}),
    ],
)
def test_another_question_is_answered_anew(
    tmp_path: Path,
    tiny_corpus: Path,
    score_job: MakeJob,
    choices: list[int],
    overrides: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    chosen(score_job(tiny_corpus, tmp_path / "out", *OPEN))
    again = chosen(score_job(tiny_corpus, tmp_path / "out", *overrides), **options)
    assert choices == [1, 1]
    assert again.measured_at is None


def test_another_decision_or_other_canaries_are_another_question(
    tmp_path: Path,
    tiny_model: Path,
    tiny_corpus: Path,
    score_job: MakeJob,
    choices: list[int],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN, model=model)
    assert [chosen(job).measured_at is None for _ in range(2)] == [True, False]
    info = json.loads((model / INFO_FILE).read_text())
    info["decision"]["threshold"] = 0.123
    (model / INFO_FILE).write_text(json.dumps(info))
    assert [chosen(job).measured_at is None for _ in range(2)] == [True, False]
    canaries = json.loads((model / CANARIES_FILE).read_text())
    canaries["scores"][0][0] = 1 - canaries["scores"][0][0]
    (model / CANARIES_FILE).write_text(json.dumps(canaries))
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        chosen(job)


def test_nothing_is_remembered_of_models_that_cannot_be_proven_or_have_no_choice(
    tmp_path: Path, tiny_model: Path, tiny_tfidf: Path, tiny_corpus: Path, score_job: MakeJob
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    for name in (INFO_FILE, CANARIES_FILE, HISTORY_FILE):
        (plain / name).unlink(missing_ok=True)
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN)
    folders = {str(path): open_model(str(path)) for path in (tiny_model, plain, tiny_tfidf)}
    kept = [remembers(job, folder, cuda=False) for folder in folders.values()]
    assert kept == [True, False, False]
    assert not remembers(job, folders[str(tiny_model)], cuda=True)
    int8 = score_job(tiny_corpus, tmp_path / "out", *OPEN, "engine.dtype=int8")
    assert not remembers(int8, folders[str(tiny_model)], cuda=False)


def test_what_is_measured_in_a_busy_moment_is_not_kept(
    tmp_path: Path,
    tiny_corpus: Path,
    score_job: MakeJob,
    choices: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN)
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert_never_kept(job, choices)


def test_a_job_may_ask_for_trials_each_time(
    tmp_path: Path, tiny_corpus: Path, score_job: MakeJob, choices: list[int], cache: Path
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN, "engine.remember=false")
    assert_never_kept(job, choices)
    assert not cache.exists()


def test_an_old_choice_is_made_again(
    tmp_path: Path, tiny_corpus: Path, score_job: MakeJob, choices: list[int], cache: Path
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN)
    chosen(job)
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    for at in (time.time() - remembered.FRESH_S - 1, time.time() + 3600):
        file.write_text(json.dumps({**kept, "at": at}))
        assert chosen(job).measured_at is None
    assert choices == [1, 1, 1]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"at": 1e12}', '{"at": "x", "choice": {}}', "{broken"]
)
def test_whatever_lies_in_the_cache_does_no_harm(
    tmp_path: Path,
    tiny_corpus: Path,
    score_job: MakeJob,
    choices: list[int],
    cache: Path,
    content: str,
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN)
    first = chosen(job)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert chosen(job).name == first.name
    file.write_text(json.dumps({"at": time.time(), "choice": {"name": "torch"}}))
    assert chosen(job).device == "cpu"
    assert choices == [1, 1, 1]


def test_a_cache_that_cannot_be_written_costs_the_trials_alone(
    tmp_path: Path,
    tiny_corpus: Path,
    score_job: MakeJob,
    choices: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    job = score_job(tiny_corpus, tmp_path / "out", *OPEN)
    assert_never_kept(job, choices)


def test_lengths_of_one_bin_are_alike() -> None:
    texts = ["x" * 100] * 10
    assert remembered.key_of({}, texts) == remembered.key_of({}, ["x" * 104] * 7)
    assert remembered.key_of({}, texts) != remembered.key_of({}, ["x" * 200] * 10)
    assert remembered.key_of({}, texts) != remembered.key_of({"threads": 1}, texts)
