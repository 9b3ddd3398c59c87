"""Parquet to Parquet: ours beside what users run today, same model, same texts, same machine.

    python benchmarks/bench_end_to_end.py --model MODEL --corpus CORPUS --cut 256 \
        --documents 20000 [--peers 'ray_recipe,hf_pipeline'] [--python NAME=PATH …] [--output FILE]

Every run is a command of its own, timed from its start to its end, imports, Ray and model loading
included, in turns. Slow systems get fewer documents (`--peer-documents`), spread over the corpus
like the others: their rate is what is compared. The bare engine of `bench_engines.py` runs on the
same texts in the same turns: what is left of it end to end is the pipeline efficiency.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from bench_engines import Pool, Variant
from lines import tell

PEERS = Path(__file__).parent / "peers"
COMMAND = Path(sys.executable).parent / "ray-mlc"
FILE_ROWS, GROUP_ROWS = 25_000, 4096
LOOK_S = 2.0
"""Seconds between two looks at memory: each costs some milliseconds a process."""


def write_part_of(corpus: str, documents: int, folder: Path) -> list[str]:
    """A corpus of so many documents, spread over another one; its texts."""
    table = pads.dataset(corpus).to_table(columns=["id", "text"])
    rows = np.unique(np.linspace(0, len(table) - 1, min(documents, len(table))).astype(int))
    table = pa.table(table.take(rows))
    folder.mkdir(parents=True)
    for number, low in enumerate(range(0, len(table), FILE_ROWS)):
        piece = table.slice(low, FILE_ROWS)
        pq.write_table(piece, folder / f"{number:03d}.parquet", row_group_size=GROUP_ROWS)
    return [text for text in table["text"].to_pylist() if text and text.strip()]


class Watcher:
    """Memory of a process tree, and the moment of its first output, while the block runs."""

    def __init__(self, pid: int, output: Path) -> None:
        self.peak_bytes = self.peak_process_bytes = self.peak_driver_bytes = 0
        self.first_s: float | None = None
        self._process, self._output, self._started = psutil.Process(pid), output, time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        looked_s = 0.0
        while not self._done.wait(0.2):
            if self.first_s is None and any(self._output.glob("**/*.parquet")):
                self.first_s = time.monotonic() - self._started
            if time.monotonic() - looked_s < LOOK_S:
                continue
            looked_s = time.monotonic()
            try:
                tree = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                continue
            sizes = []
            for process in tree:
                try:
                    sizes.append(process.memory_full_info().uss)
                except (psutil.Error, OSError):
                    sizes.append(0)
            self.peak_bytes = max(self.peak_bytes, sum(sizes))
            self.peak_process_bytes = max(self.peak_process_bytes, *sizes)
            self.peak_driver_bytes = max(self.peak_driver_bytes, sizes[0])

    def close(self) -> None:
        """Stop looking."""
        self._done.set()
        self._thread.join()


def run(words: Sequence[str], output: Path) -> dict[str, Any]:
    """Run a command to its end: seconds, memory, first output."""
    shutil.rmtree(output, ignore_errors=True)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    with tempfile.TemporaryFile() as talk:
        started = time.monotonic()
        process = subprocess.Popen(list(words), stdout=talk, stderr=talk, env=env)
        watcher = Watcher(process.pid, output)
        code = process.wait()
        seconds = time.monotonic() - started
        watcher.close()
        if code:
            talk.seek(0)
            sys.exit(f"{' '.join(words)}: exit code {code}\n{talk.read().decode()[-3000:]}")
    return {
        "seconds": seconds,
        "first_s": watcher.first_s,
        "peak_mb": watcher.peak_bytes / 2**20,
        "peak_process_mb": watcher.peak_process_bytes / 2**20,
        "peak_driver_mb": watcher.peak_driver_bytes / 2**20,
    }


def tokens_of(texts: Sequence[str], model: str, cut: int) -> int:
    """Tokens after cutting."""
    from ray_mlc.model.tokenization import Tokenizer

    return int(Tokenizer.load(model, max_tokens=cut).encode(list(texts)).lengths.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--cut", type=int, default=256)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--peer-documents", type=int, default=2000)
    parser.add_argument("--peers", default="ray_recipe,hf_pipeline")
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bare", type=int, default=4000, help="documents of the bare engine")
    parser.add_argument("--settings", nargs="*", default=[], help="--set of ours")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    pythons = dict(item.split("=", 1) for item in asked.python)
    peers = [name for name in asked.peers.split(",") if name]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        texts = write_part_of(asked.corpus, asked.documents, folder / "all")
        few = write_part_of(asked.corpus, asked.peer_documents, folder / "few") if peers else []
        tokens = tokens_of(texts, asked.model, asked.cut)
        few_tokens = tokens_of(few, asked.model, asked.cut)
        some = texts[:: max(1, len(texts) // asked.bare)]
        some_tokens = tokens_of(some, asked.model, asked.cut)
        results: dict[str, list[dict[str, Any]]] = {}
        bare: list[float] = []
        for turn in range(asked.repeats):
            output = folder / "out"
            settings = [f"long.max_tokens={asked.cut}", *asked.settings]
            words = [str(COMMAND), "score", "--model", asked.model, "--input", f"{folder}/all"]
            words += ["--output", str(output), *(x for s in settings for x in ("--set", s))]
            found = run(words, output)
            engine = json.loads((output / "_ray_mlc/run.json").read_text())["engine"]
            summary = json.loads((output / "_ray_mlc/summary.json").read_text())
            found |= {"tokens_per_s": tokens / found["seconds"], "documents": len(texts)}
            found |= {"engine": f"{engine['name']} {engine['dtype']}"}
            found |= {"padding": summary["this_process"]["padding"]}
            results.setdefault("ray_mlc", []).append(found)
            variant = Variant(found["engine"], 2, 1)
            pool = Pool(variant, asked.model, asked.cut)
            pool.run(some)  # warms it up
            bare.append(some_tokens / pool.run(some)[0])
            pool.close()
            for peer in peers:
                python = pythons.get(peer, sys.executable)
                script = [python, str(PEERS / f"{peer}.py"), asked.model, f"{folder}/few"]
                found = run([*script, str(output), str(asked.cut)], output)
                found |= {"tokens_per_s": few_tokens / found["seconds"], "documents": len(few)}
                results.setdefault(peer, []).append(found)
            last = {system: round(runs[-1]["tokens_per_s"]) for system, runs in results.items()}
            talk = f"turn {turn + 1} of {asked.repeats}: bare {bare[-1]:.0f}, {last}"
            print(talk, file=sys.stderr, flush=True)
    ours = [item["tokens_per_s"] for item in results["ray_mlc"]]
    for system, runs in results.items():
        speeds = [item["tokens_per_s"] for item in runs]
        firsts = [item["first_s"] for item in runs if item["first_s"] is not None]
        line = {
            "system": system,
            "corpus": Path(asked.corpus).name,
            "cut": asked.cut,
            "documents": runs[0]["documents"],
            "tokens_per_s": round(statistics.median(speeds)),
            "spread": [round(min(speeds)), round(max(speeds))],
            "seconds": round(statistics.median(item["seconds"] for item in runs), 1),
            "first_part_s": round(statistics.median(firsts), 1) if firsts else None,
            "peak_mb": round(max(item["peak_mb"] for item in runs)),
            "repeats": len(runs),
        }
        if system == "ray_mlc":
            shares = [speed / own for speed, own in zip(speeds, bare, strict=True)]
            line["engine"] = runs[-1]["engine"]
            line["padding"] = runs[-1]["padding"]
            line["bare_engine_tokens_per_s"] = round(statistics.median(bare))
            line["pipeline_efficiency"] = round(statistics.median(shares), 3)
        else:
            times = [mine / theirs for mine, theirs in zip(ours, speeds, strict=True)]
            line["ours_is_times"] = round(statistics.median(times), 2)
        tell(line, asked.output)


if __name__ == "__main__":
    main()
