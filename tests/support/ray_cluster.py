"""Real Ray nodes on this machine: `ray start --block`, each with its own process group and ports.

Several clusters can be up at a time, with and without a token, on the loopback interface or each
node in a network of its own. Only what was started here is ever ended: by the ids of the processes,
never by name.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from support.network import Namespace, Network

OBJECT_STORE_BYTES = 80 * 2**20
"""The least that Ray accepts is enough for tests."""
START_S = 180.0
STARTS = 3
"""Ray gives a node 30 s to appear and no setting for more: on a busy machine it takes another."""
END_S = 3.0
"""Some processes of a node outlive it for longer than any test should wait."""
LOOPBACK = "127.0.0.1"
HEAD_GROUP = "ray.head.default"
HEAD_ID = "f" * 51 + "00000"
"""The one that Ray's autoscaler for tests takes for the head's."""
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Node:
    """A started node."""

    process: subprocess.Popen[bytes]
    """`ray start --block`, leader of a process group of its own."""
    log: Path
    """What it prints."""
    launch: Callable[[], subprocess.Popen[bytes]]
    """Starts it once more."""
    address: str = LOOPBACK
    """Its IP address."""

    @property
    def group(self) -> list[psutil.Process]:
        """The node's living processes, itself last."""
        try:
            own = psutil.Process(self.process.pid)
            return [*own.children(recursive=True), own]
        except psutil.Error:
            return []

    def titles(self) -> list[str]:
        """What its processes call themselves: Ray's workers say what they do."""
        found = []
        for process in self.group:
            with suppress(psutil.Error):
                found.append(" ".join(process.cmdline()[:1]))
        return found

    def kill(self) -> None:
        """Take the node away, as a power cut does."""
        group = self.group
        for process in group:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(group, timeout=10)
        self.process.wait(timeout=10)

    def end(self) -> None:
        """End it in order, and kill what is left."""
        group = self.group
        for process in group[-1:]:
            _send(process, signal.SIGTERM)
        _, left = psutil.wait_procs(group, timeout=END_S)
        for process in left:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=10)
        self.process.wait(timeout=10)


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


