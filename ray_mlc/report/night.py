"""The report of a night: what came in and went out, what is odd about it, and what to do.

Sections stand in the order in which somebody asks in the morning. Texts of documents are shown only
if they are passed; else rows are named by file and position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_mlc.report import night_plots as plots
from ray_mlc.report.explore_plots import DRIFT, label_square, labels_per_document, length_histogram
from ray_mlc.report.findings import Figures, far_from, findings, percent
from ray_mlc.report.page import (
    Histograms,
    Markdown,
    Part,
    Plot,
    Section,
    Table,
    Verbatim,
    render_page,
)
from ray_mlc.report.remedies import STATUS_REMEDIES, remedy_of

RATES_SHOWN = 25
"""Labels of the plot of rates: the most frequent ones."""
SCATTER_FROM = 12
"""Labels from which rates are drawn against each other."""
TEXT_SHOWN = 400
"""Characters of a text that are shown."""

Cells = list[str | int | float | None]


def night_page(
    figures: Figures,
    *,
    made: str,
    card: str | None,
    job: str | None,
    texts: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """One HTML document that opens without a network.

    Args:
        figures: What `scoring.figures.night_figures` found.
        made: When, as it is to be shown.
        card: The model's card, as Markdown; None: it was not found.
        job: The resolved job, as YAML; None: it was not found.
        texts: Texts of the uncertain rows, by unit and place in it; None: the page shows none.
    """
    sections = [
        Section(
            "In short",
            "What stands out, and what to do about it.",
            [Table(["finding", "what to do"], list(findings(figures)))],
        ),
        _rows(figures),
        *_set_aside(figures),
        _labels(figures),
        *_scores(figures),
        *_uncertain(figures, texts),
        *_together(figures),
        *_lengths(figures),
        _speed(figures),
        _used(figures),
    ]
    if card is not None:
        sections.append(Section("The model's card", "", [Markdown(card)]))
    if job is not None:
        sections.append(Section("The job that started the run", "", [Verbatim(job)]))
    rows = figures["rows"]
    return render_page(
        f"Night {figures['night']} of {figures['output']}",
        facts=[
            ("State", f"{figures['state']}: {rows['written']:,} of {rows['planned']:,} rows"),
            ("Night", f"{figures['night']} of {figures['nights']}, planned {figures['planned']}"),
            ("Input", figures["used"]["input"]),
            ("Model", figures["used"]["model"]),
            ("Made", made),
        ],
        sections=sections,
    )


# --- in words


def _rows(figures: Figures) -> Section:
    rows, before = figures["rows"], figures["before"]
    total = max(1, rows["planned"])
    counts: list[Cells] = [
        [name.replace("_", " "), rows[name], 100 * rows[name] / total]
        for name in ("planned", "written", "set_aside", "missing")
    ]
    written = max(1, sum(figures["statuses"].values()))
    names = list(dict.fromkeys([*figures["statuses"], *(before or {"statuses": {}})["statuses"]]))
    statuses: list[Cells] = []
    for name in names:
        count = figures["statuses"].get(name, 0)
        row: Cells = [name, count, 100 * count / written]
        if before is not None:
            row.append(100 * before["statuses"].get(name, 0) / max(1, before["rows"]))
        statuses.append([*row, STATUS_REMEDIES.get(name, "")])
    heads = ["status", "rows", "% of those written"]
    heads += [f"% in night {before['night']}"] if before else []
    parts: list[Part] = [
        Table(["rows", "count", "% of those planned"], counts, digits=2),
        Table([*heads, "what it means"], statuses, digits=2),
    ]
    listed, files = figures["by_file"], figures["files"]
    again = files["planned_again"]
    more = "" if len(listed) == files["planned"] else f" The first {len(listed):,} are listed."
    note = f"Files of which something is missing or set aside come first.{more}"
    if again:
        note += (
            f" {again:,} file(s) of this night were planned again in a later one, and count there."
        )
    if listed:
        keys = ("source", "planned", "written", "set_aside", "missing")
        file_rows: list[Cells] = [[item[key] for key in keys] for item in listed]
        file_heads = ["file", *(key.replace("_", " ") for key in keys[1:])]
        parts.append(Table(file_heads, file_rows, note))
    words = f"{rows['planned']:,} rows of {files['planned']:,} file(s) were planned in this night."
    return Section("Rows and files", words, parts)


def _set_aside(figures: Figures) -> list[Section]:
    items = figures["set_aside"]
    parts: list[Part] = []
    if items:
        rows: list[Cells] = [
            [
                item["source"],
                "the file" if item["first_row"] is None else f"from row {item['first_row']:,}",
                item["rows"],
                item["reason"],
                remedy_of(item["reason"]),
            ]
            for item in items
        ]
        note = "A dash: nobody could read how many rows it has."
        if (more := figures["set_aside_count"] - len(items)) > 0:
            note += f" {more:,} more are in _ray_mlc/failures.json."
        parts.append(Table(["file", "what of it", "rows", "why", "what to do"], rows, note))
    if not parts and not figures["failed_rows"]:
        return []
    words = ""
    if failed := figures["failed_rows"]:
        words = (
            f"Over {failed:,} row(s) the tokenizer or the engine failed; they have a status. What "
            "it said is in _ray_mlc/summary.json, not here, because it may quote the text."
        )
    return [Section("What was set aside, and why", words, parts)]


def _labels(figures: Figures) -> Section:
    labels, before = figures["labels"], figures["before"]
    night = f"night {figures['night']}"
    other = None if before is None else f"night {before['night']}"
    frequent = sorted(labels, key=lambda label: -label["given"])
    if not figures["scored"]:
        return Section("How often labels are given", "No row was scored.")
    parts: list[Part] = [
        Plot(
            plots.rates(_foremost(labels), night=night, before=other),
            "Bars: 95 % intervals (Wilson), of chance alone."
            + (f" The {RATES_SHOWN} most frequent labels." if len(labels) > RATES_SHOWN else ""),
        )
    ]
    drawn = [("before", other or ""), ("training", "training")]
    for key, name in drawn:
        if len(labels) >= SCATTER_FROM and any(label[key] for label in labels):
            figure = plots.drift(labels, key, night=night, other=name, far=far_from(labels, key))
            parts.append(Plot(figure, f"A point a label: on the line its rate is that of {name}."))
    parts.append(_label_table(frequent, figures))
    words = (
        f"Of {figures['scored']:,} scored rows. What a decision gives need not be what there is: "
        "where precision or recall is low, rates differ from those of training for that alone."
    )
    return Section("How often labels are given", words, parts)


def _foremost(labels: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The most frequent labels, tonight or before: one that has gone is among them."""
    keys = ("rate", "before", "training")
    return sorted(labels, key=lambda label: -max(label[key] or 0.0 for key in keys))[:RATES_SHOWN]


