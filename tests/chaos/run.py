"""The long form: every case with many seeds, a line of JSON each, and a table at the end.

    PYTHONPATH=tests python -m chaos.run --output benchmarks/results/<date>-chaos.jsonl

It can be stopped at any time: trials whose line is there are not run again. The folder of a trial
with a problem is kept, and named in its line.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from chaos.cases import CASES
from chaos.trial import Result, run_trial
from chaos.workload import make_workload
from ray_mlc.scoring.identity import versions

WORKLOAD_SEED = 0

Line = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; .md lies beside")
    parser.add_argument("--cases", default=",".join(CASES), help="default: all of %(default)s")
    parser.add_argument("--seeds", type=int, help="trials per case; default: each case's own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="start no trial after that")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time: they mostly wait")
    options = parser.parse_args(arguments)
    unknown = set(options.cases.split(",")) - CASES.keys()
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    deadline = time.monotonic() + options.minutes * 60
    options.output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="chaos-work-"))
    workload = make_workload(work / "workload", seed=WORKLOAD_SEED)
    first, done = (
        options.first_seed,
        {(line["case"], line["seed"]) for line in read_lines(options.output)},
    )
    todo = [
        (name, seed)
        for name in options.cases.split(",")
        for seed in range(first, first + (options.seeds or CASES[name].seeds))
        if (name, seed) not in done
    ]

    def run(trial: tuple[str, int]) -> Result | None:
        name, seed = trial
        if time.monotonic() > deadline:
            return None
        return run_trial(workload, name, CASES[name].body, seed, work / f"{name}-{seed}")

    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        for future in as_completed([pool.submit(run, trial) for trial in todo]):
            if (result := future.result()) is not None:
                write_line(options.output, result)
                print(describe(result), flush=True)
    lines = read_lines(options.output)
    table = options.output.with_suffix(".md")
    table.write_text(report(lines), encoding="utf-8")
    print(f"\n{table}:\n\n{report(lines)}")
    failed = [line for line in lines if line["problems"]]
    if not any(work.glob("*-*")):
        shutil.rmtree(work)
    return 1 if failed else 0


def read_lines(path: Path) -> list[Line]:
    """Trials that are on record; of one that was run twice, the last."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return list({(line["case"], line["seed"]): line for line in lines}.values())


def write_line(path: Path, result: Result) -> None:
    """Append a trial to the record."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**asdict(result), "between": result.between}) + "\n")


def describe(result: Result) -> str:
    """A trial in one line, or in more if something is wrong."""
    moment = "no fault" if not result.injected else f"at {result.committed} of {result.parts} parts"
    head = (
        f"{result.case} seed {result.seed}: {result.variant}, {moment}; "
        f"exits {result.exits}; {result.seconds:.0f} s"
    )
    if not result.problems:
        return f"ok    {head}"
    folder = result.notes.get("folder", "")
    return "\n".join(
        [f"WRONG {head}; see {folder}", *(f"      {text}" for text in result.problems)]
    )


def report(lines: Sequence[Line]) -> str:
    """The table, and what it rests on."""
    columns = (
        "case | trials | faults | between first and last commit | rows expected | lost | duplicated"
        " | parts written again | rows done again | s to the next part: median, worst"
        " | s to the end: median, worst | trials with problems"
    )
    rows = [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]
    groups = [
        (f"{name} {case.title}", [line for line in lines if line["case"] == name])
        for name, case in CASES.items()
    ]
    rows += [row(title, group) for title, group in groups if group]
    rows.append(row("**all**", lines))
    found = ", ".join(f"{name} {number}" for name, number in sorted(versions().items()))
    seeds = {name: sorted(line["seed"] for line in lines if line["case"] == name) for name in CASES}
    shown = ", ".join(f"{name}: {_range(numbers)}" for name, numbers in seeds.items() if numbers)
    wrong = [f"- {line['case']} seed {line['seed']}: {'; '.join(line['problems'])}"
             for line in lines if line["problems"]]  # fmt: skip
    return "\n".join(
        [
            "# Chaos: runs broken on purpose, continued, compared with an undisturbed one",
            "",
            *rows,
            "",
            "*Rows expected*: of all trials together. *Parts written again*: parts that were there "
            "when the fault happened and have another inode or time of change at the end, plus "
            "commits beyond the first of a part (not known for object stores; two commands without "
            "a lease are left out). *Rows done again*: by the command that finished, "
            "beyond those that had no part when it started. Seconds count from the restart, or "
            "from the fault where the command goes on by itself.",
            "",
            f"Seeds: {shown}; the corpus's is {WORKLOAD_SEED}. {platform.platform()}, "
            f"{_cores()} cores, Python {platform.python_version()}, {found}, commit {_commit()}.",
            "",
            *(["Not as promised:", "", *wrong, ""] if wrong else []),
        ]
    )


def row(title: str, lines: Sequence[Line]) -> str:
    """One line of the table."""
    timed = [line for line in lines if line["injected"] and line["committed"] is not None]
    between = sum(line["between"] for line in timed)
    share = f"{between} of {len(timed)}" if timed else "–"
    # two commands without a lease do all of it twice: that is what the lease is for
    leased = [line for line in lines if "no lease" not in line["variant"]]
    again = sum(line["rewritten"] + line["committed_twice"] for line in leased)
    cells = [
        title,
        len(lines),
        sum(line["injected"] for line in lines),
        share,
        f"{sum(line['rows'] for line in lines):,}",
        sum(line["lost"] for line in lines),
        sum(line["duplicated"] for line in lines),
        again,
        sum(line["rows_again"] or 0 for line in lines),
        _spread(line["first_part_s"] for line in lines),
        _spread(line["done_s"] for line in lines),
        sum(bool(line["problems"]) for line in lines),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f}, {max(known):.1f}" if known else "–"


def _range(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    whole = list(numbers) == list(range(first, last + 1))
    if whole and last > first:
        return f"{first}–{last}"
    return " ".join(map(str, numbers))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