@dataclass
class RayCluster:
    """A head, and workers that join it."""

    folder: Path
    """Short path for sockets and logs; removed at the end."""
    token_file: Path | None
    """Where the token is; None: a cluster without one."""
    gcs_port: int
    dashboard_port: int
    extra: Mapping[str, str]
    """More variables of its processes."""
    network: Network | None = None
    """Where its nodes are; None: all on the loopback interface."""
    nodes: list[Node] = field(default_factory=list)
    """The head first."""

    @property
    def address(self) -> str:
        """For `--address` of `jobs`."""
        return f"http://{self.nodes[0].address}:{self.dashboard_port}"

    @property
    def gcs_address(self) -> str:
        """For `--address` of `score`, `train` and `doctor`."""
        return f"{self.nodes[0].address}:{self.gcs_port}"

    def entered(self) -> AbstractContextManager[None]:
        """For the block, be where commands reach it: a machine of the network that is no node."""
        return nullcontext() if self.network is None else self.network.hub.entered()

    @property
    def env(self) -> dict[str, str]:
        """Environment of a command that may use the cluster."""
        return self.environment(token=True)

    def environment(self, *, token: bool = True) -> dict[str, str]:
        """Environment of a command on this machine, with or without the token."""
        dropped = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        result = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "RAY_AUTH_MODE": "token" if self.token_file else "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # on a busy machine its 15 would mean minutes
            "RAY_idle_worker_killing_time_threshold_ms": "300000",  # as docs/operations.md says
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.folder),  # no token of the machine's user is found there
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            **self.extra,
        }
        if self.token_file and token:
            result["RAY_AUTH_TOKEN_PATH"] = str(self.token_file)
        return result

    def add_node(self, *, cpus: int = 2, gpus: int = 0, labels: str | None = None) -> Node:
        """Start a worker and wait until it has joined."""
        return self.add_nodes(1, cpus=cpus, gpus=gpus, labels=labels)[0]

    def add_nodes(
        self, count: int, *, cpus: int = 2, gpus: int = 0, labels: str | None = None
    ) -> list[Node]:
        """Start some workers at a time and wait until all have joined; GPUs are pretended."""
        expected = self.living_nodes() + count
        words = ["--address", self.gcs_address, "--num-cpus", str(cpus)]
        if gpus:
            words += ["--num-gpus", str(gpus)]
        if labels:
            words += ["--labels", labels]
        nodes = [self._start(words) for _ in range(count)]
        for node in nodes:
            self._wait(node, lambda: self.living_nodes() >= expected)
        return nodes

    def start_head(
        self, *, cpus: int, groups: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Node:
        """Start the head and wait until its dashboard answers; `groups`: see `ray_cluster`."""
        place = self._new_place()
        address = place.address if place else LOOPBACK
        words = ["--head", "--port", str(self.gcs_port), "--num-cpus", str(cpus)]
        words += ["--dashboard-host", address, "--dashboard-port", str(self.dashboard_port)]
        extra = {}
        if groups is not None:
            file, extra = self._autoscaling(f"{address}:{self.gcs_port}", groups)
            words += ["--autoscaling-config", str(file)]
        node = self._start(words, place, extra)
        self._wait(node, self._answers)
        return node

    def _new_place(self) -> Namespace | None:
        return self.network.add() if self.network else None

    def _autoscaling(
        self, gcs_address: str, groups: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Path, dict[str, str]]:
        """Config and variables of Ray's autoscaler with nodes that are processes of the head's.

        Ray has it for tests. By its name `fake_multinode` it needs a file that Ray's wheel lacks.
        """
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "fake",
            "max_workers": 4,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 5,
            "head_node_type": HEAD_GROUP,
            "available_node_types": {HEAD_GROUP: head, **groups},
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider"
                ".FakeMultiNodeProvider",
                "gcs_address": gcs_address,
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{f"rsync_{kind}": [] for kind in ("exclude", "filter")},
            **{f"{kind}_commands": [] for kind in ("setup", "initialization")},
            **{f"{kind}_setup_commands": [] for kind in ("head", "worker")},
            **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
            "cluster_synced_files": [],
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        return file, {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_NODE_TYPE_NAME": HEAD_GROUP,
        }

    def _start(
        self,
        words: Sequence[str],
        place: Namespace | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Node:
        place = place or self._new_place()
        address = place.address if place else LOOPBACK
        ports = free_ports(6)
        names = ("node-manager", "object-manager", "runtime-env-agent")
        names += ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export")
        own = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
        number = len(self.nodes)
        # nodes that start at one moment in one folder would give their sockets the same names
        own += ["--temp-dir", str(self.folder / (f"ray{number}" if number else "ray"))]
        log = self.folder / f"node-{number}.log"

        def launch() -> subprocess.Popen[bytes]:
            with log.open("ab") as talk, place.entered() if place else nullcontext():
                return subprocess.Popen(
                    [
                        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                        *("--node-ip-address", address, "--disable-usage-stats"),
                        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
                        *own,
                        *words,
                    ],
                    env=self.env | (extra or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=talk,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self.folder,
                )

        node = Node(launch(), log, launch, address)
        self.nodes.append(node)
        return node

    def _wait(self, node: Node, ready: Callable[[], bool]) -> None:
        deadline, starts, told = time.monotonic() + START_S, 1, 0
        while not ready():
            ended = node.process.poll() is not None
            said = node.log.read_text()
            if ended and "timed out during startup" in said[told:] and starts < STARTS:
                node.process, starts, told = node.launch(), starts + 1, len(said)
                deadline = time.monotonic() + START_S
                continue
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"a node did not start: {node.log.read_text()[-1500:]}")
            time.sleep(0.2)

    def _ask(self, path: str) -> bytes | None:
        headers = {}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {self.token_file.read_text()}"
        request = urllib.request.Request(f"{self.address}{path}", headers=headers)
        try:
            with self.entered(), urllib.request.urlopen(request, timeout=5) as answer:
                return bytes(answer.read())
        except (OSError, urllib.error.URLError):
            return None

    def _answers(self) -> bool:
        return self._ask("/api/version") is not None

    def living_nodes(self) -> int:
        """Nodes that the head counts as alive."""
        return (self._ask("/api/v0/nodes") or b"").count(b'"state": "ALIVE"')


@contextmanager
def ray_cluster(
    *,
    cpus: int = 2,
    workers: int = 0,
    token: bool = True,
    extra: Mapping[str, str] | None = None,
    network: Network | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[RayCluster]:
    """A head and some workers of two logical CPUs each, for the block.

    Args:
        cpus: Logical CPUs of the head.
        workers: Nodes besides it.
        token: Whether it asks for one.
        extra: More variables of its processes.
        network: In which each node gets an address of its own; None: all are on loopback.
        groups: Node types of Ray's autoscaler; None: the cluster has none.
    """
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        token_file = None
        if token:
            token_file = folder / "token"
            token_file.write_text(secrets.token_hex(32))
            token_file.chmod(0o600)
        ports = free_ports(2)
        cluster = RayCluster(folder, token_file, *ports, extra or {}, network)
        stack.callback(lambda: [node.end() for node in reversed(cluster.nodes)])
        cluster.start_head(cpus=cpus, groups=groups)
        if workers:
            cluster.add_nodes(workers)
        yield cluster


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, outside the range in which Ray's workers take theirs."""
    found: list[int] = []
    port = 20_000 + secrets.randbelow(10_000)
    while len(found) < count:
        port += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
