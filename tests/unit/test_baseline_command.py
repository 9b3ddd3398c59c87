"""`ray-mlc baseline`, and all that can be done with the folder it leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run

from ray_mlc import synthetic
from ray_mlc.evaluation.metrics import METRIC_NAMES

FIGURES = ("dummy", "at_half", "one_threshold", "decision")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    synthetic.write_examples(folder, train=600, validation=200, test=200, seed=0)
    return folder


def options(examples: Path, output: Path, *more: str) -> list[str]:
    sets = ["--train", str(examples / "train.parquet")]
    sets += ["--validation", str(examples / "validation.parquet")]
    return ["baseline", *sets, "--output", str(output), *more]


@pytest.fixture(scope="module")
def fitted(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A baseline and what the command printed; copy it before changing anything."""
    output = tmp_path_factory.mktemp("baseline") / "model"
    test = ["--test", str(examples / "test.parquet"), "--json", "--quiet"]
    code = "import sys; from ray_mlc.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *options(examples, output, *test)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return output, json.loads(done.stdout)


def write(path: Path, texts: Sequence[str | None], labels: Sequence[Sequence[str] | None]) -> str:
    schema = pa.schema([("text", pa.string()), ("labels", pa.list_(pa.string()))])
    pq.write_table(pa.table({"text": texts, "labels": labels}, schema=schema), path)
    return str(path)


