"""The order of an exploration: read each split, count lengths, compare texts, write the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.model.hierarchy import read_parents
from ray_mlc.model.tokenization import Tokenizer
from ray_mlc.report.explore import exploration_page
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.report_files import check_replaceable
from ray_mlc.storage import local_path, write_file
from ray_mlc.training.closure import hierarchy_facts
from ray_mlc.training.duplicates import find_duplicates
from ray_mlc.training.examples import Examples, read_examples
from ray_mlc.training.exploration import count_words, explore, lengths_of
from ray_mlc.training.sources import without_extension
from ray_mlc.training.splits import usual_place

LABELS_FILE = "labels.yaml"
"""What a file of label parents beside the examples is called."""
_KEPT_TOKENS = 64  # only lengths are asked for: the ids of a long text need not be kept


def explore_examples(
    paths: Sequence[str],
    *,
    text: str,
    labels: str | Sequence[str],
    tokenizer: str | None,
    near: float,
    texts: bool,
    output: Path | None,
    display: Display,
    hierarchy: Path | None = None,
) -> dict[str, Any]:
    """Explore examples, and write the page.

    Args:
        paths: A split each, named by its file; training splits come first, tests last.
        text: Text column.
        labels: Label column, or 0/1 columns.
        tokenizer: Folder or hub id of what counts tokens; None: words only.
        near: Jaccard similarity from which texts are nearly the same; 0: do not look.
        texts: Whether beginnings of texts may be shown.
        output: HTML file; None: none.
        display: Where progress is shown.
        hierarchy: File of label parents; None: `LABELS_FILE` beside the first path, if it is one.

    Returns:
        The figures (`training.exploration.Exploration`, and `sources`, `seconds`, `hierarchy`:
        `training.closure.HierarchyFacts` or null).

    Raises:
        ConfigError: If the hierarchy is not one, or `output` is a file that is no report.
        DataError: If examples cannot be used.
        ModelError: If the tokenizer cannot be loaded.
        StorageError: If the page cannot be written.
    """
    started = time.monotonic()
    # a glob comes in the order of the alphabet: test before train
    named = dict(zip(split_names(paths), paths, strict=True))
    names = sorted(named, key=lambda name: usual_place(name.rsplit("/", 1)[-1]))
    named = {name: named[name] for name in names}
    if output is not None:
        check_replaceable(output, display)
        write_file(output.with_name(".writable"), b"")  # what cannot be written should say so now
        output.with_name(".writable").unlink()
    parents = None if hierarchy is None else _given_parents(hierarchy)
    counter = None if tokenizer is None else Tokenizer.load(tokenizer, max_tokens=_KEPT_TOKENS)

    splits: dict[str, Examples] = {}
    label_set = None
    for name, path in named.items():
        display.say(f"{name}: reading {path}")
        splits[name] = read_examples(path, text=text, labels=labels, label_set=label_set)
        label_set = splits[name].label_set
    rows = sum(len(examples) for examples in splits.values())
    if parents is None:
        parents = _parents_beside(paths[0], display)

    with display.stage("count words", rows, "documents") as stage:
        lengths = [lengths_of(splits, count_words, unit="words", progress=stage.advance)]
    if counter is not None:

        def count_tokens(texts: Sequence[str]) -> NDArray[np.int64]:
            return counter.encode(texts).n_tokens.astype(np.int64)

        with display.stage("count tokens", rows, "documents") as stage:
            lengths.append(
                lengths_of(
                    splits,
                    count_tokens,
                    unit="tokens",
                    tokenizer=tokenizer,
                    progress=stage.advance,
                )
            )
    with display.stage("compare texts", rows * (2 if near else 1), "readings") as stage:
        every = pa.concat_arrays([examples.texts for examples in splits.values()])
        duplicates = find_duplicates(every, jaccard=near or None, progress=stage.advance)
    figures = asdict(explore(splits, lengths, duplicates, texts=texts))
    figures["hierarchy"] = None
    if parents is not None:
        file, above = parents
        figures["hierarchy"] = asdict(hierarchy_facts(splits, above, str(file)))
    figures["sources"] = named
    figures["seconds"] = round(time.monotonic() - started, 3)
    if output is not None:
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_file(output, exploration_page(figures, made=made).encode())
    return figures


Parents = tuple[Path, dict[str, list[str]]]
"""A file of label parents, and what it says."""


def _given_parents(file: Path) -> Parents:
    """The hierarchy that was asked for.

    Raises:
        ConfigError: If it is none.
    """
    parents = read_parents(file)
    if not any(parents.values()):
        raise ConfigError(f"{file}: no label in it has a parent")
    return file, parents


def _parents_beside(path: str, display: Display) -> Parents | None:
    """The hierarchy in the folder of the examples, if there is one: no obstacle if it is none."""
    where = local_path(path)
    if where is None:
        return None
    found = (where if where.is_dir() else where.parent) / LABELS_FILE
    if not found.is_file():
        return None
    try:
        parents = _given_parents(found)
    except ConfigError as error:
        display.say(f"note: not read as label parents: {error}")
        return None
    display.say(f"label parents: {found} (--hierarchy names another file)")
    return parents


def split_names(paths: Sequence[str]) -> list[str]:
    """A name for each path: its file's, with the folder's before it where two are equal.

    Raises:
        DataError: If a path is there twice.
    """
    stripped = [path.rstrip("/") for path in paths]
    twice = [path for path in stripped if stripped.count(path) > 1]
    if twice:
        raise DataError(f"{twice[0]}: the path is there twice: name each split once")
    for depth in range(1, 1 + max((path.count("/") for path in stripped), default=0) + 1):
        names = ["/".join(path.split("/")[-depth:]) for path in stripped]
        names = [without_extension(name) for name in names]
        if len(set(names)) == len(names):
            return names
    return stripped
