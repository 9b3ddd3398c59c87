"""All commands, one short function each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_mlc.errors import ConfigError, GateError, LimitError, ResourceError

if TYPE_CHECKING:
    from ray_mlc.config import ScoreJob

app = typer.Typer(
    name="ray-mlc",
    help="Fine-tune encoders for multi-label text classification, and tag corpora of any size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make, look at and split examples.", no_args_is_help=True)
config_app = typer.Typer(help="Job files: their schema, and what they come to.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

JobFile = Annotated[Path | None, typer.Argument(help="YAML job file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other key of the job: section.key=value.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to use; default: RAY_ADDRESS, else a Ray that ends with the command.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, int8 or auto.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _template(text: str | None) -> str | None:
    r"""A text option as it is meant: shells pass on `\n` as it was typed."""
    if text is None or "{" not in text:
        return text
    return text.replace("\\n", "\n").replace("\\t", "\t")


TEXT_HELP = 'Text column, or a template such as "{title}\\n{body}"'
Text = Annotated[str, typer.Option(help=f"{TEXT_HELP}.", callback=_template)]
LABELS_HELP = "Label column, or 0/1 columns separated by commas (a single one: name,)"
Labels = Annotated[str, typer.Option(help=f"{LABELS_HELP}.")]
Hierarchy = Annotated[
    Path | None,
    typer.Option(
        help="YAML of label parents, child: parent; they are given with the child.",
        show_default=False,
    ),
]
DecisionFile = Annotated[
    str | None,
    typer.Option(
        "--decision",
        help="Decision that `thresholds --output` wrote; default: the model's.",
        show_default=False,
    ),
]


def _version(shown: bool) -> None:
    if shown:
        from ray_mlc import __version__

        typer.echo(f"ray-mlc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write everything.")] = Path(
        "ray-mlc-demo"
    ),
    rows: Annotated[int, typer.Option(min=100, help="Documents to tag.")] = 24_000,
    examples: Annotated[int, typer.Option(min=500, help="Training examples.")] = 8_000,
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and order.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Show the whole story on a synthetic corpus: train, compare, tag, verify. No downloads."""
    from ray_mlc.cli.tables import print_demo, print_metrics, print_score_summary
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.session import ray_session

    display = Display(quiet=quiet)
    with ray_session():
        from ray_mlc.runtime import demo as story

        story.make_data(folder, rows=rows, examples=examples, seed=seed, display=display)
        columns = story.train_and_compare(folder, seed=seed, display=display)
        print_metrics("test examples, thresholds fitted on validation", columns)
        summary, verdict = story.tag_and_verify(folder, display)
    print_score_summary(str(folder / "tags"), summary)
    print_demo(folder, verdict, story.tagged_documents(folder))


