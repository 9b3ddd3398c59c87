"""Options that several commands share, and how their values are read and results printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

JobFile = Annotated[Path | None, typer.Argument(help="YAML job file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other key of the job: section.key=value.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to use; default: RAY_ADDRESS, else a Ray that ends with the command.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, int8 or auto.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
DtypeOrNone = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16, int8 or auto; default float32.", show_default=False
    ),
]
DeviceOrNone = Annotated[
    str | None, typer.Option(help="cpu, cuda or auto; default auto.", show_default=False)
]
Progress = Annotated[
    Literal["auto", "rich", "plain", "json", "none"],
    typer.Option(
        "--progress",
        help="A bar, lines, or JSON lines for programs, on stderr; auto: a bar on a terminal.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def template(text: str | None) -> str | None:
    r"""A text option as it is meant: shells pass on `\n` as it was typed."""
    if text is None or "{" not in text:
        return text
    return text.replace("\\n", "\n").replace("\\t", "\t")


TEXT_HELP = 'Text column, or a template such as "{title}\\n{body}"'
Text = Annotated[str, typer.Option(help=f"{TEXT_HELP}.", callback=template)]
LABELS_HELP = "Label column, or 0/1 columns separated by commas (a single one: name,)"
Labels = Annotated[str, typer.Option(help=f"{LABELS_HELP}.")]
TextOrNone = Annotated[
    str | None,
    typer.Option(help=f"{TEXT_HELP}; default text.", callback=template, show_default=False),
]
LabelsOrNone = Annotated[
    str | None, typer.Option(help=f"{LABELS_HELP}; default labels.", show_default=False)
]
Hierarchy = Annotated[
    Path | None,
    typer.Option(
        help="YAML of label parents, child: parent; they are given with the child.",
        show_default=False,
    ),
]
DecisionFile = Annotated[
    str | None,
    typer.Option(
        "--decision",
        help="Decision that `thresholds --output` wrote; default: the model's.",
        show_default=False,
    ),
]
Near = Annotated[
    float,
    typer.Option(
        help="Jaccard similarity from which texts are nearly the same; 0: do not look.",
        min=0,
        max=1,
    ),
]


def label_columns(labels: str) -> str | list[str]:
    """A column of lists, or with a comma 0/1 columns; `spam,` is a single one."""
    names = [name.strip() for name in labels.removesuffix(",").split(",")]
    return names if "," in labels else labels


def print_json(value: object) -> None:
    """Data for programs, to stdout."""
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
