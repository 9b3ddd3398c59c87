"""Exports are proven before they have a name, carry no paths, and are uploaded without a trace."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cli import run
from support.hub import TOKEN, Hub, serve
from support.models import write_tiny_model

from ray_mlc import Classifier, synthetic
from ray_mlc.config import LongConfig, WindowsConfig
from ray_mlc.errors import ConfigError, GateError, ModelError, StorageError
from ray_mlc.labels import LabelSet
from ray_mlc.model.canaries import record_canaries
from ray_mlc.model.classifier import Classifier as LoadedClassifier
from ray_mlc.model.engines.choose import load_encoder_tokenizer
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import CARD_FILE, INFO_FILE, open_model
from ray_mlc.runtime import export
from ray_mlc.runtime.export import Target, export_model, score_with_pipeline, without_paths
from ray_mlc.runtime.progress import Display

TEXTS = synthetic.documents(5, seed=8)["text"].to_pylist()
QUIET = Display(quiet=True)
HUB_FILES = {
    "README.md",
    "canaries.json",
    "config.json",
    "model.safetensors",
    "ray_mlc.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extra [onnx]",
)
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs the extra [openvino]"
)
GRAPHS = [
    pytest.param("onnx", marks=needs_onnx),
    pytest.param("openvino", marks=needs_openvino),
]


def about_of(path: str) -> dict[str, Any]:
    return {
        "rows": 2,
        "without_labels": 0,
        "undecided": 0,
        "positives": [1] * 12,
        "scripts": {"LATIN": 1.0},
        "files": [{"name": path, "bytes": 3, "sha256": "0" * 64}],
    }


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that says where it was trained, with files of a working folder."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    info = json.loads((folder / INFO_FILE).read_text())
    info["training"] = {
        "encoder": "/home/somebody/encoders/mini",
        "train": "s3://a-bucket/customers/train.parquet",
        "validation": ["/home/somebody/v1.parquet", "v2.parquet"],
        "fingerprint": "f",
        "data": {  # as `prepare` and `write_trained` have it
            "train": about_of("s3://a-bucket/customers/train.parquet?endpoint_override=int.corp/x"),
            "validation": about_of("/home/somebody/v1.parquet"),
            "lengths": {"p50": 5, "p95": 8, "p99": 9, "longest": 9, "cut": 0.0},
        },
        "windows": {"chosen": "max", "metric": "f1_micro", "values": {"max": 0.5}},
        "settings": {"epochs": 1},
    }
    info["metrics"]["measured_on"] = {
        "examples": ["/home/somebody/v1.parquet"],
        "documents": 2,
        "per_label": False,
    }
    (folder / INFO_FILE).write_text(json.dumps(info))
    for name in ("evaluation/x.json", "_tensorboard/y", "int8/int8.json", "history.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def exported(model: Path, form: str, output: Path, **more: Any) -> dict[str, Any]:
    return export_model(str(model), form, Target(output, **more), QUIET)


def run_card(folder: Path) -> NDArray[np.float32]:
    """Scores of the texts by the very code on the model card."""
    code = re.search(r"```python\n(.*?)```", (folder / CARD_FILE).read_text(), re.DOTALL)
    assert code is not None
    named = code[1].replace('["a text", "another one"]', repr(TEXTS))
    names: dict[str, Any] = {"FOLDER": str(folder)}
    exec(named, names)
    scores_NL: NDArray[np.float32] = names["scores"]
    assert names["given"].shape == scores_NL.shape
    return scores_NL


def test_a_checkpoint_is_what_transformers_needs_and_nothing_else(
    model: Path, tmp_path: Path
) -> None:
    result = exported(model, "hub", tmp_path / "out")
    assert set(result["files"]) == HUB_FILES
    assert {path.name for path in (tmp_path / "out").iterdir()} == HUB_FILES
    assert result["check"]["loaded_by"] == "transformers"
    assert result["check"]["max_difference"] <= 1e-5
    expected_NL = Classifier.from_pretrained(model).predict_proba(TEXTS)
    np.testing.assert_allclose(score_with_pipeline(tmp_path / "out", TEXTS), expected_NL, atol=1e-6)
    assert open_model(str(tmp_path / "out")).digest == open_model(str(model)).digest


def test_no_path_of_this_machine_is_given_away(model: Path, tmp_path: Path) -> None:
    exported(model, "hub", tmp_path / "out")
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())
    for secret in ("somebody", "a-bucket", "customers", "int.corp", str(tmp_path)):
        assert secret not in written
    training = json.loads((tmp_path / "out" / INFO_FILE).read_text())["training"]
    assert training["encoder"] == "mini"
    assert training["train"] == "train.parquet"
    assert training["validation"] == ["v1.parquet", "v2.parquet"]
    assert training["data"]["train"]["files"][0]["name"] == "train.parquet"
    assert training["data"]["lengths"]["longest"] == 9


@pytest.mark.parametrize("location", ["s3://a-bucket", "s3://a-bucket/", "gs://a-bucket?x=y/z"])
def test_a_bare_bucket_has_no_name_to_give_away(model: Path, location: str) -> None:
    info = open_model(str(model)).info
    info = info.model_copy(update={"training": {"train": location, "encoder": r"C:\me\mini"}})
    assert without_paths(info).training["train"] == ""
    assert without_paths(info).training["encoder"] == "mini"


@pytest.mark.parametrize("encoder", ["distilbert/distilbert-base-uncased", "bert-base@v1.0"])
def test_the_name_of_a_hub_model_stays(model: Path, encoder: str) -> None:
    info = open_model(str(model)).info
    training = {"encoder": encoder, "base_model": encoder}
    kept = without_paths(info.model_copy(update={"training": training})).training
    assert (kept["encoder"], kept["base_model"]) == (encoder, encoder)
    # a folder may be named like one
    folder = info.model_copy(update={"training": {"encoder": encoder}})
    assert without_paths(folder).training["encoder"] == encoder.rpartition("/")[2]


@pytest.mark.parametrize("form", GRAPHS)
@pytest.mark.parametrize("kind", ["tiny_model", "mean"])
def test_a_graph_gives_the_scores_of_the_model_by_the_code_on_its_card(
    form: str, kind: str, tiny_model: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model if kind == "tiny_model" else make_model(pooling=kind)
    result = exported(model, form, tmp_path / "out")
    assert result["check"]["max_difference"] <= 1e-5
    expected_NL = Classifier.from_pretrained(model).predict_proba(TEXTS)
    np.testing.assert_allclose(run_card(tmp_path / "out"), expected_NL, atol=1e-5)
    names = set(result["files"])
    assert HUB_FILES - {"model.safetensors"} < names


@pytest.mark.parametrize("form", ["hub", *GRAPHS])
def test_what_does_not_reproduce_the_canaries_is_not_kept(
    form: str, model: Path, tmp_path: Path
) -> None:
    content = json.loads((model / "canaries.json").read_text())
    content["scores"][3][0] = 1 - content["scores"][3][0]
    (model / "canaries.json").write_text(json.dumps(content))
    with pytest.raises((GateError, ModelError), match="canaries"):
        exported(model, form, tmp_path / "sub/out")
    assert list((tmp_path / "sub").iterdir()) == []


@needs_openvino
def test_a_graph_that_takes_padding_for_text_is_found_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_mlc.model.engines import openvino_engine
    from ray_mlc.model.engines.protocol import pad

    def blind(ids: Any, pad_id: int) -> Any:
        input_ids, mask = pad(ids, pad_id)
        return input_ids, np.ones_like(mask)

    monkeypatch.setattr(openvino_engine, "pad", blind)
    # in batches of one document nothing is padded: only the batch of all lengths shows it
    monkeypatch.setattr(export, "CPU_BATCH_TOKENS", 1)
    with pytest.raises(GateError, match="does not reproduce"):
        exported(tiny_model, "openvino", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_windows_is_a_checkpoint_of_which_transformers_sees_the_first(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    write_tiny_model(tiny_encoder, place, max_tokens=16)
    windows = WindowsConfig(overlap=4, max_windows=3, aggregate="max")
    long = LongConfig(policy="windows", max_tokens=16, windows=windows)
    info = json.loads((place / INFO_FILE).read_text())
    info |= {"long": long.model_dump(mode="json"), "schema_version": 2}
    (place / INFO_FILE).write_text(json.dumps(info))
    tokenizer = load_encoder_tokenizer(open_model(str(place)), max_tokens=16, windows=windows)
    engine = TorchEngine.load(place, pad_id=tokenizer.pad_id, device="cpu", dtype="float32")
    loaded = LoadedClassifier(synthetic.LABELS, tokenizer, engine, 4096)
    (place / "canaries.json").write_text(record_canaries(loaded).model_dump_json())
    result = exported(tmp_path / "model", "hub", tmp_path / "out")
    assert result["check"]["loaded_by"] == "transformers"
    assert "reads the first window only" in (tmp_path / "out" / CARD_FILE).read_text()


def test_what_only_ray_mlc_loads_says_so(
    make_model: Callable[..., Path], tiny_tfidf: Path, tmp_path: Path
) -> None:
    for name, model in (("mean", make_model(pooling="mean")), ("tfidf", tiny_tfidf)):
        result = exported(model, "hub", tmp_path / name)
        assert result["check"]["loaded_by"] == "ray_mlc"
        assert "only ray_mlc loads it" in " ".join(result["notes"])
        assert "library_name: ray_mlc" in (tmp_path / name / CARD_FILE).read_text()
        expected_NL = Classifier.from_pretrained(model).predict_proba(TEXTS)
        found_NL = Classifier.from_pretrained(tmp_path / name).predict_proba(TEXTS)
        np.testing.assert_allclose(found_NL, expected_NL, atol=1e-6)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_tfidf_model_is_no_graph(form: str, tiny_tfidf: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--format hub"):
        exported(tiny_tfidf, form, tmp_path / "out")


def test_what_is_not_installed_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.model.engines.onnx_convert.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"onnx is not installed: .*ray-mlc\[onnx\]"):
        exported(tiny_model, "onnx", tmp_path / "out")


def test_hostile_label_names_survive(make_model: Callable[..., Path], tmp_path: Path) -> None:
    names = ("<b>x</b>", "a, b", "ﬁ\u2028y", "Spam", "spam", '"quoted"')
    model = make_model(LabelSet(names))
    exported(model, "hub", tmp_path / "out")
    assert open_model(str(tmp_path / "out")).label_set.names == names


def test_an_export_that_is_there_is_replaced_only_when_asked(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(model, "hub", out)
    (out / "stale").write_text("x")
    with pytest.raises(ConfigError, match="--overwrite"):
        exported(model, "hub", out)
    assert (out / "stale").exists()
    exported(model, "hub", out, overwrite=True)
    assert {path.name for path in out.iterdir()} == HUB_FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_but_an_export_is_ever_replaced(
    overwrite: bool, model: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    other = Path(shutil.copytree(model, tmp_path / "another-model"))
    for output in (precious, tmp_path / "file", model, tmp_path, other):
        with pytest.raises(ConfigError, match="--output is"):
            exported(model, "hub", output, overwrite=overwrite)
    assert (precious / "thesis.tex").exists()
    assert (other / "history.jsonl").exists()
    assert open_model(str(model))


@pytest.mark.parametrize(
    ("form", "target", "complaint"),
    [
        ("pickle", Target(Path("o")), "hub, onnx, openvino"),
        ("hub", Target(), "--output, --push"),
        ("hub", Target(Path("o"), public=True), "--public is for --push"),
        ("hub", Target(push="not an id!"), "expected a hub id"),
        ("hub", Target(push="me/model"), "HF_TOKEN"),
    ],
)
def test_what_makes_no_sense_is_refused(
    form: str, target: Target, complaint: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=complaint):
        export_model(str(tiny_model), form, target, QUIET)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client finds, with a token that it knows; nobody waits between attempts."""
    import huggingface_hub
    from huggingface_hub import constants

    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield found
    huggingface_hub.close_session()


