"""The batch script for Slurm against stand-ins: it starts, waits, stops, cleans and resumes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.manifests import ROOT, VARIANTS, rendered
from support.slurm import make_tools, sbatch

NO_ACTIVATION = "slurm.activate=null"


@dataclass
class Run:
    """A batch script that is running or has ended."""

    process: subprocess.Popen[str]
    submit: Path
    scratch: Path
    log: Path

    def said(self) -> list[str]:
        """What the stand-ins have noted so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, line: str) -> None:
        """Until a stand-in has noted a line."""
        deadline = time.monotonic() + 30
        while line not in self.said():
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit code and output, with everything that was started gone."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    def left(self) -> list[str]:
        """Files that are still there besides the job."""
        found = [*self.submit.rglob("*"), *self.scratch.rglob("*")]
        return sorted(path.name for path in found if path.name != "score.yaml")


class Slurm:
    """Starts batch scripts, and ends those that a test leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, list[Run]()

    def start(
        self, *overrides: str, tools: dict[str, str] | None = None, **environment: str
    ) -> Run:
        """Render a script with these settings and start it."""
        place = self.folder / f"run {len(self.runs)}"  # a space is fine everywhere
        submit, scratch = place / "submit dir", self.folder / f"s{len(self.runs)}"
        submit.mkdir(parents=True)
        scratch.mkdir()
        name = "slurm.scratch=/tmp"
        script = rendered("slurm", NO_ACTIVATION, name, *overrides)["score.sbatch"]
        assert "SCRATCH=/tmp\n" in script
        path = place / "score.sbatch"
        path.write_text(script.replace("SCRATCH=/tmp\n", f"SCRATCH='{scratch}'\n"))
        (submit / "score.yaml").write_text("kind: score\n")
        found = make_tools(place / "tools", **(tools or {}))
        log = place / "log"
        process = sbatch(path, found, submit, log, environment)
        self.runs.append(Run(process, submit, scratch, log))
        return self.runs[-1]

    def close(self) -> None:
        """End what still runs, by the groups that were started here."""
        for run in self.runs:
            if run.process.poll() is None:
                os.killpg(run.process.pid, signal.SIGKILL)
                run.process.wait()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    found = Slurm(tmp_path)
    yield found
    found.close()


def test_a_job_starts_a_node_each_runs_the_work_and_leaves_nothing(slurm: Slurm) -> None:
    run = slurm.start()
    code, output = run.end()
    assert code == 0, output
    said = run.said()
    head, worker = [line for line in said if re.match(r"ray n\d start", line)]
    assert head.startswith("ray n1 start --block --head --port=0")
    assert worker.startswith("ray n2 start --block --address=127.0.0.1:4321")
    assert "ray-mlc score score.yaml --address 127.0.0.1:4321" in said
    # workers end first, and all before the script does
    assert said.index("ray-mlc done") < said.index("ray n2 ended") < said.index("ray n1 ended")
    assert run.left() == []
    assert not any("requeue" in line for line in said)


def test_each_job_has_a_token_of_its_own_that_only_its_user_reads(slurm: Slurm) -> None:
    lines = []
    for _ in range(2):
        run = slurm.start()
        assert run.end()[0] == 0
        lines += [line for line in run.said() if line.startswith("ray n") and "start" in line]
    assert len(lines) == 4
    assert all(line.endswith("mode=token token=600") for line in lines)
    # neither in an argument, which everybody on the node sees, nor in the script
    assert not any(re.search(r"[0-9a-f]{32}", line) for line in lines)


def test_ports_and_folders_of_two_jobs_on_one_node_do_not_meet(slurm: Slurm) -> None:
    runs = [slurm.start(SECONDS_OF_WORK="1") for _ in range(2)]
    folders = []
    for run in runs:
        code, output = run.end()
        assert code == 0, output
        for line in run.said():
            if re.match(r"ray n\d start", line):
                folders += re.findall("--temp-dir=(.*) --num-cpus", line)
                # 0: whatever is free; nothing has a fixed number
                assert re.findall(r"port=(\d+)", line.replace("--port=0", "")) == ["0", "0", "0"]
    assert len(set(folders)) == 4


@pytest.mark.parametrize(("code", "requeued"), [(1, True), (137, True), (2, False), (3, False)])
def test_what_another_attempt_may_change_goes_back_into_the_queue(
    slurm: Slurm, code: int, requeued: bool
) -> None:
    run = slurm.start(CODE=str(code))
    assert run.end()[0] == code
    assert ("scontrol requeue 4711" in run.said()) is requeued
    assert run.left() == []


def test_not_for_ever(slurm: Slurm) -> None:
    run = slurm.start("slurm.restarts=3", CODE="1", SLURM_RESTART_COUNT="3")
    assert run.end()[0] == 1
    assert not any("requeue" in line for line in run.said())


def test_near_the_time_limit_work_in_flight_ends_and_the_job_continues_later(
    slurm: Slurm,
) -> None:
    run = slurm.start(SECONDS_OF_WORK="60")
    run.wait_for("begun")
    run.process.send_signal(signal.SIGTERM)
    code, output = run.end()
    assert code == 130
    said = run.said()
    assert "SIGTERM: finishing what is in flight" in output
    assert said.count("ray-mlc asked to stop") == 1
    # nodes stay up until the work has ended; then all is cleaned, then requeued
    order = ["ray-mlc asked to stop", "ray n2 ended", "ray n1 ended", "scontrol requeue 4711"]
    assert [line for line in said if line in order] == order
    assert said[-1] == "0"  # state folders that were left when the job was put back


def test_work_that_ends_while_it_is_asked_to_stop_is_done(slurm: Slurm) -> None:
    run = slurm.start(SECONDS_OF_WORK="60", STOPPED="0")
    run.wait_for("begun")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 0
    assert not any("requeue" in line for line in run.said())


def test_a_second_signal_is_handed_on_and_the_end_still_waited_for(slurm: Slurm) -> None:
    run = slurm.start(SECONDS_OF_WORK="60")
    run.wait_for("begun")
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("ray-mlc asked to stop")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 130
    assert run.said().count("ray-mlc asked to stop") >= 1
    assert run.left() == []


def test_somebody_who_stops_a_job_does_not_find_it_in_the_queue_again(slurm: Slurm) -> None:
    run = slurm.start(SECONDS_OF_WORK="60")
    run.wait_for("begun")
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 130
    assert not any("requeue" in line for line in run.said())


def test_a_head_that_does_not_start_ends_the_job_at_once(slurm: Slurm) -> None:
    run = slurm.start(BROKEN="n1")
    code, output = run.end()
    assert code == 1
    assert "the head did not start" in output
    assert not any(line.startswith("ray-mlc ") for line in run.said())
    assert run.left() == []


def test_a_worker_that_does_not_start_is_done_without(slurm: Slurm) -> None:
    run = slurm.start(BROKEN="n2")
    assert run.end()[0] == 0
    assert "ray-mlc done" in run.said()


def test_tools_that_are_missing_are_named(slurm: Slurm) -> None:
    run = slurm.start(PATH="/usr/bin:/bin")
    code, output = run.end()
    assert code == 2
    assert "ray is not in the PATH: set slurm.activate" in output
    assert run.left() == []


def options(*overrides: str) -> dict[str, str | None]:
    """What a script asks Slurm for."""
    script = rendered("slurm", *overrides)["score.sbatch"]
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, flags=re.M)
    # Slurm reads options up to the first command only
    assert script.index(f"#SBATCH --{lines[-1][0]}") < script.index("\nNAME=")
    return dict(lines)


def test_a_script_asks_for_what_the_config_says() -> None:
    found = options("slurm.nodes=3", "slurm.time=26h", "slurm.partition=gpu", "gpu.count=4")
    assert (found["nodes"], found["gpus-per-node"], found["partition"]) == ("3", "4", "gpu")
    assert found["time"] == "1-02:00:00"
    assert found["mem"] == "28672M"
    assert found["signal"] == "B:TERM@300"
    assert {"requeue", "no-kill"} <= set(found)
    assert "account" not in found
    assert "gpus-per-node" not in options("gpu=null")


@pytest.mark.parametrize("variant", [(), ("gpu=null", NO_ACTIVATION), VARIANTS["Secrets"]])
def test_shellcheck_has_nothing_to_say(variant: tuple[str, ...], tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=f"{here}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    paths = [ROOT / "ray_mlc" / "cluster" / "slurm.sh"]
    for name, text in rendered("slurm", *variant).items():
        if name.endswith(".sbatch"):
            paths.append(tmp_path / name)
            paths[-1].write_text(text)
    assert len(paths) > 1
    done = subprocess.run([shellcheck, *map(str, paths)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
