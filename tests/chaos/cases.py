"""The cases: who is hurt, how, and what must come of it."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from chaos.compare import files_of
from chaos.processes import Command, TrialError, start_cluster, titled, wait_until
from chaos.trial import COMMAND_S, Moment, Trial
from chaos.workload import COMMAND, LATE_FILES

PAGE = 4096
SHORT_LEASE = "lease.expiry=6s"
HOUR_S = 3600


@dataclass(frozen=True)
class Case:
    """A kind of fault."""

    title: str
    """For the table."""
    body: Callable[[Trial], None]
    """What happens."""
    seeds: int
    """Trials of the long form."""


def kill_driver(trial: Trial) -> None:
    """SIGKILL to the command; its Ray must go away by itself."""
    local = trial.local if trial.local is not None else trial.seed % 5 == 4
    command = trial.begin(local=local)
    if trial.reach(trial.draw_moment(local=local), command):
        trial.about_to_kill()
        os.kill(command.process.pid, signal.SIGKILL)
        command.wait(COMMAND_S)
        trial.struck("local" if local else "ray")
        trial.result.exits.append(command.process.returncode)
        if trial.seed % 2:
            # half of the restarts come at once, while the first Ray is still about to end
            trial.wait_for_silence()
    else:
        trial.ended(command)
    trial.carry_on(local=local)


def kill_actor(trial: Trial) -> None:
    """SIGKILL to a process that holds the model; the command goes on without being told."""
    command = trial.begin(local=False)
    if trial.reach(trial.draw_moment(local=False), command):
        actors = titled(trial.alive, "ScoreActor")
        if actors:
            victim = trial.random.choice(actors)
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                trial.struck("ray")
        trial.went_on(command)
    if trial.ended(command):
        trial.carry_on(local=False)


def kill_raylet(trial: Trial) -> None:
    """SIGKILL to the raylet of one of two worker nodes, which loses all that runs on it."""
    stderr = trial.base / "cluster.txt"
    cluster, about = start_cluster(env=trial.environment(None, 0.02), stderr=stderr)
    trial.commands.append(cluster)
    settings = ("actors.cpus=1.0",)
    address = str(about["address"])
    command = trial.begin(local=False, settings=settings, address=address)
    if trial.reach(trial.draw_moment(local=False), command):
        os.kill(trial.random.choice(about["raylets"]), signal.SIGKILL)
        trial.struck("a node of three")
        trial.went_on(command)
    if trial.ended(command, codes=(0, 1)):
        # exit 1 is within the promise, and is to be seen in the record
        trial.carry_on(local=False, settings=settings, address=address)
    assert cluster.process.stdin is not None
    cluster.process.stdin.close()
    cluster.wait(60)


def kill_at_hook(trial: Trial) -> None:
    """SIGKILL at the worst points: around a rename, before `_SUCCESS`, `run.json`, `night.json`."""
    kinds = ("before_rename", "after_rename", "before_success", "before_run", "before_night")
    kind = kinds[trial.seed % len(kinds)]
    local = trial.local if trial.local is not None else trial.seed % 10 >= 5
    within = kind.endswith("rename")
    parts = trial.random.randint(1, trial.workload.parts - 2) if within else 0
    command = trial.begin(local=local, fault={"kind": kind, "parts": parts})
    happened = wait_until(lambda: trial.marker.exists() or not command.running, timeout_s=COMMAND_S)
    if not happened:
        raise TrialError("neither the fault nor the end came")
    where = "local" if local else "ray"
    if local or not within:
        command.wait(COMMAND_S)
        trial.struck_from_inside(f"{kind}, {where}")
        trial.result.exits.append(command.process.returncode)
        if command.process.returncode != -signal.SIGKILL:
            trial.problem(f"exit code {command.process.returncode}, expected a SIGKILL")
        trial.carry_on(local=local)
        return
    # on Ray a writing task dies, and is done again by another process
    trial.struck_from_inside(f"{kind}, {where}")
    trial.went_on(command)
    if trial.ended(command):
        trial.carry_on(local=local)


def fill_disk(trial: Trial) -> None:
    """The disk is full from some part on: a clean stop; space is freed, and it goes on."""
    local = trial.local if trial.local is not None else trial.seed % 5 < 3
    parts = trial.random.randint(2, trial.workload.parts - 2)
    where = "local" if local else "ray"
    if trial.seed % 2 and _may_mount():
        with _small_disk(trial, parts) as enlarge:
            command = trial.begin(local=local)
            _stopped_by_full_disk(trial, command)
            trial.struck(f"tmpfs, {where}")
            enlarge()
            trial.carry_on(local=local)
            # compared before the disk goes away
            shutil.copytree(trial.base / "out", trial.base / "kept", copy_function=shutil.copy2)
        shutil.rmtree(trial.base / "out")
        (trial.base / "kept").rename(trial.base / "out")
        trial.forget_stamps()
        return
    fault = {"kind": "disk_full", "parts": parts, "freed": str(trial.freed)}
    command = trial.begin(local=local, fault=fault)
    _stopped_by_full_disk(trial, command)
    trial.struck_from_inside(f"double, {where}")
    again = trial.begin(local=local, fault=fault)  # still full: stops again, and harms nothing
    _stopped_by_full_disk(trial, again)
    trial.freed.touch()
    trial.carry_on(local=local)


def _stopped_by_full_disk(trial: Trial, command: Command) -> None:
    if trial.ended(command, codes=(1,)) == 1 and "full" not in command.error_line():
        trial.problem(f"the error does not say that the disk is full: {command.error_line()}")


@contextmanager
def _small_disk(trial: Trial, parts: int) -> Iterator[Callable[[], None]]:
    """A real file system, too small for all but some parts; yields a function that enlarges it."""
    folder = trial.base / "out"
    folder.mkdir()
    done = trial.workload.folder / "expected"
    sizes = {name: (done / name).stat().st_size for name in files_of(done)}
    pages = {name: -(-size // PAGE) for name, size in sizes.items()}
    of_parts = sorted(name for name in sizes if name in trial.workload.expected.parts)
    ledger = sum(count for name, count in pages.items() if name not in of_parts)
    size = (ledger + 4 + sum(pages[name] for name in of_parts[:parts])) * PAGE
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield lambda: subprocess.run(
            ["mount", "-o", "remount,size=64m", str(folder)], check=True
        ).check_returncode()
    finally:
        # everything that could hold a file open there has to be gone
        trial.wait_for_silence()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@functools.cache
def _may_mount() -> bool:
    """Whether this process may mount a file system."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        try:
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                return False
        except FileNotFoundError:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def two_writers(trial: Trial) -> None:
    """Two commands started together: one works, the other is told so, or waits."""
    local = trial.local if trial.local is not None else trial.seed % 4 != 3
    leaseless = trial.seed % 3 == 2 and _has_option("--no-lease")
    options = ("--no-lease",) if leaseless else ()
    row_s = trial.random.choice((0.005, 0.03))
    first = trial.begin(*options, local=local, row_s=row_s)
    time.sleep(trial.random.uniform(0.0, 1.0))
    second = trial.begin(*options, local=local, row_s=row_s)
    commands = (first, second)
    trial.result.injected = True  # from the start: there is no moment to count
    trial.result.variant = f"{'no lease, ' if leaseless else ''}{'local' if local else 'ray'}"
    codes = [trial.ended(command, codes=(0, 1)) for command in commands]
    if 0 not in codes:
        trial.problem("neither of the two came to the end")
    for loser, winner in ((first, second), (second, first)):
        if loser.process.returncode == 1 and not leaseless:
            line = loser.error_line()
            if f"process {winner.process.pid} " not in line:
                trial.problem(f"the refusal does not name process {winner.process.pid}: {line}")
    trial.carry_on(*options, local=local)


