"""The trials of a search, and the file in which they are written down as they go.

Each event is one line that is on disk before the search goes on: a trial begins, an epoch's
checkpoint is saved, a trial is over. What was killed at any moment is continued from there: trials
that are over are not done again, others go on after the last epoch that was saved.

Ray Tune can restore itself too, from pickles that it writes every few seconds; but its Successive
Halving then forgets all trials that were compared before, and settings of the session such as how
many trials run at a time are frozen in them. Nothing here knows Ray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray_mlc.config import TrainingConfig, TuneJob
from ray_mlc.errors import RunMismatchError
from ray_mlc.evaluation.metrics import LOWER_IS_BETTER, is_better
from ray_mlc.runtime.tracking import flat
from ray_mlc.runtime.train import State, best_record, first_state, is_over
from ray_mlc.storage import write_file
from ray_mlc.training.search import Values

IDENTITY_FILE = "tune.json"
"""In the output: what is searched for, and in which examples."""
TABLE_FILE = "trials.jsonl"
"""In the output: a line per trial."""
STATE_FOLDER = "_tune"
"""In the output until the search is done: events, and checkpoints if they have no other place."""
EVENTS_FILE = "events.jsonl"
WORST = -1e9
"""Score of what has no metric: comparable, unlike NaN, and writable in JSON, unlike infinity."""
FREE_TO_CHANGE = ("concurrent", "train.output", "train.ray", "train.tracking", "train.workers")
"""Keys in which a search may be continued otherwise than it was begun."""

Ended = Literal["finished", "stopped", "failed"]


@dataclass
class Trial:
    """One training of a search."""

    number: int
    """Counts from 0, in the order in which trials begin."""
    values: Values
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    """`stopped`: not among the best, by the scheduler."""
    error: str | None = None
    """Why it failed."""
    training: State = field(default_factory=first_state)
    """Where its training stands."""
    checkpoints: dict[int, str] = field(default_factory=dict)
    """Path or URI of what was saved after an epoch."""

    @property
    def over(self) -> bool:
        """Whether it is not to be continued."""
        return self.state != "running"

    @property
    def best(self) -> Mapping[str, Any] | None:
        """Record of its best epoch."""
        return best_record(self.training)

    @property
    def latest_checkpoint(self) -> str | None:
        """What to continue it from."""
        return self.checkpoints.get(self.training["epoch"])

    def metric(self, name: str) -> float | None:
        """Of its best epoch."""
        return None if self.best is None else self.best["decision"][name]

    def row(self) -> dict[str, Any]:
        """Its line of the table."""
        best = self.best or {}
        return {
            "trial": self.number,
            "values": self.values,
            "state": self.state,
            "epochs": self.training["epoch"],
            "best_epoch": self.training["best_epoch"],
            "threshold": best.get("threshold"),
            "metrics": best.get("decision"),
            "seconds": round(sum(item["seconds"] for item in self.training["history"]), 3),
            "error": self.error,
        }


def score_of(name: str, value: float | None) -> float:
    """A metric as schedulers and samplers compare it: finite, the higher the better."""
    if value is None or value != value:
        return WORST
    return -value if name in LOWER_IS_BETTER else value


def best_trial(trials: Sequence[Trial], name: str) -> Trial | None:
    """The trial with the best epoch, of equal ones the first; None if none has one."""
    found: Trial | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.best is None or trial.state == "failed":
            continue
        if found is None or is_better(name, trial.metric(name), found.metric(name)):
            found = trial
    return found


class Ledger:
    """The events of a search, on disk and as trials."""

    def __init__(self, file: Path) -> None:
        """Read what is there; a line that a kill has cut short is dropped."""
        self._file = file
        self.trials: dict[int, Trial] = {}
        self.sessions = 0
        """How often the search was begun or continued."""
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with file.open("r+b") as stream:
                stream.truncate(len(whole))
        for line in whole.splitlines():
            self._apply(json.loads(line))

    def session(self) -> None:
        """The search goes on."""
        self._note({"event": "session"})

    def begin(self, number: int, values: Values) -> None:
        """A trial begins."""
        self._note({"event": "begin", "trial": number, "values": values})

    def epoch(
        self, number: int, record: Mapping[str, Any], best_epoch: int | None, checkpoint: str
    ) -> None:
        """An epoch is done and saved; it may have been before, by a worker that was lost."""
        event = {"event": "epoch", "trial": number, "record": record, "best_epoch": best_epoch}
        self._note({**event, "checkpoint": checkpoint})

    def end(self, number: int, state: Ended, error: str | None = None) -> None:
        """A trial is over."""
        self._note({"event": "end", "trial": number, "state": state, "error": error})

    def _note(self, event: Mapping[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as stream:
            stream.write(json.dumps(event).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "session":
            self.sessions += 1
            return
        number = event["trial"]
        if event["event"] == "begin":
            self.trials[number] = Trial(number, event["values"])
            return
        trial = self.trials[number]
        if event["event"] == "end":
            trial.state, trial.error = event["state"], event["error"]
            return
        record = event["record"]
        before = [item for item in trial.training["history"] if item["epoch"] < record["epoch"]]
        trial.training = {
            "epoch": record["epoch"],
            "step": 0,
            "history": [*before, record],
            "best_epoch": event["best_epoch"],
        }
        trial.checkpoints[record["epoch"]] = event["checkpoint"]


def how_it_ended(trial: Trial, settings: TrainingConfig) -> Ended:
    """Whether a trial that is over without an error has trained to its end."""
    return "finished" if is_over(trial.training, settings) else "stopped"


def write_table(output: Path, trials: Mapping[int, Trial]) -> list[dict[str, Any]]:
    """Write a line per trial beside the model; the rows."""
    rows = [trials[number].row() for number in sorted(trials)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_file(output / TABLE_FILE, lines.encode())
    return rows


def read_table(output: Path) -> list[dict[str, Any]]:
    """The lines that `write_table` wrote."""
    lines = (output / TABLE_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_identity(output: Path) -> dict[str, Any] | None:
    """What the search in a folder is; None if there is none.

    Raises:
        RunMismatchError: If the file is not readable.
    """
    file = output / IDENTITY_FILE
    if not file.exists():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise RunMismatchError(
            f"{file}: cannot be read as a search: choose another output, or remove it"
        ) from None


def write_identity(output: Path, job: TuneJob, data: str) -> None:
    """Write down what is searched for, before it begins."""
    output.mkdir(parents=True, exist_ok=True)
    identity = {"job": job.model_dump(mode="json"), "data": data}
    write_file(output / IDENTITY_FILE, json.dumps(identity, indent=1).encode())


def check_identity(output: Path, job: TuneJob, data: str | None) -> None:
    """Refuse to mix two searches in one folder.

    Args:
        output: May hold a search.
        job: What is asked for now.
        data: Digest of examples and encoders; None: not known yet.

    Raises:
        RunMismatchError: Naming the first difference.
    """
    found = read_identity(output)
    if found is None:
        return
    before, now = _leaves(found["job"]), _leaves(job.model_dump(mode="json"))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            was, is_now = (json.dumps(side.get(key)) for side in (before, now))
            raise RunMismatchError(
                f"{output}: holds a search with {key} {was}, not {is_now}: choose another output, "
                "or remove it"
            )
    if data is not None and found["data"] != data:
        raise RunMismatchError(
            f"{output}: holds a search in other examples or with another encoder: they were "
            "changed since; choose another output, or remove it"
        )


def comparable(job: TuneJob) -> list[str]:
    """What of a search must stay as it is, a line per key."""
    leaves = _leaves(job.model_dump(mode="json"))
    return [f"{key}={json.dumps(leaves[key])}" for key in sorted(leaves)]


def _leaves(tree: Mapping[str, Any]) -> dict[str, object]:
    free = tuple(f"{key}." for key in FREE_TO_CHANGE)
    return {key: value for key, value in flat(tree).items() if not f"{key}.".startswith(free)}
