"""Label hierarchies: closed upward whatever their shape, and refused where they are none."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError
from ray_mlc.labels import LabelSet
from ray_mlc.model.hierarchy import Hierarchy, find_cycle, read_hierarchy

PETS = LabelSet(("mammal", "dog", "spaniel", "pet", "0042", "no", "Ünïcode"))


def write(folder: Path, text: str) -> Path:
    file = folder / "labels.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def names_of(count: int) -> LabelSet:
    return LabelSet(tuple(f"label {number}" for number in range(count)))


@st.composite
def hierarchies(draw: st.DrawFn) -> tuple[LabelSet, dict[str, list[str]], NDArray[np.bool_]]:
    """Any graph without a cycle, its labels in any order, and labels given to some documents."""
    count, rows = draw(st.integers(1, 12)), draw(st.integers(0, 4))
    order = draw(st.permutations(range(count)))
    names = names_of(count).names
    parents = {
        names[order[place]]: [names[order[above]] for above in found]
        for place in range(1, count)
        if (found := sorted(draw(st.sets(st.integers(0, place - 1), max_size=4))))
    }
    cells = draw(st.lists(st.booleans(), min_size=rows * count, max_size=rows * count))
    return LabelSet(names), parents, np.array(cells, np.bool_).reshape(rows, count)


def ancestors(name: str, parents: dict[str, list[str]]) -> set[str]:
    above = set(parents.get(name, ()))
    return above.union(*(ancestors(parent, parents) for parent in above))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(hierarchies())
def test_a_label_brings_all_its_ancestors_and_nothing_else(
    drawn: tuple[LabelSet, dict[str, list[str]], NDArray[np.bool_]],
) -> None:
    label_set, parents, given_NL = drawn
    closed_NL = given_NL.copy()
    Hierarchy.of(parents, label_set).close(closed_NL)
    for before, after in zip(given_NL, closed_NL, strict=True):
        names = {name for name, yes in zip(label_set.names, before, strict=True) if yes}
        expected = names.union(*(ancestors(name, parents) for name in names))
        found = {name for name, yes in zip(label_set.names, after, strict=True) if yes}
        assert found == expected
    again_NL = closed_NL.copy()
    Hierarchy.of(parents, label_set).close(again_NL)
    np.testing.assert_array_equal(again_NL, closed_NL)


def test_diamonds_upon_diamonds_cost_no_more_than_their_edges() -> None:
    """Thirty layers of two labels that both have both above them: 2**30 paths to the top."""
    label_set = names_of(60)
    names = label_set.names
    parents = {names[i]: [names[i // 2 * 2 + 2], names[i // 2 * 2 + 3]] for i in range(58)}
    given_NL = np.zeros((3, 60), np.bool_)
    given_NL[0, 0] = given_NL[2, 57] = True
    started = time.perf_counter()
    Hierarchy.of(parents, label_set).close(given_NL)
    assert time.perf_counter() - started < 5
    assert given_NL[0].sum() == 59
    assert given_NL[1].sum() == 0
    assert given_NL[2].sum() == 3


def test_a_chain_of_four_thousand_labels_is_climbed_to_its_end() -> None:
    label_set = names_of(4_000)
    names = label_set.names
    parents = {names[i + 1]: [names[i]] for i in range(3_999)}
    assert find_cycle(parents) is None
    given_NL = np.zeros((2, 4_000), np.bool_)
    given_NL[0, -1] = True
    Hierarchy.of(parents, label_set).close(given_NL)
    assert given_NL.sum(axis=1).tolist() == [4_000, 0]


def test_no_documents_and_no_labels_given_are_nothing_to_do() -> None:
    hierarchy = Hierarchy.of({"dog": ["mammal"]}, PETS)
    for rows in (0, 2):
        given_NL = np.zeros((rows, len(PETS)), np.bool_)
        hierarchy.close(given_NL)
        assert not given_NL.any()


def test_names_are_read_as_they_are_written(tmp_path: Path) -> None:
    """YAML 1.1 takes 0042 for 34, `no` for a refusal, and would sort neither out again."""
    file = write(
        tmp_path,
        "# a comment\n"
        "spaniel: dog\n"
        "dog: [pet, mammal, pet]\n"
        "0042: no\n"
        "no:\n"
        "  - Ünïcode\n"
        "mammal:\n"
        "pet: null\n",
    )
    assert read_hierarchy(file, PETS) == {
        "spaniel": ["dog"],
        "dog": ["pet", "mammal"],
        "0042": ["no"],
        "no": ["Ünïcode"],
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "mammal:\n"])
def test_a_file_without_parents_is_a_hierarchy_without_edges(text: str, tmp_path: Path) -> None:
    assert read_hierarchy(write(tmp_path, text), PETS) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spaniel: dgo", "label 'dgo' is not among the 7 of the model: did you mean 'dog'?"),
        ("Spaniel: dog", "label 'Spaniel' is not among the 7 of the model: did you mean 'spaniel'"),
        ("spaniel: 'dog '", "label 'dog ' is not among the 7 of the model: did you mean 'dog'?"),
        ("zzzz: dog", "label 'zzzz' is not among the 7 of the model: expected labels as 'mammal'"),
        ("dog: dog", "a label lies above itself: dog → dog: remove one"),
        ("dog: pet\npet: mammal\nmammal: dog", "a label lies above itself: "),
        ("dog: pet\nspaniel: dog\ndog: mammal", "line 3: label 'dog' has a line already"),
        ("[dog, pet]", "expected lines such as `child: parent`"),
        ("dog", "expected lines such as `child: parent`"),
        ("dog: {pet: mammal}", "line 1: expected `child: parent`"),
        ("dog: [[pet]]", "line 1: expected `child: parent`"),
        ("? [dog]\n: pet", "line 1: expected `child: parent`"),
        ("dog: ''", "line 1: expected `child: parent`"),
        ("dog: &a [*a]", "line 1: expected `child: parent`"),
        ("dog: [pet", "not valid YAML in line"),
        ("dog: *nowhere", "not valid YAML in line 1"),
        ("dog: pet\n---\npet: mammal", "not valid YAML"),
        ("[" * 20_000, "not valid YAML"),
        ("dog: \x00", "not valid YAML"),
    ],
)
def test_what_is_no_hierarchy_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_hierarchy(file, PETS)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cycle_is_shown_from_child_to_parent_and_a_long_one_in_part() -> None:
    cycle = find_cycle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})
    assert cycle in ("a → b → c → a", "b → c → a → b", "c → a → b → c")
    names = names_of(3_000).names
    ring = {names[i]: [names[(i + 1) % 3_000]] for i in range(3_000)}
    shown = find_cycle(ring)
    assert shown is not None
    assert "…" in shown
    assert len(shown) < 120


@pytest.mark.parametrize("name", ["missing.yaml", "folder", "binary.yaml"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00dog")
    with pytest.raises(ConfigError, match=name):
        read_hierarchy(tmp_path / name, PETS)
