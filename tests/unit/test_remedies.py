"""Each reason for which something is set aside has a remedy of its own."""

from __future__ import annotations

import pytest

from ray_mlc.corpus.rows import STATUSES
from ray_mlc.report.remedies import STATUS_REMEDIES, remedy_of
from ray_mlc.runtime.ray_data import DIED_OVER_IT


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("footer: the file has no bytes", "still being written"),
        ("footer: Parquet magic bytes not found", "no Parquet file"),
        ("schema: column n is string, int64 in a.parquet", "run's types"),
        ("read: the file has changed since it was planned", "replaced"),
        ("read: Corrupt snappy compressed data.", "damaged"),
        (f"read: {DIED_OVER_IT.format(3)}", "killed"),
        (f"score: {DIED_OVER_IT.format(3)}", "killed"),
        ("write: Unhandled type for Arrow to Parquet", "output.keep"),
        ("something new", "See to it"),
    ],
)
def test_a_reason_has_a_remedy(reason: str, word: str) -> None:
    assert word in remedy_of(reason)


def test_every_status_but_ok_says_what_it_means() -> None:
    assert set(STATUS_REMEDIES) == set(STATUSES) - {"ok"}
