"""What a model card says of the examples: which files, of which content, and what kind of texts.

Paths are as they were given, without what grants access; of the texts nothing is kept but figures.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import redact
from ray_mlc.training.examples import Examples
from ray_mlc.training.sources import SourceFile, find_files

SAMPLE = 2_000
"""Texts whose letters are looked at."""
_LETTERS = 2_000  # of each of them
_CHUNK = 2**20


def about_examples(path: str | Sequence[str], examples: Examples) -> dict[str, Any]:
    """What there is to say of some examples that were read.

    Args:
        path: What they were read from.
        examples: The rows in use.

    Returns:
        `rows`, `without_labels`, `undecided` (single cells), `positives` (rows of each label, in
        column order), `scripts` (see there) and `files`: `name`, `bytes` and `sha256` of each.
    """
    positives_L = examples.label_counts()
    decided = int(examples.annotated_counts().sum())
    columns_N = examples.positives.value_lengths().to_numpy(zero_copy_only=False)
    return {
        "rows": len(examples),
        "without_labels": int((columns_N == 0).sum()),
        "undecided": len(examples) * len(examples.label_set) - decided,
        "positives": positives_L.tolist(),
        "scripts": scripts_of(sample_of(examples)),
        "files": files_of(path),
    }


def files_of(path: str | Sequence[str]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of each file, as it lies there: an archive is one file."""
    outer: dict[str, SourceFile] = {}
    for file in find_files(path):
        outer.setdefault(file.path, file)
    return [{"name": redact(_outer_name(file)), **_content_of(file)} for file in outer.values()]


def _outer_name(file: SourceFile) -> str:
    """The name of the file itself, where rows are in a file of an archive."""
    inside = "/".join(file.members)
    return file.name.removesuffix(f"/{inside}") if inside else file.name


def _content_of(file: SourceFile) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with file.filesystem.open_input_stream(file.path, compression=None) as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def sample_of(examples: Examples) -> list[str]:
    """Texts from all over the examples."""
    rows = np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(np.int64))
    return [str(text) for text in examples.texts.take(rows).to_pylist()]


def scripts_of(texts: Sequence[str]) -> dict[str, float]:
    """Shares of the scripts that letters belong to, the largest first; tells no languages apart.

    A script is the first word of a character's name in Unicode: LATIN, GREEK, CJK, ARABIC.
    """
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text[:_LETTERS])
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter.isalpha() and (name := unicodedata.name(letter, "")):
            scripts[name.split()[0].split("-")[0]] += count
    total = scripts.total()
    return {name: round(count / total, 6) for name, count in scripts.most_common()}


def about_lengths(n_tokens_N: NDArray[np.integer], whole_N: NDArray[np.bool_]) -> dict[str, Any]:
    """Tokens of whole documents: `p50`, `p95`, `p99`, `longest`, and the share that is `cut`."""
    p50, p95, p99 = np.quantile(n_tokens_N, [0.5, 0.95, 0.99]).tolist()
    return {
        "p50": round(p50),
        "p95": round(p95),
        "p99": round(p99),
        "longest": int(n_tokens_N.max()),
        "cut": float(np.mean(~whole_N)),
    }
