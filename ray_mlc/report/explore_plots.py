"""The plots of an exploration, as plotly figures.

Axes are logarithmic where values spread over orders of magnitude, names are cut and escaped, and
heights follow the number of names, so that each can be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ray_mlc.report.page import plot_text

DRIFT = 4.5
"""Standard deviations from which a split's rate differs by more than chance, also among thousands
of labels: among 10,000 figures one is beyond it by chance in one run of fifteen."""
FEW = 10
"""Examples below which a label's figures in a split are mostly noise."""

_COLORS = ("#2457c5", "#d9722b", "#2d8a57", "#8a4fb0", "#b8324a", "#5d6678")
_NAME_LENGTH = 32
_MARGIN = {"l": 70, "r": 20, "t": 20, "b": 60}

Labels = Sequence[Mapping[str, Any]]
"""`labels` of the figures, or some of them."""


def length_histogram(lengths: Mapping[str, Any]) -> Any:
    """How many documents are how long, by split."""
    import plotly.graph_objects as go

    unit, names = lengths["unit"], list(lengths["counts"])
    figure = go.Figure()
    starts = lengths["bins"][:-1]
    widths = [high - low for low, high in pairwise(lengths["bins"])]
    centers = [
        math.sqrt(low * (low + width - 1)) for low, width in zip(starts, widths, strict=True)
    ]
    ranges = [
        f"{low:,}" if width == 1 else f"{low:,} to {low + width - 1:,}"
        for low, width in zip(starts, widths, strict=True)
    ]
    for name, color in zip(names, _colors(names), strict=True):
        counts = lengths["counts"][name]
        # per doubling of the length: bins differ in width, the first ones most
        shares = [
            100 * count / max(sum(counts), 1) / math.log2((low + width) / low)
            for count, low, width in zip(counts, starts, widths, strict=True)
        ]
        figure.add_scatter(
            x=centers,
            y=shares,
            name=_name(name),
            mode="lines",
            line={"shape": "hvh", "color": color, "width": 2},
            fill="tozeroy" if len(names) == 1 else None,
            customdata=[[span, count] for span, count in zip(ranges, counts, strict=True)],
            hovertemplate=f"%{{customdata[0]}} {unit}: %{{customdata[1]:,}} documents",
        )
    _style(figure, len(names) > 1)
    figure.update_layout(
        height=340,
        xaxis={**_length_axis(lengths), "title": f"{unit} per document"},
        yaxis={"title": "% of documents<br>per doubling", "rangemode": "tozero"},
    )
    return figure


def cut_off_curve(lengths: Mapping[str, Any]) -> Any:
    """What any cut-off leaves of the documents and of their words or tokens, by split."""
    import plotly.graph_objects as go

    unit, names = lengths["unit"], list(lengths["counts"])
    figure = go.Figure()
    for name, color in zip(names, _colors(names), strict=True):
        for key, dash, what in (
            ("curve_whole", "solid", "documents left whole"),
            ("curve_kept", "dot", f"{unit} kept"),
        ):
            figure.add_scatter(
                x=lengths["curve_at"],
                y=[100 * share for share in lengths[key][name]],
                name=what if len(names) == 1 else f"{_name(name)}: {what}",
                mode="lines",
                line={"color": color, "dash": dash, "width": 2},
                hovertemplate="%{y:.1f} %",
            )
    _style(figure, legend=True)
    figure.update_layout(
        height=380,
        xaxis={
            **_length_axis(lengths),
            "title": f"cut-off, {unit}",
            "hoverformat": ",.0f",
        },
        yaxis={"title": "% left", "range": [0, 101]},
        hovermode="x unified",
    )
    return figure


def _length_axis(lengths: Mapping[str, Any]) -> dict[str, Any]:
    low, high = _shortest(lengths), lengths["bins"][-1]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        **_log_ticks(high),
    }


def _shortest(lengths: Mapping[str, Any]) -> int:
    """Where axes of lengths begin: at a power of two below nearly all documents."""
    counts = [sum(column) for column in zip(*lengths["counts"].values(), strict=True)]
    begun = accumulate(counts)
    few = sum(counts) / 1000
    edge = next(
        (edge for edge, so_far in zip(lengths["bins"], begun, strict=False) if so_far > few), 1
    )
    return int(2 ** int(math.log2(edge)))


