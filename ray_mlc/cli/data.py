"""`ray-mlc data`: examples made, looked at and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_mlc.cli.options import (
    Json,
    Labels,
    LabelsOrNone,
    Near,
    Quiet,
    Text,
    TextOrNone,
    label_columns,
    print_json,
)


def convert(
    source: Annotated[
        list[str],
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet: files, folders, globs, archives; or a hub data set."
        ),
    ],
    output: Annotated[str, typer.Argument(help="Parquet file of examples to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="jigsaw, go_emotions or multi_eurlex: sets the rest.", show_default=False
        ),
    ] = None,
    text: TextOrNone = None,
    labels: LabelsOrNone = None,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Id column; default: id, if there.", show_default=False),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Splits a text column of labels.", show_default=False)
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            help="Names of label ids: a JSON list, JSON id to name, a text file with a name a "
            "line, or names separated by commas.",
            show_default=False,
        ),
    ] = None,
    labels_from: Annotated[
        list[str] | None,
        typer.Option(help="File(s) with the label columns, joined by the id.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a hub data set or preset.", show_default=False)
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(help="Configuration of a hub data set or preset.", show_default=False),
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="EuroVoc level 1, 2 or 3; default 1.", show_default=False)
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Language of MultiEURLEX, or of names in several; default en.", show_default=False
        ),
    ] = None,
    skip_null_text: Annotated[
        bool | None,
        typer.Option(
            "--skip-null-text/--keep-null-text",
            help="Leave out rows without a text; default: only multi_eurlex does.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn CSV, JSONL, Parquet or a hub data set into examples: id, text, labels."""
    from dataclasses import asdict

    from ray_mlc.cli.tables import print_conversion
    from ray_mlc.runtime.progress import Display
    from ray_mlc.training.convert import convert
    from ray_mlc.training.names import parse_names
    from ray_mlc.training.presets import Preset

    with Display(quiet=quiet).stage("convert", None, "rows") as stage:
        summary = convert(
            source,
            output,
            preset=Preset.named(preset, level=level, language=language),
            text=text,
            labels=None if labels is None else label_columns(labels),
            id=id,
            delimiter=delimiter,
            names=None if names is None else parse_names(names, language=language or "en"),
            labels_from=labels_from,
            split=split,
            subset=subset,
            skip_null_text=skip_null_text,
            overwrite=overwrite,
            progress=stage.advance,
        )
    if json:
        print_json(asdict(summary))
        return
    print_conversion(summary)


def explore(
    examples: Annotated[
        list[str], typer.Argument(help="Examples: Parquet, CSV or JSONL; each path is a split.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="HTML to write; default: exploration.html, with --json none."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Model folder, encoder or hub id: lengths in its tokens too.", show_default=False
        ),
    ] = None,
    text: Text = "text",
    labels: Labels = "labels",
    hierarchy: Annotated[
        Path | None,
        typer.Option(
            help="YAML of label parents, child: parent; default: labels.yaml beside the examples.",
            show_default=False,
        ),
    ] = None,
    near: Near = 0.8,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show beginnings of texts, not only ids.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at examples before training: lengths, labels, duplicates, in one HTML page."""
    from ray_mlc.cli.tables import print_exploration
    from ray_mlc.runtime.explore import explore_examples
    from ray_mlc.runtime.progress import Display

    page = output or (None if json else Path("exploration.html"))
    figures = explore_examples(
        examples,
        text=text,
        labels=label_columns(labels),
        tokenizer=tokenizer,
        near=near,
        texts=texts,
        output=page,
        hierarchy=hierarchy,
        display=Display(quiet=quiet),
    )
    if json:
        print_json(figures)
        return
    print_exploration(figures)
    typer.echo(f"written: {page}")


def split(
    examples: Annotated[str, typer.Argument(help="Examples: Parquet, CSV or JSONL.")],
    output: Annotated[str, typer.Argument(help="Folder for one Parquet file per part.")],
    by: Annotated[
        str, typer.Option(help="stratified (by labels), time, random, or given (by a column).")
    ] = "stratified",
    column: Annotated[
        str | None,
        typer.Option(help="Column of the time, or of the part's name.", show_default=False),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(help="Names and shares; default train=0.8,validation=0.1,test=0.1."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Column whose equal values stay together.", show_default=False),
    ] = None,
    group_duplicates: Annotated[
        str, typer.Option(help="Texts that stay together: exact (the same), near, none.")
    ] = "exact",
    near: Near = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of what is left to chance.")] = 0,
    text: Text = "text",
    labels: Labels = "labels",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the parts of an earlier split.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Split examples into train, validation and test; say what leaks between them."""
    from ray_mlc.cli.tables import print_split
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.split import split_examples

    result = split_examples(
        examples,
        output,
        by=by,
        column=column,
        parts=parts,
        group=group,
        group_duplicates=group_duplicates,
        near=near,
        seed=seed,
        text=text,
        labels=label_columns(labels),
        overwrite=overwrite,
        display=Display(quiet=quiet),
    )
    if json:
        print_json(result)
        return
    print_split(result)
