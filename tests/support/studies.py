"""Evaluations of made-up scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_mlc.evaluation.evaluate import evaluate
from ray_mlc.evaluation.study import Study, study
from ray_mlc.labels import LabelSet


def made_up_study(
    documents: int,
    labels: int | Sequence[str],
    *,
    seed: int = 0,
    masked: float = 0.0,
    rates: tuple[float, float] = (0.4, 0.01),
    **options: Any,
) -> Study:
    """Scores that know something of labels, which are common to rare, and per-label thresholds.

    Args:
        documents: N.
        labels: How many, or their names.
        seed: Of all that is drawn.
        masked: Share of cells that nobody annotated.
        rates: Of the most common label and of the rarest.
        **options: See `study`.
    """
    names = [f"label {label}" for label in range(labels)] if isinstance(labels, int) else labels
    rng = np.random.default_rng(seed)
    rates_L = np.geomspace(*rates, len(names))
    targets_NL = (rng.random((documents, len(names))) < rates_L).astype(np.float32)
    logits_NL = rng.normal(2.5 * targets_NL + np.log(rates_L) / 2)
    scores_NL = (1 / (1 + np.exp(-logits_NL))).astype(np.float32)
    targets_NL[rng.random(targets_NL.shape) < masked] = np.nan
    thresholds_L = rng.uniform(0.3, 0.6, len(names)).astype(np.float32)
    figures = evaluate(
        targets_NL,
        scores_NL,
        label_set=LabelSet(tuple(names)),
        given_NL=scores_NL >= thresholds_L,
        rates_L=rates_L,
    )
    n_tokens_N = rng.integers(3, 900, documents)
    options = {
        "n_tokens_N": n_tokens_N,
        "truncated_N": n_tokens_N > 512,
        "max_tokens": 512,
        "replicates": 50,
        **options,
    }
    given_NL = scores_NL >= thresholds_L
    return study(figures, targets_NL, scores_NL, given_NL, thresholds_L=thresholds_L, **options)
