"""The report of a night: made at its end, by itself or when asked, without anybody's texts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run
from support.displays import Spoken
from support.nights import made_up_night

from ray_mlc.config import ScoreJob
from ray_mlc.errors import LimitError, RayMlcError, UsageError
from ray_mlc.model.folder import open_model
from ray_mlc.report.findings import findings
from ray_mlc.runtime import report as report_module
from ray_mlc.runtime.interrupt import Deadline
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.report import leaving_a_report, report_night
from ray_mlc.runtime.score import score

MakeJob = Callable[..., ScoreJob]
WORD = "quibblefrotz"
"""Stands in every text of `secret`, and nowhere else."""


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose texts can be found again; some of its rows cannot be scored."""
    folder = tmp_path_factory.mktemp("secret")
    texts = [f"{WORD} {row} the meeting starts at {WORD}".encode() for row in range(40)]
    texts[7] = WORD.encode() + b"\xff\xfe"
    table = {"text": pa.array([None, *texts], pa.binary()), "id": range(41)}
    pq.write_table(pa.table(table), folder / "a.parquet")
    return folder


@pytest.fixture(scope="module")
def tagged(
    secret: Path, score_job: MakeJob, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run over it that has left its report, and what was said."""
    output, display = tmp_path_factory.mktemp("tagged") / "out", Spoken()
    job = score_job(secret, output, "report.at_end=true", "limits.bad_rows=1")
    score(job, LocalBackend(), display)
    return output, display.said


def page_of(output: Path, night: int = 1) -> Path:
    return output / f"_ray_mlc/runs/{night}/report.html"


def test_a_night_leaves_its_report_and_says_where(tagged: tuple[Path, list[str]]) -> None:
    output, said = tagged
    assert said[-1] == f"report: {page_of(output)}"
    html = page_of(output).read_text(encoding="utf-8")
    assert "ray-mlc" in html[:300]  # the mark by which a later report may replace it
    for title in (
        "In short",
        "Rows and files",
        "How often labels are given",
        "The model&#39;s card",
    ):
        assert title in html
    assert "decode_error" in html
    assert "kind: score" in html  # the job


def test_no_text_is_shown_unless_asked_for(
    tagged: tuple[Path, list[str]], tmp_path: Path, secret: Path
) -> None:
    output, _ = tagged
    assert WORD not in page_of(output).read_text(encoding="utf-8")
    figures = report_night(str(output), Spoken(), to=tmp_path / "plain.html")
    assert WORD not in json.dumps(figures)
    assert WORD not in (tmp_path / "plain.html").read_text(encoding="utf-8")
    report_night(str(output), Spoken(), to=tmp_path / "texts.html", texts=True)
    shown = (tmp_path / "texts.html").read_text(encoding="utf-8")
    cell = figures["uncertain"][0]
    assert pq.read_table(secret / "a.parquet")["text"][cell["row"]].as_py().decode() in shown


def test_the_job_may_ask_for_texts(secret: Path, tmp_path: Path, score_job: MakeJob) -> None:
    output = tmp_path / "out"
    job = score_job(secret, output, "report={texts: true}", "limits.bad_rows=1")
    score(job, LocalBackend(), Spoken())
    assert WORD in page_of(output).read_text(encoding="utf-8")
    # so does a report that is made later, unless it is told not to
    report_night(str(output), Spoken())
    assert WORD in page_of(output).read_text(encoding="utf-8")
    report_night(str(output), Spoken(), texts=False)
    assert WORD not in page_of(output).read_text(encoding="utf-8")


def test_a_run_that_is_complete_already_keeps_its_report(
    tagged: tuple[Path, list[str]], secret: Path, score_job: MakeJob
) -> None:
    output, _ = tagged
    before = page_of(output).stat().st_mtime_ns
    job = score_job(secret, output, "report.at_end=true", "limits.bad_rows=1")
    score(job, LocalBackend(), Spoken())
    assert page_of(output).stat().st_mtime_ns == before
    page_of(output).unlink()  # one that is gone is made again
    score(job, LocalBackend(), Spoken())
    assert page_of(output).is_file()


def test_a_report_that_fails_is_a_warning_and_the_night_stands(
    secret: Path, tmp_path: Path, score_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("no figures today")

    monkeypatch.setattr(report_module, "night_page", fail)
    output, display = tmp_path / "out", Spoken()
    job = score_job(secret, output, "report.at_end=true", "limits.bad_rows=1")
    assert score(job, LocalBackend(), display)["rows"]["written"] == 41
    assert (output / "_SUCCESS").exists()
    assert not page_of(output).exists()
    warning = display.said[-1]
    assert warning.startswith("warning: the report of this night could not be made (no figures ")
    assert warning.endswith(f"`ray-mlc report {output}` tries again")


def test_without_at_end_none_is_made(tiny_run: Path) -> None:
    assert not page_of(tiny_run).exists()


def test_a_night_beyond_its_limits_leaves_its_report_too(
    secret: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    shutil.copy(secret / "a.parquet", tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no footer")
    output = tmp_path / "out"
    job = score_job(tmp_path / "*.parquet", output, "report.at_end=true", "limits.bad_rows=1")
    with pytest.raises(LimitError):
        score(job, LocalBackend(), Spoken())
    html = page_of(output).read_text(encoding="utf-8")
    assert "beyond limits" in html
    assert "b.parquet" in html
    assert "repair or remove it" in html  # the remedy


@pytest.mark.parametrize(
    ("error", "ahead_s", "made"),
    [
        (RayMlcError("stopped at 06:00"), -1.0, True),
        (RayMlcError("nothing was heard"), 60.0, False),
        (UsageError("wrong"), -1.0, False),
        (KeyboardInterrupt(), -1.0, False),
    ],
)
def test_of_runs_that_fail_only_one_that_the_clock_stopped_leaves_a_report(
    error: BaseException,
    ahead_s: float,
    made: bool,
    tiny_run: Path,
    tmp_path: Path,
    score_job: MakeJob,
    tiny_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        report_module,
        "report_night",
        lambda output, *_, **__: asked.append(output) or {"report": "there"},
    )
    job = score_job(tiny_corpus, tiny_run, "report.at_end=true")
    deadline = Deadline("06:00", time.monotonic() + ahead_s)
    folder = open_model(job.model)
    with (
        pytest.raises(type(error)),
        leaving_a_report(job, folder, Spoken(), deadline=deadline),
    ):
        raise error
    assert asked == ([job.output.path] if made else [])


def test_a_model_that_has_gone_or_changed_is_said_and_no_obstacle(
    secret: Path, tiny_model: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    output = tmp_path / "out"
    job = score_job(secret, output, "limits.bad_rows=1", model=model)
    score(job, LocalBackend(), Spoken())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "changed": 1}))
    display = Spoken()
    report_night(str(output), display)
    assert any("is not the model of the run any more" in line for line in display.said)
    shutil.rmtree(model)
    display = Spoken()
    report_night(str(output), display)
    assert any("is not here: no training rates, no card" in line for line in display.said)
    html = page_of(output).read_text(encoding="utf-8")
    assert '<article class="card">' not in html
    assert "The model&#39;s folder, with the rates of training, was not found" in html


def test_the_command_prints_what_stands_out_and_data_for_programs(
    tagged: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, _ = tagged
    page = tmp_path / "page.html"
    assert run(monkeypatch, "report", str(output), "--to", str(page), "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "All 41 rows of 1 file(s) are there."
    assert "1 row(s) were not scored: decode_error." in lines
    assert lines[-1] == f"report: {page}"
    assert run(monkeypatch, "report", str(output), "--json", "--quiet") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["report"] == str(page_of(output))
    assert figures["rows"]["written"] == 41
    assert figures["findings"][0]["finding"] == lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{empty}",), "there is no run here"),
        (("{output}", "--night", "3"), "there is no night 3: the run has only night 1"),
        (("{output}", "--to", "{foreign}"), "no report of ray-mlc"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.html").write_text("my own page")
    places = {"empty": tmp_path, "output": tiny_run, "foreign": tmp_path / "mine.html"}
    words = [word.format(**places) for word in arguments]
    assert run(monkeypatch, "report", *words, "--quiet") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "my own page"


def test_status_and_nightly_say_where_the_report_is(
    tagged: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, _ = tagged
    assert run(monkeypatch, "status", str(output)) == 0
    assert f"report of night 1: {page_of(output)}" in capsys.readouterr().out.splitlines()
    job = output / "_ray_mlc/job.yaml"
    assert run(monkeypatch, "nightly", str(job), "--local", "--quiet") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {page_of(output)}"


def test_a_night_beyond_its_drift_says_so_and_not_that_rows_were_set_aside() -> None:
    label = {"label": "spam", "psi": 0.9, "rate": 0.2, "validation_rate": 0.01}
    drift = {"beyond": 1, "of_labels": 2, "limit": {"psi": 0.25, "labels": 0}, "labels": [label]}
    figures = {
        **made_up_night(["spam", "ham"]),
        "state": "beyond limits",
        "drift": [{**drift, "night": 2, "same_decision": True}],
    }
    said = findings(figures)
    assert said[0][0] == (
        "Drift: the scores of 1 of 2 label(s) have moved away from the model's validation by a psi "
        "above 0.25: spam (0.90, given to 20.00%, there 1.00%)."
    )
    assert "ray-mlc compare MODEL OUTPUT@2" in said[0][1]
    assert not any("set aside" in text for text, _ in said)


def test_a_night_is_no_success_for_the_drift_of_one_before_it_and_names_that_one() -> None:
    label = {"label": "spam", "psi": 0.9}
    drift = {"of_labels": 2, "limit": {"psi": 0.25, "labels": 0}, "same_decision": False}
    before = {**drift, "night": 2, "beyond": 1, "labels": [label]}
    night = {**drift, "night": 3, "beyond": 0, "labels": []}
    figures = {**made_up_night(["spam", "ham"]), "night": 3, "state": "beyond limits"}
    said = findings({**figures, "drift": [before, night]})
    assert said[0][0].startswith("Drift in night 2: the scores of 1 of 2 label(s) have moved")
    assert "ray-mlc compare MODEL OUTPUT@2" in said[0][1]
    assert not any("set aside" in text for text, _ in said)


def test_findings_name_labels_that_have_moved() -> None:
    label = {"given": 900, "interval": [0.08, 0.1], "training": None, "from_training": None}
    far = {**label, "label": "far", "rate": 0.09, "before": 0.03, "from_before": 30.0}
    # beyond chance, but by too little to matter
    near = {**label, "label": "near", "rate": 0.09, "before": 0.08, "from_before": 9.0}
    none = {**label, "label": "none", "given": 0, "rate": 0.0, "before": 0.0, "from_before": 0.0}
    figures = {
        "state": "complete",
        "drift": [],
        "night": 2,
        "rows": {"planned": 10_000, "written": 10_000, "set_aside": 0, "missing": 0},
        "files": {"planned": 1, "set_aside": 0, "missing": 0},
        "set_aside": [],
        "set_aside_count": 0,
        "problems": [],
        "statuses": {"ok": 9_000, "null_text": 1_000},
        "scored": 9_000,
        "truncated": 900,
        "training": {"cut": 0.02},
        "labels": [far, near, none],
    }
    said = [finding for finding, _ in findings(figures)]
    assert said == [
        "All 10,000 rows of 1 file(s) are there.",
        "1,000 row(s), 10.0 %, have no text.",
        "A label is given beyond chance more or less often than the night before: 'far' 3.0 % → "
        "9.0 %.",
        "1 of 3 labels are given to no row: 'none'.",
        "10.0 % of the texts are longer than what the model reads; of the training texts it was "
        "2.0 %.",
    ]
