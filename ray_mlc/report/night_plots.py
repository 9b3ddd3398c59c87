"""The plots of a night, as plotly figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_mlc.report.page import plot_text

TONIGHT, BEFORE, TRAINING, FAR = "#2457c5", "#d9722b", "#5d6678", "#b8324a"
_NAME_LENGTH = 32
_ACTOR_COLORS = ("#2d8a57", "#8a4fb0", "#d9722b", "#b8324a", "#0f8b8d", "#6b7a1e", "#b5467f")
ACTORS_DRAWN = 8
"""Curves of actors that are drawn; more could not be told apart."""

Labels = Sequence[Mapping[str, Any]]
"""`labels` of the figures, or some of them."""


def rates(labels: Labels, *, night: str, before: str | None) -> Any:
    """Rates of some labels with their intervals, beside those of training and of before."""
    import plotly.graph_objects as go

    figure = go.Figure()
    places = list(range(len(labels)))
    known = [label[key] for label in labels for key in ("rate", "before", "training") if label[key]]
    log = bool(known) and max(known) > 50 * min(known)
    drawn = [("training", "training", TRAINING, "x"), ("rate", night, TONIGHT, "circle")]
    if before is not None:
        drawn.insert(1, ("before", before, BEFORE, "diamond-open"))
    for key, name, color, symbol in drawn:
        values = [label[key] for label in labels]
        if not any(values):
            continue
        bars = None
        if key == "rate":
            ends = [label["interval"] for label in labels]
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [100 * (end[1] - value) for value, end in zip(values, ends, strict=True)],
                "arrayminus": [
                    100 * (value - end[0]) for value, end in zip(values, ends, strict=True)
                ],
                "thickness": 1.5,
                "width": 4,
            }
        figure.add_scatter(
            x=[100 * value if value or not log else None for value in map(_number, values)],
            y=places,
            error_x=bars,
            mode="markers",
            name=name,
            marker={"color": color, "symbol": symbol, "size": 9},
            customdata=[_name(label["label"], 80) for label in labels],
            hovertemplate="%{customdata}: %{x:.3g} %",
        )
    _style(figure, legend=True, height=120 + 21 * max(len(labels), 3))
    figure.update_layout(
        xaxis={
            "title": "% of scored rows" + (" (logarithmic)" if log else ""),
            "type": "log" if log else "linear",
            **({"dtick": "D2"} if log else {"rangemode": "tozero"}),
        },
        yaxis={
            "tickvals": places,
            "ticktext": [_name(label["label"]) for label in labels],
            "range": [len(labels) - 0.4, -0.6],
            "automargin": True,
            "gridcolor": "#eef0f4",
        },
        hovermode="closest",
    )
    return figure


def drift(labels: Labels, key: str, *, night: str, other: str, far: Sequence[bool]) -> Any:
    """Rates of tonight against other ones, a point a label.

    Args:
        labels: All of them.
        key: `before` or `training`.
        night: What tonight is called.
        other: What the others are called.
        far: Which labels have moved by more than chance.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    known = [label[name] for label in labels for name in ("rate", key) if label[name]]
    least, most = (min(known), max(known)) if known else (0.01, 1.0)
    floor = least / 2
    for moved in (False, True):
        some = [
            label
            for label, there in zip(labels, far, strict=True)
            if there == moved and (label["rate"] or label[key])
        ]
        if not some:
            continue
        figure.add_scatter(
            x=[100 * (label[key] or floor) for label in some],
            y=[100 * (label["rate"] or floor) for label in some],
            mode="markers",
            name="beyond chance, by a quarter or more" if moved else "labels",
            marker={
                "color": FAR if moved else TONIGHT,
                "size": 8 if moved else 6,
                "opacity": 0.9 if moved else 0.5,
            },
            customdata=[
                [_name(label["label"], 80), 100 * label["rate"], 100 * label[key]] for label in some
            ],
            hovertemplate="%{customdata[0]}: %{customdata[1]:.3g} % against "
            "%{customdata[2]:.3g} %<extra></extra>",
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
    _style(figure, legend=True, height=440)
    figure.update_layout(
        xaxis={"title": f"% of rows, {other}", "type": "log", "dtick": "D2"},
        yaxis={"title": f"% of rows, {night}", "type": "log", "dtick": "D2"},
        hovermode="closest",
    )
    return figure


def speed(steps: Mapping[str, Any]) -> Any:
    """Tokens a second by the time at which their parts were written."""
    import plotly.graph_objects as go

    figure = go.Figure()
    step = steps["step_s"]
    start = datetime.fromtimestamp(steps["start"], UTC)
    # the last step's end as well: steps are drawn from their beginning on
    times = [
        (start + timedelta(seconds=step * place)).strftime("%Y-%m-%d %H:%M:%S")
        for place in range(len(steps["tokens"]) + 1)
    ]

    def add(name: str, values: Sequence[float], color: str, width: float, **more: Any) -> None:
        speeds = [value / step for value in values]
        figure.add_scatter(
            x=times,
            y=[*speeds, speeds[-1]],
            name=name,
            mode="lines",
            line={"shape": "hv", "color": color, "width": width},
            hovertemplate="%{x}: %{y:,.0f} tokens/s",
            **more,
        )

    actors = steps["tokens_by_actor"]
    add("all", steps["tokens"], TONIGHT, 2.5, fill="tozeroy", fillcolor="rgba(36,87,197,0.10)")
    if 1 < len(actors) <= ACTORS_DRAWN:
        for place, (name, values) in enumerate(actors.items()):
            add(plot_text(name, width=40), values, _ACTOR_COLORS[place % len(_ACTOR_COLORS)], 1.2)
    _style(figure, legend=len(figure.data) > 1, height=320)
    figure.update_layout(
        xaxis={"title": "UTC", "type": "date"},
        yaxis={"title": "tokens/s", "rangemode": "tozero", "tickformat": ",", "automargin": True},
    )
    return figure


def _number(value: float | None) -> float:
    return 0.0 if value is None else value


def _style(figure: Any, *, legend: bool, height: int) -> None:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#1d2330"},
        hoverlabel={"align": "left"},
    )


def _name(name: str, length: int = _NAME_LENGTH) -> str:
    return plot_text(" ".join(name.split()), width=length)
