"""The model folder: all that passes from training to scoring.

A Hugging Face checkpoint that `AutoModelForSequenceClassification` and `pipeline` load unchanged
(or refuse, where they have no class for its head: `model.pooling`), with `ray_mlc.json` (labels,
decision, long-document policy, metrics, origin), `canaries.json`, `distribution.json` (what scores
the validation examples got), `history.jsonl` and a model card beside it; or, of another kind, a
TF-IDF model, which transformers refuses. `ray_mlc.json` is written last: a folder without it is not
finished. Safetensors and JSON only; nothing is unpickled, no remote code is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError

from ray_mlc.config import LongConfig, Section, WindowsConfig
from ray_mlc.errors import ConfigError, DataError, ModelError
from ray_mlc.job_files import describe
from ray_mlc.labels import LabelSet
from ray_mlc.model.card import Form, model_card
from ray_mlc.model.decisions import Decision
from ray_mlc.model.distribution import (
    DISTRIBUTION_FILE,
    Distribution,
    ScoreCounts,
    parse_distribution,
)
from ray_mlc.model.encoder import fetch, pooling_of, quiet_transformers
from ray_mlc.model.tfidf import MODEL_TYPE as TFIDF_MODEL_TYPE
from ray_mlc.model.tfidf import VOCABULARY_FILE, TfidfModel
from ray_mlc.storage import local_path, open_storage

log = logging.getLogger(__name__)

INFO_FILE = "ray_mlc.json"
CANARIES_FILE = "canaries.json"
HISTORY_FILE = "history.jsonl"
CARD_FILE = "README.md"
SCHEMA_VERSION = 2
"""1: thresholds; 2: calibration, hierarchy and fall-back beside them."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class ModelInfo(Section):
    """`ray_mlc.json`."""

    schema_version: int = 1
    """The first version of this file's schema that has all the keys in use."""
    kind: Literal["encoder", "tfidf"] = "encoder"
    """What the folder holds."""
    labels: list[str]
    """Label names in column order."""
    decision: Decision = Field(default_factory=Decision)
    """How scores become labels."""
    long: LongConfig = Field(default_factory=LongConfig)
    """What happens to documents longer than the model takes."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Validation metrics of the weights that were kept: `at_half`, `decision` and `dummy`;
    `decision_held_out` where thresholds were cross-validated, `intervals` of each by metric,
    `measured_on` (examples, documents, how thresholds were found), and of a `calibration` its
    errors. Folders of earlier versions have the first two alone."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where it came from: encoder, data (files with digests, lengths, labels' examples), settings,
    seed, versions, fingerprint."""
    label_rates: list[float] | None = None
    """Share of the annotated training examples that have each label."""


class Canaries(Section):
    """`canaries.json`: texts that show whether a process scores as it should."""

    texts: list[str]
    """Neutral sentences, and texts of all lengths drawn from the vocabulary."""
    scores: list[list[float]]
    """Their float32 scores, one list of L per text."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found complete."""

    name: str
    """As the user named it."""
    path: Path
    """Where its files are on this machine."""
    info: ModelInfo
    """Content of `ray_mlc.json`, or what a plain Hugging Face folder implies."""

    @property
    def location(self) -> str:
        """Where another process finds it: an absolute path, or the name of a remote model."""
        path = local_path(self.name)
        return str(path) if path is not None and path == self.path else self.name

    @property
    def label_set(self) -> LabelSet:
        """Labels in column order."""
        return LabelSet(tuple(self.info.labels))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what scores depend on: weights, configuration, tokenizer."""
        return _digest(_scoring_files(self.path, self.info.kind))

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 over what tokens depend on; costs no look at the weights."""
        names = ("config.json", *TOKENIZER_FILES)
        return _digest([self.path / name for name in names if (self.path / name).is_file()])

    def with_decision(self, decision: Decision) -> ModelFolder:
        """The same model, decided otherwise; the folder itself stays as it is."""
        return replace(self, info=self.info.model_copy(update={"decision": decision}))

    @property
    def max_tokens(self) -> int | None:
        """Tokens kept per document, as the folder says; None: as its tokenizer says."""
        return self.info.long.max_tokens

    @property
    def windows(self) -> WindowsConfig | None:
        """How long documents are read in windows, as the folder says; None: they are not."""
        return self.long(None).windows

    def long(self, asked: LongConfig | None) -> LongConfig:
        """What happens to long documents, without anything open but the number of tokens.

        Args:
            asked: What a job says; None: what the folder says.
        """
        own, asked = self.info.long, asked or LongConfig()
        implied = "windows" if asked.windows is not None else own.policy
        policy = asked.policy or implied or "truncate"
        windows = None
        if policy == "windows":
            windows = own.windows or WindowsConfig()
            said = asked.windows.model_dump(exclude_unset=True) if asked.windows else {}
            if said.get("aggregate") == "auto":
                del said["aggregate"]
            windows = windows.model_copy(update=said)
            if windows.aggregate == "auto":
                windows = windows.model_copy(update={"aggregate": "max"})
        max_tokens = asked.max_tokens or own.max_tokens
        return LongConfig(policy=policy, max_tokens=max_tokens, windows=windows)

    def canaries(self) -> Canaries | None:
        """Recorded canaries; None for a folder that another program made.

        Raises:
            ModelError: If the file is missing or malformed in a folder of ours.
        """
        file = self.path / CANARIES_FILE
        if not file.is_file():
            if not (self.path / INFO_FILE).is_file():
                return None
            raise ModelError(f"{self.name}: {CANARIES_FILE} is missing: train or copy it again")
        canaries: Canaries = _parse(Canaries, file, self.name)
        return canaries

    def distribution(self) -> Distribution | None:
        """What scores its validation examples got; None: nobody has written it down.

        Raises:
            ModelError: If the file is malformed, or of other weights.
        """
        file = self.path / DISTRIBUTION_FILE
        if not file.is_file():
            return None
        return parse_distribution(
            file.read_bytes(), name=self.name, label_set=self.label_set, model=self.digest
        )


