"""Fit a model's decision on labelled examples, and keep it in the model folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_mlc.errors import ConfigError, DataError, StorageError, redact
from ray_mlc.evaluation.calibration import (
    FittedCalibration,
    curves_to_fit,
    describe_fit,
    fit_calibration,
)
from ray_mlc.evaluation.evaluate import evaluate_scores_at, validation_metrics
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.evaluation.thresholds import Objective, Thresholds, fit_thresholds, reached
from ray_mlc.model.calibration import METHODS
from ray_mlc.model.decisions import Decision, complete, decide
from ray_mlc.model.distribution import ScoreCounts
from ray_mlc.model.folder import INFO_FILE, ModelFolder, open_model, write_decision
from ray_mlc.model.hierarchy import read_hierarchy
from ray_mlc.runtime.evaluate import load_here, read_known
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import local_path, write_file

CALIBRATIONS = ("none", *METHODS)
OBJECTIVE = "f1"
"""What thresholds are fitted for where neither the command nor the model says it."""


@dataclass(frozen=True)
class Wanted:
    """What a decision shall be, once what was not asked for is taken from the model's."""

    objective: str
    calibrate: str
    """`none`, or a method of `model.calibration`."""
    hierarchy: dict[str, list[str]]
    fallback: int | None
    fallback_floor: float
    kept: dict[str, Any]
    """Of these, by the name of the option, what the model's decision had and nobody gave."""

    @classmethod
    def of(
        cls,
        before: Decision,
        *,
        objective: str | None,
        calibrate: str | None,
        hierarchy: dict[str, list[str]] | None,
        fallback: int | None,
        fallback_floor: float | None,
    ) -> Wanted:
        """Take what was given, and the rest from the decision until now; see `fit_decision`.

        Raises:
            ConfigError: If the objective or calibration is unknown, or a floor has no fall-back.
        """
        had = before.calibration.method if before.calibration is not None else None
        kept: dict[str, Any] = {}
        if objective is None and before.objective is not None:
            kept["objective"] = before.objective
        if calibrate is None and had is not None:
            kept["calibrate"] = had
        if hierarchy is None and before.hierarchy:
            kept["hierarchy"] = before.hierarchy
        if fallback is None and before.fallback is not None:
            kept["fallback"] = before.fallback
        if fallback_floor is None and before.fallback_floor and fallback != 0:
            kept["fallback_floor"] = before.fallback_floor
        objective = objective or before.objective or OBJECTIVE
        Objective.parse(objective)
        if calibrate is not None and calibrate not in CALIBRATIONS:
            raise ConfigError(f"--calibrate is {calibrate!r}, expected {', '.join(CALIBRATIONS)}")
        fallback = before.fallback if fallback is None else fallback or None
        if fallback is None and fallback_floor:
            raise ConfigError("--fallback-floor has no meaning without --fallback")
        floor = before.fallback_floor if fallback_floor is None else fallback_floor
        return cls(
            objective=objective,
            calibrate=calibrate or had or "none",
            hierarchy=before.hierarchy if hierarchy is None else hierarchy,
            fallback=fallback,
            fallback_floor=0.0 if fallback is None else floor,
            kept=kept,
        )


