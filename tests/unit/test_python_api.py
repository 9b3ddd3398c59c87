"""From Python: texts in whatever holds them, the same scores and jobs as the commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.models import LIGHT_ENGINE

import ray_mlc
from ray_mlc import Classifier, ScoreActor, Summary, score, synthetic, train, verify
from ray_mlc.config import ScoreJob
from ray_mlc.errors import ConfigError, DataError, LimitError, ModelError, RunMismatchError
from ray_mlc.job_files import load_job
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision

TEXTS = synthetic.documents(6, seed=9)["text"].to_pylist()
HOSTILE = [TEXTS[0], None, " \n", float("nan"), pd.NA, "\ud800 half a character", TEXTS[1]]
STATUSES = ["ok", "null_text", "empty", "null_text", "null_text", "decode_error", "ok"]
HTML = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def actor(tiny_model: Path) -> ScoreActor:
    return ScoreActor(tiny_model)


def test_scores_are_those_of_a_run(
    classifier: Classifier,
    tiny_corpus: Path,
    tiny_run: Path,
    read_output: Callable[[Path], pa.Table],
) -> None:
    files = sorted(tiny_corpus.glob("*.parquet"))
    texts = pa.concat_tables([pq.read_table(file, columns=["text"]) for file in files])
    written = read_output(tiny_run)
    tagged = classifier.tag(texts["text"])
    for name in ("labels", "n_tokens", "truncated", "n_windows", "status"):
        assert tagged[name].to_pylist() == written[name].to_pylist()
    scores_NL = classifier.predict_proba(texts["text"])
    for column, name in enumerate(classifier.classes_):
        np.testing.assert_allclose(scores_NL[:, column], written[f"score_{name}"], atol=1e-6)


@pytest.mark.parametrize(
    "holder",
    [
        list,
        tuple,
        iter,
        lambda texts: pd.Series(texts, index=range(5, 5 + len(texts)), dtype=object),
        lambda texts: np.array(texts, dtype=object),
    ],
    ids=["list", "tuple", "iterator", "pandas", "numpy"],
)
def test_a_text_that_is_missing_or_broken_costs_its_own_row_only(
    classifier: Classifier, holder: Callable[[list[Any]], Any]
) -> None:
    scores_NL = classifier.predict_proba(holder(HOSTILE))
    scored = [status == "ok" for status in STATUSES]
    assert np.isfinite(scores_NL[scored]).all()
    assert np.isnan(scores_NL[np.invert(scored)]).all()
    assert classifier.tag(holder(HOSTILE))["status"].to_pylist() == STATUSES
    alone = [classifier.predict([text])[0] for text in (TEXTS[0], TEXTS[1])]
    assert classifier.predict(holder(HOSTILE)) == [alone[0], [], [], [], [], [], alone[1]]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["a", None, "b"]),
        pa.chunked_array([["a", None], ["b"]]),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pd.Series(["a", None, "b"], dtype="category"),
        pd.Series(["a", None, "b"], dtype="string"),
        pl.Series(["a", None, "b"]),
        [b"a", None, b"b"],
    ],
    ids=["array", "chunks", "view", "dictionary", "category", "string", "polars", "bytes"],
)
def test_columns_of_every_kind_are_texts(classifier: Classifier, texts: Any) -> None:
    expected_NL = classifier.predict_proba(["a", None, "b"])
    np.testing.assert_array_equal(classifier.predict_proba(texts), expected_NL)


def test_no_texts_have_no_scores(classifier: Classifier) -> None:
    count = len(classifier.classes_)
    assert classifier.predict_proba([]).shape == (0, count)
    assert classifier.predict([]) == []
    assert classifier.tag([]).schema == classifier.tag(["a"]).schema
    assert classifier.predict_proba([None, None]).shape == (2, count)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ("a text", "put it in brackets"),
        (7, "got int"),
        ([1], "position 0 is int"),
        (["a", ["b"]], "position 1 is list"),
        (pd.DataFrame({"text": ["a"]}), "name one of its columns"),
        ({"text": ["a"]}, "name one of its columns"),
        (pa.array([1.5]), "Arrow array of double"),
        (np.array([["a"]]), "position 0 is ndarray"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(
    classifier: Classifier, texts: Any, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        classifier.predict(texts)


def test_many_labels_are_scored_and_tagged(make_model: Callable[..., Path]) -> None:
    many = LabelSet(tuple(f"label {number}" for number in range(4_000)))
    classifier = Classifier.from_pretrained(make_model(many, threshold=0.999))
    scores_NL = classifier.predict_proba([TEXTS[0], None, TEXTS[1]])
    assert scores_NL.shape == (3, 4_000)
    assert np.isnan(scores_NL[1]).all()
    tagged = classifier.tag([TEXTS[0], None, TEXTS[1]], k=5, floor=0.5)
    best = np.argsort(-scores_NL[0])[:5]
    top = tagged["top"].to_pylist()
    assert [item["label"] for item in top[0]] == [many.names[column] for column in best]
    assert top[1] is None
    assert len(classifier._repr_html_()) < 4_000


@pytest.mark.parametrize("form", [{"format": "wise"}, {"k": 0}, {"floor": 2.0}])
def test_a_wrong_form_is_named(classifier: Classifier, form: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(form))):
        classifier.tag(["a"], **form)


def test_another_decision_gives_other_labels(tiny_model: Path, tmp_path: Path) -> None:
    every = Classifier.from_pretrained(tiny_model, decision=Decision(threshold=0.0))
    assert len(every.predict([TEXTS[0]])[0]) == len(every.classes_)
    file = tmp_path / "decision.json"
    file.write_text(Decision(threshold=1.0).model_dump_json())
    none = Classifier.from_pretrained(tiny_model, decision=file)
    assert none.predict([TEXTS[0]]) == [[]]
    assert none.decision.threshold == 1.0
    np.testing.assert_array_equal(every.predict_proba(TEXTS), none.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dtype": "float23"}, "dtype is 'float23'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"engine": "onnx"}, "engine is 'onnx'"),
        ({"engine": "openvino", "device": "cuda"}, "engine is openvino, which runs on CPUs"),
        ({"engine": "torch", "dtype": "int8"}, "dtype is int8"),
        ({"decision": Decision(per_label={"sprot": 0.2})}, "did you mean 'sport'"),
        ({"decision": Decision(), "dtype": "int8"}, "no meaning with dtype int8"),
        ({"decision": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_a_wrong_way_to_load_is_named(
    tiny_model: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Classifier.from_pretrained(tiny_model, **options)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        Classifier.from_pretrained("./nowhere")


def test_a_notebook_shows_names_as_text(make_model: Callable[..., Path]) -> None:
    classifier = Classifier.from_pretrained(make_model(LabelSet((HTML, "b"))))
    assert HTML not in classifier._repr_html_()
    assert "2 labels" in repr(classifier)
    assert HTML not in Summary({HTML: [HTML], "n": {HTML: 1.5}})._repr_html_()


def as_arrow(rows: dict[str, list[Any]]) -> pa.Table:
    return pa.table(rows)


def as_pandas(rows: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, index=range(7, 7 + len(next(iter(rows.values())))))


def as_numpy(rows: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        name: np.array(values, dtype=int if name == "n" else object)
        for name, values in rows.items()
    }


FORMS = [as_arrow, as_pandas, as_numpy]


def kinds(batch: Any) -> dict[str, str]:
    """Types of a batch's columns by name."""
    if isinstance(batch, pa.Table):
        return {item.name: str(item.type) for item in batch.schema}
    return {name: str(batch[name].dtype) for name in batch}


