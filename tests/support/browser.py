"""A report as a reader sees it: in a real browser, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_QUIET = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Opened:
    """An open page, and what went wrong or out on it."""

    page: Any
    """`playwright.sync_api.Page`."""
    errors: list[str] = field(default_factory=list)
    """What the console said at level warning or error, and uncaught errors."""
    requests: list[str] = field(default_factory=list)
    """Addresses asked for beyond the file itself."""

    def column(self, table: Any, index: int) -> list[str]:
        """Texts of a column's cells, in the order shown."""
        cells: list[str] = table.locator(f"tbody tr td:nth-child({index + 1})").all_inner_texts()
        return cells


@contextmanager
def opened(path: Path, *, width: int = 1200) -> Iterator[Opened]:
    """Open a file in headless Chromium; skip the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = os.environ.get("RAY_MLC_BROWSER") or next(
        (found for name in BROWSERS if (found := shutil.which(name))), None
    )
    if browser_path is None:
        pytest.skip("there is no Chromium: install one, or name it in RAY_MLC_BROWSER")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=browser_path, chromium_sandbox=False, args=list(_QUIET)
        )
        try:
            page = browser.new_page(viewport={"width": width, "height": 900})
            result = Opened(page)
            page.on(
                "console",
                lambda m: result.errors.append(m.text) if m.type in ("error", "warning") else None,
            )
            page.on("pageerror", lambda error: result.errors.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    result.requests.append(request.url)
                    if not request.url.startswith(("file:", "data:", "blob:"))
                    else None
                ),
            )
            page.goto(path.absolute().as_uri())
            page.wait_for_load_state("load")
            yield result
        finally:
            browser.close()
