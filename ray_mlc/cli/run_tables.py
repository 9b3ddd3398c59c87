"""What commands about runs print for people: scoring, proof, comparison, jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ray_mlc.cli.printing import console, say, size, table_of
from ray_mlc.labels import listed, quoted
from ray_mlc.scoring.standing import ends_at

if TYPE_CHECKING:
    from pathlib import Path

    from ray_mlc.runtime.doctor import Check
    from ray_mlc.scoring.verify import Verdict

LABELS_SHOWN = 30
FILES_SHOWN = 20
FLIPS_SHOWN = 5


def print_score_summary(output: str, summary: Mapping[str, Any]) -> None:
    """What a scoring run did."""
    from ray_mlc.scoring.night_drift import describe_drift

    rows, here = summary["rows"], summary["this_process"]
    statuses = ", ".join(f"{count:,} {name}" for name, count in summary["statuses"].items())
    say(f"{rows['written']:,} of {rows['planned']:,} rows written to {output} ({statuses})")
    if rows["set_aside"] or summary["bad_files"]:
        say(
            f"{rows['set_aside']:,} rows of {summary['bad_files']} file(s) set aside: see "
            "_ray_mlc/failures.json"
        )
    for message, count in list(summary.get("errors", {}).items())[:3]:
        say(f"{count:,} row(s) not scored: {message}")
    for drift in summary.get("drift", ()):
        if (moved := describe_drift(drift)) is not None:
            say(f"drift in night {drift['night']}: {moved}")
    found = f"{summary['labels_per_row']:.2f} labels per row, {summary['truncated']:,} texts cut"
    if here["rows"]:
        found = (
            f"{here['rows_per_s']:,.0f} rows/s, {here['tokens_per_s']:,.0f} tokens/s, padding "
            f"{here['padding']:.1%}, {here['seconds']:,.1f} s; {found}"
        )
    if rows["written"]:
        say(found)


def print_retag(output: str, summary: Mapping[str, Any]) -> None:
    """What deciding again did."""
    rows, here, again = summary["rows"], summary["this_process"], summary["retag"]
    say(
        f"{rows['written']:,} of {rows['planned']:,} rows decided again, written to {output}: "
        f"{summary['labels_per_row']:.2f} labels per row, "
        f"{again['labels_per_row_before']:.2f} before"
    )
    if rows["set_aside"]:
        say(
            f"{rows['set_aside']:,} rows of {summary['bad_files']} file(s) set aside: see "
            "_ray_mlc/failures.json"
        )
    if again["unsettled"]:
        say(
            f"{again['unsettled']:,} rows might have other labels by the scores that were not "
            "stored: cut by output.k or below output.floor, or rounded to float16 at a threshold"
        )
    if here["rows"]:
        say(f"{here['rows_per_s']:,.0f} rows/s, {here['seconds']:,.1f} s")


def print_comparison(result: Mapping[str, Any]) -> None:
    """Two sides: the labels that moved most, the rows that differ most, and the gates."""
    for name in ("a", "b"):
        side = result[name]
        what = "validation documents of" if side["kind"] == "model" else "scored rows of"
        say(
            f"{name}: {side['rows']:,} {what} {side['name']}, {side['labels_per_row']:.2f} labels "
            "per row"
        )
    rows = sorted(
        result["per_label"], key=lambda row: (-row["psi"], -abs(row["change"]), row["label"])
    )
    shown, flips = rows[:LABELS_SHOWN], result["flips"]
    of_all = (
        "" if len(shown) == len(rows) else f", the {len(shown)} of {len(rows):,} that moved most"
    )
    # 80 columns hold either
    columns = ["rate a, %", "rate b, %", "PSI", "JS", "+ b", "− b"]
    if flips is None:
        columns = ["rate a, %", "95 %", "rate b, %", "95 %", "PSI"]
    table = table_of(f"per label{of_all}", "label", *columns)
    for row in shown:
        rates = [f"{100 * row[f'rate_{side}']:.2f}" for side in ("a", "b")]
        mark = " " if row["psi"] > row["psi_by_chance"] else "·"
        drift = f"{row['psi']:.4f}{mark}"
        if flips is None:
            ends = [_interval(row[f"interval_{side}"]) for side in ("a", "b")]
            cells = [rates[0], ends[0], rates[1], ends[1], drift]
        else:
            counts = f"{row['gained']:,}", f"{row['lost']:,}"
            cells = [*rates, drift, f"{row['js']:.4f}", *counts]
        table.add_row(row["label"], *cells)
    console().print(table)
    if any(row["psi"] <= row["psi_by_chance"] for row in shown):
        say("·: no more than what so few rows give by chance")
    labels = result["labels"]
    for name in ("a", "b"):
        if only := labels[f"only_{name}"]:
            say(f"on side {name} alone: {listed(only, most=5)}")
    if flips is not None:
        say(
            f"{flips['rows']:,} rows on both sides by source and row: {flips['agreement']:.2%} "
            f"have the same labels; b gives {flips['gained']:,} labels more and "
            f"{flips['lost']:,} less"
        )
        for example in result["largest_flips"][:FLIPS_SHOWN]:
            said = ", ".join(_flip(label) for label in example["labels"][:3])
            more = len(example["labels"]) - 3
            say(
                f"  {example['source']} row {example['row']:,}: {said}"
                f"{f' and {more} more' if more > 0 else ''}"
            )
    for note in result["notes"]:
        say(f"note: {note}")
    for gate in result["gates"]:
        say(f"{'holds' if gate['holds'] else 'does not hold'}: {gate['gate']}: {gate['why']}")


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.2f}–{100 * ends[1]:.2f}"


def _flip(label: Mapping[str, Any]) -> str:
    """A label that one side gives: its scores on both, with the side that does."""
    scores = [f"{label[side]:.3f}" if label[side] is not None else "–" for side in ("a", "b")]
    return f"{quoted(label['label'])} {scores[0]} → {scores[1]} ({label['given']})"


def print_progress(state: Mapping[str, Any]) -> None:
    """How far a run is, and which files of its output are not as they should be."""
    rows, units = state["rows"], state["units"]
    share = rows["written"] / rows["planned"] if rows["planned"] else 1.0
    say(
        f"{state['state']}: {rows['written']:,} of {rows['planned']:,} rows ({share:.1%}), "
        f"{units['written']:,} of {units['planned']:,} units, {state['set_aside']} set aside, "
        f"{size(state['bytes'])}; model {state['model']}, started {state['created']}"
    )
    if state["now"] is not None:
        say(f"now: {_at_work(state['now'])}")
    if missing := state["missing"]:
        say(
            f"{len(missing):,} part(s) are gone since the run was complete, such as {missing[0]}: "
            "run the same `ray-mlc score` command to make them again"
        )
    if extra := state["extra"]:
        say(
            f"{len(extra):,} Parquet file(s) are in no plan, such as {extra[0]}, but readers of "
            "the output will take them for parts: move them away"
        )
    if report := state["report"]:
        say(f"report of night {state['nights']}: {report}")


def print_report(figures: Mapping[str, Any]) -> None:
    """What stands out in a night, and where its page is."""
    for item in figures["findings"]:
        say(item["finding"])
        if item["to_do"] != "Nothing.":
            say(f"  {item['to_do']}")
    print_report_place(figures["report"])


def print_report_place(place: str) -> None:
    """Where the page of a night is."""
    say(f"report: {place}")


def _at_work(now: Mapping[str, Any]) -> str:
    """How a night stands, in one line."""
    if now["phase"] == "starting":
        return (
            f"the model is being loaded in {now['actors']} process(es), for {now['seconds']:.0f} s"
        )
    said = []
    for name, figure in (("rows/s", "rows_per_s"), ("tokens/s", "tokens_per_s")):
        if now[figure] is not None:
            said.append(f"{now[figure]:,.0f} {name}")
    if now["padding"] is not None:
        said.append(f"padding {now['padding']:.1%}")
    said.append(f"{now['actors_ready']} of {now['actors']} actors")
    if now["waits_for"] not in (None, "scoring"):
        said.append(f"they wait for {now['waits_for']}")
    said.append(f"{now['rows_set_aside']:,} rows set aside")
    if now["seconds_left"] is not None:
        said.append(f"ends about {ends_at(now['seconds_left'], datetime.now().astimezone())}")
    return ", ".join(said)


def print_verdict(verdict: Verdict) -> None:
    """Rows per file, and what is wrong."""
    counts = ("planned", "written", "set_aside", "duplicated", "missing")
    table = table_of(verdict.output, "file", *(name.replace("_", " ") for name in counts))
    wrong_first = sorted(verdict.files, key=lambda file: (file.holds, file.source))
    for file in wrong_first[:FILES_SHOWN]:
        table.add_row(file.source, *(f"{getattr(file, name):,}" for name in counts))
    if len(verdict.files) > FILES_SHOWN:
        table.add_row(f"… {len(verdict.files) - FILES_SHOWN:,} more", *([""] * len(counts)))
    table.add_section()
    table.add_row("all", *(f"{verdict.total(name):,}" for name in counts))
    console().print(table)
    for item in verdict.set_aside[:10]:
        rows = "an unknown number of" if item["rows"] is None else f"{item['rows']:,}"
        say(f"set aside: {item['source']}, {rows} rows: {item['reason']}")
    if len(verdict.set_aside) > 10:
        say(f"… and {len(verdict.set_aside) - 10:,} more set aside")
    if (again := verdict.rescored) is not None:
        say(
            f"scored again: {again.rows:,} rows with {again.engine}, largest difference "
            f"{again.max_difference:.2g} (limit {again.tolerance:.2g}), {again.flips} of "
            f"{again.cells:,} labels differ"
        )
        if again.left_out:
            say(f"not scored again: {again.left_out} unit(s) whose input has changed or is gone")
    for problem in verdict.problems[:10]:
        say(f"wrong: {problem}")
    if len(verdict.problems) > 10:
        say(f"… and {len(verdict.problems) - 10:,} more")
    state = "complete" if verdict.complete else "unfinished"
    if verdict.holds:
        say(f"{state}; holds: written + set aside = planned")
    elif verdict.is_on_its_way:
        say(
            f"unfinished: {verdict.total('missing'):,} rows are still to come; what is there is "
            "right"
        )
    else:
        short = sum(not file.holds for file in verdict.files)
        say(
            f"{state}; does not hold: {len(verdict.problems)} part(s) are wrong, the rows of "
            f"{short} file(s) do not add up"
        )


def print_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Submissions of a cluster; times are UTC."""
    table = table_of("jobs", "id", "status", "exit", "started", "output")
    table.columns[0].no_wrap = True
    table.columns[4].justify, table.columns[4].no_wrap = "left", False
    for job in jobs:
        code = "–" if job["exit_code"] is None else str(job["exit_code"])
        started = (job["started"] or "–")[:16].replace("T", " ")
        table.add_row(job["id"], job["status"], code, started, "\n".join(job["outputs"]) or "–")
    console(wide=True).print(table)


def print_demo(folder: Path, verdict: Verdict, documents: Sequence[Mapping[str, Any]]) -> None:
    """Where everything lies, and a few tagged documents."""
    say(
        f"verified: {verdict.total('written'):,} rows written, {verdict.total('missing')} missing, "
        f"{verdict.total('duplicated')} twice"
    )
    for name, what in (("model", "model folder"), ("tags", "labels and scores, as Parquet")):
        say(f"  {folder / name}  {what}")
    for document in documents:
        text = document["text"]
        best = ", ".join(f"{quoted(name)} {score:.3f}" for name, score in document["best"].items())
        say(f"\n{document['source']} row {document['row']}: {text[:100]}…")
        say(f"  labels: {listed(document['labels'])}   (best: {best})")


def print_checks(checks: Iterable[Check]) -> None:
    """What `doctor` found."""
    table = table_of("doctor", "check", "state", "finding")
    table.columns[2].justify = "left"
    table.columns[2].no_wrap = False
    for check in checks:
        table.add_row(check.name, check.state, check.finding)
    console().print(table)
