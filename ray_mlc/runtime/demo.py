"""The whole story on a synthetic corpus, in a few minutes on two cores and without downloads.

    DIR/examples/ · DIR/corpus/ · DIR/encoder/ · DIR/model/ · DIR/tags/

Each step is skipped where an earlier demo in the same folder has done it with the same settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mlc import synthetic
from ray_mlc.config import ScoreJob, TrainJob
from ray_mlc.errors import DataError, GateError
from ray_mlc.evaluation.evaluate import evaluate, evaluate_scores_at
from ray_mlc.evaluation.thresholds import fit_global_threshold
from ray_mlc.job_files import load_job
from ray_mlc.model.decisions import decide
from ray_mlc.model.engines.tfidf_engine import tfidf_classifier
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.evaluate import load_here
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.ray_data import RayBackend
from ray_mlc.runtime.ray_train import train
from ray_mlc.runtime.score import score
from ray_mlc.runtime.session import usable_cores
from ray_mlc.scoring.verify import Verdict, verify
from ray_mlc.training.baselines import fit_tfidf
from ray_mlc.training.examples import Examples, read_examples

ENCODER_TEXTS = 2_000
"""Texts that the word pieces are learned from."""
CORPUS_FILES = 4
UNIT_ROWS = 2_000
"""Small units, so that the bar moves."""
SETTINGS_FILE = "demo.json"


def make_data(folder: Path, *, rows: int, examples: int, seed: int, display: Display) -> None:
    """Write examples, corpus and an untrained encoder.

    Raises:
        DataError: If the folder holds something else.
    """
    settings = {"rows": rows, "examples": examples, "seed": seed}
    marker = folder / SETTINGS_FILE
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == settings:
        display.say(f"data: {folder} has it already")
        return
    if folder.exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: is not empty, and holds no demo of the same size and seed: "
            "name another folder, or remove it"
        )
    with display.stage("data", 3, "steps") as stage:
        held_out = max(500, examples // 4)
        synthetic.write_examples(
            folder / "examples", train=examples, validation=held_out, test=held_out, seed=seed
        )
        stage.advance(1)
        synthetic.write_corpus(folder / "corpus", rows=rows, files=CORPUS_FILES, seed=seed)
        stage.advance(1)
        texts = pq.read_table(folder / "examples/train.parquet", columns=["text"])["text"]
        synthetic.write_encoder(
            folder / "encoder", texts=texts.slice(0, ENCODER_TEXTS).to_pylist(), seed=seed
        )
        stage.advance(1)
    marker.write_text(json.dumps(settings), encoding="utf-8")


def train_and_compare(
    folder: Path, *, seed: int, display: Display
) -> dict[str, dict[str, float | None]]:
    """Fine-tune, and measure on the test examples beside TF-IDF and the dummy.

    Returns:
        Metrics by column title, each with one threshold fitted on validation.

    Raises:
        GateError: If the encoder does not beat TF-IDF's micro-F1.
    """
    job = load_job(
        TrainJob,
        options={
            "data.train": str(folder / "examples/train.parquet"),
            "data.validation": str(folder / "examples/validation.parquet"),
            "encoder": str(folder / "encoder"),
            "output": str(folder / "model"),
            "training": {**synthetic.DEMO_TRAINING, "seed": seed},
        },
    )
    train(job, display)
    model = open_model(str(folder / "model"))
    test = read_examples(str(folder / "examples/test.parquet"), label_set=model.label_set)
    classifier = load_here(model, dtype="float32", device="auto")
    with display.stage("evaluate", len(test), "examples") as stage:
        scores_NL = classifier.predict_proba(test.texts.to_pylist(), progress=stage.advance)
    figures = evaluate(
        test.targets_NL(),
        scores_NL,
        label_set=model.label_set,
        given_NL=decide(scores_NL, model.info.decision.rules(model.label_set)),
        rates_L=np.array(model.info.label_rates),
    )
    columns = {
        "encoder": figures["decision"],
        "TF-IDF": _tfidf(folder, test, display),
        "dummy": figures["dummy"],
    }
    ours, theirs = columns["encoder"]["f1_micro"], columns["TF-IDF"]["f1_micro"]
    if ours is None or theirs is None or ours <= theirs:
        raise GateError(f"the encoder's micro-F1 {ours} does not beat TF-IDF's {theirs}")
    return columns


def _tfidf(folder: Path, test: Examples, display: Display) -> dict[str, float | None]:
    """TF-IDF with logistic regression, its threshold fitted on validation as the encoder's is."""
    names = ("train", "validation")
    sets = [
        read_examples(str(folder / f"examples/{name}.parquet"), label_set=test.label_set)
        for name in names
    ]
    with display.stage("tf-idf", 3, "steps") as stage:
        learn, labels = sets[0], test.label_set
        model = fit_tfidf(
            learn.texts.to_pylist(), learn.targets_N, len(labels), workers=usable_cores()
        )
        stage.advance(1)
        baseline = tfidf_classifier(model, labels)
        held_out = baseline.predict_proba(sets[1].texts.to_pylist())
        threshold = fit_global_threshold(sets[1].targets_NL(), held_out)
        stage.advance(1)
        scores_NL = baseline.predict_proba(test.texts.to_pylist())
        stage.advance(1)
    return evaluate_scores_at(test.targets_NL(), scores_NL, np.float32(threshold))


def tag_and_verify(folder: Path, display: Display) -> tuple[dict[str, Any], Verdict]:
    """Score the corpus on Ray, and account for every row.

    Raises:
        GateError: If the rows do not add up.
    """
    job = load_job(
        ScoreJob,
        options={
            "model": str(folder / "model"),
            "input": str(folder / "corpus"),
            "output": str(folder / "tags"),
            "units.rows": UNIT_ROWS,
        },
    )
    summary = score(job, RayBackend([job], display.say), display)
    verdict = verify(str(folder / "tags"), deep=True)
    if not verdict.holds:
        raise GateError(f"{folder / 'tags'}: not every row is there once: {verdict.problems[:1]}")
    return summary, verdict


def tagged_documents(folder: Path, count: int = 3) -> list[Mapping[str, Any]]:
    """A few tagged documents: `text`, `labels` and the best scores."""
    parts = sorted((folder / "tags").rglob("*.parquet"))
    table = pq.read_table(parts[0])
    rows = [row for row in table.slice(0, 200).to_pylist() if row["labels"]][:count]
    texts = _texts(folder, rows)
    result: list[Mapping[str, Any]] = []
    for row, text in zip(rows, texts, strict=True):
        scores = {
            name.removeprefix("score_"): value
            for name, value in row.items()
            if name.startswith("score_")
        }
        best = dict(sorted(scores.items(), key=lambda item: -item[1])[:3])
        result.append(
            {
                "text": text,
                "source": row["source"],
                "row": row["row"],
                "labels": row["labels"],
                "best": best,
            }
        )
    return result


def _texts(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Texts of rows by their key: source and row."""
    tables: dict[str, pa.Table] = {}
    texts = []
    for row in rows:
        source = row["source"]
        if source not in tables:
            tables[source] = pq.read_table(folder / "corpus" / source, columns=["text"])
        texts.append(tables[source]["text"][row["row"]].as_py())
    return texts