def _label_table(labels: Sequence[Mapping[str, Any]], figures: Figures) -> Table:
    before = figures["before"]
    rates_known = any(label["training"] is not None for label in labels)
    heads = ["label", "rows", "%", "from", "to"]
    heads += ["training, %", "apart"] if rates_known else []
    heads += [f"night {before['night']}, %", "apart"] if before else []
    heads += ["threshold", "near it, %"]
    scored = max(1, figures["scored"])
    rows: list[Cells] = []
    for label in labels:
        low, high = label["interval"]
        row: Cells = [label["label"], label["given"], 100 * label["rate"], 100 * low, 100 * high]
        for key, there in (("training", rates_known), ("before", before is not None)):
            if there:
                other = label[key]
                row += [None if other is None else 100 * other, label[f"from_{key}"]]
        rows.append([*row, label["threshold"], 100 * label["near"] / scored])
    near = figures["scores"]["near"]
    note = (
        "A click on a column's head sorts. From and to: 95 % interval of the rate. Apart: the "
        f"difference in standard errors; beyond ±{DRIFT} it is hardly chance. Near: rows whose "
        f"score lies within {near} of the threshold, or half-way to 0 or 1 if that is less."
    )
    if not rates_known:
        note += " The model's folder, with the rates of training, was not found or is another's."
    return Table(heads, rows, note, digits=3)


