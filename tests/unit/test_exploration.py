"""The figures of an exploration are what a plain count gives."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_mlc.labels import LabelSet
from ray_mlc.training.duplicates import find_duplicates
from ray_mlc.training.examples import Examples
from ray_mlc.training.exploration import (
    CUT_OFFS,
    HEATMAP,
    Exploration,
    Lengths,
    count_words,
    explore,
    lengths_of,
    split_facts,
)
from ray_mlc.training.repetition import SHOWN


def examples_of(
    targets: np.ndarray[Any, Any],
    texts: list[str] | None = None,
    *,
    names: tuple[str, ...] | None = None,
    null_text: list[bool] | None = None,
    ids: list[str] | None = None,
) -> Examples:
    """Examples of targets 1, 0 and NaN (not annotated), shape [N, L]."""
    rows, labels = targets.shape
    annotated = ~np.isnan(targets).all(axis=1)
    gaps = [np.flatnonzero(np.isnan(row)).tolist() for row in targets]
    open_cells = [gap if known else [] for gap, known in zip(gaps, annotated, strict=True)]
    positives = [np.flatnonzero(row == 1).tolist() for row in targets]
    texts = texts if texts is not None else [f"text number {row}" for row in range(rows)]
    return Examples(
        ids=pa.array(ids or [f"i{row}" for row in range(rows)]),
        texts=pa.array(texts, pa.large_string()),
        positives=pa.array(positives, pa.list_(pa.int32())),
        annotated=annotated,
        unannotated=pa.array(open_cells, pa.list_(pa.int32())) if any(open_cells) else None,
        label_set=LabelSet(names or tuple(f"l{label}" for label in range(labels))),
        null_text=None if null_text is None else np.array(null_text),
    )


def explored(*, texts: bool = False, near: float | None = 0.8, **splits: Examples) -> Exploration:
    every = pa.concat_arrays([examples.texts for examples in splits.values()])
    lengths = [lengths_of(splits, count_words, unit="words")]
    return explore(splits, lengths, find_duplicates(every, jaccard=near), texts=texts)


def random_targets(rows: int, labels: int, *, gaps: float = 0, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    common = generator.random((rows, 1)) < 0.3
    targets = (generator.random((rows, labels)) < np.where(common, 0.5, 0.05)).astype(float)
    targets[generator.random((rows, labels)) < gaps] = np.nan
    return targets


def test_rows_of_every_kind_are_counted() -> None:
    targets = np.array([[1, 0], [0, 0], [np.nan, 1], [np.nan, np.nan], [0, 0]])
    facts = split_facts(
        "train",
        examples_of(
            targets,
            ["a", "", " \n", "b", ""],
            null_text=[False, True, False, False, False],
            ids=["1", "1", "2", "3", "1"],
        ),
    )
    assert (facts.rows, facts.null_texts, facts.empty_texts) == (5, 1, 2)
    assert (facts.not_annotated, facts.unannotated_cells, facts.without_labels) == (1, 1, 2)
    assert facts.labels_per_document == 0.5
    assert (facts.labels_used, facts.duplicate_ids) == (2, 2)


def lengths_from(**lengths: list[int]) -> Lengths:
    splits = {
        name: examples_of(np.ones((len(sizes), 1)), ["w " * size for size in sizes])
        for name, sizes in lengths.items()
    }
    return lengths_of(splits, count_words, unit="words")


def test_cut_offs_say_what_a_plain_count_says() -> None:
    sizes = np.random.default_rng(0).lognormal(4, 1.2, 400).astype(int).tolist()
    found = lengths_from(train=sizes[:300], test=sizes[300:])
    assert [cut.at for cut in found.cut_offs] == [at for at in CUT_OFFS if at / 2 < max(sizes)]
    for cut in found.cut_offs:
        assert cut.whole == pytest.approx(np.mean([size <= cut.at for size in sizes]))
        assert cut.kept == pytest.approx(sum(min(size, cut.at) for size in sizes) / sum(sizes))
    assert (found.cut_offs[-1].whole, found.cut_offs[-1].kept) == (1, 1)
    train = sizes[:300]
    for at, whole, kept in zip(
        found.curve_at, found.curve_whole["train"], found.curve_kept["train"], strict=True
    ):
        assert whole == pytest.approx(np.mean([size <= at for size in train]), abs=1e-6)
        assert kept == pytest.approx(sum(min(s, at) for s in train) / sum(train), abs=1e-6)
    assert found.splits[0].p90 == pytest.approx(np.quantile(train, 0.9))
    assert found.splits[1].longest == max(sizes[300:])


@pytest.mark.parametrize("sizes", [[0], [1], [1, 1], [0, 5], [31, 32, 33], [40_000]])
def test_every_document_falls_into_one_bin_but_the_empty(sizes: list[int]) -> None:
    found = lengths_from(train=sizes)
    assert sum(found.counts["train"]) == sum(size > 0 for size in sizes)
    assert len(found.counts["train"]) == len(found.bins) - 1
    assert found.curve_whole["train"][-1] == 1


def test_label_counts_and_rates_are_over_decided_cells() -> None:
    targets = random_targets(200, 6, gaps=0.2)
    found = explored(train=examples_of(targets[:120]), test=examples_of(targets[120:]))
    assert [facts.rows for facts in found.labels] == sorted(
        (facts.rows for facts in found.labels), reverse=True
    )
    for facts in found.labels:
        column = targets[:, int(facts.label[1:])]
        for name, part in (("train", column[:120]), ("test", column[120:])):
            assert facts.count[name] == np.nansum(part)
            assert facts.annotated[name] == np.sum(~np.isnan(part))
            assert facts.rate[name] == pytest.approx(np.nanmean(part))


def test_phi_is_the_correlation_over_rows_in_which_both_were_decided() -> None:
    targets = random_targets(300, 5, gaps=0.15)
    targets[:, 4] = 0  # constant
    found = explored(train=examples_of(targets)).together
    assert sorted(found.labels) == ["l0", "l1", "l2", "l3"]  # a label that nobody has says nothing
    for i, one in enumerate(found.labels):
        for j, other in enumerate(found.labels):
            left, right = targets[:, int(one[1:])], targets[:, int(other[1:])]
            both = ~np.isnan(left) & ~np.isnan(right)
            assert found.both[i][j] == np.sum((left == 1) & (right == 1))
            expected = np.corrcoef(left[both], right[both])[0, 1]
            assert found.phi[i][j] == pytest.approx(expected, abs=1e-6)
            given = np.sum((left == 1) & (right == 1)) / np.sum((left == 1) & both)
            assert found.given[i][j] == pytest.approx(given, abs=1e-6)


def test_pairs_are_those_of_the_whole_label_set_and_agree_with_the_square() -> None:
    targets = random_targets(400, 60)
    targets[:, 59] = targets[:, 58]
    found = explored(train=examples_of(targets))
    assert len(found.together.labels) == HEATMAP
    assert {found.pairs[0].first, found.pairs[0].second} == {"l58", "l59"}
    assert found.pairs[0].phi == pytest.approx(1)
    place = {name: at for at, name in enumerate(found.together.labels)}
    shared = [pair for pair in found.pairs if {pair.first, pair.second} <= set(place)]
    assert shared
    for pair in shared:
        i, j = place[pair.first], place[pair.second]
        assert pair.both == found.together.both[i][j]
        assert pair.phi == pytest.approx(found.together.phi[i][j], abs=1e-6)
        assert pair.second_given_first == pytest.approx(found.together.given[i][j], abs=1e-6)
        assert pair.first_given_second == pytest.approx(found.together.given[j][i], abs=1e-6)


def test_labels_that_go_together_are_neighbors() -> None:
    base = random_targets(500, 4)
    targets = np.concatenate([base, base], axis=1)  # label l and l + 4 are the same
    names = explored(train=examples_of(targets)).together.labels
    for label in range(4):
        assert abs(names.index(f"l{label}") - names.index(f"l{label + 4}")) == 1


def test_a_label_that_only_a_later_split_has_is_absent_from_the_others() -> None:
    train = examples_of(np.array([[1.0], [0.0]]), names=("old",))
    test = examples_of(np.array([[0.0, 1.0], [1.0, 0.0]]), names=("old", "new"))
    found = explored(train=train, test=test)
    assert found.absent == {"train": ("new",), "test": ()}
    new = next(facts for facts in found.labels if facts.label == "new")
    assert (new.count, new.annotated) == ({"train": 0, "test": 1}, {"train": 2, "test": 2})
    assert found.supports["train"][:3] == (1, 1, 0)
    assert sum(found.supports["train"]) == sum(found.supports["test"]) == 2


def test_drift_tells_a_split_by_time_from_a_split_by_chance() -> None:
    generator = np.random.default_rng(0)
    by_chance = (generator.random((3_000, 50)) < 0.05).astype(float)
    found = explored(train=examples_of(by_chance[:2_000]), test=examples_of(by_chance[2_000:]))
    assert max(abs(drift) for facts in found.labels for drift in facts.drift.values()) < 4
    moved = by_chance.copy()
    moved[2_000:, 7] = generator.random(1_000) < 0.2
    found = explored(train=examples_of(moved[:2_000]), test=examples_of(moved[2_000:]))
    [far] = [facts for facts in found.labels if abs(facts.drift["test"]) > 4]
    assert far.label == "l7"
    assert far.drift["test"] == -far.drift["train"] > 4


def test_two_rows_in_a_small_split_are_no_wonder() -> None:
    targets = np.zeros((5_000, 2))
    targets[-2:, 0] = 1  # a z of two proportions is 6.9 here
    targets[0, 1] = 1
    found = explored(train=examples_of(targets[:4_800]), test=examples_of(targets[4_800:]))
    first = next(facts for facts in found.labels if facts.label == "l0")
    p = (200 * 199) / (5_000 * 4_999)
    assert first.drift["test"] == pytest.approx(NormalDist().inv_cdf(1 - p), abs=1e-3)
    alone = explored(train=examples_of(targets))
    assert all(facts.drift == {} for facts in alone.labels)


def test_duplicates_and_contradictions_are_named_by_split_and_id() -> None:
    train = examples_of(
        np.array([[1.0, 0], [0, 1], [1, 0], [np.nan, np.nan], [0, 1]]),
        ["Same text", "same  TEXT", "other", "same text", ""],
    )
    test = examples_of(np.array([[1.0, 0], [0, 0], [0, 1]]), ["other", "same text", ""])
    found = explored(train=train, test=test).duplicates
    assert [(w.split, w.exact) for w in found.within] == [("train", 2), ("test", 0)]
    assert [(s.of, s.exact) for s in found.across] == [("train", 4), ("test", 2)]
    assert [(g.rows, g.count) for g in found.groups] == [
        (4, {"train": 3, "test": 1}),
        (2, {"train": 1, "test": 1}),
    ]
    # a row that nobody annotated contradicts nothing, nor do two empty texts
    assert (found.contradicted_texts, found.contradicted_rows) == (1, 3)
    [one] = found.contradictions
    assert one.ids == ("train:i0", "test:i1", "train:i1")
    assert sorted(one.labels) == [(), ("l0",), ("l1",)]
    assert one.text is None
    shown = explored(texts=True, train=train, test=test).duplicates
    assert shown.contradictions[0].text == "Same text"
    assert shown.groups[0].text == "Same text"


def test_thousands_of_groups_are_counted_and_some_are_listed() -> None:
    texts = [f"text {row // 2}" for row in range(1_000)]
    targets = np.array([[row % 2, (row + 1) % 2] for row in range(1_000)], float)
    found = explored(train=examples_of(targets, texts), near=None).duplicates
    assert len(found.groups) == len(found.contradictions) == SHOWN
    assert found.contradicted_rows == 1_000
    assert found.within[0].near is None


def test_no_text_is_in_the_figures_unless_it_is_asked_for() -> None:
    secret = "nobody may read this secret sentence in a report"
    targets = np.array([[1.0, 0], [0, 1], [1, 1]])
    data = examples_of(targets, [secret, secret, secret + " at all"])
    assert secret not in json.dumps(asdict(explored(train=data)))
    assert secret in json.dumps(asdict(explored(train=data, texts=True)))


@pytest.mark.parametrize(
    "targets",
    [
        np.zeros((3, 2)),  # no label is ever given
        np.full((3, 2), np.nan),  # nobody annotated anything
        np.ones((1, 1)),
        np.ones((5, 3)),
    ],
)
def test_poor_examples_are_explored_too(targets: Any) -> None:
    data = examples_of(targets, [""] * len(targets))
    json.dumps(asdict(explored(train=data)), allow_nan=False)
    json.dumps(asdict(explored(train=data, test=data)), allow_nan=False)
