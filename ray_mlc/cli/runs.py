"""Commands that tag a corpus and prove it, and what comes before and beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_mlc.cli.options import (
    Address,
    DecisionFile,
    JobFile,
    Json,
    Progress,
    Quiet,
    Set,
    TextOrNone,
    print_json,
)
from ray_mlc.errors import ConfigError, GateError, LimitError, ResourceError

if TYPE_CHECKING:
    from ray_mlc.config import ScoreJob
    from ray_mlc.scoring.verify import Verdict


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write everything.")] = Path(
        "ray-mlc-demo"
    ),
    rows: Annotated[int, typer.Option(min=100, help="Documents to tag.")] = 24_000,
    examples: Annotated[int, typer.Option(min=500, help="Training examples.")] = 8_000,
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and order.")] = 0,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Show the whole story on a synthetic corpus: train, compare, tag, verify. No downloads."""
    from ray_mlc.cli.run_tables import print_demo, print_score_summary
    from ray_mlc.cli.tables import print_metrics
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.session import ray_session

    display = Display(quiet=quiet, progress=progress)
    with ray_session():
        from ray_mlc.runtime import demo as story

        story.make_data(folder, rows=rows, examples=examples, seed=seed, display=display)
        columns = story.train_and_compare(folder, seed=seed, display=display)
        print_metrics("test examples, thresholds fitted on validation", columns)
        summary, verdict = story.tag_and_verify(folder, display)
    print_score_summary(str(folder / "tags"), summary)
    print_demo(folder, verdict, story.tagged_documents(folder))


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
    text: TextOrNone = None,
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
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Tag a corpus; run the same command again to continue."""
    from ray_mlc.cli.run_tables import print_score_summary
    from ray_mlc.job_files import load_score_job

    options = {
        "model": model,
        "input": input,
        "output": output,
        "input.text": text,
        "decision": decision,
        "ray.address": address,
    }
    jobs = load_score_job(job, options=options, overrides=set_ or ()).each()
    # not before the job is known to be one: these imports take a second
    from ray_mlc.runtime.inputs import open_jobs
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.score import score_many

    display = Display(quiet=quiet, progress=progress)
    inputs, backend = open_jobs(jobs, display, local=local)
    try:
        summaries = score_many(
            jobs,
            backend,
            display,
            inputs=inputs,
            add_new=add_new,
            take_over=take_over,
            use_lease=not no_lease,
        )
    except LimitError:
        if json:
            print_json(_one_or_all({name: _last(spec) for name, spec in jobs.items()}))
        raise
    if json:
        print_json(_one_or_all(summaries))
        return
    for name, spec in jobs.items():
        print_score_summary(spec.output.path, summaries[name])


def _one_or_all(found: Mapping[str, Any]) -> Any:
    """What was found of the only run, or of each by its name."""
    return found.get("", found)


def _last(spec: ScoreJob) -> dict[str, Any]:
    """The summary that was written last."""
    from ray_mlc.scoring.ledger import read_run
    from ray_mlc.storage import open_storage

    return read_run(open_storage(spec.output.path)).summary


def plan(
    model: Annotated[str, typer.Argument(help="Model folder, URI or hub id; or a job file alone.")],
    input: Annotated[
        str | None, typer.Argument(help="Parquet folder, glob, file or URI.", show_default=False)
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(help="Time of day at which it has to be done: exit 4 if it would not be."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Time of day at which it begins; default: now.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of one node for one hour.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Actors; default: as many as there is room for.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="What is written there already is not done again.", show_default=False),
    ] = None,
    add_new: Annotated[
        bool, typer.Option("--add-new", help="With --output: count new input files too.")
    ] = False,
    text: TextOrNone = None,
    local: Annotated[bool, typer.Option("--local", help="One process, without Ray.")] = False,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Say how long scoring would take, what it would cost and leave; writes nothing."""
    from ray_mlc.cli.forecasts import print_plan
    from ray_mlc.runtime.inputs import open_job
    from ray_mlc.runtime.plan import Question, check_question, plan_night
    from ray_mlc.runtime.progress import Display

    question = Question(actors, deadline, start, price, add_new)
    check_question(question, local=local)
    spec = _planned_job(
        model, input, {"output": output, "input.text": text, "ray.address": address}, set_ or ()
    )
    display = Display(quiet=quiet, progress=progress)
    inputs, backend = open_job(spec, display, local=local, writes=False)
    answer = plan_night(spec, backend, display, question, inputs=inputs)
    if json:
        print_json(answer)
    else:
        print_plan(answer)
    if "deadline" in answer and not answer["deadline"]["holds"]:
        raise GateError(f"{model}: would not be done by {deadline}")


