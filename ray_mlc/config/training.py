"""Jobs that fine-tune an encoder: `kind: train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ray_mlc.config.sections import (
    Range,
    RayConfig,
    Section,
    WindowsConfig,
)
from ray_mlc.errors import ConfigError
from ray_mlc.storage import refuse_credentials


class DataConfig(Section):
    """The examples to learn from."""

    train: str | list[str]
    """Parquet, JSONL or CSV file(s) or folder of examples."""
    validation: str | list[str]
    """The same, held out: the best epoch and the threshold are chosen on it."""
    text: str = "text"
    """Text column, or a template over columns such as `{title}\\n\\n{body}`."""
    labels: str | list[str] = "labels"
    """Column that lists the labels of a row, or the list of 0/1 columns, one per label."""
    hierarchy: str | None = None
    """YAML file of label parents (`child: parent`, or a list of them): the decision gives them with
    the child; null: labels are free of each other."""


LossName = Literal["bce", "focal", "asymmetric", "distribution_balanced"]


class LossConfig(Section):
    """What training minimizes; `loss: focal` stands for `loss: {name: focal}`."""

    shorthand: ClassVar[Mapping[str, Any]] = {"enum": get_args(LossName)}

    name: LossName = "bce"
    """Binary cross-entropy; or one that answers to rare labels and many negatives."""
    pos_weight: Literal["balanced"] | Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Weight of positives with `bce`: a number, or as many times as negatives are more frequent."""
    gamma: float = Field(default=2.0, ge=0, le=20)
    """Focusing exponent of `focal`."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weight that positives get with `focal`; null: both alike."""
    gamma_positive: float = Field(default=0.0, ge=0, le=20)
    """Focusing exponent of positives with `asymmetric`."""
    gamma_negative: float = Field(default=4.0, ge=0, le=20)
    """Focusing exponent of negatives with `asymmetric`."""
    margin: float = Field(default=0.05, ge=0, lt=1)
    """Probability below which negatives cost nothing with `asymmetric`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Targets are drawn toward one half by this share."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: object) -> object:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _own_settings(self) -> LossConfig:
        own = {
            "bce": {"pos_weight"},
            "focal": {"gamma", "alpha"},
            "asymmetric": {"gamma_positive", "gamma_negative", "margin"},
            "distribution_balanced": set[str](),
        }[self.name]
        for key in sorted(self.model_fields_set - own - {"name", "label_smoothing"}):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no meaning with name: {self.name}")
        return self


class TrainingConfig(Section):
    """How the encoder is fine-tuned."""

    epochs: int = Field(default=3, ge=1)
    """Passes over the training examples."""
    batch_size: int = Field(default=32, ge=1)
    """Documents per optimizer step, over all workers."""
    max_batch_tokens: int = Field(default=8192, ge=8)
    """Padded tokens per forward pass of one worker; a step takes as many passes as it needs."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak rate of the encoder."""
    head_learning_rate: float | None = Field(default=5e-4, gt=0)
    """Peak rate of pooler and classification head; null: that of the encoder."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW decay; biases and normalization weights have none."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate from each layer of the encoder to the one below it, so that what lies
    near the input changes least; the top layer has `learning_rate`, the embeddings the lowest."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of all steps over which the rate rises from zero."""
    head_warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the head learns alone; the encoder's rise begins after them."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after the warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    head_init: Literal["random", "linear_probe"] = "random"
    """First weights of the head's last layer, for labels that the encoder's own head has not:
    random, or those of logistic regressions on what it sees before anything is fine-tuned, so that
    labels with few rows have a direction to begin with.
    With `pooling: mean` or `cls` it sees what the encoder gives; stock heads may have a random
    layer before it."""
    head_bias: Literal["prior"] | float | None = "prior"
    """First bias of the head: log-odds of each label's rate, a number, or null (0); a label that
    `linear_probe` fits, or that the encoder's own head has, comes with one."""
    pooling: Literal["auto", "cls", "mean"] = "auto"
    """What the head sees: `auto`, as the encoder's own class has it; the first token's last hidden
    state; or the mean over all tokens. Where that class lacks it, only ray_mlc loads the model."""
    special_tokens: list[str] = Field(default_factory=list)
    """Markers in the texts that are one token each: `[unused1]` and the like where the vocabulary
    has them; others, such as `<url>`, are added to it."""
    max_tokens: int = Field(default=256, ge=3)
    """Tokens kept per document, or per window of one, special tokens included; as many as the
    encoder takes at most. What a model folder was cut at is no limit for one that goes on."""
    windows: WindowsConfig | None = None
    """Long documents are read in windows, in training as in scoring; null: they are cut."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; weights and optimizer stay float32."""
    loss: LossConfig = Field(default_factory=LossConfig)
    """What is minimized."""
    average: Literal["ema"] | None = None
    """Weights to evaluate and keep: those of the last step, or their exponential moving average."""
    average_decay: float = Field(default=0.999, gt=0, lt=1)
    """Share of the average that a step leaves as it is; less in early steps, see `Fitter`."""
    best_metric: str = "f1_micro"
    """Validation metric that chooses the epoch to keep; a name of `evaluate --json`."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better `best_metric` after which training stops; null: never."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the data order, the new weights and dropout."""

    @field_validator("special_tokens")
    @classmethod
    def _markers(cls, tokens: list[str]) -> list[str]:
        for token in tokens:
            # as a special token it is cut out of the text wherever it stands, also within words
            if not token or token.isalnum() or any(mark.isspace() for mark in token):
                raise ValueError(
                    f"expected markers such as <url> that are no part of a word, not {token!r}"
                )
        if len(set(tokens)) < len(tokens):
            raise ValueError("expected each marker once")
        return tokens

    @model_validator(mode="after")
    def _averaged(self) -> TrainingConfig:
        if self.average is None and self.average_decay != 0.999:
            raise ValueError("expected average: ema beside average_decay")
        return self


