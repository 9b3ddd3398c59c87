"""Real Ray nodes on this machine: `ray start --block`, each with its own process group and ports.

Several clusters can be up at a time, with and without a token. Only what was started here is ever
ended: by the ids of the processes, never by name.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

OBJECT_STORE_BYTES = 80 * 2**20
"""The least that Ray accepts is enough for tests."""
START_S = 90.0
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Node:
    """A started node."""

    process: subprocess.Popen[bytes]
    """`ray start --block`, leader of a process group of its own."""
    log: Path
    """What it prints."""

    @property
    def group(self) -> list[psutil.Process]:
        """The node's living processes, itself last."""
        try:
            own = psutil.Process(self.process.pid)
            return [*own.children(recursive=True), own]
        except psutil.Error:
            return []

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
        _, left = psutil.wait_procs(group, timeout=10)
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
    nodes: list[Node] = field(default_factory=list)
    """The head first."""

    @property
    def address(self) -> str:
        """For `--address` of `jobs`."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def gcs_address(self) -> str:
        """For `--address` of `score`, `train` and `doctor`."""
        return f"127.0.0.1:{self.gcs_port}"

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
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.folder),  # no token of the machine's user is found there
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            **self.extra,
        }
        if self.token_file and token:
            result["RAY_AUTH_TOKEN_PATH"] = str(self.token_file)
        return result

    def add_node(self, *, cpus: int = 2, labels: str | None = None) -> Node:
        """Start a worker and wait until it has joined."""
        before = self.living_nodes()
        words = ["--address", self.gcs_address, "--num-cpus", str(cpus)]
        if labels:
            words += ["--labels", labels]
        node = self._start(words)
        self._wait(node, lambda: self.living_nodes() > before)
        return node

    def start_head(self, *, cpus: int) -> Node:
        """Start the head and wait until its dashboard answers."""
        words = ["--head", "--port", str(self.gcs_port), "--num-cpus", str(cpus)]
        words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard_port)]
        words += ["--temp-dir", str(self.folder / "ray")]
        node = self._start(words)
        self._wait(node, self._answers)
        return node

    def _start(self, words: list[str]) -> Node:
        ports = free_ports(6)
        names = ("node-manager", "object-manager", "runtime-env-agent")
        names += ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export")
        own = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as talk:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                    *("--node-ip-address", "127.0.0.1", "--disable-usage-stats"),
                    *("--object-store-memory", str(OBJECT_STORE_BYTES)),
                    *own,
                    *words,
                ],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=talk,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
            )
        node = Node(process, log)
        self.nodes.append(node)
        return node

    def _wait(self, node: Node, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            ended = node.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"a node did not start: {node.log.read_text()[-1500:]}")
            time.sleep(0.2)

    def _ask(self, path: str) -> bytes | None:
        headers = {}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {self.token_file.read_text()}"
        request = urllib.request.Request(f"{self.address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
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
    *, cpus: int = 2, workers: int = 0, token: bool = True, extra: Mapping[str, str] | None = None
) -> Iterator[RayCluster]:
    """A head with `cpus` logical CPUs and some workers of two each, for the block."""
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        token_file = None
        if token:
            token_file = folder / "token"
            token_file.write_text(secrets.token_hex(32))
            token_file.chmod(0o600)
        ports = free_ports(2)
        cluster = RayCluster(folder, token_file, *ports, extra or {})
        stack.callback(lambda: [node.end() for node in reversed(cluster.nodes)])
        cluster.start_head(cpus=cpus)
        for _ in range(workers):
            cluster.add_node()
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
