"""How far distributions are apart, and limits on it."""

from __future__ import annotations

import numpy as np
import pytest

from ray_mlc.errors import ConfigError
from ray_mlc.model.distribution import BINS, EDGES
from ray_mlc.scoring.drift import (
    jensen_shannon,
    merge_unknown,
    psi,
    psi_by_chance,
    rate_interval,
)
from ray_mlc.scoring.gates import Gate

HUGE = 10**9  # beside it half a document is nothing


def test_the_measures_are_those_of_their_formulas() -> None:
    a_LB = np.array([[HUGE // 2, HUGE // 4, HUGE // 4], [HUGE, 0, 0]])
    b_LB = np.array([[HUGE // 4, HUGE // 4, HUGE // 2], [0, HUGE, 0]])
    assert psi(a_LB, b_LB)[0] == pytest.approx(0.5 * np.log(2), rel=1e-6)
    middle = 0.5 * np.log2(0.5 / 0.375) + 0.25 * np.log2(0.25 / 0.375)
    np.testing.assert_allclose(jensen_shannon(a_LB, b_LB), [middle, 1], rtol=1e-6)
    assert psi(a_LB, a_LB).tolist() == jensen_shannon(b_LB, b_LB).tolist() == [0, 0]
    np.testing.assert_allclose(psi(a_LB, b_LB), psi(b_LB, a_LB))


def test_what_has_not_moved_stays_within_chance_and_what_has_does_not() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(BINS))
    moved = np.roll(shares, 2)
    for sizes in ((1_000, 500), (20_000, 5_000)):
        a_LB, b_LB = (rng.multinomial(size, shares, 2_000) for size in sizes)
        beyond = psi(a_LB, b_LB) > psi_by_chance(a_LB, b_LB)
        assert beyond.mean() < 0.002
        c_LB = rng.multinomial(sizes[1], moved, 2_000)
        assert (psi(a_LB, c_LB) > psi_by_chance(a_LB, c_LB)).all()


@pytest.mark.parametrize("floor", [0.0, 0.0005, 0.001, 0.01, 0.25, 0.5, 0.9995])
def test_bins_that_begin_below_the_floor_become_one(floor: float) -> None:
    counts_LB = np.arange(2 * BINS).reshape(2, BINS)
    found_LB = merge_unknown(counts_LB, floor=floor)
    assert found_LB.sum() == counts_LB.sum()
    begins = np.array([0.0, *EDGES])
    whole = int((begins >= np.float32(floor) - 1e-9).sum())
    assert found_LB.shape[1] == (BINS if floor == 0 else whole + 1)
    if whole:
        np.testing.assert_array_equal(found_LB[:, -whole:], counts_LB[:, -whole:])


def test_the_interval_is_wilsons() -> None:
    assert rate_interval(0, 0) is None
    # from the table of Newcombe 1998: 15 of 148
    assert rate_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert rate_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pis<=0.2", "unknown figure pis: did you mean psi?"),
        ("agrement>=0.9", "unknown figure agrement: did you mean agreement?"),
        ("weight<=1", "unknown figure weight: expected one of agreement, psi, js"),
        ("agreement<=0.9", "expected agreement>=0.9: it is good where it is high"),
        ("psi>0.2", "expected psi<=0.2: it is good where it is low"),
        ("psi", "expected a limit such as agreement>=0.9 or psi<=0.2"),
        ("psi<=a lot", "expected a limit such as"),
        ("psi<=1e", "1e is not a number"),
        ("agreement>=90", "expected a number from 0 to 1"),
        ("psi<=-1", "expected a number from 0 on"),
    ],
)
def test_a_gate_that_is_none_is_refused_with_what_is_meant(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Gate.parse(text)
    assert message in str(error.value)
    assert text in str(error.value)


def test_gates_are_held_against_figures() -> None:
    found = {
        "agreement": {"value": 0.9},
        "psi": {"value": 0.3, "label": "spam"},
        "js": {"value": None, "why": "a side has no rows"},
    }
    said = [
        Gate.parse(text).judge(found)
        for text in ("agreement>= 90%", "agreement>=0.95", "psi<=0.25", "js<=1", "rate_change<=1")
    ]
    assert [item["holds"] for item in said] == [True, False, False, False, False]
    assert [item["gate"] for item in said][:2] == ["agreement>=0.9", "agreement>=0.95"]
    assert said[2]["why"] == "0.3000 of spam"
    assert said[3]["why"] == "a side has no rows"
