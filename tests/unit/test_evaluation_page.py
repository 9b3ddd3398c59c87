"""The evaluation report: all sections, names of any kind, texts only if asked, a sane size."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from support.studies import made_up_study

from ray_mlc.evaluation.study import Study
from ray_mlc.report.evaluation import evaluation_page

HOSTILE = "</script><script>alert(1)</script><b>x</b>&\"'"
SECRET = "only the asker may read this"


def page_of(found: Study, **options: Any) -> str:
    ids = [f"id {row}" for row in range(found.figures["n"])]
    return evaluation_page(found, title="A model", facts=[("model", "m")], ids=ids, **options)


def titles(html: str) -> list[str]:
    return re.findall(r"<h2 id=[^>]*>(.*?)</h2>", html)


def data(html: str, kind: str) -> list[Any]:
    scripts = re.findall(rf'<script[^>]*class="{kind}"[^>]*>(.*?)</script>', html, re.DOTALL)
    return [json.loads(script) for script in scripts]


def without_plotly(html: str) -> str:
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def test_sections_stand_in_the_order_in_which_a_reader_asks() -> None:
    few = titles(page_of(made_up_study(100, 5)))
    assert few == [
        "How good it is",
        "Labels",
        "Thresholds",
        "Precision and recall",
        "Can scores be read as probabilities",
        "What is given instead",
        "The most costly mistakes",
        "Length of documents",
    ]
    many = titles(page_of(made_up_study(50, 70)))
    assert many == [few[0], "The first labels of each document", *few[1:]]


def test_no_label_id_or_text_can_run_as_a_script_or_pass_for_markup() -> None:
    names = [HOSTILE, HOSTILE + "2", "1", "2024-01-01", "line\nbreak", "%{x}", "__proto__"]
    names += [f"<b>{number}</b>" for number in range(9)]
    found = made_up_study(60, names)
    html = evaluation_page(
        found, title=HOSTILE, facts=[(HOSTILE, HOSTILE)], ids=[HOSTILE] * 60, texts=[HOSTILE] * 60
    )
    body = without_plotly(html)
    assert "<script>alert" not in body
    assert "<b>" not in body
    assert "&lt;script&gt;alert" in body
    for figure in data(html, "figure"):
        assert "<b>" not in json.dumps(figure)  # plotly would make bold type of it
    for choice in data(html, "choice-data"):
        keys = [trace["key"] for trace in choice]
        assert len(set(keys)) == len(keys)
        assert not any("\n" in key for key in keys)  # a box of one line could not hold it


def test_texts_are_shown_only_if_they_are_passed_and_cut_if_long() -> None:
    found = made_up_study(60, 4)
    assert SECRET not in page_of(found)
    html = page_of(found, texts=[SECRET + "x" * 10_000] * 60)
    assert SECRET in html
    assert "x" * 500 not in without_plotly(html)
    assert SECRET not in json.dumps(found.summary([str(row) for row in range(60)]))


def test_every_label_has_a_curve_to_choose_or_to_see() -> None:
    found = made_up_study(400, 30)
    html = page_of(found)
    [choices] = data(html, "choice-data")
    chosen = {trace["key"] for trace in choices}
    drawn = {
        trace["name"].rpartition(", AP")[0]
        for figure in data(html, "figure")
        for trace in figure["data"]
        if trace.get("name", "").startswith("label ")
    }
    with_positives = {f"label {label}" for label in np.flatnonzero(found.positives_L)}
    assert len(drawn) == 6
    assert chosen | drawn == with_positives
    assert not chosen & drawn


def test_the_page_of_four_thousand_labels_stays_below_ten_megabytes() -> None:
    found = made_up_study(300, 4_000, rates=(0.02, 0.001))
    html = page_of(found)
    assert html.count("<tr>") > 4_000
    assert len(html.encode()) < 10_000_000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize(("documents", "labels"), [(1, 1), (1, 80), (2, 13)])
def test_hardly_any_data_still_makes_a_page(documents: int, labels: int, masked: float) -> None:
    html = page_of(made_up_study(documents, labels, masked=masked))
    assert "How good it is" in html
    assert ("One document alone" in html) == (documents == 1)


def test_nothing_wrong_is_said_in_words() -> None:
    found = made_up_study(40, 3, rates=(1.0, 1.0))
    perfect = {
        **vars(found),
        "costliest": [],
        "confusions": type(found.confusions)(
            **{**vars(found.confusions), "missed_L": np.zeros(3, np.int64)}
        ),
    }
    html = page_of(Study(**perfect))
    assert "No decision was wrong." in html
    assert "No label was missed." in html
