"""Clusters for tests: configs, what is rendered from them, and settings that mean harm."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ray_mlc.cluster.config import ClusterConfig
from ray_mlc.cluster.render import render
from ray_mlc.job_files import load_job

ROOT = Path(__file__).parents[2]
KINDS = ("kuberay", "ray-up", "slurm")
VARIANTS = {
    "defaults": (),
    "CPUs only": ("gpu=null",),
    "no tokenizing nodes": ("cpu.max=0",),
    "no volume": ("volume=null",),
    "on demand, from one": ("gpu.spot=false", "cpu.spot=false", "gpu.min=1", "cpu.min=1"),
    "any GPU, eight each": ("gpu.type=any", "gpu.count=8", "aws.gpu=x.1", "gcp.gpu=y-z-8"),
    "A10G": ("gpu.type=A10G",),
    "Secrets": (
        "storage.secret=bucket-keys",
        "storage.endpoint=http://minio.example.com:9000",
        "storage.region=eu-central-1",
        "images.pull_secret=registry",
        "auth.secret=ray-token",
    ),
    "Google's identity": (
        "storage.root=gs://b/x",
        "storage.identity=tagger@my-project.iam.gserviceaccount.com",
    ),
    "Azure's identity": (
        "storage.root=az://b/x",
        "storage.identity=01234567-89ab-cdef-0123-456789abcdef",
    ),
    "Amazon's identity": ("storage.identity=arn:aws:iam::123456789012:role/tagger",),
    "labels that look like numbers": (
        "labels={team: '1e3', cost: '0o17', 'on': 'y', x: '0x1f', a.example.com/b: ''}",
        "cpu.node_selector={pool: 'true'}",
        "head.node_selector={pool: '1'}",
        "gpu.node_selector={pool: 'null'}",
    ),
    "NFS for all": ("volume.nfs=fs-1.efs.us-west-2.amazonaws.com:/", "volume.create=false"),
    "no token": ("auth.mode=disabled",),
}
"""Settings that a cluster may have, by what they are about."""


def cluster(*overrides: str) -> ClusterConfig:
    """A cluster by its settings."""
    return load_job(ClusterConfig, overrides=overrides)


@cache
def rendered(kind: str, *overrides: str) -> dict[str, str]:
    """The texts of a kind's files."""
    return render(kind, cluster(*overrides))[0]


@cache
def documents(kind: str, *overrides: str) -> dict[str, list[Any]]:
    """The YAML documents of a kind's files: copy them before changing anything."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {
        name: list(yaml.load_all(text, Loader=loader))
        for name, text in rendered(kind, *overrides).items()
        if name.endswith(".yaml")
    }
