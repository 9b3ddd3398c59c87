"""What the doctor finds in a storage before a night rests on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_mlc.runtime.doctor import _output
from ray_mlc.storage import LocalStorage, open_storage


def test_a_good_folder_is_found_good_and_left_as_it_was(tmp_path: Path) -> None:
    check = _output(str(tmp_path / "out"))
    assert check.state in ("ok", "warning")  # a small disk is a warning
    assert "replaces whole files, creates exclusively" in check.finding
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def broken_create(storage: LocalStorage, path: str, data: bytes) -> bool:
    storage.put(path, data)
    return True


def broken_update(storage: LocalStorage, path: str, data: bytes, *, expected: bytes) -> bool:
    del expected
    storage.put(path, data)
    return True


@pytest.mark.parametrize(
    ("method", "double", "finding"),
    [
        ("create", broken_create, "8 of 8 exclusive creations"),
        ("update", broken_update, "a conditional update overwrites what it should not"),
        ("update", lambda *_, **__: False, "is refused although nothing has changed"),
        ("read", lambda *_: b"old", "reads back differently"),
        ("list", lambda *_: iter(()), "listings lag"),
    ],
)
def test_a_storage_that_breaks_a_promise_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, double: Any, finding: str
) -> None:
    monkeypatch.setattr(LocalStorage, method, double)
    check = _output(str(tmp_path))
    assert check.state == ("warning" if method == "list" else "fails")
    assert finding in check.finding


def test_the_double_of_exclusive_creation_really_overwrites(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
