"""Typed jobs: one tree per kind decides everything a command does.

Sections are passed to the functions that need them, never the whole job. How YAML, options and
overrides become one is in `job_files`.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from ray_mlc.errors import ConfigError
from ray_mlc.storage import place_of, refuse_credentials

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "ms": 0.001}
ACTORS_PER_NODE = 8
"""Model copies per node that `auto` goes up to; more cores become more threads of each."""


def parse_size(value: object) -> object:
    """Bytes of a size such as `64MiB`, `1.5 GB` or `4096`; other types pass unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _SIZE_UNITS:
        raise ValueError("expected a size such as 64MiB, 1GB or 4096")
    size = float(match[1]) * _SIZE_UNITS[match[2].upper()]
    if not math.isfinite(size):
        raise ValueError("expected a size such as 64MiB, 1GB or 4096")
    return int(size)


def parse_duration(value: object) -> object:
    """Seconds of a duration such as `90s`, `10m` or `1.5h`; other types pass unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value)
    if match is None or match[2] not in _TIME_UNITS:
        raise ValueError("expected a duration such as 30s, 10m or 2h")
    return float(match[1]) * _TIME_UNITS[match[2]]


def parse_time_of_day(text: str) -> datetime.time:
    """The time of day that `06:00`, `06:00+02:00` or `04:00Z` stands for.

    Raises:
        ValueError: If it is none.
    """
    match = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*(Z|[+-]\d\d:\d\d)?\s*", text)
    with suppress(ValueError):
        if match is not None:
            return datetime.time.fromisoformat(f"{int(match[1]):02}:{match[2]}{match[3] or ''}")
    raise ValueError("expected a time of day such as 06:00, or 06:00+02:00")


_TEXT_TOO = WithJsonSchema(
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}
)
"""For editors: what is a number here may be written with its unit."""
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, lt=2**63), _TEXT_TOO]
Duration = Annotated[
    float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False), _TEXT_TOO
]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a job: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True
    )
    shorthand: ClassVar[Mapping[str, Any] | None] = None
    """JSON schema of what may stand for the section, such as a bare path."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For editors: the section, or what may stand for it."""
        found = handler(core)
        return found if cls.shorthand is None else {"anyOf": [dict(cls.shorthand), found]}


class Range(Section):
    """A pool that grows and shrinks with the work."""

    min: int = Field(default=0, ge=0)
    """Smallest size."""
    max: int = Field(ge=1)
    """Largest size."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, expected at most max ({self.max})")
        return self


Count = Literal["auto"] | Annotated[int, Field(ge=1)] | Range


def _refuse_credentials(key: str, path: str) -> None:
    """Not a ValueError: pydantic's would carry the value, and with it the secret."""
    try:
        refuse_credentials(path)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


class InputConfig(Section):
    """Where the documents are."""

    shorthand = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

    path: str | list[str]
    """Folder, glob, file, or a list of them; local, `s3://`, `gs://`, `az://`, `hf://`."""
    text: str = "text"
    """Text column, field of a struct column such as `text.en`, or a template over such, as
    `{title}\\n\\n{body}`."""
    max_text_bytes: Size = 64 * 2**20
    """A longer text is not tokenized: its row gets the status `too_long`."""

    @field_validator("path")
    @classmethod
    def _some_path(cls, path: str | list[str]) -> str | list[str]:
        if not path or (isinstance(path, list) and not all(path)):
            raise ValueError("expected a path or a non-empty list of paths")
        for item in [path] if isinstance(path, str) else path:
            _refuse_credentials("input.path", item)
        return path


class OutputConfig(Section):
    """Where labels and scores go, and in which form."""

    shorthand = {"type": "string"}

    path: str
    """Output folder, local or `s3://`, `gs://`, `az://`."""
    keep: list[str] | Literal["*"] | None = None
    """Input columns to keep: null for all but the text (a struct that holds it is left out whole),
    `*` for all, or a list (may be empty)."""
    format: Literal["auto", "wide", "sparse", "dense"] = "auto"
    """`wide`: a float32 column per label; `sparse`: the best scores as a list; `dense`: all scores
    as one float16 list; `auto`: wide up to 64 labels, sparse above."""
    k: int = Field(default=256, ge=1, lt=2**31)
    """Most labels stored per row in the sparse form."""
    floor: float = Field(default=0.01, ge=0, lt=1)
    """Smallest score stored in the sparse form."""

    @field_validator("path")
    @classmethod
    def _no_credentials(cls, path: str) -> str:
        _refuse_credentials("output.path", path)
        return path


