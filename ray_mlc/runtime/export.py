"""Give a model away: a clean checkpoint, or a graph that runs without ray_mlc and PyTorch.

What is written is loaded anew, by the library that others will load it with, and has to reproduce
the model's canaries before it appears under its name. On the way paths of this machine are left
out: a folder that is published says of which files it was trained, not where they lie.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, GateError, ModelError, StorageError, first_line, redact
from ray_mlc.model.canaries import CanaryReport, check_canaries, compare_scores
from ray_mlc.model.card import Form
from ray_mlc.model.classifier import Classifier, sigmoid
from ray_mlc.model.distribution import DISTRIBUTION_FILE
from ray_mlc.model.encoder import pooling_of, quiet_transformers
from ray_mlc.model.engines.choose import (
    CPU_BATCH_TOKENS,
    load_encoder_tokenizer,
    load_tokenizer,
    reference_canaries,
)
from ray_mlc.model.engines.protocol import Engine
from ray_mlc.model.folder import (
    INFO_FILE,
    TOKENIZER_FILES,
    Canaries,
    ModelFolder,
    ModelInfo,
    describe_folder,
    open_model,
)
from ray_mlc.model.tfidf import VOCABULARY_FILE
from ray_mlc.runtime.evaluate import load_here
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.publish import check_repository, publish, read_token

FORMS: tuple[str, ...] = get_args(Form)
_MORE_TOKENIZER_FILES = ("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model")
"""What older libraries read of tokenizers, where a folder has it."""
MIXED = 16
"""Canaries of all lengths that are put into one batch."""


@dataclass(frozen=True)
class Target:
    """Where an export goes."""

    output: Path | None = None
    """Folder to write; None: none stays here."""
    push: str | None = None
    """Hub id to upload to; None: nothing is uploaded."""
    public: bool = False
    """Whether a repository that is made may be seen by everybody."""
    overwrite: bool = False
    """Whether an export that is there is replaced."""


def export_model(model: str, form: str, target: Target, display: Display) -> dict[str, Any]:
    """Write a model in another form, prove it, and upload it if asked.

    Args:
        model: Model folder, URI or hub id.
        form: `hub`, `onnx` or `openvino`.
        target: Where it goes.
        display: Told about progress.

    Returns:
        `model`, `format`, `output`, `files` (bytes by name), `check` (`loaded_by`,
        `max_difference`, `flips`, `cells`), `versions`, `pushed` (its address, or null), `notes`.

    Raises:
        ConfigError: If the target cannot be, or there is no token for it.
        ModelError: If the model has no such form, or what makes it is not installed.
        GateError: If what was written does not reproduce the canaries; nothing is kept then.
        StorageError: If it cannot be written or uploaded.
    """
    if form not in FORMS:
        raise ConfigError(f"format is {form!r}, expected one of {', '.join(FORMS)}")
    if target.output is None and target.push is None:
        raise ConfigError("give --output, --push or both: where does it go?")
    if target.public and target.push is None:
        raise ConfigError("--public is for --push: there is nothing to show to anybody")
    token = None
    if target.push is not None:
        check_repository(target.push)
        token = read_token()
    folder = open_model(model)
    _refuse_impossible(folder, form)
    if target.output is not None:
        _refuse_target(target.output, folder, overwrite=target.overwrite)
    canaries = reference_canaries(folder, _tokenizer(folder))
    scratch = _scratch(target.output)
    try:
        with display.stage("export", None, "files") as stage:
            notes, versions = _write(folder, form, scratch, canaries)
            stage.advance(len(_files(scratch)))
        with display.stage("canaries", None, "texts") as stage:
            loaded_by, report = _CHECKS[form](folder, scratch, canaries)
            if not report.holds:
                raise GateError(
                    f"{model}: as {form}, loaded by {loaded_by}, it does not reproduce the "
                    f"canaries: {report}; nothing is kept"
                )
            stage.advance(len(canaries.texts))
        files = _files(scratch)
        place, pushed = scratch, None
        if target.output is not None:
            _install(scratch, target.output)
            place = target.output
        if target.push is not None:
            assert token is not None
            with display.stage("push", None, "files") as stage:
                pushed = publish(
                    place,
                    target.push,
                    token=token,
                    public=target.public,
                    # of all forms: beside another model's card and labels they would mislead
                    replaces=[pattern for patterns in _WEIGHTS.values() for pattern in patterns],
                    message=f"{form} form, written by ray-mlc",
                )
                stage.advance(len(files))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "model": model,
        "format": form,
        "output": None if target.output is None else str(target.output),
        "files": files,
        "check": {
            "loaded_by": loaded_by,
            "max_difference": report.max_difference,
            "flips": report.flips,
            "cells": report.cells,
        },
        "versions": versions,
        "pushed": pushed,
        "notes": notes,
    }


def _tokenizer(folder: ModelFolder) -> Any:
    return load_tokenizer(folder, max_tokens=folder.max_tokens, windows=folder.windows)


def _refuse_impossible(folder: ModelFolder, form: str) -> None:
    """Refuse a form that the model has not, or that nothing here can make.

    Raises:
        ModelError: Saying what would do.
    """
    if form == "hub":
        return
    if folder.info.kind == "tfidf":
        raise ModelError(
            f"{folder.name}: is a TF-IDF model, which is no graph of tensors: --format hub makes a "
            "folder that ray_mlc runs anywhere"
        )
    if form == "onnx":
        from ray_mlc.model.engines import onnx_convert

        if (name := onnx_convert.missing()) is not None:
            raise ModelError(f"--format onnx: {name} is not installed: {onnx_convert.INSTALL}")
    else:
        from ray_mlc.model.engines import openvino_engine

        if not openvino_engine.available():
            raise ModelError(
                "--format openvino: OpenVINO is not installed: install the extra with `pip install "
                "'ray-mlc[openvino]'`"
            )


def _refuse_target(output: Path, folder: ModelFolder, *, overwrite: bool) -> None:
    """Refuse a target that is there, and never replace what no export has made.

    Raises:
        ConfigError: Saying why.
    """
    place, own = output.absolute().resolve(), folder.path.resolve()
    if place == own or own.is_relative_to(place):
        raise ConfigError(f"--output is {output}: the model itself lies there: name another folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"--output is {output}: is a file, expected a folder to write")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"--output is {output}: is there already: add --overwrite to replace it")
    if not _is_export(output):
        raise ConfigError(
            f"--output is {output}: holds no exported model, so it is not replaced: name another "
            "folder"
        )


def _is_export(folder: Path) -> bool:
    """Whether a folder is what `export` has made: the model itself lies elsewhere."""
    try:
        return bool(json.loads((folder / INFO_FILE).read_bytes())["training"]["exported"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _scratch(output: Path | None) -> Path:
    """A folder to write into, beside the target, so that it can be renamed."""
    if output is None:
        return Path(tempfile.mkdtemp(prefix="ray-mlc-export-"))
    scratch = output.absolute().parent / f".{output.name}-{uuid.uuid4().hex[:12]}"
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {first_line(error)}") from None
    return scratch


def _install(scratch: Path, output: Path) -> None:
    """Give what is written its name; what had it before is gone only then."""
    old = scratch.with_name(f"{scratch.name}-old")
    try:
        if output.exists():
            output.rename(old)
        try:
            scratch.rename(output)
        except OSError:
            with suppress(OSError):
                old.rename(output)
            raise
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {first_line(error)}") from None
    shutil.rmtree(old, ignore_errors=True)


def _write(
    folder: ModelFolder, form: str, scratch: Path, canaries: Canaries
) -> tuple[list[str], dict[str, str]]:
    """Write all files; what is to be said of them, and the versions that made them."""
    names = (
        ["config.json", DISTRIBUTION_FILE, *_WEIGHTS["hub"]] if form == "hub" else ["config.json"]
    )
    names += [VOCABULARY_FILE] if folder.info.kind == "tfidf" else TOKENIZER_FILES
    for pattern in [*names, *_MORE_TOKENIZER_FILES]:
        for file in folder.path.glob(pattern):
            # content only: rights and times are of this machine, and a cache holds links
            shutil.copyfile(file, scratch / file.name)
    notes: list[str] = []
    versions = {"transformers": version("transformers")}
    note = ""
    if form == "hub":
        if folder.info.kind == "tfidf":
            notes.append("transformers refuses it: only ray_mlc loads it")
            notes.append(
                f"{VOCABULARY_FILE} holds words of the training texts: look at it before you "
                "publish it"
            )
        elif pooling_of(folder.path) is not None:
            notes.append(
                "transformers has no class for its head and refuses it: only ray_mlc loads it; "
                "--format onnx and openvino run anywhere"
            )
    elif form == "onnx":
        from ray_mlc.model.engines import onnx_convert

        onnx_convert.convert(folder.path, scratch / onnx_convert.MODEL_FILE)
        note = (
            f"Inputs `input_ids` and `attention_mask`, output `logits`; opset {onnx_convert.OPSET}."
        )
        versions |= {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    else:
        from ray_mlc.model.engines.openvino_convert import convert
        from ray_mlc.model.engines.openvino_engine import MODEL_FILE

        convert(folder.path, scratch / MODEL_FILE)
        note = "Inputs `input_ids` and `attention_mask`, one output: logits."
        versions |= {name: version(name) for name in ("torch", "openvino")}
    describe_folder(scratch, without_paths(folder.info), canaries, form=form, note=note)  # type: ignore[arg-type]
    return notes, versions


def without_paths(info: ModelInfo) -> ModelInfo:
    """`ray_mlc.json` with names in place of this machine's paths, and the mark of an export."""
    training = dict(info.training)
    for key in ("train", "validation"):
        if key in training:
            training[key] = _names(training[key])
    if "encoder" in training and "base_model" not in training:  # of no hub, as far as is known
        training["encoder"] = _names(training["encoder"])
    data = dict(training.get("data", {}))
    for split in data.keys() & {"train", "validation"}:
        files = [{**file, "name": _names(file["name"])} for file in data[split]["files"]]
        data[split] = {**data[split], "files": files}
    if data:
        training["data"] = data
    training["exported"] = True
    metrics = dict(info.metrics)
    if "measured_on" in metrics:
        about = metrics["measured_on"]
        metrics["measured_on"] = {**about, "examples": _names(about["examples"])}
    return info.model_copy(update={"training": training, "metrics": metrics})


