"""The evaluation report: how good a model is, how sure that is, and where it goes wrong.

Sections stand in the order in which a reader asks. Texts of documents are shown only if they are
passed; else mistakes are named by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from ray_mlc.evaluation.bootstrap import CONFIDENCE, LEAST_POSITIVES, Interval
from ray_mlc.evaluation.metrics import METRIC_NAMES
from ray_mlc.evaluation.ranking import KS
from ray_mlc.evaluation.study import PAIRS
from ray_mlc.labels import listed
from ray_mlc.report.evaluation_plots import (
    TITLES,
    calibration_figure,
    confusion_figure,
    curves_figure,
    cut_off,
    frequency_figure,
    headline_figure,
    lengths_figure,
    span_of,
    threshold_band,
    thresholds_figure,
)
from ray_mlc.report.explanations import explanations
from ray_mlc.report.page import (
    Choice,
    Part,
    Plot,
    Section,
    Table,
    render_page,
)

if TYPE_CHECKING:
    from ray_mlc.evaluation.lengths import LengthBucket
    from ray_mlc.evaluation.mistakes import Mistake
    from ray_mlc.evaluation.study import Study
    from ray_mlc.model.explain import Explanation

TEXT_SHOWN = 400
"""Characters of a text that are shown."""
LISTED = 8
"""Labels of a document that are named."""
SCATTER_FROM = 12
"""Labels from which F1 against frequency is drawn."""
_INTERVAL = f"{CONFIDENCE:.0%} interval"
_REACH = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def evaluation_page(
    found: Study,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    ids: Sequence[str],
    texts: Sequence[str] | None = None,
    explained: Sequence[tuple[Mistake, Explanation]] | None = None,
    wanted: int = 0,
) -> str:
    """One HTML document that opens without a network.

    Args:
        found: What was found.
        title: Of the page.
        facts: Name and value of what the reader must know first.
        ids: Id of each document.
        texts: Text of each document; None: the page shows none.
        explained: Mistakes, and which words carried them; None: nobody asked. Only with `texts`.
        wanted: How many there were to explain.
    """
    sections = [_headline(found)]
    if found.ranking is not None:
        sections.append(_ranking(found))
    sections += [_labels(found), _thresholds(found), _curves(found), _calibration(found)]
    sections += [_confusions(found), _costliest(found, ids, texts)]
    if explained is not None and texts is not None:
        sections.append(explanations(found, explained, ids, texts, wanted=wanted))
    if found.lengths:
        sections.append(_lengths(found.lengths))
    return render_page(title, facts=facts, sections=sections)


def _headline(found: Study) -> Section:
    figures, ends = found.figures, found.intervals
    rows = []
    for name in METRIC_NAMES:
        gain, gain_ends = found.gains.get(name, (None, None))
        rows.append(
            [
                TITLES[name],
                figures["at_half"][name],
                _ends(ends["at_half"][name]),
                figures["decision"][name],
                _ends(ends["decision"][name]),
                gain,
                _ends(gain_ends, signed=True),
                figures["dummy"][name],
            ]
        )
    columns = ["metric", "at 0.5", _INTERVAL, "decision", _INTERVAL]
    columns += ["gain over 0.5", _INTERVAL, "dummy"]
    note = (
        "Average precision, ROC-AUC and loss look at scores alone, so that no decision moves them. "
    )
    if found.figures["n"] > 1:
        note += (
            f"Intervals: bootstrap over documents, {found.replicates:,} replicates, seed "
            f"{found.seed}, plus and minus {_REACH:.2f} standard errors. They say what other "
            "documents of the same kind would change, not what another training would; those of "
            "means over labels are somewhat too narrow where many labels have few positives. The "
            "gain compares both decisions on the same draws: if its interval holds 0 it may be "
            "chance."
        )
        if all(ends["decision"][name] is None for name in ("loss", "average_precision_micro")):
            note += " Figures of scores have none here: that would take minutes with so many cells."
    else:
        note += "One document alone gives no intervals."
    return Section(
        "How good it is",
        "Labels given from a score of 0.5 on, and as the model's decision says, beside a dummy "
        "that gives every document the label rates as its scores.",
        [Plot(headline_figure(found)), Table(columns, rows, note)],
    )


def _ranking(found: Study) -> Section:
    assert found.ranking is not None
    titles = {"r_precision": "R-Precision@k", "ndcg": "nDCG@k", "precision": "Precision@k"}
    rows: list[list[str | int | float | None]] = []
    for k in KS:
        row: list[str | int | float | None] = [k]
        for name in titles:
            value, ends = found.ranking[f"{name}@{k}"]
            row += [value, _ends(ends)]
        rows.append(row)
    columns = ["k"]
    for title in titles.values():
        columns += [title, _INTERVAL]
    note = (
        "Means over documents with at least one label. R-Precision@k divides by the fewer of k "
        "and the document's labels, so that documents with fewer than k labels can reach 1 "
        "(Chalkidis et al. 2019); nDCG@k discounts a right label at rank r by log2(r + 1) "
        "(Järvelin and Kekäläinen 2002). Labels of equal score share their ranks."
    )
    return Section(
        "The first labels of each document",
        "Whatever the thresholds: how many of the k best-scored labels are right.",
        [Table(columns, rows, note)],
    )


def _labels(found: Study) -> Section:
    rows: list[list[str | int | float | None]] = []
    for label, row in enumerate(found.figures["per_label"]):
        low, high = found.f1_intervals[label] or (None, None)
        rows.append(
            [
                row["label"],
                row["support"],
                found.rate(label),
                float(found.thresholds_L[label]),
                row["predicted"],
                row["precision"],
                row["recall"],
                row["f1"],
                low,
                high,
                float(found.f1_at_half_L[label]),
                row["average_precision"],
                row["roc_auc"],
            ]
        )
    rows.sort(key=lambda row: -int(row[1] or 0))
    columns = ["label", "positives", "rate", "threshold", "given", "precision", "recall", "F1"]
    columns += ["F1 from", "to", "F1 at 0.5", "AP", "ROC-AUC"]
    note = (
        "A click on a column's head sorts. Precision, recall and F1 are those of the decision; "
        f"from and to are F1's {_INTERVAL}, for labels with {LEAST_POSITIVES} positives or more: "
        "fewer say too little. AP: average precision. A dash: undefined."
    )
    missing = int((found.positives_L == 0).sum())
    words = ""
    if missing:
        words = (
            f"{missing:,} of {len(rows):,} labels have no positive in these examples: their F1 "
            "counts as 0 in the mean over labels."
        )
    parts: list[Part] = []
    if len(rows) >= SCATTER_FROM and found.positives_L.any():
        parts.append(
            Plot(
                frequency_figure(found),
                "One point a label: labels that are seldom seen are seldom learned.",
            )
        )
    return Section("Labels", words, [*parts, Table(columns, rows, note)])


def _thresholds(found: Study) -> Section:
    sweep = found.sweep
    micro, macro = int(np.argmax(sweep.f1_micro_T)), int(np.argmax(sweep.f1_macro_T))
    spread = ""
    if (band := threshold_band(found)) is not None:
        spread = (
            f" Its thresholds differ by label: the band holds nine tenths of them ({band[0]:.3f} "
            f"to {band[1]:.3f}), and the diamonds stand at their median."
        )
    note = (
        f"Diamonds: F1 of the model's decision.{spread} In hindsight the best of these thresholds "
        f"would be {sweep.threshold_T[micro]:.3g} for micro-F1 ({sweep.f1_micro_T[micro]:.4f}) and "
        f"{sweep.threshold_T[macro]:.3g} for macro-F1 ({sweep.f1_macro_T[macro]:.4f})."
    )
    return Section(
        "Thresholds",
        "What one threshold for all labels would give on these examples. Choosing it here and "
        "quoting the figure would flatter: fit thresholds on validation examples, with "
        "ray-mlc thresholds.",
        [Plot(thresholds_figure(found), note)],
    )


def _curves(found: Study) -> Section:
    if found.micro is None:
        return Section("Precision and recall", "No label has a positive in these examples.")
    figure, choices = curves_figure(found, found.micro)
    note = (
        "Steps, as average precision counts them: its value is the area below. Long curves are "
        "thinned. A click in the legend hides a curve, a double click all others."
    )
    if choices:
        note += f" {len(choices):,} more labels can be added by name."
    return Section(
        "Precision and recall",
        "How much is right of what is given (precision) when so much of what should be given is "
        "(recall): each threshold is a point.",
        [Plot(figure, note, Choice("Another label's curve:", choices) if choices else None)],
    )


def _calibration(found: Study) -> Section:
    note = (
        "Cells of all documents and labels in 15 bins of equal width by score. Below the dashed "
        "line scores promise too much, above it too little. ECE, the expected calibration error, "
        "is the mean gap over all cells (Guo et al. 2017); where labels are rare most cells "
        "score near 0, rightly, and make it small whatever the few others do: look at the curve."
    )
    return Section(
        "Can scores be read as probabilities",
        "Of the cells with a score of about 0.8, eight in ten should have the label.",
        [Plot(calibration_figure(found), note)],
    )


def _confusions(found: Study) -> Section:
    confused = found.confusions
    names = [row["label"] for row in found.figures["per_label"]]
    missed, alone = int(confused.missed_L.sum()), int(confused.alone_L.sum())
    if not missed:
        return Section("What is given instead", "No label was missed.")
    words = (
        f"{missed:,} labels were missed. In {alone:,} of these cases the document got no "
        "label wrongly, so nothing stands in their place. For the others: which labels the same "
        "document got wrongly. Where it got several, each is counted."
    )
    if not len(confused.pairs_P3):
        return Section("What is given instead", words)
    rows: list[list[str | int | float | None]] = [
        [
            names[label],
            int(confused.missed_L[label]),
            names[other],
            documents,
            documents / int(confused.missed_L[label]),
            int(confused.false_alarms_L[other]) / found.figures["n"],
        ]
        for label, other, documents in confused.pairs_P3.tolist()
    ]
    columns = ["missed", "times missed", "given instead", "documents", "share of misses"]
    columns.append("its share of all documents")
    more = "" if len(rows) < PAIRS else f" The {len(rows)} most frequent pairs."
    note = (
        "The last column is how often a label is given wrongly at all: a share of misses "
        f"well above it means that the two are confused.{more}"
    )
    parts: list[Part] = []
    if len(confused.shown_H) > 1:
        parts.append(
            Plot(
                confusion_figure(found),
                "Each row is a missed label, with the share of its misses; counts show at the "
                "pointer. Where few were missed, shares are coarse.",
            )
        )
    return Section("What is given instead", words, [*parts, Table(columns, rows, note)])


def _costliest(found: Study, ids: Sequence[str], texts: Sequence[str] | None) -> Section:
    names = [row["label"] for row in found.figures["per_label"]]
    columns = ["id", "label", "score", "threshold", "what", "loss", "document has", "and gets"]
    if texts is not None:
        columns.append("text")
    rows: list[list[str | int | float | None]] = []
    for cell in found.costliest:
        row: list[str | int | float | None] = [
            ids[cell.document],
            names[cell.label],
            cell.score,
            float(found.thresholds_L[cell.label]),
            "missed" if cell.missed else "false alarm",
            cell.loss,
            _listed([names[label] for label in cell.has]),
            _listed([names[label] for label in cell.gets]),
        ]
        if texts is not None:
            text = texts[cell.document]
            row.append(text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…")
        rows.append(row)
    if not rows:
        return Section("The most costly mistakes", "No decision was wrong.")
    note = "Loss: binary cross-entropy of the score, in nats."
    if texts is None:
        note += " Texts are shown only if asked for (--texts)."
    return Section(
        "The most costly mistakes",
        "Wrong decisions of which the model was surest. Some of them are wrong annotations: look "
        "here first when you doubt the data.",
        [Table(columns, rows, note)],
    )


def _listed(names: Sequence[str]) -> str:
    """Names of a document's labels, the first of many."""
    return listed(names, most=LISTED) or "nothing"