def values(batch: Any, name: str) -> list[Any]:
    return batch[name].to_pylist() if isinstance(batch, pa.Table) else list(batch[name])


@pytest.mark.parametrize("form", FORMS)
def test_an_actor_adds_the_same_columns_to_every_form_of_batch(
    actor: ScoreActor, classifier: Classifier, form: Callable[..., Any]
) -> None:
    batch = form({"id": [1, 2, 3], "text": [TEXTS[0], None, TEXTS[1]]})
    tagged = actor(batch)
    assert type(tagged) is type(batch)
    expected = classifier.tag([TEXTS[0], None, TEXTS[1]])
    assert list(kinds(tagged)) == ["id", "text", *expected.column_names]
    labels = [[] if row is None or row is pd.NA else list(row) for row in values(tagged, "labels")]
    assert labels == [row or [] for row in expected["labels"].to_pylist()]
    assert values(tagged, "status") == ["ok", "null_text", "ok"]


@pytest.mark.parametrize("form", FORMS)
def test_types_do_not_depend_on_what_is_in_a_batch(
    actor: ScoreActor, form: Callable[..., Any]
) -> None:
    whole = kinds(actor(form({"text": [TEXTS[0], TEXTS[1]]})))
    for texts in ([TEXTS[0], None], [None, None], []):
        found = kinds(actor(form({"text": texts})))
        own = [name for name in whole if name != "text"]
        assert {name: found[name] for name in own} == {name: whole[name] for name in own}


