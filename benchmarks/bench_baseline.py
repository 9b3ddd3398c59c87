"""What a fine-tuned encoder has to beat: TF-IDF + logistic regression on the same files.

    python benchmarks/bench_baseline.py TRAIN VALIDATION TEST

One JSON line: test metrics at 0.5 and at one threshold fitted on validation, and seconds.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from ray_mlc.evaluation.evaluate import evaluate_scores_at
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.training.baselines import TfidfBaseline
from ray_mlc.training.examples import read_examples


def main(train: str, validation: str, test: str) -> None:
    learn = read_examples(train)
    # a label that only test has keeps a column of zeros: every one of its documents is a miss
    measure = read_examples(
        test, label_set=read_examples(validation, label_set=learn.label_set).label_set
    )
    learn = read_examples(train, label_set=measure.label_set)
    held_out = read_examples(validation, label_set=measure.label_set)
    started = time.monotonic()
    baseline = TfidfBaseline.fit(learn.texts.to_pylist(), learn.targets_NL())
    fitted_s = time.monotonic() - started
    threshold = fit_global_threshold(
        held_out.targets_NL(), baseline.predict_proba(held_out.texts.to_pylist())
    )
    scores_NL = baseline.predict_proba(measure.texts.to_pylist())
    targets_NL = measure.targets_NL()
    result = {
        "test": test.rsplit("/", 2)[-2],
        "labels": len(measure.label_set),
        "at_half": evaluate_scores_at(targets_NL, scores_NL, np.float32(0.5)),
        "fitted": evaluate_scores_at(targets_NL, scores_NL, np.float32(threshold)),
        "threshold": round(threshold, 4),
        "fit_s": round(fitted_s, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:4])
