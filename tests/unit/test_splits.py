"""Each row goes into one part, parts have the size asked for, labels are spread evenly."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.labels import LabelSet
from ray_mlc.training.examples import Examples
from ray_mlc.training.splits import (
    Units,
    balance_of,
    groups_given,
    parse_parts,
    parts_given,
    sizes_of,
    split_by_time,
    split_random,
    split_stratified,
    times_of,
)
from ray_mlc.training.stratification import Cells, swap_rows

SHARES = (0.8, 0.1, 0.1)
NAMES = ("train", "validation", "test")


def examples_of(
    lists: list[list[int]], labels: int, annotated: list[bool] | None = None
) -> Examples:
    rows = len(lists)
    return Examples(
        ids=pa.array([str(row) for row in range(rows)]),
        texts=pa.array([f"text {row}" for row in range(rows)], pa.large_string()),
        positives=pa.array([sorted(set(row)) for row in lists], pa.list_(pa.int32())),
        annotated=np.array(annotated) if annotated else np.ones(rows, np.bool_),
        unannotated=None,
        label_set=LabelSet(tuple(f"label {label}" for label in range(labels))),
    )


def skewed(rows: int, labels: int, seed: int = 0) -> Examples:
    """Label rates that fall as 1/rank, from 0 to 5 labels a row."""
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, labels + 1)
    weights /= weights.sum()
    drawn = generator.choice(labels, (rows, 5), p=weights)
    return examples_of(
        [
            row[:size].tolist()
            for row, size in zip(drawn, generator.integers(0, 6, rows), strict=True)
        ],
        labels,
    )


def alone(rows: int) -> Units:
    return Units.of(np.arange(rows))


@given(
    groups=st.lists(st.integers(0, 30), min_size=40, max_size=200),
    share=st.floats(0.1, 0.6),
    way=st.sampled_from(["stratified", "random"]),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_parts_miss_their_size_by_less_than_the_largest_group(
    groups: list[int], share: float, way: str, seed: int
) -> None:
    shares = (1 - share, share / 2, share / 2)
    units = Units.of(np.array(groups))
    if way == "random":
        parts = split_random(units, shares, seed=seed)
    else:
        lists = [[group % 7] if group % 3 else [] for group in groups]
        parts = split_stratified(examples_of(lists, 7), units, shares, seed=seed)
    assert len(parts) == len(groups)
    assert set(parts) <= {0, 1, 2}
    for group in set(groups):  # together
        assert len({part for part, own in zip(parts, groups, strict=True) if own == group}) == 1
    off = np.abs(np.bincount(parts, minlength=3) - sizes_of(shares, len(groups)))
    assert off.max() < max(np.bincount(groups).max(), 2)


@pytest.mark.parametrize("rows", [10, 11, 1_000, 1_003])
def test_single_rows_fill_the_parts_exactly(rows: int) -> None:
    examples = skewed(rows, 12)
    for parts in (
        split_stratified(examples, alone(rows), SHARES, seed=1),
        split_random(alone(rows), SHARES, seed=1),
        split_by_time(np.arange(rows), alone(rows), SHARES),
    ):
        assert np.bincount(parts).tolist() == sizes_of(SHARES, rows).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_label_rates_are_closer_than_by_chance(seed: int) -> None:
    examples = skewed(2_000, 60, seed)
    units = alone(2_000)
    ours = balance_of(examples, split_stratified(examples, units, SHARES, seed=seed), NAMES)
    chance = [
        balance_of(examples, split_random(units, SHARES, seed=other), NAMES) for other in range(8)
    ]
    assert ours.mean_rows_off < 0.35 * min(other.mean_rows_off for other in chance)
    assert ours.mean_difference < 0.35 * min(other.mean_difference for other in chance)
    assert ours.largest_difference < 0.35 * min(other.largest_difference for other in chance)


def test_pairs_of_labels_are_spread_too() -> None:
    # each label alone is even in any part of the right size; how they meet is not
    lists = [[row // 2 % 2, 2 + row // 4 % 2] for row in range(1_000)]
    parts = split_stratified(examples_of(lists, 4), alone(1_000), SHARES, seed=0)
    for pair in ([0, 2], [0, 3], [1, 2], [1, 3]):
        rows = parts[[labels == pair for labels in lists]]
        counts = np.bincount(rows, minlength=3)
        assert np.abs(counts - len(rows) * np.array(SHARES)).max() <= 1


def test_frequent_labels_do_not_pay_for_the_rare_ones() -> None:
    # a hundred labels of one row each go to the training part, and with them a hundred rows
    lists = [[row] for row in range(100)] + [[100 + row % 2] for row in range(900)]
    examples = examples_of(lists, 102)
    parts = split_stratified(examples, alone(1_000), SHARES, seed=0)
    assert set(parts[:100]) == {0}
    balance = balance_of(examples, parts, NAMES, shown=102)
    off = {label.label: label.rows_off for label in balance.labels}
    # by rate 80 of them would be there: the other two labels are 10 rows short each
    assert max(off["label 100"], off["label 101"]) <= 11
    assert abs(off["label 100"] - off["label 101"]) <= 1


def test_each_label_is_as_frequent_as_whole_rows_allow() -> None:
    examples = examples_of([[row % 5] for row in range(500)], 5)
    parts = split_stratified(examples, alone(500), SHARES, seed=0)
    for label in range(5):
        rows = parts[np.arange(500) % 5 == label]
        assert np.bincount(rows, minlength=3).tolist() == [80, 10, 10]


def test_a_label_of_one_row_goes_where_it_can_be_learned() -> None:
    examples = examples_of([[0]] + [[1]] * 199, 2)
    for seed in range(5):
        assert split_stratified(examples, alone(200), SHARES, seed=seed)[0] == 0


def test_rows_that_nobody_annotated_are_spread_too() -> None:
    annotated = [row % 2 == 0 for row in range(400)]
    examples = examples_of([[0] if own else [] for own in annotated], 1, annotated)
    parts = split_stratified(examples, alone(400), SHARES, seed=0)
    assert np.bincount(parts[~np.array(annotated)]).tolist() == [160, 20, 20]


def test_four_thousand_labels_are_placed_without_dense_rows() -> None:
    examples = skewed(6_000, 4_000)
    parts = split_stratified(examples, alone(6_000), SHARES, seed=0)
    chance = split_random(alone(6_000), SHARES, seed=0)
    ours, theirs = balance_of(examples, parts, NAMES), balance_of(examples, chance, NAMES)
    assert ours.mean_rows_off < 0.7 * theirs.mean_rows_off
    assert ours.absent["train"] == 0 < theirs.absent["train"]


def test_a_seed_says_all() -> None:
    examples = skewed(300, 20)
    units = Units.of(np.arange(300) // 2)
    first, again, other = (
        split_stratified(examples, units, SHARES, seed=seed) for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    first, again, other = (split_random(units, SHARES, seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_the_hash_seed_of_the_process_changes_nothing() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/unit')\n"
        "from test_splits import SHARES, alone, skewed, split_stratified\n"
        "print(split_stratified(skewed(100, 9), alone(100), SHARES, seed=0).tolist())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(said) == 1


def test_groups_are_joined_by_chains() -> None:
    units = Units.of(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8]))
    assert units.unit_N.tolist() == [0, 0, 0, 1, 2]
    assert units.size_U.tolist() == [3, 1, 1]


# --- time


def test_no_part_knows_of_anything_newer_than_the_next_begins_with() -> None:
    generator = np.random.default_rng(0)
    times = generator.integers(0, 50, 1_000)
    parts = split_by_time(times, alone(1_000), SHARES)
    for part in range(2):
        assert times[parts == part].max() < times[parts == part + 1].min()  # ties stay together
    largest = np.bincount(times).max()
    assert (np.abs(np.bincount(parts) - sizes_of(SHARES, 1_000)) <= largest).all()


def test_a_group_counts_by_its_newest_row() -> None:
    times = np.arange(20)
    groups = np.arange(20)
    groups[0] = groups[19]
    parts = split_by_time(times, Units.of(groups), (0.5, 0.5))
    assert parts[0] == parts[19] == 1
    assert times[parts == 0].max() < times[1:][parts[1:] == 1].min()


def test_too_few_times_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="cannot be cut by time"):
        split_by_time(np.zeros(100), alone(100), SHARES)
    with pytest.raises(DataError, match="has 99 of 100 rows"):
        split_by_time(np.array([0] * 99 + [1]), alone(100), SHARES)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2026-11-24", "2025-01-01", "2026-11-25"], pa.string()),
        ([" 2026-11-24T06:00:00Z ", "2025-01-01T00:00:00Z", "2026-11-24T06:00:01Z"], pa.string()),
        (["10", "9", "11"], pa.large_string()),
        (["1.5", "-2e3", "7"], pa.string()),
        ([date(2026, 1, 2), date(2026, 1, 1), date(2027, 1, 1)], pa.date32()),
        ([datetime(2026, 1, 2), datetime(2026, 1, 1), datetime(2027, 1, 1)], pa.timestamp("ms")),
        ([2, 1, 3], pa.int16()),
        ([2.5, -1.0, 3.0], pa.float32()),
    ],
)
def test_dates_times_and_numbers_sort_by_time(values: list[Any], kind: pa.DataType) -> None:
    assert np.argsort(times_of(pa.array(values, kind), "when")).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array(["24.11.2026", "1.1.2025"]), "ISO 8601"),
        (pa.array(["2026-11-24", "2025-01-01T00:00:00Z"]), "ISO 8601"),
        (pa.array(["2026-11-24", None, ""]), r"in 2 row\(s\), the first of them row 2"),
        (pa.array([1.0, float("nan")]), r"in 1 row\(s\), the first of them row 2"),
        (pa.array([1, None]), "row 2"),
        (pa.array([[1], [2]]), "expected dates, times or numbers"),
        (pa.array([True, False]), "expected dates, times or numbers"),
    ],
)
def test_what_is_no_time_is_refused(column: pa.Array, said: str) -> None:
    with pytest.raises(DataError, match=said):
        times_of(column, "when")


# --- columns and options


def test_given_parts_come_in_their_usual_order() -> None:
    names, parts = parts_given(pa.array(["test", "Train", "b", "test"]), "split")
    assert names == ("Train", "test", "b")
    assert parts.tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array(["a", None, "b"]), "the first of them row 2"),
        (pa.array(["a", "a"]), "one part only"),
        (pa.array(["a", "../b"]), "begins with a letter"),
        (pa.array(["a", "_b"]), "begins with a letter"),
        (pa.array(["train", "Train"]), "write one of them"),
        (pa.array([str(at) for at in range(30)]), "30 different values"),
        (pa.array([[1], [2]]), "expected text or numbers"),
    ],
)
def test_a_column_that_names_no_parts_is_refused(column: pa.Array, said: str) -> None:
    with pytest.raises((DataError, ConfigError), match=said):
        parts_given(column, "split")


def test_rows_without_a_group_are_groups_by_themselves() -> None:
    groups = groups_given(pa.array(["a", None, "a", "", None, "b"]), "user")
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 5
    assert len(set(groups_given(pa.array([1, 2, 1, None]), "user").tolist())) == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("train=0.8,test=0.1", "adds up to 0.9"),
        ("train=1", "between 0 and 1"),
        ("train=0.5,test=half", "'test=half'"),
        ("train,test", "'train'"),
        ("a=0.5,A=0.5", "'a' twice"),
        ("a/b=0.5,c=0.5", "'a/b'"),
        (".a=0.5,c=0.5", "'.a'"),
        ("a=nan,c=0.5", "'a=nan'"),
        ("", "has ''"),
    ],
)
def test_wrong_parts_are_named(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        parse_parts(spec)


def test_parts_may_have_any_shares_that_add_up() -> None:
    parts = parse_parts(" a = 0.7 , b=0.1,c=0.1,d=0.1 ")
    assert [(part.name, part.share) for part in parts] == [
        ("a", 0.7),
        ("b", 0.1),
        ("c", 0.1),
        ("d", 0.1),
    ]
    assert sizes_of([0.7, 0.1, 0.1, 0.1], 10).tolist() == [7, 1, 1, 1]
    with pytest.raises(DataError, match="would be empty"):
        sizes_of(SHARES, 4)


def test_the_balance_says_which_labels_are_off_and_where_they_are_absent() -> None:
    examples = examples_of([[0], [0], [0, 1], [1], [2], []], 4)
    balance = balance_of(examples, np.array([0, 0, 0, 1, 1, 1]), ("a", "b"))
    by_label = {label.label: label for label in balance.labels}
    assert by_label["label 0"].count_by_part == {"a": 3, "b": 0}
    assert by_label["label 0"].rows_off == 1.5
    assert by_label["label 0"].difference == pytest.approx(0.5)
    assert balance.absent == {"a": 1, "b": 1}  # label 3, which no row has, is absent nowhere
    assert balance.labels[0].label == "label 0"


@pytest.mark.parametrize("seed", range(4))
def test_swaps_keep_every_size_and_never_make_it_worse(seed: int) -> None:
    examples = skewed(600, 30, seed)
    units = Units.of(np.random.default_rng(seed).integers(0, 400, 600))
    before_U = np.random.default_rng(seed).integers(0, 3, len(units.size_U))
    cells = Cells.of(examples, units.unit_N, pairs_from=20)
    after_U = swap_rows(cells, units.size_U, before_U, SHARES)

    def chi_square(part_U: Any) -> float:
        counts = np.zeros((len(cells.rows_C()), 3))
        np.add.at(counts, (cells.code_K, part_U[cells.unit_K]), cells.rows_K)
        expected = cells.rows_C()[:, None] * np.array(SHARES)
        return float(((counts - expected) ** 2 / expected).sum())

    assert chi_square(after_U) < 0.8 * chi_square(before_U)
    for size in set(units.size_U.tolist()):
        some = units.size_U == size
        assert np.bincount(before_U[some], minlength=3).tolist() == (
            np.bincount(after_U[some], minlength=3).tolist()
        )
    assert (after_U[units.size_U > 1] == before_U[units.size_U > 1]).all()