@data_app.command("convert")
def data_convert(
    source: Annotated[
        list[str],
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet: files, folders, globs, archives; or a hub data set."
        ),
    ],
    output: Annotated[str, typer.Argument(help="Parquet file of examples to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="jigsaw, go_emotions or multi_eurlex: sets the rest.", show_default=False
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help=f"{TEXT_HELP}; default text.", callback=_template, show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help=f"{LABELS_HELP}; default labels.",
            show_default=False,
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Id column; default: id, if there.", show_default=False),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Splits a text column of labels.", show_default=False)
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            help="Names of label ids: a JSON list, JSON id to name, a text file with a name a "
            "line, or names separated by commas.",
            show_default=False,
        ),
    ] = None,
    labels_from: Annotated[
        list[str] | None,
        typer.Option(help="File(s) with the label columns, joined by the id.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a hub data set or preset.", show_default=False)
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(help="Configuration of a hub data set or preset.", show_default=False),
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="EuroVoc level 1, 2 or 3; default 1.", show_default=False)
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Language of MultiEURLEX, or of names in several; default en.", show_default=False
        ),
    ] = None,
    skip_null_text: Annotated[
        bool | None,
        typer.Option(
            "--skip-null-text/--keep-null-text",
            help="Leave out rows without a text; default: only multi_eurlex does.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn CSV, JSONL, Parquet or a hub data set into examples: id, text, labels."""
    from dataclasses import asdict

    from ray_mlc.cli.tables import print_conversion
    from ray_mlc.runtime.progress import Display
    from ray_mlc.training.convert import convert
    from ray_mlc.training.names import parse_names
    from ray_mlc.training.presets import Preset

    with Display(quiet=quiet).stage("convert", None, "rows") as stage:
        summary = convert(
            source,
            output,
            preset=Preset.named(preset, level=level, language=language),
            text=text,
            labels=None if labels is None else _columns(labels),
            id=id,
            delimiter=delimiter,
            names=None if names is None else parse_names(names, language=language or "en"),
            labels_from=labels_from,
            split=split,
            subset=subset,
            skip_null_text=skip_null_text,
            overwrite=overwrite,
            progress=stage.advance,
        )
    if json:
        _print_json(asdict(summary))
        return
    print_conversion(summary)


Near = Annotated[
    float,
    typer.Option(
        help="Jaccard similarity from which texts are nearly the same; 0: do not look.",
        min=0,
        max=1,
    ),
]


@data_app.command("explore")
def data_explore(
    examples: Annotated[
        list[str], typer.Argument(help="Examples: Parquet, CSV or JSONL; each path is a split.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="HTML to write; default: exploration.html, with --json none."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Model folder, encoder or hub id: lengths in its tokens too.", show_default=False
        ),
    ] = None,
    text: Text = "text",
    labels: Labels = "labels",
    near: Near = 0.8,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show beginnings of texts, not only ids.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at examples before training: lengths, labels, duplicates, in one HTML page."""
    from ray_mlc.cli.tables import print_exploration
    from ray_mlc.runtime.explore import explore_examples
    from ray_mlc.runtime.progress import Display

    page = output or (None if json else Path("exploration.html"))
    figures = explore_examples(
        examples,
        text=text,
        labels=_columns(labels),
        tokenizer=tokenizer,
        near=near,
        texts=texts,
        output=page,
        display=Display(quiet=quiet),
    )
    if json:
        _print_json(figures)
        return
    print_exploration(figures)
    typer.echo(f"written: {page}")


@data_app.command("split")
def data_split(
    examples: Annotated[str, typer.Argument(help="Examples: Parquet, CSV or JSONL.")],
    output: Annotated[str, typer.Argument(help="Folder for one Parquet file per part.")],
    by: Annotated[
        str, typer.Option(help="stratified (by labels), time, random, or given (by a column).")
    ] = "stratified",
    column: Annotated[
        str | None,
        typer.Option(help="Column of the time, or of the part's name.", show_default=False),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(help="Names and shares; default train=0.8,validation=0.1,test=0.1."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Column whose equal values stay together.", show_default=False),
    ] = None,
    group_duplicates: Annotated[
        str, typer.Option(help="Texts that stay together: exact (the same), near, none.")
    ] = "exact",
    near: Near = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of what is left to chance.")] = 0,
    text: Text = "text",
    labels: Labels = "labels",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the parts of an earlier split.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Split examples into train, validation and test; say what leaks between them."""
    from ray_mlc.cli.tables import print_split
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.split import split_examples

    result = split_examples(
        examples,
        output,
        by=by,
        column=column,
        parts=parts,
        group=group,
        group_duplicates=group_duplicates,
        near=near,
        seed=seed,
        text=text,
        labels=_columns(labels),
        overwrite=overwrite,
        display=Display(quiet=quiet),
    )
    if json:
        _print_json(result)
        return
    print_split(result)


@app.command()
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
    text: Annotated[
        str | None,
        typer.Option(help=f"{TEXT_HELP}; default text.", callback=_template, show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help=f"{LABELS_HELP}; default labels.",
            show_default=False,
        ),
    ] = None,
    hierarchy: Hierarchy = None,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune an encoder on Ray Train; the result is a model folder."""
    from ray_mlc.cli.tables import print_metrics
    from ray_mlc.config import TrainJob, load_job
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.ray_train import train as run_train

    options = {
        "data.train": train_data,
        "data.validation": validation,
        "data.text": text,
        "data.labels": None if labels is None else _columns(labels),
        "data.hierarchy": None if hierarchy is None else str(hierarchy),
        "encoder": encoder,
        "output": output,
        "ray.address": address,
    }
    spec = load_job(TrainJob, job, options=options, overrides=set_ or ())
    summary = run_train(spec, Display(quiet=quiet))
    if json:
        _print_json(summary)
        return
    columns = {"at 0.5": summary["metrics"]["at_half"]}
    columns[f"at {summary['threshold']:.3f}"] = summary["metrics"]["decision"]
    print_metrics("validation", columns)
    typer.echo(f"model: {summary['model']} (epoch {summary['best_epoch']})")


@app.command()
def tune(
    job: JobFile = None,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for settings on Ray Tune; the best trial becomes a model folder.

    Run the same command again to continue.
    """
    from ray_mlc.cli.tables import print_trials
    from ray_mlc.config import TuneJob, load_job

    spec = load_job(TuneJob, job, options={"train.ray.address": address}, overrides=set_ or ())
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.session import set_environment

    set_environment()  # Ray Tune reads some of it when it is imported
    from ray_mlc.runtime.ray_tune import tune as run_tune

    summary = run_tune(spec, Display(quiet=quiet))
    if json:
        _print_json(summary)
        return
    print_trials(summary)


@app.command()
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
        labels=_columns(labels),
        settings=BaselineSettings(C=C, min_df=min_df, max_features=max_features, seed=seed),
        display=Display(quiet=quiet),
    )
    if json:
        _print_json(result)
        return
    print_baseline(result)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    examples: Annotated[list[str], typer.Argument(help="Examples: Parquet, CSV or JSONL.")],
    text: Text = "text",
    labels: Labels = "labels",
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(help="JSON to write; default: MODEL/evaluation/<examples>.json."),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show the texts of mistakes in the report.")
    ] = False,
    decision: DecisionFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on labelled examples, beside the dummy that knows only label rates.

    Beside the JSON lies a report of the same name that ends in .html: figures with intervals,
    curves, confusions, mistakes. It opens without a network.
    """
    from ray_mlc.cli.tables import print_evaluation
    from ray_mlc.runtime.evaluate import evaluate_model
    from ray_mlc.runtime.progress import Display

    result, written = evaluate_model(
        model,
        examples,
        text=text,
        labels=_columns(labels),
        dtype=dtype,
        device=device,
        output=output,
        texts=texts,
        decision=decision,
        display=Display(quiet=quiet),
    )
    if json:
        _print_json(result)
        return
    print_evaluation(result)
    typer.echo(f"written: {written}\nreport: {result['report']}")


@app.command()
def thresholds(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    examples: Annotated[
        list[str], typer.Argument(help="Validation examples: Parquet, CSV or JSONL.")
    ],
    objective: Annotated[
        str, typer.Option(help="f1, fbeta=2, precision>=0.9 or rate<=0.01.")
    ] = "f1",
    per_label: Annotated[
        bool, typer.Option("--per-label/--one", help="One for each label, or one for all.")
    ] = True,
    calibrate: Annotated[
        str,
        typer.Option(help="Also scores to probabilities: none, temperature, platt or isotonic."),
    ] = "none",
    hierarchy: Hierarchy = None,
    fallback: Annotated[
        int | None,
        typer.Option(
            min=1, help="Give a text without a label its so many best.", show_default=False
        ),
    ] = None,
    fallback_floor: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest score with which --fallback does.")
    ] = 0.0,
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

    A precision is that of all labels together; a rate holds for each. Thresholds are fitted as if
    there were no hierarchy and no fall-back, figures are of the whole decision. A calibration
    changes no label. Runs that were begun keep to the decision they were begun with, and cannot go
    on with another: finish them first.
    """
    from ray_mlc.cli.tables import print_calibration, print_metrics
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
        labels=_columns(labels),
        dtype=dtype,
        device=device,
        seed=seed,
        output=output,
        display=Display(quiet=quiet),
    )
    if json:
        _print_json(result)
        return
    titles = {
        "at_half": "at 0.5",
        "before": "before",
        "fitted": "fitted here",
        "held_out": "held out",
    }
    metrics = {titles[name]: values for name, values in result["metrics"].items()}
    print_metrics(f"thresholds for {objective}", metrics)
    if result["calibration"] is not None:
        print_calibration(result["calibration"])
    for name, found in result["reached"].items():
        typer.echo(
            f"{titles[name]}: precision {found['precision']:.4f} and recall {found['recall']:.4f} "
            f"over all labels; no label for more than {found['largest_rate']:.2%} of documents"
        )
    own = result["decision"]["per_label"]
    if own:
        typer.echo(
            f"{len(own)} labels from {min(own.values()):.4f} to {max(own.values()):.4f}, others "
            f"from {result['decision']['threshold']:.4f}"
        )
    else:
        typer.echo(f"all labels from {result['decision']['threshold']:.4f}")
    typer.echo(f"written: {result['written']}")


