"""The floors of the house: imports go down only, and nothing heavy happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ray_mlc

PACKAGE = Path(ray_mlc.__file__).parent
FLOORS = (
    ("errors", "config", "job_files", "labels", "storage", "synthetic", "cluster"),
    ("model", "corpus"),
    ("scoring", "training", "evaluation"),
    ("report",),
    ("runtime",),
    ("api",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
GROUND = FLOORS[0]
HEAVY = ("torch", "ray", "transformers", "pyarrow", "sklearn", "pandas", "datasets")
MODULES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The part of the house that a file belongs to: a folder or a ground module."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at module level or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def places_imported(path: Path) -> set[str]:
    """Parts of the house that a file imports."""
    parts = (name.split(".") for name in imported(path))
    own = {part[1] for part in parts if part[0] == "ray_mlc" and len(part) > 1}
    return own - {"__version__"}


def loaded_by(code: str) -> list[str]:
    """Heavy libraries that a program has loaded at its end; it must say nothing."""
    code += "\nimport sys\nloaded = {name.split('.')[0] for name in sys.modules}"
    code += f"\nprint(*sorted(loaded & set({HEAVY!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    here = place(path)
    if here == "__init__":
        assert places_imported(path) <= {"api"}  # for type checkers, and on demand
        return
    if here == "__main__":
        assert places_imported(path) <= {"cli"}
        return
    assert here in RANK, f"{here} has no floor: add it to FLOORS"
    for there in places_imported(path) - {here}:
        if RANK[here] == RANK[there] == 0:
            continue  # ground modules may use each other; cycles are refused below
        assert RANK[there] < RANK[here], f"{here} must not import {there}"


def test_ground_modules_have_no_cycle() -> None:
    below: dict[str, set[str]] = {name: set() for name in GROUND}
    for path in MODULES:
        if place(path) in GROUND:
            below[place(path)] |= places_imported(path) & set(GROUND) - {place(path)}
    while below:
        leaves = {name for name, needs in below.items() if not needs & set(below)}
        assert leaves, f"a cycle among {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in leaves}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_runtime_imports_ray(path: Path) -> None:
    users = {name for name in imported(path) if name.split(".")[0] == "ray"}
    assert not users or place(path) == "runtime"


@pytest.mark.parametrize("module", ["ray_mlc", *(f"ray_mlc.{name}" for name in GROUND)])
def test_importing_the_ground_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") == []


def test_commands_are_imported_from_python_without_anything_heavy() -> None:
    assert loaded_by("from ray_mlc import evaluate, score, train, verify") == []


def test_a_classifier_is_imported_without_torch_and_ray() -> None:
    assert loaded_by("from ray_mlc import Classifier, ScoreActor") == ["pyarrow"]
