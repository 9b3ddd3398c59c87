"""The evaluation report: how good a model is, how sure that is, and where it goes wrong.

Sections stand in the order in which a reader asks. Texts of documents are shown only if they are
passed; else mistakes are named by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_mlc.evaluation.bootstrap import CONFIDENCE, LEAST_POSITIVES, Interval
from ray_mlc.evaluation.metrics import METRIC_NAMES
from ray_mlc.evaluation.ranking import KS
from ray_mlc.evaluation.study import PAIRS
from ray_mlc.labels import listed
from ray_mlc.report.explanations import explanations
from ray_mlc.report.page import (
    Choice,
    Part,
    Plot,
    Section,
    Table,
    distinct,
    plot_text,
    render_page,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ray_mlc.evaluation.curves import PrecisionRecall
    from ray_mlc.evaluation.lengths import LengthBucket
    from ray_mlc.evaluation.mistakes import Mistake
    from ray_mlc.evaluation.reliability import Reliability
    from ray_mlc.evaluation.study import Study
    from ray_mlc.model.explain import Explanation

TEXT_SHOWN = 400
"""Characters of a text that are shown."""
LISTED = 8
"""Labels of a document that are named."""
CURVES_SHOWN = 6
"""Curves of labels that are drawn from the start: of the most frequent ones."""
SCATTER_FROM = 12
"""Labels from which F1 against frequency is drawn."""
NAME_SHOWN = 32
"""Characters of a label at an axis."""

INK, DECISION, HALF, DUMMY = "#1d2330", "#2457c5", "#d9822b", "#8a93a3"
MACRO, CALIBRATED, WHOLE, CUT = "#0f8b8d", "#1e8e5a", "#9db7ea", "#c0392b"
_DECISIONS = {
    "dummy": ("dummy", DUMMY, "x"),
    "at_half": ("at 0.5", HALF, "circle"),
    "decision": ("decision", DECISION, "diamond"),
}
_LABEL_COLORS = ("#c0392b", "#1e8e5a", "#8e44ad", "#0f8b8d", "#b5467f", "#6b7a1e")
_SHADES = [[0, "#ffffff"], [0.25, "#c9d8f5"], [0.6, "#5f88dd"], [1, "#16357d"]]
_AXIS = {"gridcolor": "#e8ebf1", "zeroline": False, "linecolor": "#c4cad6", "automargin": True}
_TITLES = {
    "accuracy": "accuracy: all labels of a document right",
    "binary_accuracy": "cells right, of all documents × labels",
    "loss": "loss: binary cross-entropy per cell, in nats",
    "average_precision_macro": "average precision, mean over labels (mAP)",
    "average_precision_micro": "average precision, all cells together",
    "f1_micro": "F1, all cells together (micro)",
    "f1_macro": "F1, mean over labels (macro)",
    "f1_samples": "F1, mean over documents (samples)",
    "roc_auc_macro": "ROC-AUC, mean over labels",
    "roc_auc_micro": "ROC-AUC, all cells together",
}
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
                _TITLES[name],
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
        [Plot(_headline_figure(found)), Table(columns, rows, note)],
    )


def _headline_figure(found: Study) -> go.Figure:
    import plotly.graph_objects as go

    names = [name for name in METRIC_NAMES if name != "loss"][::-1]
    figure = go.Figure()
    for key, offset in (("dummy", 0.0), ("at_half", -0.13), ("decision", 0.13)):
        title, color, symbol = _DECISIONS[key]
        values = [found.figures[key][name] for name in names]
        ends = [found.intervals.get(key, {}).get(name) for name in names]
        figure.add_scatter(
            x=values,
            y=[row + offset for row in range(len(names))],
            name=title,
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 9},
            error_x=_error_bars(values, ends, color),
            customdata=names,
            hovertemplate="%{customdata}: %{x:.4f}<extra></extra>",
        )
    figure.update_layout(_layout("", "", height=380))
    figure.update_xaxes(range=[-0.01, 1.01])
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[_TITLES[name].split(":")[0] for name in names],
        range=[-0.6, len(names) - 0.4],
    )
    return figure


def _error_bars(
    values: Sequence[float | None], ends: Sequence[Interval | None], color: str
) -> dict[str, Any]:
    pairs = [
        (0.0, 0.0) if value is None or end is None else (end[1] - value, value - end[0])
        for value, end in zip(values, ends, strict=True)
    ]
    return {
        "type": "data",
        "symmetric": False,
        "array": [up for up, _ in pairs],
        "arrayminus": [down for _, down in pairs],
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


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
                _frequency_figure(found),
                "One point a label: labels that are seldom seen are seldom learned.",
            )
        )
    return Section("Labels", words, [*parts, Table(columns, rows, note)])


def _frequency_figure(found: Study) -> go.Figure:
    import plotly.graph_objects as go

    rows = [row for row in found.figures["per_label"] if row["support"]]
    figure = go.Figure()
    figure.add_scatter(
        x=[row["support"] for row in rows],
        y=[row["f1"] for row in rows],
        mode="markers",
        marker={"color": DECISION, "size": 7, "opacity": 0.45 if len(rows) > 200 else 0.75},
        text=[plot_text(row["label"]) for row in rows],
        hovertemplate="%{text}<br>%{x:,} positives, F1 %{y:.3f}<extra></extra>",
    )
    figure.update_layout(_layout("positives in these examples", "F1 at the decision", height=360))
    figure.update_xaxes(type="log", dtick=1, minor={"ticks": "outside", "dtick": "D1"})
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def _thresholds(found: Study) -> Section:
    sweep = found.sweep
    micro, macro = int(np.argmax(sweep.f1_micro_T)), int(np.argmax(sweep.f1_macro_T))
    spread = ""
    if (band := _threshold_band(found)) is not None:
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
        [Plot(_thresholds_figure(found), note)],
    )


def _threshold_band(found: Study) -> tuple[float, float] | None:
    """Between which nine tenths of the labels' thresholds lie; None if they all have one."""
    if len(np.unique(found.thresholds_L)) < 2:
        return None
    low, high = np.quantile(found.thresholds_L, [0.05, 0.95])
    return float(low), float(high)