def label_rates(labels: Labels, names: Sequence[str]) -> Any:
    """Rates of some labels, one below the other, beside each other by split."""
    import plotly.graph_objects as go

    figure = go.Figure()
    places = list(range(len(labels)))
    shown = [label["rate"][name] for label in labels for name in names if label["rate"][name]]
    log = bool(shown) and max(shown) > 50 * min(shown)
    for name, color in zip(names, _colors(names), strict=True):
        rates = [label["rate"][name] for label in labels]
        values = [100 * rate if rate else None for rate in rates]
        data = [[_name(label["label"], 80), label["count"][name]] for label in labels]
        hover = "%{customdata[0]}: %{x:.3g} %, %{customdata[1]:,} documents"
        if len(names) == 1 and not log:
            figure.add_bar(
                x=values,
                y=places,
                orientation="h",
                name=_name(name),
                marker={"color": color},
                customdata=data,
                hovertemplate=hover,
            )
        else:
            figure.add_scatter(
                x=values,
                y=places,
                mode="markers",
                name=_name(name),
                marker={"color": color, "size": 9, "opacity": 0.8},
                customdata=data,
                hovertemplate=hover,
            )
    _style(figure, len(names) > 1)
    figure.update_layout(
        height=110 + 20 * max(len(labels), 3),
        xaxis={
            "title": "% of documents" + (" (logarithmic)" if log else ""),
            "type": "log" if log else "linear",
            **({} if log else {"rangemode": "tozero"}),
            **({"dtick": 1} if log else {}),
        },
        yaxis={
            "tickvals": places,
            "ticktext": [_name(label["label"]) for label in labels],
            "range": [len(labels) - 0.4, -0.6],
            "automargin": True,
            "showgrid": True,
            "gridcolor": "#eef0f4",
        },
        hovermode="closest",
    )
    return figure


def label_ranks(labels: Labels, names: Sequence[str]) -> Any:
    """Documents of each label, the most frequent first: how long the tail is."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, color in zip(names, _colors(names), strict=True):
        ranked = sorted(
            ((label["count"][name], label["label"]) for label in labels if label["count"][name]),
            key=lambda pair: -pair[0],
        )
        figure.add_scatter(
            x=list(range(1, len(ranked) + 1)),
            y=[count for count, _ in ranked],
            mode="lines",
            name=_name(name),
            line={"color": color, "width": 2},
            customdata=[_name(label, 80) for _, label in ranked],
            hovertemplate="%{customdata}: %{y:,} documents, rank %{x:,}",
        )
    figure.add_hline(y=FEW, line={"color": "#b8324a", "dash": "dot", "width": 1})
    _style(figure, len(names) > 1)
    most = max((label["rows"] for label in labels), default=1)
    figure.update_layout(
        height=360,
        xaxis={"title": "rank of the label", "type": "log", **_log_ticks(len(labels))},
        yaxis={"title": "documents that have it", "type": "log", **_log_ticks(most)},
        hovermode="closest",
    )
    return figure


def label_drift(labels: Labels, names: Sequence[str]) -> Any:
    """Rates in the first split against those in the others."""
    import plotly.graph_objects as go

    figure = go.Figure()
    first = names[0]
    rates = [label["rate"][name] for label in labels for name in names if label["rate"][name]]
    least, most = (min(rates), max(rates)) if rates else (0.01, 1.0)
    floor = least / 2
    for name, color in zip(names[1:], _colors(names)[1:], strict=True):
        for far in (False, True):
            some = [
                label
                for label in labels
                if label["count"][first] + label["count"][name]
                and (abs(label["drift"][name]) >= DRIFT) == far
            ]
            if not some:
                continue
            figure.add_scatter(
                x=[100 * (label["rate"][first] or floor) for label in some],
                y=[100 * (label["rate"][name] or floor) for label in some],
                mode="markers",
                name=f"{_name(name)}{', beyond chance' if far else ''}",
                marker={
                    "color": "#b8324a" if far else color,
                    "size": 7 if far else 5,
                    "opacity": 0.9 if far else 0.45,
                    "symbol": _SYMBOLS[names.index(name) % 4],
                },
                customdata=[
                    [_name(label["label"], 80), label["count"][first], label["count"][name]]
                    for label in some
                ],
                hovertemplate=f"%{{customdata[0]}}: %{{customdata[1]:,}} in {_name(first)}, "
                f"%{{customdata[2]:,}} in {_name(name)}",
            )
    ends = [100 * floor, 100 * most]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
        line={"color": "#5d6678", "width": 1},
    )
    _style(figure, legend=True)
    figure.update_layout(
        height=460,
        xaxis={"title": f"% of documents in {_name(first)}", "type": "log", "dtick": 1},
        yaxis={"title": "% of documents in the other split", "type": "log", "dtick": 1},
        hovermode="closest",
    )
    return figure


_SYMBOLS = ("circle", "circle", "diamond", "square")


def labels_per_document(
    counts: Mapping[str, Sequence[int]], *, of: str = "annotated documents"
) -> Any:
    """Share of documents with 0, 1, 2, … labels, by split.

    Args:
        counts: Documents with so many labels.
        of: What all the documents are.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    most = max((len(values) for values in counts.values()), default=1)
    for name, color in zip(counts, _colors(list(counts)), strict=True):
        total = max(sum(counts[name]), 1)
        figure.add_bar(
            x=list(range(len(counts[name]))),
            y=[100 * count / total for count in counts[name]],
            name=_name(name),
            marker={"color": color},
            customdata=list(counts[name]),
            hovertemplate="%{x} labels: %{customdata:,} documents (%{y:.2f} %)",
        )
    _style(figure, len(counts) > 1)
    figure.update_layout(
        height=320,
        xaxis={"title": "labels per document", "dtick": 1 if most <= 25 else None},
        yaxis={"title": f"% of {of}"},
        bargap=0.15,
    )
    return figure