def _names(location: Any) -> Any:
    """The last element of a path, or of each of some, without what stands for an endpoint."""
    if isinstance(location, list):
        return [_names(one) for one in location]
    if not isinstance(location, str):
        return location
    scheme, _, rest = redact(location).partition("?")[0].rpartition("://")
    parts = [part for part in re.split(r"[/\\]", rest) if part]
    # of a store the first part is a bucket, which is nobody's business
    return parts[-1] if len(parts) > (scheme not in ("", "file")) else ""


def _check_hub(folder: ModelFolder, scratch: Path, canaries: Canaries) -> tuple[str, CanaryReport]:
    """Load a checkpoint as others do, or by ray_mlc where nobody else can."""
    copy = open_model(str(scratch))
    rules = copy.info.decision.rules(copy.label_set)
    ours = check_canaries(load_here(copy, dtype="float32", device="cpu"), canaries, rules)
    if copy.info.kind == "tfidf" or pooling_of(scratch) is not None or not ours.holds:
        return "ray_mlc", ours
    # of a text of several windows, transformers sees the first
    kept = np.flatnonzero(_tokenizer(copy).encode(canaries.texts).n_windows == 1)
    scores_NL = score_with_pipeline(scratch, [canaries.texts[row] for row in kept])
    recorded = [canaries.scores[row] for row in kept]
    return "transformers", compare_scores(scores_NL, recorded, rules, dtype="float32")