def open_model(model: str) -> ModelFolder:
    """Find a model and check that its folder is complete and multi-label.

    Args:
        model: Folder, URI, or hub id with an optional `@revision`.

    Raises:
        ModelError: If something is missing, malformed, or the head is not a multi-label one.
    """
    path = fetch(model)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{model}: config.json is missing: is this a model folder?")
    if not list(path.glob("*.safetensors")):
        raise ModelError(f"{model}: there is no .safetensors file with the weights")
    config = _json_object(config_file, model)
    kind: Literal["encoder", "tfidf"]
    kind = "tfidf" if config.get("model_type") == TFIDF_MODEL_TYPE else "encoder"
    pieces = VOCABULARY_FILE if kind == "tfidf" else "tokenizer.json"
    if not (path / pieces).is_file():
        raise ModelError(f"{model}: {pieces} is missing")
    problem = config.get("problem_type")
    if problem != "multi_label_classification":
        raise ModelError(
            f"{model}: config.json has problem_type {problem!r}, expected "
            "'multi_label_classification': its head is a softmax over classes, not one "
            "independent score per label"
        )
    labels = _labels(config, model)
    info_file = path / INFO_FILE
    if info_file.is_file():
        # before its keys are checked: a newer schema may have others
        version = _json_object(info_file, model).get("schema_version", 0)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ModelError(
                f"{model}: {INFO_FILE} has schema {version}, this ray_mlc knows up to "
                f"{SCHEMA_VERSION}: upgrade ray-mlc"
            )
        info = _parse(ModelInfo, info_file, model)
        if info.labels != labels:
            raise ModelError(f"{model}: labels of {INFO_FILE} and config.json differ")
        try:
            info.decision.check(LabelSet(tuple(labels)))
        except ConfigError as error:
            raise ModelError(f"{model}: {INFO_FILE}: decision.{error}") from None
        if info.kind != kind:
            raise ModelError(
                f"{model}: {INFO_FILE} says {info.kind}, config.json {kind}: the folder's files do "
                "not belong together"
            )
    else:
        for name in (CANARIES_FILE, HISTORY_FILE, "_checkpoints"):
            if (path / name).exists():
                raise ModelError(
                    f"{model}: {INFO_FILE} is missing beside {name}: the folder is not finished or "
                    "was copied in part: train or copy it again"
                )
        log.warning("%s: no %s: labels are given from a score of 0.5 on", model, INFO_FILE)
        info = ModelInfo(labels=labels, kind=kind)
    return ModelFolder(model, path, info)


def read_info(folder: Path) -> ModelInfo | None:
    """Content of a folder's `ray_mlc.json`; None if there is none.

    Raises:
        ModelError: If it is malformed.
    """
    file = folder / INFO_FILE
    if not file.is_file():
        return None
    info: ModelInfo = _parse(ModelInfo, file, str(folder))
    return info


