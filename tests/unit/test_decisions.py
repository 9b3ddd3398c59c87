from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision, decide

SCORES = st.floats(0, 1, width=32)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scores=st.lists(SCORES, min_size=1, max_size=20), at=st.integers(0, 19))
def test_a_threshold_equal_to_a_score_gives_the_label_after_json_too(
    scores: list[float], at: int
) -> None:
    threshold = scores[at % len(scores)]
    stored = Decision.model_validate_json(Decision(threshold=threshold).model_dump_json())
    given_NL = decide(np.array(scores, np.float32)[:, None], stored.thresholds_L(LabelSet(("x",))))
    assert given_NL[:, 0].tolist() == [score >= threshold for score in scores]


def test_both_sides_are_compared_in_float32() -> None:
    # 0.1 is 0.100000001490… in float32: compared in float64 the score 0.1 would be below 0.1
    label_set = LabelSet(("x",))
    for decimal in (0.1, 0.3, 0.7, 0.9):
        thresholds_L = Decision(threshold=decimal).thresholds_L(label_set)
        assert thresholds_L.dtype == np.float32
        assert decide(np.array([[decimal]], np.float32), thresholds_L).all()
        below = np.nextafter(np.float32(decimal), np.float32(0))
        assert not decide(np.array([[below]], np.float32), thresholds_L).any()


def test_single_labels_have_their_own_threshold() -> None:
    decision = Decision(threshold=0.5, per_label={"b": 0.25})
    assert decision.thresholds_L(LabelSet(("a", "b", "c"))).tolist() == [0.5, 0.25, 0.5]


def test_a_score_that_is_not_finite_gives_no_label() -> None:
    scores_NL = np.array([[np.nan, -np.inf]], np.float32)
    assert not decide(scores_NL, np.zeros(2, np.float32)).any()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_between_zero_and_one(threshold: float) -> None:
    with pytest.raises(ValidationError):
        Decision(threshold=threshold)
