"""Cells that nobody annotated, from a CSV file to the loss and the metrics: never negatives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_mlc.config import LossConfig, TrainJob
from ray_mlc.evaluation.metrics import evaluate_scores, per_label
from ray_mlc.job_files import load_job
from ray_mlc.model.encoder import new_classifier_model, output_layer
from ray_mlc.runtime.prepare import Prepared, prepare
from ray_mlc.runtime.progress import Display
from ray_mlc.training.convert import convert
from ray_mlc.training.loop import Fitter

NAMES = ["a", "b", "nobody"]
CELLS_NL = np.array(
    [
        [1, 0, np.nan],
        [0, 1, np.nan],
        [np.nan, 1, np.nan],
        [np.nan, np.nan, np.nan],
        [1, np.nan, np.nan],
        [0, 0, np.nan],
    ],
    np.float32,
)
"""The label `nobody` is decided in no row, and the fourth row in no label."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_csv(path: Path, cells_NL: NDArray[np.float32]) -> Path:
    """As files have it: -1, nothing and `nan` by turns."""
    words = ["-1", "", "nan"]
    lines = ["text," + ",".join(NAMES)]
    for row, cells in enumerate(cells_NL):
        shown = [
            words[(row + column) % 3] if np.isnan(cell) else str(int(cell))
            for column, cell in enumerate(cells)
        ]
        lines.append(f"the tax on trade {row},{','.join(shown)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepared(folder: Path, encoder: Path, *, converted: bool) -> Prepared:
    source = str(write_csv(folder / "x.csv", CELLS_NL))
    labels: Any = NAMES
    if converted:
        convert(source, str(folder / "x.parquet"), labels=NAMES)
        source, labels = str(folder / "x.parquet"), "labels"
    job = load_job(
        TrainJob,
        options={
            "data.train": source,
            "data.validation": source,
            "data.labels": labels,
            "encoder": str(encoder),
            "output": str(folder / "model"),
        },
    )
    return prepare(job, Display(quiet=True))


@pytest.mark.parametrize("converted", [True, False], ids=["examples", "columns"])
def test_undecided_cells_reach_loss_and_metrics_as_such(
    tmp_path: Path, tiny_encoder: Path, converted: bool
) -> None:
    ready = prepared(tmp_path, tiny_encoder, converted=converted)
    assert ready.label_set.names == tuple(NAMES)
    expected_NL = CELLS_NL[[0, 1, 2, 4, 5]]  # the row that says nothing takes no part
    found_NL = ready.train.targets_BL(np.arange(5))
    np.testing.assert_array_equal(found_NL, expected_NL)
    np.testing.assert_array_equal(ready.validation_targets, expected_NL)
    np.testing.assert_allclose(ready.rates_L, [2 / 4, 2 / 4, 0])
    np.testing.assert_allclose(ready.train.label_rates(), [2 / 4, 2 / 4, 0])


LOSSES = [
    LossConfig(),
    LossConfig(pos_weight="balanced"),
    LossConfig(label_smoothing=0.1),
    LossConfig(name="focal", alpha=0.25),
    LossConfig(name="asymmetric"),
    LossConfig(name="distribution_balanced"),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.label_smoothing}")
def test_no_loss_learns_anything_from_a_label_that_nobody_decided(
    tmp_path: Path, tiny_encoder: Path, loss: LossConfig
) -> None:
    ready = prepared(tmp_path, tiny_encoder, converted=True)
    model = new_classifier_model(tiny_encoder, ready.label_set, head_bias=None, seed=0)
    config = load_job(
        TrainJob,
        options={
            "data.train": "t",
            "data.validation": "v",
            "encoder": "e",
            "output": "o",
        },
        overrides=["training.epochs=3", "training.batch_size=2", "training.weight_decay=0.0"],
    ).training.model_copy(update={"loss": loss})
    head = output_layer(model, 3).weight
    before = head.detach().clone()
    fitter = Fitter(
        model=model,
        wrapped=model,
        train=ready.train,
        config=config,
        pad_id=0,
        device=torch.device("cpu"),
        amp_dtype=None,
    )
    for epoch in range(3):
        assert np.isfinite(fitter.run_epoch(epoch, on_step=lambda *_: None))
    moved = (head.detach() - before).abs().sum(dim=1)
    assert moved[2] == 0
    assert (moved[:2] > 0).all()


def test_metrics_of_examples_with_gaps_are_those_of_the_decided_cells(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    targets_NL = prepared(tmp_path, tiny_encoder, converted=True).validation_targets
    scores_NL = np.random.default_rng(0).random(targets_NL.shape, np.float32)
    known_N = ~np.isnan(targets_NL[:, 1])
    figures, rows = [], []
    for filler in (0.0, 1.0):  # whatever a model says of undecided cells
        filled_NL = np.where(np.isnan(targets_NL), np.float32(filler), scores_NL)
        figures.append(evaluate_scores(targets_NL, filled_NL, filled_NL >= 0.5))
        rows.append(per_label(NAMES, targets_NL, filled_NL, filled_NL >= 0.5))
    assert figures[0] == figures[1]
    assert rows[0] == rows[1]
    found = ((scores_NL[:, 1] >= 0.5) & (targets_NL[:, 1] == 1))[known_N].sum()
    assert rows[0][1]["recall"] == found / 2
    assert (rows[0][2]["support"], rows[0][2]["average_precision"]) == (0, None)
