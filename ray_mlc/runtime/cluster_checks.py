"""What would fail tonight on a cluster: nodes that differ, folders that are not shared.

`session` connects as the commands do; the nodes say what they are made of (`nodes`), and plain
functions judge it.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ray_mlc.config import ActorsConfig
from ray_mlc.errors import RayMlcError, ResourceError
from ray_mlc.runtime.doctor import Check
from ray_mlc.runtime.growth import grows
from ray_mlc.runtime.nodes import NodeFacts, node_facts, write_from_every_node
from ray_mlc.runtime.session import NodeResources, cluster_nodes, free_resources, ray_session
from ray_mlc.storage import local_path

STRANGER_S = 10.0
"""Longest wait for the dashboard's answer."""
SHOWN = 3
"""Nodes that are named in one finding."""
Facts = Mapping[str, NodeFacts | RayMlcError]


def check_cluster(address: str | None, output: str | None) -> Iterator[Check]:
    """Look at a cluster: its token, its nodes, the way to the output from each of them.

    Args:
        address: Of the cluster; None: `RAY_ADDRESS`.
        output: Folder to write to from every node.
    """
    from ray_mlc.runtime.ray_private import check_version, dashboard_of_head

    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        check_version()
        started = time.monotonic()
        with ray_session(address):
            facts = node_facts()
            seconds = time.monotonic() - started
            yield check_answers(_resolved(address), facts, seconds)
            yield check_token(_answer_without_token(dashboard_of_head()))
            yield check_versions(facts)
            yield from check_gpus(facts)
            yield check_room(cluster_nodes(), free_resources(), grows=grows())
            if output is not None:
                yield _shared(output, facts)
    except RayMlcError as error:
        yield Check("ray", "fails", str(error))


def _resolved(address: str) -> str:
    """An address as it was given, and where it has led: `auto` may find a Ray of others."""
    import ray

    found = ray.get_runtime_context().gcs_address
    return address if found == address else f"{address} ({found})"