def test_the_figures_are_those_of_evaluate_and_beat_the_dummy(
    fitted: tuple[Path, dict[str, Any]],
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, result = fitted
    assert (result["measured_on"], result["n"], result["labels"]) == ("test", 200, 12)
    assert all(tuple(result[name]) == METRIC_NAMES for name in FIGURES)
    assert result["decision"]["f1_micro"] > result["at_half"]["f1_micro"] > 0.1
    assert result["dummy"]["f1_micro"] == 0
    saved = ["--output", str(tmp_path / "figures.json"), "--json", "--quiet"]
    test = str(examples / "test.parquet")
    assert run(monkeypatch, "evaluate", str(model), test, *saved) == 0
    figures = json.loads(capsys.readouterr().out)
    for name in ("dummy", "at_half", "decision"):
        assert figures[name] == pytest.approx(result[name], abs=1e-6)
    assert (figures["dtype"], figures["padding"]) == ("float32", 0)
    seen = json.loads((model / "distribution.json").read_text())
    assert (seen["rows"], list(seen["labels"])) == (200, list(synthetic.LABELS.names))


def test_without_a_test_the_figures_are_held_out_from_the_thresholds(
    fitted: tuple[Path, dict[str, Any]],
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = fitted
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    before = (copy / "model.safetensors").stat().st_mtime_ns
    assert run(monkeypatch, *options(examples, copy)) == 0
    printed = capsys.readouterr()
    assert "is fitted already: same data and settings" in printed.err
    assert "200 validation examples; thresholds fitted on others of them" in printed.out
    assert (copy / "model.safetensors").stat().st_mtime_ns == before
    metrics = json.loads((copy / "ray_mlc.json").read_text())["metrics"]
    assert run(monkeypatch, *options(examples, copy, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["measured_on"] == "validation"
    assert result["decision"] == pytest.approx(metrics["decision_held_out"])
    assert result["decision"]["f1_micro"] < metrics["decision"]["f1_micro"]  # that one flatters


def test_a_folder_with_other_settings_or_other_content_is_left_alone(
    fitted: tuple[Path, dict[str, Any]],
    examples: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = fitted
    encoder = Path(shutil.copytree(tiny_model, tmp_path / "encoder"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    cases = [
        (options(examples, model, "--C", "3"), "made from other data or settings"),
        (options(examples, model, "--seed", "1"), "made from other data or settings"),
        (options(examples, encoder), "made from other data or settings"),
        (options(examples, tmp_path / "notes"), "is not empty, and holds no baseline"),
        (options(examples, tmp_path / "file"), "is a file, expected a folder"),
    ]
    for arguments, said in cases:
        assert run(monkeypatch, *arguments, "--quiet") == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trian", "x"], "No such option: --trian"),
        (["--train", "./none.parquet"], "none.parquet"),
        (["--min-df", "0"], "--min-df"),
        (["--max-features", "none"], "--max-features"),
        (["--C", "0"], "--C is 0"),
        (["--C", "-1"], "--C is -1"),
        (["--C", "nan"], "--C is nan"),
        (["--C", "inf"], "--C is inf"),
        (["--min-df", "100000"], "lower min_df"),
        (["--text", "txet"], "txet"),
        (["--labels", "lables"], "lables"),
        (["--test", "./none.parquet"], "none.parquet"),
    ],
)
def test_a_wrong_command_says_so_in_one_line_and_leaves_nothing(
    examples: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *options(examples, tmp_path / "model", *arguments, "--quiet")) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "model").exists()


def test_labels_that_only_some_sets_have_are_missed_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["red apple", "green pear", "red cherry", "green grape"] * 10
    hostile = '<b>"red"</b>, & more'
    train = write(tmp_path / "t.parquet", texts, [[hostile], ["green"]] * 20)
    rows = [[hostile], ["green", "late"], None, []]
    validation = write(tmp_path / "v.parquet", [*texts[:3], "blank"], rows)
    test = write(tmp_path / "e.parquet", [*texts[:2], None], [[hostile, "new"], ["green"], []])
    sets = ["--train", train, "--validation", validation, "--test", test]
    output = str(tmp_path / "model")
    assert run(monkeypatch, "baseline", *sets, "--output", output, "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["labels"], result["unlearned"], result["n"]) == (3, 1, 3)
    assert "'late': they are never given" in printed.err
    assert "'new': every one of them counts as a miss" in printed.err
    assert result["decision"]["f1_macro"] == pytest.approx(2 / 4)
    assert run(monkeypatch, "predict", output, "a red apple", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["labels"] == [hostile]
    assert found["scores"]["late"] == 0
    assert found["n_tokens"] == 4  # what each begins with, both words, their pair
    assert not found["truncated"]


def test_zero_one_columns_and_cells_nobody_decided_are_learned_from_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["id,body,a,b"]
    rows += [
        f"{n},{'sun' if n % 2 else 'rain'} weather,{n % 2},{-1 if n < 30 else 1}" for n in range(40)
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    sets = ["--train", str(tmp_path / "t.csv"), "--validation", str(tmp_path / "t.csv")]
    more = ["--text", "body", "--labels", "a,b", "--output", str(tmp_path / "model"), "--json"]
    assert run(monkeypatch, "baseline", *sets, *more, "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["at_half"]["binary_accuracy"] == 1
    assert run(monkeypatch, "predict", str(tmp_path / "model"), "sun", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["scores"]["b"] == 1  # positive wherever somebody decided


def test_scored_in_one_process_every_row_has_the_score_that_predict_gives(
    fitted: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    read_output: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = fitted
    (tmp_path / "in").mkdir()
    known = synthetic.documents(30, seed=5)["text"].to_pylist()
    texts = [*known, None, " ", "", "zzzz", "Ünknown wörds 图书馆", " ".join(known)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in/a.parquet")
    scored = ["score", "--model", str(model), "--input", str(tmp_path / "in")]
    scored += ["--output", str(tmp_path / "out"), "--local", "--json"]
    assert run(monkeypatch, *scored) == 0
    printed = capsys.readouterr()
    assert "tfidf float32 on cpu, at most 1048576 tokens" in printed.err
    summary = json.loads(printed.out)
    assert summary["statuses"] == {"empty": 2, "null_text": 1, "ok": len(texts) - 3}
    assert summary["this_process"]["padding"] == 0
    record = json.loads((tmp_path / "out/_ray_mlc/run.json").read_text())
    assert record["identity"]["engine.name"] == "tfidf"
    assert record["engine"]["documents_per_s"] > 0
    assert run(monkeypatch, "verify", str(tmp_path / "out"), "--deep") == 0
    assert "largest difference 0 " in capsys.readouterr().out

    kept = [text for text in texts if text and text.strip()]
    assert run(monkeypatch, "predict", str(model), *kept, "--json") == 0
    expected = json.loads(capsys.readouterr().out)
    rows = [row for row in read_output(tmp_path / "out").to_pylist() if row["status"] == "ok"]
    for row, alone in zip(rows, expected, strict=True):
        assert row["labels"] == alone["labels"]
        assert row["n_tokens"] == alone["n_tokens"]
        assert not row["truncated"]
        for name, score in alone["scores"].items():
            assert row[f"score_{name}"] == np.float32(score)

    # another model under the same name is not let in
    copy = Path(shutil.copytree(model, tmp_path / "other"))
    names = json.loads((copy / "vocabulary.json").read_text())
    (copy / "vocabulary.json").write_text(json.dumps([*names[1:], names[0]]))
    arguments = [str(copy) if item == str(model) else item for item in scored]
    assert run(monkeypatch, *arguments) == 2
    assert "holds a run with model" in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["truncate", "skip"])
def test_a_limit_of_tokens_is_kept_to(
    fitted: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    read_output: Any,
    score_locally: Any,
    policy: str,
) -> None:
    model, _ = fitted
    (tmp_path / "in").mkdir()
    short, long = synthetic.documents(2, seed=5)["text"].to_pylist()
    pq.write_table(
        pa.table({"text": ["short", f"{long} {short} {long}"]}), tmp_path / "in/a.parquet"
    )
    settings = [f"long.policy={policy}", "long.max_tokens=20"]
    settings += ["batching.max_batch_tokens=auto", "limits.bad_rows=1"]
    score_locally(tmp_path / "in", tmp_path / "out", *settings, model=model)
    first, second = read_output(tmp_path / "out").to_pylist()
    assert (first["status"], first["truncated"]) == ("ok", False)
    assert second["n_tokens"] > 20
    cut = policy == "truncate"
    assert second["status"] == ("ok" if cut else "too_long")
    assert second["truncated"] == cut


def test_thresholds_fits_another_decision_and_keeps_the_kind(
    fitted: tuple[Path, dict[str, Any]],
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = fitted
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    validation = str(examples / "validation.parquet")
    arguments = ["thresholds", str(copy), validation, "--objective", "rate<=0.05", "--quiet"]
    assert run(monkeypatch, *arguments) == 0
    assert "no label for more than 5.00% of documents" in capsys.readouterr().out
    info = json.loads((copy / "ray_mlc.json").read_text())
    assert (info["kind"], info["decision"]["objective"]) == ("tfidf", "rate<=0.05")
    assert "TF-IDF" in (copy / "README.md").read_text()
    assert run(monkeypatch, "predict", str(copy), "a text") == 0


def test_what_only_encoders_can_do_is_refused_in_one_line(
    fitted: tuple[Path, dict[str, Any]],
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = fitted
    score = ["score", "--model", str(model), "--input", str(examples), "--local", "--quiet"]
    score += ["--output", str(tmp_path / "out")]
    cases = [
        (["quantize", str(model), "--quiet"], "there is no int8 form of it"),
        ([*score, "--set", "engine.name=openvino"], "openvino is for encoders"),
        ([*score, "--set", "engine.dtype=int8"], "int8 is for encoders"),
        ([*score, "--set", "actors.gpus=1"], "actors.gpus=0"),
        (["predict", str(model), "x", "--dtype", "bfloat16"], "bfloat16 is for encoders"),
        (["predict", str(model), "x", "--device", "cuda"], "leave out device"),
    ]
    for arguments, said in cases:
        assert run(monkeypatch, *arguments) == 2, arguments
        errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(errors) == 1
        assert said in errors[0]


def test_ctrl_c_while_it_fits_leaves_nothing_and_says_how_to_continue(tmp_path: Path) -> None:
    texts = [f"word{n % 97} word{n % 89} word{n % 83}" for n in range(4_000)]
    labels = [[f"label {n % 997}", f"label {n % 991}"] for n in range(4_000)]
    train = write(tmp_path / "t.parquet", texts, labels)
    arguments = ["baseline", "--train", train, "--validation", train]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_mlc", *arguments, "--output", str(tmp_path / "model")],
        stderr=subprocess.PIPE,
        text=True,
        # what a script starts in the background ignores Ctrl-C, and so would this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = ""
    while "reading the words" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, more = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "continue with: ray-mlc baseline --train" in more
    assert "Traceback" not in more
    assert not (tmp_path / "model").exists()


def test_one_that_was_cut_off_while_it_was_written_is_written_again(
    fitted: tuple[Path, dict[str, Any]],
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = fitted
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    (copy / "ray_mlc.json").unlink()
    (copy / "model.safetensors").write_bytes(b"half")
    assert run(monkeypatch, "predict", str(copy), "x") == 2
    assert "not finished" in capsys.readouterr().err
    assert run(monkeypatch, *options(examples, copy, "--quiet")) == 0
    for name in ("config.json", "vocabulary.json", "model.safetensors", "ray_mlc.json"):
        assert (copy / name).read_bytes() == (model / name).read_bytes()
