"""The short form of `make cluster-test`: a scoring job on three nodes loses one of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.scenes import Scene, write_job
from support.job_site import Site
from support.models import LIGHT_ENGINE
from support.network import network
from support.ray_cluster import ray_cluster

from ray_mlc import synthetic

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

ROWS = 2_500
UNIT_ROWS = 25


@pytest.fixture(scope="module")
def scene(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A head without tasks and two workers, each in a network of its own where that may be."""
    folder = tmp_path_factory.mktemp("scene")
    synthetic.write_corpus(folder / "corpus", rows=ROWS, files=2, seed=3)
    job = {
        "kind": "score",
        "model": str(tiny_model),
        "input": "corpus",
        "output": "tags",
        "units": {"rows": UNIT_ROWS},
        "engine": {"name": LIGHT_ENGINE, "dtype": "float32"},
        "batching": {"max_batch_tokens": 4096},
        "actors": {"cpus": 1},
    }
    write_job(folder / "score.yaml", job)
    with network() as place, ray_cluster(cpus=0, workers=2, network=place) as cluster:
        yield Scene(Site(cluster, folder), print)
    shutil.rmtree(folder)


def test_a_scoring_job_that_loses_a_node_comes_to_its_end_with_every_row_once(
    scene: Scene,
) -> None:
    output = scene.site.folder / "tags"

    def begun() -> bool:
        return sum(1 for _ in output.glob("**/*.parquet")) > 3

    scene.lose_a_node(
        "score.yaml",
        process="ScoreActor",
        when=begun,
        keys=("is gone: 2 node(s) now", f"{ROWS:,} of {ROWS:,} rows written"),
    )
    scene.verify("tags", ROWS, "--deep")
