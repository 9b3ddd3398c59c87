"""A run keeps the decision of its first start, whatever becomes of the model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.displays import Spoken

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob
from ray_mlc.errors import InterruptedRunError, RunMismatchError, UsageError
from ray_mlc.labels import LabelSet
from ray_mlc.model.calibration import Calibration, Curve
from ray_mlc.model.decisions import Decision
from ray_mlc.model.folder import open_model, write_decision
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.ledger import RUN_FILE, read_run
from ray_mlc.scoring.parts import Receipt, read_footer_key
from ray_mlc.scoring.recorded import footer_of, read_decision
from ray_mlc.scoring.verify import verify
from ray_mlc.storage import open_storage

MakeJob = Callable[..., ScoreJob]
ReadOutput = Callable[[Path], pa.Table]
NOTE = "is not the one that this run was started with: the run goes on with its own"
METRICS: dict[str, dict[str, Any]] = {"at_half": {}, "fitted": {}}


class Stopped(LocalBackend):
    """Ctrl-C after the second read."""

    def process(self, *args: Any, **options: Any) -> Iterator[list[Receipt]]:
        for number, receipts in enumerate(super().process(*args, **options)):
            yield receipts
            if number == 1:
                raise KeyboardInterrupt


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that the test may fit again."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """A corpus that the test may add to."""
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


@pytest.fixture
def tag(score_job: MakeJob, corpus: Path, model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Scores the corpus into `out` and returns the notes."""

    def run(*overrides: str, backend: Any = LocalBackend, **options: bool) -> list[str]:
        display = Spoken()
        job = score_job(corpus, tmp_path / "out", *overrides, model=model)
        score(job, backend(), display, **options)
        return [line for line in display.said if line.startswith("note: ")]

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fit_again(model: Path, decision: Decision) -> None:
    """What `ray-mlc thresholds` does at its end."""
    write_decision(open_model(str(model)), decision, METRICS)


def labels_are_by(threshold: float, table: pa.Table) -> None:
    names = synthetic.LABELS.names
    given = 0
    for row in table.to_pylist():
        if row["status"] == "ok":
            above = {n for n in names if row[f"score_{n}"] >= np.float32(threshold)}
            assert set(row["labels"]) == above
            given += len(above)
    assert given


def test_thresholds_fitted_between_two_nights_change_neither(
    tag: Callable[..., list[str]], corpus: Path, model: Path, out: Path, read_output: ReadOutput
) -> None:
    assert tag() == []
    recorded = (out / RUN_FILE).read_bytes()
    calibrated = Calibration(method="platt", pooled=Curve(slope=2.0))
    fit_again(model, Decision(threshold=0.3, fallback=2, calibration=calibrated))
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    notes = tag(add_new=True)
    assert [note for note in notes if NOTE in note] == [
        f"note: the decision of {model} {NOTE}; a new output takes the model's"
    ]
    labels_are_by(0.6, read_output(out))
    digests = {read_footer_key(pq.read_metadata(part))["decision"]["digest"]  # type: ignore[index]
               for part in out.glob("**/*.parquet")}  # fmt: skip
    assert digests == {read_run(open_storage(str(out))).decision.digest}
    assert (out / RUN_FILE).read_bytes() == recorded
    verdict = verify(str(out), deep=True)  # scores and labels again, by the run's decision
    assert (verdict.holds, verdict.total("written")) == (True, 320)
    assert verdict.rescored is not None
    assert verdict.rescored.flips == 0
    assert any(NOTE in note for note in tag())  # finished already, and said all the same


def test_thresholds_fitted_in_the_middle_of_a_run_change_no_row_of_it(
    tag: Callable[..., list[str]], model: Path, out: Path, read_output: ReadOutput
) -> None:
    with pytest.raises(InterruptedRunError):
        tag(backend=Stopped)
    assert not (out / "_SUCCESS").exists()
    fit_again(model, Decision(threshold=0.3))
    assert any(NOTE in note for note in tag())
    labels_are_by(0.6, read_output(out))
    assert verify(str(out), deep=True).holds


