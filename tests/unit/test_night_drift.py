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
from ray_mlc.cli.tables import print_score_summary
from ray_mlc.config import DriftConfig, ScoreJob, load_job
from ray_mlc.errors import ConfigError, DataError, LimitError
from ray_mlc.model.decisions import decide
from ray_mlc.model.distribution import ScoreCounts
from ray_mlc.model.folder import open_model, write_decision
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.score import score
from ray_mlc.scoring import night_drift
from ray_mlc.scoring.verify import verify

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


def test_a_night_like_the_validation_is_a_success_and_one_that_is_not_is_none(
    tag: Tag, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    summary = tag("limits.drift=0.25")
    assert (summary["drift"]["beyond"], summary["drift"]["rows"]) == (0, 238)
    assert summary["drift"]["largest"]["psi"] > 0
    assert (out / "_SUCCESS").exists()
    add_other_documents(corpus)
    with pytest.raises(LimitError, match=r"12 of 12 label\(s\) have moved away from") as error:
        tag("limits.drift=0.25", add_new=True)
    assert f"{out}@2` says more" in str(error.value)
    assert not (out / "_SUCCESS").exists()
    kept = json.loads((out / "_ray_mlc/summary.json").read_text())["drift"]
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
    assert "drift: the scores of " in capsys.readouterr().out
    with pytest.raises(LimitError, match="have moved away"):
        tag("limits.drift=0.25")  # a limit counts, also where all was complete
    assert not (out / "_SUCCESS").exists()
    assert tag("limits.drift={labels: 12}")["drift"]["beyond"] > 0
    assert "drift" not in tag() or (out / "_SUCCESS").exists()


def test_a_model_that_does_not_say_what_it_gave_is_refused_before_the_night(
    tag: Tag, model: Path, tmp_path: Path
) -> None:
    (model / "distribution.json").unlink()
    with pytest.raises(DataError, match=r"no distribution\.json .*`ray-mlc thresholds` writes it"):
        tag("limits.drift=0.25")
    assert not (tmp_path / "out/_ray_mlc/run.json").exists()
    assert "drift" not in tag()


def test_of_many_units_some_are_read(
    tag: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_drift, "UNITS", 3)
    drift = tag("limits.drift=0.5")["drift"]
    assert 60 <= drift["rows"] <= 90


def test_few_rows_are_no_drift(tag: Tag, corpus: Path) -> None:
    for file in sorted(corpus.glob("*.parquet"))[1:]:
        file.unlink()
    table = pq.read_table(corpus / "part-00000.parquet").slice(0, 6)
    pq.write_table(table, corpus / "part-00000.parquet")
    drift = tag("limits.drift=0.01")["drift"]
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