class UnitsConfig(Section):
    """How large the pieces are that are committed and retried as one."""

    rows: Literal["auto"] | Annotated[int, Field(ge=1, lt=2**31)] = "auto"
    """Most rows of a unit; `auto`: what an actor scores in about five seconds, 64 to 16,384."""
    bytes: Size = 64 * 2**20
    """Most uncompressed bytes of a unit, as the footers say of all columns together."""


class WindowsConfig(Section):
    """How a long document is read in windows of `max_tokens`, one after the other."""

    overlap: int = Field(default=64, ge=0)
    """Tokens that neighboring windows share: what Hugging Face's tokenizers call `stride`."""
    max_windows: int = Field(default=16, ge=1, le=2**15 - 1)
    """Windows of a document at most; what lies beyond them is cut."""
    aggregate: Literal["auto", "max", "mean", "noisy_or", "top_mean"] = "auto"
    """How the logits of a document's windows become one, label by label; `auto`: in training what
    serves validation best, in scoring what the model folder says, else `max`."""
    top: int = Field(default=3, ge=1)
    """Windows whose logits `top_mean` takes the mean of: the highest ones."""


class LongConfig(Section):
    """What happens to documents longer than the model takes."""

    policy: Literal["truncate", "windows", "skip"] | None = None
    """`truncate`: score the beginning; `windows`: score all of it, window by window; `skip`: status
    `too_long`; null: what the model folder says."""
    max_tokens: int | None = Field(default=None, ge=3)
    """Tokens kept per document or window, special tokens included; null: what the model folder
    says."""
    windows: WindowsConfig | None = None
    """How windows are cut and put together; what is not said, the model folder says, else the
    defaults."""

    @model_validator(mode="after")
    def _windows_belong(self) -> LongConfig:
        if self.windows is not None and self.policy not in ("windows", None):
            raise ValueError(f"windows has no meaning with policy: {self.policy}")
        return self


class BatchingConfig(Section):
    """How documents are grouped before the forward pass."""

    max_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=8)] = "auto"
    """Padded tokens per forward pass (B × T): the knob to turn until memory is full."""


class EngineConfig(Section):
    """How the encoder is run."""

    name: Literal["auto", "torch", "openvino"] = "auto"
    """Library that runs the encoder; `auto`: the fastest on documents of the corpus, of those that
    are installed and hold on the canaries."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """`auto`: bfloat16 where the hardware has it and the canaries hold, else float32. `int8` is
    never chosen by itself: it is what `ray-mlc quantize` made of the model and has measured."""
    remember: bool = True
    """Whether what `auto` came to on this machine's CPUs is taken again for a week, for the same
    model and documents about as long, instead of ten seconds of trials in each new run."""

    @model_validator(mode="after")
    def _possible(self) -> EngineConfig:
        if self.name == "openvino" and self.dtype == "float16":
            raise ValueError("dtype is float16, expected float32 or bfloat16 with name: openvino")
        if self.name == "torch" and self.dtype == "int8":
            raise ValueError("dtype is int8, which only name: openvino (or auto) runs")
        return self


class ActorsConfig(Section):
    """The pool of processes that hold the model."""

    count: Count = "auto"
    """Actors: a number, `{min, max}`, or `auto` (every GPU, else every CPU)."""
    cpus: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """CPUs that each actor asks for; its threads follow from it."""
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """GPUs that each actor asks for; `auto`: one where the cluster has any."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that the actors' nodes must carry."""


class TokenizersConfig(Section):
    """The tokenizing stage, of its own only where actors have GPUs."""

    count: Count = "auto"
    """Tokenizer processes."""
    cpus: float = Field(default=1.0, gt=0)
    """CPUs that each asks for."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that their nodes must carry."""


