"""`ray-mlc plan`: what it says is what `score` then finds, and it leaves no trace."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run

from ray_mlc.runtime import plan as module
from ray_mlc.runtime import probe

SETTINGS = ("--local", "--set", "engine.dtype=float32", "--set", "batching.max_batch_tokens=4096")


@pytest.fixture
def planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    """Exit code and answer of `plan … --json` in this process, with a probe of a moment."""
    monkeypatch.setattr(probe.Prober.run, "__defaults__", (0.2,))

    def call(
        *words: object, settings: tuple[str, ...] = (*SETTINGS, "--set", "units.rows=30")
    ) -> Any:
        code = run(monkeypatch, "plan", *map(str, words), *settings, "--quiet", "--json")
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else err

    return call


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file with its content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in folder.rglob("*")
    }


def test_it_says_what_score_then_finds(
    planned: Callable[..., Any], tiny_model: Path, tiny_corpus: Path, tiny_run: Path
) -> None:
    code, answer = planned(tiny_model, tiny_corpus, "--price", "2.5")
    assert code == 0
    summary = json.loads((tiny_run / "_ray_mlc/summary.json").read_text())
    assert answer["input"]["rows"] == summary["rows"]["planned"] == 240
    assert answer["input"]["row_groups"] == 6
    assert answer["sample"]["whole"]
    assert answer["sample"]["statuses"] == summary["statuses"]
    assert answer["tokens"]["all"]["value"] == summary["tokens"]
    assert answer["tokens"]["scored"]["value"] == summary["this_process"]["real_tokens"]
    assert answer["cut"]["value"] * 240 == pytest.approx(summary["truncated"], abs=0.1)
    parts = list(tiny_run.glob("*/*.parquet"))
    assert answer["output"]["parts"] == len(parts)
    size = sum(path.stat().st_size for path in parts)
    assert answer["output"]["bytes"] == pytest.approx(size, rel=0.25)
    night = answer["forecast"]
    assert (night["actors"], night["nodes"]) == (1, 1)
    assert night["memory_bytes_per_node"] > 50 * 2**20
    hours = night["seconds"]["value"] / 3600
    assert answer["cost"]["value"] == pytest.approx(2.5 * hours, rel=0.01)


def test_it_writes_nothing(
    planned: Callable[..., Any],
    tiny_model: Path,
    tiny_corpus: Path,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    shutil.copytree(tiny_run, output)
    shutil.rmtree(output / "part-00001")
    (output / "_SUCCESS").unlink()
    monkeypatch.chdir(tmp_path)
    folders = (tiny_model, tiny_corpus, tmp_path)
    before = snapshot(*folders)
    assert planned(tiny_model, tiny_corpus)[0] == 0
    assert planned(tiny_model, tiny_corpus, "--output", tmp_path / "new")[0] == 0
    code, answer = planned(tiny_model, tiny_corpus, "--output", output)
    assert code == 0
    assert snapshot(*folders) == before
    assert answer["input"]["rows"] == 80  # what is written is not done again
    assert answer["input"]["written_rows"] == 160
    assert answer["engine"]["dtype"] == "float32"
    assert answer["tokens"]["all"]["value"] > 0


def test_new_files_count_when_they_are_asked_for(
    planned: Callable[..., Any],
    tiny_model: Path,
    tiny_corpus: Path,
    tiny_run: Path,
) -> None:
    code, answer = planned(tiny_model, tiny_corpus, "--output", tiny_run)
    assert (code, answer["nothing_to_do"]) == (0, True)
    one = next(iter(sorted(tiny_corpus.glob("*.parquet"))))
    new = tiny_corpus / "part-later.parquet"
    shutil.copy(one, new)
    try:
        code, answer = planned(tiny_model, tiny_corpus, "--output", tiny_run, "--add-new")
    finally:
        new.unlink()
    assert code == 0
    assert answer["input"]["rows"] == 80
    assert any("1 new file(s) join" in note for note in answer["notes"])


def test_what_will_be_set_aside_is_named(
    planned: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "in"
    corpus.mkdir()
    pq.write_table(pa.table({"text": ["one", None, " ", "two words"]}), corpus / "a.parquet")
    pq.write_table(pa.table({"other": [1, 2]}), corpus / "b.parquet")
    (corpus / "c.parquet").write_bytes(b"no Parquet")
    code, answer = planned(tiny_model, corpus)
    assert code == 0
    aside = answer["set_aside"]
    assert [(item["source"], item["rows"]) for item in aside["files"]] == [
        ("b.parquet", 2),
        ("c.parquet", None),
    ]
    assert aside["rows"] == 2
    assert answer["sample"]["statuses"] == {"ok": 2, "null_text": 1, "empty": 1}


def test_texts_that_are_there_again_are_scored_once() -> None:
    texts = pa.chunked_array([["aaaa", None, "b"], ["aaaa", "", "aaaa"]], pa.large_string())
    assert module.repeated_share(texts) == pytest.approx(8 / 13)
    assert module.repeated_share(texts.slice(1, 1)) == 0.0


def test_a_deadline_is_answered_and_gives_the_exit_code(
    planned: Callable[..., Any],
    tiny_model: Path,
    tiny_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ("--start", "22:00")
    code, answer = planned(tiny_model, tiny_corpus, "--deadline", "21:00", *start)
    assert (code, answer["deadline"]["holds"]) == (0, True)
    assert answer["deadline"]["seconds"] == pytest.approx(23 * 3600, abs=1)
    monkeypatch.setattr(module, "speed_of", lambda _: (0.5, 0.0))
    code, answer = planned(tiny_model, tiny_corpus, "--deadline", "22:10", *start)
    assert (code, answer["deadline"]["holds"]) == (4, False)
    assert answer["deadline"]["actors"] is None  # one process does it, or nobody
    words = ("plan", str(tiny_model), str(tiny_corpus), "--deadline", "22:10", *start, *SETTINGS)
    assert run(monkeypatch, *words, "--price", "3") == 4
    said = capsys.readouterr()
    lines = dict(line.split(None, 1) for line in said.out.splitlines())
    assert lines["deadline"].startswith("no: begun at 22:00 it ends about ")
    assert "node-hours at 3 per node and hour" in lines["cost"]
    assert "240 rows in 3 units of 3 file(s) (6 row groups)" in lines["input"]
    assert said.err.splitlines()[-1].endswith("would not be done by 22:10")


def test_a_job_file_says_it_all(
    planned: Callable[..., Any], tiny_model: Path, tiny_corpus: Path, tiny_run: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"model: {tiny_model}\ninput: {tiny_corpus}\noutput: {tiny_run}\n")
    code, answer = planned(job)
    assert (code, answer["nothing_to_do"]) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m"], "INPUT is missing"),
        (["m", "i", "--deadline", "6"], "--deadline 6: expected a time of day"),
        (["m", "i", "--deadline", "06:00", "--start", "25:00"], "--start 25:00: expected"),
        (["m", "i", "--start", "22:00"], "--start has no meaning without --deadline"),
        (["m", "i", "--actors", "2"], "--actors has no meaning with --local"),
        (["./none", "i"], "there is no such folder"),
        (["none.yaml"], "there is no such job file"),
        (["m", "i", "--set", "batching.max_batch_token=1"], "max_batch_tokens?"),
    ],
)
def test_a_wrong_plan_says_so_in_one_line(
    words: list[str], said: str, planned: Callable[..., Any]
) -> None:
    code, err = planned(*words, settings=("--local",))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_the_speed_is_that_of_all_passes_and_its_error_that_of_their_differences() -> None:
    def of(*seconds: float) -> probe.Probe:
        return probe.Probe([probe.Pass(10, 1000, 1100, s) for s in seconds], 1.0, 1, 1.0, 1)

    assert probe.speed_of([of(1.0, 1.0), of(1.0)]) == (1000.0, 0.0)
    speed, error = probe.speed_of([of(0.8, 1.2), of(0.9, 1.1)])
    assert speed == 1000.0
    assert error == pytest.approx(0.0913, abs=0.001)
    assert probe.padding_of([of(1.0)]) == pytest.approx(1 / 11)
    assert probe.speed_of([of()]) == (0.0, 0.0)
