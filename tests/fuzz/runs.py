"""One example: a corpus or a job text in, the name of an allowed outcome out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.check import check_error, check_output, demand
from fuzz.corpora import CorpusRecipe, write_corpus
from fuzz.jobs import INPUT, KEEP_SOME, MODEL, OUTPUT
from fuzz.world import DoubleBackend
from ray_mlc.config import ScoreJob
from ray_mlc.errors import LimitError, RayMlcError
from ray_mlc.job_files import dump_job, load_job
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score


def scratch() -> str | None:
    """Where examples are written: memory, where there is some."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def example_folder() -> Iterator[Path]:
    """A folder for one example."""
    folder = Path(tempfile.mkdtemp(prefix="ray_mlc_fuzz_", dir=scratch()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def score_once(job: ScoreJob, corpus: Path, *, readers: bool) -> str:
    """Run a job; the name of what came of it."""
    try:
        score(job, DoubleBackend(), Display(quiet=True), use_lease=False)
    except LimitError as error:
        name = check_error(error)
        check_output(job, corpus, complete=False, readers=readers)
        return name
    except RayMlcError as error:
        demand(not (Path(job.output.path) / "_SUCCESS").exists(), "_SUCCESS after an error")
        return check_error(error)
    check_output(job, corpus, complete=True, readers=readers)
    return "complete"


def run_corpus(
    recipe: CorpusRecipe, settings: Sequence[str], *, model: Path, readers: bool, again: bool
) -> str:
    """Write a corpus, score it, judge the output; `again`: lose a part and continue."""
    with example_folder() as folder:
        corpus = folder / "in"
        corpus.mkdir()
        paths = [str(corpus / path) for path in write_corpus(recipe, corpus)]
        place: Any = str(corpus)
        match recipe.form:
            case "glob":
                place = f"{corpus}/**/*.parquet"
            case "list":
                place = paths or place
            case "file":
                place = paths[0] if paths else place
        options: dict[str, Any] = {
            "model": str(model),
            "output": str(folder / "out"),
            "input.path": place,
        }
        options["input.text"] = recipe.text
        options["report.at_end"] = False
        names = list(dict.fromkeys(c.name for item in recipe.files for c in item.columns))
        options["output.keep"] = names[::2] if KEEP_SOME in settings else None
        settings = [item for item in settings if item != KEEP_SOME]
        job = load_job(ScoreJob, options=options, overrides=settings)
        outcome = score_once(job, corpus, readers=readers)
        if again and outcome in ("complete", "LimitError"):
            parts = sorted((folder / "out").rglob("*.parquet"))
            before = {path: path.read_bytes() for path in parts[1:]}
            if parts:
                parts[0].unlink()
            demand(score_once(job, corpus, readers=False) == outcome, "another outcome at last")
            demand(all(p.read_bytes() == data for p, data in before.items()), "a part was changed")
            demand(sorted((folder / "out").rglob("*.parquet")) == parts, "other parts than before")
        return outcome


def run_job_text(text: bytes, overrides: Sequence[str], *, model: Path) -> str:
    """Load a job and, if it is valid and stays in its folder, run it and judge the output."""
    with example_folder() as folder:
        corpus, output = folder / "in", folder / "out"
        places = {MODEL: str(model), INPUT: str(corpus), OUTPUT: str(output)}
        for word, place in places.items():
            text = text.replace(word.encode(), place.encode())
            overrides = [item.replace(word, place) for item in overrides]
        file = folder / "job.yaml"
        file.write_bytes(text)
        try:
            job = load_job(ScoreJob, file, overrides=overrides)
        except RayMlcError as error:
            return check_error(error)
        file.write_text(dump_job(job), encoding="utf-8")
        demand(dump_job(load_job(ScoreJob, file)) == dump_job(job), "dumped and loaded differ")
        paths = [job.input.path] if isinstance(job.input.path, str) else job.input.path
        inside = all(path.startswith(str(folder)) for path in [*paths, job.output.path])
        if not inside or job.model not in ("", str(model), "/nowhere/model"):
            return "valid"
        _write_small_corpus(corpus)
        return score_once(job, corpus, readers=False)


def _write_small_corpus(corpus: Path) -> None:
    """Two plain files: here the job is what is odd."""
    corpus.mkdir()
    for name, rows in (("a", 5), ("b", 4)):
        texts = [f"row {row} of {name}" for row in range(rows - 1)]
        table = pa.table({"id": range(rows), "text": [*texts, None], "n": [0.5] * rows})
        pq.write_table(table, corpus / f"{name}.parquet", row_group_size=3)
