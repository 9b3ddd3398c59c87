"""Jobs that tag a corpus: `kind: score`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ray_mlc.config.sections import (
    Count,
    Duration,
    RayConfig,
    Section,
    Share,
    Size,
    WindowsConfig,
    parse_time_of_day,
    refuse_credentials_at,
)
from ray_mlc.errors import ConfigError
from ray_mlc.storage import place_of

ACTORS_PER_NODE = 8
"""Model copies per node that `auto` goes up to; more cores become more threads of each."""


class InputConfig(Section):
    """Where the documents are."""

    shorthand: ClassVar[Mapping[str, Any]] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    }

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
            refuse_credentials_at("input.path", item)
        return path


class OutputConfig(Section):
    """Where labels and scores go, and in which form."""

    shorthand: ClassVar[Mapping[str, Any]] = {"type": "string"}

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
        refuse_credentials_at("output.path", path)
        return path


class UnitsConfig(Section):
    """How large the pieces are that are committed and retried as one."""

    rows: Literal["auto"] | Annotated[int, Field(ge=1, lt=2**31)] = "auto"
    """Most rows of a unit; `auto`: what an actor scores in about five seconds, 64 to 16,384."""
    bytes: Size = 64 * 2**20
    """Most uncompressed bytes of a unit, as the footers say of all columns together."""


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

    shorthand: ClassVar[Mapping[str, Any]] = {"type": "number", "minimum": 0}

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
        if self.decision is not None:
            refuse_credentials_at("decision", self.decision)
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
