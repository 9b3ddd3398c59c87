"""How many actors hold the model, and what each asks for: numbers of nodes in, a pool out.

Ray counts CPUs, and waits for ever where they do not suffice. So the sum of actors, readers,
writers and tokenizers is made before anything is started, and no node is filled by actors alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_mlc.config import ACTORS_PER_NODE, ActorsConfig, Range, ScoreJob
from ray_mlc.errors import ResourceError
from ray_mlc.runtime.growth import Need
from ray_mlc.runtime.session import NodeResources, places

IO_CPUS = 0.25
"""CPUs that a reading or writing task asks for: both mostly wait for storage."""


@dataclass(frozen=True)
class ActorPlan:
    """The actor pool, resolved."""

    min_count: int
    max_count: int
    cpus: float
    """CPUs that each actor asks for."""
    gpus: float
    """GPUs that each actor asks for."""
    threads: int
    """Threads of each actor's engine."""


def plan_actors(
    config: ActorsConfig,
    nodes: Sequence[NodeResources],
    free: NodeResources,
    *,
    tokenizer_cpus: float = 1.0,
) -> ActorPlan:
    """Size the actor pool so that every core works and reading never starves.

    Args:
        config: The job's `actors` section.
        nodes: What each node has.
        free: What is not taken.
        tokenizer_cpus: CPUs of one tokenizer process; there are such only where actors have GPUs.

    Raises:
        ResourceError: If the pool, one reading and one writing task and one tokenizer do not fit:
            Ray would wait for ever.
    """
    all_gpus = sum(node.gpus for node in nodes)
    gpus = (1.0 if all_gpus else 0.0) if config.gpus == "auto" else config.gpus
    workers = [node for node in nodes if node.cpus > 0]
    if not workers:
        raise ResourceError("the cluster has no node with CPUs")
    if gpus:
        others = 2 * IO_CPUS + tokenizer_cpus
        fitting = sum(math.floor(node.gpus / gpus + 1e-6) for node in workers)
        spare = sum(node.cpus for node in workers) - others
        share = min(1.0, max(0.25, spare / max(1, fitting)))
        cpus = share if config.cpus == "auto" else config.cpus
        threads = max(1, int(cpus))
        if fitting < 1:
            most = max(node.gpus for node in workers)
            raise ResourceError(f"actors.gpus is {gpus:g}, but no node has more than {most:g} GPUs")
    else:
        others = 2 * IO_CPUS
        # sized for the largest nodes: they do most of the work, smaller ones hold fewer actors
        largest = max(node.cpus for node in workers)
        per_node = max(1, min(int(largest), ACTORS_PER_NODE))
        share = (largest - 2 * IO_CPUS) / per_node if largest > 2 * IO_CPUS else largest / 2
        # Ray counts in ten-thousandths
        cpus = math.floor(share * 10_000) / 10_000 if config.cpus == "auto" else config.cpus
        threads = max(1, round(cpus + IO_CPUS))
        fitting = sum(math.floor((node.cpus - 2 * IO_CPUS) / cpus + 1e-6) for node in workers)
    low = high = max(1, fitting)
    if isinstance(config.count, Range):
        low, high = max(1, config.count.min), config.count.max
    elif config.count != "auto":
        low = high = config.count
    needed = low * cpus + others
    scarce = needed > free.cpus + 1e-6 or low * gpus > free.gpus + 1e-6
    if scarce or low > places(workers, cpus, gpus):
        asked = f"{low} actor(s) of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        has = f"{free.cpus:g} CPUs" + (f" and {free.gpus:g} GPUs" if gpus else "")
        raise ResourceError(
            f"{asked}, and {others:g} CPU for reading, writing and tokenizing, are more than the "
            f"{has} that are free on {len(workers)} node(s): lower actors.count or actors.cpus"
        )
    if not gpus and config.cpus != "auto":  # which leaves room by itself on nodes that are alike
        asked_cpus = _leaving_room(cpus, workers)
        if low <= places(workers, asked_cpus, 0) and low * asked_cpus + others <= free.cpus:
            cpus = asked_cpus
    return ActorPlan(low, high, cpus, gpus, threads)


def places_on(node: NodeResources, plan: ActorPlan) -> int:
    """Actors that find room on a node beside reading and writing; at least one."""
    # beside GPUs, reading and writing have nodes or cores of their own
    cpus = node.cpus if plan.gpus else node.cpus - 2 * IO_CPUS
    return max(1, places([NodeResources(cpus, node.gpus)], plan.cpus, plan.gpus))


def _leaving_room(cpus: float, nodes: Sequence[NodeResources]) -> float:
    """CPUs to ask for so that no node is ever filled by actors alone: a hair more, or the same.

    Ray starts the actors of a lost node again on those that are left. Where they took all of the
    CPUs there, nothing could be read or written any more, and all would wait for each other.
    """
    changed = True
    while changed:
        changed = False
        for node in nodes:
            held = math.floor(node.cpus / cpus + 1e-6)
            if held and node.cpus - held * cpus < IO_CPUS:
                cpus = (math.floor(node.cpus / held * 10_000) + 1) / 10_000  # one fewer fits
                changed = True
    return cpus


def least_needed(job: ScoreJob) -> list[Need]:
    """What a run cannot begin without; `auto` knows no GPUs but those that are there."""
    actors = job.actors
    gpus = 0.0 if actors.gpus == "auto" else actors.gpus
    cpus = 1.0 if actors.cpus == "auto" else actors.cpus
    if isinstance(actors.count, Range):
        low = max(1, actors.count.min)
    else:
        low = 1 if actors.count == "auto" else actors.count
    needs = [Need(cpus, gpus, actors.labels)] * low
    if gpus:
        needs.append(Need(job.tokenizers.cpus, labels=job.tokenizers.labels))
    return [*needs, Need(2 * IO_CPUS)]
