"""The evaluation report as a browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import Seen, opened
from support.studies import made_up_study

from ray_mlc.report.evaluation import evaluation_page

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>alert(1)</script><img src=http://example.org/x>"


def write_page(folder: Path, labels: Any, documents: int = 300, **options: Any) -> Path:
    found = made_up_study(documents, labels, **options)
    ids = [f"id {row}" for row in range(documents)]
    html = evaluation_page(found, title=HOSTILE, facts=[("model", HOSTILE)], ids=ids)
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    return file


def column(seen: Seen, table: int, index: int) -> list[str]:
    script = f"t => [...t.tBodies[0].rows].map(r => r.cells[{index}].textContent)"
    found: list[str] = seen.page.locator("table").nth(table).evaluate(script)
    return found


@pytest.fixture(scope="module")
def seen(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A page of forty labels, open for all tests that leave each other's parts of it alone."""
    labels = [HOSTILE, *(f"label {label}" for label in range(39))]
    folder = tmp_path_factory.mktemp("page")
    file = write_page(folder, labels, documents=1_500, rates=(0.4, 0.002))
    with opened(file, browser) as found:
        yield found


def test_plots_are_drawn_and_nothing_complains_or_asks_for_the_network(seen: Seen) -> None:
    assert seen.page.locator("div.plot").count() == 7
    script = "[...document.querySelectorAll('div.plot')].map(p => p.querySelectorAll("
    script += "'.scatterlayer path, .barlayer path, .heatmaplayer image').length)"
    assert all(marks > 0 for marks in seen.page.evaluate(script))
    # all of the page within its width: tables scroll in their own frames
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert seen.page.locator("h1").text_content() == HOSTILE
    assert (seen.complaints, seen.requests) == ([], [])


def test_the_labels_table_sorts_by_number_both_ways_and_filters(seen: Seen) -> None:
    head = seen.page.locator("table").nth(1).locator("th button").filter(has_text="positives")
    for sign in (-1, 1):
        head.click()
        values = [int(text.replace(",", "")) for text in column(seen, 1, 1)]
        assert values == sorted(values, reverse=sign < 0)
    assert len(set(values)) > 10
    low = seen.page.locator("table").nth(1).locator("th button").filter(has_text="F1 from")
    low.click()
    texts = column(seen, 1, 8)
    known = [float(text) for text in texts if text != "–"]
    assert known == sorted(known, reverse=True)
    assert 0 < len(known) < 40
    assert texts[len(known) :] == ["–"] * (40 - len(known))  # undefined ones last
    seen.page.locator("input.filter").first.fill("LABEL 3")
    visible = seen.page.locator("table").nth(1).locator("tbody tr:visible").count()
    assert visible == 10  # 3 and 30 to 38
    assert seen.complaints == []


def test_a_curve_is_added_by_its_name_once_and_taken_away_again(seen: Seen) -> None:
    script = "document.querySelector('input[list]').closest('section').querySelector('.plot')"
    before = seen.page.evaluate(f"{script}.data.length")
    box = seen.page.locator("input[list]")
    for text in ("label 20", "label 20", "no such label", "label 9"):
        box.fill(text)
        box.press("Enter")
    names = seen.page.evaluate(f"{script}.data.map(t => t.name)")
    assert [name.partition(",")[0] for name in names[before:]] == ["label 20", "label 9"]
    for left in (1, 0, 0):
        seen.page.get_by_role("button", name="Remove the last").click()
        assert seen.page.evaluate(f"{script}.data.length") == before + left
    assert seen.complaints == []


def test_plots_have_room_on_a_phone_and_are_as_before_when_it_is_wide_again(
    browser: Any, tmp_path: Path
) -> None:
    room = """[...document.querySelectorAll('div.plot')].map(plot => {
        const size = plot._fullLayout._size, box = plot.getBoundingClientRect()
        return [size.w / box.width, plot._fullLayout.height / box.height]
    })"""
    with opened(write_page(tmp_path, 12), browser) as seen:
        wide = seen.page.evaluate(room)
        seen.page.set_viewport_size({"width": 400, "height": 900})
        seen.page.wait_for_timeout(1_000)  # a browser tells the page of its width a moment later
        for share, height in seen.page.evaluate(room):
            assert share > 1 / 3  # the rest are words, and the scale of colours
            assert height == pytest.approx(1, abs=0.02)  # nothing of it lies over what follows
        seen.page.set_viewport_size({"width": 1200, "height": 900})
        seen.page.wait_for_timeout(1_000)
        for before, after in zip(wide, seen.page.evaluate(room), strict=True):
            assert after == pytest.approx(before, abs=0.05)
    assert (seen.complaints, seen.requests) == ([], [])


@pytest.mark.timeout(300)
def test_four_thousand_labels_open_and_sort(browser: Any, tmp_path: Path) -> None:
    with opened(write_page(tmp_path, 4_000, rates=(0.02, 0.001)), browser) as seen:
        table = seen.page.locator("table").nth(2)
        assert table.locator("tbody tr").count() == 4_000
        table.locator("th button").filter(has_text="ROC-AUC").click()
        values = [float(text) for text in column(seen, 2, 12) if text != "–"]
        assert values == sorted(values, reverse=True)
        assert (seen.complaints, seen.requests) == ([], [])
