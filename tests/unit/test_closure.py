"""`data explore` and a label hierarchy: counts upward, and rows that lack what lies above."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.browser import opened
from support.cli import run

from ray_mlc.model.hierarchy import Hierarchy, find_cycle
from ray_mlc.report.explore import exploration_page, findings
from ray_mlc.report.page import Section, Tree, Twig, render_page
from ray_mlc.runtime.explore import explore_examples
from ray_mlc.runtime.progress import Display
from ray_mlc.training.closure import HierarchyFacts, hierarchy_facts
from ray_mlc.training.examples import Examples, read_examples

HOSTILE = '<img src=x onerror="alert(1)">, </table>'


def write(path: Path, labels: list[Any], unannotated: list[Any] | None = None) -> str:
    columns: dict[str, Any] = {
        "text": [f"text {row}" for row in range(len(labels))],
        "labels": pa.array(labels, pa.list_(pa.string())),
    }
    if unannotated is not None:
        columns["unannotated"] = pa.array(unannotated, pa.list_(pa.string()))
    pq.write_table(pa.table(columns), path)
    return str(path)


def facts_of(parents: dict[str, list[str]], *paths: str) -> HierarchyFacts:
    splits: dict[str, Examples] = {}
    label_set = None
    for path in paths:
        splits[Path(path).stem] = read_examples(path, label_set=label_set)
        label_set = splits[Path(path).stem].label_set
    return hierarchy_facts(splits, parents, "labels.yaml")


NAMES = "abcdef"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=12),
    edges=st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=8),
)
def test_counts_are_those_of_the_decision_that_closes_upward(
    rows: list[set[str]], edges: set[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    parents: dict[str, list[str]] = {}
    for child, parent in sorted(edges):
        trial = {**parents, child: [*parents.get(child, []), parent]}
        if child != parent and find_cycle(trial) is None:
            parents = trial
    if not any(rows):
        rows = [*rows, {"a"}]
    path = write(tmp_path_factory.mktemp("x") / "train.parquet", [sorted(row) for row in rows])
    examples = read_examples(path)
    found = facts_of(parents, path)
    known = [name for name in NAMES if name in examples.label_set.index]
    every = sorted({*known, *parents, *(p for above in parents.values() for p in above)})
    from ray_mlc.labels import LabelSet

    label_set = LabelSet(tuple(every))
    given_NL = np.array([[name in row for name in every] for row in rows])
    closed_NL = given_NL.copy()
    Hierarchy.of(parents, label_set).close(closed_NL)
    for node in found.nodes:
        column = label_set.index[node.label]
        assert node.rows["train"] == given_NL[:, column].sum()
        assert node.closed["train"] == closed_NL[:, column].sum()
    assert found.gap_rows["train"] == (closed_NL & ~given_NL).any(axis=1).sum()
    direct = {
        (child, parent): sum(child in row and parent not in row for row in rows)
        for child, above in parents.items()
        for parent in above
    }
    assert {(g.label, g.parent): g.rows for g in found.gaps} == {
        pair: count for pair, count in direct.items() if count
    }


def test_what_nobody_decided_is_no_gap_and_splits_are_kept_apart(tmp_path: Path) -> None:
    one = write(
        tmp_path / "train.parquet",
        [["dog"], ["dog"], ["dog", "animal"], None, []],
        [["animal"], [], [], [], []],
    )
    two = write(tmp_path / "test.parquet", [["puppy"], ["animal"], ["other"]])
    found = facts_of({"puppy": ["dog"], "dog": ["animal"], "unseen": ["animal"]}, one, two)
    nodes = {node.label: node for node in found.nodes}
    assert found.gap_rows == {"train": 1, "test": 1}
    assert nodes["animal"].closed == {"train": 3, "test": 2}
    assert nodes["dog"].rows == {"train": 3, "test": 0}
    assert nodes["dog"].closed == {"train": 3, "test": 1}
    assert nodes["dog"].gaps == 1
    assert nodes["puppy"].gaps == 1  # one row, though two labels above are lacking
    assert nodes["unseen"].closed == {"train": 0, "test": 0}
    assert found.alone == 1
    assert [(gap.label, gap.parent, gap.rows, gap.of) for gap in found.gaps] == [
        ("puppy", "dog", 1, 1),
        ("dog", "animal", 1, 3),
    ]


def explored(*paths: str, **options: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": "text", "labels": "labels", "tokenizer": None, "near": 0.0, "texts": False,
        "output": None, "display": Display(quiet=True), **options,
    }  # fmt: skip
    return explore_examples(list(paths), **values)


def test_the_page_shows_a_tree_that_names_cannot_break(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [[HOSTILE], [HOSTILE, "b"], ["b"], ["c"]])
    file = tmp_path / "parents.yaml"
    file.write_text(json.dumps({HOSTILE: ["b", "c"], "typo": "b"}))
    figures = explored(path, hierarchy=file)
    json.dumps(figures, allow_nan=False)
    html = exploration_page(figures, made="today")
    assert "<img" not in html.partition("<body>")[2]
    assert html.count('aria-level="2"') == 3
    assert "and under 1 other" in html
    said = " ".join(text for pair in findings(figures) for text in pair)
    assert "2 annotated row(s) (50.0%) have a label without one above it" in said
    assert "1 of the 4 labels of" in said
    assert "'typo'" in said


def test_a_file_beside_the_examples_is_found_said_and_never_an_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "train.parquet", [["a"], ["a", "b"]])
    beside = tmp_path / "labels.yaml"
    command = ["data", "explore", path, "--json", "--near", "0"]
    assert run(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out)["hierarchy"] is None
    beside.write_text("a: b\n")
    assert run(monkeypatch, *command) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["hierarchy"]["gap_rows"] == {"train": 1}
    assert f"label parents: {beside}" in shown.err
    assert run(monkeypatch, "data", "explore", str(tmp_path), "--json", "--near", "0") == 0
    assert json.loads(capsys.readouterr().out)["hierarchy"] is not None
    missing = str(tmp_path / "missing.parquet")
    assert run(monkeypatch, "data", "explore", missing, "--json") == 2
    assert "label parents" not in capsys.readouterr().err  # no note before an error
    for content in ("- a\n- b\n", "a: a\n", "a: [", "{}", ""):
        beside.write_text(content)
        assert run(monkeypatch, *command) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["hierarchy"] is None
        # given by name it is a mistake
        assert run(monkeypatch, *command, "--hierarchy", str(beside)) == 2
        assert str(beside) in capsys.readouterr().err


def test_a_long_chain_and_diamonds_make_a_page_of_their_size() -> None:
    from ray_mlc.report.explore import _twigs

    def node(name: str, parents: list[str]) -> dict[str, Any]:
        return {"label": name, "parents": parents, "rows": {"t": 1}, "closed": {"t": 1}, "gaps": 0}

    chain = {f"n{at}": node(f"n{at}", [f"n{at - 1}"] if at else []) for at in range(3_000)}
    assert [twig.depth for twig in _twigs(chain)] == list(range(3_000))
    # 2**30 ways lead down a row of diamonds
    diamonds: dict[str, dict[str, Any]] = {"0": node("0", [])}
    for at in range(30):
        for side in ("l", "r"):
            diamonds[f"{side}{at}"] = node(f"{side}{at}", [str(at)])
        diamonds[str(at + 1)] = node(str(at + 1), [f"l{at}", f"r{at}"])
    twigs = _twigs(diamonds)
    assert {twig.name for twig in twigs} == set(diamonds)
    assert len(twigs) == len(diamonds) + 30
    assert sum("elsewhere" in twig.note for twig in twigs) == 29


@pytest.mark.browser
def test_a_tree_of_four_thousand_labels_opens_closes_and_is_searched(tmp_path: Path) -> None:
    twigs = []
    for root in range(20):
        twigs.append(Twig(f"root {root}", 0, [root, 9, None]))
        for child in range(14):
            twigs.append(Twig(f"child {root}-{child}", 1, [1, 2, 3]))
            twigs += [Twig(f"leaf {root}-{child}-{leaf}", 2, [1, 2, 0]) for leaf in range(14)]
    assert len(twigs) == 4_220
    tree = Tree(["label", "rows", "closed", "lack a parent"], twigs)
    file = tmp_path / "page.html"
    file.write_text(render_page("t", facts=[], sections=[Section("s", "", [tree])]))
    with opened(file) as seen:
        page = seen.page
        rows = page.locator("table.tree tbody tr:visible")
        assert rows.count() == 20  # what is below them would not fit on a screen
        page.locator("table.tree tbody tr:visible button").nth(3).click()
        assert rows.count() == 34
        page.get_by_role("button", name="root 3: what is below").press("Enter")
        assert rows.count() == 20
        page.locator("input.tree-filter").fill("LEAF 3-7-13")
        assert rows.all_inner_texts()[0].startswith("root 3")
        assert rows.count() == 3
        page.locator("input.tree-filter").fill("")
        assert rows.count() == 20
        page.get_by_role("button", name="Open all").click()
        assert rows.count() == 4_220
        page.get_by_role("button", name="Close all").click()
        assert rows.count() == 20
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert (seen.complaints, seen.requests) == ([], [])
