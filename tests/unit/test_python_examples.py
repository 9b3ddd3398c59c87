"""Examples in docstrings and in `docs/python.md` run, and give what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from support.documents import blocks, lay_out, run

import ray_mlc.api.actor
import ray_mlc.api.classifier
import ray_mlc.api.commands

PAGE = Path(__file__).parents[2] / "docs/python.md"
MODULES = (ray_mlc.api.classifier, ray_mlc.api.actor, ray_mlc.api.commands)
# `verify` looks at what `score` has written
ORDER = ("Classifier", "ScoreActor", "score", "verify", "train", "evaluate")
EXAMPLES = {
    found.name.rpartition(".")[2]: found
    for module in MODULES
    for found in doctest.DocTestFinder(exclude_empty=True).find(module, globs={"np": np})
    if found.examples
}


@pytest.fixture(scope="module")
def surroundings(
    tiny_model: Path,
    tiny_tfidf: Path,
    tiny_corpus: Path,
    tiny_encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder in which the examples find what they name."""
    folder = tmp_path_factory.mktemp("examples")
    lay_out(folder, model=tiny_model, words=tiny_tfidf, corpus=tiny_corpus, encoder=tiny_encoder)
    return folder


def test_everything_that_the_package_gives_has_an_example() -> None:
    assert set(EXAMPLES) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_an_example_of_a_docstring_gives_what_it_says(
    name: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(surroundings)
    said: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=said.append).failed
    assert not failed, "".join(said)


def test_the_blocks_of_the_page_run(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(surroundings)
    for name in ("tags", "more-tags", "by-topics", "by-words"):
        if (surroundings / name).exists():
            (surroundings / name).rename(surroundings / f"{name}-of-docstrings")
    found = blocks(PAGE, ray=False)
    assert len(found) >= 8
    run(PAGE, found)
