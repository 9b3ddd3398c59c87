"""The images: both targets there, pinned, not root, nothing of the build left in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.manifests import ROOT

TEXT = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")


def stages() -> dict[str, tuple[str, list[str]]]:
    """Base and instructions of each stage, lines put together, comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            name = match[2]
            found[name] = (match[1], [])
        elif line.strip() and name:
            found[name][1].append(line)
    return found


def lineage(target: str) -> list[str]:
    """All instructions that make a final image: its own and those of the stages below it."""
    base, own = stages()[target]
    return (lineage(base) if base in stages() else [f"FROM {base}"]) + own


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_a_user_by_number_and_not_as_root(target: str) -> None:
    users = [line.split()[1] for line in lineage(target) if line.startswith("USER ")]
    assert users[-1] == "1000:1000"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_has_what_kuberay_and_ray_up_call(target: str) -> None:
    text = "\n".join(lineage(target))
    assert re.search(r"PATH=/opt/ray-mlc/bin:", text)
    for tool in ("wget", "rsync", "openssh-client"):
        assert re.search(rf"apt-get install .*\b{tool}\b", text)
    assert "HF_HOME=/home/ray/.cache/" in text
    assert "HOME=/home/ray " in text  # `ray up` looks for it among the image's variables
    assert "ray --version" in text


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_nothing_of_the_build_is_left(target: str) -> None:
    text = "\n".join(lineage(target))
    assert "pip install" not in text
    assert not re.search(r"\b(gcc|g\+\+|build-essential|git)\b", text)
    copies = [line for line in lineage(target) if line.startswith(("COPY", "ADD"))]
    assert copies == [f"COPY --from=build-{target} /opt/ray-mlc /opt/ray-mlc"]
    assert "rm -rf /var/lib/apt/lists/*" in text


def test_everything_that_is_installed_is_pinned() -> None:
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, flags=re.M)
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", image)
    bases = {base for base, _ in stages().values()} - set(stages())
    assert bases == {"${PYTHON_IMAGE}"}
    installs = re.findall(r"pip install (.*)", TEXT)
    assert len(installs) == 3
    for line in installs:
        assert "-c constraints.txt" in line or "-r torch.txt" in line
    assert "PIP_NO_CACHE_DIR=1" in TEXT
    # what the line in the Dockerfile takes out of the pins is one version
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert len([pin for pin in pins if re.match("torch==", pin)]) == 1


def test_only_what_is_copied_travels_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set()
    for _, lines in stages().values():
        for line in lines:
            if line.startswith("COPY ") and "--from" not in line:
                copied |= set(line.split()[1:-1])
    assert sent == copied
    assert all((ROOT / name).exists() for name in sent)


def test_hadolint_has_nothing_to_say() -> None:
    here = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=f"{here}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, str(ROOT / "cluster" / "Dockerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
