"""One trial: a run, a fault at a moment drawn from a seed, the run continued, the comparison."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from chaos.compare import Comparison, compare, compare_unfinished, files_of, is_part
from chaos.processes import (
    Command,
    TrialError,
    environment,
    kill,
    names_of,
    processes_with,
    start,
    wait_until,
)
from chaos.workload import COMMAND, FILES, Workload

COMMAND_S = 180.0
"""Longest time that a command may take here: they take 5 to 30 s."""
ORPHAN_S = 15.0
"""Seconds after which nothing of a killed command may be alive."""
ATTEMPTS = 5
"""How often a command is run again before that counts as never."""
LOCAL_S, RAY_S = 6.0, 18.0
"""About how long an undisturbed command takes: for faults at any time."""

PART_FOLDERS = [name.removesuffix(".parquet") for name in FILES]
Stamp = tuple[int, int]
"""Inode and time of change: a part that is written again gets others."""


class Place(Protocol):
    """Where the output of a trial is."""

    output: str
    """The output as the command names it."""
    poll_s: float
    """Seconds between two looks while something is waited for."""

    def look(self) -> dict[str, Stamp]:
        """The parts that are there."""

    def count(self) -> int:
        """How many parts are there, found out often: the machine has other work to do."""

    def read(self, name: str) -> bytes | None:
        """A file of the output."""


class LocalPlace:
    """An output folder."""

    poll_s = 0.01

    def __init__(self, path: Path) -> None:
        self.path, self.output = path, str(path)
        self._folders: dict[str, tuple[int, int]] = {}

    def look(self) -> dict[str, Stamp]:
        """See `Place`."""
        found = {}
        for name in files_of(self.path) if self.path.exists() else []:
            if is_part(name):
                stat = (self.path / name).stat()
                found[name] = (stat.st_ino, stat.st_mtime_ns)
        return found

    def count(self) -> int:
        """See `Place`: a folder is read again only if it has changed."""
        total = 0
        for folder in PART_FOLDERS:
            path = self.path / folder
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            # two changes within a tick of the file system's clock look like one
            fresh = time.time_ns() - changed < 100_000_000
            if fresh or self._folders.get(folder, (0, 0))[0] != changed:
                names = os.listdir(path)  # noqa: PTH208 - names are enough
                self._folders[folder] = (changed, sum(map(is_part, names)))
            total += self._folders[folder][1]
        return total

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class Moment:
    """When a fault happens."""

    parts: int | None
    """As soon as so many parts are seen; None: at a time."""
    after_s: float
    """Seconds after that, or after the start."""


@dataclass
class Result:
    """What is known about a trial; a line of the record."""

    case: str
    seed: int
    variant: str = ""
    injected: bool = False
    committed: int | None = None
    """Parts that were there when the fault happened."""
    parts: int = 0
    """Parts of a complete run."""
    exits: list[int] = field(default_factory=list)
    """Exit codes of all commands, in the order in which they ended."""
    rows: int = 0
    lost: int = 0
    duplicated: int = 0
    rewritten: int = 0
    """Parts that were there when the fault happened, and were written again."""
    committed_twice: int = 0
    """Commits beyond the first of a part, over all processes."""
    rows_again: int | None = None
    """Rows that the last command did beyond those that were missing when it started."""
    first_part_s: float | None = None
    """Seconds from the restart, or the fault that needs none, to the next new part."""
    done_s: float | None = None
    """Seconds from there to the end."""
    orphans: list[str] = field(default_factory=list)
    """Processes that outlived their command by `ORPHAN_S`."""
    problems: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def between(self) -> bool:
        """Whether the fault fell between the first and the last commit."""
        return self.injected and self.committed is not None and 0 < self.committed < self.parts


class Trial:
    """The state of one trial, and what the cases do with it."""

    def __init__(
        self, workload: Workload, case: str, seed: int, folder: Path, *, local: bool | None = None
    ) -> None:
        """Make an empty folder for it.

        Args:
            workload: What is run.
            case: Name of the case.
            seed: Draws everything that is random here.
            folder: Where it leaves its files; must not exist.
            local: One process or Ray; None: the case decides.
        """
        self.workload, self.local, self.seed, self.base = workload, local, seed, folder
        self.random = random.Random(f"{case}/{seed}")
        folder.mkdir(parents=True)
        # a path of a Ray socket may have 107 bytes
        self.ray_folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        self.place: Place = LocalPlace(folder / "out")
        self.log = folder / "commits.log"
        self.marker, self.freed = folder / "fault-happened", folder / "space-freed"
        self.result = Result(case, seed, parts=workload.parts, rows=workload.expected.rows)
        self.env: dict[str, str] = {}
        self.corpus: str | None = None
        self.same_ledger = True
        self.verified = False
        self.commands: list[Command] = []
        self.alive: list[psutil.Process] = []
        self._stamps: dict[str, Stamp] = {}
        self._victims: list[psutil.Process] = []
        self._fault_s = 0.0

    # starting

    def begin(
        self,
        *options: str,
        local: bool,
        settings: Sequence[str] = (),
        fault: Mapping[str, Any] | None = None,
        row_s: float = 0.005,
        address: str | None = None,
    ) -> Command:
        """Start the command, with a fault of its own or none."""
        words = self.workload.command(
            self.place.output,
            *options,
            *(("--address", address) if address else ()),
            corpus=self.corpus,
            local=local,
            settings=settings,
        )
        stderr = self.base / f"stderr-{len(self.commands)}.txt"
        command = start(words, env=self.environment(fault, row_s), stderr=stderr)
        self.commands.append(command)
        return command

    def environment(self, fault: Mapping[str, Any] | None, row_s: float) -> dict[str, str]:
        """Environment of a command of this trial."""
        told = {
            "trial": str(self.base),
            "output": str(self.base / "out"),
            "log": str(self.log),
            "row_s": row_s,
            "commit_s": 0.01,
            "fault": None if fault is None else {**fault, "marker": str(self.marker)},
        }
        return environment(told, {"RAY_TMPDIR": str(self.ray_folder), **self.env})

    def processes(self) -> list[psutil.Process]:
        """Every living process of this trial."""
        return processes_with(f'"{self.base}"')

    def wait_for_silence(self) -> None:
        """Give what is about to end the time to do so."""
        wait_until(lambda: not self.processes(), timeout_s=ORPHAN_S, poll_s=0.2)

    # the moment

    def draw_moment(self, *, local: bool, last: int | None = None) -> Moment:
        """By progress; for one seed in six at any time, before the first commit included."""
        if self.seed % 6 == 5 and last is None:
            return Moment(None, self.random.uniform(0.0, LOCAL_S if local else RAY_S))
        parts = self.random.randint(1, last or self.workload.parts - 1)
        return Moment(parts, self.random.uniform(0.0, 0.03))

    def reach(self, moment: Moment, command: Command) -> bool:
        """Wait for it; False if the command ended before."""
        if moment.parts is None:
            wait_until(lambda: not command.running, timeout_s=moment.after_s)
            self.alive = self.processes()
            return command.running
        self._wait_for(1, command)
        # looked for early: it takes longer than some parts
        self.alive = self.processes()
        self._wait_for(moment.parts, command)
        time.sleep(moment.after_s)
        return command.running

    def _wait_for(self, parts: int, command: Command) -> None:
        def there() -> bool:
            return self.place.count() >= parts or not command.running

        if not wait_until(there, timeout_s=COMMAND_S, poll_s=self.place.poll_s):
            raise TrialError(f"{parts} parts were not there after {COMMAND_S:.0f} s")

    def about_to_kill(self) -> None:
        """Who is alive must be gone later."""
        self._victims = list(self.alive)

    def struck(self, how: str) -> None:
        """Take note of the fault, which has just happened, and look at what is there."""
        self._fault_s = time.monotonic()
        self._stamps = self.place.look()
        self.result.injected = True
        self.result.variant = how
        self.result.committed = len(self._stamps)
        if isinstance(self.place, LocalPlace) and self._stamps:
            found = compare_unfinished(self.workload.expected, self.place.path)
            self.result.problems += [f"at the fault: {problem}" for problem in found]

    def struck_from_inside(self, how: str) -> None:
        """The same for a fault that a process brought upon itself, if it did."""
        if self.marker.exists():
            self.struck(how)
        else:
            self.result.variant = how

    def forget_stamps(self) -> None:
        """The output has been moved: inodes say nothing any more."""
        self._stamps = {}

    # ending

    def ended(self, command: Command, *, codes: Sequence[int] = (0,)) -> int:
        """Wait for the end of a command, and check its exit code and its words."""
        code = command.wait(COMMAND_S)
        self.result.exits.append(code)
        if code not in codes:
            line = command.error_line() or command.stderr[-300:]
            self.problem(f"exit code {code}, expected {' or '.join(map(str, codes))}: {line}")
        if "Traceback (most recent call last)" in command.stderr:
            self.problem(f"a traceback: {command.stderr.strip().splitlines()[-1][:300]}")
        if code > 0:
            errors = re.findall(r"^error: ", command.stderr, re.MULTILINE)
            if len(errors) != 1:
                self.problem(f"{len(errors)} error lines with exit code {code}, expected one")
        return code

    def verify_there(self) -> None:
        """Let the command line prove an output that is not a folder of this machine."""
        words = [str(COMMAND), "verify", self.place.output, "--deep"]
        stderr = self.base / "verify.txt"
        command = start(words, env=self.environment(None, 0.0), stderr=stderr)
        self.commands.append(command)
        if code := command.wait(COMMAND_S):
            self.problem(f"verify: exit code {code}: {command.stderr[-300:]}")
        self.verified = True

    def problem(self, sentence: str) -> None:
        """Note that something is not as promised."""
        if sentence not in self.result.problems:
            self.result.problems.append(sentence)

    def carry_on(
        self,
        *options: str,
        local: bool,
        codes: Sequence[int] = (0,),
        settings: Sequence[str] = (),
        address: str | None = None,
    ) -> None:
        """Run the same command again until it is done, and measure how long that takes."""
        restarted = time.monotonic()
        for _ in range(ATTEMPTS):
            before = self.place.look()
            done_before = self.place.read("_SUCCESS") is not None
            command = self.begin(*options, local=local, settings=settings, address=address)
            if self.result.first_part_s is None:
                self.wait_for_more(before, command, since_s=restarted)
            if self.ended(command, codes=codes) == 0:
                self.result.done_s = round(time.monotonic() - restarted, 2)
                if not done_before:
                    self.result.rows_again = self._rows_done() - self._rows_missing(before)
                return
        raise TrialError(f"not done after {ATTEMPTS} attempts")

    def wait_for_more(
        self, before: Mapping[str, Stamp], command: Command, *, since_s: float
    ) -> None:
        """Wait for a part that was not there, and take the time."""
        found = False

        def more() -> bool:
            nonlocal found
            found = self.place.count() > len(before)
            return found or not command.running

        wait_until(more, timeout_s=COMMAND_S, poll_s=self.place.poll_s)
        if found:
            self.result.first_part_s = round(time.monotonic() - since_s, 2)

    def went_on(self, command: Command) -> None:
        """The command survives the fault by itself: wait for its end, and take the time."""
        since = self._fault_s or time.monotonic()
        self.wait_for_more(self._stamps, command, since_s=since)
        if command.wait(COMMAND_S) == 0 and self._fault_s:
            self.result.done_s = round(time.monotonic() - since, 2)

    def _rows_done(self) -> int:
        summary = json.loads(self.place.read("_ray_mlc/summary.json") or b"{}")
        return int(summary.get("this_process", {}).get("rows", 0))

    def _rows_missing(self, there: Mapping[str, Stamp]) -> int:
        parts = self.workload.expected.parts
        return sum(table.num_rows for name, table in parts.items() if name not in there)

    # the account

    def commits(self) -> list[tuple[float, int, str]]:
        """Time, process and path of each commit, as the processes themselves wrote them down."""
        if not self.log.exists():
            return []
        lines = [line.split(" ", 2) for line in self.log.read_text().splitlines()]
        return [(float(at), int(pid), path) for at, pid, path in lines]

    def close(self) -> None:
        """Look for processes that are left, and compare."""
        if self._victims:
            left = self._fault_s + ORPHAN_S - time.monotonic()
            wait_until(lambda: not self._alive(self._victims), timeout_s=max(0.1, left), poll_s=0.2)
            orphans = self._alive(self._victims)
            self.result.orphans += names_of(orphans)
            kill(orphans)
        self.wait_for_silence()
        rest = self.processes()
        self.result.orphans += names_of(rest)
        kill(rest)
        if self.result.orphans:
            self.problem(f"outlived their command by {ORPHAN_S:.0f} s: {self.result.orphans}")
        if not isinstance(self.place, LocalPlace):
            raise TrialError("the output has not been fetched")
        found: Comparison = compare(
            self.workload.expected,
            self.place.path,
            same_ledger=self.same_ledger,
            proof=not self.verified,
        )
        self.result.lost, self.result.duplicated = found.lost, found.duplicated
        self.result.problems += found.problems
        now = self.place.look()
        changed = [name for name, stamp in self._stamps.items() if now.get(name) != stamp]
        self.result.rewritten = len(changed)
        counts = Counter(path for _, _, path in self.commits())
        self.result.committed_twice = sum(count - 1 for count in counts.values())

    @staticmethod
    def _alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
        alive = []
        for process in processes:
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except psutil.Error:
                continue
        return alive

    def abandon(self) -> None:
        """End everything that still runs."""
        for command in self.commands:
            if command.running:
                os.kill(command.process.pid, signal.SIGKILL)
                command.process.wait()
        kill(self.processes())
        shutil.rmtree(self.ray_folder, ignore_errors=True)


def run_trial(
    workload: Workload,
    case: str,
    body: Callable[[Trial], None],
    seed: int,
    folder: Path,
    *,
    local: bool | None = None,
) -> Result:
    """Run one case with one seed; the folder stays if something is wrong, for looking at."""
    started = time.monotonic()
    trial = Trial(workload, case, seed, folder, local=local)
    try:
        body(trial)
        trial.close()
    except TrialError as error:
        trial.problem(str(error))
    finally:
        trial.abandon()
    trial.result.seconds = round(time.monotonic() - started, 1)
    if trial.result.problems:
        trial.result.notes["folder"] = str(folder)
    else:
        shutil.rmtree(folder)
    return trial.result
