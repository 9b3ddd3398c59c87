"""Decisions: thresholds in float32, a fall-back, a hierarchy; and files that say them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from ray_mlc.errors import ConfigError
from ray_mlc.labels import LabelSet
from ray_mlc.model.calibration import Calibration, Curve
from ray_mlc.model.decisions import Decision, Rules, complete, decide, read_decision
from ray_mlc.model.hierarchy import Hierarchy

SCORES = st.floats(0, 1, width=32)
FOUR = LabelSet(("a", "b", "c", "d"))
DIAMOND = {"a": ["b", "c"], "b": ["d"], "c": ["d"]}
CALIBRATION = Calibration(method="platt", pooled=Curve(slope=2.0, intercept=-1.0))


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scores=st.lists(SCORES, min_size=1, max_size=20), at=st.integers(0, 19))
def test_a_threshold_equal_to_a_score_gives_the_label_after_json_too(
    scores: list[float], at: int
) -> None:
    threshold = scores[at % len(scores)]
    stored = Decision.model_validate_json(Decision(threshold=threshold).model_dump_json())
    given_NL = decide(np.array(scores, np.float32)[:, None], stored.rules(LabelSet(("x",))))
    assert given_NL[:, 0].tolist() == [score >= threshold for score in scores]


def test_both_sides_are_compared_in_float32() -> None:
    # 0.1 is 0.100000001490… in float32: compared in float64 the score 0.1 would be below 0.1
    label_set = LabelSet(("x",))
    for decimal in (0.1, 0.3, 0.7, 0.9):
        rules = Decision(threshold=decimal).rules(label_set)
        assert rules.thresholds_L.dtype == np.float32
        assert decide(rows([decimal]), rules).all()
        below = np.nextafter(np.float32(decimal), np.float32(0))
        assert not decide(np.array([[below]], np.float32), rules).any()


def test_single_labels_have_their_own_threshold() -> None:
    decision = Decision(threshold=0.5, per_label={"b": 0.25})
    assert decision.thresholds_L(LabelSet(("a", "b", "c"))).tolist() == [0.5, 0.25, 0.5]


@pytest.mark.parametrize("fallback", [None, 1, 9])
def test_a_score_that_is_not_finite_gives_no_label(fallback: int | None) -> None:
    rules = Rules(np.zeros(3, np.float32), fallback=fallback)
    assert not decide(rows([np.nan, -np.inf, np.inf]), rules).any()


def test_a_row_that_could_not_be_scored_gets_nothing_from_any_rule() -> None:
    rules = Decision(threshold=0.9, hierarchy=DIAMOND, fallback=2).rules(FOUR)
    given_NL = decide(rows([np.nan] * 4, [0.1, 0.2, 0.3, 0.4]), rules)
    assert given_NL.tolist() == [[False] * 4, [False, False, True, True]]


def test_an_ancestor_whose_score_is_not_known_comes_with_its_child() -> None:
    """As from the sparse form, which stores the best scores alone."""
    rules = Decision(hierarchy=DIAMOND).rules(FOUR)
    assert decide(rows([0.9, np.nan, np.nan, np.nan]), rules).all()
    assert decide(rows([np.nan, 0.9, np.nan, np.nan]), rules).tolist() == [
        [False, True, False, True]
    ]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_between_zero_and_one(threshold: float) -> None:
    with pytest.raises(ValidationError):
        Decision(threshold=threshold)


def test_the_fall_back_gives_the_best_labels_only_where_there_would_be_none() -> None:
    scores_NL = rows([0.1, 0.4, 0.3, 0.2], [0.1, 0.6, 0.4, 0.2], [0.3, 0.3, 0.3, 0.3])
    one = decide(scores_NL, Decision(fallback=1).rules(FOUR))
    assert [np.flatnonzero(row).tolist() for row in one] == [[1], [1], [0]]
    two = decide(scores_NL, Decision(fallback=2).rules(FOUR))
    assert [np.flatnonzero(row).tolist() for row in two] == [[1, 2], [1], [0, 1]]
    none = decide(scores_NL, Decision().rules(FOUR))
    assert none.sum(axis=1).tolist() == [0, 1, 0]


def test_the_floor_of_the_fall_back_is_compared_in_float32_and_belongs_to_it() -> None:
    rules = Decision(fallback=3, fallback_floor=0.1).rules(FOUR)
    below = float(np.nextafter(np.float32(0.1), np.float32(0)))
    given_NL = decide(rows([0.1, below, 0.2, 0.0], [below, 0, 0, 0], [0.9, 0.2, 0, 0]), rules)
    assert [np.flatnonzero(row).tolist() for row in given_NL] == [[0, 2], [], [0]]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    arrays(
        np.float32, st.tuples(st.integers(0, 5), st.integers(1, 6)),
        elements=st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan]), SCORES),
    ),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.25, 0.75]),
)  # fmt: skip
def test_the_fall_back_is_the_head_of_the_labels_sorted_by_score(
    scores_NL: NDArray[np.float32], k: int, floor: float
) -> None:
    found_NL = decide(scores_NL, Rules(np.float32(1.0), fallback=k, fallback_floor=floor))
    for scores, found in zip(scores_NL.tolist(), found_NL, strict=True):
        ranked = sorted(range(len(scores)), key=lambda column: (-scores[column], column))
        expected = [column for column in ranked if scores[column] >= 1]
        if not expected:
            usable = [column for column in range(len(scores)) if scores[column] >= floor]
            expected = sorted(usable, key=lambda column: (-scores[column], column))[:k]
        assert np.flatnonzero(found).tolist() == sorted(expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(arrays(np.float32, (3, 4), elements=SCORES), arrays(np.float32, (3, 4), elements=SCORES))
def test_higher_scores_never_take_a_label_away(
    one_NL: NDArray[np.float32], other_NL: NDArray[np.float32]
) -> None:
    """With thresholds and hierarchies: a fall-back gives labels because scores are low."""
    rules = Decision(threshold=0.4, per_label={"b": 0.1, "d": 1}, hierarchy=DIAMOND).rules(FOUR)
    lower, higher = decide(one_NL, rules), decide(np.maximum(one_NL, other_NL), rules)
    assert not (lower & ~higher).any()
    closed = lower.copy()
    Hierarchy.of(DIAMOND, FOUR).close(closed)
    np.testing.assert_array_equal(closed, lower)


def test_deciding_in_two_steps_is_deciding() -> None:
    scores_NL = np.random.default_rng(0).random((50, 4), np.float32)
    rules = Decision(threshold=0.8, hierarchy=DIAMOND, fallback=1).rules(FOUR)
    given_NL = scores_NL >= rules.thresholds_L
    np.testing.assert_array_equal(complete(given_NL, scores_NL, rules), decide(scores_NL, rules))


def test_scores_are_left_as_they_are() -> None:
    scores_NL = rows([0.1, np.nan, 0.3, 0.2])
    before = scores_NL.copy()
    decide(scores_NL, Decision(hierarchy=DIAMOND, fallback=2).rules(FOUR))
    np.testing.assert_array_equal(scores_NL, before)


def test_near_says_whether_other_scores_of_a_tolerance_may_give_other_labels() -> None:
    plain = Decision(threshold=0.5).rules(FOUR)
    assert plain.near(rows([0.1, 0.5005, 0.9, 0.9]), 1e-3)
    assert not plain.near(rows([0.1, 0.2, 0.9, 0.2004]), 1e-3)
    falling = Decision(threshold=0.5, fallback=1, fallback_floor=0.05).rules(FOUR)
    assert falling.near(rows([0.1, 0.2, 0.2015, 0.1]), 1e-3)
    assert not falling.near(rows([0.1, 0.2, 0.3, 0.1]), 1e-3)
    assert falling.near(rows([0.0505, 0.01, 0.02, 0.03]), 1e-3)
    assert not falling.near(rows([0.1, 0.2, 0.9, 0.9]), 1e-3)  # gets labels without it
    every = Decision(threshold=0.5, fallback=9).rules(FOUR)
    assert not every.near(rows([0.1, 0.1, 0.3, 0.3]), 1e-3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    arrays(np.float32, (2, 4), elements=SCORES),
    arrays(np.float32, (2, 4), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([0.0, 0.3]),
)
def test_where_nothing_is_near_no_shift_within_the_tolerance_moves_a_label(
    scores_NL: NDArray[np.float32], shift_NL: NDArray[np.float32], k: int | None, floor: float
) -> None:
    tolerance = 0.05
    rules = Decision(threshold=0.6, hierarchy=DIAMOND, fallback=k, fallback_floor=floor).rules(FOUR)
    other_NL = np.clip(scores_NL + np.float32(0.98 * tolerance) * shift_NL, 0, 1)
    if not rules.near(scores_NL, tolerance):
        np.testing.assert_array_equal(decide(scores_NL, rules), decide(other_NL, rules))


def test_a_decision_that_needs_nothing_new_reads_as_it_always_did() -> None:
    """Its digest is in runs that were begun before, and older programs read its folder."""
    plain = Decision(threshold=0.25, per_label={"a": 0.5}, objective="f1")
    assert json.loads(plain.model_dump_json()) == {
        "threshold": 0.25,
        "per_label": {"a": 0.5},
        "objective": "f1",
    }
    assert set(Decision().model_dump()) == {"threshold", "per_label", "objective"}
    assert plain.needs_schema == 1
    assert Decision.model_validate({"threshold": 0.25}) == Decision(threshold=0.25)


@pytest.mark.parametrize(
    "more",
    [{"calibration": CALIBRATION}, {"hierarchy": DIAMOND}, {"fallback": 1}, {"fallback_floor": 1}],
)
def test_what_is_new_is_written_and_read_back_and_makes_another_decision(
    more: dict[str, Any],
) -> None:
    decision = Decision(threshold=0.25, **more)
    assert decision.needs_schema == 2
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
    assert Decision.model_validate(json.loads(json.dumps(decision.model_dump()))) == decision
    assert decision != Decision(threshold=0.25)
    assert decision.model_dump(mode="json") != Decision(threshold=0.25).model_dump(mode="json")


def test_a_calibration_decides_no_label() -> None:
    decision = Decision(threshold=0.25, calibration=CALIBRATION)
    assert decision.uncalibrated == Decision(threshold=0.25)
    scores_NL = np.random.default_rng(0).random((50, 4), np.float32)
    np.testing.assert_array_equal(
        decide(scores_NL, decision.rules(FOUR)),
        decide(scores_NL, decision.uncalibrated.rules(FOUR)),
    )


def test_a_decision_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    decision = Decision(
        threshold=0.25, per_label={"a": 0.1}, calibration=CALIBRATION, hierarchy=DIAMOND, fallback=1
    )
    file = tmp_path / "decision.json"
    file.write_text(decision.model_dump_json(indent=1))
    assert read_decision(str(file), FOUR) == decision


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\x00", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"treshold": 0.5}', "unknown key treshold: did you mean threshold?"),
        (b'{"threshold": 1.5}', "threshold is 1.5: expected less than or equal to 1"),
        (b'{"per_label": {"A": 0.5}}', "per_label: label 'A' is not among the 4 of the model: did"),
        (b'{"hierarchy": {"a": ["x"]}}', "hierarchy: label 'x' is not among the 4"),
        (b'{"hierarchy": {"a": ["b"], "b": ["a"]}}', "expected no label above itself, as in "),
        (b'{"fallback": 0}', "fallback is 0: expected greater than or equal to 1"),
        (
            b'{"calibration": {"method": "platt", "pooled": {"slope": -1}}}',
            "slope is -1: expected greater",
        ),
        (
            b'{"calibration": {"method": "isotonic", "pooled":'
            b' {"slope": 1, "logits": [0, 0], "calibrated": [0, 1]}}}',
            "expected logits that rise",
        ),
        (
            b'{"calibration": {"method": "isotonic", "pooled":'
            b' {"slope": 1, "logits": [0, 1], "calibrated": [1, 0]}}}',
            "expected calibrated values that never fall",
        ),
        (
            b'{"calibration": {"method": "isotonic", "pooled":'
            b' {"slope": 1, "logits": [0, 1], "calibrated": [1]}}}',
            "as many calibrated values",
        ),
        (
            b'{"calibration": {"method": "isotonic", "pooled":'
            b' {"slope": 1, "logits": [0], "calibrated": [NaN]}}}',
            "expected log-odds between",
        ),
        (
            b'{"calibration": {"method": "platt", "pooled": {"slope": 1},'
            b' "per_label": {"q": {"slope": 1}}}}',
            "calibration.per_label: label 'q'",
        ),
    ],
)
def test_a_decision_file_that_is_none_or_of_another_model_is_refused_in_one_line(
    content: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "decision.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_decision(str(file), FOUR)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", ""])
def test_a_decision_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such decision file"):
        read_decision(f"{tmp_path}/{name}", FOUR)


def test_four_thousand_labels_are_decided_in_the_time_of_a_few_looks_at_the_scores() -> None:
    import time

    rng = np.random.default_rng(0)
    names = tuple(f"label {number}" for number in range(4_271))
    parents = {
        names[place]: [names[above] for above in set(rng.integers(0, place, 2).tolist())]
        for place in range(100, 4_271)
    }
    scores_NL = (rng.random((1_000, 4_271), np.float32) ** 8).astype(np.float32)
    rules = Decision(threshold=0.99, hierarchy=parents, fallback=1).rules(LabelSet(names))
    started = time.perf_counter()
    given_NL = decide(scores_NL, rules)
    took = time.perf_counter() - started
    assert given_NL.any(axis=1).all()
    assert took < 10  # a tenth of a second on an idle core
