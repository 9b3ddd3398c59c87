"""What commands print for people: tables and lines on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ray_mlc.evaluation.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from ray_mlc.runtime.doctor import Check
    from ray_mlc.scoring.verify import Verdict

LABELS_SHOWN = 30
FILES_SHOWN = 20


def _console() -> Console:
    return Console(highlight=False)


def _say(text: str) -> None:
    """Print a sentence as it is: no markup, and lines of any length, for grep."""
    _console().print(text, markup=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if index == 0 else "right",
            overflow="fold",
            no_wrap=index > 0,
            min_width=6 if index else 16,
        )
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def print_metrics(title: str, columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """Metrics in rows, models or decisions in columns."""
    table = _table(title, "metric", *columns)
    for name in METRIC_NAMES:
        table.add_row(name, *(_figure(metrics.get(name)) for metrics in columns.values()))
    _console().print(table)


def print_evaluation(result: Mapping[str, Any]) -> None:
    """The metrics table, and the labels with the most support."""
    columns = {"at 0.5": result["at_half"], "decision": result["decision"]}
    print_metrics(f"{result['n']:,} examples", {**columns, "dummy": result["dummy"]})
    labels = sorted(result["per_label"], key=lambda row: -row["support"])
    shown = labels[:LABELS_SHOWN]
    of_all = "" if len(shown) == len(labels) else f", {len(shown)} most frequent of {len(labels)}"
    table = _table(
        f"per label, at the decision{of_all}",
        *("label", "precision", "recall", "f1", "support", "predicted", "AP"),
    )
    for row in shown:
        table.add_row(
            row["label"],
            *(_figure(row[name]) for name in ("precision", "recall", "f1")),
            f"{row['support']:,}",
            f"{row['predicted']:,}",
            _figure(row["average_precision"]),
        )
    _console().print(table)


def print_predictions(results: Sequence[Mapping[str, Any]], *, top: int) -> None:
    """Each text with its best scores; a mark where the decision gives the label."""
    for result in results:
        if result["status"] != "ok":
            _say(f"{result['text']!r}  {result['status']}: not scored")
            continue
        cut = ", cut" if result["truncated"] else ""
        text = result["text"] if len(result["text"]) <= 70 else result["text"][:69] + "…"
        _say(f"{text!r}  {result['latency_ms']:.1f} ms, {result['n_tokens']} tokens{cut}")
        _say(f"  labels: {', '.join(result['labels']) or '(none)'}")
        ranked = sorted(result["scores"].items(), key=lambda item: -item[1])
        for label, score in ranked[:top]:
            mark = "●" if label in result["labels"] else " "
            _say(f"  {mark} {score:.4f}  {label}")


def print_score_summary(output: str, summary: Mapping[str, Any]) -> None:
    """What a scoring run did."""
    rows, here = summary["rows"], summary["this_process"]
    statuses = ", ".join(f"{count:,} {name}" for name, count in summary["statuses"].items())
    _say(f"{rows['written']:,} of {rows['planned']:,} rows written to {output} ({statuses})")
    if rows["set_aside"] or summary["bad_files"]:
        _say(
            f"{rows['set_aside']:,} rows of {summary['bad_files']} file(s) set aside: see "
            "_ray_mlc/failures.json"
        )
    for message, count in list(summary.get("errors", {}).items())[:3]:
        _say(f"{count:,} row(s) not scored: {message}")
    if here["rows"]:
        _say(
            f"{here['rows_per_s']:,.0f} rows/s, {here['tokens_per_s']:,.0f} tokens/s, padding "
            f"{here['padding']:.1%}, {here['seconds']:,.1f} s; {summary['labels_per_row']:.2f} "
            f"labels per row, {summary['truncated']:,} texts cut"
        )


def print_verdict(verdict: Verdict) -> None:
    """Rows per file, and what is wrong."""
    counts = ("planned", "written", "set_aside", "duplicated", "missing")
    table = _table(verdict.output, "file", *(name.replace("_", " ") for name in counts))
    wrong_first = sorted(verdict.files, key=lambda file: (file.holds, file.source))
    for file in wrong_first[:FILES_SHOWN]:
        table.add_row(file.source, *(f"{getattr(file, name):,}" for name in counts))
    if len(verdict.files) > FILES_SHOWN:
        table.add_row(f"… {len(verdict.files) - FILES_SHOWN:,} more", *([""] * len(counts)))
    table.add_section()
    table.add_row("all", *(f"{verdict.total(name):,}" for name in counts))
    _console().print(table)
    for item in verdict.set_aside[:10]:
        rows = "an unknown number of" if item["rows"] is None else f"{item['rows']:,}"
        _say(f"set aside: {item['source']}, {rows} rows: {item['reason']}")
    if len(verdict.set_aside) > 10:
        _say(f"… and {len(verdict.set_aside) - 10:,} more set aside")
    if (again := verdict.rescored) is not None:
        _say(
            f"scored again: {again.rows:,} rows with {again.engine}, largest difference "
            f"{again.max_difference:.2g} (limit {again.tolerance:.2g}), {again.flips} of "
            f"{again.cells:,} labels differ"
        )
        if again.left_out:
            _say(f"not scored again: {again.left_out} unit(s) whose input has changed or is gone")
    for problem in verdict.problems[:10]:
        _say(f"wrong: {problem}")
    if len(verdict.problems) > 10:
        _say(f"… and {len(verdict.problems) - 10:,} more")
    state = "complete" if verdict.complete else "unfinished"
    if verdict.holds:
        _say(f"{state}; holds: written + set aside = planned")
    else:
        short = sum(not file.holds for file in verdict.files)
        _say(
            f"{state}; does not hold: {len(verdict.problems)} part(s) are wrong, the rows of "
            f"{short} file(s) do not add up"
        )


def print_exploration(figures: Mapping[str, Any]) -> None:
    """What stands out, and what to do about it."""
    from ray_mlc.report.explore import findings

    for finding, remedy in findings(figures):
        _say(finding)
        _say(f"  {remedy}")


def print_split(result: Mapping[str, Any]) -> None:
    """Rows of the parts, what they share, and the labels that are spread least evenly."""
    table = _table(result["output"], "part", "rows", "share", "asked for", "labels absent")
    balance = result["balance"]
    for part in result["parts"]:
        asked = "–" if part["asked"] is None else f"{part['asked']:,}"
        absent = f"{balance['absent'][part['name']]:,}"
        table.add_row(part["name"], f"{part['rows']:,}", f"{part['share']:.2%}", asked, absent)
    _console().print(table)
    units = result["units"]
    if units["rows_in_groups"]:
        _say(
            f"{units['rows_in_groups']:,} rows stay together in groups, the largest of "
            f"{units['largest']:,} rows"
        )
    leakage = result["leakage"]
    leaks = [shared for shared in leakage["parts"] if shared["exact"] or shared["near"]]
    for shared in leaks:
        near = "" if shared["near"] is None else f", {shared['near']:,} more nearly so"
        _say(
            f"{shared['of']}: the text of {shared['exact']:,} row(s) ({shared['exact_share']:.2%}) "
            f"is in {shared['also_in']} too{near}"
        )
    if leakage["jaccard"] is not None:
        _say(f"nearly the same: a Jaccard similarity of {leakage['jaccard']:g} or more")
    could_be_near = result["by"] != "given" and result["group_duplicates"] != "near"
    if could_be_near and any(shared["near"] for shared in leaks):
        _say("--group-duplicates near keeps them together")
    if not leaks:
        _say("no text is in two parts")
    _say(
        f"label rates: a part's differs from the whole's by {balance['mean_difference']:.4%} in "
        f"the mean over labels, by {balance['largest_difference']:.2%} at most"
    )
    names = [part["name"] for part in result["parts"]]
    table = _table("labels spread least evenly", "label", "rows", *(f"{n}, %" for n in names))
    for label in balance["labels"][:10]:
        rates = (f"{100 * label['rate_by_part'][name]:.3f}" for name in names)
        table.add_row(label["label"], f"{label['rows']:,}", *rates)
    _console().print(table)
    for path in result["files"]:
        _say(f"written: {path}")


def print_demo(folder: Path, verdict: Verdict, documents: Sequence[Mapping[str, Any]]) -> None:
    """Where everything lies, and a few tagged documents."""
    _say(
        f"verified: {verdict.total('written'):,} rows written, {verdict.total('missing')} missing, "
        f"{verdict.total('duplicated')} twice"
    )
    for name, what in (("model", "model folder"), ("tags", "labels and scores, as Parquet")):
        _say(f"  {folder / name}  {what}")
    for document in documents:
        text = document["text"]
        best = ", ".join(f"{label} {score:.3f}" for label, score in document["best"].items())
        _say(f"\n{document['source']} row {document['row']}: {text[:100]}…")
        _say(f"  labels: {', '.join(document['labels'])}   (best: {best})")


def print_checks(checks: Iterable[Check]) -> None:
    """What `doctor` found."""
    table = _table("doctor", "check", "state", "finding")
    table.columns[2].justify = "left"
    table.columns[2].no_wrap = False
    for check in checks:
        table.add_row(check.name, check.state, check.finding)
    _console().print(table)
