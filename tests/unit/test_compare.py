"""`ray-mlc compare`: runs, nights and models side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run as run_command

from ray_mlc import synthetic
from ray_mlc.errors import DataError, ModelError
from ray_mlc.model.decisions import Decision, decide
from ray_mlc.model.distribution import ScoreCounts
from ray_mlc.model.folder import open_model, write_decision
from ray_mlc.runtime.compare import compare
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.compare import Part
from ray_mlc.scoring.drift import psi
from ray_mlc.scoring.parts import read_footer_key

AUTO = "batching.max_batch_tokens=auto"
NAMES = synthetic.LABELS.names
MakeJob = Callable[..., Any]
ReadOutput = Callable[[Path], pa.Table]


@pytest.fixture(scope="module")
def sides(
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_job: MakeJob,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Runs over one corpus: other sizes of units, another decision, other forms, two nights."""
    folder = tmp_path_factory.mktemp("sides")
    corpus = Path(shutil.copytree(tiny_corpus, folder / "corpus"))
    (folder / "low.json").write_text('{"threshold": 0.2}')
    (folder / "sparse.json").write_text('{"threshold": 0.3, "per_label": {"law": 0.2}}')
    wanted = {
        "one": (),
        "finer": ("units.rows=13",),
        "low": (f"decision={folder / 'low.json'}", "units.rows=17", "output.format=dense"),
        "sparse": ("output.format=sparse", "output.floor=0.02"),
        "nights": (),
    }
    for name, overrides in wanted.items():
        job = score_job(corpus, folder / name, AUTO, *overrides, model=tiny_tfidf)
        score(job, LocalBackend(), Display(quiet=True))
    shutil.copy(corpus / "part-00001.parquet", corpus / "tuesday.parquet")
    job = score_job(corpus, folder / "nights", AUTO, model=tiny_tfidf)
    score(job, LocalBackend(), Display(quiet=True), add_new=True)
    return {name: folder / name for name in wanted}


def put(a: Path | str, b: Path | str, *gates: str) -> dict[str, Any]:
    return compare(str(a), str(b), gates, Display(quiet=True))


