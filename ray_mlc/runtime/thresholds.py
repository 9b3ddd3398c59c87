"""Fit a model's decision on labelled examples, and keep it in the model folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_mlc.errors import ConfigError, DataError, StorageError, first_line
from ray_mlc.evaluation.evaluate import evaluate_scores_at
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.evaluation.thresholds import Objective, fit_thresholds, reached
from ray_mlc.model.decisions import decide
from ray_mlc.model.folder import INFO_FILE, open_model, write_decision
from ray_mlc.runtime.evaluate import load_here, read_known
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import local_path


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
) -> dict[str, Any]:
    """Fit thresholds on examples that the model was not trained on.

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

    Returns:
        `decision`, `shrinkage` (null where all labels share one threshold, or it was no question),
        `reached` (see there, for `fitted` and `held_out`), and `metrics`: by name `at_half`,
        `before` (the folder's decision until now), `fitted` (on the examples that it was fitted on:
        flattering) and `held_out` (decisions of cross-validation: what to expect of other
        documents).

    Raises:
        ConfigError: If the objective is unknown.
        DataError: If the examples have a label that the model does not know.
    """
    folder = open_model(model)
    Objective.parse(objective)  # not after the scoring
    if output is None and (
        local_path(model) != folder.path or not (folder.path / INFO_FILE).is_file()
    ):
        raise ConfigError(
            f"{model}: is not a local folder that ray-mlc has made: give --output for the decision"
        )
    where = output.absolute().parent if output is not None else folder.path
    if not os.access(where, os.W_OK):  # not after the scoring
        raise StorageError(f"{output or where}: cannot be written: choose another --output")
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
    decision = found.decision(folder.label_set, objective)
    before_L = folder.info.decision.thresholds_L(folder.label_set)
    metrics = {
        "at_half": evaluate_scores_at(targets_NL, scores_NL, np.float32(0.5)),
        "before": evaluate_scores_at(targets_NL, scores_NL, before_L),
        "fitted": evaluate_scores_at(targets_NL, scores_NL, found.own_L),
    }
    given = {"fitted": decide(scores_NL, found.own_L)}
    if found.held_out_NL is not None:
        given["held_out"] = found.held_out_NL
        metrics["held_out"] = evaluate_scores(targets_NL, scores_NL, found.held_out_NL)
    if output is not None:
        try:
            output.write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{output}: cannot be written ({first_line(error)})") from None
    else:
        write_decision(folder, decision, metrics)
    return {
        "model": model,
        "examples": list(examples),
        "decision": decision.model_dump(mode="json"),
        "shrinkage": found.shrinkage if found.shrinkage != np.inf else None,
        "reached": {name: reached(targets_NL, given_NL) for name, given_NL in given.items()},
        "metrics": metrics,
        "written": str(output or folder.path / "ray_mlc.json"),
    }
