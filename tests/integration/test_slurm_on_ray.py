"""The batch script for Slurm with a real Ray: two nodes on this machine, a corpus, a stop."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.manifests import rendered
from support.slurm import make_tools, sbatch

from ray_mlc.scoring.verify import verify

REAL = '#!/bin/bash\nexec {command} "$@"\n'


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets do not fit into the path of `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="rm") as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_batch_script_scores_a_corpus_on_two_nodes_of_a_ray_of_its_own(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, short_folder: Path
) -> None:
    settings = ("slurm.activate=null", "gpu=null", "cpu.cpus=2", "jobs.startup=2m")
    script = rendered("slurm", *settings)["score.sbatch"]
    scratch = f"SCRATCH={shlex.quote(str(short_folder))}\n"
    (tmp_path / "score.sbatch").write_text(script.replace("SCRATCH=/tmp\n", scratch))
    assert scratch in (tmp_path / "score.sbatch").read_text()
    job = {
        "kind": "score",
        "model": str(tiny_model),
        "input": str(tiny_corpus),
        "output": str(tmp_path / "tags"),
        "engine": {"dtype": "float32"},
        "batching": {"max_batch_tokens": 4096},
        "units": {"rows": 30},
        "actors": {"count": 2, "cpus": 0.5},
    }
    submit = tmp_path / "submit"
    submit.mkdir()
    (submit / "score.yaml").write_text(yaml.safe_dump(job))
    python = shlex.quote(sys.executable)
    real = {
        "ray": REAL.format(command=f"{python} -m ray.scripts.scripts"),
        "ray-mlc": REAL.format(command=f"{python} -m ray_mlc"),
        "python": REAL.format(command=python),
    }
    tools = make_tools(tmp_path / "tools", **real)
    environment = {
        "SLURM_CPUS_PER_TASK": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
        # Ray's workers give way to everything else on the machine, such as other tests
        "RAY_worker_niceness": "0",
    }
    process = sbatch(tmp_path / "score.sbatch", tools, submit, tmp_path / "log", environment)
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output
    assert "2 of 2 node(s) are there" in output
    assert verify(str(tmp_path / "tags")).holds
    assert list(short_folder.iterdir()) == []
    assert [path.name for path in submit.iterdir()] == ["score.yaml"]
    # nothing of this job runs on, by the folder that its processes name
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(short_folder) not in listed.stdout
