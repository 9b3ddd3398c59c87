"""What training leaves of a label hierarchy: in the decision, its figures and the run's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from ray_mlc import synthetic
from ray_mlc.config import TrainJob
from ray_mlc.errors import ConfigError
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.job_files import load_job
from ray_mlc.model.decisions import decide
from ray_mlc.model.encoder import new_classifier_model
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.prepare import prepare
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.train import VALIDATION_SCORES, write_trained
from ray_mlc.training.loop import MODEL_STATE

QUIET = Display(quiet=True)


@pytest.fixture
def job(tiny_encoder: Path, tmp_path: Path) -> Any:
    """Makes a job over a few examples: `job(hierarchy=…)`."""
    pq.write_table(synthetic.documents(120, seed=4), tmp_path / "examples.parquet")

    def make(hierarchy: Path | None = None) -> TrainJob:
        options = {
            "data.train": str(tmp_path / "examples.parquet"),
            "data.validation": str(tmp_path / "examples.parquet"),
            "data.hierarchy": None if hierarchy is None else str(hierarchy),
            "encoder": str(tiny_encoder),
            "output": str(tmp_path / "model"),
        }
        return load_job(TrainJob, options=options)

    return make


def test_a_hierarchy_given_to_training_is_in_the_decision_and_in_its_figures(
    job: Any, tmp_path: Path
) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("climate: energy\nenergy: [law, trade]\n")
    parents = {"climate": ["energy"], "energy": ["law", "trade"]}
    prepared = prepare(job(file), QUIET)
    assert prepared.hierarchy == parents
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    model = new_classifier_model(prepared.encoder, prepared.label_set, head_bias=None, seed=1)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, checkpoint / MODEL_STATE)
    targets = prepared.validation_targets
    noise = np.random.default_rng(0).random(targets.shape)
    scores = (0.6 * np.nan_to_num(targets) + 0.4 * noise).astype(np.float32)
    np.save(checkpoint / VALIDATION_SCORES, scores)
    latest = {"epoch": 1, "best_epoch": 1, "history": [{"epoch": 1}]}
    summary = write_trained(job(file), prepared, checkpoint, latest, tmp_path / "model", QUIET)
    decision = open_model(str(tmp_path / "model")).info.decision
    assert decision.hierarchy == parents
    given = decide(scores, decision.rules(prepared.label_set))
    assert summary["metrics"]["decision"] == evaluate_scores(targets, scores, given)
    column = prepared.label_set.index
    assert not (given[:, column["climate"]] & ~given[:, column["trade"]]).any()
    assert summary["metrics"]["decision"]["f1_micro"] < 1  # ancestors that nobody annotated


def test_a_hierarchy_makes_another_run_and_none_the_one_that_it_was(
    job: Any, tmp_path: Path
) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("")
    without = prepare(job(), QUIET).fingerprint
    assert prepare(job(file), QUIET).fingerprint == without
    file.write_text("climate: energy\n")
    assert prepare(job(file), QUIET).fingerprint != without


def test_a_hierarchy_of_other_labels_is_refused_before_anything_is_trained(
    job: Any, tmp_path: Path
) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("climate: Energy\n")
    with pytest.raises(ConfigError, match=r"label 'Energy' is not among the 12 .* mean 'energy'"):
        prepare(job(file), QUIET)