def matrix(table: pa.Table) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores and labels of the rows that were scored."""
    table = table.filter(pa.compute.equal(table["status"].cast(pa.string()), "ok"))
    scores_NL = np.stack([table[f"score_{name}"].to_numpy() for name in NAMES], axis=1)
    given_NL = np.array([[n in row for n in NAMES] for row in table["labels"].to_pylist()])
    return scores_NL, given_NL


def test_one_corpus_in_units_of_other_sizes_is_the_same(sides: dict[str, Path]) -> None:
    found = put(sides["one"], sides["finer"], "agreement>=1", "psi<=0", "rate_change<=0")
    assert found["flips"]["rows"] == found["flips"]["same"] == found["a"]["rows"]
    assert [gate["holds"] for gate in found["gates"]] == [True, True, True]
    assert (found["largest_flips"], found["notes"]) == ([], [])


def test_flips_are_those_of_a_join_by_hand(sides: dict[str, Path], read_output: ReadOutput) -> None:
    found = put(sides["one"], sides["low"])
    scores_NL, one_NL = matrix(read_output(sides["one"]))
    low_NL = decide(
        scores_NL.astype(np.float16).astype(np.float32),
        Decision(threshold=0.2).rules(synthetic.LABELS),
    )
    assert found["flips"]["rows"] == len(scores_NL)
    assert found["flips"]["same"] == int((one_NL == low_NL).all(axis=1).sum())
    rows = {row["label"]: row for row in found["per_label"]}
    for label, name in enumerate(NAMES):
        assert rows[name]["gained"] == int((low_NL & ~one_NL)[:, label].sum())
        assert rows[name]["lost"] == int((one_NL & ~low_NL)[:, label].sum())
        assert rows[name]["rate_a"] == pytest.approx(one_NL[:, label].mean())
        assert rows[name]["rate_b"] == pytest.approx(low_NL[:, label].mean())
        assert rows[name]["interval_b"][0] <= rows[name]["rate_b"] <= rows[name]["interval_b"][1]
    assert found["flips"]["gained"] > 50
    assert len(found["largest_flips"]) == 10
    first = found["largest_flips"][0]
    table = read_output(sides["one"]).to_pylist()
    row = next(r for r in table if (r["source"], r["row"]) == (first["source"], first["row"]))
    for label in first["labels"]:
        assert label["a"] == pytest.approx(row[f"score_{label['label']}"], abs=1e-6)
        assert label["b"] == pytest.approx(label["a"], abs=1e-3)  # rounded to float16
        assert label["given"] == "b"
    assert any("the decisions differ" in note for note in found["notes"])


def test_scores_below_a_floor_are_one_bin_on_both_sides(sides: dict[str, Path]) -> None:
    found = put(sides["one"], sides["sparse"])
    assert found["worst"]["psi"]["value"] == 0
    assert found["worst"]["agreement"]["value"] == 1
    assert found["b"]["floor"] == 0.02
    assert "scores below 0.02 are not stored: in psi and js they are one bin" in found["notes"]


def test_nights_of_one_run_share_no_rows(sides: dict[str, Path]) -> None:
    nights = sides["nights"]
    found = put(f"{nights}@1", f"{nights}@2", "agreement>=0.5", "rate_ratio<=20")
    assert (found["a"]["rows"], found["b"]["rows"]) == (238, 80)
    assert found["flips"] is None
    assert [gate["holds"] for gate in found["gates"]] == [False, True]
    assert found["gates"][0]["why"] == "no row is on both sides"
    both = put(nights, sides["one"])
    assert (both["a"]["rows"], both["flips"]["rows"]) == (318, 238)
    with pytest.raises(DataError, match=r"the run has 2 night\(s\)"):
        put(f"{nights}@3", nights)


def test_a_file_that_was_another_one_is_not_joined(
    sides: dict[str, Path],
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_job: MakeJob,
    tmp_path: Path,
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    pq.write_table(
        pq.read_table(corpus / "part-00000.parquet").slice(3), corpus / "part-00000.parquet"
    )
    job = score_job(corpus, tmp_path / "out", AUTO, model=tiny_tfidf)
    score(job, LocalBackend(), Display(quiet=True))
    found = put(sides["one"], tmp_path / "out")
    assert found["flips"]["rows"] < 165
    assert found["flips"]["agreement"] == 1


def test_a_part_that_is_gone_is_left_out_and_said(sides: dict[str, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(sides["one"], tmp_path / "out"))
    sorted(out.glob("**/*.parquet"))[0].unlink()
    (out / "_SUCCESS").unlink()
    found = put(out, sides["one"], "agreement>=0.5", "psi<=9")
    assert found["a"]["units_missing"] == 1
    assert found["flips"]["agreement"] == 1
    # what happens to be left is no sample: no limit holds of it
    for gate in found["gates"]:
        assert (gate["holds"], gate["value"]) == (False, None)
        assert gate["why"] == f"1 unit(s) of {out} cannot be read"
    assert f"{out}: 1 unit(s) have no part that can be read: left out" in found["notes"]
    assert f"{out}: is not finished" in found["notes"]


def test_gates_are_judged_without_the_units_that_a_run_has_set_aside_by_name(
    sides: dict[str, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(sides["finer"], tmp_path / "out"))
    gone, lost = sorted(out.glob("**/*.parquet"))[:2]
    footer = read_footer_key(pq.read_metadata(gone))
    assert footer is not None
    failure = {**footer["unit"], "reason": "read: damaged"}
    (out / "_ray_mlc" / "failures.json").write_text(json.dumps([failure]))
    gone.unlink()
    found = put(sides["one"], out, "agreement>=1", "psi<=1")
    assert [gate["holds"] for gate in found["gates"]] == [True, True]
    assert (found["b"]["units_missing"], found["b"]["units_set_aside"]) == (1, 1)
    assert any("left out, 1 of them set aside by name" in note for note in found["notes"])
    lost.write_bytes(lost.read_bytes()[:-9])
    found = put(sides["one"], out, "agreement>=1", "psi<=1")
    assert [gate["holds"] for gate in found["gates"]] == [False, False]
    assert found["gates"][0]["why"] == f"1 unit(s) of {out} cannot be read"


def test_scores_are_held_only_of_parts_whose_rows_are_joined(
    sides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    begin = Part.__init__
    monkeypatch.setattr(
        Part, "__init__", lambda self, *args: (held.append(args[4]), begin(self, *args))[1]
    )
    nights = sides["nights"]
    put(f"{nights}@1", f"{nights}@2")
    assert held == []
    put(sides["one"], sides["sparse"])
    assert {tuple(table.column_names) for table in held} == {
        tuple(f"score_{name}" for name in NAMES),
        ("top",),
    }


@pytest.fixture
def model(
    tiny_tfidf: Path, sides: dict[str, Path], read_output: ReadOutput, tmp_path: Path
) -> Path:
    """A model that gave at its validation what it gives to the corpus."""
    path = Path(shutil.copytree(tiny_tfidf, tmp_path / "model"))
    scores_NL, given_NL = matrix(read_output(sides["one"]))
    folder = open_model(str(path))
    write_decision(folder, folder.info.decision, {}, ScoreCounts.of(scores_NL, given_NL))
    return path


def test_a_run_is_held_against_what_its_model_gave_at_its_validation(
    model: Path, sides: dict[str, Path], read_output: ReadOutput
) -> None:
    found = put(model, sides["one"], "psi<=0.0", "agreement>=0")
    assert (found["a"]["kind"], found["a"]["rows"]) == ("model", found["b"]["rows"])
    assert [gate["holds"] for gate in found["gates"]] == [True, False]
    assert all(row["change"] == 0 for row in found["per_label"])
    low = put(model, sides["low"])
    _, given_NL = matrix(read_output(sides["one"]))
    assert low["a"]["labels_per_row"] == pytest.approx(given_NL.sum() / len(given_NL))
    (model / "distribution.json").unlink()
    with pytest.raises(DataError, match=r"there is no distribution.json in it"):
        put(model, sides["one"])


def test_a_model_of_the_hub_is_a_side_also_at_a_revision(
    model: Path, sides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, revision: str | None, **_: object) -> str:
        asked.append((repo, revision))
        return str(model)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("org/tags", "org/tags@main", "org/tags@2"):
        found = put(name, sides["one"], "psi<=0")
        assert (found["a"]["name"], found["a"]["kind"]) == (name, "model")
        assert found["gates"][0]["holds"]
    assert asked == [("org/tags", None), ("org/tags", "main"), ("org/tags", "2")]
    # where there is a run of that name, a number is a night of it
    shutil.copytree(sides["nights"], tmp_path / "org" / "tags")
    assert put("org/tags@2", sides["one"])["a"]["kind"] == "output"
    assert len(asked) == 3


def test_what_stands_for_nothing_is_said(
    model: Path,
    sides: dict[str, Path],
    tiny_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (tiny_corpus, tmp_path / "none", f"{tmp_path}/none@2"):
        with pytest.raises(DataError, match="is neither an output of score or retag, nor a model"):
            put(sides["one"], name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(DataError, match=r"^org/none: is neither .* hub cannot be reached"):
        put("org/none@2", sides["one"])
    next(model.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"there is no \.safetensors file"):
        put(model, sides["one"])


def _unreachable(*_: object, **__: object) -> str:
    raise OSError("no network")


def test_the_command_prints_a_table_and_a_gate_that_does_not_hold_is_exit_4(
    sides: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = str(sides["one"]), str(sides["low"])
    assert run_command(monkeypatch, "compare", *names, "-q", "--gate", "psi<=0.1") == 0
    printed = capsys.readouterr().out
    assert "rows on both sides by source and row: " in printed
    assert "holds: psi<=0.1: 0." in printed
    assert "JS" in printed
    gates = ["--gate", "agreement>=0.99", "--gate", "psi<=0.1"]
    assert run_command(monkeypatch, "compare", *names, *gates, "--json", "-q") == 4
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [gate["holds"] for gate in found["gates"]] == [False, True]
    assert f"does not hold: agreement>=0.99: {found['flips']['agreement']:.4f}" in captured.err
    assert run_command(monkeypatch, "compare", *names, "--gate", "pis<=0.1") == 2
    assert "did you mean psi?" in capsys.readouterr().err


def test_psi_of_the_figures_is_that_of_the_counts(
    sides: dict[str, Path], read_output: ReadOutput
) -> None:
    nights = sides["nights"]
    found = put(f"{nights}@1", f"{nights}@2")
    table = read_output(nights)
    tuesday = pa.compute.equal(table["source"], "tuesday.parquet")
    counts = [
        ScoreCounts.of(*matrix(table.filter(mask)))
        for mask in (pa.compute.invert(tuesday), tuesday)
    ]
    expected = psi(counts[0].scores_LB, counts[1].scores_LB)
    np.testing.assert_allclose([row["psi"] for row in found["per_label"]], expected)
    assert expected.max() > 0
