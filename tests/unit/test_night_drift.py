"""`limits.drift`: a night whose scores are not those of the model's validation is no success."""

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
from support.displays import Spoken

from ray_mlc import synthetic
from ray_mlc.cli.run_tables import print_score_summary
from ray_mlc.config import DriftConfig, ScoreJob
from ray_mlc.errors import ConfigError, DataError, LimitError, StorageError
from ray_mlc.job_files import load_job
from ray_mlc.model.decisions import decide
from ray_mlc.model.distribution import ScoreCounts
from ray_mlc.model.folder import open_model, write_decision
from ray_mlc.runtime.inputs import find_inputs
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.score import score
from ray_mlc.scoring import figures, night_drift
from ray_mlc.scoring.ledger import read_run
from ray_mlc.scoring.verify import verify
from ray_mlc.storage import open_storage

AUTO = "batching.max_batch_tokens=auto"
Tag = Callable[..., dict[str, Any]]


@pytest.fixture
def model(tiny_tfidf: Path, tmp_path: Path) -> Path:
    """A model that was validated on documents like those of the corpus."""
    from ray_mlc.runtime.evaluate import load_here

    path = Path(shutil.copytree(tiny_tfidf, tmp_path / "model"))
    folder = open_model(str(path))
    texts = synthetic.documents(400, seed=5)["text"].to_pylist()
    scores_NL = load_here(folder, dtype="float32", device="cpu").predict_proba(texts)
    given_NL = decide(scores_NL, folder.info.decision.rules(folder.label_set))
    write_decision(folder, folder.info.decision, {}, ScoreCounts.of(scores_NL, given_NL))
    return path


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


@pytest.fixture
def tag(score_job: Callable[..., ScoreJob], corpus: Path, model: Path, tmp_path: Path) -> Tag:
    def run(*overrides: str, **options: bool) -> dict[str, Any]:
        job = score_job(corpus, tmp_path / "out", AUTO, *overrides, model=model)
        return score(job, LocalBackend(), Spoken(), **options)

    return run


def add_other_documents(corpus: Path) -> None:
    """A file in which every document is the same."""
    table = pa.concat_tables([pq.read_table(corpus / "part-00000.parquet")] * 2)
    text = synthetic.documents(1, seed=6)["text"].to_pylist()
    place = table.schema.get_field_index("text")
    pq.write_table(table.set_column(place, "text", [text * len(table)]), corpus / "tuesday.parquet")


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "_ray_mlc/summary.json").read_text()))


def damage(path: Path) -> None:
    """Overwrite all that a file holds, but not its footer."""
    size = int.from_bytes(path.read_bytes()[-8:-4], "little") + 8
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + bytes(len(data) - size - 4) + data[-size:])


def few_documents(corpus: Path) -> pa.Table:
    return pq.read_table(corpus / "part-00000.parquet").slice(0, 6)


