"""`distribution.json`: what a model gave at its validation, in bins that are the same for all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ray_mlc.errors import ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision, decide
from ray_mlc.model.distribution import (
    BINS,
    DISTRIBUTION_FILE,
    EDGES,
    Distribution,
    ScoreCounts,
)
from ray_mlc.model.folder import open_model, write_decision


def test_every_row_is_in_the_bin_that_its_score_reaches() -> None:
    rng = np.random.default_rng(0)
    scores_NL = (rng.random((500, 4)) ** 3).astype(np.float32)
    scores_NL[: len(EDGES), 0] = EDGES  # a score on an edge is above it
    counts = ScoreCounts.of(scores_NL, scores_NL >= 0.5)
    edges = np.array([0.0, *EDGES, 2.0], np.float32)
    for label in range(4):
        expected = np.histogram(scores_NL[:, label], edges)[0]
        np.testing.assert_array_equal(counts.scores_LB[label], expected)
    np.testing.assert_array_equal(counts.given_L, (scores_NL >= 0.5).sum(axis=0))


def test_rows_without_scores_count_nowhere_and_unknown_scores_in_the_lowest_bin() -> None:
    scores_NL = np.array([[np.nan, np.nan], [0.7, np.nan], [0.2, 0.9]], np.float32)
    counts = ScoreCounts.of(scores_NL, scores_NL >= 0.5)
    assert counts.rows == 2
    assert counts.scores_LB.sum(axis=1).tolist() == [2, 2]
    assert counts.scores_LB[1, 0] == 1
    assert counts.given_L.tolist() == [1, 1]


@pytest.fixture
def model(tiny_tfidf: Path, tmp_path: Path) -> Path:
    """A model folder whose decision, and with it its distribution, was written again."""
    path = Path(shutil.copytree(tiny_tfidf, tmp_path / "model"))
    folder = open_model(str(path))
    assert folder.distribution() is None  # and everything works without it
    decision = Decision(threshold=0.4)
    scores_NL = np.random.default_rng(0).random((50, len(folder.label_set)), np.float32)
    given_NL = decide(scores_NL, decision.rules(folder.label_set))
    write_decision(folder, decision, {}, ScoreCounts.of(scores_NL, given_NL))
    return path


def test_it_names_the_weights_and_the_decision_that_it_is_of(model: Path) -> None:
    folder = open_model(str(model))
    found = folder.distribution()
    assert found is not None
    assert (found.model, found.decision) == (folder.digest, folder.info.decision.digest)
    assert (found.rows, list(found.labels)) == (50, list(folder.label_set.names))
    assert found.counts.scores_LB.shape == (len(folder.label_set), BINS)


def test_beside_other_weights_it_is_refused(model: Path) -> None:
    file = model / DISTRIBUTION_FILE
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps({**content, "model": "0" * 64}))
    with pytest.raises(ModelError, match=r"is of other weights: delete it, or write it anew"):
        open_model(str(model)).distribution()
    file.write_text(json.dumps({**content, "rows": 51}))
    with pytest.raises(ModelError, match="expected 51 rows in 22 bins"):
        open_model(str(model)).distribution()
    file.write_text("{")
    with pytest.raises(ModelError, match="delete it"):
        open_model(str(model)).distribution()


def test_thousands_of_labels_are_read_back_as_they_were_written() -> None:
    label_set = LabelSet(tuple(f"label {n}" for n in range(3_000)))
    scores_NL = np.random.default_rng(0).random((40, 3_000), np.float32) ** 8
    counts = ScoreCounts.of(scores_NL, scores_NL > 0.5)
    written = Distribution.of(counts, label_set, model="m", decision="d").model_dump_json()
    found = Distribution.model_validate_json(written).counts
    np.testing.assert_array_equal(found.scores_LB, counts.scores_LB)
    np.testing.assert_array_equal(found.given_L, counts.given_L)
