"""How long commands take that people wait for: help, and the status and proof of a finished run.

python benchmarks/bench_latency.py [--repeats 7] [--output FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lines import tell

COMMAND = Path(sys.executable).parent / "ray-mlc"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        run = write_run(Path(name))
        commands = {
            "--help": ["--help"],
            "score --help": ["score", "--help"],
            "status": ["status", str(run), "--json"],
            "verify": ["verify", str(run), "--json"],
        }
        seconds: dict[str, list[float]] = {key: [] for key in commands}
        for _ in range(asked.repeats):
            for key, words in commands.items():
                started = time.monotonic()
                subprocess.run([str(COMMAND), *words], check=True, capture_output=True)
                seconds[key].append(time.monotonic() - started)
    for key, taken in seconds.items():
        line = {
            "command": key,
            "seconds": round(statistics.median(taken), 2),
            "spread": [round(min(taken), 2), round(max(taken), 2)],
            "repeats": asked.repeats,
        }
        tell(line, asked.output)


def write_run(folder: Path) -> Path:
    """A finished run of a hundred units."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.models import write_tiny_encoder, write_tiny_model

    from ray_mlc import synthetic
    from ray_mlc.config import ScoreJob
    from ray_mlc.job_files import load_job
    from ray_mlc.runtime.local import LocalBackend
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.score import score

    write_tiny_encoder(folder / "encoder", seed=0)
    write_tiny_model(folder / "encoder", folder / "model", max_tokens=32, seed=0)
    synthetic.write_corpus(folder / "in", rows=1000, files=4, seed=0)
    places = {name: str(folder / name) for name in ("model",)}
    options = {**places, "input": str(folder / "in"), "output": str(folder / "out")}
    settings = ["units.rows=10", "engine.dtype=float32", "batching.max_batch_tokens=4096"]
    job = load_job(ScoreJob, options=options, overrides=settings)
    score(job, LocalBackend(), Display(quiet=True))
    return folder / "out"


if __name__ == "__main__":
    main()
