"""Local storage: what is committed is whole, made once, and survives a full disk as nothing."""

from __future__ import annotations

import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.errors import ConfigError, DataError, StorageError, first_line, redact
from ray_mlc.job_files import load_job
from ray_mlc.storage import (
    LocalStorage,
    ObjectStorage,
    filesystem_of,
    join,
    local_path,
    open_storage,
    refuse_credentials,
    scheme_of,
    sweep,
)
from ray_mlc.storage.s3 import CREDENTIAL_VARIABLES


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
    # the output, its scratch and `a` are new: that they are there must survive as well
    assert events == ["folder"] * 3 + ["content", "folder", "name", "folder"]
    events.clear()
    storage.put("a/other", b"x")
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


def test_a_sweep_removes_all_below_a_folder_and_nothing_else(storage: LocalStorage) -> None:
    for name in ("part", "_ray_mlc/tmp/a.tmp", "_ray_mlc/tmp/deep/b.tmp", "_ray_mlc/tmpfile"):
        storage.put(name, b"x")
    assert sweep(storage, "_ray_mlc/tmp") == 2
    assert files_below(storage) == {"part", "_ray_mlc/tmpfile"}
    assert sweep(storage, "_ray_mlc/tmp") == 0


@pytest.mark.parametrize("verb", ["put", "create"])
def test_a_temporary_file_that_is_swept_away_is_written_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    writes = 0
    write = LocalStorage._write_temporary

    def swept(self: LocalStorage, data: bytes) -> Path:
        nonlocal writes
        writes += 1
        temporary = write(self, data)
        if writes < 3:
            sweep(self, "_ray_mlc/tmp")
        return temporary

    monkeypatch.setattr(LocalStorage, "_write_temporary", swept)
    assert getattr(storage, verb)("a/part", b"x") in (None, True)
    assert writes == 3
    assert files_below(storage) == {"a/part"}


def test_a_temporary_file_that_always_vanishes_is_an_error(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStorage._write_temporary

    def swept(self: LocalStorage, data: bytes) -> Path:
        temporary = write(self, data)
        temporary.unlink()
        return temporary

    monkeypatch.setattr(LocalStorage, "_write_temporary", swept)
    for verb in ("put", "create"):
        with pytest.raises(StorageError, match="part: cannot write"):
            getattr(storage, verb)("part", b"x")
    assert files_below(storage) == set()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
def test_a_rename_whose_answer_was_lost_is_a_commit(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    replace = Path.replace

    def repeated(path: Path, target: Path) -> Path:
        replace(path, target)  # made on the server; the client asks again and is refused
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", repeated)
    storage.put("part", b"x")
    assert storage.read("part") == b"x"
    assert files_below(storage) == {"part"}


def test_a_link_whose_answer_was_lost_is_ours(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", repeated)
    assert storage.create("run.json", b"x")
    monkeypatch.undo()
    # the same content does not make it ours: a file of somebody else's has one link
    assert not storage.create("run.json", b"x")
    assert files_below(storage) == {"run.json"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_without_hard_links_an_object_is_still_made_only_once(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert storage.create("a/run.json", b"first")
    assert not storage.create("a/run.json", b"second")
    assert storage.read("a/run.json") == b"first"
    assert files_below(storage) == {"a/run.json"}
    syncs = iter([False, True])  # the temporary file's, the target's

    def full(descriptor: int) -> None:
        if not Path(f"/proc/self/fd/{descriptor}").readlink().is_dir() and next(syncs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        storage.create("a/other.json", b"x")
    assert files_below(storage) == {"a/run.json"}


def test_an_update_wants_the_content_that_was_read(storage: LocalStorage) -> None:
    assert not storage.update("lease", b"1", expected=b"")
    storage.put("lease", b"1")
    assert not storage.update("lease", b"3", expected=b"2")
    assert storage.read("lease") == b"1"
    assert storage.update("lease", b"2", expected=b"1")
    assert storage.read("lease") == b"2"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EACCES, "permission denied: give this user the right"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    mkdir = Path.mkdir

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "new":
            raise OSError(code, os.strerror(code))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    for verb in ("put", "create"):
        with pytest.raises(StorageError, match=remedy):
            getattr(storage, verb)("new/part", b"x")
    assert files_below(storage) == set()


def test_a_folder_that_cannot_be_listed_is_an_error_of_ours(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("a/part", b"x")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="a: cannot list: permission denied"):
        list(storage.list())


SECRET = "wJalrXUtnFEMIK7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/key",
        "s3://anonymous@bucket/key",
        f"s3://bucket/key?access_key=AKIA&secret_key={SECRET}",
        f"az://container/key?sv=2024&sig={SECRET}",
        f"https://user:{SECRET}@host/x",
        f"s3://bucket/key?X-Amz-Signature={SECRET}",
    ],
)
def test_a_location_with_credentials_is_refused_without_repeating_them(uri: str) -> None:
    for use in (refuse_credentials, open_storage, filesystem_of):
        with pytest.raises(ConfigError, match="carries credentials") as caught:
            use(uri)
        assert SECRET not in str(caught.value)
        assert "AKIA" not in str(caught.value).replace("AWS_ACCESS_KEY_ID", "")
    for tree in ({"input": uri}, {"output": uri}, {"input": [uri]}, {"input": {"path": [1, uri]}}):
        options = {"model": "m", "input": "i", "output": "o", **tree}
        with pytest.raises(ConfigError) as caught:
            load_job(ScoreJob, options=options)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a?b/*.parquet",
        "s3://bucket/date=2026-11-20/x@y",
        "abfss://container@account.dfs.core.windows.net/key",
        "hf://datasets/user/name@main/data",
        "/local/a:b@c",
        "relative?x=1",
    ],
)
def test_a_location_without_credentials_is_not_refused(uri: str) -> None:
    refuse_credentials(uri)


def test_no_secret_stays_in_the_text_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", "x")  # no word of one letter is redacted
    quoted = SECRET.replace("/", "%2F")
    text = (
        f"GET http://user:pa@127.0.0.1:5000/b?X-Amz-Credential=AKIA%2F20&X-Amz-Signature=0a1b&n=1 "
        f"with {SECRET} and {quoted} x"
    )
    assert first_line(OSError(text)) == (
        "GET http://***@127.0.0.1:5000/b?X-Amz-Credential=***&X-Amz-Signature=***&n=1 "
        "with *** and *** x"
    )
    assert redact("http://127.0.0.1:5000/b/a@b") == "http://127.0.0.1:5000/b/a@b"


def test_an_object_store_travels_as_its_location_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    pickled = pickle.dumps(open_storage("s3://bucket/a folder/50%25"))
    assert b"AKIA" not in pickled
    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).uri == "s3://bucket/a folder/50%25"


def test_keys_of_the_credentials_file_serve_where_the_environment_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        "[default]\naws_access_key_id = one\naws_secret_access_key = two%3\n"
        "[night]\naws_access_key_id=three\naws_secret_access_key=four\naws_session_token=five\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in (*CREDENTIAL_VARIABLES, "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)

    def keys() -> set[str]:
        config = ObjectStorage("s3://bucket/key")._store.config
        return {str(value) for value in config.values()} - {"bucket", "us-east-1"}

    assert keys() == {"one", "two%3"}
    monkeypatch.setenv("AWS_PROFILE", "night")
    assert keys() == {"three", "four", "five"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "the environment's")
    assert keys() == set()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path.write_text("not a file of profiles")
    assert keys() == set()


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