class DriftConfig(Section):
    """How far the scores of a night may be from those of the model's validation examples."""

    shorthand = {"type": "number", "minimum": 0}

    psi: Share = 0.25
    """Largest population stability index of a label; below 0.1 is commonly called stable. What so
    few rows give by chance is never beyond."""
    labels: Share = 0.0
    """Labels that may lie beyond it; below 1 a share of them."""
    action: Literal["stop", "warn"] = "stop"
    """`stop`: the run is no success then, and exits with 3; `warn`: it says so."""


class LimitsConfig(Section):
    """When a run stops being good. A limit below 1 is a share, else a count."""

    bad_rows: Share = 0.01
    """Rows that could not be scored (null and empty texts are facts of the input, not bad)."""
    bad_files: Share = 0.0
    """Files of which a part could not be read."""
    no_progress: Duration = 600.0
    """Longest time without any progress before the run stops and names the stuck stage."""
    grace: Duration = 60.0
    """Time that work in flight has to finish after Ctrl-C or SIGTERM; then it is dropped."""
    stop_at: str | None = None
    """Time of day such as `06:00`, by the clock of the machine that drives the run, or with an
    offset from UTC (`06:00+02:00`, `04:00Z`): the next time it is then, the run stops as by SIGTERM
    and exits with 1; null: it goes on to its end."""
    drift: DriftConfig | None = None
    """At the end of a night its scores are held against `distribution.json` of the model, label by
    label; a number stands for `{psi: number}`; null: they are not. Some 256 units are read again,
    by the driver."""

    @field_validator("drift", mode="before")
    @classmethod
    def _bare_number(cls, value: object) -> object:
        """`drift: 0.25` stands for `drift: {psi: 0.25}`."""
        return {"psi": float(value)} if type(value) in (int, float) else value  # type: ignore[arg-type]

    @field_validator("stop_at", mode="before")
    @classmethod
    def _time_of_day(cls, value: object) -> object:
        if type(value) is int and value >= 60:
            # YAML 1.1 reads 22:30 as a number in base 60
            value = f"{value // 60}:{value % 60:02}"
        if isinstance(value, str):
            parse_time_of_day(value)
        return value


class LeaseConfig(Section):
    """How two commands are kept from doing the same work."""

    expiry: Duration = 30.0
    """A writer that shows no sign of life for so long is replaced."""


class ReportConfig(Section):
    """The report of a night."""

    at_end: bool = True
    """Whether `score` leaves one at its end, in `OUTPUT/_ray_mlc/runs/<night>/report.html`; it
    reads the night's parts once. `ray-mlc report` makes one at any time."""
    texts: bool = False
    """Whether it shows texts of documents, read from the input again: those of the most uncertain
    rows."""


class RayConfig(Section):
    """Which Ray to use."""

    address: str | None = None
    """Address of a cluster; null: `RAY_ADDRESS`, else a Ray that ends with the command."""
    job_stop_wait: Duration = 120.0
    """Time that `jobs stop` gives a job before Ray kills it: more than `limits.grace`, so that what
    is in flight can be finished."""
    node_wait: Duration | None = 900.0
    """Longest time that nodes may take to come where too few are there and the cluster can start
    others (Kubernetes, `ray up`); null: it is refused at once, as on all other clusters."""


