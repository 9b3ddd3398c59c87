"""What the examples of the documentation find around them: a model, a corpus, labelled rows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from ray_mlc import synthetic

_BLOCK = re.compile(r"(?P<mark><!-- needs Ray -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def lay_out(folder: Path, *, model: Path, words: Path, corpus: Path, encoder: Path) -> None:
    """Put there what the examples name."""
    shutil.copytree(model, folder / "models/topics")
    shutil.copytree(words, folder / "models/words")
    shutil.copytree(corpus, folder / "corpus")
    shutil.copytree(encoder, folder / "encoders/tiny")
    pq.write_table(synthetic.documents(100, seed=5), folder / "examples.parquet")


def blocks(page: Path, *, ray: bool) -> list[tuple[int, str]]:
    """Line and code of the Python blocks of a page, those that need Ray or the others."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start("code")].count("\n"), found["code"])
        for found in _BLOCK.finditer(text)
        if (found["mark"] is not None) == ray
    ]


def run(page: Path, chosen: list[tuple[int, str]]) -> None:
    """Run blocks one after the other, as in one notebook; a failure names its line of the page."""
    names: dict[str, object] = {"__name__": "page"}
    for line, code in chosen:
        exec(compile("\n" * line + code, str(page), "exec"), names)
