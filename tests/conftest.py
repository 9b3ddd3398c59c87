"""What many tests share: a random tiny model, a small corpus, and runs in one process."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from support.browser import browsing
from support.models import write_tiny_encoder, write_tiny_model, write_tiny_tfidf

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob
from ray_mlc.job_files import load_job


def pytest_configure(config: pytest.Config) -> None:
    """Give tests a cache of their own, and let them hear Ctrl-C.

    A shell that starts this in the background has it ignored, which whoever is started inherits;
    tests interrupt themselves and commands.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share that of their parent
        cache = tempfile.TemporaryDirectory(prefix="ray-mlc-cache-", ignore_cleanup_errors=True)
        config.add_cleanup(cache.cleanup)
        before = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(before / "ms-playwright"))
        os.environ["XDG_CACHE_HOME"] = cache.name
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, a file stays in one, and all of Ray's files in one.

    Fixtures of a file are then made once, and two Rays never share the cores; Ray's group takes the
    longest, and begins first. First of all hooks: pytest-xdist looks for the groups in its own.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium for all pages of a file; skips its tests where there is none."""
    with browsing() as found:
        yield found


TINY_MAX_TOKENS = 32
TINY_CORPUS_ROWS = 240
ScoreLocally = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder of a few thousand weights: making one costs more than loading it."""
    folder = tmp_path_factory.mktemp("encoder")
    write_tiny_encoder(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def make_model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes model folders with a random head: `make_model(label_set, threshold=…, seed=…)`."""

    def make(label_set: Any = synthetic.LABELS, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        write_tiny_model(tiny_encoder, folder, label_set, max_tokens=TINY_MAX_TOKENS, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Path]) -> Path:
    """A model folder for the synthetic labels; untrained, but its scores spread."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_tfidf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of kind `tfidf` for the synthetic labels."""
    folder = tmp_path_factory.mktemp("tfidf") / "model"
    write_tiny_tfidf(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tiny_model: Path) -> Any:
    """The classifier of `tiny_model` in float32."""
    from ray_mlc.model.classifier import Classifier
    from ray_mlc.model.engines.torch_engine import TorchEngine
    from ray_mlc.model.folder import open_model
    from ray_mlc.model.tokenization import Tokenizer

    tokenizer = Tokenizer.load(tiny_model, max_tokens=TINY_MAX_TOKENS)
    engine = TorchEngine.load(tiny_model, pad_id=tokenizer.pad_id, device="cpu", dtype="float32")
    return Classifier(open_model(str(tiny_model)).label_set, tokenizer, engine, 2048)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 80 rows in two row groups each, one text null and one blank."""
    folder = tmp_path_factory.mktemp("corpus")
    synthetic.write_corpus(folder, rows=TINY_CORPUS_ROWS, files=3, seed=1, row_group_rows=50)
    return folder


@pytest.fixture(scope="session")
def score_job(tiny_model: Path) -> Callable[..., ScoreJob]:
    """Makes a job: `score_job(input, output, "units.rows=7", model=…)`."""

    def make(
        corpus: Path | str | Sequence[str],
        output: Path | str,
        *overrides: str,
        model: Path | str = tiny_model,
    ) -> ScoreJob:
        path = str(corpus) if isinstance(corpus, Path | str) else list(corpus)
        options = {"model": str(model), "input": path, "output": str(output)}
        # nothing to race, nothing to remember
        engine = ("engine.dtype=float32", "engine.remember=false", "batching.max_batch_tokens=4096")
        # a report costs more than so few rows: tests that look at one ask for it
        settings = (*engine, "units.rows=30", "report.at_end=false", *overrides)
        return load_job(ScoreJob, options=options, overrides=settings)

    return make


@pytest.fixture(scope="session")
def score_locally(score_job: Callable[..., ScoreJob]) -> ScoreLocally:
    """Scores a corpus in this process and returns the summary; arguments as for `score_job`."""

    def run(*args: Any, **kwargs: Any) -> dict[str, Any]:
        from ray_mlc.runtime.local import LocalBackend
        from ray_mlc.runtime.progress import Display
        from ray_mlc.runtime.score import score

        return score(score_job(*args, **kwargs), LocalBackend(), Display(quiet=True))

    return run


@pytest.fixture(scope="session")
def tiny_run(
    tiny_corpus: Path, score_locally: ScoreLocally, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run over `tiny_corpus`: copy it before changing anything."""
    output = tmp_path_factory.mktemp("run") / "out"
    score_locally(tiny_corpus, output)
    return output


@pytest.fixture(scope="session")
def read_output() -> Callable[[Path], pa.Table]:
    """Reads all parts of an output as one table, ordered by source and row."""

    def read(output: Path) -> pa.Table:
        parts = sorted(str(path) for path in output.glob("**/*.parquet"))
        table = pads.dataset(parts, format="parquet").to_table()
        table = table.set_column(
            table.schema.get_field_index("source"), "source", table["source"].cast(pa.string())
        )
        return table.sort_by([("source", "ascending"), ("row", "ascending")])

    return read
