"""What is asked of a cluster that can start more nodes, and what is said while they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.config import Range, ScoreJob, WorkersConfig
from ray_mlc.errors import ResourceError
from ray_mlc.job_files import load_job
from ray_mlc.runtime import growth
from ray_mlc.runtime.actor_plan import least_needed, plan_actors
from ray_mlc.runtime.growth import Need, describe, plan_or_grow
from ray_mlc.runtime.ray_train import plan_workers, workers_needed
from ray_mlc.runtime.session import NodeResources

COUNTS = (
    st.just("auto") | st.integers(1, 8) | st.builds(Range, min=st.integers(0, 4), max=st.just(9))
)
GPU = [Need(1, 1, {"group": "gpu"})]


class Cluster:
    """What `plan_or_grow` sees of one."""

    def __init__(self, *, there: bool = False, come: bool = True) -> None:
        self.there, self.come, self.asked = there, come, 0

    def plan(self) -> str:
        if not self.there:
            raise ResourceError("no node with GPUs")
        return "planned"

    def grow(self, needs: Any, wait_s: float, say: Any) -> bool:
        self.asked += 1
        self.there = self.come
        return self.come


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[str]]]:
    """Plans on a cluster: what it comes to, and what was said."""

    def run(cluster: Cluster, *, grows: bool = True, wait_s: float | None = 60.0) -> Any:
        said: list[str] = []
        monkeypatch.setattr(growth, "_come", cluster.grow)
        monkeypatch.setattr(growth, "grows", lambda: grows)
        plan = plan_or_grow(cluster.plan, GPU, wait_s=wait_s, say=said.append, settle_s=0)
        return plan, said

    return run


def test_what_is_there_is_not_asked_for(grown: Any) -> None:
    cluster = Cluster(there=True)
    assert grown(cluster) == ("planned", [])
    assert cluster.asked == 0


def test_what_is_not_there_is_asked_for_and_said(grown: Any) -> None:
    cluster = Cluster()
    plan, said = grown(cluster)
    assert plan == "planned"
    assert said == [
        "too little is there: asking for nodes with 1 CPU, 1 GPU, group: gpu, for up to 60 s"
    ]
    assert cluster.asked == 1


@pytest.mark.parametrize("how", [{"grows": False}, {"wait_s": None}])
def test_where_no_nodes_come_nobody_waits_for_them(grown: Any, how: dict[str, Any]) -> None:
    cluster = Cluster()
    with pytest.raises(ResourceError, match=r"^no node with GPUs$"):
        grown(cluster, **how)
    assert cluster.asked == 0


def test_nodes_that_do_not_come_are_named_with_what_was_missing(grown: Any) -> None:
    with pytest.raises(ResourceError) as caught:
        grown(Cluster(come=False))
    assert str(caught.value) == (
        "no node with GPUs; nodes with 1 CPU, 1 GPU, group: gpu were asked for, and did not come "
        "within 60 s (ray.node_wait): see `ray status` on the head"
    )


def test_equal_needs_are_counted() -> None:
    needs = [*[Need(0.5, 1)] * 2, Need(1, labels={"group": "cpu"})]
    assert describe(needs) == "2 × (0.5 CPU, 1 GPU) and 1 CPU, group: cpu"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    count=COUNTS,
    cpus=st.just("auto") | st.sampled_from([0.5, 1.0, 3.0]),
    gpus=st.sampled_from(["auto", 0.0, 0.5, 1.0, 2.0]),
)
def test_a_run_begins_on_exactly_what_was_asked_for(count: Any, cpus: Any, gpus: Any) -> None:
    actors = {"count": count, "cpus": cpus, "gpus": gpus}
    if isinstance(count, Range):
        actors["count"] = {"min": count.min, "max": count.max}
    job = load_job(
        ScoreJob, options={"model": "m", "input": "in", "output": "out", "actors": actors}
    )
    nodes = [NodeResources(need.cpus, need.gpus) for need in least_needed(job)]
    free = NodeResources(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
    plan = plan_actors(job.actors, nodes, free, tokenizer_cpus=job.tokenizers.cpus)
    assert plan.min_count >= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 8) | st.builds(Range, min=st.integers(0, 4), max=st.just(9)),
    cpus=st.just("auto") | st.sampled_from([0.5, 1.0, 3.0]),
    gpus=st.sampled_from(["auto", 0.0, 0.5, 1.0]),
)
def test_a_training_begins_on_exactly_what_was_asked_for(count: Any, cpus: Any, gpus: Any) -> None:
    config = WorkersConfig(count=count, cpus=cpus, gpus=gpus)
    nodes = [NodeResources(need.cpus, need.gpus) for need in workers_needed(config)]
    free = NodeResources(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
    assert plan_workers(config, nodes, free).cpus > 0
