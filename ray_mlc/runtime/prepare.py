"""What a training starts from: examples read, checked and tokenized once, the encoder found.

The digest of data, encoder and settings names the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import DataConfig, TrainingConfig, TrainJob
from ray_mlc.errors import DataError, ModelError, redact
from ray_mlc.labels import LabelSet
from ray_mlc.model.distribution import DISTRIBUTION_FILE
from ray_mlc.model.encoder import fetch, load_config, max_positions, new_classifier_model
from ray_mlc.model.folder import CANARIES_FILE, INFO_FILE
from ray_mlc.model.hierarchy import read_hierarchy
from ray_mlc.model.tokenization import Tokenizer, load_pretrained_tokenizer
from ray_mlc.model.trained_head import trained_head, why_not_kept
from ray_mlc.runtime.progress import Display
from ray_mlc.storage import local_path
from ray_mlc.training.epoch import TokenizedExamples
from ray_mlc.training.examples import Examples, annotated_rows, read_examples
from ray_mlc.training.linear_probe import check_head
from ray_mlc.training.parameters import parameter_groups
from ray_mlc.training.provenance import about_examples, about_lengths


@dataclass(frozen=True)
class Prepared:
    """What training starts from."""

    encoder: Path
    """Where its files are on this machine."""
    encoder_name: str
    """Where another node finds it: an absolute path, or the name of a remote one."""
    tokenizer: Tokenizer
    label_set: LabelSet
    train: TokenizedExamples
    validation: TokenizedExamples
    validation_targets: NDArray[np.float32]
    rates_L: NDArray[np.float64]
    """Share of the annotated training examples that have each label."""
    hierarchy: dict[str, list[str]]
    """Parents of labels."""
    fingerprint: str
    """Digest of data, encoder and settings: the name of the run."""
    vocabulary_size: int | None = None
    """Embeddings that special tokens of the job ask for; None: those of the encoder."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the model card says of the examples: `train`, `validation`, `lengths`; see
    `training.provenance`."""

    @property
    def material(self) -> Material:
        """What a worker needs of it."""
        return Material(
            encoder=self.encoder_name,
            labels=self.label_set.names,
            rates_L=self.rates_L,
            pad_id=self.tokenizer.pad_id,
            vocabulary_size=self.vocabulary_size,
            train=self.train,
            validation=self.validation,
            targets_NL=self.validation_targets,
        )

    def check(self, job: TrainJob) -> None:
        """Refuse settings that the encoder cannot do.

        Raises:
            ModelError: If it cannot be pooled, its learning rates not be decayed or its head not be
                fitted, as asked.
        """
        _check_encoder(job, self.encoder, self.label_set, self.train)

    def for_settings(self, job: TrainJob) -> Prepared:
        """The same, with the fingerprint of a job that reads and tokenizes the examples alike."""
        data = (self.train, self.validation)
        fingerprint = _fingerprint(job, self.encoder, self.label_set, data, self.hierarchy)
        return replace(self, fingerprint=fingerprint)


@dataclass(frozen=True)
class Material:
    """What a worker trains from; in the hands of Ray, arrays may be references to them."""

    encoder: str
    labels: Sequence[str]
    rates_L: NDArray[np.float64]
    pad_id: int
    vocabulary_size: int | None
    train: Any
    """`TokenizedExamples`."""
    validation: Any
    """`TokenizedExamples`."""
    targets_NL: Any
    """Targets of the validation examples, as floats."""


@dataclass(frozen=True)
class Splits:
    """The examples of a job, read and checked."""

    train: Examples
    validation: Examples
    label_set: LabelSet
    counts_L: NDArray[np.int64]
    """Training examples that have each label."""
    hierarchy: dict[str, list[str]]
    about: dict[str, Any] = field(default_factory=dict)
    """`training.provenance.about_examples` of each."""


def prepare(job: TrainJob, display: Display) -> Prepared:
    """Read and tokenize the examples; find the encoder."""
    return tokenize(job, read_splits(job.data, display), display)


def read_splits(data: DataConfig, display: Display) -> Splits:
    """Read the examples of a job."""
    with display.stage("read", None, "examples") as stage:
        train_set = read_examples(data.train, text=data.text, labels=data.labels)
        stage.advance(len(train_set))
        validation_set = read_examples(
            data.validation, text=data.text, labels=data.labels, label_set=train_set.label_set
        )
        stage.advance(len(validation_set))
    # labels that only validation has: the model gets a column for them, and misses them
    label_set = validation_set.label_set
    hierarchy = read_hierarchy(Path(data.hierarchy), label_set) if data.hierarchy else {}
    train_set = annotated_rows(train_set, "data.train")
    validation_set = annotated_rows(validation_set, "data.validation")
    counts = np.zeros(len(label_set), np.int64)
    counts[: len(train_set.label_set)] = train_set.label_counts()
    held_out = validation_set.label_counts()
    if held_out.any() and not held_out[counts > 0].any():
        raise DataError(
            f"data.validation: none of its labels, such as {label_set.names[held_out.argmax()]!r}, "
            f"is in a training row; labels there are such as {label_set.names[counts.argmax()]!r}"
        )
    if never := [name for name, count in zip(label_set.names, counts, strict=True) if not count]:
        display.say(f"note: {len(never)} label(s) are in no training row, such as {never[0]!r}")
    with display.stage("digest", None, "files") as stage:
        about = {}
        for name, path, examples in (
            ("train", data.train, train_set),
            ("validation", data.validation, validation_set),
        ):
            about[name] = about_examples(path, examples)
            stage.advance(len(about[name]["files"]))
    return Splits(train_set, validation_set, label_set, counts, hierarchy, about)


def tokenize(job: TrainJob, splits: Splits, display: Display) -> Prepared:
    """Find the encoder, and tokenize the examples for it."""
    train_set, validation_set, label_set = splits.train, splits.validation, splits.label_set
    encoder = fetch(job.encoder)
    special_tokens, windows = job.training.special_tokens, job.training.windows
    tokenizer = Tokenizer.load(
        encoder,
        max_tokens=_token_limit(job, encoder),
        windows=windows,
        special_tokens=special_tokens,
    )
    with display.stage("tokenize", len(train_set) + len(validation_set), "examples") as stage:
        tokenized = []
        for examples in (train_set, validation_set):
            tokenized.append(_tokenize(examples, tokenizer, len(label_set)))
            stage.advance(len(examples))
    n_tokens_N = tokenized[0].ids.n_tokens
    lengths = about_lengths(n_tokens_N, tokenizer.covered(n_tokens_N))
    long = lengths["cut"]
    if long > 0.01:
        of, keys = "", "training.max_tokens, or training.windows to read them whole"
        if tokenizer.max_tokens < job.training.max_tokens:
            keys = "its encoder takes no more at once; training.windows reads them whole"
        if windows is not None:
            of, keys = f"{windows.max_windows} windows of ", "training.windows.max_windows"
        display.say(
            f"note: {long:.1%} of the training texts are longer than {of}{tokenizer.max_tokens} "
            f"tokens and are cut ({keys})"
        )
    if (note := _beyond_budget(job.training, tokenized[0].ids.costs)) is not None:
        display.say(note)
    annotated = len(train_set) - _unannotated_counts(tokenized[0])
    rates_L = splits.counts_L / np.maximum(annotated, 1)
    _check_encoder(job, encoder, label_set, tokenized[0])
    fingerprint = _fingerprint(job, encoder, label_set, tokenized, splits.hierarchy)
    targets = _targets(validation_set, label_set)
    is_folder = local_path(job.encoder) == encoder
    return Prepared(
        encoder=encoder,
        encoder_name=str(encoder) if is_folder else job.encoder,
        tokenizer=tokenizer,
        label_set=label_set,
        train=tokenized[0],
        validation=tokenized[1],
        validation_targets=targets,
        rates_L=rates_L,
        hierarchy=splits.hierarchy,
        fingerprint=fingerprint,
        vocabulary_size=tokenizer.vocabulary_size if special_tokens else None,
        about={**splits.about, "lengths": lengths},
    )


def about_head(job: TrainJob, prepared: Prepared) -> str | None:
    """What to say of the head where the encoder is a multi-label model; None for others."""
    encoder, label_set, name = prepared.encoder, prepared.label_set, redact(job.encoder)
    pooling = job.training.pooling
    if (why := why_not_kept(encoder, label_set, pooling=pooling)) is not None:
        return f"note: nothing of the head of {name} is kept: {why}"
    head = trained_head(encoder, label_set, pooling=pooling)
    if head is None:
        return None
    asked = set(label_set.names)
    lost = [name for name in head.names if name not in asked]
    note = f"the head of {len(head.names) - len(lost):,} of {len(label_set):,} label(s) is {name}'s"
    if lost:
        note += f"; {len(lost):,} that are not among the examples' are lost, such as {lost[0]!r}"
    return note


def _beyond_budget(settings: TrainingConfig, costs_N: NDArray[np.int64]) -> str | None:
    """What to say of documents that no forward pass within `max_batch_tokens` can hold."""
    beyond = int((costs_N > settings.max_batch_tokens).sum())
    if not beyond:
        return None
    windows = " in their windows" if settings.windows is not None else ""
    lower = "training.windows.max_windows" if windows else "training.max_tokens"
    return (
        f"note: {beyond:,} of the training texts have more tokens{windows} (up to "
        f"{costs_N.max():,}) than training.max_batch_tokens ({settings.max_batch_tokens:,}): each "
        f"is a forward pass of its own, which memory has to hold; {lower} bounds it"
    )


def _check_encoder(
    job: TrainJob, encoder: Path, label_set: LabelSet, train: TokenizedExamples
) -> None:
    """Refuse what an encoder cannot do before Ray is started: each worker would, again and again.

    Raises:
        ModelError: If it cannot be pooled, its learning rates not be decayed or its head not be
            fitted, as asked.
    """
    settings = job.training
    probed = settings.head_init == "linear_probe"
    if settings.pooling == "auto" and settings.layer_decay == 1 and not probed:
        return
    model = new_classifier_model(
        encoder, label_set, head_bias=None, seed=settings.seed, pooling=settings.pooling
    )
    parameter_groups(model, settings)
    if probed:
        check_head(model, len(label_set))
    first_tokens = train.ids.values[train.ids.offsets[:-1]]
    if settings.pooling == "cls" and len(np.unique(first_tokens)) > 1:
        raise ModelError(
            f"{job.encoder}: training.pooling is cls, but its tokenizer puts no token before the "
            "text that could stand for the whole: set training.pooling=auto, or mean"
        )


def _token_limit(job: TrainJob, encoder: Path) -> int:
    """The job's `max_tokens`, or what the encoder allows if that is less.

    The tokenizer of a model folder has a limit too: what that model has been trained with, which
    is no bound for one that goes on from it.
    """
    limits = [job.training.max_tokens, max_positions(load_config(encoder))]
    if not (encoder / INFO_FILE).is_file():
        limits.append(int(load_pretrained_tokenizer(encoder).model_max_length))
    return min(limit for limit in limits if limit is not None)


def _tokenize(examples: Examples, tokenizer: Tokenizer, label_count: int) -> TokenizedExamples:
    ids = tokenizer.encode(examples.texts.to_pylist())
    positive = examples.positives
    if examples.unannotated is None:
        open_offsets = np.zeros(len(examples) + 1, np.int64)
        open_columns = np.zeros(0, np.int32)
    else:
        open_offsets = examples.unannotated.offsets.to_numpy().astype(np.int64)
        open_columns = examples.unannotated.values.to_numpy().astype(np.int32)
    return TokenizedExamples(
        ids=ids,
        positive_offsets=positive.offsets.to_numpy().astype(np.int64),
        positive_columns=positive.values.to_numpy().astype(np.int32),
        unannotated_offsets=open_offsets,
        unannotated_columns=open_columns,
        label_count=label_count,
    )


def _unannotated_counts(examples: TokenizedExamples) -> NDArray[np.int64]:
    return np.bincount(examples.unannotated_columns, minlength=examples.label_count)


def _targets(examples: Examples, label_set: LabelSet) -> NDArray[np.float32]:
    """Dense targets with a column for each label of `label_set`, whose first ones are ours."""
    own = examples.targets_NL()
    missing = len(label_set) - own.shape[1]
    return np.pad(own, ((0, 0), (0, missing))) if missing else own


def _fingerprint(
    job: TrainJob,
    encoder: Path,
    label_set: LabelSet,
    data: Sequence[TokenizedExamples],
    hierarchy: Mapping[str, Sequence[str]],
) -> str:
    digest = hashlib.sha256()
    settings = job.training.model_dump(mode="json")
    named = [settings, label_set.names, *([hierarchy] if hierarchy else [])]
    digest.update(json.dumps(named, sort_keys=True).encode())
    # what a model folder says of itself changes with its thresholds, and is nothing to start from
    said = {INFO_FILE, DISTRIBUTION_FILE, CANARIES_FILE}
    for file in sorted(
        [*encoder.glob("*.safetensors"), *encoder.glob("*.bin"), *encoder.glob("*.json")]
    ):
        if file.is_file() and file.name not in said:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    for examples in data:
        for array in (
            examples.ids.values,
            examples.ids.offsets,
            examples.ids.firsts,
            examples.positive_offsets,
            examples.positive_columns,
            examples.unannotated_offsets,
            examples.unannotated_columns,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
