"""The report of a night as a browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import Seen, opened, wait_for_plots
from support.nights import made_up_night

from ray_mlc.report.night import night_page

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>alert(1)</script><img src=http://example.org/x>"
CARD = f"""---
license: mit
---
# A model
{HOSTILE} and ![a picture](http://example.org/y.png), [a link](http://example.org)

| validation | value |
|---|---|
| f1_micro | 0.8 |
"""
NAMES = [HOSTILE, "b, c", *(f"label {place}" for place in range(998))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night of a thousand labels."""
    html = night_page(made_up_night(NAMES), made=HOSTILE, card=CARD, job=f"model: {HOSTILE}")
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(html, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def seen(browser: Any, page: Path) -> Iterator[Seen]:
    """The page, open for all tests that leave each other's parts of it alone."""
    with opened(page, browser) as found:
        yield found


def table_with(seen: Seen, head: str) -> Any:
    return seen.page.locator("table", has=seen.page.locator("th", has_text=head)).first


def test_all_is_drawn_and_nothing_complains_or_asks_for_the_network(seen: Seen) -> None:
    script = "[...document.querySelectorAll('div.plot')].map(p => p.querySelectorAll("
    script += "'.scatterlayer path, .barlayer path, .heatmaplayer image').length)"
    marks = seen.page.evaluate(script)
    assert len(marks) == 8
    assert all(count > 0 for count in marks)
    # the card: its marks are set, what looks like HTML is text, and no picture is asked for
    card = seen.page.locator("article.card")
    assert card.locator("h3").text_content() == "A model"
    assert card.locator("td").all_text_contents() == ["f1_micro", "0.8"]
    assert HOSTILE in card.locator("p").first.text_content()
    assert "license" not in card.text_content()
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("pre").last.text_content() == f"model: {HOSTILE}"
    assert (seen.complaints, seen.requests) == ([], [])


def test_the_table_of_labels_sorts_both_ways_and_filters(seen: Seen) -> None:
    table = table_with(seen, "near it, %")
    script = "t => [...t.tBodies[0].rows].map(r => Number(r.cells[1].dataset.key))"
    head = table.locator("th button").filter(has_text="rows")
    for sign in (-1, 1):
        head.click()
        values = table.evaluate(script)
        assert values == sorted(values, reverse=sign < 0)
    assert len(values) == 1_000
    assert len(set(values)) > 100
    seen.page.locator("input.filter").first.fill("LABEL 99")
    assert table.locator("tbody tr:visible").count() == 9  # 99 and 990 to 997
    assert seen.complaints == []


def test_a_histogram_is_drawn_for_the_label_that_is_asked_for(seen: Seen) -> None:
    found = made_up_night(NAMES)
    frame = seen.page.locator("div.histogram")
    script = "document.querySelector('div.histogram .plot')"

    def shown() -> tuple[str, list[int], float]:
        bars = seen.page.evaluate(f"{script}.data[0].y")
        mark = seen.page.evaluate(f"{script}.layout.shapes[0].x0")
        return frame.locator("h3").text_content(), bars, mark

    def expected(place: int) -> tuple[str, list[int], float]:
        label = found["labels"][place]
        return label["label"], found["scores"]["counts"][place], label["threshold"]

    assert shown() == expected(0)
    box = frame.locator("input[list]")
    box.fill("label 700")
    box.press("Enter")
    assert shown() == expected(702)
    box.fill("no such label")
    box.press("Enter")
    assert shown() == expected(702)
    frame.get_by_role("button", name="Next").click()
    assert shown() == expected(703)
    for _ in range(2):
        frame.get_by_role("button", name="Previous").click()
    assert shown() == expected(701)
    colors = seen.page.evaluate(f"new Set({script}.data[0].marker.color).size")
    assert colors == 2  # below the threshold, and from it on
    assert frame.locator(".said").text_content().startswith("Given to ")
    assert seen.complaints == []


def test_a_page_of_a_thousand_labels_fits_a_narrow_window(seen: Seen) -> None:
    seen.page.set_viewport_size({"width": 400, "height": 900})
    seen.page.reload()
    wait_for_plots(seen)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert seen.page.evaluate(wide) <= 0
    plots = seen.page.evaluate(
        "[...document.querySelectorAll('div.plot')].map(p => p.getBoundingClientRect().right)"
    )
    assert max(plots) <= 400
    # 18 for each label, a row of a table and no plot: what a page costs to open grows with them
    assert seen.page.evaluate("document.querySelectorAll('*').length") < 25 * len(NAMES)
    assert (seen.complaints, seen.requests) == ([], [])