def test_thresholds_fitted_while_actors_are_at_work_change_no_row(
    tag: Callable[..., list[str]], model: Path, out: Path, read_output: ReadOutput
) -> None:
    class Meanwhile(LocalBackend):
        """The decision is fitted after the first read; a new actor opens the model after that."""

        def process(self, run: Any, work: Any, *args: Any, **options: Any) -> Any:
            fit_again(model, Decision(threshold=0.3))
            yield from super().process(run, work, *args, **options)

    assert tag(backend=Meanwhile) == []
    labels_are_by(0.6, read_output(out))


def test_a_file_that_differs_is_refused_and_the_runs_own_is_not(
    tag: Callable[..., list[str]], model: Path, tmp_path: Path
) -> None:
    tag()
    own = open_model(str(model)).info.decision
    fit_again(model, Decision(threshold=0.3))
    file = tmp_path / "decision.json"
    file.write_text('{"threshold": 0.3}')  # the very one that the folder has now
    with pytest.raises(RunMismatchError, match=r"with decision .*0\.6.*, the command has .*0\.3"):
        tag(f"decision={file}")
    file.write_text(own.model_dump_json())
    assert tag(f"decision={file}") == []


def test_other_weights_are_refused_even_if_the_decision_differs_too(
    tag: Callable[..., list[str]], model: Path
) -> None:
    tag()
    fit_again(model, Decision(threshold=0.3))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "note": "trained again"}))
    with pytest.raises(RunMismatchError, match="holds a run with model "):
        tag()


def test_a_decision_that_says_the_same_is_the_same(
    tag: Callable[..., list[str]], model: Path
) -> None:
    tag()
    file = model / "ray_mlc.json"
    info = json.loads(file.read_text())
    info["decision"] = dict(reversed(info["decision"].items()))
    info["metrics"] = {"at_half": {"f1_micro": 0.5}}
    file.write_text(json.dumps(info))
    assert tag() == []


def as_schema_2(out: Path) -> None:
    """What `run.json` was before the decision got a file of its own."""
    record = json.loads((out / RUN_FILE).read_text())
    decision = read_run(open_storage(str(out))).decision
    record["schema_version"] = 2
    record["identity"]["decision"] = decision.model_dump(mode="json")
    (out / RUN_FILE).write_text(json.dumps(record))
    for file in out.glob("_ray_mlc/decision-*"):
        file.unlink()


def test_a_run_of_the_schema_before_goes_on(
    tag: Callable[..., list[str]], model: Path, corpus: Path, out: Path, read_output: ReadOutput
) -> None:
    with pytest.raises(InterruptedRunError):
        tag(backend=Stopped)
    as_schema_2(out)
    recorded = (out / RUN_FILE).read_bytes()
    assert tag() == []
    fit_again(model, Decision(threshold=0.3))
    shutil.copy(corpus / "part-00000.parquet", corpus / "tuesday.parquet")
    assert any(NOTE in note for note in tag(add_new=True))
    labels_are_by(0.6, read_output(out))
    assert verify(str(out), deep=True).holds
    assert (out / RUN_FILE).read_bytes() == recorded


def test_a_decision_that_is_lost_or_damaged_is_named(
    tag: Callable[..., list[str]], out: Path
) -> None:
    tag()
    (file,) = out.glob("_ray_mlc/decision-*.json")
    whole = file.read_text()
    for damaged in (whole.replace("0.6", "0.5"), whole[:-2], "{}", "[]"):
        file.write_text(damaged)
        with pytest.raises(UsageError, match=r"decision-.*json: is not the decision that the run"):
            tag()
    file.unlink()
    for use in (tag, lambda: verify(str(out), deep=True)):
        with pytest.raises(UsageError, match=r"decision-.*json: missing: the run is damaged"):
            use()
    assert verify(str(out)).holds  # the rows are all there


def test_two_that_start_a_run_at_once_share_one_decision(
    tag: Callable[..., list[str]], score_job: MakeJob, corpus: Path, model: Path, out: Path
) -> None:
    """The other one fits the model between our look at it and our start, and is first."""
    other = Path(shutil.copytree(model, model.with_name("other")))
    fit_again(other, Decision(threshold=0.3))

    class Late(LocalBackend):
        def resolve(self, *args: Any) -> Any:
            score(score_job(corpus, out, model=other), LocalBackend(), Display(quiet=True),
                  use_lease=False)  # fmt: skip
            return super().resolve(*args)

    assert any(NOTE in note for note in tag(backend=Late))
    assert read_run(open_storage(str(out))).decision.threshold == 0.3
    assert verify(str(out), deep=True).holds