def _thresholds_figure(found: Study) -> go.Figure:
    import plotly.graph_objects as go

    sweep = found.sweep
    figure = go.Figure()
    for average, color in (("micro", INK), ("macro", MACRO)):
        for name, title, dash, width in (
            ("f1", "F1", "solid", 2.5),
            ("precision", "precision", "dash", 1.2),
            ("recall", "recall", "dot", 1.2),
        ):
            values_T = getattr(sweep, f"{name}_{average}_T")
            if name == "precision":  # of nothing right there is none to draw
                values_T = np.where(sweep.recall_micro_T > 0, values_T, np.nan)
            figure.add_scatter(
                x=sweep.threshold_T,
                y=values_T,
                name=f"{title}, {average}",
                mode="lines",
                line={"color": color, "dash": dash, "width": width},
                hovertemplate=f"{title} {average} %{{y:.4f}} from %{{x:.3f}} on<extra></extra>",
            )
    typical = float(np.median(found.thresholds_L)) if len(found.thresholds_L) else 0.5
    band = _threshold_band(found)
    if band is not None:
        figure.add_vrect(x0=band[0], x1=band[1], fillcolor=DECISION, opacity=0.08, line_width=0)
    else:
        figure.add_vline(x=typical, line={"color": DECISION, "width": 1, "dash": "dot"})
    for key, x in (("at_half", 0.5), ("decision", typical)):
        values = [found.figures[key][f"f1_{average}"] for average in ("micro", "macro")]
        figure.add_trace(_points_trace(key, [x, x], values, "F1 %{y:.4f}"))
    figure.update_layout(
        _layout("one threshold for all labels", "F1, precision, recall", height=440)
    )
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(range=[0, 1.02])
    return figure


def _points_trace(
    key: str, x: Sequence[float | None], y: Sequence[float | None], said: str
) -> dict[str, Any]:
    """Where a decision stands, in its colour."""
    title, color, symbol = _DECISIONS[key]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": title,
        "x": x,
        "y": y,
        "marker": {
            "color": color,
            "symbol": symbol,
            "size": 12,
            "line": {"color": "#fff", "width": 1.5},
        },
        "hovertemplate": f"{title}: {said}<extra></extra>",
    }


def _curves(found: Study) -> Section:
    import plotly.graph_objects as go

    if found.micro is None:
        return Section("Precision and recall", "No label has a positive in these examples.")
    rows = found.figures["per_label"]
    figure = go.Figure()
    title = f"all together, AP {_digits(found.figures['decision']['average_precision_micro'])}"
    figure.add_trace(_curve_trace(found.micro, title, INK, 3))
    frequent = np.argsort(-found.positives_L, kind="stable")[:CURVES_SHOWN].tolist()
    choices = []
    for label, key in enumerate(distinct([row["label"] for row in rows])):
        curve = found.curves[label]
        if curve is None:
            continue
        title = plot_text(rows[label]["label"], width=NAME_SHOWN)
        title += f", AP {_digits(rows[label]['average_precision'])}"
        if label in frequent:
            color = _LABEL_COLORS[frequent.index(label)]
            figure.add_trace(_curve_trace(curve, title, color, 1.5))
        else:
            choices.append({"key": key, **_curve_trace(curve, title, None, 1.5)})
    for key in ("at_half", "decision"):
        recall, precision = _operating_point(found, key)
        said = "precision %{y:.3f}, recall %{x:.3f}"
        figure.add_trace(_points_trace(key, [recall], [precision], said))
    figure.update_layout(_layout("recall", "precision", height=520))
    figure.update_xaxes(range=[-0.01, 1.01])
    figure.update_yaxes(range=[0, 1.02])
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