class TrackingConfig(Section):
    """Where the curves of a training go besides `OUTPUT/_tensorboard`."""

    mlflow: str | None = None
    """Tracking URI of MLflow (extra `[mlflow]`), such as `http://host:5000`; null: none."""
    experiment: str = Field(default="ray_mlc", min_length=1)
    """MLflow experiment; made where it does not exist."""

    @field_validator("mlflow")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        if uri is not None and not uri.strip():
            raise ValueError("expected a tracking URI such as http://host:5000, or null")
        try:
            refuse_credentials(uri or "")
        except ConfigError:  # not a ValueError: see `refuse_credentials_at`
            raise ConfigError(
                "tracking.mlflow: carries credentials: leave them out, and put them into the "
                "environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN)"
            ) from None
        return uri


class WorkersConfig(Section):
    """The processes that train together."""

    count: Annotated[int, Field(ge=1)] | Range = 1
    """Workers: a number, or `{min, max}` for an elastic group."""
    cpus: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """CPUs per worker."""
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """GPUs per worker; `auto`: one where the cluster has any."""
    max_failures: int = Field(default=3, ge=0)
    """Lost workers after which training gives up; each resumes from the last checkpoint."""


class CheckpointsConfig(Section):
    """State from which training resumes."""

    path: str | None = None
    """Folder that every worker sees; null: `OUTPUT/_checkpoints`."""
    every_steps: int | None = Field(default=None, ge=1)
    """Also save within an epoch, after this many optimizer steps; null: after each epoch only."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept: the latest and the best ones."""


class TrainJob(Section):
    """Fine-tune an encoder: `ray-mlc train`."""

    kind: Literal["train"] = "train"
    """What the job is."""
    data: DataConfig
    """The examples to learn from."""
    encoder: str = "distilbert/distilbert-base-uncased"
    """Hub id or folder of a checkpoint that `AutoModelForSequenceClassification` loads. Of a
    multi-label model that has some of the labels, and pools alike, their part of the head is kept.
    """
    output: str
    """Model folder to write."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How it is fine-tuned."""
    workers: WorkersConfig = Field(default_factory=WorkersConfig)
    """Processes that train together."""
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig)
    """State from which training resumes."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Where its curves go."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """Which Ray to use."""
