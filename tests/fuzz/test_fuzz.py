"""Random corpora and jobs: a complete output, or a typed error in one line, and nothing else.

The bounded form of `make fuzz`: the same examples every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzz.examples import CORPUS_EXAMPLES, JOB_EXAMPLES, CorpusExample, JobExample
from fuzz.world import doubles, make_model

bounded = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # an example is small as it is; making it smaller takes minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with doubles():
        yield make_model(tmp_path_factory.mktemp("fuzz"))


def test_any_corpus_is_scored_row_by_row_or_refused_in_one_line(model: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded
    @given(CORPUS_EXAMPLES)
    def go(example: CorpusExample) -> None:
        outcomes[example.run(model)] += 1

    go()
    assert outcomes["corpus: complete"] > 30  # or else the examples prove little
    assert sum(outcomes.values()) >= 100


def test_any_job_text_is_run_or_refused_in_one_line(model: Path) -> None:
    outcomes: Counter[str] = Counter()

    @bounded
    @given(JOB_EXAMPLES)
    def go(example: JobExample) -> None:
        outcomes[example.run(model)] += 1

    go()
    assert outcomes["job: complete"] > 15
    assert outcomes["job: ConfigError"] > 15
