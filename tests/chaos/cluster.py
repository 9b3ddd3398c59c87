"""A Ray of three nodes on this machine: a head without CPUs and two workers, until stdin ends."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Start, say address and raylet processes in one line of JSON, wait, end."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20  # the least that Ray accepts is enough here
    head = {"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
    cluster.wait_for_nodes()
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
