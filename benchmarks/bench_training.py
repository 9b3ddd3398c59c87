"""Fine-tuning: our loop beside Hugging Face's Trainer, same encoder, data, settings and precision.

    python benchmarks/bench_training.py --encoder ENCODER --train TRAIN --validation VALIDATION \
        [--rows 4000] [--epochs 1] [--batch-size 32] [--max-tokens 256] [--repeats 5]

Each run is a process of its own, in turns; a turn's number is its seed. Only training is timed, not
imports, tokenizing and loading. The Trainer runs as its documentation shows, with dynamic padding;
`trainer_grouped` lets it put documents of like length into one batch. All learn with one rate for
encoder and head, the same first bias of the head, AdamW, and the same schedule, so that what they
learn can be compared: average precision on the validation examples, computed by the same code.
It needs `pip install accelerate`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lines import tell

SYSTEMS = ("ray_mlc", "trainer", "trainer_grouped")


def job_of(asked: argparse.Namespace, seed: int) -> Any:
    """The settings of all systems, as a job of ours."""
    from ray_mlc.config import TrainJob
    from ray_mlc.job_files import load_job

    options = {"train": asked.train, "validation": asked.validation}
    settings = {
        "epochs": asked.epochs,
        "batch_size": asked.batch_size,
        "max_batch_tokens": asked.batch_size * asked.max_tokens,
        "max_tokens": asked.max_tokens,
        "learning_rate": asked.learning_rate,
        "head_learning_rate": "null",
        "seed": seed,
        "dtype": asked.dtype,
    }
    return load_job(
        TrainJob,
        options={"encoder": asked.encoder, "output": "unused"},
        overrides=[
            *(f"data.{name}={path}" for name, path in options.items()),
            *(f"training.{name}={value}" for name, value in settings.items()),
        ],
    )


class Setup:
    """What both loops start from: examples as numbers, and a new model."""

    def __init__(self, asked: argparse.Namespace, seed: int) -> None:
        import torch

        from ray_mlc.model.encoder import new_classifier_model
        from ray_mlc.runtime.prepare import prepare
        from ray_mlc.runtime.progress import Display
        from ray_mlc.training.loop import training_dtype
        from ray_mlc.training.parameters import freeze_unused, head_bias

        self.job = job_of(asked, seed)
        self.prepared = prepare(self.job, Display(quiet=True))
        self.settings = self.job.training
        torch.set_num_threads(asked.threads)
        self.model = new_classifier_model(
            self.prepared.encoder,
            self.prepared.label_set,
            head_bias=head_bias("prior", self.prepared.rates_L, len(self.prepared.train)),
            seed=seed,
        )
        freeze_unused(self.model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.amp_dtype = training_dtype(self.settings.dtype, self.device)

    def fitter(self, model: Any) -> Any:
        """Our loop around a model: to train it, or to score the validation examples.

        On CPU it changes the model's layers: never before another loop trains it.
        """
        from ray_mlc.training.loop import Fitter

        return Fitter(
            model=model.to(self.device),
            wrapped=model,
            train=self.prepared.train,
            config=self.settings,
            pad_id=self.prepared.tokenizer.pad_id,
            device=self.device,
            amp_dtype=self.amp_dtype,
        )

    def measured(self, model: Any, seconds: float) -> dict[str, Any]:
        """Speed, and what was learnt."""
        from ray_mlc.evaluation.evaluate import evaluate_scores_at
        from ray_mlc.evaluation.thresholds import fit_global_threshold

        targets = self.prepared.validation_targets
        scores = self.fitter(model).predict(self.prepared.validation)["max"]
        threshold = np.float32(fit_global_threshold(targets, scores))
        metrics = evaluate_scores_at(targets, scores, threshold)
        tokens = int(self.prepared.train.ids.lengths.sum()) * self.settings.epochs
        return {
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "average_precision_micro": metrics["average_precision_micro"],
            "f1_micro": metrics["f1_micro"],
            "dtype": str(self.amp_dtype),
        }


def run_ours(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Our loop, without Ray around it."""
    setup = Setup(asked, seed)
    started = time.monotonic()
    fitter = setup.fitter(setup.model)
    for epoch in range(asked.epochs):
        fitter.run_epoch(epoch, on_step=lambda step, loss: None)
    return setup.measured(setup.model, time.monotonic() - started)


