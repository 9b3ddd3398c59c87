"""How far `plan` is off: what it says a night takes, and what it then takes.

    python benchmarks/bench_forecast.py --model MODEL --corpus CORPUS --documents 20000 \
        [--repeats 3] [--local] [--settings long.max_tokens=256 …] [--output FILE]

Plan, then score, in turns, each a command of its own on the same part of the corpus. One JSON line:
seconds said and taken, their ratio of each turn and the worst one, whether the interval held the
truth, and the same of tokens, output and memory. Both commands have to find the machine alike: a
forecast made beside other work is one for a machine with that other work, and what `engine: auto`
comes to then is taken in the second, too; `--settings engine.name=openvino` takes that out of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_end_to_end import COMMAND, run, write_part_of
from lines import tell


def plan(words: list[str]) -> dict[str, Any]:
    """What `plan` says."""
    done = subprocess.run(
        [str(COMMAND), "plan", *words, "--quiet", "--json"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"plan: exit code {done.returncode}\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def turn(model: str, corpus: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """One forecast, and what came of it."""
    said = plan([model, str(corpus), *options])
    words = [str(COMMAND), "score", "--model", model, "--input", str(corpus)]
    found = run([*words, "--output", str(output), *options], output)
    summary = json.loads((output / "_ray_mlc/summary.json").read_text())
    size = sum(path.stat().st_size for path in output.glob("**/*.parquet"))
    seconds, tokens = said["forecast"]["seconds"], said["tokens"]["scored"]
    taken, scored = found["seconds"], summary["this_process"]["real_tokens"]
    memory = said["forecast"]["memory_bytes_per_node"] / 2**20
    return {
        "seconds_said": round(seconds["value"], 1),
        "seconds_taken": round(taken, 1),
        "seconds_ratio": round(seconds["value"] / taken, 3),
        "seconds_within": seconds["low"] <= taken <= seconds["high"],
        "tokens_ratio": round(tokens["value"] / scored, 4),
        "tokens_within": tokens["low"] <= scored <= tokens["high"],
        "output_ratio": round(said["output"]["bytes"] / size, 3),
        "memory_said_mb": round(memory),
        "memory_taken_mb": round(found["peak_mb"]),
        "engine_said": f"{said['engine']['name']} {said['engine']['dtype']}",
        "engine_taken": f"{summary['engine']['name']} {summary['engine']['dtype']}",
        "tokens_per_s_said": said["engine"]["tokens_per_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--local", action="store_true", help="one process, without Ray")
    parser.add_argument("--settings", nargs="*", default=[], help="--set of both")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    options = [word for setting in asked.settings for word in ("--set", setting)]
    options += ["--local"] if asked.local else []
    turns = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        corpus = Path(name) / "in"
        documents = len(write_part_of(asked.corpus, asked.documents, corpus))
        for number in range(asked.repeats):
            turns.append(turn(asked.model, corpus, Path(name) / "out", options))
            print(f"turn {number + 1}: {turns[-1]}", file=sys.stderr, flush=True)
    ratios = [item["seconds_ratio"] for item in turns]
    line = {
        "bench": "forecast",
        "corpus": Path(asked.corpus).name,
        "documents": documents,
        "local": asked.local,
        "settings": asked.settings,
        "seconds_ratio": round(statistics.median(ratios), 3),
        "worst_off": round(max(abs(ratio - 1) for ratio in ratios), 3),
        "turns": turns,
    }
    tell(line, asked.output)


if __name__ == "__main__":
    main()
