"""Commands over finished outputs: decide again, compare."""

from __future__ import annotations

from typing import Annotated

import typer

from ray_mlc.cli.options import Json, Labels, Quiet, label_columns, print_json
from ray_mlc.errors import GateError

Output = Annotated[str, typer.Argument(help="Finished output folder of score, or of retag.")]


def retag(
    output: Output,
    new: Annotated[str, typer.Argument(help="Output folder to write; OUTPUT stays as it is.")],
    decision: Annotated[
        str | None,
        typer.Option(
            help="Decision that `thresholds --output` wrote, or a copy of one.", show_default=False
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Fit thresholds anew: rate<=0.01 of the rows; or, with --examples, f1, fbeta=2, "
            "precision>=0.9.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(
            help="Annotated rows of this corpus, to fit an objective on.", show_default=False
        ),
    ] = None,
    id: Annotated[
        str, typer.Option("--id", help="Kept column that joins them with the rows.")
    ] = "id",
    labels: Labels = "labels",
    add_new: Annotated[
        bool, typer.Option("--add-new", help="Also decide nights that OUTPUT has got since.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace another command that writes there.")
    ] = False,
    no_lease: Annotated[
        bool,
        typer.Option("--no-lease", help="For stores without conditional writes: one writer only!"),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decide again: other labels from the scores that score has stored, without the model.

    Run the same command again to continue.
    """
    from ray_mlc.cli.run_tables import print_retag
    from ray_mlc.runtime.progress import Display
    from ray_mlc.runtime.refit import Labelled
    from ray_mlc.runtime.retag import Wanted
    from ray_mlc.runtime.retag import retag as run_retag

    labelled = Labelled(examples, id, label_columns(labels)) if examples else None
    summary = run_retag(
        output,
        new,
        Wanted(decision=decision, objective=objective, labelled=labelled),
        Display(quiet=quiet),
        add_new=add_new,
        take_over=take_over,
        use_lease=not no_lease,
    )
    if json:
        print_json(summary)
        return
    print_retag(new, summary)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="Output folder, one of its nights (OUT@2), or a model (folder, hub id): its "
            "validation."
        ),
    ],
    b: Annotated[str, typer.Argument(help="The same, to be held against it.")],
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Limit that must hold, else exit 4: agreement>=0.9, psi<=0.2, js<=0.05, "
            "rate_change<=0.02, rate_ratio<=2.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put two outputs, nights or a model and an output side by side: rates, drift, flips."""
    from ray_mlc.cli.run_tables import print_comparison
    from ray_mlc.runtime.compare import compare as run_compare
    from ray_mlc.runtime.progress import Display

    result = run_compare(a, b, gate or (), Display(quiet=quiet))
    if json:
        print_json(result)
    else:
        print_comparison(result)
    broken = [item for item in result["gates"] if not item["holds"]]
    if broken:
        text = "; ".join(f"{item['gate']}: {item['why']}" for item in broken)
        raise GateError(f"{a} and {b}: does not hold: {text}")