def _curve_trace(
    curve: PrecisionRecall, title: str, color: str | None, width: float
) -> dict[str, Any]:
    """A plain mapping: plotly's own objects take seconds for thousands of labels."""
    line: dict[str, Any] = {"shape": "vh", "width": width}
    if color is not None:
        line["color"] = color
    start = slice(None, 1)  # the step up to the first positive found
    recalls = [0.0, *curve.recall_C.round(4).tolist()]
    precisions_C = np.concatenate([curve.precision_C[start], curve.precision_C])
    thresholds_C = np.concatenate([curve.threshold_C[start], curve.threshold_C])
    return {
        "type": "scatter",
        "mode": "lines",
        "name": title,
        "x": recalls,
        "y": precisions_C.round(4).tolist(),
        "customdata": [float(f"{value:.4g}") for value in thresholds_C.tolist()],
        "line": line,
        "hovertemplate": "precision %{y:.3f}, recall %{x:.3f} from %{customdata} on"
        "<extra>%{fullData.name}</extra>",
    }


def _operating_point(found: Study, key: str) -> tuple[float | None, float | None]:
    """Recall and precision of all cells together; None where nothing is given."""
    if key == "at_half":
        [half] = np.flatnonzero(found.sweep.threshold_T == np.float32(0.5))
        recall = float(found.sweep.recall_micro_T[half])
        return recall, float(found.sweep.precision_micro_T[half]) if recall else None
    rows = found.figures["per_label"]
    given = sum(row["predicted"] for row in rows)
    hits = sum(row["recall"] * row["support"] for row in rows)
    return hits / max(1, int(found.positives_L.sum())), hits / given if given else None


def _calibration(found: Study) -> Section:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    series: list[tuple[str, Reliability, str]] = [("scores", found.reliability, DECISION)]
    if found.calibrated is not None:
        series.append(("calibrated", found.calibrated, CALIBRATED))
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06
    )
    figure.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="if scores were shares",
            line={"color": DUMMY, "dash": "dash", "width": 1},
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )
    for name, bins, color in series:
        figure.add_trace(
            go.Scatter(
                x=bins.mean_score_K,
                y=bins.positive_share_K,
                customdata=bins.count_K,
                mode="lines+markers",
                name=f"{name}, ECE {_digits(bins.ece)}",
                line={"color": color, "width": 2},
                marker={"size": 8},
                hovertemplate="mean score %{x:.3f}, positives %{y:.3f}, %{customdata:,} cells"
                "<extra></extra>",
            ),
            row=1,
            col=1,
        )
        figure.add_trace(
            go.Bar(
                x=bins.mean_score_K,
                y=bins.count_K,
                width=0.03,
                marker={"color": color},
                opacity=0.75,
                showlegend=False,
                hovertemplate="%{y:,} cells<extra></extra>",
            ),
            row=2,
            col=1,
        )
    figure.update_layout(_layout("", "", height=560), barmode="group")
    figure.update_xaxes(_AXIS)
    figure.update_yaxes(_AXIS)
    most = max((int(bins.count_K.max(initial=1)) for _, bins, _ in series), default=1)
    decades = float(np.log10(most))
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_xaxes(title=_axis_title("mean score of the bin"), row=2, col=1)
    figure.update_yaxes(title=_axis_title("share of positives"), range=[-0.02, 1.02], row=1, col=1)
    figure.update_yaxes(
        title=_axis_title("cells"),
        type="log",
        dtick=1 if decades < 5 else 2,
        range=[-0.3, decades + 0.3],
        tickformat=",",
        row=2,
        col=1,
    )
    note = (
        "Cells of all documents and labels in 15 bins of equal width by score. Below the dashed "
        "line scores promise too much, above it too little. ECE, the expected calibration error, "
        "is the mean gap over all cells (Guo et al. 2017); where labels are rare most cells "
        "score near 0, rightly, and make it small whatever the few others do: look at the curve."
    )
    return Section(
        "Can scores be read as probabilities",
        "Of the cells with a score of about 0.8, eight in ten should have the label.",
        [Plot(figure, note)],
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
                _confusion_figure(found),
                "Each row is a missed label, with the share of its misses; counts show at the "
                "pointer. Where few were missed, shares are coarse.",
            )
        )
    return Section("What is given instead", words, [*parts, Table(columns, rows, note)])


