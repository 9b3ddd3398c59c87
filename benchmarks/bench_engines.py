"""How fast engines are by themselves: text in, probabilities out, no Parquet, no Ray.

    python benchmarks/bench_engines.py --model MODEL --texts NAME=FILE[:CUT] … [--output FILE]

For each mix of texts every variant runs the same documents (slow ones the first part of them), in
turns, `--repeats` times; medians over the turns are printed, one JSON line a variant. In each turn
the machine's bfloat16 matrix peak is measured too, as two processes of one thread each, like the
variants: the share of the peak counts the multiplications of linear layers and attention over real
tokens alone. Scores are held against float32 of the plain transformers model.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from lines import tell

BATCH_TOKENS = 4096
PEAK_SHAPES = ((2048, 1024, 1024), (4096, 384, 1536), (4096, 1536, 384), (2048, 4096, 1024))
"""M, K, N of the matrix products of which the fastest is the peak."""


@dataclass(frozen=True)
class Variant:
    """A way to score texts."""

    name: str
    processes: int
    threads: int
    share: float = 1.0
    """Share of the documents that it is given: slow ones would take all day."""


VARIANTS = [
    Variant("openvino bfloat16", 2, 1),
    Variant("openvino bfloat16", 1, 2),
    Variant("torch bfloat16", 2, 1),
    Variant("torch bfloat16", 1, 2),
    Variant("openvino int8", 2, 1),  # where the model folder has that form
    Variant("openvino float32", 2, 1, 0.5),
    Variant("torch float32", 2, 1, 0.5),
    Variant("hf pipeline", 1, 2, 0.125),
]


def worker(connection: Connection, variant: str, threads: int, model: str, cut: int) -> None:
    """Serve one process: load, then score the texts that are sent, and say how long it took."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    import torch

    torch.set_num_threads(threads)
    score = peak_of(threads) if variant == "peak" else scorer(variant, model, cut)
    connection.send("ready")
    while (texts := connection.recv()) is not None:
        gc.collect()
        started = time.perf_counter()
        result = score(texts)
        taken = time.perf_counter() - started
        connection.send((taken, result, psutil.Process().memory_info().rss))


def scorer(variant: str, model: str, cut: int) -> Callable[[list[str]], Any]:
    """Texts to scores [N, L], as a variant does it."""
    from ray_mlc.model.engines.choose import ResolvedEngine, load_classifier
    from ray_mlc.model.engines.int8 import read_int8
    from ray_mlc.model.folder import open_model

    if variant == "hf pipeline":
        from transformers import pipeline

        pipe = pipeline("text-classification", model=model, top_k=None, device=-1)
        names = open_model(model).label_set.names

        def run(texts: list[str]) -> Any:
            outputs = pipe(texts, batch_size=32, truncation=True, max_length=cut)
            rows = [{item["label"]: item["score"] for item in row} for row in outputs]
            return np.array([[row[name] for name in names] for row in rows], np.float32)

        return run
    if variant == "reference":
        from ray_mlc.model.classifier import Classifier
        from ray_mlc.model.encoder import load_classifier_model
        from ray_mlc.model.engines.torch_engine import TorchEngine
        from ray_mlc.model.tokenization import Tokenizer

        folder, tokenizer = open_model(model), Tokenizer.load(model, max_tokens=cut)
        plain = load_classifier_model(folder.path)  # its linear layers as they are
        engine = TorchEngine(plain, pad_id=tokenizer.pad_id, device="cpu", dtype="float32")
        return Classifier(folder.label_set, tokenizer, engine, BATCH_TOKENS).predict_proba
    name, dtype = variant.split()
    resolved = ResolvedEngine(
        name=name,
        device="cpu",
        dtype=dtype,
        max_batch_tokens=BATCH_TOKENS,
        max_tokens=cut,
        weights=read_int8(open_model(model)).weights if dtype == "int8" else None,
    )
    import torch

    classifier = load_classifier(open_model(model), resolved, threads=torch.get_num_threads())
    return classifier.predict_proba