def fit_decision(
    model: str,
    examples: Sequence[str],
    *,
    per_label: bool,
    text: str,
    labels: str | Sequence[str],
    dtype: str,
    device: str,
    seed: int,
    output: Path | None,
    display: Display,
    objective: str | None = None,
    calibrate: str | None = None,
    hierarchy: Path | None = None,
    fallback: int | None = None,
    fallback_floor: float | None = None,
) -> dict[str, Any]:
    """Fit thresholds, and a calibration, on examples that the model was not trained on.

    Thresholds are fitted anew. All else that is not given, None, stays as the model's decision has
    it: the objective, the hierarchy, the fall-back, and the method of the calibration, which is
    fitted anew as well.

    Thresholds are fitted as if there were neither hierarchy nor fall-back: each label's is the best
    one for the label alone. All figures are of the whole decision.

    Args:
        model: Model folder.
        examples: Labelled examples; never those of the test.
        per_label: Whether labels may have thresholds of their own.
        text: Column, or template, of the text.
        labels: Column or columns of the labels.
        dtype: Precision of the scores.
        device: `cpu`, `cuda` or `auto`.
        seed: Of the folds of the cross-validation.
        output: JSON file for the decision; None: the model folder takes it.
        display: Told about progress.
        objective: See `evaluation.thresholds.Objective.parse`; of a model without one `OBJECTIVE`.
        calibrate: `none`, or a method of `model.calibration`.
        hierarchy: File of label parents; an empty one: no label has any.
        fallback: Labels for a document that would get none; 0: it gets none.
        fallback_floor: Smallest score with which one is given so.

    Returns:
        `labels` (how many), `objective`, `kept` (what was not given and stays, by option),
        `decision`, `shrinkage` (null where all labels share one threshold, or it was no question),
        `reached` (see there, for `fitted` and `held_out`), `metrics`: by name `at_half`, `before`
        (the folder's decision until now), `fitted` (on the examples that it was fitted on:
        flattering) and `held_out` (decisions of cross-validation: what to expect of other
        documents), and `calibration` (`evaluation.calibration.describe_fit`; null: there is none).

    Raises:
        ConfigError: If the objective or calibration is unknown, or the hierarchy is not one.
        DataError: If the examples have a label that the model does not know.
    """
    folder = open_model(model)
    # not after the scoring
    wanted = Wanted.of(
        folder.info.decision,
        objective=objective,
        calibrate=calibrate,
        hierarchy=None if hierarchy is None else read_hierarchy(hierarchy, folder.label_set),
        fallback=fallback,
        fallback_floor=fallback_floor,
    )
    _refuse_place(folder, model, output)
    data = read_known(folder, examples, text=text, labels=labels)
    if wanted.kept:
        display.say(f"as the model has it: {_said(wanted.kept)}")
    classifier = load_here(folder, dtype=dtype, device=device)
    with display.stage("score", len(data), "examples") as stage:
        scores_NL = classifier.predict_proba(data.texts.to_pylist(), progress=stage.advance)
    if not np.isfinite(scores_NL).all():
        raise DataError(f"{model}: the model gives scores that are not finite")
    targets_NL = data.targets_NL()
    with display.stage("fit", None, "labels") as stage:
        found = fit_thresholds(
            targets_NL, scores_NL, objective=wanted.objective, per_label=per_label, seed=seed
        )
        stage.advance(len(folder.label_set))
    calibrated: FittedCalibration | None = None
    if wanted.calibrate != "none":
        curves = curves_to_fit(len(folder.label_set), len(data))
        with display.stage("calibrate", curves, "curves") as stage:
            calibrated = fit_calibration(
                targets_NL,
                scores_NL,
                method=wanted.calibrate,
                label_set=folder.label_set,
                seed=seed,
                progress=stage.advance,
            )
    decision = found.decision(folder.label_set, wanted.objective).model_copy(
        update={
            "calibration": calibrated.calibration if calibrated is not None else None,
            "hierarchy": wanted.hierarchy,
            "fallback": wanted.fallback,
            "fallback_floor": wanted.fallback_floor,
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
    if (missed := _missed(Objective.parse(wanted.objective), found_reached)) is not None:
        display.say(f"note: {missed}")
    calibration = None
    if calibrated is not None:
        with display.doing("measuring the error of the calibration"):
            calibration = describe_fit(targets_NL, scores_NL, calibrated, folder.label_set)
    if output is not None:
        write_file(output, decision.model_dump_json(indent=1).encode())
    else:
        kinds = {"fitted": "decision", "held_out": "decision_held_out"}
        rates = folder.info.label_rates
        kept = validation_metrics(
            targets_NL,
            scores_NL,
            {kind: given[name] for name, kind in kinds.items() if name in given},
            rates_L=None if rates is None else np.array(rates),
            seed=seed,
        )
        kept["measured_on"] = measured_on(examples, len(data), found, per_label=per_label)
        if calibration is not None:
            kept["calibration"] = calibration
        write_decision(folder, decision, kept, ScoreCounts.of(scores_NL, given["fitted"]))
    return {
        "model": model,
        "examples": list(examples),
        "objective": wanted.objective,
        "kept": wanted.kept,
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


def _said(kept: Mapping[str, Any]) -> str:
    """What stays, as the options that would give it."""
    shown = {**kept}
    if "hierarchy" in shown:
        shown["hierarchy"] = f"of {len(shown['hierarchy']):,} label(s)"
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in shown.items())


def measured_on(
    examples: Sequence[str], documents: int, fit: Thresholds, *, per_label: bool
) -> dict[str, Any]:
    """What the figures in a model folder are of, and how its thresholds were found.

    Args:
        examples: Paths, as given; what grants access is left out.
        documents: How many there were.
        fit: The thresholds.
        per_label: Whether labels might have had thresholds of their own.
    """
    one_is_best = fit.shrinkage == np.inf
    return {
        "examples": [redact(path) for path in examples],
        "documents": documents,
        "per_label": per_label,
        "shrinkage": None if one_is_best else fit.shrinkage,
        "one_is_best": one_is_best,
    }


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