def test_a_night_like_the_validation_is_a_success_and_one_that_is_not_is_none(
    tag: Tag, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    summary = tag("limits.drift=0.25")
    (drift,) = summary["drift"]
    assert (drift["night"], drift["beyond"], drift["rows"]) == (1, 0, 238)
    assert drift["largest"]["psi"] > 0
    assert (out / "_SUCCESS").exists()
    add_other_documents(corpus)
    with pytest.raises(LimitError, match=r"12 of 12 label\(s\) have moved away from") as error:
        tag("limits.drift=0.25", add_new=True)
    assert str(error.value).startswith(f"{out}@2: the scores of")
    assert f"{out}@2` says more" in str(error.value)
    assert not (out / "_SUCCESS").exists()
    (kept,) = summary_of(out)["drift"]
    assert (kept["night"], kept["rows"], kept["beyond"]) == (2, 160, 12)
    assert kept["labels"][0] == kept["largest"]
    assert kept["labels"][0]["psi"] > kept["labels"][-1]["psi"] > 0.25
    verdict = verify(str(out))
    assert (verdict.holds, verdict.complete) == (True, False)
    with pytest.raises(LimitError, match="have moved away"):
        tag("limits.drift=0.25")
    summary = tag("limits.drift={psi: 0.25, action: warn}")
    assert (out / "_SUCCESS").exists()
    print_score_summary(str(out), summary)
    assert "drift in night 2: the scores of " in capsys.readouterr().out
    with pytest.raises(LimitError, match="have moved away"):
        tag("limits.drift=0.25")  # a limit counts, also where all was complete
    assert not (out / "_SUCCESS").exists()
    assert tag("limits.drift={labels: 12}")["drift"][0]["beyond"] > 0
    assert "drift" not in tag() or (out / "_SUCCESS").exists()


def test_a_model_that_does_not_say_what_it_gave_is_refused_before_the_night(
    tag: Tag, model: Path, tmp_path: Path
) -> None:
    (model / "distribution.json").unlink()
    with pytest.raises(DataError, match=r"no distribution\.json .*`ray-mlc thresholds` writes it"):
        tag("limits.drift=0.25")
    assert not (tmp_path / "out/_ray_mlc/run.json").exists()
    assert "drift" not in tag()


def test_a_night_that_has_drifted_is_measured_again_until_it_is_part_of_a_success(
    tag: Tag, corpus: Path, tmp_path: Path
) -> None:
    out, limits = tmp_path / "out", ("limits.drift=0.25", "limits.bad_files=1")
    tag(*limits)
    add_other_documents(corpus)
    broken = corpus / "wednesday.parquet"
    broken.write_bytes(b"no file of Parquet")
    with pytest.raises(LimitError, match="have moved away"):
        tag(*limits, add_new=True)
    pq.write_table(few_documents(corpus), broken)  # repaired: it is a night of its own
    with pytest.raises(LimitError) as error:
        tag(*limits)
    assert str(error.value).startswith(f"{out}@2: the scores of 12 of 12 label(s)")
    pq.write_table(few_documents(corpus), corpus / "thursday.parquet")
    with pytest.raises(LimitError, match="@2: the scores"):
        tag(*limits, add_new=True)
    assert not (out / "_SUCCESS").exists()
    kept = summary_of(out)
    found = [(drift["night"], drift["rows"], drift["beyond"]) for drift in kept["drift"]]
    assert found == [(2, 160, 12), (3, 6, 0), (4, 6, 0)]
    assert kept["accepted_nights"] == 1
    run = read_run(open_storage(str(out)))
    seen = [[drift["night"] for drift in figures._drift(run, night)] for night in (1, 2, 3, 4)]
    assert seen == [[], [2], [3], [2, 3, 4]]
    assert tag("limits.drift={psi: 0.25, action: warn}", limits[1])["accepted_nights"] == 4
    pq.write_table(few_documents(corpus), corpus / "friday.parquet")
    (drift,) = tag(*limits, add_new=True)["drift"]  # night 2 was taken as it is
    assert drift["night"] == 5
    assert (out / "_SUCCESS").exists()


def test_two_nights_that_have_drifted_are_both_named(
    tag: Tag, corpus: Path, tmp_path: Path
) -> None:
    tag("limits.drift=0.25")
    add_other_documents(corpus)
    with pytest.raises(LimitError, match="@2: the scores"):
        tag("limits.drift=0.25", add_new=True)
    shutil.copy(corpus / "tuesday.parquet", corpus / "wednesday.parquet")
    with pytest.raises(LimitError, match=r"@2: the scores .*, and so have those of night\(s\) 3;"):
        tag("limits.drift=0.25", add_new=True)


@pytest.mark.parametrize(
    ("summary", "nights", "expected"),
    [
        ({}, 2, [1, 2]),
        ({"accepted_nights": 2}, 3, [3]),
        ({"accepted_nights": 1, "drift": [{"night": 2}]}, 3, [2, 3]),
        ({"accepted_nights": 3, "drift": [{"night": 2}, {"night": 3}]}, 3, [2, 3]),
        ({"accepted_nights": 3}, 3, [3]),
        ({"nights": 3}, 4, [4]),
    ],
)
def test_nights_since_the_last_success_are_measured(
    summary: dict[str, Any], nights: int, expected: list[int]
) -> None:
    assert list(night_drift.nights_to_measure(summary, nights)) == expected


def test_a_model_that_is_replaced_while_a_night_goes_on_is_not_what_it_is_held_against(
    score_job: Callable[..., ScoreJob], corpus: Path, model: Path, tmp_path: Path
) -> None:
    job = score_job(corpus, tmp_path / "out", AUTO, "limits.drift=0.25", model=model)
    inputs = find_inputs(job)

    class Replaced(LocalBackend):
        def process(self, *args: Any, **options: Any) -> Any:
            yield from super().process(*args, **options)
            for name in ("distribution.json", "labels.json"):
                (model / name).write_text("half of ano")

    (drift,) = score(job, Replaced(), Spoken(), inputs=inputs)["drift"]
    assert (drift["validation_rows"], drift["beyond"]) == (400, 0)


def test_parts_that_cannot_be_read_are_no_sign_that_nothing_has_moved(
    tag: Tag, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tag()
    part = sorted(out.glob("**/*.parquet"))[0]
    damage(part)
    with pytest.raises(
        StorageError, match=r"1 of \d+ part\(s\) of night 1 cannot be held"
    ) as error:
        tag("limits.drift=0.25")
    assert f"such as {part.relative_to(out)}: its part cannot be read" in str(error.value)
    part.unlink()
    assert tag("limits.drift=0.25")["drift"][0]["rows"] == 238


def test_units_that_are_set_aside_are_not_missed(tag: Tag, corpus: Path) -> None:
    damage(corpus / "part-00000.parquet")
    summary = tag("limits.drift=0.5", "limits.bad_files=1", "limits.bad_rows=0.9")
    assert summary["rows"]["set_aside"] > 0
    assert summary["drift"][0]["rows"] > 0


def test_of_many_units_some_are_read(
    tag: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_drift, "UNITS", 3)
    (drift,) = tag("limits.drift=0.5")["drift"]
    assert 60 <= drift["rows"] <= 90


def test_few_rows_are_no_drift(tag: Tag, corpus: Path) -> None:
    for file in sorted(corpus.glob("*.parquet"))[1:]:
        file.unlink()
    table = pq.read_table(corpus / "part-00000.parquet").slice(0, 6)
    pq.write_table(table, corpus / "part-00000.parquet")
    (drift,) = tag("limits.drift=0.01")["drift"]
    assert drift["largest"]["psi"] > 0.01
    assert drift["beyond"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", DriftConfig(psi=0.1)),
        ("1", DriftConfig(psi=1.0)),
        ("{labels: 3}", DriftConfig(labels=3)),
        ("null", None),
    ],
)
def test_a_number_stands_for_a_psi(text: str, expected: DriftConfig | None) -> None:
    options = {"model": "m", "input": "i", "output": "o"}
    job = load_job(ScoreJob, options=options, overrides=[f"limits.drift={text}"])
    assert job.limits.drift == expected
    for wrong in ("{pis: 0.1}", "-1", "true", "a lot", "{action: maybe}"):
        with pytest.raises(ConfigError, match=r"drift"):
            load_job(ScoreJob, options=options, overrides=[f"limits.drift={wrong}"])


def test_shares_of_labels_are_allowed() -> None:
    drift = {"beyond": 3, "of_labels": 28, "limit": {"labels": 0.1}}
    assert night_drift.is_beyond(drift)
    assert not night_drift.is_beyond({**drift, "of_labels": 30})
    assert np.isclose(drift["limit"]["labels"], 0.1)  # type: ignore[index]
