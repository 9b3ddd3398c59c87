"""A headless Chromium that looks at a page and fetches nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Seen:
    """An open page, and what it should not have done."""

    page: Any
    """Playwright's."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console."""
    requests: list[str] = field(default_factory=list)
    """Addresses outside of the file that it asked for."""


@contextmanager
def browsing() -> Iterator[Any]:
    """A browser; skips the test where playwright or a Chromium is absent.

    A process has one at a time: tests of a file that open several pages share one.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as api:
        own = Path(api.chromium.executable_path)
        found = next(filter(None, map(shutil.which, _NAMES)), str(own) if own.exists() else None)
        if found is None:
            pytest.skip("there is no Chromium on this machine")
        browser = api.chromium.launch(
            executable_path=found, chromium_sandbox=False, args=list(_OPTIONS)
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(file: Path, browser: Any = None) -> Iterator[Seen]:
    """Open a file, in a browser that is there or in one for this block."""
    with nullcontext(browser) if browser else browsing() as used:
        seen = Seen(used.new_page(viewport={"width": 1200, "height": 900}))
        # machines are shared; tests have a limit of their own
        seen.page.set_default_timeout(100_000)
        seen.page.on("console", lambda message: _complain(seen, message))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("request", lambda request: _note(seen, request.url, file))
        seen.page.goto(file.as_uri())
        wait_for_plots(seen)
        try:
            yield seen
        finally:
            seen.page.close()


def wait_for_plots(seen: Seen) -> None:
    """Wait until all plots are drawn; the page forbids what playwright itself would wait with."""
    script = "[...document.querySelectorAll('div.plot')].every(p => p.querySelector('.main-svg'))"
    for _ in range(1_500):
        if seen.page.evaluate(script):
            return
        seen.page.wait_for_timeout(50)
    pytest.fail("not all plots were drawn")


def _complain(seen: Seen, message: Any) -> None:
    if message.type in ("error", "warning"):
        seen.complaints.append(message.text)


def _note(seen: Seen, url: str, file: Path) -> None:
    if url != file.as_uri() and not url.startswith(("data:", "blob:")):
        seen.requests.append(url)
