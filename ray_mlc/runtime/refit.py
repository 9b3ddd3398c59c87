"""Thresholds from stored scores: for a rate of labels, or on examples that are among the rows.

A rate needs no annotations, only the scores of all rows. The threshold of each label is found as a
number is found in a dictionary: passes over the parts fix ten bits of it after ten. A float32 from
0 to 1 has thirty, so three passes find it exactly, and hold counts of labels × 1,024, no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.corpus.units import Unit
from ray_mlc.errors import ConfigError, DataError, StorageError
from ray_mlc.evaluation.thresholds import NOTHING, Objective, fit_thresholds, reached
from ray_mlc.labels import LabelSet
from ray_mlc.model.decisions import Decision
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.threads import in_threads
from ray_mlc.scoring.parts import OutputSpec
from ray_mlc.scoring.retag import PartError, ScoredOutput, scored_rows, units_of
from ray_mlc.scoring.stored import cells_in_turn, score_columns, score_matrix
from ray_mlc.training.examples import Examples, read_examples

BITS, PASSES = 10, 3
BUCKETS = 1 << BITS

T = TypeVar("T")


@dataclass(frozen=True)
class Labelled:
    """Examples that are among the rows of a run."""

    paths: Sequence[str]
    """Where they are."""
    id: str
    """Kept column of the output, and column of the examples, by which they are joined."""
    labels: str | Sequence[str]
    """Their label column or columns."""


def asked_for(objective: str, labelled: Labelled | None) -> dict[str, Any]:
    """An objective in a form that two commands can be compared by.

    Raises:
        ConfigError: If it needs examples that are not there, or has no use for them.
    """
    kind = Objective.parse(objective).kind
    if kind == "rate":
        if labelled is not None:
            raise ConfigError(f"--objective {objective} needs no --examples: leave them out")
        return {"objective": objective}
    if labelled is None:
        raise ConfigError(
            f"--objective {objective} is measured on annotated rows: give --examples FILE, and "
            "--id with the kept column that names them"
        )
    labels = labelled.labels if isinstance(labelled.labels, str) else ",".join(labelled.labels)
    return {
        "objective": objective,
        "examples": list(labelled.paths),
        "id": labelled.id,
        "labels": labels,
    }


def fit_on_scores(
    scored: ScoredOutput, objective: str, labelled: Labelled | None, display: Display
) -> Decision:
    """A decision by stored scores; hierarchy, fall-back and calibration stay as the run has them.

    Raises:
        DataError: If no example is among the rows, or they have a label that the run has not.
        StorageError: If a part cannot be read.
    """
    label_set = scored.run.label_set
    if labelled is None:
        own_L = _for_rate(scored, Objective.parse(objective).value, display)
    else:
        own_L = _on_examples(scored, objective, labelled, display)
    if scored.run.output.format == "sparse":
        # what lies below is not stored: no row gets another label by this
        own_L = np.maximum(own_L, np.float32(scored.run.output.floor))
    before = scored.run.decision
    per_label = {
        name: float(threshold) for name, threshold in zip(label_set.names, own_L, strict=True)
    }
    return before.model_copy(update={"per_label": per_label, "objective": objective})


def _for_rate(scored: ScoredOutput, rate: float, display: Display) -> NDArray[np.float32]:
    """The lowest threshold of each label that gives it to no more than so many of the rows."""
    output = scored.run.output
    labels = len(output.label_set)
    prefix_L = np.zeros(labels, np.int64)
    above_L = np.zeros(labels, np.int64)
    allowed, never_L = 0, np.zeros(labels, np.bool_)
    column_L = np.arange(labels)
    for number in range(PASSES):
        rows, counts = 0, np.zeros((labels, BUCKETS), np.int64)
        shift = BITS * (PASSES - 1 - number)
        count = partial(bucket_counts, output=output, prefix_L=prefix_L, shift=shift)
        for some, found in _each_part(scored, count, display, f"scores, pass {number + 1}"):
            rows += some
            np.add(counts, found.reshape(counts.shape), out=counts)
        allowed = int(rate * rows)
        from_top_LB = above_L[:, None] + np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
        # the highest bucket with which there are too many; without any, all of them may have it
        too_many_LB = from_top_LB > allowed
        never_L |= ~too_many_LB.any(axis=1)
        bucket_L = BUCKETS - 1 - np.argmax(too_many_LB[:, ::-1], axis=1)
        above_L = from_top_LB[column_L, bucket_L] - counts[column_L, bucket_L]
        prefix_L = prefix_L << BITS | bucket_L
    score_L = prefix_L.astype(np.uint32).view(np.float32)
    threshold_L = np.minimum(np.nextafter(score_L, np.float32(2)), np.float32(NOTHING))
    return np.where(never_L, np.nextafter(np.float32(0), np.float32(1)), threshold_L)


def bucket_counts(
    table: pa.Table, *, output: OutputSpec, prefix_L: NDArray[np.int64], shift: int
) -> tuple[int, NDArray[np.int64]]:
    """Rows of a part, and its scores above 0 by the next bits after those that are fixed."""
    counts = np.zeros(len(prefix_L) * BUCKETS, np.int64)
    for cells in cells_in_turn(table, output, least=0):
        positive = cells.score_C > 0
        column_C = cells.column_C[positive]
        bits_C = cells.score_C[positive].view(np.uint32).astype(np.int64) >> shift
        fits = bits_C >> BITS == prefix_L[column_C]
        found = column_C[fits] * BUCKETS + (bits_C[fits] & (BUCKETS - 1))
        # few of many buckets: another array of all for each piece would take longer
        np.add.at(counts, found, 1)
    return int(scored_rows(table).sum()), counts


def _on_examples(
    scored: ScoredOutput, objective: str, labelled: Labelled, display: Display
) -> NDArray[np.float32]:
    """Thresholds of each label on the examples that are among the rows."""
    run = scored.run
    label_set = run.label_set
    if labelled.id not in run.output.kept.names:
        kept = ", ".join(run.output.kept.names) or "none"
        raise ConfigError(
            f"--id {labelled.id}: {run.storage.uri} has kept no such column of the corpus "
            f"(output.keep); it has: {kept}"
        )
    examples = _read(labelled, label_set)
    wanted = examples.ids
    scores_NL = np.full((len(examples), len(label_set)), np.nan, np.float32)
    found_N = np.zeros(len(examples), np.bool_)
    twice = 0

    def pick(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        place = pc.index_in(table[labelled.id].cast(pa.string()), value_set=wanted)
        known = place.is_valid().to_numpy() & scored_rows(table)
        rows = np.flatnonzero(known)
        places = pc.fill_null(place, 0).to_numpy()[rows].astype(np.int64)
        return places, score_matrix(table.take(pa.array(rows)), run.output)

    more = [labelled.id]
    for places, values in _each_part(scored, pick, display, "scores of the examples", more):
        new = ~found_N[places]
        twice += int((~new).sum()) + int(new.sum() - len(np.unique(places[new])))
        scores_NL[places[new]] = values[new]
        found_N[places] = True
    if not found_N.any():
        raise DataError(
            f"{labelled.paths[0]}: none of the {len(examples):,} ids is in column {labelled.id!r} "
            f"of {run.storage.uri}, such as {wanted[0].as_py()!r}: are they of this corpus?"
        )
    rows = np.flatnonzero(found_N)
    display.say(f"{len(rows):,} of {len(examples):,} examples are among the rows, by {labelled.id}")
    if twice:
        display.say(f"note: {twice:,} more row(s) have an id of these: the first of each counts")
    # what is not stored is below all that is: it never gets a label
    known_NL = np.nan_to_num(scores_NL[rows], nan=0.0)
    targets_NL = examples.targets_NL(rows)
    fit = fit_thresholds(targets_NL, known_NL, objective=objective)
    if fit.held_out_NL is not None:
        on_others = reached(targets_NL, fit.held_out_NL)
        display.say(
            f"held out: precision {on_others['precision']:.4f} and recall "
            f"{on_others['recall']:.4f} over all labels"
        )
    return fit.own_L


def _read(labelled: Labelled, label_set: LabelSet) -> Examples:
    found = read_examples(
        list(labelled.paths),
        text=None,
        labels=labelled.labels,
        id=labelled.id,
        label_set=label_set,
    )
    if len(found.label_set) > len(label_set):
        raise DataError(
            f"{labelled.paths[0]}: has label {found.label_set.names[len(label_set)]!r}, which the "
            "run does not know"
        )
    annotated = np.flatnonzero(found.annotated)
    if not len(annotated):
        raise DataError(f"{labelled.paths[0]}: no row is annotated: there is nothing to fit on")
    return found.take(annotated)


def _each_part(
    scored: ScoredOutput,
    act: Callable[[pa.Table], T],
    display: Display,
    name: str,
    more: Sequence[str] = (),
) -> Iterator[T]:
    """Something of the status and the scores of every part, in the order of units."""
    run = scored.run
    columns = [*more, "status", *score_columns(run.output)]

    def one(item: tuple[int, Unit]) -> tuple[int, T | None]:
        unit = item[1]
        if (unit.source, unit.first_row) in scored.set_aside:
            return unit.rows, None
        try:
            return unit.rows, act(scored.read(unit, columns)[0])
        except (PartError, ValueError) as error:
            # the decision is of all rows, or of none
            raise StorageError(
                f"{run.storage.uri}/{unit.part}: {error}: make it again with the command that "
                "wrote it, then decide again"
            ) from None

    everything = units_of(run, np.arange(len(run.plan.units)))
    with display.stage(name, run.plan.rows, "rows") as stage:
        for rows, found in in_threads(one, everything):
            stage.advance(rows)
            if found is not None:
                yield found
