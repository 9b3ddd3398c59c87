"""Local storage: what is committed is whole, made once, and survives a full disk as nothing."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from ray_mlc.errors import ConfigError, DataError, StorageError
from ray_mlc.storage import (
    LocalStorage,
    filesystem_of,
    join,
    local_path,
    open_storage,
    remove_stale,
    scheme_of,
)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "out", scratch="_ray_mlc/tmp")


def files_below(storage: LocalStorage) -> set[str]:
    """Every file there is, temporary ones included."""
    root = Path(storage.uri)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_put_makes_exactly_the_object_and_leaves_nothing_else(storage: LocalStorage) -> None:
    storage.put("a/b/part.parquet", b"one")
    assert storage.read("a/b/part.parquet") == b"one"
    assert files_below(storage) == {"a/b/part.parquet"}


def test_put_replaces_an_object_whole(storage: LocalStorage) -> None:
    storage.put("part", b"a long first content")
    with (Path(storage.uri) / "part").open("rb") as reader:
        storage.put("part", b"short")
        # who had it open still reads all of the old one: nothing is overwritten in place
        assert reader.read() == b"a long first content"
    assert storage.read("part") == b"short"
    assert files_below(storage) == {"part"}


def test_put_syncs_the_content_before_the_name_and_the_folder_after(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append("folder" if path.is_dir() else "content")

    def noting_replace(path: Path, target: Path) -> Path:
        events.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    storage.put("a/part", b"x")
    assert events == ["content", "name", "folder"]


def test_create_makes_an_object_only_once(storage: LocalStorage) -> None:
    assert storage.create("run.json", b"first")
    assert not storage.create("run.json", b"second")
    assert storage.read("run.json") == b"first"
    assert files_below(storage) == {"run.json"}


def test_of_racing_creators_exactly_one_wins(storage: LocalStorage) -> None:
    racers = 8
    for round_ in range(5):
        barrier = Barrier(racers)

        def race(number: int, barrier: Barrier = barrier, name: str = f"run-{round_}.json") -> bool:
            barrier.wait()
            return storage.create(name, str(number).encode() * 1000)

        with ThreadPoolExecutor(racers) as pool:
            won = list(pool.map(race, range(racers)))
        assert won.count(True) == 1
        assert storage.read(f"run-{round_}.json") == str(won.index(True)).encode() * 1000
    assert len(files_below(storage)) == 5


@pytest.mark.parametrize("verb", ["put", "create"])
@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "the disk is full: free some space and run the same command again"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_failed_write_shows_nothing_and_says_what_to_do(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, verb: str, code: int, remedy: str
) -> None:
    storage.put("there", b"before")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=remedy) as caught:
        getattr(storage, verb)("a/part", b"x")
    assert str(caught.value).startswith(f"{storage.uri}/a/part: cannot write")
    assert caught.value.exit_code == 1
    assert files_below(storage) == {"there"}


def test_a_disk_that_fills_up_while_writing_shows_nothing(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("part", b"before")
    real_open = Path.open

    class Full:
        """A file that takes one write and then has no room."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(real_open(path, mode)))
    with pytest.raises(StorageError, match="the disk is full"):
        storage.put("part", b"after")
    monkeypatch.undo()
    assert storage.read("part") == b"before"
    assert files_below(storage) == {"part"}


def test_a_failed_rename_leaves_no_temporary_file(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(storage.uri) / "part" / "inside").mkdir(parents=True)  # a folder where the part goes
    with pytest.raises(StorageError, match="part: cannot write"):
        storage.put("part", b"x")
    assert files_below(storage) == set()


def test_a_listing_has_every_object_with_its_size(storage: LocalStorage) -> None:
    for name, data in (("a/1", b"1"), ("a/b/2", b"22"), ("c", b"")):
        storage.put(name, data)
    assert {(info.path, info.size) for info in storage.list()} == {
        ("a/1", 1),
        ("a/b/2", 2),
        ("c", 0),
    }
    assert {info.path for info in storage.list("a")} == {"a/1", "a/b/2"}
    assert list(storage.list("nowhere")) == []


def test_what_is_absent_reads_as_none_and_deletes_as_nothing(storage: LocalStorage) -> None:
    assert list(storage.list()) == []
    assert storage.read("absent") is None
    storage.delete("absent")
    storage.put("there", b"x")
    storage.delete("there")
    assert storage.read("there") is None


def test_reading_a_folder_is_an_error_of_ours(storage: LocalStorage) -> None:
    storage.put("a/b", b"x")
    with pytest.raises(StorageError, match="a: cannot read"):
        storage.read("a")
    with pytest.raises(StorageError, match="a: cannot delete"):
        storage.delete("a")


def test_stale_temporary_files_are_removed_and_nothing_else(storage: LocalStorage) -> None:
    storage.put("part", b"x")
    for name in ("old-1", "old-2", "young"):
        storage.put(f"_ray_mlc/tmp/{name}.tmp", b"half")
    for name in ("part", "_ray_mlc/tmp/old-1.tmp", "_ray_mlc/tmp/old-2.tmp"):
        os.utime(Path(storage.uri) / name, (0, 0))
    assert remove_stale(storage, "_ray_mlc/tmp") == 2
    # a young one may belong to a writer that is at work
    assert files_below(storage) == {"part", "_ray_mlc/tmp/young.tmp"}


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [("a/b", "file"), ("/a", "file"), ("s3://b/k", "s3"), ("HF://d", "hf"), ("file:///a", "file")],
)
def test_a_scheme_is_what_stands_before_the_slashes(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme
    assert (local_path(uri) is not None) == (scheme == "file")


def test_paths_join_with_single_slashes() -> None:
    assert join("s3://bucket/", "a/", "/b") == "s3://bucket/a/b"
    assert join("/", "a") == "/a"
    assert local_path("file:///data/x") == Path("/data/x")


def test_a_scheme_that_nothing_writes_or_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write to hf://"):
        open_storage("hf://datasets/x")
    with pytest.raises(DataError, match="cannot read from nosuch://"):
        filesystem_of("nosuch://x/y")
    assert open_storage(str(tmp_path)).uri == str(tmp_path)
