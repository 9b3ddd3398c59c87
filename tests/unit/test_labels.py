"""Label sets: what is refused, and names that stay unique where case is folded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.errors import DataError
from ray_mlc.labels import LabelSet, unique_when_folded

# letters of several cases, the German ß that folds to ss, and what our own endings are made of
NAMES = st.lists(st.text("aAbBßsS_23", min_size=1, max_size=4), max_size=8)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ((), "empty"),
        (("a", "b", "a"), "'a' is named 2 times"),
        (("a", ""), "''"),
        (("a", "  "), "'  '"),
        (("a", 3), "3 is not a name"),
    ],
)
def test_a_label_set_without_proper_names_is_refused(names: tuple[str, ...], named: str) -> None:
    with pytest.raises(DataError, match=named):
        LabelSet(names)


def test_each_name_has_its_column() -> None:
    labels = LabelSet(("x", "a", "X"))
    assert [labels.index[name] for name in labels.names] == [0, 1, 2]
    assert len(labels) == 3


def test_the_second_of_two_names_that_fold_alike_gets_a_number() -> None:
    assert LabelSet(("Spam", "spam", "SPAM", "ham")).column_names == (
        "Spam",
        "spam_2",
        "SPAM_3",
        "ham",
    )


def test_a_number_that_is_a_name_already_is_skipped() -> None:
    assert LabelSet(("spam", "Spam", "spam_2")).column_names == ("spam", "Spam_3", "spam_2")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NAMES, NAMES)
def test_folded_names_are_unique_and_unaffected_ones_keep_theirs(
    names: list[str], taken: list[str]
) -> None:
    result = unique_when_folded(names, taken)
    folded = [name.casefold() for name in result]
    used = {name.casefold() for name in taken}
    assert len(set(folded)) == len(folded) == len(names)
    assert not used & set(folded)
    before = [name.casefold() for name in names]
    for old, new in zip(names, result, strict=True):
        assert new == old or new.startswith(f"{old}_")
        if before.count(old.casefold()) == 1 and old.casefold() not in used:
            assert new == old