def push(model: Path, **more: Any) -> dict[str, Any]:
    return export_model(str(model), "hub", Target(push="me/model", **more), QUIET)


def test_an_upload_is_private_and_whole(hub: Hub, model: Path) -> None:
    result = push(model)
    repository = hub.repositories["me/model"]
    assert repository["private"] is True
    assert set(HUB_FILES) <= set(repository["files"])
    assert result["output"] is None
    assert result["pushed"].startswith(f"{hub.endpoint}/me/model/commit/")
    assert {name: len(content) for name, content in repository["files"].items()} == result["files"]


@pytest.mark.parametrize("statuses", [[503], [500, 502, 429, 503]])
def test_failures_that_pass_are_tried_again(hub: Hub, model: Path, statuses: list[int]) -> None:
    hub.failing = list(statuses)
    push(model)
    assert set(hub.repositories["me/model"]["files"]) == HUB_FILES


def test_a_commit_whose_answer_is_lost_is_made_once_more_without_harm(
    hub: Hub, model: Path
) -> None:
    hub.lost = 1
    push(model)
    assert set(hub.repositories["me/model"]["files"]) == HUB_FILES


def test_a_hub_that_stays_away_ends_the_command_and_keeps_the_folder(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    hub.failing = [503] * 50
    with pytest.raises(StorageError, match="503") as caught:
        push(model, output=tmp_path / "out")
    assert TOKEN not in str(caught.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} == HUB_FILES


def test_weights_of_an_earlier_upload_do_not_stay_beside_new_ones(hub: Hub, model: Path) -> None:
    push(model)
    files = hub.repositories["me/model"]["files"]
    files |= {"model-00001-of-00002.safetensors": b"old", "notes.md": b"mine"}
    files |= {"model.onnx": b"another model", "openvino_model.bin": b"a third"}
    push(model)
    assert set(files) == {*HUB_FILES, "notes.md"}


def test_a_repository_that_everybody_sees_needs_public(hub: Hub, model: Path) -> None:
    push(model, public=True)
    assert hub.repositories["me/model"]["private"] is False
    with pytest.raises(ConfigError, match="add --public"):
        push(model)
    push(model, public=True)


@pytest.mark.parametrize(
    ("token", "repository", "complaint"),
    [("hf_a-wrong-token", "me/model", "make a new one"), (TOKEN, "others/model", "no right")],
)
def test_a_token_that_will_not_do_is_explained_and_not_shown(
    hub: Hub,
    model: Path,
    token: str,
    repository: str,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.chdir(model.parent)
    code = run(monkeypatch, "export", "model", "--format", "hub", "--push", repository)
    said = "".join(capfd.readouterr())
    assert code == 1
    assert complaint in said
    assert token not in said + caplog.text
    assert len(hub.requests) < 4  # it is of no use to ask again


def test_offline_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        push(model)


def test_the_command_prints_what_it_has_done(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    options = ("export", str(model), "--format", "hub", "--output", out, "--quiet")
    assert run(monkeypatch, *options) == 0
    assert "reproduces the canaries" in capfd.readouterr().out
    assert run(monkeypatch, *options) == 2
    assert "add --overwrite" in capfd.readouterr().err
    assert run(monkeypatch, *options, "--overwrite", "--json") == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["check"]["flips"] == 0
    assert run(monkeypatch, "export", str(model), "--format", "onx", "--output", out) == 2
    assert "expected one of hub, onnx, openvino" in capfd.readouterr().err
