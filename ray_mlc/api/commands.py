"""The commands as functions: the same jobs, errors and results, for notebooks and programs.

What a command prints is returned, what it exits with is raised: see `ray_mlc.errors`. Ctrl-C, the
kernel's stop button included, ends a run as on the command line, and the same call goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from ray_mlc.config import EvaluateJob, ManyScoreJob, ScoreJob, Section, TrainJob
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import load_job, load_score_job, section

if TYPE_CHECKING:
    from ray_mlc.scoring.verify import Verdict

Location = str | PathLike[str]


class Summary(dict[str, Any]):
    """What a command prints with `--json`: a mapping that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th>"
            f"<td style='text-align:left'>{escape(_shown(value))}</td></tr>"
            for key, value in self.items()
        )
        return f"<table><tbody>{rows}</tbody></table>"


def score(
    job: ScoreJob | ManyScoreJob | Mapping[str, Any] | Location | None = None,
    *,
    model: Location | Mapping[str, Location] | None = None,
    input: Location | Sequence[Location] | None = None,
    output: Location | Mapping[str, Location] | None = None,
    text: str | None = None,
    decision: Location | Mapping[str, Location] | None = None,
    local: bool = False,
    add_new: bool = False,
    take_over: bool = False,
    use_lease: bool = True,
    address: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Summary:
    r"""Tag a corpus, as `ray-mlc score`; the same call continues a run that was stopped.

    A Ray that is connected (`ray.init`) is used; else that of `address`, of `RAY_ADDRESS`, or one
    that ends with the call.

    Args:
        job: A job: its file, its keys as a mapping, or a `ray_mlc.config.ScoreJob`. What the other
            arguments say comes on top of it.
        model: Model folder, URI or hub id; or several by name, which score in one pass.
        input: Parquet folder, glob, file or URI, or a list of them.
        output: Output folder or URI; of several models one for each, by the same names.
        text: Text column, or a template such as `{title}\n\n{body}`; default `text`.
        decision: File of a decision; default: the model's.
        local: In this process, without Ray.
        add_new: Let new input files join, as the run's next night.
        take_over: Replace another command that writes there.
        use_lease: Whether to keep a second writer out; False only for stores without conditional
            writes.
        address: Ray cluster to use where none is connected.
        quiet: No progress.
        settings: Any other key of the job, as `units={"rows": 1000}` or `**{"units.rows": 1000}`.

    Returns:
        The summary of the run: rows, statuses, tokens, speed; of several models by their names.

    Raises:
        ConfigError: If a key or value is wrong, naming it and the nearest that exists.
        UsageError: If model, input or output cannot be used so.
        LimitError: If the run is finished, but more was set aside than its limits allow.
        InterruptedRunError: On Ctrl-C; what is written stays.

    Examples:
        >>> from ray_mlc import score
        >>> summary = score(model="models/topics", input="corpus/", output="tags/", local=True)
        >>> summary["rows"], summary["statuses"]["ok"]
        ({'planned': 240, 'written': 240, 'set_aside': 0}, 238)

        Two models in one pass:

        >>> summaries = score(
        ...     model={"topics": "models/topics", "words": "models/words"},
        ...     input="corpus/",
        ...     output={"topics": "by-topics/", "words": "by-words/"},
        ...     local=True,
        ... )
        >>> {name: summary["rows"]["written"] for name, summary in summaries.items()}
        {'topics': 240, 'words': 240}

        A job with a typo:

        >>> score(model="models/topics", input="corpus/", output="tags/", unit={"rows": 100})
        Traceback (most recent call last):
        ray_mlc.errors.ConfigError: options: unknown key unit: did you mean units?
    """
    options = {
        "model": model,
        "input": input,
        "output": output,
        "input.text": text,
        "decision": decision,
        "ray.address": address,
    }
    given = _given((ScoreJob, ManyScoreJob), job)
    jobs = load_score_job(given, options=_options(settings, options)).each()
    from ray_mlc.runtime.inputs import open_jobs
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.score import score_many

    display = Display(quiet=quiet)
    inputs, backend = open_jobs(jobs, display, local=local)
    summaries = score_many(
        jobs,
        backend,
        display,
        inputs=inputs,
        add_new=add_new,
        take_over=take_over,
        use_lease=use_lease,
    )
    return Summary(summaries.get("", summaries))


def train(
    job: TrainJob | Mapping[str, Any] | Location | None = None,
    *,
    train: Location | None = None,
    validation: Location | None = None,
    encoder: Location | None = None,
    output: Location | None = None,
    text: str | None = None,
    labels: str | Sequence[str] | None = None,
    address: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Summary:
    """Fine-tune an encoder on Ray Train, as `ray-mlc train`; the same call continues a training.

    Which Ray is used is as for `score`.

    Args:
        job: A job: its file, its keys as a mapping, or a `ray_mlc.config.TrainJob`.
        train: Examples to learn from.
        validation: Examples held out.
        encoder: Hub id or folder; default distilbert/distilbert-base-uncased.
        output: Model folder to write.
        text: Text column or template; default `text`.
        labels: Column of label lists, or several 0/1 columns; default `labels`.
        address: Ray cluster to use where none is connected.
        quiet: No progress.
        settings: Any other key of the job, such as `training={"epochs": 2}`.

    Returns:
        `model`, `best_epoch`, `threshold`, the validation `metrics` and the `history`.

    Raises:
        ConfigError: If a key or value is wrong, naming it and the nearest that exists.
        UsageError: If examples, encoder or output cannot be used so.

    Examples:
        >>> from ray_mlc import train
        >>> train(train="examples.parquet", output="models/new", training={"epoch": 2})
        Traceback (most recent call last):
        ray_mlc.errors.ConfigError: options: unknown key training.epoch: did you mean epochs?
    """
    options = {
        "data.train": train,
        "data.validation": validation,
        "data.text": text,
        "data.labels": labels,
        "encoder": encoder,
        "output": output,
        "ray.address": address,
    }
    spec = load_job(TrainJob, _given((TrainJob,), job), options=_options(settings, options))
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.session import set_environment

    set_environment()  # Ray reads some of it when it is imported
    from ray_mlc.runtime.ray_train import train as run_train

    return Summary(run_train(spec, Display(quiet=quiet)))


def evaluate(
    model: Location,
    examples: Location | Sequence[Location],
    *,
    text: str = "text",
    labels: str | Sequence[str] = "labels",
    dtype: str = "float32",
    device: str = "auto",
    decision: Location | None = None,
    output: Location | None = None,
    texts: bool = False,
    quiet: bool = False,
) -> Summary:
    """Measure a model on labelled examples, as `ray-mlc evaluate`; in this process, without Ray.

    Args:
        model: Model folder or hub id.
        examples: Examples: Parquet, CSV or JSONL.
        text: Text column or template.
        labels: Column of label lists, or several 0/1 columns.
        dtype: Precision of the scores.
        device: `cpu`, `cuda` or `auto`.
        decision: File of a decision; default: the model's.
        output: JSON to write; default: in the model folder, named after the examples.
        texts: Whether the report shows the texts of mistakes.
        quiet: No progress.

    Returns:
        The figures, and `report`: the page that was written beside the JSON.

    Examples:
        >>> from ray_mlc import evaluate
        >>> found = evaluate("models/topics", "examples.parquet", output="figures.json")
        >>> found["n"], sorted(found["decision"])[:3]
        (100, ['accuracy', 'average_precision_macro', 'average_precision_micro'])
    """
    from ray_mlc.runtime.evaluate import evaluate_model
    from ray_mlc.runtime.progress import Display

    values = {
        "model": fspath(model),
        "examples": [fspath(item) for item in _several(examples)],
        "text": text,
        "labels": labels if isinstance(labels, str) else list(labels),
        "dtype": dtype,
        "device": device,
        "output": None if output is None else fspath(output),
        "texts": texts,
        "decision": None if decision is None else fspath(decision),
    }
    result, _ = evaluate_model(section(EvaluateJob, values), Display(quiet=quiet))
    return Summary(result)


def verify(
    output: Location, *, deep: bool = False, model: Location | None = None, sample: int = 200
) -> Verdict:
    """Prove that each planned row is in an output once, as `ray-mlc verify`.

    Args:
        output: Output folder of `score`.
        deep: Also read the key of every row, and score a sample again.
        model: Where the model is now, for `deep`; default: where it was.
        sample: Rows that `deep` scores again.

    Returns:
        The verdict. Nothing is raised if it does not hold: look at `holds` and `problems`.

    Examples:
        >>> from ray_mlc import verify
        >>> verdict = verify("tags/")
        >>> verdict.holds, verdict.total("written"), verdict.problems
        (True, 240, [])
    """
    from ray_mlc.scoring.verify import verify as run_verify

    model = None if model is None else fspath(model)
    return run_verify(fspath(output), deep=deep, model=model, sample=sample)


def _given(
    kinds: tuple[type[Section], ...], job: Section | Mapping[str, Any] | Location | None
) -> str | Mapping[str, Any] | None:
    """What a caller gives as job, as `load_job` takes it.

    Raises:
        ConfigError: If it is no such job.
    """
    if isinstance(job, kinds):
        return job.model_dump(mode="json")
    if isinstance(job, Mapping):
        plain: Mapping[str, Any] = _plain(job)
        return plain
    if isinstance(job, str | PathLike):
        return fspath(job)
    if job is None:
        return None
    raise ConfigError(
        f"job is a {type(job).__name__}, expected a {kinds[0].__name__}, a mapping of its keys, or "
        "the path of its file"
    )


def _options(*later: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as options of a job; later keys win."""
    return {
        key: value
        for keys in later
        for key, value in _plain(keys).items()
        if value is not None  # an argument that was not given takes nothing back
    }


def _plain(value: Any) -> Any:
    """Values as a job file has them: paths as text, tuples as lists."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _several(paths: Location | Sequence[Location]) -> Sequence[Location]:
    return [paths] if isinstance(paths, str | PathLike) else paths


def _shown(value: object) -> str:
    """A value of a summary in a cell."""
    match value:
        case Mapping():
            return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
        case list() if any(isinstance(item, Mapping) for item in value):
            return f"{len(value):,} entries"
        case list():
            return ", ".join(map(str, value))
        case float():
            return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case bool() | str() | None:
            return str(value)
        case int():
            return f"{value:,}"
        case _:
            return str(value)
