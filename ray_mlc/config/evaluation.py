"""Jobs that measure a model: `kind: evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ray_mlc.config.sections import RayConfig, Section, refuse_credentials_at
from ray_mlc.errors import ConfigError
from ray_mlc.storage import scheme_of


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
    explain_seconds: float = Field(default=60.0, ge=1, allow_inf_nan=False)
    """Time for it; the most costly mistakes come first."""
    cpus: float = Field(default=1, gt=0, allow_inf_nan=False)
    """CPUs that a cluster sets aside for the job when it is submitted: its threads there. A command
    that is not submitted uses all cores."""
    gpus: float = Field(default=0, ge=0, allow_inf_nan=False)
    """GPUs likewise; without any it runs on CPUs there."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """Which cluster to submit to."""

    @field_validator("examples")
    @classmethod
    def _some_examples(cls, examples: str | list[str]) -> str | list[str]:
        if not examples or (isinstance(examples, list) and not all(examples)):
            raise ValueError("expected a path or a non-empty list of paths")
        return examples

    @field_validator("output")
    @classmethod
    def _a_file(cls, output: str | None) -> str | None:
        if output is None:
            return None
        if not output:
            raise ValueError("expected a file, or null")
        if output.lower().endswith((".html", ".htm")):
            raise ConfigError(
                f"output is {output}: it names the JSON; the report lies beside it and ends in "
                ".html"
            )
        if scheme_of(output) != "file" and "/" not in output.split("://", 1)[1].strip("/"):
            raise ConfigError(
                f"output is {output}: expected a file below it, such as {output.rstrip('/')}"
                "/evaluation.json"
            )
        return output

    @model_validator(mode="after")
    def _no_credentials(self) -> EvaluateJob:
        examples = [self.examples] if isinstance(self.examples, str) else self.examples
        places = [("examples", path) for path in examples]
        others = {"model": self.model, "decision": self.decision, "output": self.output}
        for key, path in (*others.items(), *places):
            if path is not None:
                refuse_credentials_at(key, path)
        return self

    @model_validator(mode="after")
    def _shown(self) -> EvaluateJob:
        if self.explain and not self.texts:
            raise ConfigError("explain shows words of the texts in the report: set texts as well")
        return self
