"""The short form of the chaos suite: one seed of the cases that need least time.

The long form, with all cases and many seeds, is `make chaos`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from chaos.cases import CASES
from chaos.run import describe
from chaos.trial import Result, run_trial
from chaos.workload import Workload

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


IN_ONE_PROCESS = [
    ("1-driver", 0),
    ("4-hooks", 0),  # between write and rename
]


@pytest.fixture(scope="module")
def trials(
    workload: Workload, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], Future[Result]]]:
    """All trials in one process, two at a time: they are mostly imports, on one core each."""
    folder = tmp_path_factory.mktemp("trials")
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {
            (case, seed): pool.submit(
                run_trial,
                workload,
                case,
                CASES[case].body,
                seed,
                folder / f"{case}-{seed}",
                local=True,
            )
            for case, seed in IN_ONE_PROCESS
        }


@pytest.mark.parametrize(("case", "seed"), IN_ONE_PROCESS)
def test_a_broken_run_in_one_process_ends_in_the_same_rows(
    case: str, seed: int, trials: dict[tuple[str, int], Future[Result]]
) -> None:
    _holds(trials[case, seed].result())


@pytest.mark.slow
def test_a_run_in_one_process_that_is_signalled_ends_in_the_same_rows(
    workload: Workload, tmp_path: Path
) -> None:
    case = "8-signal"
    _holds(run_trial(workload, case, CASES[case].body, 0, tmp_path / case, local=True))


def _holds(result: Result) -> None:
    assert not result.problems, describe(result)
    assert result.injected
    assert (result.lost, result.duplicated, result.rewritten) == (0, 0, 0)
