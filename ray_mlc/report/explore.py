"""The page of `data explore`: what the examples look like, and what to do about it.

Drawn from the figures that `data explore --json` prints, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ray_mlc.labels import listed
from ray_mlc.report.explore_plots import (
    DRIFT,
    FEW,
    cut_off_curve,
    label_drift,
    label_ranks,
    label_rates,
    label_square,
    labels_per_document,
    length_histogram,
)
from ray_mlc.report.page import Part, Plot, Section, Table, Tree, Twig, render_page

BARS = 40
"""Labels drawn one by one; all of them stand in the table."""
WHOLE = 0.95
"""Share of documents that a suggested cut-off leaves whole."""
Figures = Mapping[str, Any]


def exploration_page(figures: Figures, *, made: str) -> str:
    """One HTML document.

    Args:
        figures: `training.exploration.Exploration` as a dictionary, with `sources` and `seconds`.
        made: When, as it is to be shown.
    """
    rows = sum(split["rows"] for split in figures["splits"])
    names = list(figures["sources"])
    sections = [
        Section(
            "In short",
            "What stands out, and what to do about it.",
            [Table(["finding", "what to do"], list(findings(figures)))],
        ),
        _splits(figures),
        *(_lengths(lengths) for lengths in figures["lengths"]),
        _labels(figures),
        Section(
            "Labels per document", "", [Plot(labels_per_document(figures["labels_per_document"]))]
        ),
        *_hierarchy(figures),
        *_together(figures),
        *_duplicates(figures),
    ]
    return render_page(
        f"Exploration of {', '.join(names)}",
        facts=[
            *((name, path) for name, path in figures["sources"].items()),
            ("Examples", f"{rows:,} with {len(figures['labels']):,} labels"),
            ("Made", f"{made}, in {figures['seconds']:,.0f} s"),
        ],
        sections=sections,
    )


# --- in words


def findings(figures: Figures) -> list[tuple[str, str]]:
    """What stands out, and what to do about it; for the page and the terminal."""
    found = [
        *_length_findings(figures),
        *_row_findings(figures),
        *_label_findings(figures),
        *_hierarchy_findings(figures),
        *_duplicate_findings(figures),
    ]
    return found or [("Nothing stands out.", "Train.")]


def _length_findings(figures: Figures) -> list[tuple[str, str]]:
    lengths = figures["lengths"][-1]
    unit = lengths["unit"]
    usual = next((cut for cut in lengths["cut_offs"] if cut["whole"] >= WHOLE), None)
    found = []
    if usual is not None:
        text = (
            f"{usual['at']:,} {unit} keep {_percent(usual['whole'])} of the documents whole, and "
            f"{_percent(usual['kept'])} of all {unit}."
        )
        remedy = (
            f"training.max_tokens={usual['at']}, if the encoder takes so many; what less would "
            "cut is in the table of cut-offs."
            if unit == "tokens"
            else "Give --tokenizer with the encoder's name to see it in its tokens."
        )
        found.append((text, remedy))
    at_512 = next((cut for cut in lengths["cut_offs"] if cut["at"] == 512), None)
    if unit == "tokens" and at_512 is not None and at_512["whole"] < WHOLE:
        text = f"At 512 tokens, the limit of many encoders, {_percent(1 - at_512['whole'])} of the "
        text += f"documents are cut and {_percent(1 - at_512['kept'])} of all tokens lost."
        found.append(
            (text, "Read them whole with training.windows, or check how much the end matters.")
        )
    return found


def _row_findings(figures: Figures) -> list[tuple[str, str]]:
    found = []
    for split in figures["splits"]:
        name, rows = split["name"], split["rows"]
        if split["null_texts"] or split["empty_texts"]:
            text = f"{name}: {split['null_texts']:,} texts are null and {split['empty_texts']:,} "
            text += f"empty, of {rows:,}."
            found.append((text, "Leave these rows out: there is nothing to learn from them."))
        if split["duplicate_ids"]:
            text = f"{name}: {split['duplicate_ids']:,} row(s) have an id that an earlier row has."
            found.append((text, "Ids are not needed, but joins on them will multiply rows."))
        if split["not_annotated"]:
            text = f"{name}: in {split['not_annotated']:,} of {rows:,} rows nobody decided a label."
            found.append((text, "They are left out of training and metrics: have them labelled."))
        if split["unannotated_cells"]:
            text = f"{name}: {split['unannotated_cells']:,} single labels were not decided."
            found.append(
                (text, "Loss and metrics leave these cells out; rates are over decided ones.")
            )
        share = split["without_labels"] / max(rows - split["not_annotated"], 1)
        if share > 0.5:
            text = f"{name}: {_percent(share)} of the annotated rows have no label at all."
            found.append(
                (text, "Accuracy will look good for a model that says nothing: watch F1 and AP.")
            )
    return found


def _label_findings(figures: Figures) -> list[tuple[str, str]]:
    found = []
    labels, names = figures["labels"], [split["name"] for split in figures["splits"]]
    first = names[0]
    few = [label for label in labels if label["count"][first] < FEW]
    if few:
        text = f"{len(few):,} of {len(labels):,} labels have fewer than {FEW} examples in {first}"
        text += f", such as {_quoted(few)}."
        found.append(
            (text, "A model will hardly learn them: collect more, merge them, or leave them out.")
        )
    for name in names:
        absent = set(figures["absent"][name])
        some = [label for label in labels if label["label"] in absent]
        if some:
            text = f"{len(some):,} label(s) are absent from {name}, such as {_quoted(some)}"
            frequent = sum(label["rows"] >= FEW for label in some)
            text += f"; {frequent:,} of them have {FEW} examples or more elsewhere."
            remedy = (
                "A model cannot learn them."
                if name == first
                else "They cannot be measured on it, and macro-F1 counts them as 0."
            )
            if frequent:
                remedy += " `data split --by stratified` gives each part its share."
            found.append((text, remedy))
    rates = [label["rows"] for label in labels if label["rows"]]
    if rates and rates[0] > 100 * rates[-1]:
        text = f"The most frequent label has {rates[0]:,} examples, the rarest {rates[-1]:,}."
        found.append(
            (text, "Fit thresholds per label (`thresholds`), and look at macro figures too.")
        )
    drifting = [label for label in labels if _drift(label) >= DRIFT]
    if drifting:
        drifting.sort(key=_drift, reverse=True)
        text = (
            f"{len(drifting):,} label(s) differ in rate between splits by more than chance, most "
        )
        text += f"of all {_quoted(drifting)}."
        found.append(
            (text, "Thresholds fitted on one split will be off on another: was the split by time?")
        )
    same = [pair for pair in figures["pairs"] if pair["phi"] > 0.95]
    if same:
        text = f"{len(same)} or more pair(s) of labels are nearly always given together, such as "
        text += f"{same[0]['first']!r} and {same[0]['second']!r}."
        found.append((text, "One of the two may be enough."))
    return found


def _hierarchy_findings(figures: Figures) -> list[tuple[str, str]]:
    facts = figures.get("hierarchy")
    if facts is None:
        return []
    found = []
    rows = {split["name"]: split["rows"] - split["not_annotated"] for split in figures["splits"]}
    lacking = sum(facts["gap_rows"].values())
    if lacking:
        text = f"{lacking:,} annotated row(s) ({_percent(lacking / max(1, sum(rows.values())))}) "
        text += "have a label without one above it"
        if facts["gaps"]:
            gap = facts["gaps"][0]
            text += f", most often {gap['label']!r} without {gap['parent']!r} ({gap['rows']:,} of "
            text += f"{gap['of']:,})"
        remedy = "A model with this hierarchy gives what lies above, and figures on such rows count"
        remedy += " it as wrong: close the labels upward, or correct the hierarchy."
        found.append((text + ".", remedy))
    unseen = [node for node in facts["nodes"] if not sum(node["closed"].values())]
    if unseen:
        text = f"{len(unseen):,} of the {len(facts['nodes']):,} labels of {facts['file']} are in "
        text += f"no row, nor any below them, such as {_quoted(unseen)}."
        found.append(
            (text, "Check their spelling: `train` refuses a hierarchy of labels that no row has.")
        )
    return found


def _duplicate_findings(figures: Figures) -> list[tuple[str, str]]:
    found = []
    duplicates = figures["duplicates"]
    rows = {split["name"]: split["rows"] for split in figures["splits"]}
    first = next(iter(rows))
    repeated = {one["split"]: one["exact"] for one in duplicates["within"] if one["exact"]}
    if repeated:
        text = f"{sum(repeated.values()):,} row(s) repeat the text of an earlier row of their split"
        if len(rows) > 1:
            text += f" ({', '.join(f'{name} {count:,}' for name, count in repeated.items())})"
        found.append((text + ".", "Drop them, or they count more than others."))
    for shared in duplicates["across"]:
        if shared["also_in"] != first or not (shared["exact"] or shared["near"]):
            continue
        text = f"{shared['of']}: the text of {shared['exact']:,} row(s) "
        text += f"({_percent(shared['exact_share'])}) is in {first} too"
        if shared["near"]:
            text += f", and of {shared['near']:,} more ({_percent(shared['near_share'])}) nearly"
        option = " --group-duplicates near" if shared["near"] else ""
        remedy = f"Figures on it will flatter: `data split{option}` keeps such texts together."
        found.append((text + ".", remedy))
    if duplicates["contradicted_rows"]:
        text = f"{duplicates['contradicted_rows']:,} rows have the text of another, but not its "
        text += f"labels ({duplicates['contradicted_texts']:,} texts)."
        found.append((text, "No model can be right on all of them: settle the labels."))
    return found


def _drift(label: Mapping[str, Any]) -> float:
    """The largest drift of a label, whatever its direction."""
    return max(map(abs, label["drift"].values()), default=0.0)


def _quoted(labels: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(repr(label["label"]) for label in labels[:3])


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    if 0 < share < 0.0005:
        return "less than 0.1%"
    if 0.9995 <= share < 1:
        return "more than 99.9%"
    return "all" if share == 1 else f"{share:.1%}"


# --- sections


def _splits(figures: Figures) -> Section:
    facts = {
        "rows": "rows",
        "labels that a row has": "labels_used",
        "labels per annotated row": "labels_per_document",
        "annotated rows without a label": "without_labels",
        "rows in which no label was decided": "not_annotated",
        "single labels not decided in other rows": "unannotated_cells",
        "null texts": "null_texts",
        "texts of white space only": "empty_texts",
        "rows whose id an earlier row has": "duplicate_ids",
    }
    splits = figures["splits"]
    rows = [[name, *(split[key] for split in splits)] for name, key in facts.items()]
    return Section("Rows", "", [Table(["", *(split["name"] for split in splits)], rows, digits=2)])


def _lengths(lengths: Mapping[str, Any]) -> Section:
    unit = lengths["unit"]
    facts = [
        [s["split"], s["mean"], s["p50"], s["p90"], s["p95"], s["p99"], s["longest"], s["total"]]
        for s in lengths["splits"]
    ]
    heads = ["split", "mean", "median", "90 %", "95 %", "99 %", "longest", f"{unit} in all"]
    cuts = [
        [
            cut["at"],
            100 * cut["whole"],
            100 * (1 - cut["whole"]),
            100 * cut["kept"],
            100 * (1 - cut["kept"]),
        ]
        for cut in lengths["cut_offs"]
    ]
    cut_heads = [f"cut-off, {unit}", "documents whole, %", "documents cut, %"]
    cut_heads += [f"{unit} kept, %", f"{unit} lost, %"]
    what = "Between white space." if unit == "words" else f"Of {lengths['tokenizer']}, special "
    what += "" if unit == "words" else "tokens included."
    return Section(
        f"Length in {unit}",
        what,
        [
            Table(heads, facts, digits=0),
            Plot(
                length_histogram(lengths),
                note="Two humps are two kinds of documents.",
            ),
            Plot(
                cut_off_curve(lengths),
                note="Where both lines are flat a longer cut-off gains nothing.",
            ),
            Table(cut_heads, cuts, note="All splits together.", digits=1),
        ],
    )


def _labels(figures: Figures) -> Section:
    labels = figures["labels"]
    names = [split["name"] for split in figures["splits"]]
    parts: list[Part] = [Plot(label_rates(labels[:BARS], names))]
    if len(labels) > BARS:
        parts.append(
            Plot(
                label_ranks(labels, names),
                note="Each label once, the most frequent at the left. What lies below "
                f"{FEW} examples is hardly learned.",
            )
        )
    parts.append(_support_table(figures, names))
    if len(names) > 1 and len(labels) > BARS:
        parts.append(
            Plot(
                label_drift(labels, names),
                note="On the line a label is as frequent in both splits. Labels that the other "
                "split lacks lie at the lower edge; red: further apart than chance explains.",
            )
        )
    parts.append(_label_table(labels, names))
    words = "Share of the documents in which a label was decided that have it."
    if len(labels) > BARS:
        words += f" The {BARS} most frequent of {len(labels):,}; all of them in the table."
    return Section("Labels", words, parts)


def _support_table(figures: Figures, names: Sequence[str]) -> Table:
    edges = figures["support_from"]
    spans = [
        f"{low}" if high == low + 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)
    ]
    spans.append(f"{edges[-1]} or more")
    rows = [
        [span, *(figures["supports"][name][at] for name in names)] for at, span in enumerate(spans)
    ]
    return Table(
        ["examples", *(f"labels in {name}" for name in names)],
        rows,
        note="How many labels have so many examples.",
    )


def _label_table(labels: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    heads = ["label", *(f"{name}, rows" for name in names), *(f"{name}, %" for name in names)]
    if len(names) > 1:
        heads.append("drift")
    gaps = any(len(set(label["annotated"].values())) for label in labels) and any(
        label["annotated"] != labels[0]["annotated"] for label in labels
    )
    if gaps:
        heads += [f"{name}, decided" for name in names]
    rows = []
    for label in labels:
        row = [label["label"], *(label["count"][name] for name in names)]
        row += [None if (r := label["rate"][name]) is None else 100 * r for name in names]
        if len(names) > 1:
            row.append(_drift(label))
        if gaps:
            row += [label["annotated"][name] for name in names]
        rows.append(row)
    note = "Click a head to sort: the rarest labels by rows."
    if len(names) > 1:
        note += " Drift: how surprisingly a split's rate differs from that of the others, as "
        note += f"standard deviations; from {DRIFT:g} on it is hardly chance."
    return Table(heads, rows, note=note, digits=3)


def _hierarchy(figures: Figures) -> list[Section]:
    facts = figures.get("hierarchy")
    if facts is None:
        return []
    nodes = {node["label"]: node for node in facts["nodes"]}
    words = f"As {facts['file']} has it: {len(nodes):,} labels."
    if facts["alone"]:
        words += f" {facts['alone']:,} other labels are not in it."
    tree = Tree(
        ["label", "rows", "closed", "lack a parent"],
        _twigs(nodes),
        note="Rows: those that have the label. Closed: those that have it or one below it, as a "
        "model with this hierarchy gives it. Lack a parent: rows that have the label, and not all "
        "that lies above it, where that was decided. All splits together.",
    )
    parts: list[Part] = [tree]
    if facts["gaps"]:
        rows = [
            [gap["label"], gap["parent"], gap["rows"], gap["of"], 100 * gap["rows"] / gap["of"]]
            for gap in facts["gaps"]
        ]
        more = facts["gap_pairs"] - len(rows)
        note = "By split, rows that lack a label above one of theirs: "
        note += ", ".join(f"{name} {count:,}" for name, count in facts["gap_rows"].items()) + "."
        note += f" {more:,} more pairs are not shown." if more else ""
        heads = ["label", "without its parent", "rows", "rows with the label", "%"]
        parts.append(Table(heads, rows, note=note, digits=1))
    return [Section("Hierarchy", words, parts)]


def _twigs(nodes: Mapping[str, Mapping[str, Any]]) -> list[Twig]:
    """The tree line by line; a label with several parents has what is below it at the first."""
    below: dict[str | None, list[str]] = {}
    for name, node in nodes.items():
        for parent in node["parents"] or [None]:
            below.setdefault(parent, []).append(name)
    closed = {name: sum(node["closed"].values()) for name, node in nodes.items()}
    for names in below.values():
        names.sort(key=lambda name: -closed[name])
    twigs: list[Twig] = []
    shown: set[str] = set()
    todo = [(name, 0) for name in reversed(below[None])]
    while todo:  # not recursion: a chain of labels may be long
        name, depth = todo.pop()
        node = nodes[name]
        again = name in shown and name in below
        others = len(node["parents"]) - 1
        note = "what is below it stands elsewhere" if again else ""
        if others > 0 and not again:
            note = f"and under {others:,} other{'s' if others > 1 else ''}"
        figures = [sum(node["rows"].values()), closed[name], node["gaps"] or None]
        twigs.append(Twig(name, depth, figures, note))
        if not again:
            shown.add(name)
            todo += [(child, depth + 1) for child in reversed(below.get(name, []))]
    return twigs


def _together(figures: Figures) -> list[Section]:
    together = figures["together"]
    names = together["labels"]
    if len(names) < 2:
        return []
    which = "All labels" if len(names) == len(figures["labels"]) else "The most frequent labels"
    parts: list[Part] = [
        Plot(
            label_square(together["phi"], together, "phi", symmetric=True),
            note="Correlation (phi). Red: given together more often than by chance; blue: less.",
        ),
        Plot(
            label_square(together["given"], together, "share", symmetric=False),
            note="Read a row: of the documents with this label, how many have the other. A cell "
            "that is dark and pale across the diagonal: the row's label implies the column's.",
        ),
    ]
    if figures["pairs"]:
        rows = [
            [
                pair["first"],
                pair["second"],
                pair["both"],
                pair["phi"],
                100 * pair["second_given_first"],
                100 * pair["first_given_second"],
            ]
            for pair in figures["pairs"]
        ]
        heads = ["label", "and", "documents", "phi", "second if first, %", "first if second, %"]
        parts.append(Table(heads, rows, note="The strongest pairs.", digits=2))
    return [
        Section(
            "Labels together",
            f"{which}, those that go together beside each other.",
            parts,
        )
    ]


def _duplicates(figures: Figures) -> list[Section]:
    facts = figures["duplicates"]
    rows = {split["name"]: split["rows"] for split in figures["splits"]}
    names = list(rows)
    looked = facts["jaccard"] is not None
    words = "The same: equal but for case and white space."
    if looked:
        words += (
            f" Nearly the same: sets of {facts['shingle_words']} consecutive words, without "
            f"punctuation, that overlap by {facts['jaccard']:g} or more (Jaccard)."
        )
    within = [
        [
            one["split"],
            rows[one["split"]],
            one["exact"],
            100 * one["exact"] / max(rows[one["split"]], 1),
            one["near"],
            None if one["near"] is None else 100 * one["near"] / max(rows[one["split"]], 1),
        ]
        for one in facts["within"]
    ]
    parts: list[Part] = [
        Table(
            ["split", "rows", "repeat an earlier row", "%", "nearly like another row", "% nearly"],
            within,
            digits=2,
        )
    ]
    if facts["across"]:
        across = [
            [
                one["of"],
                one["also_in"],
                one["exact"],
                100 * one["exact_share"],
                one["near"],
                None if one["near_share"] is None else 100 * one["near_share"],
            ]
            for one in facts["across"]
        ]
        parts.append(
            Table(
                ["rows of", "also in", "the same", "%", "nearly the same", "% nearly"],
                across,
                note="Rows of a test split that are in the training split make its figures "
                "flatter. Nearly: those of which the same is not there. Where very many are alike "
                "not all are compared: these figures are lower bounds.",
                digits=2,
            )
        )
    for key, title in (
        ("groups", "The texts that are there most often."),
        ("near_groups", "The largest groups of texts that are nearly the same, one to the next."),
    ):
        if facts[key]:
            parts.append(_group_table(facts[key], names, title))
    sections = [Section("Duplicates", words, parts)]
    if facts["contradictions"]:
        sections.append(_contradictions(facts))
    return sections


def _group_table(groups: Sequence[Mapping[str, Any]], names: Sequence[str], note: str) -> Table:
    heads = ["rows", "different texts", *(names if len(names) > 1 else ()), "ids"]
    has_texts = groups[0]["text"] is not None
    rows = []
    for group in groups:
        ids = ", ".join(group["ids"]) + (", …" if group["rows"] > len(group["ids"]) else "")
        row = [group["rows"], group["texts"]]
        row += [group["count"][name] for name in names] if len(names) > 1 else []
        rows.append([*row, ids, *([group["text"]] if has_texts else [])])
    return Table([*heads, *(["text"] if has_texts else [])], rows, note=note)


def _contradictions(facts: Mapping[str, Any]) -> Section:
    has_texts = facts["contradictions"][0]["text"] is not None
    rows = []
    for one in facts["contradictions"]:
        sets = " | ".join(listed(labels) or "(none)" for labels in one["labels"])
        ids = ", ".join(one["ids"]) + (", …" if one["rows"] > len(one["ids"]) else "")
        rows.append([one["rows"], sets, ids, *([one["text"]] if has_texts else [])])
    heads = ["rows", "labels", "ids", *(["text"] if has_texts else [])]
    note = f"{len(rows)} of {facts['contradicted_texts']:,}."
    return Section(
        "The same text, different labels",
        f"{facts['contradicted_rows']:,} annotated rows share their text with another row, but "
        "not its labels.",
        [Table(heads, rows, note=note if facts["contradicted_texts"] > len(rows) else "")],
    )
