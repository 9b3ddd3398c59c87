"""The shape of a run with GPUs: tokenizers on nodes of their own, told apart by labels.

The GPUs are pretended, and the engine runs on the CPU: where actors lie, what passes between them
and what is written is as it would be.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from support.models import LIGHT_ENGINE
from support.ray_cluster import ray_cluster

from ray_mlc import synthetic
from ray_mlc.scoring.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = """
import sys
from ray_mlc.runtime import ray_data
from ray_mlc.runtime.backend import resolve_engine
from ray_mlc.scoring.sample import sample_units

def on_cpu(self, folder, plan, job):
    return resolve_engine(job, folder, sample_units(plan), plan.spec, cuda=False, threads=1)

ray_data.RayBackend.resolve = on_cpu
from ray_mlc.cli import main
main()
"""
GROUP = "ray-mlc.io/group"
ROWS = 3000


@pytest.mark.slow
def test_texts_are_tokenized_on_one_group_and_scored_on_the_other(
    tmp_path: Path, tiny_model: Path
) -> None:
    synthetic.write_corpus(tmp_path / "in", rows=ROWS, files=2, seed=3)
    job = tmp_path / "job.yaml"
    job.write_text(
        f"""
kind: score
model: {tiny_model}
input: {tmp_path}/in
output: {{path: {tmp_path}/out, keep: [id]}}
units: {{rows: 100}}
engine: {{name: {LIGHT_ENGINE}, dtype: float32}}
batching: {{max_batch_tokens: 512}}
actors: {{labels: {{{GROUP}: gpu}}}}
tokenizers: {{count: 2, cpus: 1, labels: {{{GROUP}: cpu}}}}
report: {{at_end: false}}
"""
    )
    seen: dict[str, set[str]] = {"cpu": set(), "gpu": set()}
    with ray_cluster(cpus=1, workers=0) as cluster:
        nodes = {
            "cpu": cluster.add_node(cpus=3, labels=f"{GROUP}=cpu"),
            "gpu": cluster.add_node(cpus=3, gpus=2, labels=f"{GROUP}=gpu"),
        }
        words = ["score", str(job), "--address", cluster.gcs_address]
        with (tmp_path / "log").open("w") as talk:
            run = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *words], env=cluster.env, stdout=talk, stderr=talk
            )
            while run.poll() is None:
                for group, node in nodes.items():
                    for word in ("TokenizeActor", "ScoreActor"):
                        if any(word in title for title in node.titles()):
                            seen[group].add(word)
                time.sleep(0.2)
        assert run.returncode == 0, (tmp_path / "log").read_text()
    assert seen == {"cpu": {"TokenizeActor"}, "gpu": {"ScoreActor"}}
    found = verify(str(tmp_path / "out"), deep=True)
    assert found.holds
    assert found.complete
    assert pads.dataset(tmp_path / "out", exclude_invalid_files=True).count_rows() == ROWS
    assert "2 processes" in (tmp_path / "log").read_text()  # one for each GPU
