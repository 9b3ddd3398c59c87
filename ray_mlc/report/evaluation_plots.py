"""The plots of an evaluation report, as plotly figures and traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_mlc.evaluation.bootstrap import Interval
from ray_mlc.evaluation.metrics import METRIC_NAMES
from ray_mlc.report.page import distinct, plot_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ray_mlc.evaluation.curves import PrecisionRecall
    from ray_mlc.evaluation.lengths import LengthBucket
    from ray_mlc.evaluation.reliability import Reliability
    from ray_mlc.evaluation.study import Study

CURVES_SHOWN = 6
"""Curves of labels that are drawn from the start: of the most frequent ones."""
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
TITLES = {
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
"""What the figures of a decision are called, and what they are."""


def headline_figure(found: Study) -> go.Figure:
    """Every figure of the three decisions, with its interval."""
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
        ticktext=[TITLES[name].split(":")[0] for name in names],
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


def frequency_figure(found: Study) -> go.Figure:
    """F1 of each label by how often it is given."""
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


def threshold_band(found: Study) -> tuple[float, float] | None:
    """Between which nine tenths of the labels' thresholds lie; None if they all have one."""
    if len(np.unique(found.thresholds_L)) < 2:
        return None
    low, high = np.quantile(found.thresholds_L, [0.05, 0.95])
    return float(low), float(high)


def thresholds_figure(found: Study) -> go.Figure:
    """F1, precision and recall by one threshold for all labels."""
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
    band = threshold_band(found)
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


def curves_figure(found: Study, micro: PrecisionRecall) -> tuple[go.Figure, list[dict[str, Any]]]:
    """Precision by recall; and the curves that can be added, by their keys.

    Args:
        found: What was found.
        micro: Curve of all cells together.
    """
    import plotly.graph_objects as go

    rows = found.figures["per_label"]
    figure = go.Figure()
    title = f"all together, AP {_digits(found.figures['decision']['average_precision_micro'])}"
    figure.add_trace(_curve_trace(micro, title, INK, 3))
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
    return figure, choices


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


def calibration_figure(found: Study) -> go.Figure:
    """Share of positives by score, and how many cells that is of."""
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
    return figure


def confusion_figure(found: Study) -> go.Figure:
    """What documents got wrongly in place of a label that was missed."""
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


def span_of(bucket: LengthBucket) -> str:
    """Tokens of its shortest and of its longest document."""
    return f"{bucket.shortest:,}–{bucket.longest:,}"


def cut_off(bucket: LengthBucket) -> int:
    """Its documents that are longer than what the model reads."""
    return round(bucket.documents * bucket.truncated)


def lengths_figure(buckets: Sequence[LengthBucket]) -> go.Figure:
    """F1 by length, and how many documents that is of."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = [span_of(bucket) for bucket in buckets]
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
    cut = np.array([cut_off(bucket) for bucket in buckets])
    whole = np.array([bucket.documents for bucket in buckets]) - cut
    for title, heights, color in (("whole", whole, WHOLE), ("cut off", cut, CUT)):
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
    return figure


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


def _digits(value: float | None) -> str:
    """Three of them, or a dash."""
    return "–" if value is None else f"{value:.3f}"