def run_trainer(asked: argparse.Namespace, seed: int, *, grouped: bool) -> dict[str, Any]:
    """Hugging Face's loop."""
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from ray_mlc.model.tokenization import load_pretrained_tokenizer

    setup = Setup(asked, seed)
    bfloat16 = setup.amp_dtype is not None
    train = setup.prepared.train
    targets = train.targets_BL(np.arange(len(train)))
    rows = [
        {"input_ids": train.ids.window(index).tolist(), "labels": targets[index].tolist()}
        for index in range(len(train))
    ]
    collate = DataCollatorWithPadding(load_pretrained_tokenizer(setup.prepared.encoder))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=asked.batch_size,
            num_train_epochs=asked.epochs,
            learning_rate=asked.learning_rate,
            weight_decay=setup.settings.weight_decay,
            warmup_steps=setup.settings.warmup,
            max_grad_norm=setup.settings.max_grad_norm,
            lr_scheduler_type="linear",
            bf16=bfloat16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            train_sampling_strategy="group_by_length" if grouped else "random",
        )
        trainer = Trainer(
            model=setup.model, args=arguments, train_dataset=rows, data_collator=collate
        )
        started = time.monotonic()
        trainer.train()
        return setup.measured(setup.model, time.monotonic() - started)


def first_rows(path: str, rows: int, folder: Path) -> str:
    """A file of some rows of another one, spread over it."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    take = np.unique(np.linspace(0, len(table) - 1, min(rows, len(table))).astype(int))
    target = folder / Path(path).name
    pq.write_table(table.take(take), target)
    return str(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.one:
        system, seed = asked.one[0], int(asked.one[1])
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "ray_mlc": lambda: run_ours(asked, seed),
            "trainer": lambda: run_trainer(asked, seed, grouped=False),
            "trainer_grouped": lambda: run_trainer(asked, seed, grouped=True),
        }
        print(json.dumps(runs[system]()))
        return
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        train = first_rows(asked.train, asked.rows, Path(name))
        options = {**vars(asked), "train": train}
        for seed in range(asked.repeats):
            for system in asked.systems.split(","):
                words = [sys.executable, __file__, "--one", system, str(seed)]
                for key in ("encoder", "train", "validation", "epochs", "batch_size", "max_tokens"):
                    words += [f"--{key.replace('_', '-')}", str(options[key])]
                for key in ("learning_rate", "dtype", "threads"):
                    words += [f"--{key.replace('_', '-')}", str(options[key])]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{system}: {done.stderr[-3000:]}")
                results.setdefault(system, []).append(json.loads(done.stdout.splitlines()[-1]))
            last = {key: round(runs[-1]["tokens_per_s"]) for key, runs in results.items()}
            print(f"turn {seed + 1} of {asked.repeats}: {last}", file=sys.stderr, flush=True)
    ours = [run["tokens_per_s"] for run in results[asked.systems.split(",")[0]]]
    for system, found in results.items():
        speeds = [run["tokens_per_s"] for run in found]
        line = {
            "system": system,
            "data": Path(asked.train).parent.name,
            "rows": asked.rows,
            "epochs": asked.epochs,
            "batch_size": asked.batch_size,
            "max_tokens": asked.max_tokens,
            "dtype": found[0]["dtype"],
            "tokens_per_s": round(statistics.median(speeds)),
            "spread": [round(min(speeds)), round(max(speeds))],
            "seconds": round(statistics.median(run["seconds"] for run in found), 1),
            "ours_is_times": round(
                statistics.median(a / b for a, b in zip(ours, speeds, strict=True)), 2
            ),
            "repeats": len(found),
        }
        for metric in ("average_precision_micro", "f1_micro"):
            values = [run[metric] for run in found]
            line[metric] = round(statistics.mean(values), 4)
            line[f"{metric}_spread"] = [round(min(values), 4), round(max(values), 4)]
        tell(line, asked.output)


if __name__ == "__main__":
    main()
