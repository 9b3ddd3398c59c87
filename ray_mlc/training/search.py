"""What a search tries: values drawn from spaces over the keys of a training.

A space is a list of values or a range of numbers. Everything is drawn beforehand, or by Optuna one
trial after the other; in both cases a seed and what was tried so far decide, so that a search that
was interrupted goes on as it would have.

Whatever a space can give is decoded as a job before anything is trained: a value that the job
refuses costs one line, not a night.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_mlc.config import Space, SpaceRange, TrainJob, TuneJob
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import with_values

Values = dict[str, Any]
"""Dotted keys of a training and their values in a trial."""
DIGITS = 4
"""Significant digits of a number that is drawn: enough to tell trials apart, few enough to type."""
MOST_POINTS = 10_000
"""Points of a space up to which they are listed rather than drawn."""
INSTALL = "pip install 'ray-mlc[tune]'"


@dataclass(frozen=True)
class Axis:
    """One key of a search, its space resolved."""

    key: str
    choices: Sequence[Any] | None
    """The values, or None for a range that is not stepped through."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether the key takes whole numbers only."""

    def value(self, raw: float) -> Any:
        """A number between `low` and `high` as it is tried."""
        if self.whole:
            return int(min(max(round(raw), self.low), self.high))
        return min(max(float(f"{raw:.{DIGITS}g}"), self.low), self.high)

    def draw(self, rng: random.Random) -> Any:
        """A value by chance."""
        if self.choices is not None:
            return self.choices[rng.randrange(len(self.choices))]
        if self.log:
            return self.value(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.value(rng.uniform(self.low, self.high))


def axes_of(job: TuneJob) -> list[Axis]:
    """The keys of a search, each of their values (of a range both ends) decoded with its job.

    Raises:
        ConfigError: One line, if a key is unknown or the training refuses a value.
    """
    return [_axis(job.train, key, space) for key, space in job.search.items()]


def _axis(train: TrainJob, key: str, space: Space) -> Axis:
    if not isinstance(space, SpaceRange):
        for value in space:
            _decode(train, {key: value}, f"search.{key}: ")
        return Axis(key, space)
    ends: list[float] = [space.low, space.high]
    whole = False
    try:
        for end in ends:
            with_values(train, {key: float(end)})
    except ConfigError as error:
        whole = all(end.is_integer() for end in ends)
        if not whole and "integer" in str(error):
            raise ConfigError(
                f"search.{key}: goes from {ends[0]:g} to {ends[1]:g}, expected whole numbers"
            ) from None
        for end in ends:
            _decode(train, {key: int(end) if whole else end}, f"search.{key}: ")
    if space.step is None:
        if whole and space.high - space.low < MOST_POINTS and not space.log:
            return Axis(key, list(range(int(space.low), int(space.high) + 1)))
        return Axis(key, None, space.low, space.high, space.log, whole)
    if whole and not space.step.is_integer():
        raise ConfigError(f"search.{key}.step: is {space.step:g}, expected a whole number")
    # not by adding up: 0.1 three times is not 0.3
    count = math.floor((space.high - space.low) / space.step + 1e-9) + 1
    if count > MOST_POINTS:
        raise ConfigError(
            f"search.{key}.step: makes {count:,} values, expected at most {MOST_POINTS:,}: leave "
            "it out to draw from all numbers between"
        )
    points = (float(f"{space.low + place * space.step:.12g}") for place in range(count))
    return Axis(key, [int(point) if whole else point for point in points])


def _decode(train: TrainJob, values: Values, where: str) -> TrainJob:
    try:
        return with_values(train, values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def trial_job(train: TrainJob, values: Values) -> TrainJob:
    """The training of a trial.

    Raises:
        ConfigError: One line with the values, if they do not go together.
    """
    shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    return _decode(train, values, f"search: {shown} do not go together: ")


def points_in(axes: Sequence[Axis]) -> int | None:
    """Combinations of values; None if there is no end of them."""
    if any(axis.choices is None for axis in axes):
        return None
    return math.prod(len(axis.choices or ()) for axis in axes)


def draw_trials(axes: Sequence[Axis], *, trials: int, seed: int) -> list[Values]:
    """Values of trials by chance, no two alike.

    Random search rather than a grid: of several keys few matter, and those are tried at as many
    values as there are trials (Bergstra and Bengio 2012).

    Args:
        axes: What is varied.
        trials: How many; fewer if the space has no more points.
        seed: Of what is drawn: the first ones are the same for any number of trials.
    """
    rng = random.Random(seed)
    points = points_in(axes)
    if points is not None and points <= MOST_POINTS:
        every = [
            dict(zip((axis.key for axis in axes), values, strict=True))
            for values in itertools.product(*(axis.choices or () for axis in axes))
        ]
        rng.shuffle(every)
        return every[:trials]
    drawn: dict[str, Values] = {}
    # whole numbers on a logarithmic scale repeat themselves; nobody waits for the rarest one
    for _ in range(100 * trials):
        values = {axis.key: axis.draw(rng) for axis in axes}
        drawn.setdefault(json.dumps(values), values)
        if len(drawn) == trials:
            break
    return list(drawn.values())


class Proposals(Protocol):
    """Where the values of trials come from."""

    def ask(self, trial: int) -> Values:
        """Values of a trial, counted from 0."""

    def tell(self, trial: int, values: Values, score: float | None) -> None:
        """The score of a trial, the higher the better; None if it has failed.

        It may be one that was asked for in an earlier session.
        """


class Drawn:
    """Values that were drawn beforehand."""

    def __init__(self, trials: Sequence[Values]) -> None:
        """Take them."""
        self._trials = trials

    def ask(self, trial: int) -> Values:
        """See `Proposals.ask`."""
        return self._trials[trial]

    def tell(self, trial: int, values: Values, score: float | None) -> None:
        """See `Proposals.tell`."""


class Optuna:
    """Values from Optuna's Tree-structured Parzen Estimator.

    Choices are told apart by their place in the list: they may be sections and lists.
    """

    def __init__(self, axes: Sequence[Axis], *, seed: int) -> None:
        """Begin a study.

        Raises:
            ConfigError: If Optuna is not installed.
        """
        check_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._axes, self._seed = optuna, axes, seed
        self._space: dict[str, Any] = {axis.key: self._distribution(axis) for axis in axes}
        self._study: Any = None
        self._asked: dict[int, Any] = {}
        self._past: list[Any] = []

    def _distribution(self, axis: Axis) -> Any:
        kinds = self._optuna.distributions
        if axis.choices is not None:
            return kinds.CategoricalDistribution(list(range(len(axis.choices))))
        if axis.whole:
            return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)

    def _frozen(self, values: Values, score: float | None) -> Any:
        params = {
            axis.key: values[axis.key]
            if axis.choices is None
            else axis.choices.index(values[axis.key])
            for axis in self._axes
        }
        return self._optuna.trial.create_trial(
            params=params,
            distributions=self._space,
            value=score,
            state=self._state(score),
        )

    def _state(self, score: float | None) -> Any:
        states = self._optuna.trial.TrialState
        return states.FAIL if score is None else states.COMPLETE

    def ask(self, trial: int) -> Values:
        """See `Proposals.ask`."""
        if self._study is None:
            # a seed per session: the same one again would draw the first values again
            seed = (self._seed * 10_007 + trial) % 2**32
            sampler = self._optuna.samplers.TPESampler(seed=seed)
            self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
            self._study.add_trials(self._past)
        found = self._study.ask(fixed_distributions=self._space)
        self._asked[trial] = found
        return {
            axis.key: axis.value(found.params[axis.key])
            if axis.choices is None
            else axis.choices[found.params[axis.key]]
            for axis in self._axes
        }

    def tell(self, trial: int, values: Values, score: float | None) -> None:
        """See `Proposals.tell`."""
        found = self._asked.pop(trial, None)
        if found is not None:
            self._study.tell(found, score, state=self._state(score))
        elif self._study is None:
            self._past.append(self._frozen(values, score))
        else:
            self._study.add_trial(self._frozen(values, score))


def check_optuna() -> None:
    """Refuse a search by Optuna where it is not installed, before it costs anything.

    Raises:
        ConfigError: With what to install.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"algorithm is optuna, which is not installed here: {INSTALL}")
