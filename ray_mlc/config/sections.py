"""What all kinds of jobs are made of: sections, sizes, durations, and which Ray."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from ray_mlc.errors import ConfigError
from ray_mlc.storage import refuse_credentials

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "ms": 0.001}


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


def refuse_credentials_at(key: str, path: str) -> None:
    """Not a ValueError: pydantic's would carry the value, and with it the secret."""
    try:
        refuse_credentials(path)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


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
