"""EURLEX57K: one model for its 21 domains and the 4,271 descriptors below them.

    python benchmarks/eurlex.py --data DATA/eurlex57k --encoder ENCODER --work WORK [--seed 0] \
        [--set training.epochs=2 …] [--windows 16] [--output FILE]

The files have `id`, `text`, `labels` and `domains`. A document's labels are its descriptors and, as
`domain: …`, its domains, so that one training answers both questions. It is read in windows; the
test split is measured with 1, 2, 4 … windows of each document, joined in the way that serves
validation best with so many: at 0.5, at one threshold and at one for each label, both of them from
validation. Descriptors that only the test split has are counted as missed, and macro averages are
over all labels of its kind, found or not. A model that is in WORK already is measured only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accuracy import JOBS, figures, ray_mlc
from lines import tell
from numpy.typing import NDArray

from ray_mlc.config import BatchingConfig, EngineConfig, LongConfig, WindowsConfig
from ray_mlc.evaluation.metrics import evaluate_scores
from ray_mlc.evaluation.ranking import means, ranking_at
from ray_mlc.evaluation.thresholds import fit_global_threshold, fit_thresholds
from ray_mlc.model.classifier import sigmoid
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.folder import open_model
from ray_mlc.model.windows import AGGREGATES, aggregate_logits
from ray_mlc.training.examples import read_examples

PREFIX = "domain: "


def write_joint(data: Path, folder: Path) -> None:
    """The three splits with both kinds of labels in one list."""
    scratch = folder.with_name(f"{folder.name}.tmp")
    scratch.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        table = pq.read_table(data / f"{split}.parquet")
        both = [
            [*(PREFIX + name for name in domains), *labels]
            for domains, labels in zip(
                table["domains"].to_pylist(), table["labels"].to_pylist(), strict=True
            )
        ]
        joint = pa.table({"id": table["id"], "text": table["text"], "labels": both})
        pq.write_table(joint, scratch / f"{split}.parquet", compression="zstd")
    scratch.rename(folder)


class Windows:
    """Logits of the windows of a split's documents, and what is true of them."""

    def __init__(self, classifier: Any, file: Path) -> None:
        """Score a split once, each window by itself."""
        known = classifier.label_set
        examples = read_examples(str(file), label_set=known)
        self.names = examples.label_set.names
        self.targets_NL = examples.targets_NL()
        ragged = classifier.tokenizer.encode(examples.texts.to_pylist())
        started = time.monotonic()
        self.logits_WL = classifier.window_logits(ragged)
        seconds = time.monotonic() - started
        self.firsts = ragged.firsts
        tokens = int(ragged.lengths.sum())
        print(f"# {file.stem}: {tokens} tokens, {tokens / seconds:,.0f} tokens/s", flush=True)

    def scores(self, windows: int, how: Any, top: int) -> NDArray[np.float32]:
        """Scores where so many windows of a document are read; 0 for labels nobody trained."""
        counts_N = np.minimum(np.diff(self.firsts), windows)
        firsts = np.append(0, np.cumsum(counts_N))
        rows = np.repeat(self.firsts[:-1] - firsts[:-1], counts_N) + np.arange(firsts[-1])
        joined_NL = aggregate_logits(self.logits_WL[rows], firsts, how=how, top=top)
        missing = self.targets_NL.shape[1] - joined_NL.shape[1]
        return np.pad(sigmoid(joined_NL), ((0, 0), (0, missing)))


def measure(validation: Windows, test: Windows, most: int, top: int) -> Iterator[dict[str, Any]]:
    """Figures of the test split by kind of label, windows read, and decision."""
    for count in sorted({most, *(2**power for power in range(most.bit_length()))}):
        for kind in ("domains", "labels"):
            of_val, of_test = (
                np.array([name.startswith(PREFIX) == (kind == "domains") for name in split.names])
                for split in (validation, test)
            )
            true_val, true_test = validation.targets_NL[:, of_val], test.targets_NL[:, of_test]
            tried = {}
            for how in AGGREGATES if count > 1 else AGGREGATES[:1]:
                scores = validation.scores(count, how, top)[:, of_val]
                threshold = fit_global_threshold(true_val, scores)
                reached = evaluate_scores(true_val, scores, scores >= np.float32(threshold))
                tried[how] = (reached["f1_micro"] or 0.0, threshold, scores)
            how = max(tried, key=lambda how: tried[how][0])
            _, threshold, scores_val = tried[how]
            scores = test.scores(count, how, top)[:, of_test]
            ranks = means(ranking_at(true_test, scores))
            line = {"kind": kind, "labels": int(of_test.sum()), "windows": count, "joined": how}
            line |= {"ndcg_at_5": round(100 * (ranks["ndcg@5"] or 0.0), 2)}
            own = fit_thresholds(true_val, scores_val, objective="f1").own_L
            # labels that only the test split has come last in its order
            own = np.pad(own, (0, scores.shape[1] - len(own)), constant_values=1)
            for decision, limits in (
                ("0.5", np.float32(0.5)),
                ("one threshold", np.float32(threshold)),
                ("one per label", own.astype(np.float32)),
            ):
                found = evaluate_scores(true_test, scores, scores >= limits)
                yield line | {"decision": decision} | figures(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--windows", type=int, default=16, help="of a document at most, measured")
    parser.add_argument("--dtype", default="bfloat16", help="of scoring")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    joint, model = asked.work / "joint", asked.work / f"model-{asked.seed}"
    if not joint.exists():
        write_joint(asked.data, joint)
    fresh, started = not model.exists(), time.monotonic()
    words = [str(JOBS / "eurlex57k.yaml"), "--encoder", asked.encoder, "--output", str(model)]
    for split in ("train", "validation"):
        words += [f"--{split}", str(joint / f"{split}.parquet")]
    settings = ["data.labels=labels", f"training.seed={asked.seed}", *asked.settings]
    ray_mlc("train", *words, *(word for item in settings for word in ("--set", item)))
    seconds = round(time.monotonic() - started) if fresh else None
    folder = open_model(str(model))
    read = LongConfig(policy="windows", windows=WindowsConfig(max_windows=asked.windows))
    engine = EngineConfig(dtype=asked.dtype)
    resolved = resolve(folder, engine, BatchingConfig(), cuda=False, long=read)
    assert resolved.windows is not None
    classifier = load_classifier(folder, resolved)
    validation = Windows(classifier, joint / "validation.parquet")
    test = Windows(classifier, joint / "test.parquet")
    for line in measure(validation, test, asked.windows, resolved.windows.top):
        told = {"seed": asked.seed, "settings": asked.settings} | line | {"seconds": seconds}
        tell(told, asked.output)


if __name__ == "__main__":
    main()
