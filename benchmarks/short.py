"""The short form of the benchmarks, on what every clone has: `make bench`, under ten minutes.

    python benchmarks/short.py OUTPUT.jsonl

Texts are synthetic, with lengths like those of comments, and the encoder is of MiniLM's size with
random weights: speeds are real, scores mean nothing. What is in `results/` comes from real texts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from ray_mlc import synthetic

HERE = Path(__file__).parent
DOCUMENTS = 2000
TINY = {"vocab_size": 2000, "hidden_size": 16, "intermediate_size": 16}


def main() -> None:
    output = Path(sys.argv[1]).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        corpus, encoder, model = folder / "corpus", folder / "encoder", folder / "model"
        synthetic.write_corpus(corpus, rows=DOCUMENTS, files=2, seed=0)
        texts = synthetic.documents(500, seed=1)["text"].to_pylist()
        synthetic.write_encoder(encoder, texts=texts, max_tokens=512, seed=0, **TINY)
        pq.write_table(synthetic.documents(600, seed=2), folder / "train.parquet")
        examples = ["minilm", str(folder / "train.parquet"), str(model)]
        run("models.py", *examples, "--tokenizer", str(encoder), "--rows", "600")
        told = ["--model", str(model), "--output", str(output)]
        file = next(iter(sorted(corpus.glob("*.parquet"))))
        sizes = ["--documents", "80", "--repeats", "2"]
        run("bench_engines.py", *told, "--texts", f"synthetic={file}:256", *sizes)
        run("bench_overhead.py", "--units", "300", "--output", str(output))
        sizes = ["--documents", str(DOCUMENTS), "--peer-documents", "80", "--repeats", "2"]
        run("bench_end_to_end.py", *told, "--corpus", str(corpus), "--bare", "1000", *sizes)
        few = ["--documents", f"500,{DOCUMENTS}", "--output", str(output)]
        run("bench_growth.py", "--model", str(model), "--corpus", str(corpus), *few)
        train = str(folder / "train.parquet")
        sets = ["--train", train, "--validation", train, "--rows", "400", "--max-tokens", "128"]
        run("bench_training.py", "--encoder", str(model), *sets, "--repeats", "1", *told[2:])
        run("bench_latency.py", "--output", str(output))
    print(f"{output}: a line for each point")


def run(script: str, *arguments: str) -> None:
    print(f"== {script}", flush=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    subprocess.run([sys.executable, str(HERE / script), *arguments], check=True, env=env)


if __name__ == "__main__":
    main()
