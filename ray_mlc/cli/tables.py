"""What commands print for people: tables and lines on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_mlc.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from ray_mlc.labels import listed, quoted
from ray_mlc.scoring.standing import ends_at

if TYPE_CHECKING:
    from pathlib import Path

    from ray_mlc.runtime.doctor import Check
    from ray_mlc.scoring.verify import Verdict
    from ray_mlc.training.convert import ConvertSummary

LABELS_SHOWN = 30
FILES_SHOWN = 20
TRIALS_SHOWN = 10
FLIPS_SHOWN = 5
WORDS_SHOWN = 8
"""Words of an explanation that are named with their shares."""
FAINTEST = 0.1
"""Share, of the largest one, from which on a word is colored."""


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


def size(bytes_: int) -> str:
    """Bytes in the unit in which they are a number of a few digits."""
    value, unit = float(bytes_), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def print_conversion(summary: ConvertSummary) -> None:
    """What was written, what is odd about it, and the most frequent labels."""
    _say(
        f"{summary.rows:,} examples with {len(summary.labels):,} labels in {summary.output} "
        f"({summary.seconds:.1f} s)"
    )
    odd = {
        "rows left out: they have no text": summary.skipped,
        "rows without a text": summary.null_texts,
        "rows not annotated: their labels are null": summary.not_annotated,
        "labels not annotated in other rows: see column unannotated": summary.unannotated_cells,
        "labels without a name: they stay ids": summary.unnamed_labels,
        "rows whose id an earlier row has": summary.duplicate_ids,
    }
    for what, count in odd.items():
        if count:
            _say(f"  {count:>9,}  {what}")
    table = _table("", "label", "rows", "share")
    for label, count in list(summary.labels.items())[:LABELS_SHOWN]:
        table.add_row(label, f"{count:,}", f"{count / summary.rows:.2%}")
    _console().print(table)
    if len(summary.labels) > LABELS_SHOWN:
        _say(f"… and {len(summary.labels) - LABELS_SHOWN:,} more labels")


def print_metrics(title: str, columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """Metrics in rows, models or decisions in columns."""
    table = _table(title, "metric", *columns)
    for name in METRIC_NAMES:
        table.add_row(name, *(_figure(metrics.get(name)) for metrics in columns.values()))
    _console().print(table)


def print_training(summary: Mapping[str, Any]) -> None:
    """Validation metrics of the model that was kept, and how it reads long documents."""
    columns = {"at 0.5": summary["metrics"]["at_half"]}
    columns[f"at {summary['threshold']:.3f}"] = summary["metrics"]["decision"]
    print_metrics("validation", columns)
    if (windows := summary["windows"]) is not None:
        others = [
            f"{_figure(value)} by {how}"
            for how, value in sorted(windows["values"].items(), key=lambda item: -(item[1] or 0))
            if how != windows["chosen"]
        ]
        said = f"windows are joined by {windows['chosen']}"
        if windows["chosen"] in windows["values"]:
            said += f": {windows['metric']} {_figure(windows['values'][windows['chosen']])}"
        _say(said + (f", against {', '.join(others)}" if others else ""))
    _say(f"model: {summary['model']} (epoch {summary['best_epoch']})")


def print_trials(summary: Mapping[str, Any]) -> None:
    """The best trials of a search, and what became of the best one."""
    metric = summary["metric"]
    lower = metric in LOWER_IS_BETTER
    rows = summary["trials"]
    measured = [row for row in rows if row["metrics"] and row["metrics"][metric] is not None]
    measured = [row for row in measured if row["state"] != "failed"]
    measured.sort(key=lambda row: row["metrics"][metric] * (1 if lower else -1))
    shown = measured[:TRIALS_SHOWN]
    keys = list(summary["values"])
    last = [key.rpartition(".")[2] for key in keys]
    short = [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
    of_all = f"the best {len(shown)} of {len(rows)} trials" if len(rows) > 1 else "the trial"
    table = _table(f"{of_all}, on validation", "trial", metric, "epoch", "state", "values")
    table.columns[0].min_width = 5
    table.columns[3].min_width = 8
    table.columns[4].justify = "left"
    table.columns[4].no_wrap = False
    for row in shown:
        values = zip(short, (row["values"][key] for key in keys), strict=True)
        table.add_row(
            str(row["trial"]),
            _figure(row["metrics"][metric]),
            f"{row['best_epoch']} of {row['epochs']}",
            row["state"],
            Text(", ".join(f"{name} {_value(value)}" for name, value in values)),
        )
    _console().print(table)
    counts = {state: sum(row["state"] == state for row in rows) for state in ("stopped", "failed")}
    if counts["stopped"]:
        _say(f"{counts['stopped']} trials were stopped early: not among the best")
    if counts["failed"]:
        first = next(row for row in rows if row["state"] == "failed")
        _say(f"{counts['failed']} trials failed, the first, {first['trial']}: {first['error']}")
    _say(
        f"model: {summary['model']} (trial {summary['best_trial']}, epoch {summary['best_epoch']})"
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def print_baseline(result: Mapping[str, Any]) -> None:
    """The metrics table of the dummy and TF-IDF, and where the model is."""
    if result["measured_on"] == "test":
        title = f"{result['n']:,} test examples; thresholds fitted on validation"
    else:
        title = (
            f"{result['n']:,} validation examples; thresholds fitted on others of them (no --test)"
        )
    columns = {
        "dummy": result["dummy"],
        "at 0.5": result["at_half"],
        f"one, {result['threshold']:.3f}": result["one_threshold"],
        "one per label": result["decision"],
    }
    print_metrics(title, columns)
    _say(
        f"model: {result['model']} ({result['features']:,} words and pairs, {result['labels']:,} "
        "labels)"
    )


def print_evaluation(result: Mapping[str, Any]) -> None:
    """The metrics table, and the labels with the most support."""
    columns = {"at 0.5": result["at_half"], "decision": result["decision"]}
    ends = result["bootstrap"]["decision"]
    columns["±"] = {name: pair and (pair[1] - pair[0]) / 2 for name, pair in ends.items()}
    if "first_window" in result:
        columns["first window"] = result["first_window"]
    share = f"{result['bootstrap']['confidence']:.0%}"
    title = f"{result['n']:,} examples; ±: half the {share} interval of the decision"
    print_metrics(title, {**columns, "dummy": result["dummy"]})
    if "first_window" in result:
        _say(
            f"{result['several_windows']:.1%} of the documents have more than one window; 'first "
            "window' is the same decision where the rest is cut off"
        )
    if result["ranking"]:
        table = _table("the first k labels of each document", "k", "value", "±")
        for name, found in result["ranking"].items():
            pair = found["interval"]
            half = pair and (pair[1] - pair[0]) / 2
            table.add_row(name, _figure(found["value"]), _figure(half))
        _console().print(table)
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
    found = result["calibration"]
    columns = {"scores": found["scores"]}
    if found["calibrated"] is not None:
        columns[f"by {found['method']}"] = found["calibrated"]
    _print_calibration_errors("calibration", columns)


def print_decision(result: Mapping[str, Any]) -> None:
    """What thresholds, and what goes with them, give before and after."""
    titles = {
        "at_half": "at 0.5",
        "before": "before",
        "fitted": "fitted here",
        "held_out": "held out",
    }
    metrics = {titles[name]: values for name, values in result["metrics"].items()}
    print_metrics(f"thresholds for {result['objective']}", metrics)
    if result["calibration"] is not None:
        print_calibration(result["calibration"])
    for name, found in result["reached"].items():
        _say(
            f"{titles[name]}: precision {found['precision']:.4f} and recall {found['recall']:.4f} "
            f"over all labels; no label for more than {found['largest_rate']:.2%} of documents"
        )
    own = result["decision"]["per_label"]
    every = f"from {result['decision']['threshold']:.4f}"
    if own:
        others = result["labels"] - len(own)
        _say(
            f"{len(own)} labels from {min(own.values()):.4f} to {max(own.values()):.4f}"
            f"{f', the other {others} {every}' if others else ''}"
        )
    else:
        _say(f"all labels {every}")
    _say(f"written: {result['written']}")


def print_calibration(result: Mapping[str, Any]) -> None:
    """How far scores are from probabilities, before and after."""
    titles = {"before": "scores", "fitted": "fitted here", "held_out": "held out"}
    columns = {titles[name]: errors for name, errors in result["error"].items()}
    _print_calibration_errors(f"calibration by {result['method']}", columns)
    own = f"{result['own']} labels have a curve of their own"
    _say(own if result["own"] else "all labels share one curve")
    errors = result["error"]
    if errors["held_out"]["log_loss"] >= errors["before"]["log_loss"]:
        _say("held out, it is no better than the scores themselves: leave --calibrate out")


def _print_calibration_errors(
    title: str, columns: Mapping[str, Mapping[str, float | None]]
) -> None:
    table = _table(title, "error", *columns)
    names = {"ece": "ECE", "ece_macro": "ECE, mean of labels", "log_loss": "log loss"}
    for name, shown in names.items():
        table.add_row(shown, *(_figure(errors[name]) for errors in columns.values()))
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
        _say(f"  labels: {listed(result['labels']) or '(none)'}")
        ranked = sorted(result["scores"].items(), key=lambda item: -item[1])
        for label, score in ranked[:top]:
            mark = "●" if label in result["labels"] else " "
            calibrated = result["probabilities"]
            meant = f" ({calibrated[label]:.4f} calibrated)" if calibrated else ""
            _say(f"  {mark} {score:.4f}{meant}  {label}")
        for explanation in result.get("explanations", []):
            _print_explanation(result, explanation)


def _print_explanation(result: Mapping[str, Any], explanation: Mapping[str, Any]) -> None:
    """The words that did most for and against a label; on a terminal the text, colored."""
    where = ""
    if result["n_windows"] > 1:
        where = f" in window {explanation['window'] + 1} of {result['n_windows']}"
    _say(
        f"  why {explanation['label']}{where}: logit {explanation['empty_logit']:+.2f} without "
        f"words, {explanation['logit']:+.2f} with these:"
    )
    words = explanation["words"]
    # of a TF-IDF model what it has weights for: words and pairs
    ranked = sorted(explanation["terms"] or words, key=lambda term: -abs(term["share"]))
    shown = ", ".join(f"{term['text']} {term['share']:+.2f}" for term in ranked[:WORDS_SHOWN])
    _say(f"    {shown or '(none)'}")
    console = _console()
    if not console.is_terminal or not words:
        return
    most = max(abs(word["share"]) for word in words) or 1.0
    text = Text(result["text"])
    for word in words:
        strength = abs(word["share"]) / most
        if strength >= FAINTEST:
            # from white to full color: red speaks for the label, blue against it
            fade = round(255 * (1 - strength))
            color = f"#ff{fade:02x}{fade:02x}" if word["share"] > 0 else f"#{fade:02x}{fade:02x}ff"
            style = f"black on {color}"
            text.stylize(style, word["start"], word["start"] + len(word["text"]))
    low, high = words[0]["start"], words[-1]["start"] + len(words[-1]["text"])
    console.print(text[low:high])


def print_score_summary(output: str, summary: Mapping[str, Any]) -> None:
    """What a scoring run did."""
    from ray_mlc.scoring.night_drift import describe_drift

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
    for drift in summary.get("drift", ()):
        if (moved := describe_drift(drift)) is not None:
            _say(f"drift in night {drift['night']}: {moved}")
    if here["rows"]:
        _say(
            f"{here['rows_per_s']:,.0f} rows/s, {here['tokens_per_s']:,.0f} tokens/s, padding "
            f"{here['padding']:.1%}, {here['seconds']:,.1f} s; {summary['labels_per_row']:.2f} "
            f"labels per row, {summary['truncated']:,} texts cut"
        )


def print_retag(output: str, summary: Mapping[str, Any]) -> None:
    """What deciding again did."""
    rows, here, again = summary["rows"], summary["this_process"], summary["retag"]
    _say(
        f"{rows['written']:,} of {rows['planned']:,} rows decided again, written to {output}: "
        f"{summary['labels_per_row']:.2f} labels per row, "
        f"{again['labels_per_row_before']:.2f} before"
    )
    if rows["set_aside"]:
        _say(
            f"{rows['set_aside']:,} rows of {summary['bad_files']} file(s) set aside: see "
            "_ray_mlc/failures.json"
        )
    if again["unsettled"]:
        _say(
            f"{again['unsettled']:,} rows might have other labels by the scores that were not "
            "stored: cut by output.k or below output.floor, or rounded to float16 at a threshold"
        )
    if here["rows"]:
        _say(f"{here['rows_per_s']:,.0f} rows/s, {here['seconds']:,.1f} s")


def print_comparison(result: Mapping[str, Any]) -> None:
    """Two sides: the labels that moved most, the rows that differ most, and the gates."""
    for name in ("a", "b"):
        side = result[name]
        what = "validation documents of" if side["kind"] == "model" else "scored rows of"
        _say(
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
    table = _table(f"per label{of_all}", "label", *columns)
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
    _console().print(table)
    if any(row["psi"] <= row["psi_by_chance"] for row in shown):
        _say("·: no more than what so few rows give by chance")
    labels = result["labels"]
    for name in ("a", "b"):
        if only := labels[f"only_{name}"]:
            _say(f"on side {name} alone: {listed(only, most=5)}")
    if flips is not None:
        _say(
            f"{flips['rows']:,} rows on both sides by source and row: {flips['agreement']:.2%} "
            f"have the same labels; b gives {flips['gained']:,} labels more and "
            f"{flips['lost']:,} less"
        )
        for example in result["largest_flips"][:FLIPS_SHOWN]:
            said = ", ".join(_flip(label) for label in example["labels"][:3])
            more = len(example["labels"]) - 3
            _say(
                f"  {example['source']} row {example['row']:,}: {said}"
                f"{f' and {more} more' if more > 0 else ''}"
            )
    for note in result["notes"]:
        _say(f"note: {note}")
    for gate in result["gates"]:
        _say(f"{'holds' if gate['holds'] else 'does not hold'}: {gate['gate']}: {gate['why']}")


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
    _say(
        f"{state['state']}: {rows['written']:,} of {rows['planned']:,} rows ({share:.1%}), "
        f"{units['written']:,} of {units['planned']:,} units, {state['set_aside']} set aside, "
        f"{size(state['bytes'])}; model {state['model']}, started {state['created']}"
    )
    if state["now"] is not None:
        _say(f"now: {_at_work(state['now'])}")
    if missing := state["missing"]:
        _say(
            f"{len(missing):,} part(s) are gone since the run was complete, such as {missing[0]}: "
            "run the same `ray-mlc score` command to make them again"
        )
    if extra := state["extra"]:
        _say(
            f"{len(extra):,} Parquet file(s) are in no plan, such as {extra[0]}, but readers of "
            "the output will take them for parts: move them away"
        )
    if report := state["report"]:
        _say(f"report of night {state['nights']}: {report}")


def print_report(figures: Mapping[str, Any]) -> None:
    """What stands out in a night, and where its page is."""
    for item in figures["findings"]:
        _say(item["finding"])
        if item["to_do"] != "Nothing.":
            _say(f"  {item['to_do']}")
    print_report_place(figures["report"])


def print_report_place(place: str) -> None:
    """Where the page of a night is."""
    _say(f"report: {place}")


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
        best = ", ".join(f"{quoted(name)} {score:.3f}" for name, score in document["best"].items())
        _say(f"\n{document['source']} row {document['row']}: {text[:100]}…")
        _say(f"  labels: {listed(document['labels'])}   (best: {best})")


def print_checks(checks: Iterable[Check]) -> None:
    """What `doctor` found."""
    table = _table("doctor", "check", "state", "finding")
    table.columns[2].justify = "left"
    table.columns[2].no_wrap = False
    for check in checks:
        table.add_row(check.name, check.state, check.finding)
    _console().print(table)


def print_export(result: Mapping[str, Any]) -> None:
    """What was written, and how it was proven."""
    check, total = result["check"], sum(result["files"].values())
    _say(
        f"{result['model']} as {result['format']}: {len(result['files'])} files, "
        f"{size(total)}; loaded by {check['loaded_by']}, it reproduces the canaries: "
        f"largest score difference {check['max_difference']:.2g}, {check['flips']} of "
        f"{check['cells']:,} labels differ"
    )
    for note in result["notes"]:
        _say(f"note: {note}")
    if result["output"] is not None:
        _say(f"written: {result['output']}")
    if result["pushed"] is not None:
        _say(f"pushed: {result['pushed']}")


def print_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Submissions of a cluster; times are UTC."""
    table = _table("jobs", "id", "status", "exit", "started", "output")
    table.columns[0].no_wrap = True
    table.columns[4].justify, table.columns[4].no_wrap = "left", False
    for job in jobs:
        code = "–" if job["exit_code"] is None else str(job["exit_code"])
        started = (job["started"] or "–")[:16].replace("T", " ")
        table.add_row(job["id"], job["status"], code, started, "\n".join(job["outputs"]) or "–")
    _console().print(table)
