"""`ray-mlc retag`: other labels from stored scores, with all that holds for `score`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from support.cli import run as run_command
from support.displays import Spoken

from ray_mlc import synthetic
from ray_mlc.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    LimitError,
    RunMismatchError,
    StorageError,
    UsageError,
)
from ray_mlc.evaluation.thresholds import fit_thresholds
from ray_mlc.model.decisions import Decision
from ray_mlc.runtime import retag as retag_runtime
from ray_mlc.runtime.refit import Labelled
from ray_mlc.runtime.retag import Wanted, retag
from ray_mlc.scoring.ledger import read_run
from ray_mlc.scoring.verify import progress_of, verify
from ray_mlc.storage import open_storage

AUTO = "batching.max_batch_tokens=auto"  # a TF-IDF model takes all of a text at once
ROWS, FORMS = 240, ("wide", "sparse", "dense")
NAMES = synthetic.LABELS.names
DECISION = Decision(threshold=0.12, per_label={NAMES[0]: 0.05}, hierarchy={NAMES[1]: [NAMES[2]]})
ScoreLocally = Callable[..., dict[str, Any]]
ReadOutput = Callable[[Path], pa.Table]


@pytest.fixture(scope="module")
def scored(
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_locally: ScoreLocally,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A finished run in each form: copy it before changing anything."""
    folder = tmp_path_factory.mktemp("scored")
    for form in FORMS:
        more = (
            f"output.format={form}",
            "output.floor=0.02",
            "output.k=8",
            "output.keep=[id]",
            AUTO,
        )
        score_locally(tiny_corpus, folder / form, *more, model=tiny_tfidf)
    return {form: folder / form for form in FORMS}


@pytest.fixture
def out(scored: dict[str, Path], tmp_path: Path) -> Path:
    """A finished run in the wide form that the test may damage."""
    return Path(shutil.copytree(scored["wide"], tmp_path / "out"))


@pytest.fixture(scope="module")
def decision(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("decision") / "decision.json"
    file.write_text(DECISION.model_dump_json())
    return str(file)


def again(output: Path, new: Path, *, said: list[str] | None = None, **options: Any) -> Any:
    """Decide again: `decision`, `objective` and `labelled`, and options of `retag`."""
    display = Spoken()
    names = {"decision", "objective", "labelled"}
    wanted = Wanted(**{name: options.pop(name) for name in names & set(options)})
    try:
        return retag(str(output), str(new), wanted, display, **options)
    finally:
        if said is not None:
            said += [line for line in display.said if not line.endswith("…")]


def times(output: Path) -> dict[str, int]:
    """When each file was written."""
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in output.glob("**/*")
        if path.is_file()
    }


def parts(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.glob("**/*.parquet")}


def scores_of(table: pa.Table) -> NDArray[np.float32]:
    return np.stack([table[f"score_{name}"].to_numpy() for name in NAMES], axis=1)


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_of_scoring_with_that_decision_and_all_else_stays(
    form: str,
    scored: dict[str, Path],
    decision: str,
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_locally: ScoreLocally,
    read_output: ReadOutput,
    tmp_path: Path,
) -> None:
    out, new = scored[form], tmp_path / "new"
    before = times(out)
    summary = again(out, new, decision=decision)
    assert times(out) == before
    assert parts(new) == parts(out)
    more = (f"output.format={form}", "output.floor=0.02", "output.k=8", "output.keep=[id]", AUTO)
    score_locally(tiny_corpus, tmp_path / "anew", *more, f"decision={decision}", model=tiny_tfidf)
    found, expected = read_output(new), read_output(tmp_path / "anew")
    assert found.schema.equals(expected.schema)
    pairs = zip(found["labels"].to_pylist(), expected["labels"].to_pylist(), strict=True)
    differ = sum(sorted(one or ["null"]) != sorted(other or ["null"]) for one, other in pairs)
    assert differ <= summary["retag"]["unsettled"] <= (0 if form == "wide" else 20)
    assert found.drop_columns(["labels"]).equals(expected.drop_columns(["labels"]))
    assert summary["rows"] == {"planned": ROWS, "written": ROWS, "set_aside": 0}
    counts = pc.list_value_length(read_output(out)["labels"])
    assert summary["retag"]["labels_per_row_before"] == pytest.approx(pc.mean(counts).as_py())
    verdict = verify(str(new), deep=True)  # scores by the model, labels by the stored scores
    assert (verdict.holds, verdict.complete) == (True, True), verdict.problems
    assert verdict.rescored is not None
    assert verdict.rescored.flips == 0
    assert verdict.rescored.rows >= 200


