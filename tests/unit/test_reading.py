"""Reads from a store that fails: repeated, and never taken for a damaged file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pytest

from ray_mlc.corpus import footers, reading, rows
from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.listing import InputFile, Listing
from ray_mlc.corpus.reading import open_parquet
from ray_mlc.corpus.rows import BLOCK_FAULT, read_block
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import StorageError

ROWS = 4_000


class FlakyFiles:
    """A file system double of one file: chosen calls fail, counted over all openings."""

    def __init__(self, data: bytes, *failures: BaseException | str | None) -> None:
        self.data, self.failures, self.calls = data, list(failures), 0

    def fault(self) -> BaseException | str | None:
        self.calls += 1
        return self.failures.pop(0) if self.failures else None

    def open_input_file(self, path: str) -> FlakyFile:
        fault = self.fault()
        if isinstance(fault, BaseException):
            raise fault
        return FlakyFile(self)


class FlakyFile:
    def __init__(self, files: FlakyFiles) -> None:
        self.files, self.file = files, pa.BufferReader(files.data)

    def size(self) -> int:
        return len(self.files.data)

    def seek(self, position: int) -> None:
        self.file.seek(position)

    def read_buffer(self, count: int) -> Any:
        fault = self.files.fault()
        if isinstance(fault, BaseException):
            raise fault
        return self.file.read_buffer(count // 2 if fault == "short" else count)

    def close(self) -> None:
        self.file.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(reading, "LONGEST_WAIT_S", 0.001)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of several row groups, longer than what a reader fetches with the footer."""
    path = tmp_path_factory.mktemp("data") / "a.parquet"
    table = pa.table({"text": [f"{row} " * 40 for row in range(ROWS)]})
    pq.write_table(table, path, row_group_size=1_000, compression="none", use_dictionary=False)
    return path.read_bytes()


def read_all(files: FlakyFiles) -> pa.Table:
    with open_parquet(files, "a.parquet") as file:
        return file.read(use_threads=False)


@pytest.mark.parametrize(
    "fault", [OSError("503 SlowDown"), TimeoutError(), ValueError("x"), "short"]
)
@pytest.mark.parametrize("call", range(3))
def test_a_read_that_fails_is_repeated_wherever_it_is(
    data: bytes, fault: BaseException | str, call: int
) -> None:
    files = FlakyFiles(data, *[None] * call, *([fault] * 3 if call else [OSError("x")] * 3))
    table = read_all(files)
    assert table["text"].to_pylist() == [f"{row} " * 40 for row in range(ROWS)]
    assert not files.failures


@pytest.mark.parametrize("call", range(3))
def test_a_store_that_goes_on_failing_is_a_storage_error(
    data: bytes, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(reading, "READ_BUDGET_S", 0.02)
    files = FlakyFiles(data, *[None] * call, *[OSError("AWS Error ACCESS_DENIED")] * 100_000)
    with pytest.raises(StorageError, match=r"a.parquet: cannot be read .*ACCESS_DENIED.* again"):
        read_all(files)


def test_what_the_block_makes_of_a_failing_store_does_not_count(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BUDGET_S", 0.02)
    files = FlakyFiles(data)
    caught = []

    def swallow() -> None:
        with open_parquet(files, "a.parquet") as file:
            files.failures = [OSError("reset")] * 100_000
            try:
                file.read_row_group(0)
            except OSError as error:  # as `read_block` does, to make a marker row
                caught.append(error)

    with pytest.raises(StorageError):
        swallow()
    assert caught


def test_an_absent_a_damaged_and_a_replaced_file_are_faults_of_the_file(data: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        read_all(FlakyFiles(data, FileNotFoundError("a.parquet")))
    files = FlakyFiles(data[:-4_000])
    with pytest.raises(pa.ArrowInvalid):
        read_all(files)
    files = FlakyFiles(data)

    def replace_and_read() -> None:
        with open_parquet(files, "a.parquet") as file:
            files.data, files.failures = data + b"x", [OSError("reset")]
            file.read_row_group(0)

    with pytest.raises(OSError, match="when it was opened first") as caught:
        replace_and_read()
    assert not isinstance(caught.value, StorageError)


def test_a_cancelled_read_is_not_repeated(data: bytes) -> None:
    cancelled = threading.Event()
    cancelled.set()
    files = FlakyFiles(data, *[OSError("reset")] * 5)
    with pytest.raises(StorageError), open_parquet(files, "a.parquet", cancelled=cancelled):
        pass
    assert files.calls == 1


def test_a_local_file_is_opened_as_it_is(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with open_parquet(pa_fs.LocalFileSystem(), str(tmp_path / "a.parquet")) as file:
        assert file.read().num_rows == ROWS
    with (
        pytest.raises(FileNotFoundError),
        open_parquet(pa_fs.LocalFileSystem(), str(tmp_path / "b.parquet")),
    ):
        pass


def units() -> list[Unit]:
    return [Unit("a.parquet", "a", n * 1_000, 1_000, n, n + 1, 0) for n in range(4)]


def test_reading_a_block_marks_damaged_units_and_no_others(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = pq.read_metadata(pa.BufferReader(data)).row_group(2).column(0)
    start = column.data_page_offset
    damaged = data[:start] + b"\xff" * 64 + data[start + 64 :]
    spec = ReadSpec("mem://x", "text", ())
    files = FlakyFiles(damaged, None, None, OSError("reset"))
    monkeypatch.setattr(rows, "filesystem_of", lambda _: (files, ""))
    block = read_block(units(), spec, max_text_bytes=10_000)
    assert block.num_rows == 3_001
    (fault,) = block[BLOCK_FAULT].drop_null().to_pylist()
    assert fault.startswith("read: ")


def test_reading_a_block_from_a_store_that_is_away_marks_nothing(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BUDGET_S", 0.02)
    files = FlakyFiles(data, None, None, *[OSError("reset")] * 100_000)
    monkeypatch.setattr(rows, "filesystem_of", lambda _: (files, ""))
    with pytest.raises(StorageError):
        read_block(units(), ReadSpec("mem://x", "text", ()), max_text_bytes=10_000)


def test_footers_of_a_store_that_is_away_set_no_file_aside(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Listing("/x", tuple(InputFile(f"{n}.parquet", 1, 1) for n in range(100)), ())
    files = FlakyFiles(data, *[OSError("reset")] * 50)
    monkeypatch.setattr(footers, "filesystem_of", lambda _: (files, ""))
    found = footers.read_footers(listing)
    assert [footer.rows for footer in found] == [ROWS] * 100
    monkeypatch.setattr(reading, "READ_BUDGET_S", 0.02)
    files.failures = [OSError("reset")] * 100_000
    with pytest.raises(StorageError):
        footers.read_footers(listing)
