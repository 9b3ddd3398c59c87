"""What keeping few compiled kernels saves of an engine's memory, and costs of its time.

    python benchmarks/bench_kernels.py --model MODEL --texts FILE [--cut 256] [--units 3] \
        [--rows 2048] [--batch-tokens 1024,4096] [--kept default,128,256] [--repeats 3]

Blocks of so many documents are batched and scored one after the other, as an actor does, with free
memory given back after each. Each point is a process of its own with one thread, in turns. Kernels
are kept as `ray_mlc.model.engines.kernels` says, `default` is what the libraries do by themselves.
Processor seconds are of scoring alone; memory is that of the process without its files, after the
first block and after the last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from lines import tell

from ray_mlc.model.engines import kernels, openvino_engine

VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
OLD_NAME = "DNNL_PRIMITIVE_CACHE_CAPACITY"


def score(asked: argparse.Namespace) -> dict[str, Any]:
    """One point, in this process."""
    import psutil

    from ray_mlc.model.batching import plan_batches
    from ray_mlc.model.engines.openvino_engine import OpenVinoEngine
    from ray_mlc.model.folder import open_model
    from ray_mlc.model.tokenization import Tokenizer
    from ray_mlc.runtime import heap

    folder = open_model(asked.model)
    tokenizer = Tokenizer.load(folder.path, max_tokens=asked.cut)
    options: dict[str, Any] = {"pad_id": tokenizer.pad_id, "dtype": asked.dtype}
    engine: Any
    if asked.engine == "openvino":
        engine = OpenVinoEngine.load(folder.path, digest=folder.digest, threads=1, **options)
    else:
        import torch

        from ray_mlc.model.engines.torch_engine import TorchEngine

        torch.set_num_threads(1)
        engine = TorchEngine.load(folder.path, device="cpu", **options)
    texts = pq.read_table(asked.texts, columns=["text"])["text"]
    (budget,) = map(int, asked.batch_tokens.split(","))
    shapes, batches, seconds, memory = set(), 0, 0.0, []
    for unit in range(asked.units):
        rows = texts.slice(unit * asked.rows, asked.rows).to_pylist()
        ids = tokenizer.encode([row or "" for row in rows])
        plan = plan_batches(ids.lengths, max_batch_tokens=budget)
        started = time.process_time()
        for batch in plan:
            engine.logits(ids.windows(batch))
            shapes.add((len(batch), int(ids.lengths[batch].max())))
        seconds += time.process_time() - started
        batches += len(plan)
        heap.trim()
        used = psutil.Process().memory_info()
        memory.append((used.rss - used.shared) / 2**20)
    return {
        "shapes": len(shapes),
        "batches": batches,
        "cpu_s": seconds,
        "first_mb": memory[0],
        "last_mb": memory[-1],
    }


def run(asked: argparse.Namespace, engine: str, budget: str, kept: str) -> dict[str, Any]:
    """One point, in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--one", kept]
    words += ["--engine", engine, "--batch-tokens", budget]
    bare = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, OLD_NAME)}
    if kept != "default":
        bare |= dict.fromkeys(VARIABLES, kept)
    done = subprocess.run(words, env=bare, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--cut", type=int, default=256)
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--engine", default="openvino,torch")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-tokens", default="1024,4096")
    parser.add_argument("--kept", default=f"default,{kernels.KEPT}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.one:
        openvino_engine.KEPT = 5000 if asked.one == "default" else int(asked.one)
        print(json.dumps(score(asked)))
        return
    for engine in asked.engine.split(","):
        for budget in asked.batch_tokens.split(","):
            turns: dict[str, list[dict[str, Any]]] = {}
            for _ in range(asked.repeats):
                for kept in asked.kept.split(","):
                    turns.setdefault(kept, []).append(run(asked, engine, budget, kept))
            base = [turn["cpu_s"] for turn in next(iter(turns.values()))]
            for kept, found in turns.items():
                seconds = [turn["cpu_s"] for turn in found]
                line = {"engine": engine, "model": Path(asked.model).name, "batch_tokens": budget}
                line |= {"kept": kept, **{name: found[0][name] for name in ("batches", "shapes")}}
                line |= {"cpu_s": round(statistics.median(seconds), 2)}
                ratios = np.array(seconds) / np.array(base)
                line |= {"times_first": round(float(np.median(ratios)), 3)}
                for name in ("first_mb", "last_mb"):
                    line[name] = round(statistics.median(turn[name] for turn in found))
                line |= {"repeats": len(found)}
                tell(line, asked.output)


if __name__ == "__main__":
    main()