def _confusion_figure(found: Study) -> go.Figure:
    import plotly.graph_objects as go

    confused = found.confusions
    names = [found.figures["per_label"][label]["label"] for label in confused.shown_H.tolist()]
    short = [plot_text(name, width=NAME_SHOWN) for name in names]
    missed_H = confused.missed_L[confused.shown_H]
    shares_HH = confused.matrix_HH / np.maximum(missed_H, 1)[:, None]
    count = len(names)
    # a label cannot be given in its own place; numbers at the axes, as names may be equal when cut
    cells = [
        [None if row == column else float(shares_HH[row, column]) for column in range(count)]
        for row in range(count)
    ]
    hover = [
        [
            f"{plot_text(names[row])} missed {int(missed_H[row]):,} times<br>"
            f"{plot_text(names[column])} given: {int(confused.matrix_HH[row, column]):,}"
            for column in range(count)
        ]
        for row in range(count)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            text=hover,
            colorscale=_SHADES,
            zmin=0,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": "share of misses", "font": {"size": 13}},
                "tickformat": ".0%",
            },
            hovertemplate="%{text} (%{z:.1%} of the misses)<extra></extra>",
        )
    )
    ticks = {"tickvals": list(range(count)), "ticktext": short, "showgrid": False}
    figure.update_layout(_layout("given instead", "missed", height=260 + 22 * count))
    figure.update_xaxes(tickangle=-45, **ticks)
    figure.update_yaxes(autorange="reversed", **ticks)
    figure.update_layout(plot_bgcolor="#eef0f4")  # what is not asked: a label in its own place
    return figure


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
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = [f"{bucket.shortest:,}–{bucket.longest:,}" for bucket in buckets]
    places = list(range(len(names)))
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.07
    )
    values = [bucket.f1 for bucket in buckets]
    figure.add_trace(
        go.Scatter(
            x=places,
            y=values,
            name="F1, micro",
            mode="lines+markers",
            line={"color": DECISION},
            marker={"size": 8},
            error_y=_error_bars(values, [bucket.f1_interval for bucket in buckets], DECISION),
            hovertemplate="F1 %{y:.4f}<extra></extra>",
        ),
        row=1,
        col=1,
    )
    counts = np.array([bucket.documents for bucket in buckets])
    cut = np.round(counts * np.array([bucket.truncated for bucket in buckets])).astype(int)
    for title, heights, color in (("whole", counts - cut, WHOLE), ("cut off", cut, CUT)):
        figure.add_trace(
            go.Bar(
                x=places,
                y=heights,
                name=title,
                marker={"color": color},
                hovertemplate=f"%{{y:,}} documents {title}<extra></extra>",
            ),
            row=2,
            col=1,
        )
    figure.update_layout(_layout("", "", height=520), barmode="stack")
    figure.update_xaxes(_AXIS)
    figure.update_yaxes(_AXIS)
    figure.update_xaxes(
        title=_axis_title("tokens of the whole document"),
        tickvals=places,
        ticktext=names,
        row=2,
        col=1,
    )
    figure.update_yaxes(title=_axis_title("F1 at the decision"), range=[0, 1.02], row=1, col=1)
    figure.update_yaxes(title=_axis_title("documents"), row=2, col=1)
    rows: list[list[str | int | float | None]] = [
        [
            name,
            bucket.documents,
            bucket.truncated,
            bucket.labels,
            bucket.precision,
            bucket.recall,
            bucket.f1,
            _ends(bucket.f1_interval),
        ]
        for name, bucket in zip(names, buckets, strict=True)
    ]
    columns = ["tokens", "documents", "share cut off", "labels per document"]
    columns += ["precision", "recall", "F1", _INTERVAL]
    share = cut.sum() / max(1, counts.sum())
    note = (
        "Precision, recall and F1 of all cells of the bucket together. Longer documents often "
        "have other labels, and more of them, so a difference need not come from the length."
    )
    return Section(
        "Length of documents",
        f"{share:.1%} of the documents are longer than what the model reads."
        if share
        else "No document is longer than what the model reads.",
        [Plot(figure), Table(columns, rows, note)],
    )


def _layout(x: str, y: str, *, height: int) -> dict[str, Any]:
    """What all plots share."""
    return {
        "height": height,
        "template": "none",
        "font": {
            "family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
            "size": 13,
            "color": INK,
        },
        "margin": {"l": 64, "r": 16, "t": 16, "b": 52},
        "xaxis": {**_AXIS, "title": _axis_title(x)},
        "yaxis": {**_AXIS, "title": _axis_title(y)},
        "hoverlabel": {"align": "left"},
        "colorway": list(_LABEL_COLORS),
        "legend": {"bgcolor": "rgba(255,255,255,0.7)"},
    }


def _axis_title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 13}, "standoff": 10}


def _ends(ends: Interval | None, *, signed: bool = False) -> str | None:
    if ends is None:
        return None
    sign = "+" if signed else ""
    low, high = (f"{end:{sign}.3f}" for end in ends)
    return f"{low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high}"


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
