"""Decide again from stored scores: rows a second, for each form that scores are stored in.

    python benchmarks/bench_retag.py [--rows 200000] [--output FILE]

Outputs of `--rows` rows are made first, by a scorer without a model: documents have the scores of
one of 512 made-up documents, most of them close to 0, as a trained model gives them, and a little
noise. One JSON line a point, of the whole command with its imports: form, labels, what was asked,
rows, seconds, rows a second, how many times what is asked for, peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lines import tell

from ray_mlc.config import ScoreJob
from ray_mlc.job_files import load_job
from ray_mlc.labels import LabelSet
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.tokenization import Ragged
from ray_mlc.runtime import local, steps
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.verify import verify

POINTS = (("wide", 28), ("sparse", 4_271), ("dense", 200))
ASKED = 1_000_000 / 60
"""Rows a second."""
ENGINE = ResolvedEngine(
    name="torch", device="cpu", dtype="float32", max_batch_tokens=4096, max_tokens=32
)
FILES, UNIT_ROWS, KINDS = 4, 16_384, 512


class Made:
    """A classifier and its tokenizer without a model: a document's id says its scores."""

    max_tokens, windows = 32, None

    def __init__(self, label_set: LabelSet) -> None:
        from ray_mlc.model.classifier import ForwardStats

        self.label_set, self.stats = label_set, ForwardStats()
        rng = np.random.default_rng(0)
        # 5 labels of a document are likely, about 30 above 0.01, whatever the number of labels
        logits = rng.normal(-7.5, 1.2, (KINDS, len(label_set)))
        few = rng.integers(0, len(label_set), (KINDS, 5))
        logits[np.arange(KINDS)[:, None], few] = rng.normal(1.0, 2.0, (KINDS, 5))
        self.noise = np.random.default_rng(1)
        self.scores_KL = (1 / (1 + np.exp(-logits))).astype(np.float32)

    def encode(self, texts: Any) -> Ragged:
        """One token for every text: its number."""
        values = np.array([int(text) for text in texts], np.int32)
        offsets = np.arange(len(values) + 1, dtype=np.int64)
        return Ragged.of(values, offsets, np.ones(len(values), np.int32))

    def covered(self, n_tokens: Any) -> Any:
        """Nothing is ever cut."""
        return n_tokens <= self.max_tokens

    def scores(self, ragged: Any, **_: Any) -> Any:
        """Those of the kind that the token names."""
        scores_NL = self.scores_KL[ragged.values % KINDS]
        # no two documents have the same: zstd would store them for nothing
        return scores_NL * self.noise.uniform(0.99, 1, scores_NL.shape).astype(np.float32)


def write(folder: Path, labels: int, rows: int, form: str) -> None:
    """A model folder, a corpus and its scored output."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.models import write_tiny_encoder, write_tiny_model

    label_set = LabelSet(tuple(f"label {number}" for number in range(labels)))
    write_tiny_encoder(folder / "encoder", seed=0)
    write_tiny_model(folder / "encoder", folder / "model", label_set, max_tokens=32)
    (folder / "in").mkdir()
    for number, part in enumerate(np.array_split(np.arange(rows), FILES)):
        kinds = np.random.default_rng(number).integers(0, KINDS, len(part))
        table = pa.table({"id": pa.array(part), "text": pa.array(kinds.astype(str))})
        pq.write_table(table, folder / f"in/{number}.parquet", row_group_size=UNIT_ROWS)
    made: Any = Made(label_set)
    steps.classifier_of = lambda work, threads: made  # type: ignore[assignment]
    steps.load_tokenizer = lambda model, **_: made  # type: ignore[assignment]
    backend: Any = local.LocalBackend()
    backend.resolve = lambda *_: ENGINE
    options = {
        "model": str(folder / "model"),
        "input": str(folder / "in"),
        "output": str(folder / "out"),
    }
    settings = [f"units.rows={UNIT_ROWS}", f"output.format={form}", "engine.dtype=float32"]
    settings += ["report.at_end=false"]
    job = load_job(ScoreJob, options=options, overrides=[*settings, "output.keep=[id]"])
    score(job, backend, Display(quiet=True))
    (folder / "decision.json").write_text('{"threshold": 0.3}')


CHILD = """
import json, sys
from ray_mlc.cli import main
sys.argv = ["ray-mlc", *sys.argv[1:]]
try:
    main()
finally:
    # of this process alone: what getrusage says was its parent's before
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) // 1024
    heavy = sorted({"torch", "ray", "transformers"} & set(sys.modules))
    print(json.dumps({"peak_mb": peak, "heavy": heavy}), file=sys.stderr)
"""


def measure(folder: Path, name: str, *asked: str) -> dict[str, Any]:
    """One command, from its start to its end."""
    new = folder / name
    command = [sys.executable, "-c", CHILD, "retag", str(folder / "out"), str(new), *asked]
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--json", "--quiet"], capture_output=True, text=True, check=False
    )
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stderr.strip().splitlines()[-1])
    assert not own["heavy"], own
    verdict = verify(str(new))
    assert verdict.holds, verdict.problems[:3]
    assert verdict.complete
    rows = verdict.total("written")
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(after[:2]) - sum(before[:2]), 2),
        "rows_per_s": round(rows / seconds),
        "of_asked": round(rows / seconds / ASKED, 2),
        "labels_per_row": round(json.loads(done.stdout)["labels_per_row"], 3),
        "peak_mb": own["peak_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    for form, labels in POINTS:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            write(folder, labels, asked.rows, form)
            for what in (("--decision", f"{folder}/decision.json"), ("--objective", "rate<=0.01")):
                line = {"form": form, "labels": labels, "by": what[0].removeprefix("--")}
                line |= measure(folder, line["by"], *what)
                line["cores"] = len(os.sched_getaffinity(0))
                tell(line, asked.output)


if __name__ == "__main__":
    main()
