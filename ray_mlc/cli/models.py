"""Commands that make, measure and change models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_mlc.cli.options import (
    Address,
    DecisionFile,
    Device,
    DeviceOrNone,
    Dtype,
    DtypeOrNone,
    Hierarchy,
    JobFile,
    Json,
    Labels,
    LabelsOrNone,
    Progress,
    Quiet,
    Set,
    Text,
    TextOrNone,
    label_columns,
    print_json,
)


def train(
    job: JobFile = None,
    train_data: Annotated[
        str | None, typer.Option("--train", help="Examples to learn from.", show_default=False)
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Examples held out.", show_default=False)
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Hub id or folder; default distilbert/distilbert-base-uncased."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Model folder to write.", show_default=False)
    ] = None,
    text: TextOrNone = None,
    labels: LabelsOrNone = None,
    hierarchy: Hierarchy = None,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Fine-tune an encoder on Ray Train; the result is a model folder."""
    from ray_mlc.cli.tables import print_training
    from ray_mlc.config import TrainJob
    from ray_mlc.job_files import load_job

    options = {
        "data.train": train_data,
        "data.validation": validation,
        "data.text": text,
        "data.labels": None if labels is None else label_columns(labels),
        "data.hierarchy": None if hierarchy is None else str(hierarchy),
        "encoder": encoder,
        "output": output,
        "ray.address": address,
    }
    spec = load_job(TrainJob, job, options=options, overrides=set_ or ())
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.session import set_environment

    set_environment()  # Ray reads some of it when it is imported
    from ray_mlc.runtime.ray_train import train as run_train

    summary = run_train(spec, Display(quiet=quiet, progress=progress))
    if json:
        print_json(summary)
        return
    print_training(summary)


def tune(
    job: JobFile = None,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Search for settings on Ray Tune; the best trial becomes a model folder.

    Run the same command again to continue.
    """
    from ray_mlc.cli.tables import print_trials
    from ray_mlc.config import TuneJob
    from ray_mlc.job_files import load_job

    spec = load_job(TuneJob, job, options={"train.ray.address": address}, overrides=set_ or ())
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.session import set_environment

    set_environment()  # Ray Tune reads some of it when it is imported
    from ray_mlc.runtime.ray_tune import tune as run_tune

    summary = run_tune(spec, Display(quiet=quiet, progress=progress))
    if json:
        print_json(summary)
        return
    print_trials(summary)


def baseline(
    train_data: Annotated[
        str, typer.Option("--train", help="Examples to learn from.", show_default=False)
    ],
    validation: Annotated[
        str, typer.Option(help="Examples that thresholds are fitted on.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Model folder to write.", show_default=False)],
    test: Annotated[
        list[str] | None,
        typer.Option(help="Examples to measure on; default: validation, held out part by part."),
    ] = None,
    text: Text = "text",
    labels: Labels = "labels",
    max_features: Annotated[
        int | None,
        typer.Option(min=1, help="Words and pairs to keep; default: as memory allows by labels."),
    ] = None,
    min_df: Annotated[
        int, typer.Option(min=1, help="Examples that must hold a word or pair for it to count.")
    ] = 2,
    C: Annotated[
        float, typer.Option("--C", help="Inverse of the L2 penalty: larger fits closer.")
    ] = 15.0,
    seed: Annotated[int, typer.Option(help="Of the folds of the cross-validation.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What an encoder has to beat: the dummy, and TF-IDF with logistic regression.

    Its model folder serves `evaluate`, `thresholds`, `predict` and `score`, on any CPU.
    """
    from ray_mlc.cli.tables import print_baseline
    from ray_mlc.runtime.baseline import BaselineSettings, fit_baseline
    from ray_mlc.runtime.progress import Display

    result = fit_baseline(
        train_data,
        validation,
        test or [],
        output,
        text=text,
        labels=label_columns(labels),
        settings=BaselineSettings(C=C, min_df=min_df, max_features=max_features, seed=seed),
        display=Display(quiet=quiet),
    )
    if json:
        print_json(result)
        return
    print_baseline(result)


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or hub id; or a YAML job file.")],
    examples: Annotated[
        list[str] | None,
        typer.Argument(help="Examples: Parquet, CSV or JSONL.", show_default=False),
    ] = None,
    text: TextOrNone = None,
    labels: LabelsOrNone = None,
    dtype: DtypeOrNone = None,
    device: DeviceOrNone = None,
    output: Annotated[
        str | None,
        typer.Option(help="JSON to write, also s3://…; default: MODEL/evaluation/<examples>.json."),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show the texts of mistakes in the report.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="With --texts: shade the words that carried mistakes."),
    ] = False,
    explain_seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Time for --explain; the most costly mistakes come first; default 60.",
            show_default=False,
        ),
    ] = None,
    decision: DecisionFile = None,
    set_: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on labelled examples, beside the dummy that knows only label rates.

    Beside the JSON lies a report of the same name that ends in .html: figures with intervals,
    curves, confusions, mistakes. It opens without a network.
    """
    from ray_mlc.cli.tables import print_evaluation
    from ray_mlc.config import EvaluateJob
    from ray_mlc.job_files import load_job

    job = Path(model) if model.endswith((".yaml", ".yml")) else None
    options = {
        "model": model if job is None else None,
        "examples": examples or None,
        "text": text,
        "labels": None if labels is None else label_columns(labels),
        "dtype": dtype,
        "device": device,
        "output": output,
        "texts": texts or None,
        "explain": explain or None,
        "explain_seconds": explain_seconds,
        "decision": decision,
    }
    spec = load_job(EvaluateJob, job, options=options, overrides=set_ or ())
    from ray_mlc.runtime.evaluate import evaluate_model
    from ray_mlc.runtime.progress import Display

    result, written = evaluate_model(spec, Display(quiet=quiet))
    if json:
        print_json(result)
        return
    print_evaluation(result)
    typer.echo(f"written: {written}\nreport: {result['report']}")


def thresholds(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    examples: Annotated[
        list[str], typer.Argument(help="Validation examples: Parquet, CSV or JSONL.")
    ],
    objective: Annotated[
        str | None,
        typer.Option(help="f1, fbeta=2, precision>=0.9 or rate<=0.01.", show_default=False),
    ] = None,
    per_label: Annotated[
        bool, typer.Option("--per-label/--one", help="One for each label, or one for all.")
    ] = True,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Also scores to probabilities: none, temperature, platt or isotonic.",
            show_default=False,
        ),
    ] = None,
    hierarchy: Hierarchy = None,
    fallback: Annotated[
        int | None,
        typer.Option(
            min=0, help="Give a text without a label its so many best; 0: none.", show_default=False
        ),
    ] = None,
    fallback_floor: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Smallest score with which --fallback does.", show_default=False
        ),
    ] = None,
    text: Text = "text",
    labels: Labels = "labels",
    dtype: Dtype = "float32",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the folds of the cross-validation.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON for the decision; default: the model folder takes it."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit the thresholds that turn scores into labels, on validation examples.

    Thresholds are always fitted anew. Of objective, calibration, hierarchy and fall-back, what is
    not given stays as the model's decision has it (at first: f1, and none of the others).

    A precision is that of all labels together; a rate holds for each. Thresholds are fitted as if
    there were no hierarchy and no fall-back, figures are of the whole decision. A calibration
    changes no label. Runs that were begun keep to the decision they were begun with, and cannot go
    on with another: finish them first.
    """
    from ray_mlc.cli.tables import print_decision
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.thresholds import fit_decision

    result = fit_decision(
        model,
        examples,
        objective=objective,
        per_label=per_label,
        calibrate=calibrate,
        hierarchy=hierarchy,
        fallback=fallback,
        fallback_floor=fallback_floor,
        text=text,
        labels=label_columns(labels),
        dtype=dtype,
        device=device,
        seed=seed,
        output=output,
        display=Display(quiet=quiet),
    )
    if json:
        print_json(result)
        return
    print_decision(result)


