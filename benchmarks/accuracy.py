"""Test figures over seeds, beside TF-IDF: a JSON line for each model and decision.

    python benchmarks/accuracy.py goemotions --data DATA --encoder ENCODER --seeds 0,1,2 \
        --work WORK [--set training.epochs=3 …] [--baseline] [--without threat] [--output FILE]

`DATA/goemotions/` holds train, validation and test as Parquet; the settings are those of
`jobs/public/goemotions.yaml` (`--job`: of another one) and `--set`. Everything is done by commands
that users have; thresholds are fitted on validation, figures are of the test split. A model that is
in WORK already is measured only. `--seeds ""` trains nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lines import tell

COMMAND = Path(sys.executable).parent / "ray-mlc"
JOBS = Path(__file__).parent.parent / "jobs" / "public"
FIGURES = (
    *("f1_micro", "f1_macro", "f1_samples", "average_precision_macro", "average_precision_micro"),
    *("roc_auc_macro", "roc_auc_micro", "accuracy", "binary_accuracy", "loss"),
)


def ray_mlc(*words: str) -> Any:
    """Run a command to its end; what it prints as JSON."""
    process = subprocess.run(
        [str(COMMAND), *words, "--json", "--quiet"], stdout=subprocess.PIPE, check=False
    )
    if process.returncode:
        sys.exit(f"{' '.join(words)}: exit code {process.returncode}")
    return json.loads(process.stdout)


def figures(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """The figures shown, in hundredths but for the loss."""
    return {
        name: value if value is None or name == "loss" else round(100 * value, 2)
        for name, value in ((name, metrics[name]) for name in FIGURES)
    }


def ranked(result: Mapping[str, Any], without: Sequence[str]) -> dict[str, float]:
    """What is the same at every threshold: nDCG@5, and mean average precision of most labels."""
    found = {}
    if ranking := result.get("ranking"):
        found["ndcg_at_5"] = round(100 * ranking["ndcg@5"]["value"], 2)
    if without:
        rest = [row for row in result["per_label"] if row["label"] not in without]
        values = [row["average_precision"] for row in rest]
        known = [value for value in values if value is not None]
        found["average_precision_macro_without"] = round(100 * statistics.mean(known), 2)
    return found


def measure(
    folder: Path,
    data: Path,
    test: str,
    model: Path,
    columns: Sequence[str],
    without: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A trained model at 0.5, at one threshold, and at one for each label."""
    result = ray_mlc("evaluate", str(model), str(data / test), *columns)
    yield {"decision": "0.5", **figures(result["at_half"]), **ranked(result, without)}
    yield {"decision": "dummy", **figures(result["dummy"])}
    yield {"decision": "one threshold", **figures(result["decision"])}
    if "first_window" in result:
        yield {"decision": "one threshold, first window", **figures(result["first_window"])}
    own = folder / f"{model.name}-own.json"
    validation = str(data / "validation.parquet")
    ray_mlc("thresholds", str(model), validation, *columns, "--output", str(own))
    words = ["--decision", str(own), "--output", str(folder / f"{model.name}-own-evaluation.json")]
    result = ray_mlc("evaluate", str(model), str(data / test), *columns, *words)
    yield {"decision": "one per label", **figures(result["decision"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("set", help="folder of the data, and name of the job")
    parser.add_argument("--job", help="of jobs/public; default: the set's")
    parser.add_argument("--labels", default="labels", help="label column")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", help="default: the job's")
    parser.add_argument("--work", type=Path, required=True, help="models and evaluations")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--test", default="test.parquet")
    parser.add_argument("--without", action="append", default=[], help="label; one more mean")
    parser.add_argument("--name", help="of the settings, default: the set's")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--baseline", action="store_true", help="TF-IDF too")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    data, name = asked.data / asked.set, asked.name or asked.set
    columns = ["--labels", asked.labels]
    split = {part: str(data / f"{part}.parquet") for part in ("train", "validation")}
    lines: list[dict[str, Any]] = []

    def add(line: dict[str, Any]) -> None:
        tell(line, asked.output)
        lines.append(line)

    if asked.baseline:
        words = ["--train", split["train"], "--validation", split["validation"]]
        words += ["--test", str(data / asked.test), "--output", str(asked.work / f"{name}-tfidf")]
        words += columns
        started = time.monotonic()
        result = ray_mlc("baseline", *words)
        seconds = round(time.monotonic() - started)
        folder = str(asked.work / f"{name}-tfidf")
        evaluated = ray_mlc("evaluate", folder, str(data / asked.test), *columns)
        of_scores = ranked(evaluated, asked.without)
        titles = {"at_half": "0.5", "one_threshold": "one threshold", "decision": "one per label"}
        for key, title in titles.items():
            line = {"set": asked.set, "name": "TF-IDF", "decision": title}
            add(line | figures(result[key]) | of_scores | {"seconds": seconds})
    for seed in filter(None, asked.seeds.split(",")):
        model = asked.work / f"{name}-{seed}"
        words = [str(JOBS / f"{asked.job or asked.set}.yaml"), "--output", str(model)]
        words += [word for part, path in split.items() for word in (f"--{part}", path)]
        words += ["--encoder", asked.encoder] if asked.encoder else []
        words += [word for item in asked.settings for word in ("--set", item)]
        started = time.monotonic()
        ray_mlc(
            "train",
            *words,
            "--set",
            f"training.seed={seed}",
            "--set",
            f"data.labels={asked.labels}",
        )
        seconds = round(time.monotonic() - started)
        for found in measure(asked.work, data, asked.test, model, columns, asked.without):
            line = {"set": asked.set, "name": name, "seed": int(seed), "settings": asked.settings}
            add(line | found | {"seconds": seconds})
    for title in dict.fromkeys(line["decision"] for line in lines if "seed" in line):
        runs = [line for line in lines if "seed" in line and line["decision"] == title]
        summary: dict[str, Any] = {"set": asked.set, "name": name, "decision": title}
        for figure in (*FIGURES, "ndcg_at_5", "average_precision_macro_without"):
            values = [run[figure] for run in runs if run.get(figure) is not None]
            if values:
                summary[figure] = round(statistics.mean(values), 4)
                summary[f"{figure}_range"] = [min(values), max(values)]
        add(summary | {"seeds": len(runs)})


if __name__ == "__main__":
    main()
