"""Scoring from and to an S3 server over HTTP, good and bad; no Ray.

The server is moto's; between it and us stands a proxy that breaks calls. Whatever it breaks, the
output is that of the undisturbed run on local disk, and no file is set aside for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.object_store import (
    ACCESS_KEY,
    KINDS,
    SECRET_KEY,
    FaultyProxy,
    make_bucket,
    moto_server,
    s3_environment,
    uploads_in_progress,
)

from ray_mlc import evaluate
from ray_mlc.corpus import reading
from ray_mlc.corpus.listing import list_corpus
from ray_mlc.errors import ConfigError, DataError, LimitError, StorageError
from ray_mlc.runtime.compare import compare
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.retag import Wanted, retag
from ray_mlc.scoring.lease import hold_lease
from ray_mlc.scoring.standing import PROGRESS_FILE, published, read_progress
from ray_mlc.scoring.verify import verify
from ray_mlc.storage import filesystem_of, filesystems, objects, open_storage, s3, sweep

BUCKET = "bucket"
CORPUS = f"s3://{BUCKET}/corpus/2026-11-20"
SEEDS = 3

Read = Callable[[Path], pa.Table]
ScoreLocally = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server without faults: starting it takes seconds."""
    with moto_server() as endpoint:
        make_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture(scope="module")
def corpus(server: str, tiny_corpus: Path) -> str:
    """The tiny corpus on the server."""
    with pytest.MonkeyPatch.context() as patch:
        _use(patch, server)
        uploaded = open_storage(CORPUS)
        for path in sorted(tiny_corpus.rglob("*.parquet")):
            uploaded.put(str(path.relative_to(tiny_corpus)), path.read_bytes())
    return CORPUS


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every client of the test speaks to the server directly."""
    _use(monkeypatch, server)
    return f"s3://{BUCKET}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients give up after seconds, not minutes."""
    monkeypatch.setattr(objects, "RETRY_BUDGET_S", 20.0)
    monkeypatch.setattr(s3, "REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(filesystems, "ARROW_ATTEMPTS", 2)
    monkeypatch.setattr(reading, "READ_BUDGET_S", 20.0)


def _use(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in s3_environment(endpoint).items():
        patch.setenv(name, value)


def fetch(uri: str, folder: Path) -> Path:
    """A copy of an output on local disk."""
    source = open_storage(uri)
    for info in source.list():
        target = folder / info.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read(info.path) or b"")
    return folder


def parts_of(uri: str) -> list[str]:
    return sorted(info.path for info in open_storage(uri).list() if info.path.endswith(".parquet"))


def assert_same_rows(one: pa.Table, other: pa.Table) -> None:
    assert one.schema.equals(other.schema)
    assert one.equals(other)


def test_an_object_appears_once_and_is_replaced_only_as_expected(bucket: str) -> None:
    store = open_storage(f"{bucket}/verbs/a folder/50%25 #1")
    assert list(store.list()) == []
    assert store.read("absent") is None
    store.delete("absent")
    assert not store.update("absent", b"x", expected=b"")
    assert store.create("run.json", b"first")
    assert not store.create("run.json", b"second")
    assert not store.update("run.json", b"third", expected=b"stale")
    assert store.read("run.json") == b"first"
    assert store.update("run.json", b"third", expected=b"first")
    assert store.read("run.json") == b"third"
    store.put("parts/a", b"12")
    store.put("parts/b", b"345")
    assert [(info.path, info.size) for info in store.list("parts")] == [
        ("parts/a", 2),
        ("parts/b", 3),
    ]
    before = {info.path: info.etag for info in store.list()}
    assert len(set(before.values())) == 3
    store.put("parts/a", b"new")
    after = {info.path: info.etag for info in store.list()}
    assert {path for path in after if after[path] != before[path]} == {"parts/a"}
    # Arrow finds the same names: neither side decodes what a user wrote
    filesystem, path = filesystem_of(f"{bucket}/verbs/a folder/50%25 #1/parts/b")
    with filesystem.open_input_file(path) as file:
        assert file.read() == b"345"
    assert sweep(store, "parts") == 2
    assert [info.path for info in store.list()] == ["run.json"]


def test_of_two_updates_of_one_version_the_later_one_is_refused(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = open_storage(f"{bucket}/races")
    theirs.put("lease", b"old")

    def another_writes(method: str, path: str) -> None:
        if method == "PUT":  # ours: its writer has read and compared by now
            assert theirs.update("lease", b"theirs", expected=b"old")

    with FaultyProxy(server, after=another_writes) as proxy:
        _use(monkeypatch, proxy.endpoint)
        assert not open_storage(f"{bucket}/races").update("lease", b"ours", expected=b"old")
        assert proxy.calls["PUT"] == 1
    assert theirs.read("lease") == b"theirs"


def test_a_bucket_that_is_not_there_is_an_error_of_ours(bucket: str) -> None:
    store = open_storage("s3://no-such-bucket/out")
    assert list(store.list()) == []
    for write in (store.put, store.create):
        with pytest.raises(StorageError, match="no-such-bucket/out/x: cannot write"):
            write("x", b"data")
    assert not store.update("x", b"data", expected=b"")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "truncate_download"])
