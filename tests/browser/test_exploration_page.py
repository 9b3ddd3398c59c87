"""The page of `data explore` in a real browser: drawn, sortable, silent, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.browser import Seen, opened
from support.cli import run

pytestmark = pytest.mark.browser

HOSTILE = "<img src=https://example.com/x.png onerror=alert(1)>"


def write_split(path: Path, rows: int, labels: int, *, shift: int = 0) -> str:
    """Documents with 1 to 3 of many labels, some twice, the first label hostile."""
    names = [HOSTILE, "<b>bold</b>", "a & b", *(f"label number {n}" for n in range(labels - 3))]
    generator = np.random.default_rng(shift)
    lists = [
        sorted({names[row % labels], *(names[at] for at in generator.integers(0, labels, row % 3))})
        for row in range(rows)
    ]
    texts = [" ".join(f"w{(row * k) % 97}" for k in range(row % 200)) for row in range(rows)]
    table = pa.table({"id": [f"r{row}" for row in range(rows)], "text": texts, "labels": lists})
    pq.write_table(table, path)
    return str(path)


def column(table: Any, index: int) -> list[str]:
    """Texts of a column's cells, in the order shown."""
    cells: list[str] = table.locator(f"tbody tr td:nth-child({index + 1})").all_inner_texts()
    return cells


def explored(folder: Path, labels: int) -> Path:
    """The page of two splits, as the command writes it."""
    train = write_split(folder / "train.parquet", 3_000, labels)
    test = write_split(folder / "test.parquet", 600, labels, shift=5)
    page = folder / "page.html"
    options = ["--texts", "--quiet", "--output", str(page)]
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "data", "explore", train, test, *options) == 0
    return page


def look(found: Seen, labels: int) -> None:
    """Each plot has marks and room, nothing is markup, and nothing is asked for."""
    plots = found.page.locator("div.plot")
    assert plots.count() == (8 if labels > 40 else 6)
    for at in range(plots.count()):
        plot = plots.nth(at)
        plot.scroll_into_view_if_needed()
        assert plot.locator("svg.main-svg").count() > 0
        box, frame = plot.locator("svg.main-svg").first.bounding_box(), plot.bounding_box()
        assert abs(box["height"] - frame["height"]) < 2
        assert box["width"] > 900
        # an axis of names says by itself what it is
        axes = plot.locator(".xtitle, .ytitle").count()
        assert axes == 2 or plot.locator(".ytick").first.text_content().strip("0123456789,")
        marks = plot.locator(".trace path, .trace .point, .hm image, .points path")
        assert marks.count() > 0, f"plot {at} is empty"
    # names are shown as they are, and none of them became an element
    assert found.page.locator("img, b").count() == 0
    ticks = found.page.locator(".ytick").all_text_contents()
    assert "<b>bold</b>" in ticks or labels > 40
    assert not found.complaints
    assert not found.requests


@pytest.fixture(scope="module")
def seen(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """The page of twelve labels, open for all tests that leave each other's parts of it alone."""
    with opened(explored(tmp_path_factory.mktemp("page"), 12), browser) as found:
        yield found


def test_plots_are_drawn_and_nothing_is_fetched(seen: Seen) -> None:
    look(seen, 12)


def test_a_click_on_a_head_sorts_by_number_and_by_name(seen: Seen) -> None:
    table = seen.page.locator("table", has=seen.page.locator("th", has_text="train, rows"))
    rows = table.locator("th button", has_text="train, rows")
    rows.click()
    counts = [int(cell.replace(",", "")) for cell in column(table, 1)]
    assert counts == sorted(counts, reverse=True)
    rows.click()
    counts = [int(cell.replace(",", "")) for cell in column(table, 1)]
    assert counts == sorted(counts)
    assert len(counts) == 12
    assert len(set(counts)) > 6
    assert rows.locator("xpath=..").get_attribute("aria-sort") == "ascending"
    table.locator("th button", has_text="label").click()
    names = column(table, 0)
    assert names.index("label number 1") < names.index("label number 2")
    assert HOSTILE in names
    assert not seen.complaints


def test_a_narrow_window_scrolls_tables_and_not_the_page(seen: Seen) -> None:
    seen.page.set_viewport_size({"width": 420, "height": 900})
    seen.page.wait_for_timeout(500)  # plots follow
    wide = seen.page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0
    assert not seen.complaints


def test_plots_of_four_thousand_labels_are_drawn_and_nothing_is_fetched(
    browser: Any, tmp_path: Path
) -> None:
    with opened(explored(tmp_path, 4_000), browser) as found:
        look(found, 4_000)


def test_a_page_of_one_split_and_without_texts_is_drawn_and_sorts(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, page = write_split(tmp_path / "train.parquet", 500, 60), tmp_path / "page.html"
    assert run(monkeypatch, "data", "explore", train, "--quiet", "--output", str(page)) == 0
    with opened(page, browser) as found:
        table = found.page.locator("table", has=found.page.locator("th", has_text="train, rows"))
        table.locator("th button", has_text="train, rows").click()
        counts = [int(cell.replace(",", "")) for cell in column(table, 1)]
        assert counts == sorted(counts, reverse=True)
        assert len(counts) == 60
        assert not found.complaints