MAX_MODELS = 63
"""Models of one job: `scoring.passes` has a bit for each."""
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""What a job calls one of its models."""


class Scoring(Section):
    """How jobs tag a corpus, whether with one model or with several."""

    units: UnitsConfig = Field(default_factory=UnitsConfig)
    """Pieces that are committed and retried as one."""
    long: LongConfig | None = None
    """Documents longer than the model takes; null: what the model folder says."""
    batching: BatchingConfig = Field(default_factory=BatchingConfig)
    """Grouping before the forward pass."""
    engine: EngineConfig = Field(default_factory=EngineConfig)
    """How the encoder is run."""
    tokenizers: TokenizersConfig = Field(default_factory=TokenizersConfig)
    """The tokenizing stage where actors have GPUs."""
    actors: ActorsConfig = Field(default_factory=ActorsConfig)
    """Processes that hold the model."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """When a run stops being good."""
    lease: LeaseConfig = Field(default_factory=LeaseConfig)
    """One writer per output."""
    report: ReportConfig = Field(default_factory=ReportConfig)
    """What `score` leaves for the morning."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """Which Ray to use."""


def _with_section(data: object, key: str) -> object:
    """A mapping in which a bare path at `key` has become a section."""
    if isinstance(data, dict) and isinstance(data.get(key), str | list):
        return {**data, key: {"path": data[key]}}
    return data


class _WithOneModel(Section):
    """What a job names; a class of its own because fields of the last base come first."""

    kind: Literal["score"] = "score"
    """What the job is."""
    model: str
    """Model folder or hub id."""
    input: InputConfig
    """Where the documents are (or just the path)."""
    output: OutputConfig
    """Where the results go (or just the path)."""
    decision: str | None = None
    """File of a decision, as `thresholds --output` writes it; null: what the model folder says."""


class ScoreJob(Scoring, _WithOneModel):
    """Tag a corpus: `ray-mlc score`."""

    @model_validator(mode="after")
    def _measured(self) -> ScoreJob:
        if self.decision is not None and self.engine.dtype == "int8":
            raise ConfigError(
                "decision has no meaning with engine.dtype: int8, which was measured at the model "
                "folder's own: fit it there (`ray-mlc thresholds` without --output), and quantize "
                "again"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _bare_paths(cls, data: object) -> object:
        """`input: PATH` stands for `input: {path: PATH}`, and so does `output`."""
        return _with_section(_with_section(data, "input"), "output")

    def each(self) -> dict[str, ScoreJob]:
        """As `ManyScoreJob.each`: the only job needs no name."""
        return {"": self}


class _WithManyModels(Section):
    """As `_WithOneModel`."""

    kind: Literal["score"] = "score"
    """What the job is."""
    model: dict[ModelName, str] = Field(min_length=1, max_length=MAX_MODELS)
    """Model folder or hub id by a name of your own."""
    input: InputConfig
    """Where the documents are (or just the path)."""
    output: dict[str, OutputConfig]
    """Where the results of each go, by the same names (or just the paths)."""
    decision: dict[str, str] = Field(default_factory=dict)
    """File of a decision by the same names; of a model that is not named, what its folder says."""


class ManyScoreJob(Scoring, _WithManyModels):
    """Tag a corpus with several models in one pass: `ray-mlc score` where `model` is a mapping.

    Each model has an output of its own, with all that an output has: it is the run that the model
    alone would have made (`each`), and may be continued, verified or decided again as such.
    """

    @model_validator(mode="before")
    @classmethod
    def _bare_paths(cls, data: object) -> object:
        """`output: {name: PATH}` stands for `output: {name: {path: PATH}}`."""
        data = _with_section(data, "input")
        if not isinstance(data, dict) or not isinstance(data.get("output"), dict):
            return data
        output: object = data["output"]
        for name in data["output"]:
            output = _with_section(output, name)
        return {**data, "output": output}

    @model_validator(mode="after")
    def _alike(self) -> ManyScoreJob:
        for key in ("output", "decision"):
            for name in getattr(self, key):
                if name not in self.model:
                    near = difflib.get_close_matches(name, self.model, n=1)
                    hint = f"did you mean {near[0]}?" if near else "model has no such name"
                    raise ConfigError(f"{key}.{name}: {hint}")
        if missing := [name for name in self.model if name not in self.output]:
            raise ConfigError(f"output.{missing[0]} is missing: each model has a folder of its own")
        places = {name: place_of(output.path) + "/" for name, output in self.output.items()}
        for name, place in places.items():
            for other, there in places.items():
                if name != other and there.startswith(place):
                    raise ConfigError(
                        f"output.{other} ({there}) lies in output.{name} ({place}): parts of one "
                        "would be read as the other's; name folders beside each other"
                    )
        self.each()
        return self

    def each(self) -> dict[str, ScoreJob]:
        """The job of each model, by its name."""
        shared = self.model_dump(exclude_unset=True, exclude={"model", "output", "decision"})
        own = self.model_dump(exclude_unset=True, include={"output"})["output"]
        return {
            name: ScoreJob.model_validate(
                {
                    **shared,
                    "model": model,
                    "output": own[name],
                    **({"decision": self.decision[name]} if name in self.decision else {}),
                }
            )
            for name, model in self.model.items()
        }


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

    shorthand = {"enum": get_args(LossName)}

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
    head_bias: Literal["prior"] | float | None = "prior"
    """First bias of the head: log-odds of each label's rate, a number, or null (as loaded)."""
    pooling: Literal["auto", "cls", "mean"] = "auto"
    """What the head sees: `auto`, as the encoder's own class has it; the first token's last hidden
    state; or the mean over all tokens. Where that class lacks it, only ray_mlc loads the model."""
    special_tokens: list[str] = Field(default_factory=list)
    """Markers in the texts that are one token each: `[unused1]` and the like where the vocabulary
    has them; others, such as `<url>`, are added to it."""
    max_tokens: int = Field(default=256, ge=3)
    """Tokens kept per document, or per window of one, special tokens included."""
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
        except ConfigError:  # not a ValueError: see `_refuse_credentials`
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
    """Hub id or folder of a checkpoint that `AutoModelForSequenceClassification` loads."""
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