def knots(count: int) -> Curve:
    values = [round(-9 + 18 * place / count, 6) for place in range(count)]
    return Curve(slope=0.001, logits=values, calibrated=values)


def many_labels(count: int) -> Decision:
    names = [f"label number {index}" for index in range(count)]
    return Decision(
        threshold=0.4,
        per_label={name: 0.123456789 + index / 10**5 for index, name in enumerate(names)},
        hierarchy={name: [names[0]] for name in names[1:]},
        calibration=Calibration(
            method="isotonic", pooled=knots(40), per_label={name: knots(40) for name in names}
        ),
    )


@pytest.mark.parametrize(("count", "most"), [(1, 400), (64, 6_000), (65, 100), (4271, 100)])
def test_what_a_part_says_of_a_decision_is_small(count: int, most: int) -> None:
    decision = many_labels(count)
    label_set = LabelSet(tuple(decision.per_label))
    said = footer_of(decision, label_set)
    assert len(json.dumps(said)) <= most
    assert said["digest"] == decision.digest
    assert "calibration" not in said
    rules = {key: value for key, value in said.items() if key != "digest"}
    if count <= 64:
        assert Decision.model_validate(rules) == decision.uncalibrated
    else:
        assert rules == {}


def test_a_part_of_4271_labels_holds_its_labels_once_and_no_curves(
    make_model: Any, tiny_corpus: Path, tmp_path: Path, score_job: MakeJob
) -> None:
    decision = many_labels(4271)
    names = tuple(decision.per_label)
    model = make_model(LabelSet(names))
    info = json.loads((model / "ray_mlc.json").read_text())
    info["decision"] = decision.model_dump(mode="json")
    info["schema_version"] = 2
    (model / "ray_mlc.json").write_text(json.dumps(info))
    corpus, out = tmp_path / "in", tmp_path / "out"
    corpus.mkdir()
    table = pq.read_table(tiny_corpus / "part-00000.parquet").slice(0, 4)
    pq.write_table(table, corpus / "a.parquet")
    job = score_job(corpus, out, "batching.max_batch_tokens=64", model=model)
    score(job, LocalBackend(), Display(quiet=True))
    assert len(json.dumps(info["decision"])) > 2_500_000
    (part,) = out.glob("**/*.parquet")
    metadata = pq.read_metadata(part)
    listed = len(json.dumps(names))
    assert sum(len(value) for value in metadata.metadata.values()) < listed + 5_000
    assert read_footer_key(metadata)["labels"] == list(names)  # type: ignore[index]
    assert (out / RUN_FILE).stat().st_size < listed + 50_000
    assert read_run(open_storage(str(out))).decision == decision
    assert len(list(out.glob("_ray_mlc/decision-*.json"))) == 1


def test_a_digest_depends_on_every_part_of_a_decision_and_not_on_its_order() -> None:
    base = Decision(threshold=0.4, per_label={"a": 0.1, "b": 0.2})
    others = [
        Decision(threshold=0.5, per_label={"a": 0.1, "b": 0.2}),
        Decision(threshold=0.4, per_label={"a": 0.1}),
        base.model_copy(update={"fallback": 1}),
        base.model_copy(update={"hierarchy": {"a": ["b"]}}),
        base.model_copy(update={"objective": "f1_micro"}),
        base.model_copy(update={"calibration": Calibration(method="platt", pooled=knots(2))}),
    ]
    assert len({item.digest for item in (base, *others)}) == 1 + len(others)
    assert Decision(threshold=0.4, per_label={"b": 0.2, "a": 0.1}).digest == base.digest
    again = Decision.model_validate_json(base.model_dump_json())
    assert again.digest == base.digest


def test_a_recorded_decision_is_read_in_both_forms(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    inline = Decision(threshold=0.25, per_label={"ü": 0.5})
    assert read_decision(storage, inline.model_dump(mode="json")) == inline
