"""Equal texts are found for sure, similar ones as similar as they are."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from ray_mlc.errors import DataError
from ray_mlc.training.duplicates import (
    HASHES,
    NEIGHBOURS,
    SHINGLE_WORDS,
    find_duplicates,
    groups_of,
    shared_rows,
)


def texts_of(*texts: str) -> pa.Array:
    return pa.array(texts, pa.large_string())


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The definition, as plainly as it can be said."""
    words = re.findall(r"\w+", text.lower())
    spans = range(max(len(words) - SHINGLE_WORDS + 1, 1))
    return (
        frozenset(tuple(words[at : at + SHINGLE_WORDS]) for at in spans) if words else frozenset()
    )


def jaccard(one: str, other: str) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


def mutated(seed: int, count: int) -> list[str]:
    """Texts of 1 to 60 words, each a copy of an earlier one with some words changed."""
    generator = np.random.default_rng(seed)
    texts = [[f"w{w}" for w in generator.integers(0, 500, size)] for size in (1, 2, 3, 30, 60, 60)]
    while len(texts) < count:
        copy = list(texts[generator.integers(len(texts))])
        for _ in range(generator.integers(1, 4)):
            copy[generator.integers(len(copy))] = f"w{generator.integers(0, 500)}"
        texts.append(copy)
    return [" ".join(words) for words in texts]


def test_texts_that_differ_in_case_and_white_space_only_are_the_same() -> None:
    found = find_duplicates(
        texts_of("A  text\u00a0here", " a TEXT here\n", "a text, here", "other"), jaccard=None
    )
    assert found.text_N.tolist() == [0, 0, 1, 2]
    assert found.first_T.tolist() == [0, 2, 3]


def test_an_empty_text_is_like_no_other() -> None:
    found = find_duplicates(texts_of("", " \n", "", "!!!", "???"), jaccard=0.8)
    assert found.text_N.tolist() == [-1, -1, -1, 0, 1]
    assert len(found.pairs_P2) == 0  # nor is one without a word
    assert sorted(groups_of(found, near=True)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_every_reported_pair_is_as_similar_as_is_said(threshold: float) -> None:
    texts = list(dict.fromkeys(mutated(0, 150)))
    found = find_duplicates(texts_of(*texts), jaccard=threshold)
    for (left, right), value in zip(found.pairs_P2.tolist(), found.jaccard_P, strict=True):
        assert left < right
        assert value == pytest.approx(jaccard(texts[left], texts[right]))
        assert value >= threshold


def test_pairs_well_above_the_threshold_are_all_found() -> None:
    # few enough alike that a bucket holds no more than is compared
    generator = np.random.default_rng(1)
    texts = []
    for _ in range(60):
        words = [f"w{w}" for w in generator.integers(0, 5_000, 60)]
        texts.append(" ".join(words))
        words[30] = "changed"
        texts.append(" ".join(words) + "!")
    found = find_duplicates(texts_of(*texts), jaccard=0.8)
    expected = {
        (left, right)
        for left in range(len(texts))
        for right in range(left + 1, len(texts))
        if jaccard(texts[left], texts[right]) >= 0.85
    }
    assert len(expected) == 60
    assert expected <= {tuple(pair) for pair in found.pairs_P2.tolist()}


def test_punctuation_makes_a_near_duplicate_and_not_an_equal_text() -> None:
    found = find_duplicates(texts_of("Stop it, now!", "stop it now", "stop that now"), jaccard=1.0)
    assert found.text_N.tolist() == [0, 1, 2]
    assert found.pairs_P2.tolist() == [[0, 1]]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "多标签文本分类需要看很多数据才能学会"
    found = find_duplicates(
        texts_of(text, text[:-1] + "习", "完全不同的另外一句话没有关系"), jaccard=0.8
    )
    assert found.pairs_P2.tolist() == [[0, 1]]


def test_a_thousand_alike_cost_no_million_pairs_and_are_one_group() -> None:
    words = [f"w{at}" for at in range(100)]
    texts = [" ".join([*words, f"number{at}"]) for at in range(1_000)]
    found = find_duplicates(texts_of(*texts), jaccard=0.8)
    assert len(found.pairs_P2) <= 1_000 * NEIGHBOURS * HASHES
    assert len(found.pairs_P2) < 200_000  # of 499,500
    assert set(groups_of(found, near=True)) == {0}
    assert len(set(groups_of(found, near=False))) == 1_000


def test_what_blocks_the_texts_fall_into_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(*mutated(3, 80), "", "x")
    whole = find_duplicates(texts, jaccard=0.5)
    monkeypatch.setattr("ray_mlc.training.duplicates._BLOCK_BYTES", 100)
    monkeypatch.setattr("ray_mlc.training.duplicates._BLOCK_SHINGLES", 7)
    monkeypatch.setattr("ray_mlc.training.duplicates._PAIRS", 3)
    pieces = find_duplicates(texts, jaccard=0.5)
    assert pieces.text_N.tolist() == whole.text_N.tolist()
    assert pieces.pairs_P2.tolist() == whole.pairs_P2.tolist()
    assert pieces.jaccard_P.tolist() == whole.jaccard_P.tolist()


def test_rows_shared_between_parts_are_counted_each_way() -> None:
    long = " ".join(f"w{at}" for at in range(50))
    texts = texts_of("same", "SAME", "same", long, long + " more", "alone")
    parts = np.array([0, 0, 1, 0, 1, 1])
    found = shared_rows(find_duplicates(texts, jaccard=0.8), parts, ("train", "test"))
    counts = {(s.of, s.also_in): (s.exact, s.near) for s in found}
    assert counts == {("train", "test"): (2, 1), ("test", "train"): (1, 1)}
    assert found[0].exact_share == pytest.approx(2 / 3)
    unknown = shared_rows(find_duplicates(texts, jaccard=None), parts, ("train", "test"))
    assert [(s.exact, s.near) for s in unknown] == [(2, None), (1, None)]


def test_progress_adds_up_to_each_row_looked_at_twice() -> None:
    seen: list[int] = []
    find_duplicates(texts_of("a", "a", "b", ""), jaccard=0.8, progress=seen.append)
    assert sum(seen) == 8
    seen.clear()
    find_duplicates(texts_of("a", "a", "b", ""), jaccard=None, progress=seen.append)
    assert sum(seen) == 4


@pytest.mark.parametrize("threshold", [0.1, 1.2, -1, float("nan")])
def test_a_similarity_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(DataError, match="near is"):
        find_duplicates(texts_of("a"), jaccard=threshold)
