"""The documentation site: whole, and not behind the code."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config

from ray_mlc.cli.app import app

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder))
        warned: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("mkdocs")
        logger.addHandler(handler)
        config.plugins.on_startup(command="build", dirty=False)
        try:
            build(config)
        finally:
            logger.removeHandler(handler)
            config.plugins.on_shutdown()
    assert not warned, warned
    return folder


def test_every_command_has_its_place_in_the_reference(site: Path) -> None:
    page = (site / "reference/commands/index.html").read_text("utf-8")
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f'id="ray-mlc-{name}"' in page
        for below in getattr(command, "commands", {}):
            assert f'id="ray-mlc-{name}-{below}"' in page


def test_keys_of_a_job_stand_with_their_defaults(site: Path) -> None:
    page = (site / "reference/jobs/index.html").read_text("utf-8")
    row = re.search(r"<tr>\s*<td><code>limits.bad_rows</code>.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert "<code>0.01</code>" in row.group(0)


def test_a_page_that_lives_elsewhere_links_within_the_site(site: Path) -> None:
    page = (site / "benchmarks/index.html").read_text("utf-8")
    assert (site / "results").is_dir()
    assert 'href="../results/' in page


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = path.read_text("utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"', page)
        fetched += re.findall(
            r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(https?:[^"]+)"', page
        )
        assert not fetched, f"{path}: {fetched}"