def stop_by_signal(trial: Trial) -> None:
    """SIGTERM or Ctrl-C, to the command or to all of its group: exit 130, and how to continue."""
    local = trial.local if trial.local is not None else trial.seed % 3 == 2
    kinds = ("SIGTERM", "SIGTERM to all", "SIGINT to all", "SIGINT twice")
    kind = "SIGTERM" if trial.seed % 2 == 0 else kinds[1 + trial.seed // 2 % 3]
    # slow, so that not everything is in flight, and finished within the time of grace
    command = trial.begin(local=local, row_s=0.02)
    if trial.reach(trial.draw_moment(local=local), command):
        trial.about_to_kill()
        number = signal.SIGTERM if kind.startswith("SIGTERM") else signal.SIGINT
        pid = command.process.pid
        if kind.endswith("all"):
            # a terminal sends it to the group; the command is its leader here
            for process in trial.alive:
                with suppress(ProcessLookupError, PermissionError):
                    if os.getpgid(process.pid) == pid:
                        os.kill(process.pid, number)
        else:
            os.kill(pid, number)
        twice = kind.endswith("twice")
        if twice:
            time.sleep(trial.random.uniform(0.05, 0.5))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        trial.struck(f"{kind}, {'local' if local else 'ray'}")
        moment = time.monotonic()
        code = trial.ended(command, codes=(130, 0, -signal.SIGINT) if twice else (130, 0))
        trial.result.notes["stopped_s"] = round(time.monotonic() - moment, 1)
        if code == 0:
            trial.result.notes["came_too_late"] = True
        elif code == 130 and "continue with: ray-mlc score" not in command.stderr:
            trial.problem("exit 130 without the command that continues")
        if not twice and trial.place.read("_ray_mlc/lease.json") is not None:
            trial.problem("the lease was not released")
    else:
        trial.ended(command)
    trial.carry_on(local=local)


def move_clock(trial: Trial) -> None:
    """The clock of the owner, or of the newcomer, jumps by hours: the lease holds all the same."""
    shift = trial.random.choice((-1, 1)) * trial.random.uniform(1, 12) * HOUR_S
    parts = trial.random.randint(1, trial.workload.parts // 4)
    fault = {"kind": "clock", "parts": parts, "shift_s": shift}
    theirs = {"kind": "clock", "parts": 0, "shift_s": -shift}
    mine = trial.seed % 3 != 1
    command = trial.begin(
        local=True, settings=(SHORT_LEASE,), row_s=0.05, fault=fault if mine else None
    )
    trial.reach(Moment(parts, 0.0), command)
    second = trial.begin(
        local=True, settings=(SHORT_LEASE,), row_s=0.05, fault=None if mine else theirs
    )
    if trial.ended(second, codes=(1,)) == 1:
        line = second.error_line()
        if f"process {command.process.pid} " not in line:
            trial.problem(f"the refusal does not name process {command.process.pid}: {line}")
    hours = (shift if mine else -shift) / HOUR_S
    trial.struck(f"{'owner' if mine else 'newcomer'}'s clock {hours:+.0f} h")
    # false would say that nobody looked at the clock any more
    trial.result.notes["looked_at_the_clock"] = trial.marker.exists()
    trial.ended(command)


def stale_writer(trial: Trial) -> None:
    """A stopped command loses its lease, wakes up, and has to find that out before it writes."""
    local = trial.local if trial.local is not None else trial.seed % 5 < 2
    everything = not local and trial.seed % 2 == 0
    late = trial.seed % 2 == 1
    settings = (SHORT_LEASE,)
    first = trial.begin(local=local, settings=settings, row_s=0.02)
    last = trial.workload.parts // 2
    if not trial.reach(trial.draw_moment(local=local, last=last), first):
        trial.ended(first)
        return
    victims = trial.alive if everything else []
    os.kill(first.process.pid, signal.SIGSTOP)
    for process in victims:
        with suppress(psutil.Error):
            process.suspend()
    trial.struck(
        f"{'local' if local else 'ray, all of it' if everything else 'ray, command only'}; "
        f"wakes {'after' if late else 'while'} the second works"
    )
    before = trial.place.look()
    second = trial.begin(local=local, settings=settings, row_s=0.02)
    trial.wait_for_more(before, second, since_s=second.started_s)
    if late:
        trial.ended(second)
    pids = {first.process.pid} | {process.pid for process in victims}
    for process in victims:
        with suppress(psutil.Error):
            process.resume()
    os.kill(first.process.pid, signal.SIGCONT)
    awake = time.monotonic()
    if trial.ended(first, codes=(1,)) == 1:
        line = first.error_line()
        if "lease" not in line:
            trial.problem(f"the stale writer does not say that it lost its lease: {line}")
        elif not late and f"process {second.process.pid} " not in line:
            trial.problem(f"it does not name process {second.process.pid}: {line}")
    trial.result.notes["stopped_s"] = round(time.monotonic() - awake, 1)
    if not late:
        trial.ended(second)
    trial.result.done_s = round(time.monotonic() - second.started_s, 2)
    stale = [path for at, pid, path in trial.commits() if at > awake and pid in pids]
    trial.result.notes["parts_written_by_the_stale_one"] = len(stale)


def kill_second_night(trial: Trial) -> None:
    """SIGKILL while new files are added to a finished run, or just before they are planned."""
    corpus = trial.base / "corpus"
    shutil.copytree(trial.workload.corpus, corpus, ignore=_late)
    trial.corpus = str(corpus)
    trial.same_ledger = False
    local = trial.local if trial.local is not None else trial.seed % 2 == 0
    trial.ended(trial.begin(local=True))
    first = len(trial.place.look())
    for name in LATE_FILES:
        (corpus / name).parent.mkdir(exist_ok=True)
        shutil.copy2(trial.workload.corpus / name, corpus / name)
    if trial.seed % 3 == 2:
        # `_SUCCESS` is gone, the plan is written, the night is not
        fault = {"kind": "before_night", "parts": first}
        command = trial.begin("--add-new", local=local, fault=fault)
        command.wait(COMMAND_S)
        trial.struck_from_inside(f"before_night, {'local' if local else 'ray'}")
        trial.result.exits.append(command.process.returncode)
        if trial.place.read("_SUCCESS") is not None:
            trial.problem("_SUCCESS is still there while a night is planned")
        trial.carry_on("--add-new", local=local)
        return
    command = trial.begin("--add-new", local=local)
    parts = trial.random.randint(first + 1, trial.workload.parts - 1)
    if trial.reach(Moment(parts, trial.random.uniform(0.0, 0.03)), command):
        trial.about_to_kill()
        os.kill(command.process.pid, signal.SIGKILL)
        command.wait(COMMAND_S)
        trial.struck("local" if local else "ray")
        trial.result.exits.append(command.process.returncode)
    else:
        trial.ended(command)
    trial.carry_on("--add-new", local=local)


def failing_store(trial: Trial) -> None:
    """One call in ten is answered by 500 or 503, or not at all."""
    _against_store(trial, share=0.1, kinds=("500", "503", "timeout"), corpus=trial.seed % 2 == 1)


def broken_stream(trial: Trial) -> None:
    """Uploads and downloads break in the middle, and answers are lost after the deed."""
    kinds = ("reset_upload", "truncate_download", "lost_answer")
    _against_store(trial, share=0.15, kinds=kinds, corpus=True)


def _against_store(trial: Trial, *, share: float, kinds: Sequence[str], corpus: bool) -> None:
    from chaos.store import output_on_store

    local = trial.local if trial.local is not None else trial.seed % 3 != 2
    with output_on_store(trial, share=share, kinds=kinds, corpus=corpus) as proxy:
        command = trial.begin(local=local)
        # faults all the way: there is no moment to count
        trial.result.variant = f"{'local' if local else 'ray'}{', input there too' * corpus}"
        if trial.ended(command, codes=(0, 1)):
            trial.carry_on(local=local, codes=(0, 1))
        trial.result.injected = sum(proxy.injected.values()) > 0


def absent_store(trial: Trial) -> None:
    """The store goes away in the middle of a run, and comes back."""
    from chaos.store import output_on_store

    local = trial.local if trial.local is not None else trial.seed % 3 != 2
    with output_on_store(trial, share=0.0, kinds=("500",), corpus=trial.seed % 2 == 0) as proxy:
        command = trial.begin(local=local, row_s=0.02)
        if trial.reach(trial.draw_moment(local=local), command):
            proxy.away()
            trial.struck("local" if local else "ray")
            away_s = trial.random.choice((2.0, 10.0, 30.0))
            trial.result.notes["away_s"] = away_s
            wait_until(lambda: not command.running, timeout_s=away_s)
            proxy.back()
        if trial.ended(command, codes=(0, 1)):
            trial.carry_on(local=local)


def _late(folder: str, names: list[str]) -> set[str]:
    late = {Path(name).name for name in LATE_FILES}
    return late & set(names)


@functools.cache
def _has_option(option: str) -> bool:
    """Whether `score` knows an option."""
    words = [str(COMMAND), "score", "--help"]
    wide = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return option in subprocess.run(words, capture_output=True, text=True, env=wide).stdout


CASES = {
    "1-driver": Case("SIGKILL of the command", kill_driver, 25),
    "2-actor": Case("SIGKILL of an actor's process", kill_actor, 25),
    "3-node": Case("raylet of a node of three killed", kill_raylet, 5),
    "4-hooks": Case(
        "SIGKILL around a rename, before `_SUCCESS`, `run.json`, `night.json`", kill_at_hook, 10
    ),
    "5-disk": Case("disk full, then space is freed", fill_disk, 5),
    "6-store": Case("store: 500, 503, no answer, for one call in ten", failing_store, 10),
    "6-away": Case("store away for a while", absent_store, 3),
    "7-two": Case("two commands started together", two_writers, 10),
    "8-signal": Case("SIGTERM, Ctrl-C", stop_by_signal, 10),
    "9-clock": Case("clock moved by hours", move_clock, 3),
    "10-stale": Case("stopped command that lost its lease goes on", stale_writer, 5),
    "11-stream": Case("streams that break, answers that are lost", broken_stream, 5),
    "12-night": Case("SIGKILL while a second night is added", kill_second_night, 6),
}
"""All cases by name; the names hold the order."""
