"""`ray-mlc thresholds`: the decision that travels with the model is fitted, shown and kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run

from ray_mlc import synthetic
from ray_mlc.cli.tables import print_calibration
from ray_mlc.errors import ConfigError
from ray_mlc.model.decisions import Rules, decide
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.evaluate import load_here
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.thresholds import fit_decision

ROWS = 120


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


@pytest.fixture
def examples(model: Path, tmp_path: Path) -> Path:
    """Examples that the untrained model is right about from thresholds of its own on."""
    documents = synthetic.documents(ROWS, seed=3)
    folder = open_model(str(model))
    classifier = load_here(folder, dtype="float32", device="cpu")
    scores_NL = classifier.predict_proba(documents["text"].to_pylist())
    truth_L = np.quantile(scores_NL, 0.7, axis=0).astype(np.float32)
    names = np.array(folder.label_set.names)
    labels = [names[row].tolist() for row in decide(scores_NL, Rules(truth_L))]
    file = tmp_path / "validation.parquet"
    pq.write_table(documents.set_column(2, "labels", pa.array(labels)), file)
    return file


def fit(model: Path, examples: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "objective": "f1",
        "per_label": True,
        "text": "text",
        "labels": "labels",
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
        "output": None,
        "display": Display(quiet=True),
        **options,
    }
    return fit_decision(str(model), [str(examples)], **settings)


def test_the_fitted_decision_is_kept_and_used_and_the_weights_stay(
    model: Path, examples: Path
) -> None:
    before = open_model(str(model))
    result = fit(model, examples)
    after = open_model(str(model))
    assert after.digest == before.digest
    assert after.info.decision.model_dump(mode="json") == result["decision"]
    assert len(after.info.decision.per_label) >= len(after.label_set) - 1
    assert result["metrics"]["fitted"]["f1_micro"] > 0.95
    assert result["metrics"]["before"]["f1_micro"] < 0.9
    assert result["metrics"]["held_out"]["f1_micro"] <= result["metrics"]["fitted"]["f1_micro"]
    assert after.info.metrics["decision_held_out"] == result["metrics"]["held_out"]
    assert (written := after.distribution()) is not None
    assert (written.rows, written.decision) == (ROWS, after.info.decision.digest)
    again = fit(model, examples)
    assert again["metrics"]["before"] == result["metrics"]["fitted"]
    card = (model / "README.md").read_text()
    assert "thresholds of their own between" in card
    columns = card.partition("| validation |")[2].partition("\n")[0]
    assert [c.strip() for c in columns.split("|") if "interval" not in c and c.strip()] == [
        "at 0.5", "at the decision", "the same, on documents held out of its fit",
    ]  # fmt: skip
    assert f"Fitted for `f1` on {ROWS} validation examples" in card
    assert f"`{examples}`" in card
    assert after.info.metrics["measured_on"]["documents"] == ROWS
    low, high = after.info.metrics["intervals"]["decision_held_out"]["f1_micro"]
    assert low < result["metrics"]["held_out"]["f1_micro"] < high


def test_a_decision_in_a_file_of_its_own_leaves_the_folder_alone(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    result = fit(model, examples, output=tmp_path / "decision.json", per_label=False)
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before
    written = json.loads((tmp_path / "decision.json").read_text())
    assert written == result["decision"]
    assert written["per_label"] == {}


def test_a_rate_gives_each_label_to_no_more_documents(model: Path, examples: Path) -> None:
    fit(model, examples, objective="rate<=0.1")
    folder = open_model(str(model))
    texts = pq.read_table(examples)["text"].to_pylist()
    scores_NL = load_here(folder, dtype="float32", device="cpu").predict_proba(texts)
    given = decide(scores_NL, folder.info.decision.rules(folder.label_set))
    assert (given.sum(axis=0) == int(0.1 * ROWS)).all()


def test_a_folder_that_another_program_made_is_left_alone(model: Path, examples: Path) -> None:
    for name in ("ray_mlc.json", "canaries.json", "history.jsonl"):
        (model / name).unlink()
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    with pytest.raises(
        ConfigError, match=r"not a local folder that ray-mlc has made: give --output"
    ):
        fit(model, examples)
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before


def test_what_is_printed_for_programs_is_json_whatever_the_shrinkage(
    model: Path, examples: Path
) -> None:
    result = fit(model, examples, objective="f1", per_label=True)
    json.dumps(result, allow_nan=False)
    result = fit(model, examples, objective="precision>=0.9")
    json.dumps(result, allow_nan=False)
    assert result["reached"]["fitted"]["precision"] > 0.85
    assert not (model / "_tmp").exists()


def test_the_command_shows_what_to_expect_and_where_it_went(
    model: Path,
    examples: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "thresholds", str(model), str(examples), "--quiet") == 0
    shown = capsys.readouterr().out
    assert "held out" in shown
    assert f"written: {model}/ray_mlc.json" in shown
    assert (
        run(monkeypatch, "thresholds", str(model), str(examples), "--one", "--json", "--quiet") == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["decision"]["per_label"] == {}
    assert open_model(str(model)).info.decision.threshold == printed["decision"]["threshold"]


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_a_calibration_is_kept_in_the_folder_and_changes_no_label_and_no_weight(
    method: str, model: Path, examples: Path
) -> None:
    plain = fit(model, examples, output=model / "plain.json")
    before = open_model(str(model))
    result = fit(model, examples, calibrate=method)
    after = open_model(str(model))
    assert after.digest == before.digest
    assert after.info.decision.calibration is not None
    assert after.info.decision.calibration.method == method
    assert after.info.decision.uncalibrated.model_dump() == plain["decision"]
    assert result["metrics"]["fitted"] == plain["metrics"]["fitted"]
    errors = result["calibration"]["error"]
    assert errors["fitted"]["log_loss"] < errors["before"]["log_loss"]
    assert set(errors) == {"before", "fitted", "held_out"}
    assert after.info.metrics["calibration"] == result["calibration"]
    assert json.loads((model / "ray_mlc.json").read_text())["schema_version"] == 2
    assert (
        f"A calibration ({method}) turns scores into probabilities"
        in (model / "README.md").read_text()
    )
    json.dumps(result, allow_nan=False)


def test_what_is_not_given_stays_as_the_model_has_it_and_this_is_said(
    model: Path, examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(
        model,
        examples,
        objective="precision>=0.9",
        calibrate="platt",
        fallback=2,
        fallback_floor=0.25,
    )
    first = open_model(str(model)).info.decision
    capsys.readouterr()
    command = ["thresholds", str(model), str(examples)]
    assert run(monkeypatch, *command) == 0
    told = capsys.readouterr()
    assert (
        "as the model has it: --objective precision>=0.9, --calibrate platt, --fallback 2, "
        "--fallback-floor 0.25"
    ) in told.err
    assert "thresholds for precision>=0.9" in told.out
    assert open_model(str(model)).info.decision == first
    # one of them given: the others stay
    assert run(monkeypatch, *command, "--objective", "f1", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["objective"] == "f1"
    assert set(result["kept"]) == {"calibrate", "fallback", "fallback_floor"}
    now = open_model(str(model)).info.decision
    assert now.objective == "f1"
    assert (now.fallback, now.fallback_floor) == (2, 0.25)
    assert now.calibration is not None
    assert now.calibration.method == "platt"
    assert run(monkeypatch, *command, "--calibrate", "isotonic") == 0
    now = open_model(str(model)).info.decision
    assert now.objective == "f1"
    assert now.calibration is not None
    assert now.calibration.method == "isotonic"
    # and each can go
    assert run(monkeypatch, *command, "--calibrate", "none", "--fallback", "0") == 0
    written = json.loads((model / "ray_mlc.json").read_text())
    assert set(written["decision"]) == {"threshold", "per_label", "objective"}
    assert "calibration" not in written["metrics"]


def test_nothing_is_said_to_stay_before_it_is_known_that_it_can(
    model: Path, examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(model, examples, calibrate="platt")
    capsys.readouterr()
    for arguments in (
        [str(model), "/nowhere.parquet"],
        [str(model), str(examples), "--calibrate", "beta"],
        [str(model), str(examples), "--fallback", "0", "--fallback-floor", "0.1"],
        [str(model), str(examples), "--hierarchy", "/nowhere/labels.yaml"],
        [str(model), str(examples), "--text", "txet"],
    ):
        assert run(monkeypatch, "thresholds", *arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert len(told.strip().splitlines()) == 1


def test_a_hierarchy_is_in_all_figures_and_stays_until_another_one_is_given(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    one, two, three = open_model(str(model)).label_set.names[:3]
    file = tmp_path / "labels.yaml"
    file.write_text(f"{one}: {two}\n{two}: [{three}]\n")
    plain = fit(model, examples, output=tmp_path / "plain.json")
    result = fit(model, examples, hierarchy=file)
    parents = {one: [two], two: [three]}
    assert result["decision"]["hierarchy"] == parents
    assert result["decision"]["per_label"] == plain["decision"]["per_label"]
    for name in ("fitted", "held_out"):
        # labels above that nobody annotated are given: what is measured is what is decided
        assert result["metrics"][name]["f1_micro"] < plain["metrics"][name]["f1_micro"]
        assert result["reached"][name]["precision"] < plain["reached"][name]["precision"]
    assert result["metrics"]["at_half"] == plain["metrics"]["at_half"]
    assert fit(model, examples)["decision"]["hierarchy"] == parents
    file.write_text("")
    assert "hierarchy" not in fit(model, examples, hierarchy=file)["decision"]


@pytest.mark.parametrize(
    ("objective", "fallback", "said"),
    [("rate<=0.05", None, False), ("rate<=0.05", 1, True), ("precision>=1", 1, True)],
)
def test_an_objective_that_does_not_hold_is_told_of(
    model: Path,
    examples: Path,
    capsys: pytest.CaptureFixture[str],
    objective: str,
    fallback: int | None,
    said: bool,
) -> None:
    # one threshold's decisions on held-out parts may be a document over: judged as they are
    found = fit(
        model, examples, objective=objective, fallback=fallback, display=Display(quiet=False)
    )
    held = found["reached"]["held_out"]
    holds = held["largest_rate"] <= 0.05 if "rate" in objective else held["precision"] >= 1
    assert (f"{objective} does not hold on" in capsys.readouterr().err) == (not holds)
    if said:
        assert not holds


def test_a_fall_back_leaves_no_text_without_a_label(model: Path, examples: Path) -> None:
    result = fit(model, examples, objective="precision>=0.99", fallback=1)
    folder = open_model(str(model))
    assert (folder.info.decision.fallback, folder.info.decision.fallback_floor) == (1, 0)
    texts = pq.read_table(examples)["text"].to_pylist()
    scores_NL = load_here(folder, dtype="float32", device="cpu").predict_proba(texts)
    rules = folder.info.decision.rules(folder.label_set)
    assert not decide(scores_NL, Rules(rules.thresholds_L)).any(axis=1).all()
    assert decide(scores_NL, rules).any(axis=1).all()
    card = (model / "README.md").read_text()
    assert "A text without any gets its 1 best." in card
    assert result["decision"]["fallback"] == 1


def test_evaluate_takes_a_decision_from_a_file_and_shows_the_error_before_and_after(
    model: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, saved = tmp_path / "decision.json", tmp_path / "saved.json"
    fitted = fit(model, examples, output=file, calibrate="isotonic", fallback=2)
    command = ["evaluate", str(model), str(examples), "--device", "cpu", "-q"]
    command += ["--output", str(saved)]
    assert run(monkeypatch, *command, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["calibration"]["method"] is None
    assert plain["calibration"]["calibrated"] is None
    assert run(monkeypatch, *command, "--decision", str(file), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["threshold"] == fitted["decision"]["threshold"]
    assert result["decision"] == pytest.approx(fitted["metrics"]["fitted"])
    assert result["at_half"] == plain["at_half"]
    assert result["calibration"]["scores"] == plain["calibration"]["scores"]
    assert result["calibration"]["calibrated"] == pytest.approx(
        fitted["calibration"]["error"]["fitted"]
    )
    assert run(monkeypatch, *command, "--decision", str(file)) == 0
    assert "by isotonic" in capsys.readouterr().out


def test_predict_shows_probabilities_beside_scores_in_the_order_of_the_scores(
    model: Path,
    examples: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["predict", str(model), "a text", " ", "--device", "cpu"]
    assert run(monkeypatch, *command, "--json") == 0
    before = json.loads(capsys.readouterr().out)
    assert [item["probabilities"] for item in before] == [None, None]
    fit(model, examples, calibrate="isotonic")
    capsys.readouterr()
    assert run(monkeypatch, *command, "--json") == 0
    after, blank = json.loads(capsys.readouterr().out)
    assert blank["probabilities"] == {}
    assert after["scores"] == before[0]["scores"]
    assert list(after["probabilities"]) == list(after["scores"])
    decision = open_model(str(model)).info.decision
    assert decision.calibration is not None
    scores = np.array([list(after["scores"].values())], np.float32)
    expected = decision.calibration.probabilities(scores, open_model(str(model)).label_set)
    np.testing.assert_allclose(list(after["probabilities"].values()), expected[0], rtol=1e-6)
    assert run(monkeypatch, *command) == 0
    assert " calibrated)  " in capsys.readouterr().out


@pytest.mark.parametrize(("held_out", "said"), [(0.4, False), (0.5, True), (0.6, True)])
def test_a_calibration_that_does_not_help_is_told_of(
    held_out: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {
        name: {"ece": 0.1, "ece_macro": None, "log_loss": 0.5} for name in ("before", "fitted")
    }
    errors["held_out"] = {**errors["before"], "log_loss": held_out}
    print_calibration({"method": "platt", "own": 0, "error": errors})
    shown = capsys.readouterr().out
    assert "all labels share one curve" in shown
    assert ("no better than the scores themselves" in shown) == said


def test_a_decision_file_replaces_another_whole_and_leaves_nothing_beside_it(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    file = tmp_path / "decision.json"
    file.write_text("something else")
    result = fit(model, examples, output=file)
    assert json.loads(file.read_text()) == result["decision"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--calibrate", "beta"], "--calibrate is 'beta', expected none, temperature, platt"),
        (["--fallback-floor", "0.1"], "--fallback-floor has no meaning without --fallback"),
        (["--hierarchy", "/nowhere/labels.yaml"], "there is no such file of label parents"),
        (["--output", "/"], "/: cannot be written: choose another --output"),
        (["--objective", "accuracy"], "unknown objective accuracy: expected f1"),
        (["--objective", "rate<=2"], "expected a number above 0 and at most 1"),
        (["--output", "/nowhere/decision.json"], "/nowhere/decision.json: cannot be written"),
    ],
)
def test_what_cannot_be_fitted_or_kept_is_one_line(
    arguments: list[str],
    said: str,
    model: Path,
    examples: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (model / "ray_mlc.json").read_bytes()
    assert run(monkeypatch, "thresholds", str(model), str(examples), "--quiet", *arguments) in (
        1,
        2,
    )
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1]
    assert (model / "ray_mlc.json").read_bytes() == before


def test_a_label_that_the_model_does_not_know_is_refused(
    model: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pq.read_table(examples)
    labels = table["labels"].to_pylist()
    labels[5] = ["unheard of"]
    other = tmp_path / "other.parquet"
    pq.write_table(table.set_column(2, "labels", pa.array(labels)), other)
    assert run(monkeypatch, "thresholds", str(model), str(other), "--quiet") == 2
    assert "has label 'unheard of', which the model does not know" in capsys.readouterr().err