def _scores(figures: Figures) -> list[Section]:
    scores, labels = figures["scores"], figures["labels"]
    if not figures["scored"]:
        return []
    order = sorted(range(len(labels)), key=lambda place: -labels[place]["given"])
    said = []
    for place in order:
        label = labels[place]
        text = f"Given to {label['given']:,} rows ({percent(label['rate'])})"
        text += f"; {label['near']:,} scores near the threshold"
        if (unknown := figures["scored"] - label["stored"]) > 0:
            text += f"; of {unknown:,} rows the score is not stored"
        said.append(f"{text}.")
    note = "Rows by score, on a logarithmic axis; blue from the threshold on."
    if scores["format"] == "sparse":
        note += (
            f" The output keeps scores from {scores['floor']} on, at most {scores['k']} a row"
            + (f"; {scores['k_cut']:,} more were cut by that." if scores["k_cut"] else ".")
        )
    return [
        Section(
            "Scores",
            "A label whose scores pile up at its threshold is decided by little. The most frequent "
            "first; type a name, or step through them.",
            [
                Histograms(
                    "Label",
                    [labels[place]["label"] for place in order],
                    [scores["counts"][place] for place in order],
                    [labels[place]["threshold"] for place in order],
                    said,
                    note,
                )
            ],
        )
    ]


def _uncertain(figures: Figures, texts: Mapping[tuple[int, int], str] | None) -> list[Section]:
    cells = figures["uncertain"]
    if not cells:
        return []
    heads = ["file", "row", "label", "score", "threshold", "side"]
    heads += ["text"] if texts is not None else []
    rows: list[Cells] = []
    for cell in cells:
        side = "given" if cell["score"] >= cell["threshold"] else "not given"
        row: Cells = [cell[key] for key in ("source", "row", "label", "score", "threshold")]
        row.append(side)
        if texts is not None:
            text = texts.get((cell["unit"], cell["place"]))
            row.append(_beginning(text))
        rows.append(row)
    note = "Source and row are columns of the output, so that a row can be found again."
    if texts is None:
        note += " Texts are shown only if asked for (report.texts, or --texts)."
    used = figures["used"]
    if used["hierarchy"] or used["fallback"]:
        note += " Side: by the threshold alone; the decision also has parents or a fall-back."
    return [
        Section(
            "The most uncertain rows",
            "Scores nearest to their thresholds, of each label a few: what to annotate first.",
            [Table(heads, rows, note, digits=5)],
        )
    ]


def _beginning(text: str | None) -> str:
    if text is None:
        return "(the file has changed or is gone)"
    return text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 1]}…"


def _together(figures: Figures) -> list[Section]:
    together = figures["together"]
    if len(together["labels"]) < 2:
        return []
    which = "All labels" if together["of_all"] else "The most frequent labels"
    return [
        Section(
            "Labels together",
            f"{which}, as they were given.",
            [
                Plot(
                    label_square(together["phi"], together, "phi", symmetric=True),
                    "Correlation (phi). Red: given together more often than by chance; blue: less.",
                )
            ],
        )
    ]


def _lengths(figures: Figures) -> list[Section]:
    lengths, before = figures["lengths"], figures["before"]
    if not any(lengths["counts"][0]):
        return []
    names = [f"night {figures['night']}"] + ([f"night {before['night']}"] if before else [])
    drawn = {"unit": "tokens", "bins": lengths["bins"]}
    figure = length_histogram({**drawn, "counts": dict(zip(names, lengths["counts"], strict=True))})
    limit = figures["used"]["engine"]["max_tokens"]
    figure.add_vline(x=limit, line={"color": "#b8324a", "dash": "dot", "width": 2})
    scored = max(1, figures["scored"])
    quantiles = lengths["quantiles"]
    words = (
        f"Half of the texts have up to about {quantiles['0.5']:,} tokens, 99 % up to about "
        f"{quantiles['0.99']:,}. The model reads {limit:,} at once"
    )
    if figures["used"]["policy"] == "windows":
        words += f", in windows: {figures['several_windows']:,} rows have more than one"
    cut = figures["truncated"]
    words += f"; something was cut of {cut:,} rows ({percent(cut / scored)})"
    if (trained := figures["training"]["cut"]) is not None:
        words += f", {percent(trained)} in training"
    if before is not None:
        words += f", {percent(before['truncated'] / max(1, before['scored']))} the night before"
    per_row = {names[0]: _trimmed(figures["labels_per_row"])}
    if before is not None:
        per_row[names[1]] = _trimmed(before["labels_per_row"])
    last = len(figures["labels_per_row"]) - 1
    return [
        Section(
            "Lengths",
            f"{words}.",
            [Plot(figure, "Dotted: tokens that the model reads at once.")],
        ),
        Section(
            "Labels per row",
            "",
            [
                Plot(
                    labels_per_document(per_row, of="scored rows"),
                    f"Rows with more than {last} count with {last}.",
                )
            ],
        ),
    ]