def quantize(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Examples to calibrate with; default: what it was trained on."),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Examples to compare on; default: what it was validated on."),
    ] = None,
    text: Text = "text",
    labels: Labels = "labels",
    documents: Annotated[int, typer.Option(min=8, help="Documents to calibrate with.")] = 300,
    max_flips: Annotated[
        float,
        typer.Option(min=0, help="Labels that may change, as a share of those that float32 gives."),
    ] = 0.05,
    max_loss: Annotated[float, typer.Option(min=0, help="Micro-F1 that it may cost.")] = 0.005,
    seed: Annotated[int, typer.Option(help="Of the choice of documents.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add an int8 form for CPUs to a model folder, if it agrees with float32."""
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.quantize import quantize_model

    info = quantize_model(
        model,
        calibration=calibration or [],
        validation=validation or [],
        text=text,
        labels=label_columns(labels),
        documents=documents,
        max_flips=max_flips,
        max_loss=max_loss,
        seed=seed,
        display=Display(quiet=quiet),
    )
    if json:
        print_json(info)
        return
    from ray_mlc.model.engines.int8 import Agreement

    typer.echo(f"{model}: {Agreement.model_validate(info['agreement'])}")
    typer.echo("use it with --dtype int8, or --set engine.dtype=int8")


def predict(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    texts: Annotated[list[str], typer.Argument(help="Texts; - reads one per line from stdin.")],
    top: Annotated[int, typer.Option(min=1, help="Scores shown per text.")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which words carried each label.")
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Labels, scores and latency of single texts."""
    from ray_mlc.cli.tables import print_predictions
    from ray_mlc.runtime.evaluate import predict_texts
    from ray_mlc.runtime.progress import Display

    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    results = predict_texts(
        model, texts, dtype=dtype, device=device, explain=explain, display=Display(quiet=quiet)
    )
    if json:
        print_json(results)
        return
    print_predictions(results, top=top)


def export(
    model: Annotated[str, typer.Argument(help="Model folder, URI or hub id.")],
    format: Annotated[
        str,
        typer.Option(
            "--format", help="hub (what transformers loads), onnx or openvino.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default=False)
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            help="Hub id to upload to, with the token in HF_TOKEN; private unless --public.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see what is uploaded.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is there.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give a model away: a clean checkpoint for the hub, or a graph that runs without PyTorch.

    What is written is loaded anew and has to reproduce the model's canaries; else nothing is kept.
    """
    from ray_mlc.cli.tables import print_export
    from ray_mlc.runtime.export import Target, export_model
    from ray_mlc.runtime.progress import Display

    target = Target(output, push, public, overwrite)
    result = export_model(model, format, target, Display(quiet=quiet))
    if json:
        print_json(result)
        return
    print_export(result)
