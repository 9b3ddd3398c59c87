"""Sums over rows: what a plain count gives, in any order and in any pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ray_mlc.corpus.rows import SOURCE_TYPE
from ray_mlc.labels import LabelSet
from ray_mlc.scoring.parts import OutputSpec, label_lists, top_lists
from ray_mlc.scoring.sums import LENGTH_EDGES, MOST_LABELS, NEAR, NEAREST, SCORE_BINS, Sums

NAMES = ["a", "b", "c", "d", "e"]
LABELS = LabelSet(tuple(NAMES))
THRESHOLDS_L = np.array([0.1, 0.5, 0.5, 0.92, 0.3], np.float32)
REACH_L = np.array([NEAR, NEAR, NEAR, (1 - THRESHOLDS_L[3]) / 2, NEAR], np.float32)
"""Half-way to 1 is nearer to the fourth; half-way to 0 just as far from the first."""
SHOWN_H = np.array([1, 2, 4])
ROWS = 400


def made_up(form: str) -> tuple[pa.Table, OutputSpec, NDArray[np.float32]]:
    """Rows of a part, what parts look like, and the scores; each seventh row was not scored."""
    generator = np.random.default_rng(1)
    scores_NL = generator.beta(0.5, 2, (ROWS, len(NAMES))).astype(np.float32)
    scores_NL[3] = [0, 1, 0.5, 0.92, 0.3]  # ends, and thresholds themselves
    scores_NL[::7] = np.nan
    missing = pa.array(np.isnan(scores_NL[:, 0]))
    with np.errstate(invalid="ignore"):
        labels = label_lists(scores_NL, scores_NL >= THRESHOLDS_L, NAMES)
    columns: dict[str, Any] = {"labels": labels}
    match form:
        case "wide":
            for place, name in enumerate(NAMES):
                columns[f"score_{name}"] = pa.array(scores_NL[:, place], from_pandas=True)
        case "sparse":
            columns["top"], _ = top_lists(np.nan_to_num(scores_NL, nan=-1), NAMES, k=5, floor=0.05)
        case _:
            scores_NL = scores_NL.astype(np.float16).astype(np.float32)
            flat = pa.array(scores_NL.astype(np.float16).ravel())
            columns["scores"] = pa.FixedSizeListArray.from_arrays(flat, len(NAMES))
    for name in set(columns) - {f"score_{label}" for label in NAMES}:
        null = pa.scalar(None, columns[name].type)
        columns[name] = pa.compute.if_else(missing, null, columns[name])
    lengths = generator.integers(1, 3_000, ROWS).astype(np.int32)
    status = np.where(np.isnan(scores_NL[:, 0]), "null_text", "ok")
    columns |= {
        "n_tokens": pa.array(lengths, mask=np.isnan(scores_NL[:, 0])),
        "truncated": pa.array(lengths > 512, mask=np.isnan(scores_NL[:, 0])),
        "n_windows": pa.array((lengths // 512 + 1).astype(np.int16)),
        "status": pa.array(status.tolist()).cast(SOURCE_TYPE),
    }
    return pa.table(columns), OutputSpec(pa.schema([]), LABELS, form, 5, 0.05), scores_NL


def sums() -> Sums:
    return Sums(LABELS, THRESHOLDS_L, SHOWN_H)


@pytest.mark.parametrize("form", ["wide", "sparse", "dense"])
def test_sums_are_what_a_plain_count_gives(form: str) -> None:
    part, output, scores_NL = made_up(form)
    found = sums()
    found.add(part, output, unit=8)
    scored_NL = scores_NL[~np.isnan(scores_NL[:, 0])]
    lists = part["labels"].to_pylist()
    assert (found.rows, found.scored) == (ROWS, len(scored_NL))
    assert found.given_L.tolist() == [sum(name in (row or ()) for row in lists) for name in NAMES]
    sizes = [min(len(row), MOST_LABELS) for row in lists if row is not None]
    assert found.per_row.tolist() == np.bincount(sizes, minlength=MOST_LABELS + 1).tolist()
    lengths = [n for n in part["n_tokens"].to_pylist() if n is not None]
    edges = [*LENGTH_EDGES.tolist(), 2**30]
    assert found.length_counts.tolist() == np.histogram(lengths, edges)[0].tolist()
    assert found.truncated == sum(n > 512 for n in lengths)
    stored_NL = np.where(scored_NL >= 0.05, scored_NL, np.nan) if form == "sparse" else scored_NL
    for label in range(len(NAMES)):
        values = stored_NL[:, label][~np.isnan(stored_NL[:, label])].astype(np.float64)
        expected = np.histogram(values, np.arange(SCORE_BINS + 1) / SCORE_BINS)[0]
        # a score on an edge may fall to either side: float64 has no 0.3
        assert np.abs(found.bins_LB[label].cumsum() - expected.cumsum()).max() <= 1
        assert found.bins_LB[label].sum() == len(values)
        near = np.abs(stored_NL[:, label] - THRESHOLDS_L[label]) <= REACH_L[label]
        assert found.near_L[label] == near.sum()
    for one, first in enumerate(SHOWN_H):
        for two, second in enumerate(SHOWN_H):
            both = {NAMES[first], NAMES[second]}
            assert found.together_HH[one, two] == sum(both <= set(row or ()) for row in lists)


@pytest.mark.parametrize("form", ["wide", "sparse", "dense"])
def test_the_rows_nearest_to_each_threshold_are_kept(form: str) -> None:
    part, output, scores_NL = made_up(form)
    found = sums()
    found.add(part, output, unit=8)
    for label in range(len(NAMES)):
        distance_N = np.abs(scores_NL[:, label] - THRESHOLDS_L[label])
        order = np.argsort(distance_N, kind="stable")[:NEAREST]
        kept = found.nearest[found.nearest["label"] == label]
        assert kept["row"].tolist() == [
            row for row in order.tolist() if distance_N[row] <= REACH_L[label]
        ]
        np.testing.assert_array_equal(kept["score"], scores_NL[kept["row"], label])
    assert set(found.nearest["unit"]) == {8}


@pytest.mark.parametrize("form", ["wide", "sparse", "dense"])
def test_pieces_in_any_order_come_to_the_same(form: str) -> None:
    part, output, _ = made_up(form)
    whole, pieces = sums(), sums()
    whole.add(part, output)
    generator = np.random.default_rng(2)
    cuts = [0, *np.sort(generator.integers(0, ROWS, 6)).tolist(), ROWS]
    spans = list(pairwise(cuts))
    for place in generator.permutation(len(spans)):
        low, high = spans[place]
        piece = sums()
        piece.add(part.slice(low, high - low), output, first=low)
        pieces.merge(piece)
    assert pieces.statuses == whole.statuses
    assert (pieces.rows, pieces.truncated) == (whole.rows, whole.truncated)
    assert pieces.several_windows == whole.several_windows
    for name in ("given_L", "per_row", "length_counts", "together_HH", "bins_LB", "near_L"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
    np.testing.assert_array_equal(pieces.nearest, whole.nearest)


def test_without_scores_labels_and_lengths_are_the_same() -> None:
    part, output, _ = made_up("wide")
    whole, less = sums(), sums()
    whole.add(part, output)
    columns = ["labels", "n_tokens", "truncated", "n_windows", "status"]
    less.add(part.select(columns), output, scores=False)
    np.testing.assert_array_equal(less.given_L, whole.given_L)
    assert (less.statuses, less.truncated) == (whole.statuses, whole.truncated)
    assert not less.bins_LB.any()
