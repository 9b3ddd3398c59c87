"""The command line as a user meets it: help, exit codes, one line per error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run
from support.models import LIGHT_ENGINE

HEAVY = ("torch", "ray", "transformers", "pyarrow", "sklearn", "numpy", "datasets")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["score", "--help"], ["tune", "--help"], ["data", "--help"]),
        *(["jobs", "--help"], ["jobs", "submit", "--help"], ["nightly", "--help"]),
        ["cluster", "render", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['ray-mlc', *{arguments!r}]\n"
        "from ray_mlc.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_module_runs_as_the_script_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_mlc", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ray-mlc 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "--modle", "x"], "No such option: --modle"),
        (["scroe"], "No such command 'scroe'"),
        (["score", "missing.yaml"], "missing.yaml: there is no such job file"),
        (["score", "--model", "m", "--input", "i"], "output is missing"),
        (["score", "--model", "m", "--set", "batching.max_batch_token=1"], "max_batch_tokens?"),
        (["train", "--train", "a", "--validation", "b", "--output", "o", "--set", "x"], "--set x"),
        (["tune", "missing.yaml"], "missing.yaml: there is no such job file"),
        (["tune", "--set", "search.training.epochs=[1]"], "train is missing"),
        (["evaluate", "./no-model", "x.parquet"], "there is no such folder"),
        (["predict", "./no-model", "a text"], "there is no such folder"),
        (["status", "./no-run"], "there is no run here"),
        (["verify", "./no-run"], "there is no run here"),
        (["config", "schema", "sing"], "expected score, train, tune, evaluate or cluster"),
        (["nightly", "missing.yaml"], "missing.yaml: there is no such job file"),
        (["jobs", "submit", "missing.yaml"], "missing.yaml: there is no such job file"),
        (["jobs", "sumbit"], "No such command 'sumbit'"),
        (["jobs", "list"], "no cluster is named"),
        (["jobs", "logs", "x", "--follow", "--json"], "--json has no meaning with --follow"),
        (["data", "convert", "./none.csv", "out.parquet"], "none.csv"),
    ],
)
def test_a_wrong_command_says_so_in_one_line_and_exits_2(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run(monkeypatch, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_file_that_is_no_job_is_not_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("kind: cluster\n")
    assert run(monkeypatch, "jobs", "submit", str(tmp_path / "c.yaml"), "--address", "auto") == 2
    assert "kind is 'cluster', expected score, train, tune" in capsys.readouterr().err


def test_score_status_and_verify_work_together(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"text": ["one text", None, " ", "another"]}), tmp_path / "in/a.parquet"
    )
    options = ["--model", str(tiny_model), "--input", str(tmp_path / "in")]
    out = str(tmp_path / "out")
    assert run(monkeypatch, "score", *options, "--output", out, "--local", "--quiet", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == {"planned": 4, "written": 4, "set_aside": 0}
    assert summary["statuses"] == {"empty": 1, "null_text": 1, "ok": 2}

    assert run(monkeypatch, "status", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "complete"
    assert run(monkeypatch, "verify", out, "--deep", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"]["written"] == 4

    shutil.copy(tmp_path / "out/a/000000000000.parquet", tmp_path / "out/stray.parquet")
    shutil.rmtree(tmp_path / "out/a")
    assert run(monkeypatch, "status", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("damaged: 0 of 4 rows")
    assert said[1].startswith("1 part(s) are gone since the run was complete, such as a/0000")
    assert said[2].startswith("1 Parquet file(s) are in no plan, such as stray.parquet, but")
    assert run(monkeypatch, "verify", out) == 4
    captured = capsys.readouterr()
    assert "does not hold" in captured.out
    assert captured.err.startswith("error: ")


def test_predict_prints_labels_scores_and_latency(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "predict", str(tiny_model), "a text", "--json", "--device", "cpu") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["text"] == "a text"
    assert all(0 <= score <= 1 for score in result["scores"].values())
    assert set(result["labels"]) <= set(result["scores"])
    assert result["latency_ms"] > 0


def test_evaluate_prints_and_saves_the_same_figures(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray_mlc.model.folder import open_model

    known = open_model(str(tiny_model)).label_set.names[0]
    rows = {"text": ["a", "b", "c"], "labels": [[known], [], ["never seen"]]}
    schema = pa.schema([("text", pa.string()), ("labels", pa.list_(pa.string()))])
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "test.parquet")
    saved = tmp_path / "figures.json"
    arguments = ["evaluate", str(tiny_model), str(tmp_path / "test.parquet"), "--json"]
    assert run(monkeypatch, *arguments, "--output", str(saved), "--device", "cpu") == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert json.loads(saved.read_text(encoding="utf-8")) == figures
    assert set(figures) >= {"n", "at_half", "decision", "dummy", "per_label"}
    assert figures["unknown_labels"] == ["never seen"]
    assert "unknown to the model" in captured.err
    unknown = next(row for row in figures["per_label"] if row["label"] == "never seen")
    assert (unknown["support"], unknown["predicted"]) == (1, 0)
    assert figures["report"] == str(tmp_path / "figures.html")


def test_an_evaluation_from_a_job_file_is_the_one_from_options_which_win_over_it(
    tiny_tfidf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {"body": ["a", "b"], "tags": [["x"], []]}
    schema = pa.schema([("body", pa.string()), ("tags", pa.list_(pa.string()))])
    examples = tmp_path / "test.parquet"
    pq.write_table(pa.table(rows, schema=schema), examples)
    job, by_job = tmp_path / "job.yaml", tmp_path / "by-job.json"
    job.write_text(
        f"{{kind: evaluate, model: {tiny_tfidf}, examples: {examples}, text: body, labels: tags,"
        f" output: {by_job}}}"
    )
    assert run(monkeypatch, "evaluate", str(job), "--json") == 0
    one = json.loads(capsys.readouterr().out)
    by_options = tmp_path / "by-options.json"
    columns = ["--text", "body", "--labels", "tags", "--output", str(by_options)]
    assert run(monkeypatch, "evaluate", str(tiny_tfidf), str(examples), *columns, "--json") == 0
    other = json.loads(capsys.readouterr().out)
    for figures in (one, other):
        del figures["report"], figures["seconds"]
    assert one == other
    third = tmp_path / "third.json"
    more = ["--output", str(third), "--set", "texts=true"]
    assert run(monkeypatch, "evaluate", str(job), *more) == 0
    assert third.exists()
    other_examples = tmp_path / "other.parquet"
    pq.write_table(pa.table(rows, schema=schema).slice(0, 1), other_examples)
    assert run(monkeypatch, "evaluate", str(job), str(other_examples), "--json", *more) == 0
    assert json.loads(third.read_text())["n"] == 1
    (tmp_path / "folder").mkdir()
    assert run(monkeypatch, "evaluate", str(job), "--output", str(tmp_path / "folder")) == 0
    assert [file.name[:5] for file in (tmp_path / "folder").glob("*.json")] == ["test-"]
    for words, said in (
        ([str(tmp_path / "no.yaml")], "there is no such job file"),
        ([str(tiny_tfidf)], "examples is missing"),
        ([str(job), "--set", "dtyp=float32"], "did you mean dtype?"),
        ([str(job), "--dtype", "float31"], "dtype is 'float31': expected"),
    ):
        assert run(monkeypatch, "evaluate", *words) == 2
        assert said in capsys.readouterr().err


def test_evaluate_shows_texts_in_its_report_only_if_asked_and_never_in_the_figures(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray_mlc.model.folder import open_model

    names = open_model(str(tiny_model)).label_set.names
    secret = "nobody else may read this"
    rows = {"id": ["7"], "text": [secret], "labels": [list(names)]}
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    arguments = ["evaluate", str(tiny_model), str(tmp_path / "test.parquet"), "--device", "cpu"]
    for more, shown in ([], False), (["--texts"], True):
        where = ["--output", str(tmp_path / "out/figures.json")]
        assert run(monkeypatch, *arguments, *where, *more) == 0
        page, figures = (tmp_path / f"out/figures.{end}" for end in ("html", "json"))
        assert f"report: {page}" in capsys.readouterr().out
        assert (secret in page.read_text(encoding="utf-8")) == shown
        assert secret not in figures.read_text(encoding="utf-8")


def test_an_output_that_names_the_report_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(tiny_model), "none.parquet", "--output", "report.html"]
    assert run(monkeypatch, *arguments) == 2
    assert "names the JSON; the report lies beside it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["score", "train", "tune", "evaluate", "cluster"])
def test_the_schema_of_a_job_describes_every_key(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "config", "schema", kind) == 0
    schema = json.loads(capsys.readouterr().out)
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        for name, key in section.get("properties", {}).items():
            meant = schema["$defs"][key["$ref"].split("/")[-1]] if "$ref" in key else key
            assert key.get("description") or meant.get("description"), f"{section['title']}.{name}"


@pytest.mark.parametrize("path", sorted(Path("jobs").rglob("*.yaml")), ids=str)
def test_every_job_in_the_repository_loads(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "config", "render", str(path)) == 0
    assert "kind:" in capsys.readouterr().out


def test_an_interrupted_command_exits_130_and_says_how_to_continue(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ray_mlc.scoring.verify.progress_of", interrupted)
    assert run(monkeypatch, "status", str(tmp_path)) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: interrupted")
    assert said[1] == f"continue with: ray-mlc status {tmp_path}"


def test_ctrl_c_while_a_module_with_dataclasses_is_imported_exits_130_too(tmp_path: Path) -> None:
    """They `exec` a text, and CPython remembers an interrupt that left one: see `cli.main`."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "import ray_mlc.cli.app\n"
        "def app(**_):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "ray_mlc.cli.app.app = app\n"
        "from ray_mlc.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr


