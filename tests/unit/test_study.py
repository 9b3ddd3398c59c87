"""What an evaluation finds beside its figures, as JSON has it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.studies import made_up_study

from ray_mlc.evaluation import bootstrap
from ray_mlc.evaluation.evaluate import evaluate
from ray_mlc.evaluation.metrics import METRIC_NAMES
from ray_mlc.evaluation.study import MANY_LABELS, Study, study
from ray_mlc.labels import LabelSet


def ids_of(found: Study) -> list[str]:
    return [f"id {row}" for row in range(found.figures["n"])]


@pytest.mark.parametrize("labels", [3, 80])
@pytest.mark.parametrize("documents", [1, 2, 120])
def test_the_figures_stay_as_they_are_and_all_others_are_json(documents: int, labels: int) -> None:
    found = made_up_study(documents, labels, masked=0.1)
    summary = found.summary(ids_of(found))
    again = json.loads(json.dumps(summary, allow_nan=False))
    for key in ("n", "at_half", "decision", "dummy"):
        assert again[key] == found.figures[key]
    for row, before in zip(again["per_label"], found.figures["per_label"], strict=True):
        assert {name: row[name] for name in before} == before
    assert (again["ranking"] is None) == (labels <= MANY_LABELS)


def test_every_figure_lies_in_its_interval_and_gains_are_paired() -> None:
    found = made_up_study(300, 5)
    for key in ("at_half", "decision"):
        for name in METRIC_NAMES:
            low, high = found.intervals[key][name] or (2, 2)
            assert low < found.figures[key][name] < high
    value, (low, high) = found.gains["f1_micro"]  # type: ignore[misc]
    assert value == found.figures["decision"]["f1_micro"] - found.figures["at_half"]["f1_micro"]
    assert low < value < high
    ends = found.intervals["decision"]["f1_micro"]
    assert ends is not None
    assert high - low < ends[1] - ends[0]  # the same documents on both sides
    assert set(found.gains) == {"accuracy", "binary_accuracy", "f1_micro", "f1_macro", "f1_samples"}


def test_one_document_has_figures_without_intervals() -> None:
    summary = made_up_study(1, 70, rates=(0.9, 0.5)).summary(["only"])
    assert set(summary["bootstrap"]["decision"].values()) == {None}
    assert summary["bootstrap"]["gain"] == {}
    assert summary["ranking"]["ndcg@5"]["value"] is not None
    assert summary["ranking"]["ndcg@5"]["interval"] is None


def test_where_the_bootstrap_of_scores_would_take_minutes_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "MOST_CELLS", 49)
    ends = made_up_study(100, 5).intervals["decision"]
    assert ends["average_precision_macro"] is None
    assert ends["f1_macro"] is not None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_targets_of_one_kind_or_none_are_no_trouble(value: float) -> None:
    targets_NL = np.full((6, 70), value, np.float32)
    scores_NL = np.random.default_rng(0).random((6, 70), np.float32)
    thresholds_L = np.full(70, 0.5, np.float32)
    names = LabelSet(tuple(str(label) for label in range(70)))
    given_NL = scores_NL >= thresholds_L
    figures = evaluate(
        targets_NL, scores_NL, label_set=names, given_NL=given_NL, rates_L=np.zeros(70)
    )
    found = study(figures, targets_NL, scores_NL, given_NL, thresholds_L=thresholds_L)
    summary = found.summary([str(row) for row in range(6)])
    json.dumps(summary, allow_nan=False)
    assert summary["lengths"] is None
    assert (summary["per_label"][0]["rate"] is None) == np.isnan(value)


def test_costly_mistakes_are_named_by_id_and_label() -> None:
    found = made_up_study(60, 4)
    cells = found.summary(ids_of(found))["costliest"]
    assert {cell["kind"] for cell in cells} == {"missed", "false alarm"}
    for cell in cells:
        assert (cell["label"] in cell["has"]) == (cell["kind"] == "missed")
        assert cell["id"].startswith("id ")
        assert set(cell) == {"id", "label", "score", "kind", "loss", "has", "gets"}  # no text


def test_calibrated_scores_stand_beside_the_others() -> None:
    plain = made_up_study(200, 3)
    assert plain.summary(ids_of(plain))["calibrated"] is None
    flat_NL = np.full((200, 3), 0.5, np.float32)
    found = made_up_study(200, 3, calibrated_NL=flat_NL)
    summary = found.summary(ids_of(found))
    assert [row["mean_score"] for row in summary["calibrated"]["bins"]] == [0.5]
    assert summary["reliability"] == plain.summary(ids_of(plain))["reliability"]


def test_the_same_seed_gives_the_same_study() -> None:
    first, again = (made_up_study(80, 70, seed=1) for _ in range(2))
    assert first.summary(ids_of(first)) == again.summary(ids_of(again))
