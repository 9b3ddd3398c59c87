"""Clusters that grow: nodes of a group that begins at 0 come when they are asked for.

A run is planned from the nodes that are there. Where they are too few, and the cluster is one whose
autoscaler starts others, what the run needs at least is asked for as a placement group; as soon as
Ray has put it somewhere, the nodes are there, and it is given back. Not by `request_resources`:
that is one request for the whole cluster, in which jobs overwrite each other, and it outlives a
driver that is killed, so that its nodes would be paid for until somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import ray

from ray_mlc.errors import ResourceError
from ray_mlc.runtime.nodes import telling_changes

GROUP_LABEL = "ray.io/node-group"
"""Ray's own label of nodes that a launcher or operator has started as one of a group."""
LOOK_S = 2.0
SETTLE_S = 5.0
"""Seconds that resources of work that has just ended may take to come free."""
Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Need:
    """What one process needs of a node."""

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the node must carry."""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray counts them."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in amounts.items() if amount}


def grows() -> bool:
    """Whether somebody may start more nodes of the connected cluster.

    Nodes of Kubernetes and of `ray up` say which group they are of; those of a plain `ray start`
    are of none, and no others come.
    """
    return any(GROUP_LABEL in node.get("Labels", {}) for node in ray.nodes() if node["Alive"])


def plan_or_grow(
    plan: Callable[[], Plan],
    needs: Sequence[Need],
    *,
    wait_s: float | None,
    say: Callable[[str], None],
    settle_s: float = SETTLE_S,
) -> Plan:
    """Plan; where too little is there for it, let the cluster grow, and plan again.

    Args:
        plan: Plans from what is there, or raises `ResourceError`.
        needs: What has to be there at least, all of it at a time.
        wait_s: Longest time that the nodes may take to come; None: they are not asked for.
        say: Told what is waited for.
        settle_s: Longest time for which too little is taken for work that has only just ended.

    Raises:
        ResourceError: What `plan` says, if the cluster does not grow, or not in time.
    """
    try:
        return _settled(plan, settle_s)
    except ResourceError as error:
        if wait_s is None or not grows():
            raise
        shown = describe(needs)
        say(f"too little is there: asking for nodes with {shown}, for up to {wait_s:.0f} s")
        if not _come(needs, wait_s, say):
            raise ResourceError(
                f"{error}; nodes with {shown} were asked for, and did not come within "
                f"{wait_s:.0f} s (ray.node_wait): see `ray status` on the head"
            ) from None
    return _settled(plan, SETTLE_S)  # what was held for it is just being given back


def _settled(plan: Callable[[], Plan], settle_s: float) -> Plan:
    """Plan; what ran before in this Ray, such as training, may still be giving back CPUs."""
    deadline = time.monotonic() + settle_s
    while True:
        try:
            return plan()
        except ResourceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _come(needs: Sequence[Need], wait_s: float, say: Callable[[str], None]) -> bool:
    """Whether there is a place for all of it in time."""
    deadline = time.monotonic() + wait_s
    group = ray.util.placement_group(
        [need.resources for need in needs],
        bundle_label_selector=[dict(need.labels) for need in needs],
    )
    try:
        with telling_changes(say):
            while time.monotonic() < deadline:
                if group.wait(timeout_seconds=min(LOOK_S, wait_s)):
                    return True
        return False
    finally:
        with suppress(ray.exceptions.RayError):
            ray.util.remove_placement_group(group)


def describe(needs: Sequence[Need]) -> str:
    """What is needed, in a few words: `2 × (1 CPU, 1 GPU, ray-mlc.io/group: gpu)`."""
    shown: dict[str, int] = {}
    for need in needs:
        words = [f"{amount:g} {name}" for name, amount in need.resources.items()]
        words += [f"{key}: {value}" for key, value in need.labels.items()]
        text = ", ".join(words)
        shown[text] = shown.get(text, 0) + 1
    return " and ".join(
        f"{count} × ({text})" if count > 1 else text for text, count in shown.items()
    )
