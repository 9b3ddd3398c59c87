"""Figures of a night that nobody has scored, with as many labels as a test likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_mlc.scoring.drift import rate_interval
from ray_mlc.scoring.sums import LENGTH_EDGES, SCORE_BINS

ROWS = 1_000_000


def made_up_night(names: Sequence[str]) -> dict[str, Any]:
    """What `scoring.figures.night_figures` would return for a second night of a million rows.

    Args:
        names: Labels; the first are the most frequent.
    """
    generator = np.random.default_rng(0)
    statuses = {"ok": ROWS - 7, "null_text": 7}
    per_row = [ROWS // 2, ROWS // 4, ROWS // 4 - 7]
    bins = LENGTH_EDGES[:70].tolist()
    lengths = generator.integers(0, 50_000, len(bins) - 1).tolist()
    return {
        "output": "s3://tags",
        "night": 2,
        "nights": 2,
        "planned": "2026-11-28T22:00:00Z",
        "state": "complete",
        "rows": {"planned": ROWS, "written": ROWS, "set_aside": 0, "missing": 0},
        "files": {"planned": 1, "set_aside": 0, "missing": 0, "planned_again": 0},
        "by_file": [
            {"source": "a.parquet", "planned": ROWS, "written": ROWS, "set_aside": 0, "missing": 0}
        ],
        "set_aside": [],
        "set_aside_count": 0,
        "drift": [],
        "problems": [],
        "statuses": statuses,
        "bad_rows": 0,
        "failed_rows": 0,
        "scored": ROWS - 7,
        "truncated": 12_345,
        "several_windows": 0,
        "before": {
            "night": 1,
            "rows": ROWS,
            "scored": ROWS - 7,
            "truncated": 5,
            "statuses": statuses,
            "labels_per_row": per_row,
        },
        "training": {"rows": 8_000, "cut": 0.1},
        **_of_labels(names, generator),
        "labels_per_row": per_row,
        "lengths": {
            "bins": bins,
            "counts": [lengths, lengths[::-1]],
            "quantiles": {"0.5": 90, "0.9": 400, "0.99": 900},
        },
        "speed": _speed(generator),
        "used": _used(),
    }


def _of_labels(names: Sequence[str], generator: np.random.Generator) -> dict[str, Any]:
    """Rates, scores and uncertain rows of each label."""
    count, scored = len(names), ROWS - 7
    given_L = (scored * 0.3 / np.arange(1, count + 1)).astype(np.int64)
    ends_L = [rate_interval(given, scored) for given in given_L.tolist()]
    counts_LB = generator.poisson(np.geomspace(50_000, 3, SCORE_BINS), (count, SCORE_BINS))
    labels = [
        {
            "label": name,
            "given": int(given_L[place]),
            "rate": float(given_L[place] / scored),
            "interval": ends_L[place],
            "threshold": round(float(generator.uniform(0.1, 0.9)), 4),
            "near": int(generator.integers(0, 5_000)),
            "stored": int(counts_LB[place].sum()),
            "training": float(given_L[place] / scored * generator.uniform(0.5, 2)),
            "from_training": float(generator.normal(0, 4)),
            "before": float(given_L[place] / scored * generator.uniform(0.5, 2)),
            "before_interval": ends_L[place],
            "from_before": float(generator.normal(0, 4)),
        }
        for place, name in enumerate(names)
    ]
    shown = list(names[:30])
    square = generator.uniform(-0.2, 0.9, (len(shown), len(shown))).tolist()
    return {
        "labels": labels,
        "scores": {
            "format": "sparse",
            "k": 256,
            "floor": 0.01,
            "counts": counts_LB.tolist(),
            "k_cut": 3,
            "near": 0.05,
        },
        "together": {
            "labels": shown,
            "of_all": False,
            "both": generator.integers(0, 9_000, (len(shown), len(shown))).tolist(),
            "phi": square,
            "given": square,
        },
        "uncertain": [
            {
                "source": "a.parquet",
                "row": place,
                "label": names[place % count],
                "score": 0.5 + 0.001 * place,
                "threshold": 0.5,
                "unit": 0,
                "place": place,
            }
            for place in range(60)
        ],
    }


def _speed(generator: np.random.Generator) -> dict[str, Any]:
    tokens = generator.integers(1, 9_000, 100).tolist()
    actor = {"actor": "one 1", "units": 50, "rows": ROWS // 2, "tokens": 4_000_000}
    unit = {"part": "a/000000000000.parquet", "rows": 16_384, "tokens": 900_000, "seconds": 9.0}
    return {
        "first": "2026-11-28 22:00:00 UTC",
        "last": "2026-11-28 23:40:00 UTC",
        "seconds": 6_000.0,
        "steps": {
            "start": 1_795_903_200.0,
            "step_s": 60,
            "rows": [1_000] * 100,
            "tokens": tokens,
            "tokens_by_actor": {"one 1": tokens[::-1], "two 2": tokens},
        },
        "by_actor": [{**actor, "seconds": 500.0, "tokens_per_s": 8_000.0}],
        "actors": 1,
        "slowest": [{**unit, "tokens_per_s": 100_000.0, "actor": "one 1"}],
        "median": 200_000.0,
        "process": {
            "rows": ROWS,
            "seconds": 6_000.0,
            "rows_per_s": 166.7,
            "tokens_per_s": 9_000.0,
            "padding": 0.01,
        },
    }


def _used() -> dict[str, Any]:
    return {
        "model": "models/none",
        "model_digest": "0" * 64,
        "run": "1" * 64,
        "created": "2026-11-27T22:00:00Z",
        "decision": "2" * 64,
        "objective": "f1",
        "fallback": None,
        "hierarchy": 0,
        "engine": {
            "name": "torch",
            "dtype": "bfloat16",
            "device": "cpu",
            "max_batch_tokens": 8_192,
            "max_tokens": 256,
            "canaries": "hold",
            "trials": [],
        },
        "units": {"rows": 16_384, "bytes": 2**26},
        "policy": "truncate",
        "text": "text",
        "input": "s3://corpus",
        "kept": ["id"],
        "versions": {"ray-mlc": "0.1.0"},
        "score_bins": SCORE_BINS,
    }
