"""An engine that was chosen on this machine is chosen again without trying any."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.listing import list_corpus
from ray_mlc.model.engines import choose, remembered
from ray_mlc.model.engines.choose import ResolvedEngine, describe_trials
from ray_mlc.model.folder import open_model
from ray_mlc.runtime import backend
from ray_mlc.runtime.backend import resolve_engine
from ray_mlc.scoring.plan import inspect_corpus
from ray_mlc.scoring.sample import sample_units

MakeJob = Callable[..., ScoreJob]
OPEN = "batching.max_batch_tokens=auto"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "TRIAL_S", 0.02)
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


def test_a_choice_is_taken_again_and_says_when_it_was_made(
    tmp_path: Path, tiny_corpus: Path, score_job: MakeJob, choices: list[int]
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", OPEN)
    first, second = chosen(job), chosen(job)
    assert choices == [1]
    assert second.measured_at is not None
    assert second.model_copy(update={"measured_at": None}) == first
    assert f"as measured {second.measured_at}" in str(describe_trials(second))
    assert "on documents of this corpus" in str(describe_trials(first))


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (("batching.max_batch_tokens=auto", "long.max_tokens=8"), {}),
        ((OPEN,), {"threads": 2}),
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
    chosen(score_job(tiny_corpus, tmp_path / "out", OPEN))
    again = chosen(score_job(tiny_corpus, tmp_path / "out", *overrides), **options)
    assert choices == [1, 1]
    assert again.measured_at is None


def test_a_job_may_ask_for_trials_each_time(
    tmp_path: Path, tiny_corpus: Path, score_job: MakeJob, choices: list[int], cache: Path
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", OPEN, "engine.remember=false")
    assert [chosen(job).measured_at for _ in range(2)] == [None, None]
    assert choices == [1, 1]
    assert not cache.exists()


def test_an_old_choice_is_made_again(
    tmp_path: Path, tiny_corpus: Path, score_job: MakeJob, choices: list[int], cache: Path
) -> None:
    job = score_job(tiny_corpus, tmp_path / "out", OPEN)
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
    job = score_job(tiny_corpus, tmp_path / "out", OPEN)
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
    job = score_job(tiny_corpus, tmp_path / "out", OPEN)
    assert [chosen(job).measured_at for _ in range(2)] == [None, None]
    assert choices == [1, 1]


def test_lengths_are_alike_within_a_quarter() -> None:
    texts = ["x" * 100] * 10
    assert remembered.key_of({}, texts) == remembered.key_of({}, ["x" * 104] * 7)
    assert remembered.key_of({}, texts) != remembered.key_of({}, ["x" * 200] * 10)
    assert remembered.key_of({}, texts) != remembered.key_of({"threads": 1}, texts)
