"""Jobs that search for settings of a training: `kind: tune`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ray_mlc.config.sections import Section
from ray_mlc.config.training import TrainJob
from ray_mlc.errors import ConfigError


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

    shorthand: ClassVar[Mapping[str, Any]] = {"enum": get_args(SchedulerName)}

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