def test_a_label_that_no_decision_gave_is_found(
    scored: dict[str, Path], decision: str, tmp_path: Path
) -> None:
    again(scored["wide"], tmp_path / "new", decision=decision)
    for part in sorted((tmp_path / "new").glob("**/*.parquet")):
        with pq.ParquetFile(part) as file:
            table, footer = file.read(), file.metadata.metadata[b"ray_mlc"]
        place = table.schema.get_field_index("labels")
        wrong = pa.array([[NAMES[3]]] * len(table), table.schema.field("labels").type)
        table = table.set_column(place, "labels", wrong)
        with pq.ParquetWriter(part, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({b"ray_mlc": footer})
    verdict = verify(str(tmp_path / "new"), deep=True, sample=20)
    assert "labels are not those that its scores give" in verdict.problems[0]


def test_what_was_stopped_goes_on_where_it_was(
    out: Path, decision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, real, count = tmp_path / "new", retag_runtime.retag_unit, 0

    def stopping(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count > 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(retag_runtime, "retag_unit", stopping)
    with pytest.raises(InterruptedRunError, match=r"of 240 rows; what is written stays"):
        again(out, new, decision=decision)
    monkeypatch.undo()
    assert not (new / "_SUCCESS").exists()
    written = {name: time for name, time in times(new).items() if name.endswith(".parquet")}
    assert 0 < len(written) < 9
    said: list[str] = []
    summary = again(out, new, decision=decision, said=said)
    assert any(line.startswith("continuing: ") for line in said)
    assert written.items() <= times(new).items()
    assert summary["rows"]["written"] == ROWS
    assert verify(str(new)).complete
    assert again(out, new, decision=decision, said=said)["rows"]["written"] == ROWS
    assert said[-1] == "complete already: nothing to do"


def test_a_command_that_would_give_other_labels_is_refused(
    out: Path, decision: str, scored: dict[str, Path], tmp_path: Path
) -> None:
    new = tmp_path / "new"
    again(out, new, decision=decision)
    before = times(new)
    with pytest.raises(RunMismatchError, match=r"holds labels by decision .*the command has obj"):
        again(out, new, objective="rate<=0.1")
    with pytest.raises(RunMismatchError, match="holds labels from the scores in"):
        again(scored["dense"], new, decision=decision)
    with pytest.raises(RunMismatchError, match="holds a run of `ray-mlc score`"):
        again(new, out, decision=decision)
    lease = {f"_ray_mlc/{name}" for name in ("lease.json",)}
    assert {k: v for k, v in times(new).items() if k not in lease} == before


def test_score_does_not_write_into_it(
    out: Path,
    decision: str,
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_locally: ScoreLocally,
    tmp_path: Path,
) -> None:
    again(out, tmp_path / "new", decision=decision)
    with pytest.raises(RunMismatchError, match=r"`ray-mlc retag` has decided .*continue it with"):
        score_locally(tiny_corpus, tmp_path / "new", AUTO, model=tiny_tfidf)


def test_places_that_mix_tables_are_refused(
    out: Path, decision: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="is the output that is read"):
        again(out, out, decision=decision)
    with pytest.raises(DataError, match="lie one in the other"):
        again(out, out / "new", decision=decision)
    with pytest.raises(DataError, match="lies inside the input"):
        again(out, tiny_corpus / "new", decision=decision)
    assert not (tiny_corpus / "new").exists()
    (tmp_path / "foreign").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign/a.parquet")
    with pytest.raises(RunMismatchError, match="belongs to no run"):
        again(out, tmp_path / "foreign", decision=decision)


def test_an_unfinished_run_is_not_decided_again(out: Path, decision: str, tmp_path: Path) -> None:
    (out / "_SUCCESS").unlink()
    with pytest.raises(UsageError, match=r"see _ray_mlc/failures\.json: repair what was set aside"):
        again(out, tmp_path / "new", decision=decision)  # as after exit 3: all is accounted for
    next(out.glob("**/*.parquet")).unlink()
    with pytest.raises(UsageError, match="finish it with the command that began it, then decide"):
        again(out, tmp_path / "new", decision=decision)
    with pytest.raises(UsageError, match="there is no run here"):
        again(tmp_path, tmp_path / "new", decision=decision)


def test_thresholds_below_the_floor_are_refused_and_nothing_is_written(
    scored: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "low.json").write_text(Decision(per_label={NAMES[4]: 0.01}).model_dump_json())
    with pytest.raises(ConfigError, match=f"label {NAMES[4]}, 0.01, lies below 0.02, the floor"):
        again(scored["sparse"], tmp_path / "new", decision=str(tmp_path / "low.json"))
    assert parts(tmp_path / "new") == set()
    assert not (tmp_path / "new/_ray_mlc/run.json").exists()


def test_a_part_that_is_gone_or_damaged_is_set_aside_by_name(
    out: Path, decision: str, tmp_path: Path
) -> None:
    gone, damaged = sorted(out.glob("**/*.parquet"))[1:3]
    gone.unlink()
    damaged.write_bytes(b"PAR1")
    new = tmp_path / "new"
    with pytest.raises(LimitError, match=rf"bad_rows allows 0.*: complete {out} by its own comm"):
        again(out, new, decision=decision)
    failures = json.loads((new / "_ray_mlc/failures.json").read_text())
    assert [item["rows"] for item in failures] == [25, 30]
    assert failures[0]["reason"] == "read: its part is gone"
    assert "cannot be read" in failures[1]["reason"]
    assert not (new / "_SUCCESS").exists()
    verdict = verify(str(new))
    assert (verdict.holds, verdict.total("set_aside")) == (True, 55)
    with pytest.raises(StorageError, match="its part is gone: make it again"):
        again(out, tmp_path / "rate", objective="rate<=0.1")  # a rate of all rows, or of none


def test_what_the_first_run_has_set_aside_stays_so_and_is_no_fault(
    tiny_corpus: Path,
    tiny_tfidf: Path,
    decision: str,
    score_locally: ScoreLocally,
    tmp_path: Path,
) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    (corpus / "bad.parquet").write_bytes(b"not Parquet")
    score_locally(corpus, tmp_path / "out", "limits.bad_files=1", AUTO, model=tiny_tfidf)
    summary = again(tmp_path / "out", tmp_path / "new", decision=decision)
    assert (summary["bad_files"], summary["rows"]["written"]) == (1, ROWS)
    verdict = verify(str(tmp_path / "new"))
    assert (verdict.complete, [item["source"] for item in verdict.set_aside]) == (
        True,
        ["bad.parquet"],
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_rate_is_kept_by_the_lowest_thresholds_that_keep_it(
    form: str, scored: dict[str, Path], read_output: ReadOutput, tmp_path: Path
) -> None:
    summary = again(scored[form], tmp_path / "new", objective="rate<=0.1")
    found = read_run(open_storage(str(tmp_path / "new"))).decision
    assert found.objective == "rate<=0.1"
    table = read_output(tmp_path / "new")
    rows = summary["statuses"]["ok"]
    given = pc.value_counts(pc.list_flatten(table["labels"])).to_pylist()
    counts = {item["values"]: item["counts"] for item in given}
    assert max(counts.values()) <= 0.1 * rows
    scores_NL = scores_of(read_output(scored["wide"]))
    scores_NL = scores_NL[~np.isnan(scores_NL[:, 0])]
    if form == "dense":
        scores_NL = scores_NL.astype(np.float16).astype(np.float32)
    expected = fit_thresholds(np.zeros_like(scores_NL), scores_NL, objective="rate<=0.1").own_L
    for label, name in enumerate(NAMES):
        above = int((scores_NL[:, label] >= max(expected[label], np.float32(0.02))).sum())
        assert counts.get(name, 0) == above
    assert verify(str(tmp_path / "new")).complete


@pytest.fixture(scope="module")
def examples(scored: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the corpus, annotated by what their scores have not much to do with; and others."""
    parts = sorted(scored["wide"].glob("**/*.parquet"))
    table = pa.concat_tables([pq.read_table(part, columns=["id", "status"]) for part in parts])
    ids = [row["id"] for row in table.to_pylist() if row["status"] == "ok"]
    rng = np.random.default_rng(0)
    labels = [[name for name in NAMES if rng.random() < 0.2] for _ in range(150)]
    file = tmp_path_factory.mktemp("examples") / "annotated.parquet"
    pq.write_table(
        pa.table(
            {"id": [*map(str, ids[:140]), *(f"other {n}" for n in range(10))], "labels": labels}
        ),
        file,
    )
    return file


@pytest.mark.parametrize("form", ["wide", "sparse"])
def test_an_objective_is_fitted_on_the_examples_that_are_among_the_rows(
    form: str, examples: Path, scored: dict[str, Path], read_output: ReadOutput, tmp_path: Path
) -> None:
    said: list[str] = []
    labelled = Labelled([str(examples)], "id", "labels")
    again(scored[form], tmp_path / "new", objective="fbeta=2", labelled=labelled, said=said)
    assert "140 of 150 examples are among the rows, by id" in said
    found = read_run(open_storage(str(tmp_path / "new"))).decision
    table, rows = read_output(scored["wide"]), pq.read_table(examples).to_pylist()[:140]
    place = {str(key): row for row, key in enumerate(table["id"].to_pylist())}
    scores_NL = scores_of(table)[[place[row["id"]] for row in rows]]
    if form == "sparse":
        kept_NL = (scores_NL >= np.float32(0.02)) & (scores_NL >= np.sort(scores_NL)[:, -8:-7])
        scores_NL = np.where(kept_NL, scores_NL, np.float32(0))
    targets_NL = np.array([[name in row["labels"] for name in NAMES] for row in rows], np.float32)
    expected = fit_thresholds(targets_NL, scores_NL, objective="fbeta=2").own_L
    if form == "sparse":
        expected = np.maximum(expected, np.float32(0.02))
    np.testing.assert_array_equal(found.thresholds_L(synthetic.LABELS), expected)
    again(scored[form], tmp_path / "new", objective="fbeta=2", labelled=labelled, said=said)
    assert said[-1] == "complete already: nothing to do"


def test_examples_that_cannot_be_joined_are_refused(
    examples: Path, out: Path, tmp_path: Path
) -> None:
    def fit(file: Path, id: str = "id") -> None:
        again(out, tmp_path / "new", objective="f1", labelled=Labelled([str(file)], id, "labels"))

    with pytest.raises(ConfigError, match=r"kept no such column .*it has: id"):
        fit(examples, "key")
    table = pq.read_table(examples)
    pq.write_table(table.slice(140), tmp_path / "others.parquet")
    with pytest.raises(DataError, match="none of the 10 ids is in column 'id'"):
        fit(tmp_path / "others.parquet")
    pq.write_table(table.drop_columns(["id"]), tmp_path / "without.parquet")
    with pytest.raises(DataError, match="there is no column 'id'"):
        fit(tmp_path / "without.parquet")
    strange = pa.table({"id": ["a"], "labels": [["no such label"]]})
    pq.write_table(strange, tmp_path / "strange.parquet")
    with pytest.raises(DataError, match="'no such label', which the run does not know"):
        fit(tmp_path / "strange.parquet")


def test_a_night_that_came_since_joins_when_asked_for(
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_job: Callable[..., Any],
    decision: str,
    tmp_path: Path,
) -> None:
    from ray_mlc.runtime.local import LocalBackend
    from ray_mlc.runtime.score import score

    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    out, new = tmp_path / "out", tmp_path / "new"
    job = score_job(corpus, out, AUTO, model=tiny_tfidf)
    score(job, LocalBackend(), Spoken())
    again(out, new, objective="rate<=0.1")
    kept = read_run(open_storage(str(new))).decision
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    score(job, LocalBackend(), Spoken(), add_new=True)
    said: list[str] = []
    assert again(out, new, objective="rate<=0.1", said=said)["rows"]["written"] == ROWS
    assert "has 1 night(s) that this output has not: --add-new" in said[0]
    before = times(new)
    summary = again(out, new, objective="rate<=0.1", add_new=True)
    assert (summary["rows"]["written"], summary["nights"]) == (ROWS + 80, 2)
    after = times(new)
    assert all(after[name] == time for name, time in before.items() if name.endswith(".parquet"))
    assert read_run(open_storage(str(new))).decision == kept
    assert verify(str(new)).complete
    assert progress_of(str(new))["state"] == "complete"


def test_two_versions_of_a_file_are_never_mixed(
    tiny_corpus: Path,
    tiny_tfidf: Path,
    score_job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from ray_mlc.runtime.local import LocalBackend
    from ray_mlc.runtime.score import score

    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    out, new = tmp_path / "out", tmp_path / "new"
    job = score_job(corpus, out, AUTO, model=tiny_tfidf)
    score(job, LocalBackend(), Spoken())
    again(out, new, objective="rate<=0.1")
    other = pq.read_table(corpus / "part-00001.parquet")
    pq.write_table(other, corpus / "part-00000.parquet")  # the file is another one now
    shutil.rmtree(out / "part-00000")
    score(job, LocalBackend(), Spoken(), add_new=True)
    with pytest.raises(RunMismatchError, match=r"part-00000.parquet: was scored again .* delete"):
        again(out, new, objective="rate<=0.1", add_new=True)
    # a part that got lost is not made from the present version under the plan of the earlier one
    shutil.rmtree(new / "part-00000")
    with pytest.raises(LimitError):
        again(out, new, objective="rate<=0.1")
    assert not list(new.glob("part-00000/*.parquet"))
    again(out, new, objective="rate<=0.1", add_new=True)
    assert read_rows(new, "part-00000") == read_rows(out, "part-00000")
    assert verify(str(new)).complete


def read_rows(output: Path, folder: str) -> list[Any]:
    return list(pq.read_table(output / folder)["id"].to_pylist())


def test_it_is_decided_again_from_what_was_decided_again(
    out: Path, decision: str, read_output: ReadOutput, tmp_path: Path
) -> None:
    again(out, tmp_path / "rate", objective="rate<=0.1")
    again(tmp_path / "rate", tmp_path / "new", decision=decision)
    again(out, tmp_path / "direct", decision=decision)
    assert read_output(tmp_path / "new").equals(read_output(tmp_path / "direct"))
    assert verify(str(tmp_path / "new"), deep=True).holds


def test_the_command_says_what_it_did_and_what_is_wrong(
    out: Path,
    decision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = str(tmp_path / "new")
    assert run_command(monkeypatch, "retag", str(out), new, "--decision", decision, "-q") == 0
    printed = capsys.readouterr().out
    assert f"240 of 240 rows decided again, written to {new}: " in printed
    assert " labels per row, " in printed
    wrong = {
        (): "give either --decision FILE or --objective",
        ("--decision", decision, "--objective", "f1"): "give either --decision FILE or",
        ("--objective", "f1"): "is measured on annotated rows: give --examples FILE",
        ("--objective", "rate<=0.1", "--examples", decision): "needs no --examples",
        ("--objective", "rat<=0.1"): "unknown objective rat<=0.1: expected f1",
        ("--decision", "none.json"): "none.json: there is no such decision file",
    }
    for options, text in wrong.items():
        assert run_command(monkeypatch, "retag", str(out), f"{new}-2", *options) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "new-2/_ray_mlc/run.json").exists()
