"""The long form of the fuzz: many examples, in processes that may crash without taking it along.

    python -m fuzz.long --examples 20000 --seed 1 [--record FILE]     (in tests/; `make fuzz`)

A worker goes through blocks of 1,000 examples, each block with a seed of its own, and writes the
number of the example down before it begins it: if the process dies or hangs, that example is named.
Everything but the allowed outcomes is a finding; findings do not end the run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 1000
HANG_S = 180.0
"""An example takes milliseconds; one that takes so long hangs."""
MEMORY_BYTES = 12 * 2**30
"""Address space of a worker: what asks for more fails, as it should, in the example alone."""
FINDINGS_SHOWN = 20
SHOWN = 3000
"""Characters of a finding."""


def main() -> None:
    """Parse the arguments; be a worker or the one who watches them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="append one JSON line per block")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help="block to begin with")
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker, seed=asked.seed, first=asked.first, examples=asked.examples)
    else:
        sys.exit(watch(asked.examples, asked.seed, asked.first, asked.record))


def watch(examples: int, seed: int, first: int, record: Path | None) -> int:
    """Run block after block; the exit code: 1 if there was any finding."""
    total: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray_mlc_fuzz_") as name:
        folder = Path(name)
        for block in range(-(-examples // BLOCK)):
            size = min(BLOCK, examples - block * BLOCK)
            result = _run_block(folder, seed, first + block, size)
            total.update(result["outcomes"])
            findings += result["findings"]
            done = sum(total.values())
            speed = done / (time.monotonic() - started)
            print(
                f"seed {seed} block {first + block}: {done:,} examples, {len(findings)} findings, "
                f"{speed:.1f}/s: {dict(sorted(total.items()))}",
                flush=True,
            )
            if record is not None:
                with record.open("a") as file:
                    file.write(json.dumps({"seed": seed, "block": first + block, **result}) + "\n")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        kinds.setdefault(_kind(finding), []).append(finding)
    for same in list(kinds.values())[:FINDINGS_SHOWN]:
        print(f"{len(same)} × {json.dumps(same[0])[:SHOWN]}")
    return 1 if findings else 0


def _kind(finding: dict[str, Any]) -> str:
    """What findings of one cause have in common."""
    return f"{finding.get('where')} {str(finding.get('error')).split(' ')[0]}"


def _run_block(folder: Path, seed: int, block: int, size: int) -> dict[str, Any]:
    """One worker process; what came of its examples, also if it dies."""
    log = folder / f"{seed}-{block}"
    command = [sys.executable, "-X", "faulthandler", "-m", "fuzz.long", "--worker", str(log)]
    command += ["--seed", str(seed), "--first", str(block), "--examples", str(size)]
    with Path(f"{log}.stderr").open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
        ended = _wait(process, log)
    outcomes: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    begun: dict[str, Any] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        entry = json.loads(line)
        if "begin" in entry:
            begun = entry
        else:
            outcomes[entry["outcome"]] += 1
            if entry["outcome"] == "FINDING":
                findings.append({"seed": seed, "block": block, **entry})
            begun = {}
    if process.returncode or begun or ended:
        tail = Path(f"{log}.stderr").read_text(errors="replace")[-2000:]
        outcomes["CRASH"] += 1
        how = ended or f"exit code {process.returncode}"
        findings.append({"seed": seed, "block": block, **begun, "crash": how, "stderr": tail})
    return {"outcomes": dict(outcomes), "findings": findings}


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait while the log grows; what is wrong if it does not."""
    size, since = -1, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            now = log.stat().st_size if log.exists() else -1
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > HANG_S:
                process.kill()
                process.wait()
                return f"no progress for {HANG_S:.0f} s"
        else:
            return ""


def work(log: Path, *, seed: int, first: int, examples: int) -> None:
    """Go through a block of examples."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import pyarrow as pa
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as hypothesis_seed

    from fuzz.examples import EXAMPLES, Example
    from fuzz.world import doubles, make_model

    pa.set_cpu_count(1)  # a few rows are no work for threads
    number = 0
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with (
        log.open("w", buffering=1) as file,
        tempfile.TemporaryDirectory(prefix="ray_mlc_fuzz_") as name,
        doubles(),
    ):
        model = make_model(Path(name))

        @hypothesis_seed(seed * 1_000_003 + first)
        @options
        @given(EXAMPLES)
        def go(example: Example) -> None:
            nonlocal number
            number += 1
            if number <= examples:
                _note(file.write, number, example, model)

        go()


def _note(write: Callable[[str], object], number: int, example: Any, model: Path) -> None:
    """Run an example between two lines of the log."""
    write(json.dumps({"begin": number, "example": repr(example)}) + "\n")
    entry: dict[str, Any] = {"number": number}
    try:
        entry["outcome"] = example.run(model)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        entry |= {
            "outcome": "FINDING",
            "error": f"{type(error).__name__}: {error}"[:1500],
            "where": _place(error),
            "example": repr(example),
        }
    write(json.dumps(entry) + "\n")


def _place(error: BaseException) -> list[str]:
    """The last frames of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{Path(f.filename).name}:{f.lineno}"
        for f in frames
        if "ray_mlc" in f.filename or "fuzz" in f.filename
    ]
    return ours[-5:]


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
