"""Fit a model's decision on labelled examples, and keep it in the model folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_mlc.errors import ConfigError, DataError, StorageError
from ray_mlc.evaluation.calibration import (
    FittedCalibration,
    curves_to_fit,
    describe_fit,
    fit_calibration,
)
from ray_mlc.evaluation.evaluate import evaluate_scores_at
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.evaluation.thresholds import Objective, fit_thresholds, reached
from ray_mlc.model.calibration import METHODS
from ray_mlc.model.decisions import complete, decide
from ray_mlc.model.folder import INFO_FILE, ModelFolder, open_model, write_decision
from ray_mlc.model.hierarchy import read_hierarchy
from ray_mlc.runtime.evaluate import load_here, read_known
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import local_path, write_file

CALIBRATIONS = ("none", *METHODS)


def fit_decision(
    model: str,
    examples: Sequence[str],
    *,
    objective: str,
    per_label: bool,
    text: str,
    labels: str | Sequence[str],
    dtype: str,
    device: str,
    seed: int,
    output: Path | None,
    display: Display,
    calibrate: str = "none",
    hierarchy: Path | None = None,
    fallback: int | None = None,
    fallback_floor: float = 0.0,
) -> dict[str, Any]:
    """Fit thresholds, and a calibration, on examples that the model was not trained on.

    Thresholds are fitted as if there were neither hierarchy nor fall-back: each label's is the best
    one for the label alone. All figures are of the whole decision.

    Args:
        model: Model folder.
        examples: Labelled examples; never those of the test.
        objective: See `evaluation.thresholds.Objective.parse`.
        per_label: Whether labels may have thresholds of their own.
        text: Column, or template, of the text.
        labels: Column or columns of the labels.
        dtype: Precision of the scores.
        device: `cpu`, `cuda` or `auto`.
        seed: Of the folds of the cross-validation.
        output: JSON file for the decision; None: the model folder takes it.
        display: Told about progress.
        calibrate: `none`, or a method of `model.calibration`.
        hierarchy: File of label parents; None: the one that the model folder has, if any.
        fallback: Labels for a document that would get none; None: it gets none.
        fallback_floor: Smallest score with which one is given so.

    Returns:
        `labels` (how many), `decision`, `shrinkage` (null where all labels share one threshold, or
        it was no question), `reached` (see there, for `fitted` and `held_out`), `metrics`: by name
        `at_half`, `before` (the folder's decision until now), `fitted` (on the examples that it was
        fitted on: flattering) and `held_out` (decisions of cross-validation: what to expect of
        other documents), and `calibration` (`evaluation.calibration.describe_fit`; null: there is
        none).

    Raises:
        ConfigError: If the objective or calibration is unknown, or the hierarchy is not one.
        DataError: If the examples have a label that the model does not know.
    """
    folder = open_model(model)
    Objective.parse(objective)  # not after the scoring
    if calibrate not in CALIBRATIONS:
        raise ConfigError(f"--calibrate is {calibrate!r}, expected {', '.join(CALIBRATIONS)}")
    if fallback is None and fallback_floor:
        raise ConfigError("--fallback-floor has no meaning without --fallback")
    parents = folder.info.decision.hierarchy
    if hierarchy is not None:
        parents = read_hierarchy(hierarchy, folder.label_set)
    _refuse_place(folder, model, output)
    _say_what_goes(folder, calibrate, fallback, display)
    data = read_known(folder, examples, text=text, labels=labels)
    classifier = load_here(folder, dtype=dtype, device=device)
    with display.stage("score", len(data), "examples") as stage:
        scores_NL = classifier.predict_proba(data.texts.to_pylist(), progress=stage.advance)
    if not np.isfinite(scores_NL).all():
        raise DataError(f"{model}: the model gives scores that are not finite")
    targets_NL = data.targets_NL()
    with display.stage("fit", None, "labels") as stage:
        found = fit_thresholds(
            targets_NL, scores_NL, objective=objective, per_label=per_label, seed=seed
        )
        stage.advance(len(folder.label_set))
    calibrated: FittedCalibration | None = None
    if calibrate != "none":
        curves = curves_to_fit(len(folder.label_set), len(data))
        with display.stage("calibrate", curves, "curves") as stage:
            calibrated = fit_calibration(
                targets_NL,
                scores_NL,
                method=calibrate,
                label_set=folder.label_set,
                seed=seed,
                progress=stage.advance,
            )
    decision = found.decision(folder.label_set, objective).model_copy(
        update={
            "calibration": calibrated.calibration if calibrated is not None else None,
            "hierarchy": parents,
            "fallback": fallback,
            "fallback_floor": fallback_floor,
        }
    )
    rules, before = (item.rules(folder.label_set) for item in (decision, folder.info.decision))
    given = {"before": decide(scores_NL, before), "fitted": decide(scores_NL, rules)}
    if found.held_out_NL is not None:
        given["held_out"] = complete(found.held_out_NL, scores_NL, rules)
    metrics = {
        "at_half": evaluate_scores_at(targets_NL, scores_NL, np.float32(0.5)),
        **{name: evaluate_scores(targets_NL, scores_NL, labels) for name, labels in given.items()},
    }
    found_reached: dict[str, dict[str, float]] = {
        name: reached(targets_NL, given[name]) for name in ("fitted", "held_out") if name in given
    }
    if (missed := _missed(Objective.parse(objective), found_reached)) is not None:
        display.say(f"note: {missed}")
    calibration = None
    if calibrated is not None:
        with display.doing("measuring the error of the calibration"):
            calibration = describe_fit(targets_NL, scores_NL, calibrated, folder.label_set)
    if output is not None:
        write_file(output, decision.model_dump_json(indent=1).encode())
    else:
        write_decision(folder, decision, metrics, calibration)
    return {
        "model": model,
        "examples": list(examples),
        "decision": decision.model_dump(mode="json"),
        "shrinkage": found.shrinkage if found.shrinkage != np.inf else None,
        "labels": len(folder.label_set),
        "reached": found_reached,
        "metrics": metrics,
        "calibration": calibration,
        "written": str(output or folder.path / INFO_FILE),
    }


def _missed(objective: Objective, found: Mapping[str, Mapping[str, float]]) -> str | None:
    """What an objective with a limit is not, on the documents that say most of others."""
    where = "held_out" if "held_out" in found else "fitted"
    on = "documents held out of the fit" if where == "held_out" else "these documents"
    precision, rate = found[where]["precision"], found[where]["largest_rate"]
    if objective.kind == "precision" and precision < objective.value:
        return f"{objective.name} does not hold on {on}: the precision there is {precision:.4f}"
    if objective.kind == "rate" and rate > objective.value:
        return f"{objective.name} does not hold on {on}: a label is given to {rate:.2%} of them"
    return None


def _say_what_goes(
    folder: ModelFolder, calibrate: str, fallback: int | None, display: Display
) -> None:
    """Tell of what the folder's decision has, and the new one will not."""
    before = folder.info.decision
    if before.calibration is not None and calibrate == "none":
        display.say(f"note: its calibration goes; --calibrate {before.calibration.method} fits one")
    if before.fallback is not None and fallback is None:
        display.say(f"note: its fall-back goes; --fallback {before.fallback} keeps it")


def _refuse_place(folder: ModelFolder, model: str, output: Path | None) -> None:
    """Refuse a place that the decision could not be written to: not after the scoring.

    Raises:
        ConfigError: If the folder is not ours to write.
        StorageError: If it cannot be written.
    """
    if output is None and (
        local_path(model) != folder.path or not (folder.path / INFO_FILE).is_file()
    ):
        raise ConfigError(
            f"{model}: is not a local folder that ray-mlc has made: give --output for the decision"
        )
    where = output.absolute().parent if output is not None else folder.path
    if not os.access(where, os.W_OK) or (output is not None and output.is_dir()):
        raise StorageError(f"{output or where}: cannot be written: choose another --output")
