"""Does the tenth million cost more than the first? Corpora of growing size, one after the other.

    python benchmarks/bench_growth.py --model MODEL --corpus CORPUS [--cut 256] \
        [--documents 1000,10000,100000,1000000] [--settings actors.count=1] [--output FILE]

The corpus is repeated by path: so many copies of its files, under other names. With a tiny model
(`models.py tiny`) everything but the model is measured: reading, tokenizing, Ray, writing. Each run
is a command of its own; memory is that of all of its processes, and of the largest one and of the
driver, without what they share.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from bench_end_to_end import COMMAND, GROUP_ROWS, run
from lines import tell


def write_copies(corpus: Path, documents: int, folder: Path) -> int:
    """So many documents: whole copies of the corpus by link, and a part of a file at the end."""
    folder.mkdir(parents=True)
    files = sorted(corpus.glob("*.parquet"))
    rows = [pq.ParquetFile(file).metadata.num_rows for file in files]
    written = 0
    for copy in range(math.ceil(documents / sum(rows))):
        for file, count in zip(files, rows, strict=True):
            target = folder / f"{copy:03d}-{file.name}"
            left = documents - written
            if not left:
                return written
            if count <= left:
                try:
                    os.link(file, target)
                except OSError:  # another file system
                    shutil.copyfile(file, target)
                written += count
            else:
                pq.write_table(
                    pq.read_table(file).slice(0, left), target, row_group_size=GROUP_ROWS
                )
                written += left
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--cut", type=int, default=256)
    parser.add_argument("--documents", default="1000,10000,100000,1000000")
    parser.add_argument("--settings", nargs="*", default=[], help="--set of the runs")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    for documents in map(int, asked.documents.split(",")):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            source, output = Path(name) / "in", Path(name) / "out"
            count = write_copies(asked.corpus, documents, source)
            settings = [f"long.max_tokens={asked.cut}", *asked.settings]
            words = [str(COMMAND), "score", "--model", asked.model, "--input", str(source)]
            words += ["--output", str(output), *(x for s in settings for x in ("--set", s))]
            found = run(words, output)
            summary = json.loads((output / "_ray_mlc/summary.json").read_text())
            recorded = json.loads((output / "_ray_mlc/run.json").read_text())
            parts = sum(1 for _ in output.glob("**/*.parquet"))
        tokens = summary["this_process"]["real_tokens"]
        working_s = found["seconds"] - found["first_s"]
        line = {
            "corpus": asked.corpus.name,
            "model": Path(asked.model).name,
            "cut": asked.cut,
            "settings": asked.settings,
            "documents": count,
            "parts": parts,
            "engine": f"{recorded['engine']['name']} {recorded['engine']['dtype']}",
            "seconds": round(found["seconds"], 1),
            "first_part_s": round(found["first_s"], 1),
            "tokens_per_s": round(tokens / found["seconds"]),
            "tokens_per_s_after_the_first_part": round(tokens / working_s) if parts > 8 else None,
            "peak_mb": round(found["peak_mb"]),
            "peak_process_mb": round(found["peak_process_mb"]),
            "peak_driver_mb": round(found["peak_driver_mb"]),
        }
        tell(line, asked.output)


if __name__ == "__main__":
    main()