def _trimmed(counts: Sequence[int]) -> list[int]:
    used = [place for place, count in enumerate(counts) if count]
    return list(counts[: max(used, default=0) + 1])


def _speed(figures: Figures) -> Section:
    speed = figures["speed"]
    process, steps = speed["process"], speed["steps"]
    words = ""
    if steps is not None and speed["seconds"] >= 1:
        words = f"Parts were written from {speed['first']} to {speed['last']}."
    if process and process["rows"]:
        words += (
            f" The last command that came to an end scored {process['rows']:,} rows in "
            f"{process['seconds']:,.0f} s: {process['rows_per_s']:,.0f} rows/s, "
            f"{process['tokens_per_s']:,.0f} tokens/s, padding {process['padding']:.1%}."
        )
    parts: list[Part] = []
    if steps is not None and len(steps["tokens"]) > 1:
        parts.append(
            Plot(
                plots.speed(steps),
                f"Scored tokens by the time at which their parts were written, in steps of "
                f"{steps['step_s']:,} s. Copying an output may change these times.",
            )
        )
    if speed["by_actor"]:
        keys = ("actor", "units", "rows", "tokens", "seconds", "tokens_per_s")
        rows: list[Cells] = [[item[key] for key in keys] for item in speed["by_actor"]]
        more = speed["actors"] - len(rows)
        note = "Host and process. Seconds: tokenizing and scoring, without waiting."
        note += f" {more:,} more are not listed." if more > 0 else ""
        heads = ["actor", "units", "rows", "tokens", "seconds", "tokens/s"]
        parts.append(Table(heads, rows, note, digits=1))
    if speed["slowest"]:
        keys = ("part", "rows", "tokens", "seconds", "tokens_per_s", "actor")
        slow: list[Cells] = [[item[key] for key in keys] for item in speed["slowest"]]
        heads = ["slowest units", "rows", "tokens", "seconds", "tokens/s", "actor"]
        note = (
            f"By tokens a second; half of all units reach {speed['median']:,.0f}. Units that were "
            "scored in one block share its time by their tokens. The first block of an actor is "
            "often slow: the engine makes itself ready."
        )
        parts.append(Table(heads, slow, note, digits=1))
    if not words and not parts:
        words = "Nothing was written in this night."
    return Section("Speed", words.strip(), parts)


def _used(figures: Figures) -> Section:
    used = figures["used"]
    engine = used["engine"]
    facts: list[Cells] = [
        ["engine", f"{engine['name']} {engine['dtype']} on {engine['device']}"],
        ["batches", f"at most {engine['max_batch_tokens']:,} padded tokens"],
        ["long texts", f"{used['policy']}, {engine['max_tokens']:,} tokens at once"],
        ["canaries", engine["canaries"] or "–"],
        ["text", used["text"]],
        ["kept columns", ", ".join(used["kept"]) or "none"],
        ["units", f"at most {used['units']['rows']:,} rows and {used['units']['bytes']:,} bytes"],
        ["decision", f"{used['decision'][:16]}…, fitted for {used['objective'] or 'nothing'}"],
        ["model", f"{used['model']}, SHA-256 {used['model_digest'][:16]}…"],
        ["run", f"{used['run'][:16]}…, started {used['created']}"],
    ]
    facts += [[name, version] for name, version in used["versions"].items()]
    parts: list[Part] = [Table(["what", "this run"], facts)]
    if engine["trials"]:
        rows: list[Cells] = [
            [
                f"{trial['name']} {trial['dtype']}{' packed' if trial['packed'] else ''}",
                trial["max_batch_tokens"],
                trial["tokens_per_s"],
                trial["verdict"],
            ]
            for trial in engine["trials"]
        ]
        heads = ["engine tried", "batch tokens", "tokens/s", "verdict"]
        parts.append(Table(heads, rows, "On documents of the corpus, at the first start.", 0))
    return Section("What the run used", "Recorded at its first start, and the same since.", parts)
