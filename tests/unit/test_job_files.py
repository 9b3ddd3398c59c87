"""Every job file that comes with the project is one, and does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ray_mlc.runtime.job_ids import check_stop_wait, read_job
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


def test_all_of_them_were_looked_at() -> None:
    names = {file.name for file in FILES}
    assert {
        "nightly.yaml",
        "score.yaml",
        "several.yaml",
        "train.yaml",
        "tune.yaml",
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