def check_answers(address: str, facts: Facts, seconds: float) -> Check:
    """Whether each node ran a task."""
    silent = [(name, answer) for name, answer in facts.items() if isinstance(answer, RayMlcError)]
    if silent:
        name, error = silent[0]
        more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
        return Check(
            "ray",
            "fails",
            f"{address}: node {name}{more} runs no tasks: {error}: is ray-mlc installed there, as "
            "on the head? see Ray's logs on that node",
        )
    good = [answer for answer in facts.values() if isinstance(answer, NodeFacts)]
    cpus, gpus = sum(node.cpus for node in good), sum(node.gpus for node in good)
    return Check(
        "ray",
        "ok",
        f"cluster {address}: {len(good)} node(s), {cpus:g} CPUs, {gpus:g} GPUs; a task ran on each "
        f"after {seconds:.1f} s",
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keeps an answer that sends elsewhere: it is not the head's."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Do not follow."""


def _answer_without_token(dashboard: str | None) -> int | None:
    """The HTTP status with which a dashboard answers a stranger; None: it cannot be asked."""
    if dashboard is None:
        return None
    # directly: a proxy's refusal would be taken for the head's
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(f"http://{dashboard}/api/version", timeout=STRANGER_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


def check_token(answer: int | None) -> Check:
    """Whether the cluster asks who comes; that it let us in is known by now.

    Args:
        answer: HTTP status with which its dashboard answers without a token; None: not known.
    """
    advice = "start its nodes with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes one)"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return Check(
            "token",
            "warning",
            "no token is asked for: whoever reaches the cluster can run code on it: " + advice,
        )
    if answer == 401:
        return Check("token", "ok", "joined with a token; the head refuses who has none")
    if answer == 200:
        return Check(
            "token",
            "fails",
            "RAY_AUTH_MODE=token is set here, and the head answers without a token all the same: "
            f"whoever reaches the cluster can run code on it: {advice}",
        )
    return Check(
        "token",
        "warning",
        "joined with a token; whether others are refused is not known, for the head's dashboard "
        "does not say so from here: see that RAY_AUTH_MODE=token was set where it was started",
    )


def check_versions(facts: Facts) -> Check:
    """Whether all nodes have the same packages: actors and parts would differ."""
    nodes = {name: answer for name, answer in facts.items() if isinstance(answer, NodeFacts)}
    packages = list(dict.fromkeys(key for node in nodes.values() for key in node.versions))
    for package in packages:
        has = {name: node.versions.get(package, "absent") for name, node in nodes.items()}
        if len(set(has.values())) > 1:
            usual = Counter(has.values()).most_common(1)[0][0]
            odd = [f"{name} has {found}" for name, found in has.items() if found != usual]
            return Check(
                "versions",
                "fails",
                f"{package} is {usual}, but {_some(odd)}: install the same on every node, best by "
                "one image",
            )
    shown = ("ray-mlc", "ray", "torch", "transformers", "python")
    first = next(iter(nodes.values()), None)
    known = "" if first is None else ", ".join(f"{key} {first.versions[key]}" for key in shown)
    return Check("versions", "ok", f"alike on {len(nodes)} node(s): {known}")


def check_gpus(facts: Facts) -> Iterator[Check]:
    """Whether the GPUs that Ray counts work, and those that are there are counted."""
    nodes = {name: answer for name, answer in facts.items() if isinstance(answer, NodeFacts)}
    if broken := [f"{name}: {node.cuda}" for name, node in nodes.items() if not node.cuda_works]:
        yield Check(
            "gpus",
            "fails",
            f"{_some(broken)}: install the CUDA build of torch there and see that `nvidia-smi` "
            "works, or start the node with --num-gpus 0",
        )
        return
    uncounted = [
        f"{name} has {node.gpus_present}, Ray counts {node.gpus:g}"
        for name, node in nodes.items()
        if node.gpus_present > node.gpus
    ]
    if uncounted:
        yield Check(
            "gpus", "warning", f"{_some(uncounted)}: start the node with --num-gpus to use them"
        )
        return
    seen = Counter(node.cuda for node in nodes.values() if node.cuda)
    kinds = ", ".join(f"{kind} on {count} node(s)" for kind, count in seen.items())
    yield Check("gpus", "ok", kinds or "none: models run on CPUs")


def check_room(nodes: list[NodeResources], free: NodeResources, *, grows: bool = False) -> Check:
    """Whether a scoring run of default size fits, with CPUs left for reading and writing.

    Args:
        nodes: What each node has.
        free: What is free of all of it.
        grows: Whether the cluster starts nodes that are asked for.
    """
    from ray_mlc.runtime.actor_plan import IO_CPUS, plan_actors

    try:
        plan = plan_actors(ActorsConfig(), nodes, free)
    except ResourceError as error:
        if grows:
            return Check(
                "room",
                "ok",
                "nothing fits into the nodes that are there, and the cluster starts others: jobs "
                "ask for them, and wait for up to ray.node_wait",
            )
        return Check("room", "fails", f"{error}, or wait for what runs there")
    if plan.gpus and free.cpus - plan.max_count * plan.cpus < plan.max_count:
        return Check(
            "room",
            "warning",
            f"{plan.max_count} GPU actor(s) leave {free.cpus - plan.max_count * plan.cpus:g} CPUs "
            "for tokenizing and reading, less than one for each: GPUs may wait; add CPU nodes",
        )
    return Check(
        "room",
        "ok",
        f"{plan.max_count} actor(s) of {plan.cpus:g} CPU and {plan.gpus:g} GPU fit, and "
        f"{2 * IO_CPUS:g} CPUs at least stay for reading and writing",
    )


def _shared(output: str, facts: Facts) -> Check:
    """Whether every node writes to the same output."""
    if local_path(output) is not None and len(facts) > 1:
        advice = "mount one file system at that place on all nodes, or name s3://, gs://, az://"
    else:
        advice = "see that its credentials, network and rights are those of this node"
    try:
        wrong = write_from_every_node(output)
    except RayMlcError as error:
        return Check("shared output", "fails", str(error))
    bad = [f"node {name} {error}" for name, error in wrong.items() if error is not None]
    if bad:
        return Check("shared output", "fails", f"{output}: {_some(bad)}: {advice}")
    return Check("shared output", "ok", f"{output}: written and seen from {len(wrong)} node(s)")


def _some(items: list[str]) -> str:
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
