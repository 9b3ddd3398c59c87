"""Every job file that comes with the project is one, and does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from ray_mlc.job_files import parse_yaml, schema_of
from ray_mlc.runtime.job_ids import KINDS, check_stop_wait, read_job
from ray_mlc.runtime.jobs import shipped_text

JOBS = Path(__file__).parents[2] / "jobs"
FILES = sorted(JOBS.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(JOBS)))
def test_a_job_file_is_read_and_can_be_submitted(file: Path, tmp_path: Path) -> None:
    job = read_job(file)
    assert check_stop_wait(job) > 0
    copy = tmp_path / "job.yaml"
    copy.write_text(shipped_text(job), encoding="utf-8")
    assert read_job(copy) == job


def complaints(text: str) -> list[str]:
    """What an editor marks in a job file."""
    tree = parse_yaml(text)
    schema = schema_of(KINDS[tree.get("kind", "score")])
    found = jsonschema.Draft202012Validator(schema).iter_errors(tree)
    return [f"{list(error.absolute_path)}: {error.message}" for error in found]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(JOBS)))
def test_an_editor_that_has_the_schema_marks_nothing_in_a_job_file(file: Path) -> None:
    assert complaints(file.read_text(encoding="utf-8")) == []
    assert complaints(shipped_text(read_job(file))) == []


SCORE = "{kind: score, model: m, input: in, output: out"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (SCORE + ", limits: {no_progress: 10m, grace: 60, drift: 0.2}}", True),
        (SCORE + ", limits: {no_progres: 10m}}", False),
        (SCORE + ", limits: {no_progress: [10]}}", False),
        ("{kind: score, model: m, input: [a, b], output: {path: out, k: 5}}", True),
        ("{kind: score, model: m, input: 3, output: out}", False),
        ("{kind: score, model: {a: x, b: y}, input: in, output: {a: o, b: {path: p}}}", True),
        ("{kind: score, model: {a: x, b: y}, input: in, output: {a: 5}}", False),
        (
            "{kind: train, data: {train: t, validation: v}, output: o, training: {loss: focal}}",
            True,
        ),
        ("{kind: train, data: {train: t, validation: v}, output: o, training: {loss: 4}}", False),
        (
            "{kind: train, data: {train: t, validation: v}, output: o, training: {loss: focl}}",
            False,
        ),
    ],
)
def test_the_schema_knows_short_forms_and_mistakes(text: str, good: bool) -> None:
    assert (complaints(text) == []) == good


def test_all_of_them_were_looked_at() -> None:
    names = {file.name for file in FILES}
    assert {
        "nightly.yaml",
        "score.yaml",
        "several.yaml",
        "train.yaml",
        "tune.yaml",
        "evaluate.yaml",
        "jigsaw.yaml",
    } <= names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(JOBS)))
def test_commands_in_their_comments_exist(file: Path) -> None:
    import typer

    from ray_mlc.cli.app import app

    group = typer.main.get_command(app)
    for line in re.findall(r"ray-mlc ([a-z ]+)", file.read_text(encoding="utf-8")):
        words = line.split()
        command = group.commands[words[0]]  # type: ignore[attr-defined]
        if hasattr(command, "commands") and words[1:]:
            assert words[1] in command.commands
