"""Jobs on a real head with a token: submitted, stopped, resumed, followed, refused.

One head and one job serve all tests, which so go on from each other in the order of this file.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.job_site import WAIT_S, Site
from support.models import LIGHT_ENGINE
from support.ray_cluster import OBJECT_STORE_BYTES, ray_cluster

from ray_mlc import synthetic
from ray_mlc.scoring.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

ROWS = 8_000


class TagSite(Site):
    """All jobs write to one output."""

    @property
    def output(self) -> Path:
        return self.folder / "tags"

    def parts(self) -> int:
        return len(list(self.output.glob("**/*.parquet")))


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TagSite]:
    """A head of three logical CPUs that asks for a token; a corpus that takes some seconds.

    Ray's autoscaler is there too, and a group of nodes that begins at none.
    """
    folder = tmp_path_factory.mktemp("site")
    # a read takes up to a quarter of a row group: little is in flight when the job is stopped
    synthetic.write_corpus(folder / "corpus", rows=ROWS, files=2, seed=3, row_group_rows=200)
    (folder / "job.yaml").write_text(
        f"kind: score\nmodel: {tiny_model}\ninput: corpus\noutput: tags\nunits: {{rows: 25}}\n"
        f"engine: {{name: {LIGHT_ENGINE}, dtype: float32}}\nbatching: {{max_batch_tokens: 4096}}\n"
        "actors: {count: 1, cpus: 1}\nlimits: {grace: 30s}\n"
    )
    group = {"resources": {"CPU": 2, "object_store_memory": OBJECT_STORE_BYTES}, "node_config": {}}
    groups = {"cpu": {**group, "min_workers": 0, "max_workers": 2}}
    with ray_cluster(cpus=3, groups=groups) as cluster:
        yield TagSite(cluster, folder)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_without_a_token_and_with_a_wrong_one_nothing_is_submitted(
    site: TagSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = site.jobs("submit", "job.yaml", token=False)
    assert refused.returncode == 2
    assert "asks for a token, and none was sent" in refused.stderr
    monkeypatch.setattr(site.cluster, "extra", {"RAY_AUTH_TOKEN": "wrong" * 8})
    wrong = site.jobs("submit", "job.yaml", token=False)
    assert wrong.returncode == 2
    assert "does not accept the token" in wrong.stderr
    assert "wrongwrong" not in wrong.stderr + wrong.stdout
    assert len(wrong.stderr.splitlines()) == 1


def test_a_job_is_begun_and_stopped_with_what_was_in_flight_finished(site: TagSite) -> None:
    begun = site.jobs("submit", "job.yaml", "--json")
    assert begun.returncode == 0, begun.stderr
    shown = json.loads(begun.stdout)
    assert (shown["action"], shown["attempt"], shown["status"]) == ("submitted", 1, "RUNNING")
    assert f"output.path tags is {site.output} on the cluster" in begun.stderr
    wait_for(site.parts)
    stopped = site.jobs("stop", "tags", "--json")
    assert json.loads(stopped.stdout)["status"] == "STOPPED", stopped.stderr
    log = site.jobs("logs", shown["id"]).stdout
    # Ray's own three seconds would have killed it before it could say so
    assert "stopping: what is in flight has 30 s to finish" in log
    assert "error: interrupted after" in log
    written = verify(str(site.output)).total("written")
    assert f"interrupted after {written:,} of {ROWS:,} rows" in log
    assert 0 < written < ROWS
    assert not (site.output / "_ray_mlc/lease.json").exists()  # it gave it back


def test_the_next_attempt_resumes_and_whoever_follows_may_leave_and_come_back(
    site: TagSite,
) -> None:
    before = verify(str(site.output)).total("written")
    first = site.start("jobs", "submit", "job.yaml", "--follow", "--address", site.cluster.address)
    second = site.start("jobs", "submit", "job.yaml", "--json", "--address", site.cluster.address)
    assert first.stderr is not None
    heard = ""
    for line in first.stderr:
        heard += line
        if line.startswith("continuing: "):
            break
    first.send_signal(signal.SIGINT)
    out, rest = first.communicate(timeout=WAIT_S)
    assert first.returncode == 130, heard + rest
    assert f"continuing: {before:,} rows are done already" in heard
    id = out.strip()
    assert id.endswith("-2")
    assert f"detached; {id} goes on" in rest
    assert f"ray-mlc jobs stop {id}" in rest

    shown, talk = second.communicate(timeout=WAIT_S)  # two at one moment: one job
    assert second.returncode == 0, talk
    assert json.loads(shown)["id"] == id

    attached = site.jobs("logs", id, "--follow")
    assert attached.returncode == 0, attached.stderr
    lines = attached.stdout.splitlines()
    assert lines.count(f"continuing: {before:,} rows are done already") == 1
    assert any(line.startswith(f"{ROWS:,} of {ROWS:,} rows written") for line in lines)
    assert verify(str(site.output), deep=True).complete


def test_what_has_succeeded_is_said_and_listed(site: TagSite) -> None:
    again = site.jobs("submit", "job.yaml", "--follow", "--set", "limits.grace=20s")
    assert again.returncode == 0
    assert "-2 has SUCCEEDED already: --again submits it once more" in again.stderr
    listed = json.loads(site.jobs("list", "--json").stdout)
    assert [(job["attempt"], job["status"], job["exit_code"]) for job in listed] == [
        (2, "SUCCEEDED", 0),
        (1, "STOPPED", 130),
    ]
    assert {job["output"] for job in listed} == {str(site.output)}


def test_a_job_that_fails_gives_its_exit_code_and_its_own_words(site: TagSite) -> None:
    failed = site.jobs("submit", "job.yaml", "--set", "model=./nope", "--follow", "--json")
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["exit_code"] == 2
    last = failed.stderr.splitlines()[-1]
    assert "failed with exit code 2: " in last
    assert "there is no such folder" in last


def test_an_evaluation_runs_on_a_node_and_leaves_its_figures(
    site: TagSite, tiny_tfidf: Path
) -> None:
    synthetic.write_examples(site.folder / "examples", train=1, validation=1, test=30, seed=0)
    (site.folder / "evaluate.yaml").write_text(
        f"kind: evaluate\nmodel: {tiny_tfidf}\nexamples: examples/test.parquet\n"
        "output: evaluations/figures.json\n"
    )
    done = site.jobs("submit", "evaluate.yaml", "--follow", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "evaluate"
    figures = json.loads((site.folder / "evaluations/figures.json").read_text())
    assert figures["n"] == 30
    assert (site.folder / "evaluations/figures.html").exists()


@pytest.mark.slow
def test_the_doctor_looks_at_every_node_and_leaves_the_output_as_it_was(site: TagSite) -> None:
    site.cluster.add_node(cpus=1)
    before = sorted(site.output.rglob("*"))
    done = site.run(
        *("doctor", "--address", site.cluster.gcs_address, "--output", str(site.output), "--json")
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert "2 node(s), 4 CPUs" in checks["ray"]["finding"]
    assert "alike on 2 node(s)" in checks["versions"]["finding"]
    assert checks["shared output"]["finding"].endswith("written and seen from 2 node(s)")
    for name in ("ray", "token", "versions", "gpus", "room", "shared output"):
        assert checks[name]["state"] == "ok", checks[name]
    assert checks["token"]["finding"].endswith("the head refuses who has none")
    assert sorted(site.output.rglob("*")) == before


@pytest.mark.slow
def test_nodes_of_a_group_that_begins_at_none_come_when_a_job_needs_them(site: TagSite) -> None:
    synthetic.write_corpus(site.folder / "more", rows=400, files=1, seed=4)
    more, grown_output = site.folder / "more", site.folder / "grown"
    settings = (f"input={more}", f"output={grown_output}", "actors.count=5")
    words = [word for setting in settings for word in ("--set", setting)]
    # not by `jobs submit`: nodes of the autoscaler for tests share the head's folder, and remove
    # each other's copies of what travels with a job
    words += ["--address", site.cluster.gcs_address]
    grown = site.run("score", "job.yaml", *words)
    assert grown.returncode == 0, grown.stderr
    lines = grown.stderr.splitlines()
    assert (
        "too little is there: asking for nodes with 5 × (1 CPU) and 0.5 CPU, for up to 900 s"
        in (lines)
    )
    assert any(line.startswith("node ") and line.endswith(" node(s) now") for line in lines)
    assert verify(str(grown_output)).complete
    # one more than the group ever has: it is asked for, and then refused by what is missing
    words += [
        "--set",
        "actors.count=9",
        "--set",
        "ray.node_wait=3s",
        "--set",
        f"output={site.folder}/no",
    ]
    refused = site.run("score", "job.yaml", *words)
    assert refused.returncode == 2, refused.stderr
    assert "did not come within 3 s (ray.node_wait)" in refused.stderr.splitlines()[-1]


def test_the_token_is_nowhere_but_in_its_file(site: TagSite) -> None:
    assert site.cluster.token_file is not None
    token = site.cluster.token_file.read_bytes()
    looked_at = 0
    for folder, _, files in os.walk(site.cluster.folder / "ray"):
        for name in files:
            path = Path(folder) / name
            if (path.is_file() and "/jobs/" in str(path)) or name.startswith("job-driver"):
                assert token not in path.read_bytes(), path
                looked_at += 1
    assert looked_at
    everything = site.jobs("list", "--all", "--json").stdout
    assert token.decode() not in everything
