"""The model card: valid for the hub, true of the folder, whatever labels and paths are called."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from support.models import write_tiny_encoder

from ray_mlc import synthetic
from ray_mlc.config import LongConfig, TrainJob, WindowsConfig
from ray_mlc.errors import redact
from ray_mlc.job_files import load_job
from ray_mlc.model.calibration import Calibration
from ray_mlc.model.card import code, model_card
from ray_mlc.model.decisions import Decision
from ray_mlc.model.folder import ModelInfo, open_model
from ray_mlc.runtime.baseline import BaselineSettings, fit_baseline
from ray_mlc.runtime.prepare import prepare
from ray_mlc.runtime.progress import Display
from ray_mlc.training.provenance import files_of, scripts_of

QUIET = Display(quiet=True)
HOSTILE = [
    "a, b", "`tick`", "``", "|pipe|", "<script>alert(1)</script>", "---\nlicense: mit\n---",
    "](http://x)", " lead", "\u202eneve", "# head", "{{ jinja }}", "日本",
]  # fmt: skip
METRICS = {
    "accuracy": 0.25, "f1_micro": 0.5, "f1_macro": None, "average_precision_macro": 0.75,
    "roc_auc_micro": 0.875,
}  # fmt: skip


def info_of(labels: list[str], **changes: Any) -> ModelInfo:
    positives = [0, 3, 200, *[50] * (len(labels) - 3)][: len(labels)]
    about = {
        "rows": 1_000, "without_labels": 7, "undecided": 4, "positives": positives,
        "scripts": {"LATIN": 0.9, "GREEK": 0.1},
        "files": [{"name": "s3://b/x.parquet", "bytes": 12, "sha256": "ab" * 32}],
    }  # fmt: skip
    training = {
        "encoder": "acme/tiny", "base_model": "acme/tiny", "train": "t.parquet", "epochs": 3,
        "validation": "v.parquet", "train_rows": 1_000, "validation_rows": 90, "best_epoch": 2,
        "settings": {"epochs": 3, "learning_rate": 1e-4, "layer_decay": 0.9, "warmup": 0.06},
        "versions": {"ray-mlc": "0.1.0", "torch": "2"},
        "data": {
            "train": about, "validation": {**about, "rows": 90},
            "lengths": {"p50": 20, "p95": 90, "p99": 300, "longest": 9_999, "cut": 0.125},
        },
    }  # fmt: skip
    metrics = {
        "at_half": METRICS, "decision": METRICS, "dummy": METRICS,
        "intervals": {
            name: {key: (0.1, 0.9) if value else None for key, value in METRICS.items()}
            for name in ("at_half", "decision")
        },
        "measured_on": {
            "examples": ["data/validation.parquet"], "documents": 90, "per_label": True,
            "shrinkage": 8.0, "one_is_best": False,
        },
    }  # fmt: skip
    values = {
        "labels": labels,
        "decision": Decision(threshold=0.4, per_label={labels[0]: 0.3}, objective="f1"),
        "long": LongConfig(policy="truncate", max_tokens=256),
        "training": training,
        "metrics": metrics,
        **changes,
    }
    return ModelInfo(**values)


def front_of(card: str) -> Any:
    """What the hub reads, as its own library does."""
    found = ModelCard(card)
    assert found.content == card
    return found.data


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_the_hub_reads_the_front_and_gets_the_figures(pooling: str | None) -> None:
    data = front_of(model_card(info_of(HOSTILE), pooling=pooling))
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == ("transformers" if pooling is None else "ray_mlc")
    assert data.base_model == "acme/tiny"
    results = {item.metric_name: item for item in data.eval_results}
    assert results["F1, micro, at the decision"].metric_value == 0.5
    assert len(results) == 3  # what is undefined is no figure
    assert {item.dataset_name for item in results.values()} == {"data/validation"}
    assert {item.dataset_type for item in results.values()} == {"custom"}


@pytest.mark.parametrize("kind", ["encoder", "tfidf"])
def test_a_folder_of_an_earlier_version_still_has_a_card(kind: Any) -> None:
    bare = ModelInfo(labels=["a"], kind=kind)
    data = front_of(model_card(bare, pooling=None))
    assert data.eval_results is None
    old = ModelInfo(
        labels=["a", "b"],
        kind=kind,
        metrics={"at_half": METRICS, "decision": METRICS},
        training={"train": "t", "validation": ["v", "w"], "train_rows": 3},
    )
    card = model_card(old, pooling=None)
    assert "3 rows of `t`" in card
    assert len(front_of(card).eval_results) == 3


def test_no_name_of_a_label_becomes_markup_or_front_matter() -> None:
    card = model_card(info_of(HOSTILE), pooling=None)
    assert card.count("\n---\n") == 1
    assert front_of(card).license is None
    last = card.partition("## Labels\n")[2]
    for name in HOSTILE:
        span = code(name)
        assert span in last
        assert "\n" not in span
        fence = re.match("`+", span)
        assert fence is not None
        inside = span[fence.end() : -fence.end()]
        assert fence.group() not in re.findall("`+", inside)
        if name.isprintable():  # what is not is shown escaped
            assert inside in (name, f" {name} ")  # readers take one space off each side
    # commas inside of names cannot be taken for those between them
    assert "`a, b`, " in last


def test_the_card_says_what_the_folder_is_and_is_not() -> None:
    windows = WindowsConfig(overlap=16, max_windows=4, aggregate="mean")
    info = info_of(
        ["never", "rare", "usual", "other"],
        decision=Decision(
            threshold=0.4, per_label={"rare": 0.3}, objective="precision>=0.9",
            hierarchy={"rare": ["usual"]}, fallback=2, fallback_floor=0.1,
        ),
        long=LongConfig(policy="windows", max_tokens=64, windows=windows),
    )  # fmt: skip
    info.training["windows"] = {
        "chosen": "mean", "metric": "f1_micro", "values": {"max": 0.61, "mean": 0.625},
    }  # fmt: skip
    card = model_card(info, pooling=None)
    for said in (
        "Fitted for `precision>=0.9` on 90 validation examples",
        "n / (n + 8)",
        "gets its 2 best scored at least 0.1.",
        "1 labels have others above them",
        "f1_micro 0.6250, against 0.6100 by `max`",
        "reads the first window only",
        "Never seen in training: 1 of 4 labels, `never`",
        "Fewer than 10 training examples: 1 of 4 labels, `rare`",
        "half of the texts have up to 20, 99 % up to 300",
        "Latin 90.0%, Greek 10.0%",
        "`layer_decay`: `0.9`",
        "SHA-256 `abababababababab…`",
        "| dummy | at 0.5 | 95 % interval | at the decision | 95 % interval |",
        "| f1_micro | 0.5000 | 0.5000 | 0.100 to 0.900 |",
        "Scores are not calibrated",
        "torch 2",
    ):
        assert said in card, said
    assert "`warmup`" not in card  # as ever
    calibrated = info.model_copy(
        update={
            "decision": Decision(
                calibration=Calibration.model_validate(
                    {"method": "platt", "pooled": {"slope": 1.0}}
                )
            ),
            "metrics": {
                **info.metrics,
                "calibration": {"error": {"before": {"ece": 0.2}, "held_out": {"ece": 0.1}}},
            },
        }
    )
    assert "calibration error 0.1000 held out, 0.2000" in model_card(calibrated, pooling=None)
    assert "Only ray_mlc runs it" in model_card(
        info.model_copy(update={"kind": "tfidf"}), pooling=None
    )
    assert "`pipeline` refuses it" in model_card(info, pooling="cls")


def test_four_thousand_labels_and_files_make_a_card_that_can_be_read() -> None:
    info = info_of([f"label {number}" for number in range(4_271)])
    files = [{"name": f"{n}.parquet", "bytes": n, "sha256": "0" * 64} for n in range(500)]
    info.training["data"]["train"]["files"] = files
    card = model_card(info, pooling=None)
    assert len(card) < 20_000
    assert "and 3,971 more, in `config.json`" in card
    assert "and 488 more files" in card


def test_no_secret_of_a_path_gets_into_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    info = info_of(["a", "b", "c"])
    info.training["encoder"] = "s3://me:hunter22@host/hf_verysecret/x?token=abcdefgh"
    info.metrics["measured_on"]["examples"] = ["https://h/v.parquet?sig=qwertz", "hf_verysecret"]
    del info.training["data"]
    info.training["train"] = "s3://b/x?X-Amz-Signature=0815"
    card = model_card(info, pooling=None)
    for secret in ("verysecret", "hunter22", "abcdefgh", "qwertz", "0815"):
        assert secret not in card
    front_of(card)


def test_files_are_named_as_they_lie_there(tmp_path: Path) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text('{"text": "x", "labels": ["a"]}\n')
    two.write_bytes(b"")
    found = files_of([str(tmp_path), str(one)])
    assert [Path(file["name"]).name for file in found] == ["a.jsonl", "b.jsonl"]
    assert found[0]["sha256"] == hashlib.sha256(one.read_bytes()).hexdigest()
    assert found[1] == {
        "name": str(two), "bytes": 0, "sha256": hashlib.sha256().hexdigest(),
    }  # fmt: skip


def test_scripts_are_counted_by_letters() -> None:
    assert scripts_of(["abc дд", "１２ 3 !"]) == {"LATIN": 0.6, "CYRILLIC": 0.4}
    assert scripts_of(["", "123", "😀"]) == {}
    assert list(scripts_of(["図書館 x"])) == ["CJK", "LATIN"]


SECRET = "zanzibarquux"


def write_examples(folder: Path) -> tuple[str, str]:
    paths = []
    for number, name in enumerate(("train", "validation")):
        documents = synthetic.documents(90, seed=number)
        texts = [f"{SECRET} {text}" for text in documents["text"].to_pylist()]
        file = folder / f"{name}.parquet"
        pq.write_table(documents.set_column(1, "text", pa.array(texts)), file)
        paths.append(str(file))
    return paths[0], paths[1]


def test_preparing_a_training_notes_what_the_card_will_say(tmp_path: Path) -> None:
    train, validation = write_examples(tmp_path)
    write_tiny_encoder(tmp_path / "encoder", seed=0)
    options = {
        "data.train": train, "data.validation": validation,
        "encoder": str(tmp_path / "encoder"), "output": str(tmp_path / "model"),
    }  # fmt: skip
    job = load_job(TrainJob, options=options, overrides=("training.max_tokens=8",))
    about = prepare(job, QUIET).about
    assert about["train"]["rows"] == 90
    assert (
        about["train"]["files"][0]["sha256"] == hashlib.sha256(Path(train).read_bytes()).hexdigest()
    )
    assert about["lengths"]["cut"] > 0.9
    assert about["lengths"]["p50"] > 8
    assert SECRET not in str(about)


def test_the_card_of_a_baseline_has_figures_and_no_text(tmp_path: Path) -> None:
    train, validation = write_examples(tmp_path)
    output = tmp_path / "model"
    settings = BaselineSettings(C=1.0, min_df=1, max_features=None, seed=0)
    fit_baseline(
        train, validation, [], output, text="text", labels="labels", settings=settings,
        display=QUIET,
    )  # fmt: skip
    card = (output / "README.md").read_text()
    assert SECRET not in card
    assert f"`{redact(train)}`" in card
    assert "| validation | dummy | at 0.5 | 95 % interval | at the decision |" in card
    results = front_of(card).eval_results
    held_out = open_model(str(output)).info.metrics["decision_held_out"]
    assert results[0].metric_value == round(held_out["f1_micro"], 4)
    assert "held out of the fit" in results[0].metric_name