def test_a_write_is_told_apart_from_its_lost_answer(
    server: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    first = {"PUT"}

    def once(method: str, path: str) -> str | None:
        if method not in first:
            return None
        first.discard(method)
        return kind

    with FaultyProxy(server, hold_s=2, after=once) as proxy:
        _use(monkeypatch, proxy.endpoint)
        store = open_storage(f"s3://{BUCKET}/answers/{kind}")
        assert store.create("run.json", b"ours")
        first.add("PUT")
        assert store.update("run.json", b"new", expected=b"ours")
        first.add("PUT")
        assert not store.create("run.json", b"theirs")
        first.add("PUT")
        store.put("part", b"x" * 100_000)
        assert proxy.injected == {kind: 4}
        assert (store.read("run.json"), store.read("part")) == (b"new", b"x" * 100_000)


def test_a_night_at_work_is_seen_in_a_bucket_by_others(bucket: str) -> None:
    store = open_storage(f"{bucket}/night")
    with hold_lease(store, expiry_s=5) as lease:
        with published(store, lambda: {"phase": "scoring"}, token=lease.token, every_s=0.05):
            deadline = time.monotonic() + 60
            while (found := read_progress(open_storage(f"{bucket}/night"))) is None:
                assert time.monotonic() < deadline
        assert found["phase"] == "scoring"
        assert store.read(PROGRESS_FILE) is None


def test_a_listing_of_a_bucket_is_that_of_the_same_folder(
    bucket: str, corpus: str, tiny_corpus: Path
) -> None:
    listing, local = list_corpus(corpus), list_corpus(str(tiny_corpus))
    assert listing.root == corpus
    assert [(file.source, file.size) for file in listing.files] == [
        (file.source, file.size) for file in local.files
    ]
    assert all(file.etag and file.mtime_ns for file in listing.files)
    first = listing.files[0]
    glob = list_corpus(f"{bucket}/corpus/*/*.parquet")
    assert glob.root == f"{bucket}/corpus"
    assert len(glob.files) == len(listing.files)
    one = list_corpus(f"{corpus}/{first.source}")
    assert (one.root, one.files) == (corpus, (first,))
    both = list_corpus([f"{corpus}/{first.source}", corpus])
    assert (both.root, both.files) == (corpus, listing.files)
    for absent in (f"{bucket}/nowhere", f"{corpus}/absent.parquet", "s3://no-such-bucket/x"):
        with pytest.raises(DataError, match="there is no such file or folder"):
            list_corpus(absent)


def test_empty_objects_that_mark_folders_are_no_files(bucket: str) -> None:
    filesystem, path = filesystem_of(f"{bucket}/marked")
    for name in ("", "/x.parquet"):
        filesystem.create_dir(path + name)
    store = open_storage(f"{bucket}/marked")
    store.put("x.parquet/part-0.parquet", b"x")
    store.put("empty.parquet", b"")
    found = [file.source for file in list_corpus(f"{bucket}/marked").files]
    assert found == ["empty.parquet", "x.parquet/part-0.parquet"]
    assert "" not in {info.path for info in store.list()}


def test_from_bucket_to_bucket_is_the_local_run(
    bucket: str,
    server: str,
    corpus: str,
    score_locally: ScoreLocally,
    read_output: Read,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = f"{bucket}/tags"
    summary = score_locally(corpus, output)
    copy = fetch(output, tmp_path / "first")
    expected = read_output(tiny_run)
    assert_same_rows(read_output(copy), expected)
    assert summary["rows"]["written"] == expected.num_rows
    # deleted parts, and only those, are made again, with the same rows
    names = parts_of(output)
    times = {info.path: info.modified_s for info in open_storage(output).list()}
    for name in names[::3]:
        open_storage(output).delete(name)
    score_locally(corpus, output)
    assert parts_of(output) == names
    after = {info.path: info.modified_s for info in open_storage(output).list()}
    assert all(after[name] == times[name] for name in set(names) - set(names[::3]))
    assert_same_rows(read_output(fetch(output, tmp_path / "second")), expected)
    assert uploads_in_progress(server, BUCKET) == 0
    printed = "".join(capsys.readouterr())
    for content in [printed.encode(), *(path.read_bytes() for path in tmp_path.rglob("*.*"))]:
        assert SECRET_KEY.encode() not in content
        assert ACCESS_KEY.encode() not in content


def test_a_bucket_is_decided_again_and_compared_as_a_folder_is(
    bucket: str, tiny_run: Path, read_output: Read, tmp_path: Path
) -> None:
    scored, new = f"{bucket}/scored", f"{bucket}/decided/again"
    for path in tiny_run.rglob("*"):
        if path.is_file():
            open_storage(scored).put(str(path.relative_to(tiny_run)), path.read_bytes())
    wanted, display = Wanted(objective="rate<=0.2"), Display(quiet=True)
    retag(str(tiny_run), str(tmp_path / "local"), wanted, display)
    assert retag(scored, new, wanted, display)["rows"]["written"] == 240
    assert_same_rows(read_output(fetch(new, tmp_path / "copy")), read_output(tmp_path / "local"))
    assert verify(new).complete
    found = compare(scored, new, ["agreement>=0"], display)
    here = compare(str(tiny_run), str(tmp_path / "local"), [], display)
    assert (found["flips"], found["per_label"]) == (here["flips"], here["per_label"])
    with pytest.raises(DataError, match="lie one in the other"):
        retag(scored, f"{scored}/new", wanted, display)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_store_that_fails_one_call_in_ten_changes_nothing(
    server: str,
    corpus: str,
    score_locally: ScoreLocally,
    read_output: Read,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    output = f"s3://{BUCKET}/faults/{seed}"
    with FaultyProxy(server, seed=seed, share=0.1, hold_s=1.5) as proxy:
        _use(monkeypatch, proxy.endpoint)
        score_locally(corpus, output)
        assert proxy.injected.total() > 0
    _use(monkeypatch, server)
    copy = fetch(output, tmp_path / "copy")
    assert_same_rows(read_output(copy), read_output(tiny_run))
    assert (copy / "_SUCCESS").exists()
    assert json.loads((copy / "_ray_mlc/failures.json").read_bytes() or b"[]") == []
    assert uploads_in_progress(server, BUCKET) == 0


@pytest.mark.parametrize("when", ["GET", "PUT"])
def test_a_store_that_goes_away_sets_nothing_aside(
    server: str,
    corpus: str,
    score_locally: ScoreLocally,
    read_output: Read,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    monkeypatch.setattr(objects, "RETRY_BUDGET_S", 0.5)
    monkeypatch.setattr(filesystems, "ARROW_ATTEMPTS", 1)
    monkeypatch.setattr(reading, "READ_BUDGET_S", 0.5)
    output = f"s3://{BUCKET}/away/{when}"
    seen = 0

    def go_away(method: str, path: str) -> None:
        nonlocal seen
        # GET of input files, PUT of parts: late enough that planning is over
        hit = method == when and path.endswith(".parquet")
        seen += hit
        if hit and seen == {"GET": 12, "PUT": 3}[when]:
            proxy.away()

    with FaultyProxy(server, after=go_away) as proxy:
        _use(monkeypatch, proxy.endpoint)
        with pytest.raises(StorageError) as caught:
            score_locally(corpus, output, "lease.expiry=1s")
        assert SECRET_KEY not in str(caught.value)
        assert proxy.injected["away"] > 0
        _use(monkeypatch, server)
        done = len(parts_of(output))
        failures = open_storage(output).read("_ray_mlc/failures.json")
        assert json.loads(failures or b"[]") == []
        proxy.back()
        _use(monkeypatch, proxy.endpoint)
        # the first command could not give its lease back, and its process, ours, lives
        score_locally(corpus, output, "lease.expiry=1s")
    _use(monkeypatch, server)
    copy = fetch(output, tmp_path / "copy")
    assert_same_rows(read_output(copy), read_output(tiny_run))
    assert done < len(parts_of(output))


def test_a_damaged_file_in_a_bucket_is_set_aside_by_name(
    bucket: str, tiny_corpus: Path, score_locally: ScoreLocally
) -> None:
    uploaded = open_storage(f"{bucket}/damaged/in")
    files = sorted(tiny_corpus.rglob("*.parquet"))
    page, footer, good = (path.read_bytes() for path in files)
    start = len(page) // 4
    uploaded.put("page.parquet", page[:start] + b"\xff" * 512 + page[start + 512 :])
    uploaded.put("footer.parquet", footer[:-40])
    uploaded.put("good.parquet", good)
    with pytest.raises(LimitError):
        score_locally(f"{bucket}/damaged/in", f"{bucket}/damaged/out")
    found = open_storage(f"{bucket}/damaged/out")
    failures = json.loads(found.read("_ray_mlc/failures.json") or b"[]")
    reasons = {item["source"]: item["reason"] for item in failures}
    assert set(reasons) == {"page.parquet", "footer.parquet"}
    assert reasons["page.parquet"].startswith("read:")
    assert reasons["footer.parquet"].startswith("footer:")
    assert any(name.startswith("good/") for name in parts_of(f"{bucket}/damaged/out"))


def test_figures_of_an_evaluation_go_to_a_bucket_and_replace_only_their_own(
    bucket: str, tiny_tfidf: Path, tmp_path: Path
) -> None:
    rows = {"text": ["a", "b"], "labels": [["x"], []]}
    schema = pa.schema([("text", pa.string()), ("labels", pa.list_(pa.string()))])
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "test.parquet")
    model, examples = str(tiny_tfidf), str(tmp_path / "test.parquet")
    output = f"{bucket}/evaluations/first.json"
    figures = evaluate(model, examples, output=output, quiet=True)
    store = open_storage(f"{bucket}/evaluations")
    assert json.loads(store.read("first.json") or b"")["n"] == figures["n"] == 2
    assert figures["report"] == f"{bucket}/evaluations/first.html"
    assert {item.path for item in store.list()} == {"first.json", "first.html"}
    evaluate(model, examples, output=output, quiet=True)  # its own
    store.put("mine.html", b"<html>mine</html>")
    with pytest.raises(ConfigError, match=r"mine\.html: is there already"):
        evaluate(model, examples, output=f"{bucket}/evaluations/mine.json", quiet=True)
    assert store.read("mine.html") == b"<html>mine</html>"


def test_the_command_line_scores_a_bucket_and_shows_no_key(
    server: str, corpus: str, tiny_model: Path, read_output: Read, tiny_run: Path, tmp_path: Path
) -> None:
    output = f"s3://{BUCKET}/cli"
    command = [sys.executable, "-m", "ray_mlc", "score", "--local", "--model", str(tiny_model)]
    command += ["--input", corpus, "--output", output]
    command += ["--set", "engine.dtype=float32", "--set", "units.rows=30"]
    environment = {**os.environ, **s3_environment(server)}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    with pytest.MonkeyPatch.context() as patch:
        _use(patch, server)
        copy = fetch(output, tmp_path / "copy")
    assert_same_rows(read_output(copy), read_output(tiny_run))
    # the report of the night is read from the bucket's parts, and put beside them
    place = "_ray_mlc/runs/1/report.html"
    assert done.stderr.decode().splitlines()[-1] == f"report: {output}/{place}"
    assert "240 of 240 rows" in (copy / place).read_text(encoding="utf-8")
    texts = [done.stdout, done.stderr, *(path.read_bytes() for path in copy.rglob("*.*"))]
    assert not [text for text in texts if SECRET_KEY.encode() in text]
    # a wrong place is one line, and a key in it is not repeated
    command[command.index(output)] = f"s3://{ACCESS_KEY}:{SECRET_KEY}@{BUCKET}/cli"
    done = subprocess.run(command, capture_output=True, env=environment, timeout=100, check=False)
    assert done.returncode == 2
    assert len(done.stderr.decode().strip().splitlines()) == 1
    assert b"carries credentials" in done.stderr
    assert SECRET_KEY.encode() not in done.stderr + done.stdout