def label_square(
    values: Sequence[Sequence[float | None]],
    together: Mapping[str, Any],
    what: str,
    *,
    symmetric: bool,
) -> Any:
    """Labels against labels, as colors.

    Args:
        values: `phi` or `given` of `together`.
        together: Names, and the documents that have both.
        what: The values are.
        symmetric: Whether a value below 0 means the opposite, and rows are as columns.
    """
    import plotly.graph_objects as go

    names, size = together["labels"], len(together["labels"])
    ticks = [_name(name, 22) for name in names]
    full = [_name(name, 80) for name in names]
    # the diagonal says nothing, and would take the scale's end
    cells = [[None if i == j else values[i][j] for j in range(size)] for i in range(size)]
    present = [abs(value) for row in cells for value in row if value is not None]
    most = max(max(present, default=0.0), 0.05)
    hover = [
        [
            f"{full[i]}<br>{full[j]}<br>{what} "
            + ("undefined" if values[i][j] is None else f"{values[i][j]:.3f}")
            + f", {together['both'][i][j]:,} documents have both"
            for j in range(size)
        ]
        for i in range(size)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            colorscale=_DIVERGING if symmetric else _GROWING,
            zmin=-most if symmetric else 0,
            zmax=most,
            hoverongaps=False,
            colorbar={"title": {"text": what}, "thickness": 14},
        )
    )
    side = min(max(360, 190 + 17 * size), 900)
    axis = {
        "tickvals": list(range(size)),
        "ticktext": ticks,
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "tickfont": {"size": 11},
        "constrain": "domain",
    }
    _style(figure, legend=False)
    figure.update_layout(
        height=side,
        xaxis={**axis, "tickangle": -55, "title": "" if symmetric else "… have this one"},
        yaxis={
            **axis,
            "autorange": "reversed",
            "scaleanchor": "x",
            "title": "" if symmetric else "of documents with this label …",
        },
    )
    return figure


_DIVERGING = [[0, "#2457c5"], [0.5, "#ffffff"], [1, "#b8324a"]]
_GROWING = [[0, "#ffffff"], [1, "#2457c5"]]


# --- style


def _style(figure: Any, legend: bool) -> None:
    figure.update_layout(
        template="plotly_white",
        margin=_MARGIN,
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#1d2330"},
        hoverlabel={"align": "left"},
    )


def _colors(names: Sequence[str]) -> list[str]:
    return [_COLORS[at % len(_COLORS)] for at in range(len(names))]


def _name(name: str, length: int = _NAME_LENGTH) -> str:
    """A label's name in a plot: cut, and free of what plotly would take for markup."""
    return plot_text(" ".join(name.split()), width=length)


def _log_ticks(most: float) -> dict[str, Any]:
    """Powers of two or ten up to `most`, written out."""
    base = 2 if most < 2**15 else 10
    values = [base**power for power in range(int(math.log(max(most, 2), base)) + 2)]
    if len(values) > 16:
        values = values[::2]
    return {"tickvals": values, "ticktext": [f"{value:,}" for value in values]}
