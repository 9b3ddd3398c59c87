"""Figures by length."""

from __future__ import annotations

import numpy as np
import pytest

from ray_mlc.evaluation.lengths import bucket_edges, by_length
from ray_mlc.evaluation.metrics import evaluate_scores


def test_each_document_is_in_the_bucket_of_its_length() -> None:
    rng = np.random.default_rng(0)
    targets_NL = (rng.random((500, 4)) < 0.3).astype(np.float32)
    targets_NL[rng.random(targets_NL.shape) < 0.1] = np.nan
    scores_NL = rng.random((500, 4), np.float32)
    given_NL = scores_NL >= np.float32(0.5)
    n_tokens_N = rng.integers(1, 3_000, 500)
    cut_N = n_tokens_N > 512
    found = by_length(targets_NL, given_NL, n_tokens_N, cut_N, max_tokens=512, replicates=50)
    assert sum(bucket.documents for bucket in found) == 500
    for bucket in found:
        inside = (n_tokens_N >= bucket.shortest) & (n_tokens_N <= bucket.longest)
        figures = evaluate_scores(targets_NL[inside], scores_NL[inside], given_NL[inside])
        assert bucket.documents == inside.sum()
        found_any = bool((targets_NL[inside] == 1).any())
        assert bucket.f1 == (pytest.approx(figures["f1_micro"]) if found_any else None)
        assert bucket.truncated == float(bucket.shortest > 512)
        assert (bucket.f1_interval is None) == (bucket.documents < 10)
        if bucket.f1_interval is not None:
            assert bucket.f1_interval[0] < bucket.f1 < bucket.f1_interval[1]


def test_one_edge_is_where_texts_are_cut() -> None:
    assert bucket_edges(2_000, 300) == [16, 32, 64, 128, 300, 512, 1024, 2048]
    assert bucket_edges(100, 512) == [16, 32, 64, 128]
    assert bucket_edges(3, None) == [16]


def test_documents_that_nobody_annotated_are_in_no_bucket() -> None:
    targets_NL = np.array([[np.nan], [1]], np.float32)
    given_NL = np.array([[True], [True]])
    (bucket,) = by_length(
        targets_NL, given_NL, np.array([900, 3]), np.array([True, False]), max_tokens=512
    )
    assert (bucket.documents, bucket.precision, bucket.truncated) == (1, 1.0, 0.0)


def test_a_bucket_without_positives_has_no_f1_that_could_look_bad() -> None:
    targets_NL, given_NL = np.zeros((2, 1), np.float32), np.array([[True], [False]])
    no_tokens_cut = {"truncated_N": np.zeros(2, np.bool_), "max_tokens": None}
    first, second = by_length(targets_NL, given_NL, np.array([5, 50]), **no_tokens_cut)
    assert (first.precision, first.recall, first.f1, first.f1_interval) == (0.0, None, None, None)
    assert (second.precision, second.recall, second.f1) == (None, None, None)