class SpaceRange(Section):
    """Numbers that a search draws from; whole ones where the key takes no others."""

    low: float = Field(allow_inf_nan=False)
    """Smallest value."""
    high: float = Field(allow_inf_nan=False)
    """Largest value."""
    log: bool = False
    """Draw evenly on a logarithmic scale: for rates, and whatever spans powers of ten."""
    step: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Only `low`, `low + step`, and so on; null: any number between."""

    @model_validator(mode="after")
    def _ordered(self) -> SpaceRange:
        if self.low >= self.high:
            raise ValueError(f"expected low ({self.low:g}) below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("expected low above 0 with log: true")
        if self.log and self.step is not None:
            raise ValueError("expected either log: true or a step")
        return self


Space = SpaceRange | list[Any]


SchedulerName = Literal["asha", "none"]


class SchedulerConfig(Section):
    """Which trials are ended early; `scheduler: none` stands for `scheduler: {name: none}`."""

    shorthand = {"enum": get_args(SchedulerName)}

    name: SchedulerName = "asha"
    """`asha`: Asynchronous Successive Halving (Li et al. 2020) ends a trial that is not among the
    best at an epoch where others were measured; `none`: all trials train to their end."""
    grace: int = Field(default=1, ge=1)
    """Epochs after which a trial is compared for the first time."""
    reduction: float = Field(default=3.0, gt=1, le=100)
    """About one of so many trials goes on, and is compared again after as many times the epochs."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: object) -> object:
        return {"name": data} if isinstance(data, str) else data


_RANGE_KEYS = set(SpaceRange.model_fields)
_NOT_SEARCHED = {
    "data.validation": "trials are compared on it",
    "data.labels": "trials are compared on them",
    "data.hierarchy": "trials are compared with it",
    "training.best_metric": "trials are compared by it",
}


