from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mlc import synthetic
from ray_mlc.errors import ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Decision
from ray_mlc.model.folder import CANARIES_FILE, INFO_FILE, SCHEMA_VERSION, open_model

TEXTS = synthetic.documents(12, seed=9)["text"].to_pylist()
LONG = " ".join(TEXTS)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `...` removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: item for key, item in content.items() if item is not ...}))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(str(folder)).canaries()
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 250
    return message


def test_what_was_written_is_what_is_opened(tiny_model: Path) -> None:
    model = open_model(str(tiny_model))
    assert model.label_set == synthetic.LABELS
    assert model.info.decision.threshold == 0.6
    assert model.max_tokens == 32
    canaries = model.canaries()
    assert canaries is not None
    assert np.shape(canaries.scores) == (len(canaries.texts), len(synthetic.LABELS))
    assert {file.suffix for file in tiny_model.iterdir()} <= {
        ".json", ".jsonl", ".md", ".safetensors", ".jinja",
    }  # fmt: skip


def test_the_location_of_a_folder_is_absolute(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert open_model(tiny_model.name).location == str(tiny_model)


def test_pipeline_loads_it_unchanged_and_scores_short_and_cut_texts_alike(
    tiny_model: Path, tiny_classifier: Classifier
) -> None:
    from transformers import pipeline

    texts = ["a", "The train.", *TEXTS, LONG]
    ours_NL = tiny_classifier.predict_proba(texts)
    assert ours_NL.std(axis=0).max() > 0.01  # else constants would be compared
    classify = pipeline("text-classification", model=str(tiny_model), top_k=None, device="cpu")
    for text, ours in zip(texts, ours_NL, strict=True):
        theirs = {item["label"]: item["score"] for item in classify([text], truncation=True)[0]}
        expected = [theirs[name] for name in synthetic.LABELS.names]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", r"no .safetensors file"),
        ("tokenizer.json", "tokenizer.json is missing"),
        (CANARIES_FILE, "canaries.json is missing"),
    ],
)
def test_a_missing_file_is_named(folder: Path, gone: str, says: str) -> None:
    (folder / gone).unlink()
    assert says in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", INFO_FILE, CANARIES_FILE])
@pytest.mark.parametrize("content", [b'{"labels": [', b"", b"\xff\xfe" * 500, b"[1]"])
def test_a_broken_file_is_named_and_not_quoted(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert f"{file} is not" in refusal(folder)


@pytest.mark.parametrize("problem", ["single_label_classification", "regression", None, ...])
def test_a_softmax_head_is_refused(folder: Path, problem: Any) -> None:
    edit(folder / "config.json", problem_type=problem)
    message = refusal(folder)
    assert "expected 'multi_label_classification'" in message
    assert "softmax" in message


def test_labels_in_another_order_are_refused(folder: Path) -> None:
    edit(folder / INFO_FILE, labels=[*synthetic.LABELS.names[::-1]])
    assert f"labels of {INFO_FILE} and config.json differ" in refusal(folder)


@pytest.mark.parametrize(
    "id2label",
    [..., {}, {"x": "y"}, ["a"], {"0": "same", "1": "same"}, {"0": None}],
)
def test_a_config_without_usable_labels_is_refused(folder: Path, id2label: Any) -> None:
    edit(folder / "config.json", id2label=id2label)
    assert "config.json" in refusal(folder)


def test_more_than_ten_labels_keep_their_numerical_order(
    make_model: Callable[..., Path],
) -> None:
    names = tuple(f"label {number}" for number in range(12))
    assert open_model(str(make_model(LabelSet(names)))).label_set.names == names


def test_weights_may_be_read_by_whom_the_rest_may_be_read_by(
    tiny_model: Path, tiny_tfidf: Path
) -> None:
    for folder in (tiny_model, tiny_tfidf):
        modes = {file.stat().st_mode & 0o777 for file in folder.iterdir() if file.is_file()}
        assert len(modes) == 1


def test_an_older_ray_mlc_is_told_of_a_kind_that_it_does_not_know(
    tiny_model: Path, tiny_tfidf: Path
) -> None:
    versions = [
        json.loads((folder / "ray_mlc.json").read_text())["schema_version"]
        for folder in (tiny_model, tiny_tfidf)
    ]
    assert versions == [1, 2]


def test_a_newer_schema_is_refused_even_with_unknown_keys(folder: Path) -> None:
    newer = SCHEMA_VERSION + 1
    edit(folder / INFO_FILE, schema_version=newer, invention=1)
    said = f"has schema {newer}, this ray_mlc knows up to {SCHEMA_VERSION}: upgrade"
    assert said in refusal(folder)


def test_a_folder_of_the_first_schema_opens_and_one_that_needs_no_more_is_of_it(
    folder: Path,
) -> None:
    content = json.loads((folder / INFO_FILE).read_text())
    assert content["schema_version"] == 1
    assert set(content["decision"]) == {"threshold", "per_label", "objective"}
    edit(folder / INFO_FILE, decision={"threshold": 0.25, "per_label": {}, "objective": None})
    decision = open_model(str(folder)).info.decision
    assert decision == Decision(threshold=0.25)
    assert decision.calibration is None


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"per_label": {"laws": 0.5}}, "decision.per_label: label 'laws' is not among the 12 of"),
        ({"hierarchy": {"law": ["Trade"]}}, "decision.hierarchy: label 'Trade' is not among the"),
        ({"hierarchy": {"law": ["law"]}}, "expected no label above itself, as in law → law"),
    ],
)
def test_a_decision_of_other_labels_is_refused(folder: Path, decision: Any, said: str) -> None:
    edit(folder / INFO_FILE, decision=decision)
    assert said in refusal(folder)


def test_an_unknown_key_is_named(folder: Path) -> None:
    edit(folder / INFO_FILE, treshold=0.5)
    assert "unknown key treshold" in refusal(folder)


def test_a_plain_hugging_face_folder_opens_with_one_half(folder: Path) -> None:
    for file in (INFO_FILE, CANARIES_FILE, "history.jsonl"):
        (folder / file).unlink()
    model = open_model(str(folder))
    assert model.label_set == synthetic.LABELS
    assert model.info.decision.thresholds_L(model.label_set).tolist() == [0.5] * 12
    assert model.canaries() is None
    assert model.max_tokens is None


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_the_digest_changes_with_every_scoring_file(folder: Path, file: str) -> None:
    before = open_model(str(folder)).digest
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content + b" ")
    assert open_model(str(folder)).digest != before
    (folder / file).write_bytes(content)
    assert open_model(str(folder)).digest == before


@pytest.mark.parametrize("file", ["README.md", "history.jsonl", CANARIES_FILE, "notes.txt"])
def test_the_digest_does_not_change_with_what_scores_do_not_depend_on(
    folder: Path, file: str
) -> None:
    before = open_model(str(folder)).digest
    with (folder / file).open("ab") as stream:
        stream.write(b"\n")
    assert open_model(str(folder)).digest == before


def test_the_card_shows_labels_limit_and_how_to_use_it(tiny_model: Path) -> None:
    card = (tiny_model / "README.md").read_text()
    assert card.startswith("---\n")
    for name in synthetic.LABELS.names:
        assert name in card
    assert "Texts beyond 32 tokens are cut" in card
    assert "pipeline(" in card


def test_other_weights_have_another_digest_and_nothing_temporary_is_left(
    make_model: Callable[..., Path],
) -> None:
    names = LabelSet(("a", "b", "c"))
    one, other = (open_model(str(make_model(names, seed=seed))) for seed in (1, 2))
    assert one.digest != other.digest
    assert not (other.path / "_tmp").exists()
