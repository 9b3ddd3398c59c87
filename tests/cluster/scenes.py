"""What is done with a cluster of real processes, and what has to hold afterwards.

A scene submits a job as a user does, waits until it is in the middle of its work, kills a node that
works for it, and looks at what comes out. The short form in `make test` and the long one, `make
cluster-test`, play the same scenes.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from support.job_site import Site
from support.ray_cluster import Node

HELPERS = ("ray::Pulse", "ray::Monitor")
POLL_S = 0.2
WAIT_S = 900.0
"""Longest time that a job may take to be in the middle of its work, and to end."""


class BrokenPromiseError(AssertionError):
    """Something did not hold."""


def expect(holds: object, what: str) -> None:
    """Hold a promise to account."""
    if not holds:
        raise BrokenPromiseError(what)


@dataclass
class Played:
    """What a scene came to, for the protocol."""

    seconds: float
    lines: list[str] = field(default_factory=list)
    """Of the job's log, those that tell what happened."""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Scene:
    """A job, and the node that it loses."""

    site: Site
    tell: Callable[[str], None]

    def refuse_without_token(self, job: str) -> Played:
        """Without the token nothing is submitted, and one line says why."""
        started = time.monotonic()
        done = self.site.jobs("submit", job, token=False)
        lines = done.stderr.splitlines()
        expect(done.returncode == 2, f"exit {done.returncode} without a token: {done.stderr}")
        expect(len(lines) == 1, f"one line, not {len(lines)}: {done.stderr}")
        expect("asks for a token, and none was sent" in lines[0], lines[0])
        return Played(time.monotonic() - started, lines)

    def lose_a_node(
        self, job: str, *, process: str, when: Callable[[], bool], keys: Sequence[str]
    ) -> Played:
        """Submit a job and follow it; kill a node that works for it when it is time.

        Args:
            job: Its file.
            process: Word in the titles of the processes that do its work.
            when: Whether it is in the middle of its work.
            keys: Words of the log's lines that the protocol shows; each must be there.
        """
        started = time.monotonic()
        with self._followed(job) as (process_of_client, log):
            self._wait(when, process_of_client, log)
            self._expect_helpers_on_the_head()
            node = self._working_node(process)
            self.tell(f"killing node {node.address}, process group {node.process.pid}")
            killed_s = time.monotonic() - started
            node.kill()
            process_of_client.wait(timeout=WAIT_S)
        text = log.read_text()
        expect(process_of_client.returncode == 0, f"exit {process_of_client.returncode}: {text}")
        for key in keys:
            expect(key in text, f"the log does not say {key!r}: {text}")
        lines = [line for line in text.splitlines() if any(key in line for key in keys)]
        seconds = time.monotonic() - started
        return Played(seconds, lines, {"killed after s": round(killed_s, 1)})

    def run_to_its_end(self, job: str) -> Played:
        """Submit a job that nothing happens to."""
        started = time.monotonic()
        with self._followed(job) as (client, log):
            client.wait(timeout=WAIT_S)
        expect(client.returncode == 0, f"exit {client.returncode}: {log.read_text()}")
        return Played(time.monotonic() - started, log.read_text().splitlines()[-1:])

    def verify(self, output: str, rows: int, *options: str) -> str:
        """Each input row is there once, as the command says."""
        done = self.site.run("verify", output, "--json", *options)
        expect(done.returncode == 0, f"verify: exit {done.returncode}: {done.stdout}{done.stderr}")
        found = json.loads(done.stdout)
        expect(found["holds"] and found["complete"], done.stdout)
        total = found["rows"]["planned"]
        expect(total == rows, f"verify knows {total} rows, the corpus has {rows}")
        return f"verify {output}: {found['rows']}"

    @contextmanager
    def _followed(self, job: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        """`jobs submit --follow`, with what it prints in a file."""
        log = self.site.folder / f"{Path(job).stem}.log"
        words = ("jobs", "submit", job, "--follow", "--address", self.site.cluster.address)
        with log.open("w") as talk:
            client = self.site.start(*words, talk=talk)
            try:
                yield client, log
            finally:
                if client.poll() is None:
                    client.kill()
                client.communicate()  # closes its streams

    def _wait(self, when: Callable[[], bool], client: subprocess.Popen[str], log: Path) -> None:
        deadline = time.monotonic() + WAIT_S
        while not when():
            ended = client.poll() is not None
            expect(not ended, f"the job ended before its node was killed: {log.read_text()}")
            expect(time.monotonic() < deadline, f"nothing for {WAIT_S:.0f} s: {log.read_text()}")
            time.sleep(POLL_S)

    def _expect_helpers_on_the_head(self) -> None:
        """What the driver asks how the work stands is not lost with a worker node."""
        head, *workers = self.site.cluster.nodes
        expect(
            any(name.startswith(HELPERS) for name in head.titles()),
            f"none of {HELPERS} on the head",
        )
        for node in workers:
            lost = [name for name in node.titles() if name.startswith(HELPERS)]
            expect(not lost, f"{lost} on {node.address}, which may be lost")

    def _working_node(self, process: str) -> Node:
        """A worker node on which such a process runs."""
        for node in self.site.cluster.nodes[1:]:
            if any(process in name for name in node.titles()):
                return node
        raise BrokenPromiseError(f"no node runs a process {process!r}")


def write_job(path: Path, job: dict[str, Any]) -> None:
    """A job file."""
    path.write_text(yaml.safe_dump(job, sort_keys=False))
