"""A cluster, job files, and the command line beside them: where a user sits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from support.ray_cluster import RayCluster

WAIT_S = 300
"""Longest time that a command may take."""


@dataclass
class Site:
    """A cluster, and a folder in which commands are run."""

    cluster: RayCluster
    folder: Path
    """Relative paths of job files are meant from here."""

    def start(
        self, *words: str, token: bool = True, talk: IO[str] | None = None
    ) -> subprocess.Popen[str]:
        """Start `ray-mlc WORDS`; `talk`: a file for its stderr."""
        with self.cluster.entered():
            return subprocess.Popen(
                [sys.executable, "-m", "ray_mlc", *words],
                env=self.cluster.environment(token=token),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=talk or subprocess.PIPE,
                text=True,
                cwd=self.folder,
            )

    def run(self, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ray-mlc WORDS` to its end."""
        process = self.start(*words, token=token)
        out, err = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def jobs(self, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ray-mlc jobs WORDS` on the cluster."""
        return self.run("jobs", *words, "--address", self.cluster.address, token=token)
