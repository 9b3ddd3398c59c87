"""What a search starts from, whichever runtime does the work: its trials, and the tokens they need.

Examples are tokenized once for all trials that need the same tokens. Nothing here knows Ray.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_mlc.config import TrainJob, TuneJob
from ray_mlc.errors import ConfigError
from ray_mlc.runtime.prepare import Prepared, Splits, read_splits, tokenize
from ray_mlc.runtime.progress import Display
from ray_mlc.training.search import (
    Axis,
    Drawn,
    Optuna,
    Proposals,
    Values,
    axes_of,
    draw_trials,
    points_in,
    trial_job,
)

TOKENIZED_BY = (
    *("data", "encoder"),
    *("training.max_tokens", "training.special_tokens", "training.windows"),
)
"""Keys on which the tokens of the examples depend."""
MOST_PREPARED = 64
"""Ways to tokenize the examples that a search may have: all of them are held in memory."""


@dataclass(frozen=True)
class Search:
    """A job with its spaces resolved, and what it draws."""

    job: TuneJob
    axes: Sequence[Axis]
    drawn: Sequence[Values] | None
    """Values of all trials; None if Optuna proposes them."""
    trials: int
    """Trials to begin: those of the job, or fewer if the space has no more points."""

    @classmethod
    def of(cls, job: TuneJob) -> Search:
        """Resolve a job.

        Raises:
            ConfigError: One line, if a key is unknown, or a value or a trial refused.
        """
        axes = axes_of(job)
        points = points_in(axes)
        # a space that is tried whole leaves nothing to propose
        if job.algorithm == "optuna" and (points is None or points > job.trials):
            return cls(job, axes, None, job.trials)
        drawn = draw_trials(axes, trials=job.trials, seed=job.seed)
        return cls(job, axes, drawn, len(drawn))

    def proposals(self) -> Proposals:
        """Where values come from."""
        if self.drawn is not None:
            return Drawn(self.drawn)
        return Optuna(self.axes, seed=self.job.seed)

    def trainings(self) -> list[TrainJob]:
        """Trainings in which everything occurs that examples and encoders are prepared for.

        Raises:
            ConfigError: If values do not go together, or Optuna would need endless preparation.
        """
        train = self.job.train
        if self.drawn is not None:
            return [trial_job(train, values) for values in self.drawn]
        lists: dict[str, Sequence[Any]] = {}
        for axis in self.axes:
            if _concerns(axis.key, TOKENIZED_BY):
                if axis.choices is None:
                    raise ConfigError(
                        f"search.{axis.key}: decides on the tokens of all examples: with algorithm "
                        "optuna give a list of values, or a step"
                    )
                lists[axis.key] = axis.choices
        _check_ways(math.prod(len(choices) for choices in lists.values()))
        for axis in self.axes:
            if axis.key in ("training.pooling", "training.head_init"):
                lists[axis.key] = axis.choices or ()
            elif axis.key == "training.layer_decay":  # an encoder can follow all below 1, or none
                lists[axis.key] = [axis.low if axis.choices is None else min(axis.choices)]
        combined = itertools.product(*lists.values())
        return [trial_job(train, dict(zip(lists, values, strict=True))) for values in combined]

    @property
    def most_epochs(self) -> int:
        """Epochs of the longest trial."""
        if self.drawn is not None:
            return max(job.training.epochs for job in self.trainings())
        epochs = self.job.train.training.epochs
        found = next((axis for axis in self.axes if axis.key == "training.epochs"), None)
        if found is None:
            return epochs
        return int(found.high) if found.choices is None else max(found.choices)


def _concerns(key: str, keys: Sequence[str]) -> bool:
    """Whether a dotted key is one of `keys`, below one of them or above it."""
    return any(f"{key}.".startswith(f"{one}.") or f"{one}.".startswith(f"{key}.") for one in keys)


def _check_ways(count: int) -> None:
    if count > MOST_PREPARED:
        raise ConfigError(
            f"search: asks for {count:,} ways to tokenize the examples, which are all held in "
            f"memory: give at most {MOST_PREPARED} values of {', '.join(TOKENIZED_BY)} together"
        )


def preparation_key(job: TrainJob) -> str:
    """What decides on the tokens of the examples: equal for trials that can share them."""
    settings = job.training.model_dump(
        mode="json", include={"max_tokens", "special_tokens", "windows"}
    )
    return json.dumps([job.data.model_dump(mode="json"), job.encoder, settings])


def prepare_all(search: Search, display: Display) -> dict[str, Prepared]:
    """Read and tokenize the examples in each way that trials need, by `preparation_key`.

    Raises:
        ConfigError: If those are too many, or their labels differ.
        ModelError: If an encoder cannot do what a trial would ask of it.
    """
    trainings = search.trainings()
    ways = {preparation_key(training): training for training in trainings}
    _check_ways(len(ways))
    read: dict[str, Splits] = {}
    prepared: dict[str, Prepared] = {}
    for key, training in ways.items():
        data = training.data.model_dump_json()
        if data not in read:
            read[data] = read_splits(training.data, display)
        # whose job it is shows in the fingerprint alone, and that must not depend on the order
        own = training.model_copy(update={"training": search.job.train.training})
        keys = {"max_tokens", "special_tokens", "windows"}
        settings = own.training.model_copy(
            update={name: getattr(training.training, name) for name in keys}
        )
        prepared[key] = tokenize(own.model_copy(update={"training": settings}), read[data], display)
    first, *others = prepared.values()
    if any(other.label_set != first.label_set for other in others):
        raise ConfigError("search.data: leads to different labels: metrics would not compare")
    checked = set()
    for training in trainings:
        key, settings = preparation_key(training), training.training
        what = (key, settings.pooling, settings.layer_decay, settings.head_init)
        if what not in checked:
            checked.add(what)
            prepared[key].check(training)
    return prepared