def score_with_pipeline(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """Scores of transformers' own `pipeline`, as the model card says to use it, shape [N, L]."""
    from transformers import pipeline

    with quiet_transformers():
        classify = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
        rows = classify(texts, truncation=True, batch_size=8)
    column = classify.model.config.label2id
    scores_NL = np.full((len(texts), len(column)), np.nan, np.float32)
    for row, items in enumerate(rows):
        for item in items:
            scores_NL[row, column[item["label"]]] = item["score"]
    return scores_NL


def _check_onnx(folder: ModelFolder, scratch: Path, canaries: Canaries) -> tuple[str, CanaryReport]:
    from ray_mlc.model.engines.onnx_convert import MODEL_FILE, OnnxEngine

    return "onnxruntime", _check_graph(
        folder, canaries, lambda pad_id: OnnxEngine(scratch / MODEL_FILE, pad_id=pad_id)
    )


def _check_openvino(
    folder: ModelFolder, scratch: Path, canaries: Canaries
) -> tuple[str, CanaryReport]:
    from ray_mlc.model.engines.openvino_engine import MODEL_FILE, OpenVinoEngine

    def load(pad_id: int) -> Engine:
        path = scratch / MODEL_FILE
        return OpenVinoEngine.of_file(path, pad_id=pad_id, dtype="float32", threads=None)

    return "openvino", _check_graph(folder, canaries, load)


def _check_graph(
    folder: ModelFolder, canaries: Canaries, load: Callable[[int], Engine]
) -> CanaryReport:
    """Score the canaries with a graph: in batches of like lengths, and in one of all lengths."""
    tokenizer = load_encoder_tokenizer(folder, max_tokens=folder.max_tokens, windows=folder.windows)
    rules = folder.info.decision.rules(folder.label_set)
    engine = load(tokenizer.pad_id)
    budget = max(CPU_BATCH_TOKENS, tokenizer.max_tokens)
    classifier = Classifier(folder.label_set, tokenizer, engine, budget)
    report = check_canaries(classifier, canaries, rules)
    # scoring pads as little as it can: here short texts are padded to the longest
    ragged = tokenizer.encode(canaries.texts)
    single = np.flatnonzero(ragged.n_windows == 1)
    by_length = single[np.argsort(ragged.sizes[single], kind="stable")]
    some = by_length[np.unique(np.linspace(0, len(by_length) - 1, MIXED).round().astype(int))]
    scores_NL = sigmoid(engine.logits(ragged.windows(ragged.firsts[some])))
    recorded = [canaries.scores[row] for row in some]
    mixed = compare_scores(scores_NL, recorded, rules, dtype="float32")
    return CanaryReport(
        max_difference=float(np.maximum(report.max_difference, mixed.max_difference)),  # NaN wins
        flips=report.flips + mixed.flips,
        cells=report.cells + mixed.cells,
        dtype="float32",
    )


_CHECKS: Mapping[str, Callable[[ModelFolder, Path, Canaries], tuple[str, CanaryReport]]] = {
    "hub": _check_hub,
    "onnx": _check_onnx,
    "openvino": _check_openvino,
}
_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "hub": ("*.safetensors", "*.safetensors.index.json"),
    "onnx": ("model.onnx", "model.onnx.data"),
    "openvino": ("openvino_model.xml", "openvino_model.bin"),
}
"""Files of each form: those that are left of an earlier upload would not belong to the new ones."""


def _files(folder: Path) -> dict[str, int]:
    """Sizes in bytes by name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(found)}