def test_sigterm_ends_a_run_as_ctrl_c_does(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = [f"text number {row}" for row in range(4_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in/a.parquet")
    options = ["--model", str(tiny_model), "--input", str(tmp_path / "in")]
    options += ["--output", str(tmp_path / "out"), "--local", "--set", "units.rows=100"]
    options += ["--set", f"engine.name={LIGHT_ENGINE}", "--set", "engine.dtype=float32"]
    options += ["--set", "report.at_end=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_mlc", "score", *options], stderr=subprocess.PIPE, text=True
    )
    first = tmp_path / "out/a/000000000000.parquet"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with: ray-mlc score" in said
    assert not (tmp_path / "out/_ray_mlc/lease.json").exists()
    done = subprocess.run([sys.executable, "-m", "ray_mlc", "score", *options], check=False)
    assert done.returncode == 0
    assert (tmp_path / "out/_SUCCESS").exists()


def test_a_bad_csv_row_ends_the_command_cleanly_every_time(tmp_path: Path) -> None:
    rows = "".join(f"{row},text {row},0,1\n" for row in range(5_000))
    (tmp_path / "bad.csv").write_text("id,text,a,b\n1,x,0\n" + rows, encoding="utf-8")
    code = "import sys; sys.argv = ['ray-mlc', 'data', 'convert', 'bad.csv', 'out.parquet', "
    code += "'--labels', 'a,b']; from ray_mlc.cli import main; main()"
    for _ in range(5):  # it aborted in one run of five
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "error: bad.csv: row 1 has 3 fields, expected 4: quote fields that hold "
            "',', quotes or line breaks"
        ]


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_model_folder_without_its_decision_is_refused(
    model_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_copy / "ray_mlc.json").unlink()
    assert run(monkeypatch, "predict", str(model_copy), "a text") == 2
    assert "ray_mlc.json is missing beside canaries.json" in capsys.readouterr().err


def test_evaluate_finds_out_before_the_work_that_it_cannot_save(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    arguments = ["evaluate", str(tiny_model), "none.parquet", "--output", str(tmp_path / "file/x")]
    assert run(monkeypatch, *arguments) == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_blank_text_is_empty_for_predict_as_for_score(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "predict", str(tiny_model), " \n", "x", "--json") == 0
    blank, other = json.loads(capsys.readouterr().out)
    assert (blank["status"], blank["scores"]) == ("empty", {})
    assert (other["status"], len(other["scores"])) == ("ok", 12)


def test_set_aside_files_are_named_and_narrower_limits_undo_success(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "in/a.parquet")
    (tmp_path / "in/b.parquet").write_bytes(b"")
    arguments = ["score", "--model", str(tiny_model), "--input", str(tmp_path / "in"), "--local"]
    arguments += ["--quiet", "--output", str(tmp_path / "out")]
    assert run(monkeypatch, *arguments, "--set", "limits.bad_files=1") == 0
    assert run(monkeypatch, "verify", str(tmp_path / "out")) == 0
    assert "set aside: b.parquet" in capsys.readouterr().out
    assert (tmp_path / "out/_SUCCESS").exists()

    assert run(monkeypatch, *arguments, "--json") == 3
    captured = capsys.readouterr()
    assert "b.parquet: footer" in captured.err
    assert json.loads(captured.out)["bad_files"] == 1
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_train_says_in_one_line_that_the_output_is_no_finished_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    options = ["--train", "a.parquet", "--validation", "b.parquet", "--encoder", "e"]
    assert run(monkeypatch, "train", *options, "--output", str(tmp_path / "file")) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
