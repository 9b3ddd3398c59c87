"""TF-IDF baseline: labels fitted together against scikit-learn's liblinear, one after another.

    python benchmarks/bench_baseline.py --examples FILE [--labels labels] [--of 48] \
        [--repeats 3] [--output FILE]

The matrix is the baseline's. Labels are drawn evenly over their order by frequency, and
fitted on one thread in blocks as `fit_tfidf` makes them, in turns and to the same tolerance;
processor seconds, the median of the repeats. Scores are of the examples fitted on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from lines import tell
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from ray_mlc.training import baselines
from ray_mlc.training.examples import annotated_rows, read_examples
from ray_mlc.training.logistic import coarse, fit_logistic

C = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", required=True)
    parser.add_argument("--labels", default="labels", help="label column")
    parser.add_argument("--of", type=int, default=48, help="labels that are fitted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    data = annotated_rows(read_examples(asked.examples, labels=asked.labels), asked.examples)
    texts, counts_L = data.texts.to_pylist(), data.label_counts()
    most = baselines.max_features_for(len(counts_L))
    vocabulary, idf_F = baselines._vocabulary(texts, min_df=2, max_features=most)
    features_NF = baselines._features(texts, vocabulary, idf_F)
    # a label with open cells is left out: scikit-learn would need rows of its own for it
    closed = (counts_L > 0) & (counts_L < len(texts)) & (data.annotated_counts() == len(texts))
    varying = np.flatnonzero(closed)
    ordered = varying[np.argsort(-counts_L[varying], kind="stable")]
    blocks, _ = baselines._blocks(ordered, sum(features_NF.shape))
    count = min(len(blocks), max(1, round(asked.of / len(blocks[0]))))
    drawn = [blocks[place] for place in np.linspace(0, len(blocks) - 1, count).astype(int)]
    coarse_NF = coarse(features_NF)
    print(f"# {features_NF.shape} rows and words, {features_NF.nnz} entries", flush=True)
    for block in drawn:
        targets_NK = np.stack([data.targets_N(label) for label in block], axis=1)
        seconds: dict[str, list[float]] = {"together": [], "liblinear": []}
        for _ in range(asked.repeats):
            started = time.process_time()
            weights_FK, bias_K = fit_logistic(features_NF, targets_NK, C=C, coarse_NF=coarse_NF)
            seconds["together"].append(time.process_time() - started)
            started = time.process_time()
            with threadpool_limits(limits=1, user_api="blas"):
                models = [
                    LogisticRegression(C=C, solver="liblinear", max_iter=1_000).fit(
                        features_NF, targets_N
                    )
                    for targets_N in targets_NK.T
                ]
            seconds["liblinear"].append(time.process_time() - started)
        theirs_FK = np.stack([model.coef_[0] for model in models], axis=1)
        theirs_K = np.array([model.intercept_[0] for model in models])
        scores_NK = expit(features_NF @ weights_FK + bias_K)
        gap_NK = np.abs(scores_NK - expit(features_NF @ theirs_FK + theirs_K))
        rows = counts_L[block]
        line = {"labels": len(block), "rows_min": int(rows.min()), "rows_max": int(rows.max())}
        for name, taken in seconds.items():
            line[f"{name}_s_a_label"] = round(statistics.median(taken) / len(block), 3)
        line["score_gap"] = float(f"{gap_NK.max():.2g}")
        tell(line, asked.output)


if __name__ == "__main__":
    main()
