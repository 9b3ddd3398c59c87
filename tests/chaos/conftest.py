"""The short form's workload: made once, because the expected output costs more than a trial."""

from __future__ import annotations

import pytest

from chaos.workload import Workload, make_workload


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """A corpus, a model, and the undisturbed output."""
    return make_workload(tmp_path_factory.mktemp("chaos"), seed=0)