@pytest.mark.parametrize("form", FORMS)
def test_columns_that_are_called_like_ours_are_kept(
    actor: ScoreActor, form: Callable[..., Any]
) -> None:
    batch = form({"text": [TEXTS[0]], "Labels": [7], "status": ["mine"], "input_status": [8]})
    tagged = actor(batch)
    names = list(kinds(tagged))
    assert names[:4] == ["text", "input_Labels", "input_status", "input_status_2"]
    assert len({name.casefold() for name in names}) == len(names)
    assert list(kinds(batch)) == ["text", "Labels", "status", "input_status"]  # not the caller's


@pytest.mark.parametrize("form", FORMS)
def test_an_actor_makes_the_text_of_several_columns(
    tiny_model: Path, classifier: Classifier, form: Callable[..., Any]
) -> None:
    actor = ScoreActor(tiny_model, text="{n}: {text}", format="dense")
    tagged = actor(form({"n": [1, 2], "text": [TEXTS[0], None]}))
    scores_NL = classifier.predict_proba([f"1: {TEXTS[0]}", "2: "])
    found = [list(row) for row in values(tagged, "scores")]
    np.testing.assert_allclose(np.array(found, np.float32), scores_NL, atol=1e-3)


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (pa.table({"txt": ["a"]}), "did you mean 'txt'"),
        (pa.table({"text": [1]}), "is int64, expected text"),
        (pa.table({"text": [["a"]]}), "is list"),
        ({"text": np.array([1])}, "is int64, expected text"),
        (pd.DataFrame({"text": [object()]}), "position 0 is object"),
        ([1], "not a list"),
    ],
)
def test_a_batch_without_texts_is_refused(actor: ScoreActor, batch: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        actor(batch)


def test_a_job_may_be_a_mapping_a_file_or_a_job(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    keys = {"model": str(tiny_model), "input": str(tiny_corpus), "units.rows": 60}
    keys |= {"engine": {"dtype": "float32"}, "batching": {"max_batch_tokens": 4096}}
    outputs = [tmp_path / name for name in "abc"]
    first = score(keys, output=outputs[0], local=True, quiet=True)
    file = tmp_path / "job.yaml"
    text = f"model: {tiny_model}\ninput: {{path: nowhere, max_text_bytes: 1MiB}}\n"
    file.write_text(text + "units: {rows: 60}\nengine: {dtype: float32}\n")
    second = score(
        file, input=tiny_corpus, output=outputs[1], local=True, quiet=True, units={"rows": 50}
    )
    job = load_job(ScoreJob, {**keys, "output": str(outputs[2])})
    third = score(job, local=True, quiet=True)
    assert all(done["rows"]["written"] == 240 for done in (first, second, third))
    assert len(list(outputs[0].rglob("*.parquet"))) == 6
    assert all(verify(output).holds for output in outputs)
    assert keys["units.rows"] == 60  # not the caller's to change


def test_a_dotted_key_says_what_its_argument_would(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """An argument that is not given takes nothing back."""
    with pytest.raises(DataError, match="no file has a column 'body'"):
        score(
            model=tiny_model,
            input=tiny_corpus,
            output=tmp_path / "out",
            local=True,
            quiet=True,
            **{"input.text": "body"},
        )


def test_the_same_call_goes_on_and_another_is_refused(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    def call(**more: Any) -> Summary:
        return score(
            model=tiny_model,
            input=tiny_corpus,
            output=tmp_path / "out",
            local=True,
            quiet=True,
            **{"engine.dtype": "float32", "units.rows": 60, **more},
        )

    done = call()
    lost = next((tmp_path / "out").rglob("*.parquet"))
    lost.unlink()
    (tmp_path / "out/_SUCCESS").unlink()
    assert not verify(tmp_path / "out").holds
    assert call()["rows"] == done["rows"]
    assert verify(tmp_path / "out", deep=True).holds
    with pytest.raises(RunMismatchError, match=r"max_tokens"):
        call(**{"long.max_tokens": 8})


def test_rows_beyond_the_limits_raise_as_the_command_exits(
    tiny_model: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.table({"text": [b"\xff", b"good"]}), corpus / "a.parquet")
    with pytest.raises(LimitError):
        score(model=tiny_model, input=corpus, output=tmp_path / "out", local=True, quiet=True)
    assert verify(tmp_path / "out").holds


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: score(model="m", input="i", output="o", unit={"rows": 3}), "did you mean units?"),
        (lambda: score(model="m", input="i", output="o", **{"units.rowz": 3}), "units.rowz"),
        (lambda: score(model="m", output="o"), "input is missing"),
        (lambda: score({"kind": "train"}, model="m"), "kind is 'train'"),
        (lambda: score("nowhere.yaml"), "nowhere.yaml: there is no such job file"),
        (lambda: score(7), "job is a int"),  # type: ignore[arg-type]
        (lambda: train(output="o"), "data"),
        (lambda: train({"kind": "score"}), "kind is 'score'"),
    ],
)
def test_a_typo_is_named_before_anything_is_loaded(
    call: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint.replace("?", r"\?")):
        call()


def test_the_package_lists_what_it_gives() -> None:
    assert set(ray_mlc.__all__) <= set(dir(ray_mlc))
    for name in ray_mlc.__all__:
        assert getattr(ray_mlc, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        ray_mlc.Clasifier  # noqa: B018


ENGINE = {"name": LIGHT_ENGINE, "dtype": "float32"}


def test_ctrl_c_in_a_script_ends_with_whole_parts_and_the_same_script_goes_on(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    # the signal comes while units are being scored: `_score_columns` runs once for each
    script = f"""
import os, signal
import ray_mlc.scoring.score as steps
from ray_mlc import score
from ray_mlc.errors import InterruptedRunError
original, calls = steps._score_columns, []
def slow(*arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments)
steps._score_columns = slow
try:
    score(model={str(tiny_model)!r}, input={str(tiny_corpus)!r}, output={str(tmp_path / "out")!r},
          local=True, quiet=True, units={{"rows": 20}}, engine={ENGINE})
except InterruptedRunError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert "interrupted after" in done.stdout
    written = len(list((tmp_path / "out").rglob("*.parquet")))
    assert 0 < written < 12
    score(
        model=tiny_model,
        input=tiny_corpus,
        output=tmp_path / "out",
        local=True,
        quiet=True,
        units={"rows": 20},
        engine=ENGINE,
    )
    assert verify(tmp_path / "out", deep=True).holds