@app.command()
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
        labels=_columns(labels),
        documents=documents,
        max_flips=max_flips,
        max_loss=max_loss,
        seed=seed,
        display=Display(quiet=quiet),
    )
    if json:
        _print_json(info)
        return
    from ray_mlc.model.engines.int8 import Agreement

    typer.echo(f"{model}: {Agreement.model_validate(info['agreement'])}")
    typer.echo("use it with --dtype int8, or --set engine.dtype=int8")


@app.command()
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
) -> None:
    """Labels, scores and latency of single texts."""
    from ray_mlc.cli.tables import print_predictions
    from ray_mlc.runtime.evaluate import predict_texts

    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    results = predict_texts(model, texts, dtype=dtype, device=device, explain=explain)
    if json:
        _print_json(results)
        return
    print_predictions(results, top=top)


@app.command()
def score(
    job: JobFile = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder, URI or hub id.", show_default=False)
    ] = None,
    input: Annotated[
        str | None,
        typer.Option("--input", help="Parquet folder, glob, file or URI.", show_default=False),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Output folder or URI.", show_default=False)
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help=f"{TEXT_HELP}; default text.", callback=_template, show_default=False),
    ] = None,
    decision: DecisionFile = None,
    local: Annotated[bool, typer.Option("--local", help="One process, without Ray.")] = False,
    add_new: Annotated[
        bool, typer.Option("--add-new", help="Score new input files too, as the run's next night.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace another command that writes there.")
    ] = False,
    no_lease: Annotated[
        bool,
        typer.Option("--no-lease", help="For stores without conditional writes: one writer only!"),
    ] = False,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tag a corpus; run the same command again to continue."""
    from ray_mlc.cli.tables import print_score_summary
    from ray_mlc.config import ScoreJob, load_job

    options = {
        "model": model,
        "input": input,
        "output": output,
        "input.text": text,
        "decision": decision,
        "ray.address": address,
    }
    spec = load_job(ScoreJob, job, options=options, overrides=set_ or ())
    try:
        summary = _score(
            spec,
            local=local,
            quiet=quiet,
            add_new=add_new,
            take_over=take_over,
            use_lease=not no_lease,
        )
    except LimitError:
        if json:
            from ray_mlc.scoring.ledger import read_run
            from ray_mlc.storage import open_storage

            _print_json(read_run(open_storage(spec.output.path)).summary)
        raise
    if json:
        _print_json(summary)
        return
    print_score_summary(spec.output.path, summary)


def _score(spec: ScoreJob, *, local: bool, quiet: bool, **options: bool) -> dict[str, Any]:
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.score import Backend, find_inputs
    from ray_mlc.runtime.score import score as run_score

    inputs = find_inputs(spec)  # a typo should not cost an import of Ray
    backend: Backend
    if local:
        from ray_mlc.runtime.local import LocalBackend

        backend = LocalBackend()
    else:
        from ray_mlc.runtime.session import set_environment

        set_environment()
        from ray_mlc.runtime.ray_data import RayBackend

        backend = RayBackend(spec)
    return run_score(spec, backend, Display(quiet=quiet), inputs=inputs, **options)


@app.command()
def status(
    output: Annotated[str, typer.Argument(help="Output folder of score.")], json: Json = False
) -> None:
    """Progress of a run, from one listing of its output."""
    from ray_mlc.scoring.verify import progress_of

    state = progress_of(output)
    if json:
        _print_json(state)
        return
    rows, units = state["rows"], state["units"]
    share = rows["written"] / rows["planned"] if rows["planned"] else 1.0
    typer.echo(
        f"{state['state']}: {rows['written']:,} of {rows['planned']:,} rows ({share:.1%}), "
        f"{units['written']:,} of {units['planned']:,} units, {state['set_aside']} set aside, "
        f"{state['bytes'] / 2**20:,.1f} MiB; model {state['model']}, started {state['created']}"
    )


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="Output folder of score.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also read the key of every row, and score a sample again."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Where the model is now, for --deep.", show_default=False),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows that --deep scores again.")] = 200,
    json: Json = False,
) -> None:
    """Prove that each planned row is in the output once, or set aside by name."""
    from ray_mlc.cli.tables import print_verdict
    from ray_mlc.scoring.verify import verify as run_verify

    verdict = run_verify(output, deep=deep, model=model, sample=sample)
    if json:
        _print_json(verdict.to_dict())
    else:
        print_verdict(verdict)
    if not verdict.holds:
        first = verdict.problems[0] if verdict.problems else "rows are missing"
        raise GateError(f"{output}: does not hold: {first}")


@app.command()
def doctor(
    output: Annotated[
        str | None, typer.Option(help="Also try to write there.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Also load it and check its canaries.", show_default=False)
    ] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Check what would fail tonight: versions, cores, memory, Ray, storage, model."""
    from dataclasses import asdict

    from ray_mlc.cli.tables import print_checks
    from ray_mlc.runtime.doctor import run_checks

    checks = list(run_checks(output=output, model=model, address=address))
    if json:
        _print_json([asdict(check) for check in checks])
    else:
        print_checks(checks)
    failed = [check for check in checks if check.state == "fails"]
    if failed:
        raise ResourceError(f"{failed[0].name}: {failed[0].finding}")


@config_app.command("schema")
def config_schema(
    kind: Annotated[str, typer.Argument(help="score, train or tune.")],
) -> None:
    """JSON schema of a job file, for editors."""
    _print_json(_kind(kind).model_json_schema())


@config_app.command("render")
def config_render(
    job: Annotated[Path, typer.Argument(help="YAML job file.")], set_: Set = None
) -> None:
    """The job with every default filled in."""
    from ray_mlc.config import dump_job, kind_of, load_job

    kind = _kind(kind_of(job))
    typer.echo(dump_job(load_job(kind, job, overrides=set_ or ())), nl=False)


def _kind(kind: str) -> Any:
    from ray_mlc.config import ScoreJob, TrainJob, TuneJob

    kinds = {"score": ScoreJob, "train": TrainJob, "tune": TuneJob}
    if kind not in kinds:
        raise ConfigError(f"kind is {kind!r}, expected score, train or tune")
    return kinds[kind]


def _columns(labels: str) -> str | list[str]:
    """A column of lists, or with a comma 0/1 columns; `spam,` is a single one."""
    names = [name.strip() for name in labels.removesuffix(",").split(",")]
    return names if "," in labels else labels


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