def write_model_folder(
    output: Path,
    *,
    model: Any,
    tokenizer: Any,
    info: ModelInfo,
    canaries: Canaries,
    history: Sequence[Mapping[str, Any]],
    validation: ScoreCounts | None = None,
) -> None:
    """Write a model folder; `ray_mlc.json` comes last and makes it one.

    Args:
        output: Local folder; may exist.
        model: Fine-tuned float32 model whose config holds labels and problem type.
        tokenizer: Its Hugging Face tokenizer.
        info: Content of `ray_mlc.json`.
        canaries: Recorded with the very weights.
        history: One mapping per epoch.
        validation: Scores of the validation examples; None: they are not known.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / INFO_FILE).unlink(missing_ok=True)
    tokenizer.model_max_length = info.long.max_tokens
    with quiet_transformers():
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    lines = "".join(json.dumps(dict(epoch)) + "\n" for epoch in history)
    _finish(output, info, canaries, {HISTORY_FILE: lines.encode()}, validation)


def write_tfidf_folder(
    output: Path,
    *,
    model: TfidfModel,
    info: ModelInfo,
    canaries: Canaries,
    validation: ScoreCounts | None = None,
) -> None:
    """Write a model folder of kind `tfidf`; as `write_model_folder`, there is no history."""
    output.mkdir(parents=True, exist_ok=True)
    (output / INFO_FILE).unlink(missing_ok=True)
    model.save(output, LabelSet(tuple(info.labels)))
    _finish(output, info, canaries, {}, validation)


def _finish(
    output: Path,
    info: ModelInfo,
    canaries: Canaries,
    more: Mapping[str, bytes],
    validation: ScoreCounts | None,
) -> None:
    """Write what makes a checkpoint a model folder; `ray_mlc.json` comes last."""
    (output / DISTRIBUTION_FILE).unlink(missing_ok=True)  # of a model that was here before
    if validation is not None:
        digest = _digest(_scoring_files(output, info.kind))
        more = {**more, DISTRIBUTION_FILE: _dump_distribution(validation, info, digest)}
    for weights in output.glob("*.safetensors"):
        # safetensors writes for its user alone; a folder is read by others
        weights.chmod((output / "config.json").stat().st_mode)
    describe_folder(output, info, canaries, more)


def describe_folder(
    output: Path,
    info: ModelInfo,
    canaries: Canaries,
    more: Mapping[str, bytes] = MappingProxyType({}),
    *,
    form: Form = "hub",
    note: str = "",
) -> None:
    """Write what lies beside a model: canaries, card, and `ray_mlc.json`, which comes last.

    Args:
        output: Folder with `config.json` and the model.
        info: Content of `ray_mlc.json`.
        canaries: Recorded with the very weights.
        more: Other files, by name.
        form: What the folder holds the model as.
        note: A sentence for the card.
    """
    storage = open_storage(str(output), scratch="_tmp")
    storage.put(CANARIES_FILE, canaries.model_dump_json().encode())
    for name, content in more.items():
        storage.put(name, content)
    card = model_card(info, pooling=_pooling(info, output), form=form, note=note)
    storage.put(CARD_FILE, card.encode())
    storage.put(INFO_FILE, _dump(info))
    shutil.rmtree(output / "_tmp", ignore_errors=True)


def write_decision(
    folder: ModelFolder,
    decision: Decision,
    metrics: Mapping[str, Any],
    validation: ScoreCounts | None = None,
) -> None:
    """Give a model folder another decision; weights, and so its digest, stay as they are.

    Args:
        folder: A local model folder.
        decision: How scores become labels from now on.
        metrics: `ModelInfo.metrics` that go with it.
        validation: Scores of the examples that it was fitted on, and labels by it; None:
            `distribution.json` stays as it is.

    Raises:
        StorageError: If it cannot be written.
    """
    info = folder.info.model_copy(update={"decision": decision, "metrics": dict(metrics)})
    storage = open_storage(str(folder.path), scratch="_tmp")
    if validation is not None:
        storage.put(DISTRIBUTION_FILE, _dump_distribution(validation, info, folder.digest))
    storage.put(INFO_FILE, _dump(info))
    storage.put(CARD_FILE, model_card(info, pooling=_pooling(info, folder.path)).encode())
    shutil.rmtree(folder.path / "_tmp", ignore_errors=True)


def _dump_distribution(validation: ScoreCounts, info: ModelInfo, digest: str) -> bytes:
    label_set = LabelSet(tuple(info.labels))
    decision = info.decision.digest
    found = Distribution.of(validation, label_set, model=digest, decision=decision)
    return found.model_dump_json().encode()


def _pooling(info: ModelInfo, folder: Path) -> str | None:
    return pooling_of(folder) if info.kind == "encoder" else None


def _dump(info: ModelInfo) -> bytes:
    """`ray_mlc.json` with the lowest schema version that will do, for readers of an older one."""
    windows = info.long.windows
    plain = windows is None and info.kind == "encoder"
    needed = max(info.decision.needs_schema, 1 if plain else 2)
    stated = info.model_copy(update={"schema_version": needed})
    silent = {"long": {"windows"}} if windows is None else None
    return stated.model_dump_json(indent=2, exclude=silent).encode()


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _scoring_files(path: Path, kind: str) -> list[Path]:
    weights = sorted(path.glob("*.safetensors"))
    pieces = (VOCABULARY_FILE,) if kind == "tfidf" else TOKENIZER_FILES
    fixed = [path / "config.json", *(path / name for name in pieces)]
    return [file for file in [*fixed, *weights] if file.is_file()]


def _labels(config: Mapping[str, Any], name: str) -> list[str]:
    """Labels of `config.json` in column order."""
    id2label = config.get("id2label")
    try:
        labels = [id2label[key] for key in sorted(id2label, key=int)]  # type: ignore[index, arg-type]
        return list(LabelSet(tuple(labels)).names)
    except (TypeError, ValueError, KeyError):
        raise ModelError(f"{name}: config.json has no id2label that names the labels") from None
    except DataError as error:
        raise ModelError(f"{name}: config.json: {error}") from None


def _json_object(file: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, OSError):
        raise ModelError(f"{name}: {file.name} is not valid JSON") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name}: {file.name} is not a JSON object")
    return value


def _parse(kind: Any, file: Path, name: str) -> Any:
    try:
        return kind.model_validate(_json_object(file, name))
    except ValidationError as error:
        raise ModelError(f"{name}: {file.name}: {describe(error, kind)}") from None
