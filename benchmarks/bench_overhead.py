"""What a unit costs on Ray besides its scoring: an actor that scores nothing, many units.

    python benchmarks/bench_overhead.py --units 10000 [--rows 1] [--nodes 4] [--output FILE]

Reading, the way through Ray, and the commit of a part per unit are all real; only the model is
absent: the actor fills in constants. One JSON line: milliseconds per unit, the first commit, the
driver's CPU share, and how much of it one process takes for the same units without Ray. With
`--nodes`, the Ray is a `Cluster` of that many nodes of two logical CPUs each, all on this machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from lines import tell

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob
from ray_mlc.job_files import load_job
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.runtime import local, ray_data
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.runtime.session import set_environment
from ray_mlc.scoring.verify import verify

ENGINE = ResolvedEngine(
    name="torch", device="cpu", dtype="float32", max_batch_tokens=4096, max_tokens=32
)


class Nothing:
    """A classifier and its tokenizer that do no work: three tokens a text, a score of a half."""

    max_tokens, windows = 32, None

    def __init__(self, label_set: Any) -> None:
        from ray_mlc.model.classifier import ForwardStats

        self.label_set, self.stats = label_set, ForwardStats()

    def encode(self, texts: Any) -> Any:
        """Three tokens for every text."""
        from ray_mlc.model.tokenization import Ragged

        count = len(texts)
        offsets = np.arange(count + 1, dtype=np.int64) * 3
        return Ragged.of(np.zeros(count * 3, np.int32), offsets, np.full(count, 3, np.int32))

    def covered(self, n_tokens: Any) -> Any:
        """Nothing is ever cut."""
        return n_tokens <= self.max_tokens

    def scores(self, ragged: Any, **_: Any) -> Any:
        """A half for every label."""
        return np.full((len(ragged), len(self.label_set)), 0.5, np.float32)


def without_model() -> None:
    """Let the steps of this process do all that they do, with `Nothing` for a model."""
    from ray_mlc.runtime import steps

    steps.classifier_of = lambda work, threads: Nothing(work.output.label_set)  # type: ignore[assignment]
    steps.load_tokenizer = lambda folder, **_: Nothing(None)  # type: ignore[assignment]


def empty_actor() -> type:
    """The actor without a model; made here, so that Ray ships it by value."""
    prepare = without_model

    class ScoreActor(ray_data.ScoreActor):
        def __init__(self, *args: Any) -> None:
            prepare()
            super().__init__(*args)

    return ScoreActor


def job_for(folder: Path, output: str, rows: int, actors: int) -> ScoreJob:
    """Units of so many rows."""
    options = {"model": str(folder / "model"), "input": str(folder / "in")}
    settings = [f"units.rows={rows}", "engine.dtype=float32", "batching.max_batch_tokens=4096"]
    settings += [f"actors.count={actors}", "actors.cpus=0.5"]
    return load_job(
        ScoreJob, options={**options, "output": str(folder / output)}, overrides=settings
    )


def first_part(output: Path, started: float) -> float:
    """Wait for the first part; seconds until it was there."""
    while not any(output.glob("*/*.parquet")):
        time.sleep(0.02)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1, help="rows of a unit")
    parser.add_argument("--nodes", type=int, help="worker nodes; default: Ray as users start it")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write(folder, asked.units, asked.rows)
        local_s = one_process(folder, asked)
        with cluster(asked.nodes):
            line = on_ray(folder, asked)
    line["local_ms_per_unit"] = round(local_s / asked.units * 1000, 2)
    tell(line, asked.output)


def write(folder: Path, units: int, rows: int) -> None:
    """A model folder for the labels, and a corpus of one row group a unit."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.models import write_tiny_encoder, write_tiny_model

    write_tiny_encoder(folder / "encoder", seed=0)
    write_tiny_model(folder / "encoder", folder / "model", max_tokens=32, seed=0)
    documents = synthetic.documents(1000, seed=0)
    total = units * rows
    index = pa.array(np.arange(total) % 1000)
    table = pa.table({"id": pa.array(range(total)), "text": documents["text"].take(index)})
    (folder / "in").mkdir()
    per_file = max(rows, total // 8 // rows * rows)
    for number, low in enumerate(range(0, total, per_file)):
        piece = table.slice(low, per_file)
        pq.write_table(piece, folder / f"in/{number:03d}.parquet", row_group_size=rows)


def one_process(folder: Path, asked: argparse.Namespace) -> float:
    """The same units without Ray."""
    without_model()
    backend: Any = local.LocalBackend()
    backend.resolve = lambda *_: ENGINE
    started = time.monotonic()
    score(job_for(folder, "out-local", asked.rows, 2), backend, Display(quiet=True))
    return time.monotonic() - started


@contextmanager
def cluster(nodes: int | None) -> Iterator[None]:
    """A cluster of so many nodes for the block, found by `RAY_ADDRESS`; None: no such thing."""
    if nodes is None:
        yield
        return
    set_environment()
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(nodes):
        started.add_node(num_cpus=2)
    started.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = started.address
    try:
        yield
    finally:
        started.shutdown()


def on_ray(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The run itself: from the moment that Ray is up."""
    ray_data.ScoreActor = empty_actor()  # type: ignore[misc]
    job = job_for(folder, "out", asked.rows, 2 * (asked.nodes or 1))
    backend: Any = ray_data.RayBackend([job], print)
    backend.resolve = lambda *_: ENGINE
    driver = psutil.Process()
    seen: dict[str, float] = {}
    with backend.start():
        backend.start = nullcontext  # it is up
        before, started = driver.cpu_times(), time.monotonic()
        look = threading.Thread(
            target=lambda: seen.update(first=first_part(folder / "out", started)),
            daemon=True,
        )
        look.start()
        score(job, backend, Display(quiet=True))
        seconds, after = time.monotonic() - started, driver.cpu_times()
    verdict = verify(job.output.path)
    assert verdict.complete, verdict.problems[:3]
    used = after.user + after.system - before.user - before.system
    return {
        "units": asked.units,
        "nodes": asked.nodes or 1,
        "actors": 2 * (asked.nodes or 1),
        "rows_per_unit": asked.rows,
        "seconds": round(seconds, 1),
        "ms_per_unit": round(seconds / asked.units * 1000, 2),
        "ms_per_unit_after_the_first_part": round(
            (seconds - seen["first"]) / asked.units * 1000, 2
        ),
        "first_part_s": round(seen["first"], 1),
        "driver_cpu_share": round(used / seconds, 2),
    }


if __name__ == "__main__":
    main()