def _planned_job(
    model: str, input: str | None, options: dict[str, object], overrides: Sequence[str]
) -> ScoreJob:
    """The job that a plan is about: a job file, or a model and an input."""
    from ray_mlc.config import ScoreJob
    from ray_mlc.job_files import load_job
    from ray_mlc.runtime.plan import NOWHERE

    if input is None:
        if not model.endswith((".yaml", ".yml")):
            raise ConfigError(f"plan {model}: INPUT is missing; a job file alone ends in .yaml")
        return load_job(ScoreJob, Path(model), options=options, overrides=overrides)
    options |= {"model": model, "input": input, "output": options["output"] or NOWHERE}
    return load_job(ScoreJob, options=options, overrides=overrides)


def nightly(
    job: JobFile = None,
    local: Annotated[bool, typer.Option("--local", help="One process, without Ray.")] = False,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Score what has arrived since (score --add-new), verify the whole output, compare the nights.

    Run the same command again to continue; the first step that does not hold gives the exit code.
    """
    from ray_mlc.cli.run_tables import (
        print_comparison,
        print_report_place,
        print_score_summary,
        print_verdict,
    )
    from ray_mlc.job_files import load_score_job
    from ray_mlc.runtime.inputs import open_jobs
    from ray_mlc.runtime.nightly import run_nights
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.report import place_of_report

    options = {"ray.address": address}
    jobs = load_score_job(job, options=options, overrides=set_ or ()).each()
    display = Display(quiet=quiet, progress=progress)
    inputs, backend = open_jobs(jobs, display, local=local)
    nights, beyond = run_nights(jobs, backend, display, inputs=inputs)
    found: dict[str, Any] = {}
    for name, night in nights.items():
        output = jobs[name].output.path
        page = place_of_report(output)
        found[name] = {
            "score": night.summary,
            "verify": night.verdict.to_dict(),
            "compare": night.comparison,
            "report": page,
        }
        if json:
            continue
        print_score_summary(output, night.summary)
        print_verdict(night.verdict)
        if night.comparison is not None:
            print_comparison(night.comparison)
        if page is not None:
            print_report_place(page)
    if json:
        print_json(_one_or_all(found))
    if beyond is not None:
        raise beyond
    for name, night in nights.items():
        _check(jobs[name].output.path, night.verdict)


def status(
    output: Annotated[str, typer.Argument(help="Output folder of score.")], json: Json = False
) -> None:
    """Progress of a run, from one listing of its output."""
    from ray_mlc.cli.run_tables import print_progress
    from ray_mlc.scoring.verify import progress_of

    state = progress_of(output)
    if json:
        print_json(state)
        return
    print_progress(state)


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
    from ray_mlc.cli.run_tables import print_verdict
    from ray_mlc.scoring.verify import verify as run_verify

    verdict = run_verify(output, deep=deep, model=model, sample=sample)
    if json:
        print_json(verdict.to_dict())
    else:
        print_verdict(verdict)
    _check(output, verdict)


def report(
    output: Annotated[str, typer.Argument(help="Output folder of score.")],
    night: Annotated[
        int | None, typer.Option(help="Which night; default: the last.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="HTML file; default: _ray_mlc/runs/<night>/report.html below the output.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        bool | None,
        typer.Option(
            "--texts/--no-texts",
            help="Show texts of uncertain rows; default: report.texts of the job.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look back at a night: rows, label rates, scores, speed and failures as one HTML page."""
    from ray_mlc.cli.run_tables import print_report
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.report import report_night

    figures = report_night(output, Display(quiet=quiet), night=night, to=to, texts=texts)
    if json:
        print_json(figures)
        return
    print_report(figures)


def _check(output: str, verdict: Verdict) -> None:
    if verdict.holds:
        return
    if verdict.is_on_its_way:
        raise GateError(
            f"{output}: is unfinished: {verdict.total('missing'):,} rows are still to come: run or "
            "submit the command that began it again"
        )
    first = verdict.problems[0] if verdict.problems else "rows are missing"
    raise GateError(f"{output}: does not hold: {first}")


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

    from ray_mlc.cli.run_tables import print_checks
    from ray_mlc.runtime.doctor import run_checks

    checks = list(run_checks(output=output, model=model, address=address))
    if json:
        print_json([asdict(check) for check in checks])
    else:
        print_checks(checks)
    failed = [check for check in checks if check.state == "fails"]
    if failed:
        raise ResourceError(f"{failed[0].name}: {failed[0].finding}")