class TuneJob(Section):
    """Search for settings: `ray-mlc tune`."""

    kind: Literal["tune"] = "tune"
    """What the job is."""
    train: TrainJob
    """The training that is varied; its `output` is the folder that the best trial becomes."""
    search: dict[str, Space]
    """Dotted keys of `train`, such as `training.learning_rate`, and what to try: a list of values,
    or `{low, high}` with `log: true` or a `step`."""
    trials: int = Field(default=20, ge=1, le=10_000)
    """Trainings to begin."""
    concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Trials at a time; `auto`: one for each GPU, or for each node if there are none, or as many as
    fit where `train.workers.cpus` says what one takes."""
    algorithm: Literal["random", "optuna"] = "random"
    """`random`: values are drawn beforehand; `optuna` (extra `[tune]`): Optuna's Tree-structured
    Parzen Estimator (Bergstra et al. 2011) draws near what served."""
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)
    """Which trials are ended early."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of what is drawn; that of each training is `train.training.seed`."""

    @field_validator("search", mode="before")
    @classmethod
    def _dotted(cls, data: object) -> object:
        """Nested sections of a file or of `--set search.training.epochs=…` by dotted keys."""
        if not isinstance(data, dict):
            return data
        found: dict[str, object] = {}
        for key, value in data.items():
            if isinstance(value, dict) and value and not _RANGE_KEYS & set(value):
                inner = cls._dotted(value)
                assert isinstance(inner, dict)
                found |= {f"{key}.{below}": space for below, space in inner.items()}
            else:
                if isinstance(value, dict) and (unknown := set(value) - _RANGE_KEYS):
                    raise ConfigError(
                        f"search.{key}: unknown key {min(map(str, unknown))}: expected "
                        "low, high, log or step, or a list of values"
                    )
                found[str(key)] = value
        return found

    @field_validator("search")
    @classmethod
    def _spaces(cls, search: dict[str, Space]) -> dict[str, Space]:
        if not search:
            raise ValueError("expected keys to vary, such as training.learning_rate")
        for key, space in search.items():
            first = key.split(".")[0]
            if first not in TrainJob.model_fields:
                near = difflib.get_close_matches(first, TrainJob.model_fields, n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else "expected a dotted key of train"
                raise ConfigError(f"search.{key}: unknown key {first}: {hint}")
            if first not in ("data", "encoder", "training") or key in _NOT_SEARCHED:
                why = _NOT_SEARCHED.get(key, "it changes nothing in what is learned")
                raise ConfigError(f"search.{key}: cannot be varied, {why}")
            if other := next((item for item in search if item.startswith(f"{key}.")), None):
                raise ConfigError(f"search.{key}: holds search.{other}: vary one of them")
            if isinstance(space, list):
                if not space:
                    raise ConfigError(f"search.{key}: is empty, expected values to try")
                if any(value in space[:place] for place, value in enumerate(space)):
                    raise ConfigError(f"search.{key}: has a value twice, expected each once")
        return search

    @model_validator(mode="after")
    def _one_worker(self) -> TuneJob:
        if self.train.workers.count != 1:
            raise ConfigError(
                "train.workers.count is not 1: a trial is trained by one worker; leave it out, and "
                "set `concurrent` for more trials at a time"
            )
        if self.train.checkpoints.every_steps is not None:
            raise ConfigError(
                "train.checkpoints.every_steps is set: trials are saved after each epoch only; "
                "leave it out"
            )
        return self


class EvaluateJob(Section):
    """Measure a model on labelled examples: `ray-mlc evaluate`; one process, without Ray."""

    kind: Literal["evaluate"] = "evaluate"
    """What the job is."""
    model: str
    """Model folder, local or on an object store, or hub id."""
    examples: str | list[str]
    """Parquet, JSONL or CSV file(s) or folder of examples."""
    text: str = "text"
    """Text column, or a template over columns such as `{title}\\n\\n{body}`."""
    labels: str | list[str] = "labels"
    """Column that lists the labels of a row, or the list of 0/1 columns, one per label."""
    decision: str | None = None
    """File of a decision, as `thresholds --output` writes it; null: the model's own."""
    dtype: Literal["float32", "bfloat16", "float16", "int8", "auto"] = "float32"
    """Precision of the scores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    output: str | None = None
    """JSON to write, local or on an object store; the report of the same name beside it ends in
    `.html`. null: in the model folder, named after the examples; a submitted job must say."""
    texts: bool = False
    """Whether the report shows the texts of mistakes."""
    explain: bool = False
    """With `texts`: shade the words that carried mistakes (extra `[explain]`)."""
    explain_seconds: float = Field(default=60.0, ge=1)
    """Time for it; the most costly mistakes come first."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that a cluster sets aside for the job when it is submitted."""
    gpus: float = Field(default=0, ge=0)
    """GPUs likewise."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """Which cluster to submit to."""

    @field_validator("examples")
    @classmethod
    def _some_examples(cls, examples: str | list[str]) -> str | list[str]:
        if not examples or (isinstance(examples, list) and not all(examples)):
            raise ValueError("expected a path or a non-empty list of paths")
        return examples

    @model_validator(mode="after")
    def _no_credentials(self) -> EvaluateJob:
        examples = [self.examples] if isinstance(self.examples, str) else self.examples
        places = [("examples", path) for path in examples]
        for key, path in (("model", self.model), *places, ("output", self.output)):
            if path is not None:
                _refuse_credentials(key, path)
        return self
