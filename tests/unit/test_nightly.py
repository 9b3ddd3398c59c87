"""A night: what has arrived is scored, the output proven; the first bad exit code wins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run


@pytest.fixture
def site(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job file and an input of one file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    arrive(tmp_path, "monday", ["one text", "another"])
    (tmp_path / "job.yaml").write_text(
        f"kind: score\nmodel: {tiny_model}\ninput: in\noutput: out\n"
        "engine: {name: torch, dtype: float32}\nbatching: {max_batch_tokens: 4096}\n"
        "units: {rows: 16}\n"
    )
    return tmp_path


def arrive(site: Path, name: str, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), site / "in" / f"{name}.parquet")


def night(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, Any, str]:
    code = run(monkeypatch, "nightly", "job.yaml", "--local", "--json", "--quiet")
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


def test_each_night_scores_what_is_new_and_proves_all_of_it(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, first, _ = night(monkeypatch, capsys)
    assert (code, first["verify"]["rows"]["written"]) == (0, 2)
    arrive(site, "tuesday", ["a third", "a fourth", "a fifth"])
    code, second, _ = night(monkeypatch, capsys)
    assert code == 0
    assert second["score"]["this_process"]["rows"] == 3
    assert second["verify"]["rows"]["written"] == 5
    assert first["compare"] is None
    sides = [second["compare"][side] for side in ("a", "b")]
    assert [(Path(side["name"]).name, side["rows"]) for side in sides] == [
        ("out@1", 2),
        ("out@2", 3),
    ]
    code, quiet, _ = night(monkeypatch, capsys)  # nothing has arrived
    assert (code, quiet["verify"]["rows"]["written"]) == (0, 5)
    assert quiet["score"]["this_process"]["rows"] == 0
    assert quiet["compare"] == second["compare"]


def test_a_file_that_cannot_be_read_is_exit_3_and_the_rest_is_proven(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "in/broken.parquet").write_bytes(b"PAR1 no footer")
    code, found, err = night(monkeypatch, capsys)
    assert code == 3
    assert found["verify"]["rows"]["written"] == 2
    assert "limits.bad_files" in err


def test_a_night_with_nothing_that_can_be_read_ends_like_any_other(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    night(monkeypatch, capsys)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), site / "in/empty.parquet")
    code, found, _ = night(monkeypatch, capsys)
    assert (code, found["compare"]["b"]["rows"]) == (0, 0)
    (site / "in/broken.parquet").write_bytes(b"PAR1 no footer")
    code, found, err = night(monkeypatch, capsys)
    assert code == 3
    assert "limits.bad_files" in err
    assert found["compare"] is not None


def test_a_part_of_no_plan_is_exit_4(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    night(monkeypatch, capsys)
    part = next((site / "out/monday").glob("*.parquet"))
    shutil.copy(part, part.with_name("000000000099.parquet"))  # in no plan
    code, found, err = night(monkeypatch, capsys)
    assert code == 4
    assert not found["verify"]["holds"]
    assert "does not hold" in err


def test_a_night_that_does_not_score_is_not_proven(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(site / "in")
    code, found, err = night(monkeypatch, capsys)
    assert (code, found) == (2, None)
    assert err.startswith("error: ")
