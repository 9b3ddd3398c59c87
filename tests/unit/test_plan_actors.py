from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ray_mlc.config import ActorsConfig, Range, TokenizersConfig, WorkersConfig
from ray_mlc.errors import ModelError, RayMlcError, ResourceError
from ray_mlc.runtime.actor_plan import IO_CPUS, plan_actors
from ray_mlc.runtime.ray_data import RayBackend
from ray_mlc.runtime.ray_errors import own_errors
from ray_mlc.runtime.ray_train import plan_workers
from ray_mlc.runtime.session import NodeResources, carrying, places

NODES = st.lists(
    st.builds(NodeResources, cpus=st.integers(1, 64).map(float), gpus=st.just(0.0)),
    min_size=1,
    max_size=4,
)
GPU_NODES = st.lists(
    st.builds(
        NodeResources,
        cpus=st.integers(1, 64).map(float),
        gpus=st.integers(0, 8).map(float),
    ),
    min_size=1,
    max_size=4,
)
COUNTS = st.just("auto") | st.integers(1, 20) | st.builds(Range, min=st.just(1), max=st.just(9))


def total(nodes: list[NodeResources]) -> NodeResources:
    return NodeResources(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))


def machine(cpus: float, gpus: float = 0.0) -> tuple[list[NodeResources], NodeResources]:
    nodes = [NodeResources(cpus, gpus)]
    return nodes, total(nodes)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nodes=NODES)
def test_auto_leaves_room_to_read_and_write_and_fits_on_the_nodes(
    nodes: list[NodeResources],
) -> None:
    plan = plan_actors(ActorsConfig(), nodes, total(nodes))
    assert plan.min_count == plan.max_count >= len(nodes)
    assert plan.max_count * plan.cpus + 2 * IO_CPUS <= total(nodes).cpus + 1e-6
    assert plan.max_count <= places(nodes, plan.cpus, 0)
    # each node keeps room of its own: reading and writing happen wherever they are put
    beside = [NodeResources(node.cpus - 2 * IO_CPUS, 0) for node in nodes]
    assert plan.max_count == places(beside, plan.cpus, 0)


def test_a_model_that_runs_on_cpus_alone_leaves_gpus_to_others(
    tiny_tfidf: Path, tiny_model: Path, score_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, free = machine(8, gpus=2)
    monkeypatch.setattr("ray_mlc.runtime.ray_data.cluster_nodes", lambda: nodes)
    monkeypatch.setattr("ray_mlc.runtime.ray_data.free_resources", lambda: free)
    gpus = [
        RayBackend._plan([score_job("in", "out", model=model)]).gpus
        for model in (tiny_tfidf, tiny_model)
    ]
    assert gpus == [0, 1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    nodes=GPU_NODES,
    count=COUNTS,
    cpus=st.just("auto") | st.sampled_from([0.5, 1.0, 3.0, 17.0]),
    gpus=st.sampled_from(["auto", 0.0, 0.5, 1.0, 2.0]),
)
def test_what_is_planned_fits_and_what_is_refused_is_said_in_one_line(
    nodes: list[NodeResources], count: Any, cpus: Any, gpus: Any
) -> None:
    free = total(nodes)
    try:
        plan = plan_actors(ActorsConfig(count=count, cpus=cpus, gpus=gpus), nodes, free)
    except ResourceError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "\n" not in refusal
        assert "CPU" in refusal or "GPU" in refusal
        return
    assert 1 <= plan.min_count <= plan.max_count
    assert plan.min_count * plan.cpus + 2 * IO_CPUS <= free.cpus + 1e-6
    assert plan.min_count <= places(nodes, plan.cpus, plan.gpus)
    assert plan.threads >= 1
    if isinstance(count, int):
        assert (plan.min_count, plan.max_count) == (count, count)
    if isinstance(count, Range):
        assert plan.max_count == count.max
    if cpus != "auto":
        assert plan.cpus >= cpus


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nodes=NODES, cpus=st.sampled_from([0.5, 0.75, 1.0, 2.0, 3.0]))
def test_actors_of_a_lost_node_cannot_fill_those_that_are_left(
    nodes: list[NodeResources], cpus: float
) -> None:
    config = ActorsConfig(count=1, cpus=cpus)
    assume(len(nodes) > 1 and max(node.cpus for node in nodes) >= cpus + 2 * IO_CPUS)
    plan = plan_actors(config, nodes, total(nodes))
    assert plan.cpus < cpus + 1
    for node in nodes:
        held = places([node], plan.cpus, 0)
        assert not held or node.cpus - held * plan.cpus >= IO_CPUS  # one of them at a time


def test_actors_as_large_as_their_nodes_are_left_as_they_are() -> None:
    nodes = [NodeResources(1, 0)] * 2
    assert plan_actors(ActorsConfig(count=1, cpus=1.0), nodes, total(nodes)).cpus == 1.0


@pytest.mark.parametrize(
    ("cpus", "count", "threads"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (64, 8, 8), (16, 8, 2)]
)
def test_all_cores_of_a_machine_work(cpus: int, count: int, threads: int) -> None:
    plan = plan_actors(ActorsConfig(), *machine(cpus))
    assert (plan.max_count, plan.threads) == (count, threads)


def test_too_many_actors_are_refused_naming_what_is_free() -> None:
    with pytest.raises(ResourceError, match=r"5 actor\(s\) of 1 CPU.*4 CPUs that are free"):
        plan_actors(ActorsConfig(count=5, cpus=1.0), *machine(4))
    nodes, _ = machine(4)
    with pytest.raises(ResourceError, match=r"the 1 CPUs that are free"):
        plan_actors(ActorsConfig(count=2, cpus=1.0), nodes, NodeResources(1.0, 0.0))


