"""What is odd about a night, in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_mlc.report.explore_plots import DRIFT
from ray_mlc.report.remedies import STATUS_REMEDIES, remedy_of
from ray_mlc.scoring.night_drift import describe_drift, is_beyond

MOVED = 1.25
"""Ratio of two rates from which a difference beyond chance is worth a word: of millions of rows
almost every difference is beyond chance."""
NAMED = 5
"""Labels that a sentence names."""

Figures = Mapping[str, Any]
"""What `scoring.figures.night_figures` returns."""


def findings(figures: Figures) -> list[tuple[str, str]]:
    """What stands out, and what to do about it; for the page and the terminal."""
    return [
        *_state_findings(figures),
        *_aside_findings(figures),
        *_label_findings(figures, "before"),
        *_label_findings(figures, "training"),
        *_never_given(figures),
        *_length_findings(figures),
    ]


def _state_findings(figures: Figures) -> list[tuple[str, str]]:
    rows, files = figures["rows"], figures["files"]
    if figures["state"] == "incomplete":
        missing = (
            f"Incomplete: {rows['missing']:,} of {rows['planned']:,} rows, of {files['missing']:,} "
            "file(s), are not there yet. All figures below are of what is there."
        )
        found = [
            (
                missing,
                "Run the same command again, after limits.stop_at in the evening: it goes on where "
                "this ended.",
            )
        ]
    elif figures["state"] == "beyond limits" and _drifted(figures):
        found = []
    elif figures["state"] == "beyond limits":
        found = [
            (
                "Everything planned is written or set aside, but no success is declared: more was "
                "set aside than the limits allow, or the run ended before it was declared.",
                "Run the same command again: it declares it, or names the limit.",
            )
        ]
    else:
        found = [
            (f"All {rows['written']:,} rows of {files['planned']:,} file(s) are there.", "Nothing.")
        ]
        if files["set_aside"]:
            found = [
                (
                    f"{rows['written']:,} rows are there; of {files['set_aside']:,} file(s) "
                    "something is set aside, within the limits.",
                    "See what was set aside.",
                )
            ]
    for drift in filter(is_beyond, figures["drift"]):
        where = "" if drift["night"] == figures["night"] else f" in night {drift['night']}"
        compare = f"ray-mlc compare MODEL OUTPUT@{drift['night']}"
        found.append(
            (
                f"Drift{where}: {describe_drift(drift)}.",
                f"See to the input, train again, or raise limits.drift; {compare}.",
            )
        )
    for problem in figures["problems"]:
        found.append((f"{problem}: in no figure here.", "ray-mlc verify says what to do."))
    return found


def _drifted(figures: Figures) -> bool:
    """Whether scores are farther from the model's validation than `limits.drift` allows."""
    return any(map(is_beyond, figures["drift"]))


def _aside_findings(figures: Figures) -> list[tuple[str, str]]:
    found = []
    if count := figures["set_aside_count"]:
        first, files = figures["set_aside"][0], figures["files"]["set_aside"]
        many = f"{count:,} pieces of {files:,} file(s), the largest of " if count > 1 else ""
        text = f"Set aside: {many}{first['source']}: {first['reason'].rstrip('.')}."
        found.append((text, remedy_of(first["reason"])))
    for status, count in figures["statuses"].items():
        if status in ("ok", "null_text", "empty"):
            continue
        found.append(
            (f"{count:,} row(s) were not scored: {status}.", STATUS_REMEDIES.get(status, ""))
        )
    nothing = sum(figures["statuses"].get(name, 0) for name in ("null_text", "empty"))
    if nothing > 0.01 * max(1, figures["rows"]["written"]):
        share = percent(nothing / figures["rows"]["written"])
        found.append(
            (f"{nothing:,} row(s), {share}, have no text.", "Ask whoever makes the files.")
        )
    return found


def _label_findings(figures: Figures, key: str) -> list[tuple[str, str]]:
    moved = [
        label
        for label, far in zip(figures["labels"], far_from(figures["labels"], key), strict=True)
        if far
    ]
    if not moved:
        return []
    moved.sort(key=lambda label: -abs(label[f"from_{key}"]))
    named = ", ".join(
        f"{label['label']!r} {percent(label[key])} → {percent(label['rate'])}"
        for label in moved[:NAMED]
    )
    many = f"{len(moved):,} label(s) are" if len(moved) > 1 else "A label is"
    if key == "before":
        text = f"{many} given beyond chance more or less often than the night before: {named}."
        nights = f"OUTPUT@{figures['night'] - 1} OUTPUT@{figures['night']}"
        return [(text, f"Did the input change? Look at texts; ray-mlc compare {nights} says more.")]
    text = f"{many} given beyond chance more or less often than training examples had it: {named}."
    return [
        (
            text,
            "The corpus may differ from the examples, or thresholds be too low or high for it: tag "
            "a sample by hand, and fit with ray-mlc thresholds.",
        )
    ]


def far_from(labels: Sequence[Mapping[str, Any]], key: str) -> list[bool]:
    """Which labels' rates differ by more than chance, and by enough to matter."""
    found = []
    for label in labels:
        z, other = label[f"from_{key}"], label[key]
        low, high = sorted((label["rate"], other or 0.0))
        found.append(z is not None and abs(z) >= DRIFT and high >= MOVED * low)
    return found


def _never_given(figures: Figures) -> list[tuple[str, str]]:
    never = [label["label"] for label in figures["labels"] if not label["given"]]
    if not never or not figures["scored"]:
        return []
    named = ", ".join(repr(name) for name in never[:NAMED])
    more = ", and more" if len(never) > NAMED else ""
    return [
        (
            f"{len(never):,} of {len(figures['labels']):,} labels are given to no row: "
            f"{named}{more}.",
            "Rare ones may be none; else the model hardly knows them, or their thresholds are too "
            "high: see their scores below.",
        )
    ]


def _length_findings(figures: Figures) -> list[tuple[str, str]]:
    share = figures["truncated"] / max(1, figures["scored"])
    if share < 0.05:
        return []
    cut = figures["training"]["cut"]
    beside = "" if cut is None else f"; of the training texts it was {percent(cut)}"
    return [
        (
            f"{percent(share)} of the texts are longer than what the model reads{beside}.",
            "If their ends matter: long.policy=windows, in a new output, or training.windows.",
        )
    ]


def percent(share: float | None) -> str:
    """A share in words; a dash where there is none."""
    if share is None:
        return "–"
    if not share:
        return "0 %"
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


# --- sections