def _lengths(buckets: Sequence[LengthBucket]) -> Section:
    rows: list[list[str | int | float | None]] = [
        [
            span_of(bucket),
            bucket.documents,
            bucket.truncated,
            bucket.labels,
            bucket.precision,
            bucket.recall,
            bucket.f1,
            _ends(bucket.f1_interval),
        ]
        for bucket in buckets
    ]
    columns = ["tokens", "documents", "share cut off", "labels per document"]
    columns += ["precision", "recall", "F1", _INTERVAL]
    documents = sum(bucket.documents for bucket in buckets)
    share = sum(cut_off(bucket) for bucket in buckets) / max(1, documents)
    note = (
        "Precision, recall and F1 of all cells of the bucket together. Longer documents often "
        "have other labels, and more of them, so a difference need not come from the length."
    )
    return Section(
        "Length of documents",
        f"{share:.1%} of the documents are longer than what the model reads."
        if share
        else "No document is longer than what the model reads.",
        [Plot(lengths_figure(buckets)), Table(columns, rows, note)],
    )


def _ends(ends: Interval | None, *, signed: bool = False) -> str | None:
    if ends is None:
        return None
    sign = "+" if signed else ""
    low, high = (f"{end:{sign}.3f}" for end in ends)
    return f"{low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high}"
