"""A run in one process: made once, continued where it stopped, never mixed with another."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob
from ray_mlc.corpus.listing import list_corpus
from ray_mlc.errors import (
    DataError,
    InterruptedRunError,
    LeaseError,
    LimitError,
    ModelError,
    RayMlcError,
    RunMismatchError,
    StorageError,
    UsageError,
)
from ray_mlc.labels import LabelSet
from ray_mlc.model.calibration import Calibration, Curve
from ray_mlc.model.decisions import Decision
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.identity import refuse_output_in_input
from ray_mlc.scoring.lease import LEASE_FILE, Owner
from ray_mlc.scoring.ledger import open_run, read_run
from ray_mlc.scoring.parts import Receipt, read_footer_key
from ray_mlc.scoring.verify import progress_of, verify
from ray_mlc.storage import open_storage

ROWS = 240
ScoreLocally = Callable[..., dict[str, Any]]
MakeJob = Callable[..., ScoreJob]
ReadOutput = Callable[[Path], pa.Table]


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run that the test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def parts_of(output: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every part: a part that was written again has others."""
    return {
        str(path.relative_to(output)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in output.glob("**/*.parquet")
    }


def never(_: Any) -> Any:
    raise AssertionError("an engine was resolved again, although the run has one recorded")


def reopen(job: ScoreJob) -> list[str]:
    """The notes with which a command continues a run."""
    return open_run(job, open_model(job.model), list_corpus(job.input.path), never)[2]


def test_every_row_of_the_corpus_is_in_the_output_once_and_in_order(
    tiny_corpus: Path, tiny_run: Path, read_output: ReadOutput
) -> None:
    files = sorted(tiny_corpus.glob("*.parquet"))
    given = pa.concat_tables([pq.read_table(path) for path in files])
    out = read_output(tiny_run)
    assert out["id"].to_pylist() == given["id"].to_pylist()
    assert out["url"].to_pylist() == given["url"].to_pylist()
    assert "text" not in out.column_names
    assert out["source"].to_pylist() == [path.name for path in files for _ in range(80)]
    assert out["row"].to_pylist() == list(range(80)) * 3
    texts = given["text"].to_pylist()
    for text, status, labels in zip(
        texts, out["status"].to_pylist(), out["labels"].to_pylist(), strict=True
    ):
        blank = "null_text" if text is None else "empty" if not text.strip() else "ok"
        assert status == blank
        assert (labels is None) == (blank != "ok")
    assert {"null_text", "empty"} <= set(out["status"].to_pylist())


def test_scores_and_labels_are_those_of_the_model(
    tiny_corpus: Path, tiny_run: Path, tiny_classifier: Any, read_output: ReadOutput
) -> None:
    out = read_output(tiny_run)
    tables = [pq.read_table(path) for path in sorted(tiny_corpus.glob("*.parquet"))]
    texts = pa.concat_tables(tables)["text"].to_pylist()
    ok = [row for row, status in enumerate(out["status"].to_pylist()) if status == "ok"]
    expected_NL = tiny_classifier.predict_proba([texts[row] for row in ok])
    names = tiny_classifier.label_set.names
    found_NL = np.stack(
        [out[f"score_{name}"].take(pa.array(ok)).to_numpy() for name in names], axis=1
    )
    assert np.abs(found_NL - expected_NL).max() < 2e-6
    for row, scores in zip(ok, found_NL, strict=True):
        given = [column for column in np.argsort(-scores) if scores[column] >= np.float32(0.6)]
        assert out["labels"][row].as_py() == [names[column] for column in given]


def test_the_output_holds_parts_a_ledger_and_a_success_and_nothing_else(tiny_run: Path) -> None:
    files = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    expected = {
        f"part-{file:05d}/{first:012d}.parquet" for file in range(3) for first in (0, 25, 50)
    }
    assert expected <= files
    others = {re.sub("-[0-9a-f]{16}", "", name) for name in files if not name.endswith(".parquet")}
    assert others == {
        "_SUCCESS",
        "_ray_mlc/run.json",
        "_ray_mlc/job.yaml",
        "_ray_mlc/decision.json",
        "_ray_mlc/failures.json",
        "_ray_mlc/summary.json",
        "_ray_mlc/runs/1/files.arrow",
        "_ray_mlc/runs/1/units.arrow",
        "_ray_mlc/runs/1/night.json",
    }


def test_every_part_says_which_run_it_belongs_to(tiny_run: Path, tiny_model: Path) -> None:
    run = read_run(open_storage(str(tiny_run)))
    folder = open_model(str(tiny_model))
    for part in run.part_paths:
        footer = read_footer_key(pq.read_metadata(tiny_run / part))
        assert footer is not None
        assert footer["run"] == run.digest
        assert footer["model"] == {"id": folder.name, "digest": folder.digest}
        assert footer["labels"] == list(folder.label_set.names)
        assert footer["decision"]["threshold"] == 0.6
        assert footer["long"] == {"policy": "truncate", "max_tokens": 32, "windows": None}
        assert footer["engine"]["dtype"] == "float32"
        assert footer["versions"]["pyarrow"] == pa.__version__
        assert Receipt(**footer["receipt"]).part == part


def test_the_summary_counts_what_is_in_the_output(tiny_run: Path, read_output: ReadOutput) -> None:
    summary = json.loads((tiny_run / "_ray_mlc/summary.json").read_text())
    out = read_output(tiny_run)
    assert summary["rows"] == {"planned": ROWS, "written": ROWS, "set_aside": 0}
    statuses = out["status"].to_pylist()
    assert summary["statuses"] == {name: statuses.count(name) for name in sorted(set(statuses))}
    assert summary["parts"] == len(parts_of(tiny_run))
    assert summary["tokens"] == sum(count or 0 for count in out["n_tokens"].to_pylist())
    assert summary["truncated"] == sum(bool(cut) for cut in out["truncated"].to_pylist())
    labels = sum(len(names or ()) for names in out["labels"].to_pylist())
    assert summary["labels_per_row"] == pytest.approx(labels / statuses.count("ok"))
    assert json.loads((tiny_run / "_ray_mlc/failures.json").read_text()) == []
    progress = progress_of(str(tiny_run))
    assert progress["state"] == "complete"
    assert progress["rows"] == {"planned": ROWS, "written": ROWS}


def test_the_same_command_again_writes_no_part(
    tiny_corpus: Path, run_copy: Path, score_locally: ScoreLocally
) -> None:
    before = parts_of(run_copy)
    recorded = (run_copy / "_ray_mlc/run.json").read_bytes()
    summary = score_locally(tiny_corpus, run_copy)
    assert parts_of(run_copy) == before
    assert (run_copy / "_ray_mlc/run.json").read_bytes() == recorded
    recorded_summary = json.loads((run_copy / "_ray_mlc/summary.json").read_text())
    assert recorded_summary["this_process"]["rows"] == ROWS
    # what was done is the earlier command's: this one has no speed to tell of
    assert summary["this_process"] == dict.fromkeys(recorded_summary["this_process"], 0) | {
        "rows_per_s": None,
        "tokens_per_s": None,
    }
    assert summary == recorded_summary | {"this_process": summary["this_process"]}
    (run_copy / "_SUCCESS").unlink()  # as of a process that was killed just before the end
    summary = score_locally(tiny_corpus, run_copy)
    assert parts_of(run_copy) == before
    assert (run_copy / "_SUCCESS").exists()
    assert summary["rows"]["written"] == ROWS
    assert summary["this_process"]["rows"] == 0


def test_a_run_that_lost_parts_makes_exactly_those_again(
    tiny_corpus: Path,
    tiny_run: Path,
    run_copy: Path,
    score_locally: ScoreLocally,
    read_output: ReadOutput,
) -> None:
    before = parts_of(run_copy)
    lost = sorted(before)[1::3]
    for part in lost:
        (run_copy / part).unlink()
    (run_copy / "_SUCCESS").unlink()
    leftover = run_copy / "_ray_mlc/tmp/half.tmp"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half a part")
    summary = score_locally(tiny_corpus, run_copy)
    after = parts_of(run_copy)
    assert {part for part in after if after[part] != before[part]} == set(lost)
    assert not leftover.exists()
    assert (run_copy / "_SUCCESS").exists()
    assert summary["rows"]["written"] == ROWS
    assert summary["this_process"]["rows"] == sum(
        pq.read_metadata(run_copy / part).num_rows for part in lost
    )
    again, first = read_output(run_copy), read_output(tiny_run)
    for name in first.column_names:
        if name.startswith("score_"):
            gap = np.nan_to_num(again[name].to_numpy() - first[name].to_numpy())
            assert np.abs(gap).max() < 1e-6
        else:
            assert again[name].to_pylist() == first[name].to_pylist(), name
    assert verify(str(run_copy), deep=True).holds


def test_an_interrupted_run_keeps_its_parts_and_goes_on(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, score_locally: ScoreLocally
) -> None:
    class Interrupted(LocalBackend):
        """Ctrl-C after the second read."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            for number, receipts in enumerate(super().process(*args, **options)):
                yield receipts
                if number == 1:
                    raise KeyboardInterrupt

    output = tmp_path / "out"
    with pytest.raises(InterruptedRunError, match=r"of 240 rows.*run the same command"):
        score(score_job(tiny_corpus, output), Interrupted(), Display(quiet=True))
    before = parts_of(output)
    assert before
    assert not (output / "_SUCCESS").exists()
    assert progress_of(str(output))["state"] == "unfinished"
    score_locally(tiny_corpus, output)
    assert before.items() <= parts_of(output).items()
    assert verify(str(output), deep=True).holds


def test_a_temporary_file_of_a_writer_killed_on_the_way_is_swept_before_success(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    output = tmp_path / "out"

    class Killing(LocalBackend):
        """A writing process dies between write and rename; its work is repeated."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            (output / "_ray_mlc/tmp/killed.tmp").write_bytes(b"half a part")
            yield from super().process(*args, **options)

    score(score_job(tiny_corpus, output), Killing(), Display(quiet=True))
    assert list((output / "_ray_mlc/tmp").iterdir()) == []


def test_a_unit_that_no_one_wrote_is_an_error_and_no_success(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    class Forgetful(LocalBackend):
        """Drops the receipts and parts of the last read."""

        def process(self, run: Any, folder: Any, reads: Any, *args: Any, **options: Any) -> Any:
            return super().process(run, folder, reads[:-1], *args, **options)

    output = tmp_path / "out"
    with pytest.raises(
        RayMlcError, match=r"1 unit\(s\) were not written, such as part-0"
    ) as caught:
        score(score_job(tiny_corpus, output), Forgetful(), Display(quiet=True))
    assert caught.value.exit_code == 1
    assert not (output / "_SUCCESS").exists()


def test_a_receipt_without_its_part_is_an_error(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.scoring.accounts.LAG_S", 0.1)
    output = tmp_path / "out"

    class Losing(LocalBackend):
        """Says that all is written, but a part is gone."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            yield from super().process(*args, **options)
            (output / "part-00001/000000000025.parquet").unlink()

    with pytest.raises(RayMlcError, match=r"1 unit\(s\) were not written, such as part-00001/"):
        score(score_job(tiny_corpus, output), Losing(), Display(quiet=True))


DIFFERENT = {
    "units.rows": "units.rows=31",
    "units.bytes": "units.bytes=1MiB",
    "input.text": "input.text='{url} {text}'",
    "input.max_text_bytes": "input.max_text_bytes=1MiB",
    "output.keep": "output.keep=[id]",
    "output.k": "output.k=5",
    "output.floor": "output.floor=0.5",
    "output.format": "output.format=sparse",
    "long.policy": "long={policy: skip, max_tokens: 32}",
    "long.max_tokens": "long={policy: truncate, max_tokens: 31}",
    "engine.dtype": "engine.dtype=bfloat16",
    "batching.max_batch_tokens": "batching.max_batch_tokens=100",
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_a_command_that_differs_is_refused_with_the_difference_named(
    tiny_corpus: Path, tiny_run: Path, score_job: MakeJob, key: str
) -> None:
    before = parts_of(tiny_run)
    with pytest.raises(RunMismatchError, match=f"holds a run with {key} .*, the command has "):
        reopen(score_job(tiny_corpus, tiny_run, DIFFERENT[key]))
    assert parts_of(tiny_run) == before


def test_another_input_is_refused(
    tiny_corpus: Path, tiny_run: Path, score_job: MakeJob, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_corpus, tmp_path / "other")
    with pytest.raises(RunMismatchError, match=r"with input\.root "):
        reopen(score_job(other, tiny_run))


def test_another_model_is_refused_with_both_named(
    tiny_corpus: Path, tiny_run: Path, make_model: Any, score_job: MakeJob, tiny_model: Path
) -> None:
    other = make_model(seed=1)
    with pytest.raises(RunMismatchError, match="with model ") as caught:
        reopen(score_job(tiny_corpus, tiny_run, model=other))
    assert str(other) in str(caught.value)
    assert str(tiny_model) in str(caught.value)


def test_the_same_model_elsewhere_continues_the_run(
    tiny_corpus: Path, tiny_run: Path, tiny_model: Path, score_job: MakeJob, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert reopen(score_job(tiny_corpus, tiny_run, model=moved)) == []


def test_a_decision_from_a_file_decides_the_run_is_in_its_footers_and_no_other_file_joins_it(
    tiny_corpus: Path,
    tmp_path: Path,
    score_job: MakeJob,
    score_locally: ScoreLocally,
    read_output: ReadOutput,
    tiny_run: Path,
) -> None:
    one, two = synthetic.LABELS.names[:2]
    decision = Decision(
        threshold=0.9,
        hierarchy={one: [two]},
        fallback=1,
        calibration=Calibration(method="platt", pooled=Curve(slope=0.5)),
    )
    file, out = tmp_path / "decision.json", tmp_path / "out"
    file.write_text(decision.model_dump_json())
    score_locally(tiny_corpus, out, f"decision={file}")
    rows, other = read_output(out), read_output(tiny_run)
    for name in synthetic.LABELS.names:  # scores are what they were: no calibration is in them
        np.testing.assert_array_equal(
            rows[f"score_{name}"].to_numpy(), other[f"score_{name}"].to_numpy()
        )
    names = synthetic.LABELS.names
    seen = set()
    for row in rows.to_pylist():
        if row["status"] != "ok":
            assert row["labels"] is None
            continue
        scores = {name: row[f"score_{name}"] for name in names}
        given = {name for name in names if scores[name] >= np.float32(0.9)}
        given = given or {max(names, key=scores.__getitem__)}
        given |= {two} if one in given else set()
        assert row["labels"] == sorted(given, key=lambda name: -scores[name])
        seen |= given
    assert {one, two} <= seen
    footer = read_footer_key(pq.read_metadata(next(iter(out.glob("**/*.parquet")))))
    assert footer is not None
    said = footer["decision"]
    assert said.pop("digest") == decision.digest
    assert Decision.model_validate(said) == decision.uncalibrated
    assert read_run(open_storage(str(out))).decision == decision
    assert verify(str(out), deep=True).holds
    before = parts_of(out)
    score_locally(tiny_corpus, out, f"decision={file}")  # finished already
    assert parts_of(out) == before
    (note,) = reopen(score_job(tiny_corpus, out))  # without naming it: the run has its own
    assert "is not the one that this run was started with: the run goes on with its own" in note
    file.write_text(decision.model_copy(update={"fallback": 2}).model_dump_json())
    with pytest.raises(
        RunMismatchError, match=r'with decision {"fallback": 1}, .* {"fallback": 2}'
    ):
        score_locally(tiny_corpus, out, f"decision={file}")
    file.write_text('{"hierarchy": {"no such label": []}}')
    with pytest.raises(UsageError, match="label 'no such label' is not among the 12 of the model"):
        score_locally(tiny_corpus, tmp_path / "third", f"decision={file}")
    assert not (tmp_path / "third").exists()


def test_actors_are_proven_by_the_decision_of_the_run_and_not_by_that_of_the_model(
    tiny_corpus: Path, tiny_model: Path, tmp_path: Path, score_locally: ScoreLocally
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    # every label's threshold lies between a canary's score and what another processor makes of it
    canaries = json.loads((model / "canaries.json").read_text())
    info = json.loads((model / "ray_mlc.json").read_text())
    info["decision"]["per_label"] = {
        name: score - 2e-6
        for name, score in zip(info["labels"], canaries["scores"][0], strict=True)
    }
    canaries["scores"] = [[score - 5e-6 for score in row] for row in canaries["scores"]]
    (model / "canaries.json").write_text(json.dumps(canaries))
    (model / "ray_mlc.json").write_text(json.dumps(info))
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        score_locally(tiny_corpus, tmp_path / "own", model=model)
    decision = tmp_path / "decision.json"
    decision.write_text('{"threshold": 0.99}')
    out = tmp_path / "out"
    score_locally(tiny_corpus, out, f"decision={decision}", model=model)
    assert verify(str(out), deep=True).holds


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine.dtype=auto", "output.format=auto", "batching.max_batch_tokens=auto"),
        ("engine.name=torch", "output.format=wide"),
        ("long={policy: truncate}",),
        ("long.max_tokens=32",),
        ("batching.max_batch_tokens=4096",),
        ("actors.count=7", "limits.bad_rows=3", "limits.no_progress=1h"),
    ],
)
def test_auto_matches_what_is_recorded_and_so_does_its_value(
    tiny_corpus: Path, tiny_run: Path, score_job: MakeJob, overrides: tuple[str, ...]
) -> None:
    assert reopen(score_job(tiny_corpus, tiny_run, *overrides)) == []


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_input_file_is_named_and_refused(
    tiny_corpus: Path,
    tmp_path: Path,
    score_job: MakeJob,
    score_locally: ScoreLocally,
    change: str,
) -> None:
    corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    score_locally(corpus, tmp_path / "out")
    path = corpus / "part-00001.parquet"
    status = path.stat()
    if change == "size":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    with pytest.raises(RunMismatchError, match=r"^part-00001\.parquet: changed since the run"):
        reopen(score_job(corpus, tmp_path / "out"))


def test_new_vanished_and_hidden_files_are_noted(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, score_locally: ScoreLocally
) -> None:
    corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    shutil.copy(corpus / "part-00000.parquet", corpus / "_staged.parquet")
    score_locally(corpus, tmp_path / "out")
    shutil.copy(corpus / "part-00000.parquet", corpus / "part-00009.parquet")
    (corpus / "part-00002.parquet").unlink()
    assert reopen(score_job(corpus, tmp_path / "out")) == [
        "1 new file(s) are not part of this run, such as part-00009.parquet: --add-new scores "
        "them too",
        "1 planned file(s) are gone, such as part-00002.parquet",
        "1 hidden file(s) were skipped, such as _staged.parquet",
    ]


def test_a_folder_with_the_parquet_files_of_others_is_refused(
    tiny_corpus: Path, tmp_path: Path, score_locally: ScoreLocally
) -> None:
    output = tmp_path / "out"
    (output / "deep").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), output / "deep/theirs.parquet")
    with pytest.raises(RunMismatchError, match=r"deep/theirs\.parquet, which belongs to no run"):
        score_locally(tiny_corpus, output)
    assert [path.name for path in output.rglob("*") if path.is_file()] == ["theirs.parquet"]


@pytest.mark.parametrize(
    ("inputs", "output", "refused"),
    [
        (".", "out", True),
        (".", ".", True),
        (".", "deep/er/out", True),
        (".", "_out", False),
        (".", "x/_tags/out", False),
        ("**/*.parquet", "out", True),
        ("*/*.parquet", "out", False),
        ("*.parquet", "out", False),
        (["part-00000.parquet", "part-00001.parquet"], "out", False),
        (".", "../corpus_tags", False),
    ],
)
def test_an_output_that_the_input_would_read_is_refused(
    tiny_corpus: Path,
    tmp_path: Path,
    score_job: MakeJob,
    inputs: Any,
    output: str,
    refused: bool,
) -> None:
    # the corpus lies below a hidden folder itself: that must not hide what is below it
    corpus = shutil.copytree(tiny_corpus, tmp_path / "_data/corpus")
    (corpus / "deep").mkdir()
    shutil.copy(corpus / "part-00000.parquet", corpus / "deep/part-00003.parquet")
    paths = [inputs] if isinstance(inputs, str) else inputs
    job = score_job([str(corpus / path) for path in paths], (corpus / output).resolve())

    listing = list_corpus(job.input.path)
    if refused:
        with pytest.raises(DataError, match="lies inside the input"):
            refuse_output_in_input(job, listing)
    else:
        refuse_output_in_input(job, listing)


def test_a_corpus_without_rows_ends_well(tmp_path: Path, score_locally: ScoreLocally) -> None:
    schema = pa.schema([("text", pa.string()), ("id", pa.int64())])
    (tmp_path / "in").mkdir()
    pq.write_table(schema.empty_table(), tmp_path / "in/a.parquet")
    summary = score_locally(tmp_path / "in", tmp_path / "out")
    assert summary["rows"] == {"planned": 0, "written": 0, "set_aside": 0}
    assert (tmp_path / "out/_SUCCESS").exists()
    assert verify(str(tmp_path / "out")).holds
    assert score_locally(tmp_path / "in", tmp_path / "out")["parts"] == 0


def test_files_without_rows_among_others_do_no_harm(
    tiny_corpus: Path, tmp_path: Path, score_locally: ScoreLocally
) -> None:
    corpus = shutil.copytree(tiny_corpus, tmp_path / "in")
    table = pq.read_table(corpus / "part-00000.parquet").slice(0, 0)
    pq.write_table(table, corpus / "empty.parquet")
    assert score_locally(corpus, tmp_path / "out")["rows"]["written"] == ROWS
    assert verify(str(tmp_path / "out"), deep=True).holds


def test_many_labels_give_a_sparse_output_whose_footer_says_so(
    tiny_corpus: Path, tmp_path: Path, make_model: Any, score_locally: ScoreLocally
) -> None:
    label_set = LabelSet(tuple(f"topic {number}" for number in range(70)))
    model = make_model(label_set)
    output = tmp_path / "out"
    settings = ("output.k=3", "output.floor=0.4")
    summary = score_locally(tiny_corpus, output, *settings, model=model)
    part = next(output.glob("**/*.parquet"))
    footer = read_footer_key(pq.read_metadata(part))
    assert footer is not None
    assert footer["format"] == {"format": "sparse", "k": 3, "floor": 0.4}
    assert summary["k_cut"] > 0
    tops = pq.ParquetFile(part).read()["top"].to_pylist()
    assert max(len(top or ()) for top in tops) == 3


def test_the_footer_maps_labels_whose_column_has_another_name(
    tiny_corpus: Path, tmp_path: Path, make_model: Any, score_locally: ScoreLocally
) -> None:
    model = make_model(LabelSet(("Spam", "spam", "ham")))
    score_locally(tiny_corpus / "part-00000.parquet", tmp_path / "out", model=model)
    part = next((tmp_path / "out").glob("**/*.parquet"))
    footer = read_footer_key(pq.read_metadata(part))
    assert footer is not None
    assert footer["columns"] == {"spam": "spam_2"}
    table = pq.ParquetFile(part).read()
    assert {"score_Spam", "score_spam_2", "score_ham"} <= set(table.column_names)
    assert {name for names in table["labels"].to_pylist() for name in names or ()} <= {
        "Spam",
        "spam",
        "ham",
    }


def test_a_folder_without_a_run_or_with_a_damaged_one_is_refused(
    tmp_path: Path, run_copy: Path
) -> None:
    with pytest.raises(UsageError, match="there is no run here"):
        verify(str(tmp_path / "nothing"))
    next(run_copy.glob("_ray_mlc/runs/1/units-*.arrow")).unlink()
    with pytest.raises(UsageError, match=r"units-.*\.arrow: missing: the run is damaged"):
        verify(str(run_copy))
    (run_copy / "_ray_mlc/run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json: not valid JSON"):
        progress_of(str(run_copy))


def test_a_run_of_another_schema_is_refused_with_the_version_that_made_it(run_copy: Path) -> None:
    path = run_copy / "_ray_mlc/run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema_version": 1, "versions": {"ray-mlc": "0.0.9"}}))
    with pytest.raises(UsageError, match=r"schema version 1, expected 3: .* \(0\.0\.9\)"):
        verify(str(run_copy))


def test_a_part_of_another_run_stops_the_run_that_finds_it(
    tiny_corpus: Path,
    run_copy: Path,
    tmp_path: Path,
    score_locally: ScoreLocally,
) -> None:
    other = tmp_path / "other"
    score_locally(tiny_corpus, other, "output.k=7")
    part = "part-00000/000000000000.parquet"
    shutil.copy(other / part, run_copy / part)
    (run_copy / "_SUCCESS").unlink()
    with pytest.raises(RunMismatchError, match=f"{part} belongs to another run"):
        score_locally(tiny_corpus, run_copy)


def test_a_model_that_changes_between_start_and_work_is_refused(
    tiny_corpus: Path, tiny_model: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")

    class Changing(LocalBackend):
        """Somebody trains into the model folder meanwhile."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            config = model / "config.json"
            config.write_text(config.read_text() + "\n")
            return super().process(*args, **options)

    with pytest.raises(RayMlcError, match="differ from those that the run was"):
        score(
            score_job(tiny_corpus, tmp_path / "out", model=model), Changing(), Display(quiet=True)
        )


def test_long_texts_are_skipped_where_the_job_says_so(
    tmp_path: Path, score_locally: ScoreLocally, read_output: ReadOutput
) -> None:
    synthetic.write_corpus(tmp_path / "in", rows=20, files=1, seed=3)
    output = tmp_path / "out"
    settings = ("long={policy: skip, max_tokens: 16}", "limits.bad_rows=1000")
    score_locally(tmp_path / "in", output, *settings)
    out = read_output(output)
    for status, tokens in zip(out["status"].to_pylist(), out["n_tokens"].to_pylist(), strict=True):
        if tokens is not None:
            assert status == ("too_long" if tokens > 16 else "ok")


def test_a_plan_that_is_not_the_runs_own_is_noticed(run_copy: Path) -> None:
    units = next(run_copy.glob("_ray_mlc/runs/1/units-*.arrow"))
    units.write_bytes(units.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="is not the plan that the night was started with"):
        verify(str(run_copy))


def test_a_file_that_is_replaced_while_it_is_read_is_set_aside_and_there_is_no_success(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    corpus, output = shutil.copytree(tiny_corpus, tmp_path / "in"), tmp_path / "out"

    replaced: list[str] = []

    class Replacing(LocalBackend):
        """Somebody writes a file of the same shape over another, after its first unit was read."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            for number, receipts in enumerate(super().process(*args, **options)):
                yield receipts
                if number == 0:
                    replaced.append(receipts[0][0].source)
                    path = corpus / replaced[0]
                    table = pq.read_table(path)
                    pq.write_table(table.take(list(range(80))[::-1]), path, row_group_size=50)

    with pytest.raises(LimitError, match=r"parquet: read: the file has changed since"):
        score(score_job(corpus, output, "units.rows=10"), Replacing(), Display(quiet=True))
    assert not (output / "_SUCCESS").exists()
    failures = json.loads((output / "_ray_mlc/failures.json").read_text())
    assert {item["source"] for item in failures} == set(replaced)
    folder = output / replaced[0].removesuffix(".parquet")
    # the remedy that the next command names
    with pytest.raises(RunMismatchError, match=f"delete {folder}/ and run the same"):
        score(score_job(corpus, output, "units.rows=10"), LocalBackend(), Display(quiet=True))
    shutil.rmtree(folder)
    score(score_job(corpus, output, "units.rows=10"), LocalBackend(), Display(quiet=True))
    assert verify(str(output), deep=True).complete


def test_an_input_folder_that_goes_away_stops_the_run_and_sets_nothing_aside(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    corpus, output = shutil.copytree(tiny_corpus, tmp_path / "in"), tmp_path / "out"

    class Unmounted(LocalBackend):
        """The whole input is away after the first unit."""

        def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
            for number, receipts in enumerate(super().process(*args, **options)):
                yield receipts
                if number == 0:
                    corpus.rename(tmp_path / "away")

    job = score_job(corpus, output, "units.rows=10")
    with pytest.raises(StorageError, match="is gone, with all its files: mount or restore it"):
        score(job, Unmounted(), Display(quiet=True))
    assert not (output / "_ray_mlc/failures.json").exists()
    (tmp_path / "away").rename(corpus)
    score(job, LocalBackend(), Display(quiet=True))
    assert verify(str(output), deep=True).complete


def test_a_run_that_was_taken_over_declares_nothing(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    def sweep_slowly(storage: Any, prefix: str) -> int:
        """Another command takes the lease just before the end."""
        storage.put(LEASE_FILE, replace(Owner.this_process(), token="theirs").to_bytes())
        return 0

    monkeypatch.setattr("ray_mlc.scoring.accounts.sweep", sweep_slowly)
    with pytest.raises(LeaseError, match="taken over by"):
        score(score_job(tiny_corpus, output), LocalBackend(), Display(quiet=True))
    assert not (output / "_SUCCESS").exists()


def test_a_folder_is_the_same_however_its_path_is_spelled(
    tiny_corpus: Path, tmp_path: Path, score_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(score_job(tiny_corpus, tmp_path / "out"), LocalBackend(), Display(quiet=True))
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    other = os.path.relpath(tiny_corpus)
    assert ".." in other
    for spelling in (other, f"{tiny_corpus}/", f"file://{tiny_corpus}/./"):
        score(score_job(spelling, "../out"), LocalBackend(), Display(quiet=True))
