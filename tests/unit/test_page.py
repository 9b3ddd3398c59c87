"""The page of every report: escaped, self-contained, sortable (in a browser: test_pages)."""

from __future__ import annotations

import json
import re

import plotly.graph_objects as go
import pytest

from ray_mlc.report.page import (
    LONG_TABLE,
    Choice,
    Plot,
    Section,
    Table,
    plot_text,
    render_page,
    shown,
)

HOSTILE = "</script><script>alert(1)</script>&\"'"


def page() -> str:
    figure = go.Figure(go.Bar(x=[HOSTILE, "b"], y=[1, 2]))
    table = Table(["label", "f1"], [[HOSTILE, 0.5], ["b", None], ["c", 3]])
    parts = [Plot(figure, note=HOSTILE), table]
    return render_page(
        HOSTILE, facts=[(HOSTILE, HOSTILE)], sections=[Section(HOSTILE, HOSTILE, parts)]
    )


def test_no_name_of_a_label_can_run_as_a_script() -> None:
    html = page()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_a_plots_data_comes_back_as_it_was() -> None:
    [data] = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page(), re.DOTALL)
    assert json.loads(data)["data"][0]["x"] == [HOSTILE, "b"]


def test_the_browser_may_fetch_nothing() -> None:
    html = page()
    assert "default-src 'none'" in html
    body = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", body)


def test_a_page_without_plots_does_not_carry_their_library() -> None:
    assert len(page()) > 1_000_000 > 20_000 > len(render_page("t", facts=[], sections=[]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (12345, "12,345"), (0.12345, "0.12"), ("a", "a")],
)
def test_cells_are_shown_for_people(value: object, text: str) -> None:
    assert shown(value, 2) == text  # type: ignore[arg-type]


def test_what_can_be_added_to_a_plot_comes_back_as_it_was() -> None:
    traces = [{"key": HOSTILE, "name": HOSTILE, "x": [1], "y": [2.5]}]
    plot = Plot(go.Figure(), choice=Choice(HOSTILE, traces))
    html = render_page("t", facts=[], sections=[Section("s", "", [plot])])
    [data] = re.findall(r'<script[^>]*class="choice-data"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert json.loads(data) == traces
    assert "<script>alert" not in html


def test_a_plot_shows_markup_in_names_as_it_is_written() -> None:
    assert plot_text("<b>R&D</b>") == "&lt;b&gt;R&amp;D&lt;/b&gt;"
    assert plot_text("abcdef", width=4) == "abc…"
    assert plot_text("abcd", width=4) == "abcd"


def test_only_long_tables_have_a_filter() -> None:
    for rows, boxes in ((LONG_TABLE, 0), (LONG_TABLE + 1, 1)):
        table = Table(["a"], [[row] for row in range(rows)])
        html = render_page("t", facts=[], sections=[Section("s", "", [table])])
        assert html.count('class="filter"') == boxes


def test_heads_stand_over_their_numbers_and_numbers_sort_as_they_are() -> None:
    table = Table(["label", "x"], [["1", 0.123456789], ["2", None]])
    html = render_page("t", facts=[], sections=[Section("s", "", [table])])
    assert re.findall(r"<th scope=\"col\"( class=\"number\")?>", html) == ["", ' class="number"']
    assert 'data-key="0.123456789">0.1235<' in html
