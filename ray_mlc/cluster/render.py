"""From a cluster's config to files: YAML is dumped from data, and written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ray_mlc.cluster.config import BUCKET, IMAGE, ClusterConfig, GcpConfig, SshConfig
from ray_mlc.cluster.kuberay import render_kuberay
from ray_mlc.cluster.ray_up import render_ray_up
from ray_mlc.cluster.rendered import Rendered
from ray_mlc.cluster.slurm import render_slurm
from ray_mlc.errors import ConfigError
from ray_mlc.storage import write_file

RENDERERS: dict[str, Callable[[ClusterConfig], Rendered]] = {
    "kuberay": render_kuberay,
    "ray-up": render_ray_up,
    "slurm": render_slurm,
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what other parsers of YAML take for a number or a truth value."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a repeated value is written again: always, or readers would have to jump."""
        del data
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), None
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def render(kind: str, config: ClusterConfig) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of all files by name, and why others are left out.

    Args:
        kind: `kuberay`, `ray-up` or `slurm`.
        config: The cluster.

    Raises:
        ConfigError: If the kind is unknown, or the config does not fit it.
    """
    if kind not in RENDERERS:
        raise ConfigError(f"kind is {kind!r}, expected {', '.join(RENDERERS)}")
    rendered = RENDERERS[kind](config)
    files = {
        name: content if isinstance(content, str) else _HEADER.format(kind=kind) + _dump(content)
        for name, content in rendered.files.items()
    }
    return files, dict(rendered.left_out)


_HEADER = """\
# Written by `ray-mlc cluster render {kind}`: change settings there, not here.
# How it is used: cluster/README.md
"""


def _dump(documents: Any) -> str:
    return "---\n".join(
        yaml.dump(
            document,
            Dumper=_Dumper,
            sort_keys=False,
            default_flow_style=False,
            allow_unicode=True,
            width=100,
        )
        for document in documents
    )


def write_files(files: dict[str, str], folder: Path, *, overwrite: bool) -> dict[str, str]:
    """Write files into a folder, which is made if it is not there.

    Args:
        files: Texts by path in the folder.
        folder: Where to.
        overwrite: Replace files that differ.

    Returns:
        `written` or `unchanged` for each path.

    Raises:
        ConfigError: If a file is there and differs; then none is written.
        StorageError: If the folder cannot be written to.
    """
    found: dict[str, str] = {}
    for name, text in files.items():
        path = folder / name
        try:
            same = path.read_bytes() == text.encode()
        except FileNotFoundError:
            found[name] = "written"
            continue
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
        if not same and not overwrite:
            raise ConfigError(
                f"{path}: is there and differs: choose another --output, or replace it with "
                "--overwrite"
            )
        found[name] = "unchanged" if same else "written"
    for name, text in files.items():
        if found[name] == "written":
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder}: cannot be a folder ({error.strerror})") from None
            write_file(folder / name, text.encode())
    return found


def placeholders(kind: str, config: ClusterConfig) -> list[str]:
    """Keys that still have a value of the defaults that fits nobody."""
    found = []
    if kind != "slurm":
        found += [
            f"images.{name}"
            for name in ("cpu", "cuda")
            if getattr(config.images, name).startswith(IMAGE.split("/")[0])
        ]
    if config.storage.root == BUCKET and not (config.jobs.score and config.jobs.train):
        found.append("storage.root")
    if kind == "ray-up":
        if config.gcp.project == GcpConfig().project:
            found.append("gcp.project (for gcp.yaml)")
        if config.ssh.head == SshConfig().head:
            found.append("ssh.head and ssh.workers (for ssh.yaml)")
    return found
