"""What `plan` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import typer

from ray_mlc.cli.printing import size

FILES_SHOWN = 5
REPEATED_SHOWN = 0.001


def print_plan(answer: Mapping[str, Any]) -> None:
    """A forecast, a line for each question that it answers."""
    for name, said in plan_lines(answer):
        typer.echo(f"{name:<10} {said}")


def plan_lines(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines, each with the word that it begins with."""
    lines = [("input", _input(answer["input"]))]
    aside = answer["set_aside"]
    if aside["files"]:
        lines.append(("set aside", f"{aside['rows']:,} rows of {len(aside['files']):,} file(s)"))
        for item in aside["files"][:FILES_SHOWN]:
            lines.append(("", f"{item['source']}: {item['reason']}"))
    if answer.get("nothing_to_do"):
        done = answer["written_rows"] and not aside["files"]
        why = "every row is written already" if done else "there is nothing that can be scored"
        return [*lines, ("time", f"none: {why}")]
    lines += _sample_lines(answer)
    lines += [("engine", _engine(answer["engine"])), ("time", _time(answer["forecast"]))]
    memory, output = answer["forecast"]["memory_bytes_per_node"], answer["output"]
    lines.append(("memory", f"{size(memory)} on each node at its peak"))
    lines.append(("output", f"{size(output['bytes'])} in {output['parts']:,} part(s)"))
    if "cost" in answer:
        lines.append(("cost", _cost(answer["cost"], answer["forecast"]["node_hours"])))
    if "deadline" in answer:
        lines.append(("deadline", _deadline(answer["deadline"], answer["forecast"])))
    return lines


def _engine(engine: Mapping[str, Any]) -> str:
    return (
        f"{engine['name']} {engine['dtype']} on {engine['device']}, "
        f"{engine['max_batch_tokens']:,} tokens in a batch: {engine['tokens_per_s']:,.0f} tokens/s "
        f"of each of {engine['processes']} process(es) at once, padding {engine['padding']:.1%}"
    )


def _time(night: Mapping[str, Any]) -> str:
    seconds = [night["seconds"][name] for name in ("value", "low", "high")]
    return (
        f"{span(*seconds)} with {night['actors']} actor(s) on {night['nodes']} node(s) like this "
        f"one; {span(night['until_scoring_s'])} of it before scoring"
    )


def _cost(cost: Mapping[str, float], hours: Mapping[str, float]) -> str:
    return (
        f"{cost['value']:,.2f} ({cost['low']:,.2f} to {cost['high']:,.2f}): "
        f"{hours['value']:,.2f} node-hours at {cost['per_node_hour']:g} per node and hour"
    )


def span(*seconds: float) -> str:
    """Time, to about a hundredth; with two more figures also from when to when, in one unit."""
    if seconds[0] < 100:
        shown = [f"{value:.0f} s" for value in seconds]
    elif seconds[0] < 6000:
        shown = [f"{value / 60:.1f} min" for value in seconds]
    else:
        shown = [f"{value / 3600:.1f} h" for value in seconds]
    return shown[0] if len(shown) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _input(found: Mapping[str, Any]) -> str:
    groups = f" ({found['row_groups']:,} row groups)" if found["row_groups"] else ""
    said = (
        f"{found['rows']:,} rows in {found['units']:,} units of {found['files']:,} file(s)"
        f"{groups}, {size(found['bytes'])} decoded"
    )
    written = found["written_rows"]
    return f"{said}; {written:,} rows are written already" if written else said


def _sample_lines(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    sample, tokens = answer["sample"], answer["tokens"]
    of = "" if sample["whole"] else f", by a sample of {sample['rows']:,} rows"
    every, scored = tokens["all"], tokens["scored"]
    lines = [
        (
            "tokens",
            f"{_many(every)}{of}; median {tokens['p50']:,}, 90 % below {tokens['p90']:,}, 99 % "
            f"below {tokens['p99']:,}; {_many(scored)} are scored",
        )
    ]
    said = [f"{answer['cut']['value']:.1%} of the rows are cut"]
    if answer["windowed"]["value"]:
        said.append(f"{answer['windowed']['value']:.1%} are read in windows")
    if answer["repeated"]["value"] >= REPEATED_SHOWN:
        said.append(f"{answer['repeated']['value']:.1%} of the text is there again, scored once")
    odd = {name: count for name, count in sample["statuses"].items() if name != "ok"}
    if odd:
        shown = ", ".join(f"{count / sample['rows']:.1%} {name}" for name, count in odd.items())
        said.append(f"without scores: {shown}")
    lines.append(("rows", "; ".join(said)))
    lines += [("unreadable", reason) for reason in sample["unreadable_units"][:FILES_SHOWN]]
    return lines


def _many(figure: Mapping[str, float]) -> str:
    """Tokens, with their interval."""
    if figure["low"] == figure["high"]:
        return _count(figure["value"])
    return f"{_count(figure['value'])} ({_count(figure['low'])} to {_count(figure['high'])})"


def _count(value: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 10 * unit:
            return f"{value / unit:,.1f}{name}"
    return f"{value:,.0f}"


def _deadline(found: Mapping[str, Any], night: Mapping[str, Any]) -> str:
    start, end = (datetime.fromisoformat(found[name]) for name in ("start", "ends"))
    said = (
        f"{'yes' if found['holds'] else 'no'}: begun at {start:%H:%M} it ends about {end:%H:%M}, "
        f"{span(found['seconds'])} are left until {found['at']}"
    )
    if found["actors"] is None:
        return f"{said}; no number of actors is enough"
    if found["holds"] and found["actors"] >= night["actors"]:
        return said
    return f"{said}; {found['actors']} actor(s) on {found['nodes']} node(s) would be enough"
