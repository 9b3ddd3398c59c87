"""A model on an object store is copied once per machine, whole, and anew if it changes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow.fs as pa_fs
import pytest

from ray_mlc.errors import ModelError
from ray_mlc.model.encoder import fetch

URI = "s3://bucket/model"


class Store:
    """A folder of this machine in the place of a bucket; counts what is read."""

    def __init__(self, root: Path) -> None:
        self.root, self.opened = root, list[str]()
        self._real = pa_fs.LocalFileSystem()
        self.barrier: threading.Barrier | None = None

    def get_file_info(self, selector: Any) -> Any:
        found = self._real.get_file_info(selector)
        if self.barrier is not None:
            self.barrier.wait(10)
        return found

    def open_input_stream(self, path: str) -> Any:
        self.opened.append(Path(path).name)
        return self._real.open_input_stream(path)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    root = tmp_path / "bucket"
    (root / "int8").mkdir(parents=True)
    (root / "_checkpoints").mkdir()
    (root / "config.json").write_text("{}")
    (root / "int8/weights.bin").write_bytes(b"w" * 1000)
    (root / "_checkpoints/huge").write_text("x")
    found = Store(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ray_mlc.storage.filesystem_of", lambda _: (found, str(root)))
    return found


def test_a_model_is_copied_once_whole_and_without_what_is_no_part_of_it(store: Store) -> None:
    first = fetch(URI)
    assert (first / "int8/weights.bin").read_bytes() == b"w" * 1000
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "int8"]
    assert fetch(f"{URI}/") == first
    assert sorted(store.opened) == ["config.json", "weights.bin"]


def test_another_content_gets_another_copy_and_the_first_stays(store: Store) -> None:
    first = fetch(URI)
    (store.root / "int8/weights.bin").write_bytes(b"v" * 1001)
    second = fetch(URI)
    assert second != first
    assert (first / "int8/weights.bin").read_bytes() == b"w" * 1000
    assert (second / "int8/weights.bin").read_bytes() == b"v" * 1001


def test_of_many_processes_that_begin_together_one_copies(store: Store) -> None:
    store.barrier = threading.Barrier(4)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(URI))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert sorted(store.opened) == ["config.json", "weights.bin"]


def test_a_copy_that_breaks_off_leaves_nothing_that_looks_like_a_model(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = store.open_input_stream

    def broken(path: str) -> Any:
        if path.endswith(".bin"):
            raise OSError("connection reset")
        return whole(path)

    monkeypatch.setattr(store, "open_input_stream", broken)
    with pytest.raises(ModelError, match="cannot be copied"):
        fetch(URI)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"]
    assert [path.name for path in kept if path.is_file()] == []
    monkeypatch.setattr(store, "open_input_stream", whole)
    assert (fetch(URI) / "int8/weights.bin").exists()