def peak_of(threads: int) -> Callable[[list[str]], float]:
    """Floating point operations per second of the best bfloat16 matrix product."""
    import torch

    from ray_mlc.model.engines.onednn import PackedLinear

    torch.set_num_threads(threads)
    layers = []
    for m, k, n in PEAK_SHAPES:
        linear = torch.nn.Linear(k, n, bias=False).to(torch.bfloat16)
        layers.append((PackedLinear(linear), torch.randn(m, k).to(torch.bfloat16), 2 * m * k * n))

    @torch.inference_mode()
    def run(texts: list[str]) -> float:
        del texts
        best = 0.0
        for layer, inputs, operations in layers:
            layer(inputs)
            started = time.perf_counter()
            count = 0
            while time.perf_counter() - started < 0.4:
                layer(inputs)
                count += 1
            best = max(best, count * operations / (time.perf_counter() - started))
        return best

    return run


class Pool:
    """The processes of a variant."""

    def __init__(self, variant: Variant, model: str, cut: int) -> None:
        self.variant = variant
        context = mp.get_context("spawn")
        self.connections = []
        self.processes = []
        for _ in range(variant.processes):
            ours, theirs = context.Pipe()
            arguments = (theirs, variant.name, variant.threads, model, cut)
            process = context.Process(target=worker, args=arguments, daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)
        for connection in self.connections:
            assert connection.recv() == "ready"

    def run(self, texts: Sequence[str]) -> tuple[float, list[Any], int]:
        """Split the texts over the processes: seconds of the slowest, results, resident bytes."""
        for index, connection in enumerate(self.connections):
            connection.send(list(texts[index :: len(self.connections)]))
        answers = [connection.recv() for connection in self.connections]
        return (
            max(answer[0] for answer in answers),
            [answer[1] for answer in answers],
            sum(answer[2] for answer in answers),
        )

    def scores(self, texts: Sequence[str]) -> Any:
        """Scores of the texts in their order."""
        pieces = self.run(texts)[1]
        result = np.empty((len(texts), pieces[0].shape[1]), np.float32)
        for index, piece in enumerate(pieces):
            result[index :: len(pieces)] = piece
        return result

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self.connections, self.processes, strict=True):
            connection.send(None)
            process.join(timeout=20)


