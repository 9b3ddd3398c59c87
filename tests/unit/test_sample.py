from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc.config import ScoreJob
from ray_mlc.corpus.listing import list_corpus
from ray_mlc.scoring.plan import CorpusPlan, inspect_corpus
from ray_mlc.scoring.sample import SAMPLE_ROWS, sample_texts, sample_units

MakeJob = Callable[..., ScoreJob]


def plan_of(job: ScoreJob) -> CorpusPlan:
    assert isinstance(job.units.rows, int)
    inspected = inspect_corpus(list_corpus(job.input.path), job, reserved=())
    return inspected.cut(max_rows=job.units.rows, max_bytes=job.units.bytes)


def texts_of(job: ScoreJob, max_tokens: int = 512) -> list[str]:
    plan = plan_of(job)
    return sample_texts(sample_units(plan), plan.spec, max_text_bytes=2**20, max_tokens=max_tokens)


def write(path: Path, texts: list[str | None], **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, **options)


def test_a_small_corpus_is_its_own_sample(tmp_path: Path, score_job: MakeJob) -> None:
    texts = [f"text {number}" for number in range(40)]
    write(tmp_path / "in/a.parquet", texts)
    assert texts_of(score_job(tmp_path / "in", tmp_path / "out", "units.rows=100")) == texts


def test_a_sample_is_bounded_and_spread_over_the_corpus(tmp_path: Path, score_job: MakeJob) -> None:
    for file in range(9):
        rows = [f"{file} {row}" for row in range(3000)]
        write(tmp_path / f"in/{file}.parquet", rows, row_group_size=1000)
    job = score_job(tmp_path / "in", tmp_path / "out", "units.rows=1000")
    texts = texts_of(job)
    assert len(texts) == SAMPLE_ROWS
    assert [int(file) for file in sorted({text[0] for text in texts})] == [1, 3, 5, 7]
    for file in "1357":
        rows = [int(text.split()[1]) for text in texts if text[0] == file]
        assert (rows[-1] - rows[0], np.diff(rows).max()) == (pytest.approx(999, abs=2), 2)
    assert texts == texts_of(job)


def test_a_sample_of_one_large_row_group_is_of_all_of_it(
    tmp_path: Path, score_job: MakeJob
) -> None:
    write(tmp_path / "in/a.parquet", [f"{row}" for row in range(1000)])
    plan = plan_of(score_job(tmp_path / "in", tmp_path / "out", "units.rows=10"))
    assert len(plan.units) == 100
    assert [unit.first_row for unit in sample_units(plan)] == [120, 370, 620, 870]


def test_what_cannot_be_scored_is_in_no_sample(tmp_path: Path, score_job: MakeJob) -> None:
    write(tmp_path / "in/a.parquet", [None, "", " ", "good", "x" * (8 * 512 + 5)])
    write(tmp_path / "in/b.parquet", [f"some text {row}" * 9 for row in range(60)])
    damaged = bytearray((tmp_path / "in/b.parquet").read_bytes())
    damaged[4:200] = bytes(196)
    (tmp_path / "in/b.parquet").write_bytes(damaged)
    found = texts_of(score_job(tmp_path / "in", tmp_path / "out"))
    assert found == ["good", "x" * 8 * 512]


def test_a_corpus_without_rows_gives_no_sample(tmp_path: Path, score_job: MakeJob) -> None:
    write(tmp_path / "in/a.parquet", [])
    assert texts_of(score_job(tmp_path / "in", tmp_path / "out")) == []


@pytest.mark.parametrize(("tokens", "characters"), [(512, 4_096), (16 * 512, 65_536)])
def test_as_much_of_a_document_is_in_the_sample_as_its_windows_read(
    tmp_path: Path, score_job: MakeJob, tokens: int, characters: int
) -> None:
    write(tmp_path / "in/a.parquet", ["ü" * 100_000, "short"])
    job = score_job(tmp_path / "in", tmp_path / "out")
    assert [len(text) for text in texts_of(job, tokens)] == [characters, 5]


def test_long_documents_make_a_smaller_sample_that_is_spread_all_the_same(
    tmp_path: Path, score_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.scoring.sample.SAMPLE_CHARACTERS", 100_000)
    texts = [f"{row:03d}".ljust(1_000 if row % 2 else 9_000, "x") for row in range(400)]
    write(tmp_path / "in/a.parquet", texts)
    job = score_job(tmp_path / "in", tmp_path / "out", "units.rows=400")
    found = texts_of(job, 10**6)
    assert 90_000 <= sum(map(len, found)) <= 100_000
    rows = np.array([int(text[:3]) for text in found])
    assert (rows[0], rows[-1]) == (0, 399)
    assert np.diff(rows).max() <= np.diff(rows).min() + 1
    assert found == [texts[row] for row in rows]  # whole
    assert len(texts_of(job, 10)) == 400  # cut to 80 characters each, all fit
    monkeypatch.setattr("ray_mlc.scoring.sample.SAMPLE_CHARACTERS", 5)
    assert len(texts_of(job, 10**6)) == 1  # there is always one


def test_engines_are_timed_on_all_windows_of_a_document(
    tmp_path: Path, score_locally: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def race(engines: Any, ids: Any, **_: Any) -> list[float]:
        seen.append(ids.n_windows)
        return [1000.0] * len(engines)

    monkeypatch.setattr("ray_mlc.model.engines.choose.race", race)
    # 8 characters a token, as many as are reckoned with: 32 tokens are far from the end
    write(tmp_path / "in/a.parquet", ["letters " * 2_000] * 3)
    windows = "windows: {max_windows: 12, overlap: 0}"
    for number, long in enumerate(("policy: truncate", f"policy: windows, {windows}")):
        options = (f"long={{max_tokens: 32, {long}}}", "units.rows=auto")
        score_locally(tmp_path / "in", tmp_path / f"out{number}", *options)
    assert [windows.tolist() for windows in seen] == [[1] * 3, [12] * 3]
