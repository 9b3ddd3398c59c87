"""What commands about data and models print for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ray_mlc.cli.printing import console, figure, say, size, table_of
from ray_mlc.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from ray_mlc.labels import listed

if TYPE_CHECKING:
    from ray_mlc.training.convert import ConvertSummary

LABELS_SHOWN = 30
TRIALS_SHOWN = 10
WORDS_SHOWN = 8
"""Words of an explanation that are named with their shares."""
FAINTEST = 0.1
"""Share, of the largest one, from which on a word is colored."""


def print_conversion(summary: ConvertSummary) -> None:
    """What was written, what is odd about it, and the most frequent labels."""
    say(
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
            say(f"  {count:>9,}  {what}")
    table = table_of("", "label", "rows", "share")
    for label, count in list(summary.labels.items())[:LABELS_SHOWN]:
        table.add_row(label, f"{count:,}", f"{count / summary.rows:.2%}")
    console().print(table)
    if len(summary.labels) > LABELS_SHOWN:
        say(f"… and {len(summary.labels) - LABELS_SHOWN:,} more labels")


def print_metrics(title: str, columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """Metrics in rows, models or decisions in columns."""
    table = table_of(title, "metric", *columns)
    for name in METRIC_NAMES:
        table.add_row(name, *(figure(metrics.get(name)) for metrics in columns.values()))
    console().print(table)


def print_training(summary: Mapping[str, Any]) -> None:
    """Validation metrics of the model that was kept, and how it reads long documents."""
    columns = {"at 0.5": summary["metrics"]["at_half"]}
    columns[f"at {summary['threshold']:.3f}"] = summary["metrics"]["decision"]
    print_metrics("validation", columns)
    if (windows := summary["windows"]) is not None:
        others = [
            f"{figure(value)} by {how}"
            for how, value in sorted(windows["values"].items(), key=lambda item: -(item[1] or 0))
            if how != windows["chosen"]
        ]
        said = f"windows are joined by {windows['chosen']}"
        if windows["chosen"] in windows["values"]:
            said += f": {windows['metric']} {figure(windows['values'][windows['chosen']])}"
        say(said + (f", against {', '.join(others)}" if others else ""))
    say(f"model: {summary['model']} (epoch {summary['best_epoch']})")


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
    table = table_of(f"{of_all}, on validation", "trial", metric, "epoch", "state", "values")
    table.columns[0].min_width = 5
    table.columns[3].min_width = 8
    table.columns[4].justify = "left"
    table.columns[4].no_wrap = False
    for row in shown:
        values = zip(short, (row["values"][key] for key in keys), strict=True)
        table.add_row(
            str(row["trial"]),
            figure(row["metrics"][metric]),
            f"{row['best_epoch']} of {row['epochs']}",
            row["state"],
            Text(", ".join(f"{name} {_value(value)}" for name, value in values)),
        )
    console().print(table)
    counts = {state: sum(row["state"] == state for row in rows) for state in ("stopped", "failed")}
    if counts["stopped"]:
        say(f"{counts['stopped']} trials were stopped early: not among the best")
    if counts["failed"]:
        first = next(row for row in rows if row["state"] == "failed")
        say(f"{counts['failed']} trials failed, the first, {first['trial']}: {first['error']}")
    say(f"model: {summary['model']} (trial {summary['best_trial']}, epoch {summary['best_epoch']})")


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
    say(
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
        say(
            f"{result['several_windows']:.1%} of the documents have more than one window; 'first "
            "window' is the same decision where the rest is cut off"
        )
    if result["ranking"]:
        table = table_of("the first k labels of each document", "k", "value", "±")
        for name, found in result["ranking"].items():
            pair = found["interval"]
            half = pair and (pair[1] - pair[0]) / 2
            table.add_row(name, figure(found["value"]), figure(half))
        console().print(table)
    labels = sorted(result["per_label"], key=lambda row: -row["support"])
    shown = labels[:LABELS_SHOWN]
    of_all = "" if len(shown) == len(labels) else f", {len(shown)} most frequent of {len(labels)}"
    table = table_of(
        f"per label, at the decision{of_all}",
        *("label", "precision", "recall", "f1", "support", "predicted", "AP"),
    )
    for row in shown:
        table.add_row(
            row["label"],
            *(figure(row[name]) for name in ("precision", "recall", "f1")),
            f"{row['support']:,}",
            f"{row['predicted']:,}",
            figure(row["average_precision"]),
        )
    console().print(table)
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
        say(
            f"{titles[name]}: precision {found['precision']:.4f} and recall {found['recall']:.4f} "
            f"over all labels; no label for more than {found['largest_rate']:.2%} of documents"
        )
    own = result["decision"]["per_label"]
    every = f"from {result['decision']['threshold']:.4f}"
    if own:
        others = result["labels"] - len(own)
        say(
            f"{len(own)} labels from {min(own.values()):.4f} to {max(own.values()):.4f}"
            f"{f', the other {others} {every}' if others else ''}"
        )
    else:
        say(f"all labels {every}")
    say(f"written: {result['written']}")


def print_calibration(result: Mapping[str, Any]) -> None:
    """How far scores are from probabilities, before and after."""
    titles = {"before": "scores", "fitted": "fitted here", "held_out": "held out"}
    columns = {titles[name]: errors for name, errors in result["error"].items()}
    _print_calibration_errors(f"calibration by {result['method']}", columns)
    own = f"{result['own']} labels have a curve of their own"
    say(own if result["own"] else "all labels share one curve")
    errors = result["error"]
    if errors["held_out"]["log_loss"] >= errors["before"]["log_loss"]:
        say("held out, it is no better than the scores themselves: leave --calibrate out")


def _print_calibration_errors(
    title: str, columns: Mapping[str, Mapping[str, float | None]]
) -> None:
    table = table_of(title, "error", *columns)
    names = {"ece": "ECE", "ece_macro": "ECE, mean of labels", "log_loss": "log loss"}
    for name, shown in names.items():
        table.add_row(shown, *(figure(errors[name]) for errors in columns.values()))
    console().print(table)


def print_predictions(results: Sequence[Mapping[str, Any]], *, top: int) -> None:
    """Each text with its best scores; a mark where the decision gives the label."""
    for result in results:
        if result["status"] != "ok":
            say(f"{result['text']!r}  {result['status']}: not scored")
            continue
        cut = ", cut" if result["truncated"] else ""
        text = result["text"] if len(result["text"]) <= 70 else result["text"][:69] + "…"
        say(f"{text!r}  {result['latency_ms']:.1f} ms, {result['n_tokens']} tokens{cut}")
        say(f"  labels: {listed(result['labels']) or '(none)'}")
        ranked = sorted(result["scores"].items(), key=lambda item: -item[1])
        for label, score in ranked[:top]:
            mark = "●" if label in result["labels"] else " "
            calibrated = result["probabilities"]
            meant = f" ({calibrated[label]:.4f} calibrated)" if calibrated else ""
            say(f"  {mark} {score:.4f}{meant}  {label}")
        for explanation in result.get("explanations", []):
            _print_explanation(result, explanation)


def _print_explanation(result: Mapping[str, Any], explanation: Mapping[str, Any]) -> None:
    """The words that did most for and against a label; on a terminal the text, colored."""
    where = ""
    if result["n_windows"] > 1:
        where = f" in window {explanation['window'] + 1} of {result['n_windows']}"
    say(
        f"  why {explanation['label']}{where}: logit {explanation['empty_logit']:+.2f} without "
        f"words, {explanation['logit']:+.2f} with these:"
    )
    words = explanation["words"]
    # of a TF-IDF model what it has weights for: words and pairs
    ranked = sorted(explanation["terms"] or words, key=lambda term: -abs(term["share"]))
    shown = ", ".join(f"{term['text']} {term['share']:+.2f}" for term in ranked[:WORDS_SHOWN])
    say(f"    {shown or '(none)'}")
    terminal = console()
    if not terminal.is_terminal or not words:
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
    terminal.print(text[low:high])


def print_exploration(figures: Mapping[str, Any]) -> None:
    """What stands out, and what to do about it."""
    from ray_mlc.report.explore import findings

    for finding, remedy in findings(figures):
        say(finding)
        say(f"  {remedy}")


def print_split(result: Mapping[str, Any]) -> None:
    """Rows of the parts, what they share, and the labels that are spread least evenly."""
    table = table_of(result["output"], "part", "rows", "share", "asked for", "labels absent")
    balance = result["balance"]
    for part in result["parts"]:
        asked = "–" if part["asked"] is None else f"{part['asked']:,}"
        absent = f"{balance['absent'][part['name']]:,}"
        table.add_row(part["name"], f"{part['rows']:,}", f"{part['share']:.2%}", asked, absent)
    console().print(table)
    units = result["units"]
    if units["rows_in_groups"]:
        say(
            f"{units['rows_in_groups']:,} rows stay together in groups, the largest of "
            f"{units['largest']:,} rows"
        )
    leakage = result["leakage"]
    leaks = [shared for shared in leakage["parts"] if shared["exact"] or shared["near"]]
    for shared in leaks:
        near = "" if shared["near"] is None else f", {shared['near']:,} more nearly so"
        say(
            f"{shared['of']}: the text of {shared['exact']:,} row(s) ({shared['exact_share']:.2%}) "
            f"is in {shared['also_in']} too{near}"
        )
    if leakage["jaccard"] is not None:
        say(f"nearly the same: a Jaccard similarity of {leakage['jaccard']:g} or more")
    could_be_near = result["by"] != "given" and result["group_duplicates"] != "near"
    if could_be_near and any(shared["near"] for shared in leaks):
        say("--group-duplicates near keeps them together")
    if not leaks:
        say("no text is in two parts")
    say(
        f"label rates: a part's differs from the whole's by {balance['mean_difference']:.4%} in "
        f"the mean over labels, by {balance['largest_difference']:.2%} at most"
    )
    names = [part["name"] for part in result["parts"]]
    table = table_of("labels spread least evenly", "label", "rows", *(f"{n}, %" for n in names))
    for label in balance["labels"][:10]:
        rates = (f"{100 * label['rate_by_part'][name]:.3f}" for name in names)
        table.add_row(label["label"], f"{label['rows']:,}", *rates)
    console().print(table)
    for path in result["files"]:
        say(f"written: {path}")


def print_export(result: Mapping[str, Any]) -> None:
    """What was written, and how it was proven."""
    check, total = result["check"], sum(result["files"].values())
    say(
        f"{result['model']} as {result['format']}: {len(result['files'])} files, "
        f"{size(total)}; loaded by {check['loaded_by']}, it reproduces the canaries: "
        f"largest score difference {check['max_difference']:.2g}, {check['flips']} of "
        f"{check['cells']:,} labels differ"
    )
    for note in result["notes"]:
        say(f"note: {note}")
    if result["output"] is not None:
        say(f"written: {result['output']}")
    if result["pushed"] is not None:
        say(f"pushed: {result['pushed']}")