def operations_of(lengths: Any, model: str) -> float:
    """Floating point operations of the linear layers and the attention, padding not counted."""
    config = json.loads((Path(model) / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    per_token = layers * 2 * (4 * hidden * hidden + 2 * hidden * config["intermediate_size"])
    return float(
        lengths.sum() * per_token + layers * 4 * hidden * (lengths.astype(float) ** 2).sum()
    )


def read_texts(file: str, documents: int) -> list[str]:
    """Documents spread over a Parquet file, in file order."""
    import pyarrow.parquet as pq

    texts = pq.read_table(file, columns=["text"])["text"].drop_null()
    rows = np.unique(np.linspace(0, len(texts) - 1, documents).astype(int))
    return list(texts.take(rows).to_pylist())


def file_order_padding(lengths: Any, size: int = 32) -> float:
    """Share of padding in batches of 32 in file order."""
    blocks = [lengths[low : low + size] for low in range(0, len(lengths), size)]
    return 1 - lengths.sum() / sum(len(block) * block.max() for block in blocks)


def measure(asked: argparse.Namespace, mix: str, file: str, cut: int) -> list[dict[str, Any]]:
    """All variants on one mix of texts."""
    from ray_mlc.model.batching import padded_tokens, padding_fraction, plan_batches
    from ray_mlc.model.decisions import decide
    from ray_mlc.model.folder import open_model
    from ray_mlc.model.tokenization import Tokenizer

    folder = open_model(asked.model)
    rules = folder.info.decision.rules(folder.label_set)
    texts = read_texts(file, asked.documents)
    lengths = Tokenizer.load(folder.path, max_tokens=cut).encode(texts).lengths
    ours = padding_fraction(
        int(lengths.sum()),
        padded_tokens(lengths, plan_batches(lengths, max_batch_tokens=BATCH_TOKENS)),
    )
    variants = [v for v in VARIANTS if not asked.variants or v.name in asked.variants.split(",")]
    if not (folder.path / "int8").is_dir():
        variants = [variant for variant in variants if "int8" not in variant.name]
    peak = Pool(Variant("peak", 2, 1), asked.model, cut)
    pools = [Pool(variant, asked.model, cut) for variant in variants]
    shares = {id(pool): np.arange(max(8, int(len(texts) * pool.variant.share))) for pool in pools}
    # a share is spread over all documents, so that its lengths are theirs
    shares = {
        key: np.unique(np.linspace(0, len(texts) - 1, len(rows)).astype(int))
        for key, rows in shares.items()
    }
    reference = Pool(Variant("reference", 2, 1), asked.model, cut)
    exact_NL = reference.scores(texts)
    reference.close()
    lines: list[dict[str, Any]] = []
    for pool in pools:
        rows = shares[id(pool)]
        scores_NL = pool.scores([texts[row] for row in rows])  # warms it up, too
        flipped = decide(scores_NL, rules) != decide(exact_NL[rows], rules)
        lines.append(
            {
                "model": folder.path.name,
                "mix": mix,
                "cut": cut,
                "variant": pool.variant.name,
                "layout": f"{pool.variant.processes} x {pool.variant.threads}",
                "documents": len(shares[id(pool)]),
                "mean_tokens": round(float(lengths[shares[id(pool)]].mean()), 1),
                "max_difference": float(f"{np.abs(scores_NL - exact_NL[rows]).max():.2g}"),
                "flips": int(flipped.sum()),
                "cells": int(flipped.size),
            }
        )
    speeds: list[list[float]] = [[] for _ in pools]
    peaks: list[float] = []
    memory = [0] * len(pools)
    for _ in range(asked.repeats):
        peaks.append(sum(peak.run([""] * 2)[1]))
        for index, pool in enumerate(pools):
            rows = shares[id(pool)]
            taken, _, resident = pool.run([texts[row] for row in rows])
            speeds[index].append(float(lengths[rows].sum()) / taken)
            memory[index] = max(memory[index], resident)
    for pool in [*pools, peak]:
        pool.close()
    slowest = next(
        (s for p, s in zip(pools, speeds, strict=True) if p.variant.name == "hf pipeline"), None
    )
    for index, (line, pool) in enumerate(zip(lines, pools, strict=True)):
        rows = shares[id(pool)]
        per_token = operations_of(lengths[rows], asked.model) / float(lengths[rows].sum())
        own = speeds[index]
        line["tokens_per_s"] = round(statistics.median(own))
        line["spread"] = [round(min(own)), round(max(own))]
        line["share_of_peak"] = round(
            statistics.median(s * per_token / p for s, p in zip(own, peaks, strict=True)), 3
        )
        if slowest is not None:
            line["times_hf_pipeline"] = round(
                statistics.median(s / b for s, b in zip(own, slowest, strict=True)), 2
            )
        line["peak_gflops"] = round(statistics.median(peaks) / 1e9)
        plain = pool.variant.name == "hf pipeline"
        in_order = float(file_order_padding(lengths))
        line["padded_per_real"] = round(1 / (1 - (in_order if plain else ours)), 4)
        line["padded_per_real_in_file_order"] = round(1 / (1 - in_order), 3)
        line["memory_mb"] = round(memory[index] / 2**20)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE[:CUT]")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variants", help="names, separated by commas; default: all")
    parser.add_argument("--output", type=Path, help="append the lines to this file too")
    asked = parser.parse_args()
    versions = {
        name: __import__("importlib.metadata").metadata.version(name)
        for name in ("torch", "transformers", "tokenizers", "openvino")
    }
    print(
        f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}",
        file=sys.stderr,
    )
    for text in asked.texts:
        mix, _, place = text.partition("=")
        file, _, cut = place.partition(":")
        for line in measure(asked, mix, file, int(cut or 256)):
            tell(line, asked.output)


if __name__ == "__main__":
    main()
