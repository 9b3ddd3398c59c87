"""How windows are joined is chosen on validation: kept, printed, and told in the card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.torch import save_file
from support.models import write_tiny_encoder

from ray_mlc import synthetic
from ray_mlc.cli.tables import print_training
from ray_mlc.config import TrainingConfig, TrainJob, WindowsConfig
from ray_mlc.job_files import load_job
from ray_mlc.model.encoder import new_classifier_model
from ray_mlc.model.folder import open_model
from ray_mlc.model.windows import AGGREGATES
from ray_mlc.runtime.prepare import prepare
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.train import (
    VALIDATION_SCORES,
    finished_summary,
    validate,
    write_trained,
)
from ray_mlc.training.loop import MODEL_STATE, Fitter

QUIET = Display(quiet=True)


class Predicts:
    """A fitter of which each way to join windows is better than the one before."""

    def __init__(self, targets_NL: NDArray[np.float32]) -> None:
        self.targets_NL = targets_NL

    def predict(self, validation: Any, hows: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        del validation
        noise_NL = np.random.default_rng(0).random(self.targets_NL.shape)
        return {
            how: ((1 - rest) * self.targets_NL + rest * noise_NL).astype(np.float32)
            for how, rest in zip(hows, (0.9, 0.8, 0.7, 0.6), strict=False)
        }


@pytest.mark.parametrize("aggregate", ["auto", "mean"])
def test_the_best_way_is_taken_and_all_that_were_tried_are_remembered(aggregate: Any) -> None:
    targets_NL = (np.random.default_rng(1).random((80, 5)) < 0.3).astype(np.float32)
    windows = WindowsConfig(overlap=2, aggregate=aggregate)
    settings = TrainingConfig(windows=windows)
    fitter = cast(Fitter, Predicts(targets_NL))
    found = validate(fitter, cast(Any, None), targets_NL, settings)
    tried = AGGREGATES if aggregate == "auto" else ("mean",)
    assert tuple(found.aggregates) == tried
    assert found.aggregate == max(found.aggregates, key=lambda how: found.aggregates[how] or 0)
    assert found.aggregates[found.aggregate] == found.metrics["f1_micro"]


def write_model(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    paths = []
    for number, name in enumerate(("train", "validation")):
        pq.write_table(synthetic.documents(60, seed=number), folder / f"{name}.parquet")
        paths.append(str(folder / f"{name}.parquet"))
    write_tiny_encoder(folder / "encoder", seed=0)
    options = {
        "data.train": paths[0], "data.validation": paths[1],
        "encoder": str(folder / "encoder"), "output": str(folder / "model"),
    }  # fmt: skip
    overrides = ("training.max_tokens=16", "training.windows={overlap: 2, max_windows: 2}")
    job = load_job(TrainJob, options=options, overrides=overrides)
    prepared = prepare(job, QUIET)
    model = new_classifier_model(prepared.encoder, prepared.label_set, head_bias=None, seed=1)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, checkpoint / MODEL_STATE)
    targets = prepared.validation_targets
    scores = 0.6 * targets + 0.4 * np.random.default_rng(0).random(targets.shape)
    np.save(checkpoint / VALIDATION_SCORES, scores.astype(np.float32))
    latest = {"epoch": 1, "best_epoch": 1, "history": [{"epoch": 1, **record}]}
    summary = write_trained(job, prepared, checkpoint, latest, folder / "model", QUIET)
    again = finished_summary(folder / "model", prepared.fingerprint)
    assert again is not None
    assert again["windows"] == summary["windows"]
    return summary


def test_train_says_what_was_chosen_and_how_close_the_others_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"max": 0.61, "mean": 0.6249, "noisy_or": None, "top_mean": 0.6248}
    summary = write_model(tmp_path, {"aggregate": "mean", "aggregates": values})
    print_training(summary)
    shown = capsys.readouterr().out
    assert (
        "windows are joined by mean: f1_micro 0.6249, against 0.6248 by top_mean, 0.6100 by max, "
        "– by noisy_or"
    ) in shown
    card = (tmp_path / "model" / "README.md").read_text()
    assert "f1_micro 0.6249, against 0.6100 by `max`, 0.6248 by `top_mean`" in card
    assert "% were)" in card
    info = open_model(str(tmp_path / "model")).info
    assert set(info.metrics) == {"at_half", "decision", "dummy", "intervals", "measured_on"}
    assert "base_model" not in info.training  # a folder of this machine is nothing on the hub
    assert "base_model" not in card


def test_a_checkpoint_of_an_earlier_version_has_no_alternatives_to_tell_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_training(write_model(tmp_path, {"aggregate": "max"}))
    assert "windows are joined by max\n" in capsys.readouterr().out
    assert "That was chosen" not in (tmp_path / "model" / "README.md").read_text()
