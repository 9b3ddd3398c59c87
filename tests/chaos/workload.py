"""What every case does: a small corpus, a tiny model, and what one undisturbed process makes of it.

The corpus has what units are cut from: one large row group, row groups that fit a unit, files of a
few rows, a Hive key in a path; null and blank texts among them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from support.models import write_tiny_encoder, write_tiny_model

from chaos.compare import Expected, read_expected
from ray_mlc import synthetic

COMMAND = Path(sys.executable).parent / "ray-mlc"
MAX_TOKENS = 32
SETTINGS = (
    "units.rows=10",
    "engine.dtype=float32",
    "batching.max_batch_tokens=1024",
    "output.keep=[id, number]",
    "report.at_end=false",  # a second for each trial, and no part of what is promised
)
RAY_SETTINGS = ("actors.count=2", "actors.cpus=0.5")
FILES: Mapping[str, tuple[int, int]] = {
    "large.parquet": (160, 160),
    "groups.parquet": (96, 8),
    "day=3/mixed.parquet": (90, 25),
    "day=3/tiny-1.parquet": (3, 3),
    "tiny-2.parquet": (1, 1),
    "tiny-3.parquet": (10, 10),
}
"""Rows of each file, and of its row groups."""
LATE_FILES = ("day=3/mixed.parquet", "tiny-3.parquet")
"""Files that come with the second night, where there is one."""
BLANKS: Mapping[int, str | None] = {0: None, 7: "", 80: " \n", 161: None, 300: None, 359: ""}


@dataclass(frozen=True)
class Workload:
    """A corpus, a model, and the right answer."""

    folder: Path
    """Holds `corpus`, `model` and `expected`."""
    expected: Expected
    """The undisturbed output."""

    @property
    def corpus(self) -> Path:
        """Input folder."""
        return self.folder / "corpus"

    @property
    def model(self) -> Path:
        """Model folder."""
        return self.folder / "model"

    @property
    def parts(self) -> int:
        """Parts of a complete run."""
        return len(self.expected.parts)

    def command(
        self,
        output: str,
        *options: str,
        corpus: str | None = None,
        local: bool,
        settings: Sequence[str] = (),
    ) -> list[str]:
        """The command under test."""
        words = [str(COMMAND), "score", "--quiet"]
        words += ["--model", str(self.model), "--input", corpus or str(self.corpus)]
        words += ["--output", output]
        for setting in (*SETTINGS, *(() if local else RAY_SETTINGS), *settings):
            words += ["--set", setting]
        return [*words, *(["--local"] if local else []), *options]


def make_workload(folder: Path, *, seed: int) -> Workload:
    """Write corpus and model, and score the corpus in this process; what is there is used again."""
    from ray_mlc.config import ScoreJob
    from ray_mlc.job_files import load_job
    from ray_mlc.runtime.local import LocalBackend
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.score import score

    expected = folder / "expected"
    if not (expected / "_SUCCESS").is_file():
        write_corpus(folder / "corpus", seed=seed)
        write_tiny_encoder(folder / "encoder", seed=seed)
        write_tiny_model(folder / "encoder", folder / "model", max_tokens=MAX_TOKENS, seed=seed)
        options = {
            "model": str(folder / "model"),
            "input": str(folder / "corpus"),
            "output": str(expected),
        }
        score(
            load_job(ScoreJob, options=options, overrides=SETTINGS),
            LocalBackend(),
            Display(quiet=True),
        )
    return Workload(folder, read_expected(expected))


def write_corpus(folder: Path, *, seed: int) -> None:
    """The files of `FILES`."""
    rows = sum(count for count, _ in FILES.values())
    documents = synthetic.documents(rows, seed=seed)
    texts = [BLANKS.get(row, text) for row, text in enumerate(documents["text"].to_pylist())]
    table = pa.table(
        {"id": documents["id"], "number": pa.array(range(rows), pa.int32()), "text": texts}
    )
    start = 0
    for name, (count, group) in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(start, count), path, row_group_size=group)
        start += count