def test_an_actor_larger_than_any_node_is_refused() -> None:
    nodes = [NodeResources(4, 0)] * 3
    with pytest.raises(ResourceError, match=r"of 6 CPU.* on 3 node"):
        plan_actors(ActorsConfig(count=1, cpus=6.0), nodes, total(nodes))
    one_each = [NodeResources(8, 1)] * 2
    with pytest.raises(ResourceError, match=r"actors.gpus is 2, but no node has more than 1"):
        plan_actors(ActorsConfig(gpus=2.0), one_each, total(one_each))


def test_gpus_are_taken_one_each_where_there_are_any() -> None:
    plan = plan_actors(ActorsConfig(), *machine(32, 4))
    assert (plan.min_count, plan.max_count, plan.gpus) == (4, 4, 1)
    assert plan_actors(ActorsConfig(gpus=0.5), *machine(32, 4)).max_count == 8
    assert plan_actors(ActorsConfig(gpus=0.0), *machine(32, 4)).gpus == 0


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(ResourceError, match="no node with CPUs"):
        plan_actors(ActorsConfig(), [NodeResources(0, 0)], NodeResources(0, 0))


# Workers of a training


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    nodes=GPU_NODES, count=st.integers(1, 12), cpus=st.just("auto") | st.sampled_from([1.0, 5.0])
)
def test_workers_fit_on_the_nodes_or_are_refused_in_one_line(
    nodes: list[NodeResources], count: int, cpus: Any
) -> None:
    try:
        plan = plan_workers(WorkersConfig(count=count, cpus=cpus), nodes, total(nodes))
    except ResourceError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "\n" not in refusal
        assert f"{count} worker(s)" in refusal
        size = 1.0 if cpus == "auto" else cpus
        gpus = 1.0 if total(nodes).gpus else 0.0
        assert places(nodes, size, gpus) < count
        return
    assert plan.count == count <= places(nodes, plan.cpus, plan.gpus)
    assert plan.threads <= plan.cpus


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cpus=st.integers(1, 64), count=st.integers(1, 8))
def test_workers_share_the_cpus_of_a_machine(cpus: int, count: int) -> None:
    assume(count <= cpus)
    plan = plan_workers(WorkersConfig(count=count), *machine(cpus))
    assert plan.cpus == cpus // count


def test_one_worker_takes_one_node_not_two() -> None:
    nodes = [NodeResources(4, 0), NodeResources(6, 0)]
    assert plan_workers(WorkersConfig(), nodes, total(nodes)).cpus == 6


def test_an_elastic_group_starts_with_its_smallest_size() -> None:
    config = WorkersConfig(count=Range(min=2, max=8))
    assert plan_workers(config, *machine(4)).count == (2, 8)
    with pytest.raises(ResourceError, match=r"2 worker\(s\) of 1 CPU .*1 CPUs that are free"):
        plan_workers(config, *machine(1))


def test_a_worker_per_gpu() -> None:
    plan = plan_workers(WorkersConfig(count=2), *machine(16, 2))
    assert (plan.gpus, plan.cpus) == (1, 8)
    with pytest.raises(ResourceError, match=r"3 worker\(s\) of .* and 1 GPU .*2 GPUs"):
        plan_workers(WorkersConfig(count=3), *machine(16, 2))


# Errors from other processes


def test_an_error_of_ours_leaves_ray_as_itself_on_one_line() -> None:
    from ray.exceptions import RayTaskError

    raised = RayTaskError("work", "a trace\nof lines", ModelError("one line")).as_instanceof_cause()
    with pytest.raises(ModelError) as caught, own_errors():
        raise raised
    assert (type(caught.value), str(caught.value)) == (ModelError, "one line")


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError) as caught, own_errors():
        raise ZeroDivisionError("bug")
    assert not isinstance(caught.value, RayMlcError)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, [0, 1, 2]),
        ({"group": "gpu"}, [0]),
        ({"group": "!gpu"}, [1, 2]),  # Ray lets pass what has no such label
        ({"group": "in(gpu,cpu)"}, [0, 1]),
        ({"group": "in(gpu, cpu)"}, [0]),  # to Ray 2.60 the second value is " cpu"
        ({"group": "!in(gpu,cpu)"}, [2]),
        ({"group": "gpu", "zone": "b"}, []),
        ({"colour": "red"}, []),
    ],
)
def test_labels_choose_nodes_as_ray_does(selector: dict[str, str], expected: list[int]) -> None:
    nodes = [
        NodeResources(4, 1, {"group": "gpu", "zone": "a"}),
        NodeResources(4, 0, {"group": "cpu", "zone": "b"}),
        NodeResources(4, 0),
    ]
    assert carrying(nodes, selector) == [nodes[index] for index in expected]


@pytest.mark.parametrize(
    ("count", "labels", "sizes"),
    [
        ("auto", {}, (1, 12)),
        ("auto", {"group": "cpu"}, (1, 4)),  # nodes with GPUs have CPUs as well: not for it
        ("auto", {"group": "none"}, (1, 1)),
        ({"min": 0, "max": 56}, {"group": "cpu"}, (1, 56)),  # nodes that are still to come
        (3, {}, (3, 3)),
    ],
)
def test_tokenizers_are_counted_on_the_nodes_that_they_may_use(
    count: Any, labels: dict[str, str], sizes: tuple[int, int]
) -> None:
    from ray_mlc.runtime.ray_data import tokenizer_pool

    config = TokenizersConfig.model_validate({"count": count, "labels": labels})
    nodes = [
        NodeResources(8, 0, {"group": "cpu"}),
        NodeResources(16, 4, {"group": "gpu"}),
    ]
    pool = tokenizer_pool(config, nodes)
    assert (pool.min_size, pool.max_size) == sizes
