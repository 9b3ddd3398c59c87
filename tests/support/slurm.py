"""Slurm on one machine: stand-ins for what a batch script calls, each a few lines of shell."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SRUN = """#!/bin/bash
# the step runs here; --nodelist says where it would
while [[ $1 == --* ]]; do
    case $1 in --nodelist=*) export SLURMD_NODENAME=${1#*=} ;; esac
    shift
done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$LOG"
if [[ "$1 $2" == "show hostnames" ]]; then printf '%s\\n' ${NODES:-n1 n2}; fi
if [[ $1 == requeue ]]; then ls -A "$SLURM_SUBMIT_DIR" | grep -c '^.ray-mlc' >>"$LOG" || true; fi
"""
RAY = """#!/bin/bash
# begins to listen, and ends when told to
mode=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")
echo "ray $SLURMD_NODENAME $* mode=$RAY_AUTH_MODE token=$mode" >>"$LOG"
[[ $SLURMD_NODENAME == "${BROKEN:-}" ]] && exit 1
for word; do case $word in --temp-dir=*) folder=${word#*=} ;; esac; done
trap 'echo "ray $SLURMD_NODENAME ended" >>"$LOG"; kill $sleep; exit 143' TERM
[[ "$*" == *--head* ]] && echo 127.0.0.1:4321 >"$folder/ray_current_cluster"
sleep 600 & sleep=$!
wait
"""
RAY_MLC = """#!/bin/bash
echo "ray-mlc $*" >>"$LOG"
trap 'echo "ray-mlc asked to stop" >>"$LOG"; sleep 0.4; exit ${STOPPED:-130}' TERM
echo begun >>"$LOG"
for ((i = 0; i < ${SECONDS_OF_WORK:-0} * 10; i++)); do sleep 0.1; done
echo "ray-mlc done" >>"$LOG"
exit "${CODE:-0}"
"""
PYTHON = """#!/bin/bash
# what is read from stdin asks a real Ray for its nodes: here the log says which have begun
if [[ $1 == - ]]; then
    until (($(grep -c '^ray n. start' "$LOG") >= $3)); do sleep 0.05; done
    exit 0
fi
exec {python} "$@"
"""


def make_tools(folder: Path, **tools: str) -> Path:
    """A folder with executables: those above, or others in their place."""
    folder.mkdir(parents=True)
    texts = {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "ray": RAY,
        "ray-mlc": RAY_MLC,
        "python": PYTHON.format(python=sys.executable),
    }
    for name, text in (texts | tools).items():
        path = folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def sbatch(
    script: Path, tools: Path, submit: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a batch script as Slurm would on the first node of an allocation."""
    variables = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(submit.parent),
        "LOG": str(log),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_SUBMIT_DIR": str(submit),
        "SLURM_CPUS_PER_TASK": "1",
        **environment,
    }
    return subprocess.Popen(
        ["bash", str(script)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
