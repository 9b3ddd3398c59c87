"""Two runs, nights or models side by side: rates, distributions of scores, rows that differ.

Of each side the rows that were scored are counted, label by label and bin by bin. Where both have
planned the same files, rows are joined by source and row; the units may differ. A part of each side
is held at a time, as it is stored, and counts of labels × bins: memory does not grow with rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.corpus.units import Unit
from ray_mlc.errors import DataError
from ray_mlc.labels import LabelSet
from ray_mlc.model.distribution import Distribution, ScoreCounts
from ray_mlc.model.folder import ModelFolder
from ray_mlc.scoring.drift import (
    jensen_shannon,
    merge_unknown,
    psi,
    psi_by_chance,
    rate_interval,
)
from ray_mlc.scoring.ledger import Run
from ray_mlc.scoring.parts import OutputSpec
from ray_mlc.scoring.retag import ScoredOutput, reasons_set_aside, scored_rows
from ray_mlc.scoring.stored import count_bins, label_cells, score_columns, scores_at

EXAMPLES = 10
"""Rows that differ most, which are named."""


@dataclass(frozen=True)
class Side:
    """One of the two: rows of a run, or what a model gave at its validation."""

    name: str
    label_set: LabelSet
    model: str
    """Digest."""
    decision: str
    """Digest."""
    floor: float = 0.0
    """Scores below it are not known."""
    run: Run | None = None
    positions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Units of the run that are meant."""
    set_aside: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Why units of the run have no part, by source and first row."""
    distribution: Distribution | None = None
    finished: bool = True

    @classmethod
    def of_run(cls, name: str, run: Run, night: int | None) -> Side:
        """A run, or one of its nights.

        Raises:
            DataError: If it has no such night.
        """
        positions = np.arange(len(run.plan.units))
        if night is not None:
            if not 1 <= night <= len(run.nights):
                raise DataError(f"{name}: the run has {len(run.nights)} night(s)")
            positions = run.units_of_night(night)
        output = run.output
        return cls(
            name,
            run.label_set,
            str(run.identity["model"]),
            run.decision.digest,
            output.floor if output.format == "sparse" else 0.0,
            run,
            positions,
            reasons_set_aside(run.storage),
            finished=run.succeeded,
        )

    @classmethod
    def of_model(cls, folder: ModelFolder) -> Side:
        """What a model gave at its validation.

        Raises:
            DataError: If its folder does not say.
        """
        found = folder.distribution()
        if found is None:
            raise DataError(
                f"{folder.name}: there is no distribution.json in it, as models of earlier "
                "versions have none: `ray-mlc thresholds` writes it"
            )
        return cls(folder.name, folder.label_set, folder.digest, found.decision, distribution=found)

    def by_source(self) -> dict[str, NDArray[np.int64]]:
        """Units of each file, in the order of rows."""
        if self.run is None or not len(self.positions):  # a night of files that nobody can read
            return {}
        plan = self.run.plan
        file_U = plan.units["file"].to_numpy()[self.positions]
        first_U = plan.units["first_row"].to_numpy()[self.positions]
        order = np.lexsort((first_U, file_U))
        files, starts = np.unique(file_U[order], return_index=True)
        groups = np.split(self.positions[order], starts[1:])
        return {plan.sources[file]: group for file, group in zip(files, groups, strict=True)}


@dataclass
class Tally:
    """What was counted, of some files or of all; of each pair the first side's comes first."""

    counts: list[ScoreCounts]
    gained_L: NDArray[np.int64]
    """Rows that have a label on the second side alone, of the labels in common."""
    lost_L: NDArray[np.int64]
    """On the first side alone."""
    missing: list[int] = field(default_factory=lambda: [0, 0])
    """Units without a part that can be read."""
    set_aside: list[int] = field(default_factory=lambda: [0, 0])
    """Those of them that the run names as set aside."""
    k_cut: list[int] = field(default_factory=lambda: [0, 0])
    """Scores above the floor that `k` cut."""
    joined: int = 0
    """Rows that were scored on both sides."""
    same: int = 0
    """Those of them that have the same labels, of those in common."""
    examples: list[tuple[float, int, str, int, list[dict[str, Any]]]] = field(default_factory=list)
    """The rows that differ most: by how much, in how many labels, source, row, labels."""

    def add(self, other: Tally) -> None:
        """Add what was counted elsewhere."""
        for index in (0, 1):
            self.counts[index] += other.counts[index]
            self.missing[index] += other.missing[index]
            self.set_aside[index] += other.set_aside[index]
            self.k_cut[index] += other.k_cut[index]
        self.gained_L += other.gained_L
        self.lost_L += other.lost_L
        self.joined += other.joined
        self.same += other.same
        self.examples = heapq.nlargest(EXAMPLES, self.examples + other.examples)


@dataclass(frozen=True)
class File:
    """An input file of either side."""

    source: str
    positions: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Units of each side, in the order of rows."""
    same: bool
    """Whether both sides mean units of it, and it was the same."""


@dataclass(frozen=True)
class Part:
    """A part as it is held while it is compared."""

    first: int
    """Row of the file that it begins with."""
    scored_N: NDArray[np.bool_]
    label_row: NDArray[np.int64]
    label_column: NDArray[np.int64]
    """Labels given, by row of the part and by column."""
    table: pa.Table
    """Columns of scores."""
    output: OutputSpec

    @property
    def end(self) -> int:
        """One past its last row of the file."""
        return self.first + len(self.scored_N)

    def scored(self, low: int, high: int) -> NDArray[np.bool_]:
        """Which of some rows of the file have scores."""
        return self.scored_N[low - self.first : high - self.first]

    def label_keys(
        self, low: int, both_N: NDArray[np.bool_], common_of: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Row from `low` on × common labels + common label, of each label given.

        Args:
            low: First row of the file that is meant.
            both_N: Which of the rows from there on.
            common_of: Common label of each column; -1: there is none.
        """
        row, label = self.label_row + self.first - low, common_of[self.label_column]
        meant = (row >= 0) & (row < len(both_N)) & (label >= 0)
        row, label = row[meant], label[meant]
        meant = both_N[row]
        keys: NDArray[np.int64] = row[meant] * (common_of.max() + 1) + label[meant]
        return keys

    def scores_at(
        self, row_F: NDArray[np.int64], column_F: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Scores by row of the file and column; NaN where one is not known."""
        return scores_at(self.table, self.output, row_F - self.first, column_F)


class Pairing:
    """Two sides and the labels that they have in common."""

    def __init__(self, one: Side, other: Side) -> None:
        self.sides = (one, other)
        known = set(other.label_set.names)
        self.common = LabelSet(tuple(name for name in one.label_set.names if name in known))
        """In the order of the first."""
        self.common_of = tuple(
            np.array([self.common.index.get(name, -1) for name in side.label_set.names], np.int64)
            for side in self.sides
        )
        """Column among those in common of each side's columns; -1: there is none."""

    def columns(self, index: int) -> NDArray[np.int64]:
        """Column on one side of each label in common."""
        label_set = self.sides[index].label_set
        return np.array([label_set.index[name] for name in self.common.names], np.int64)

    def start(self) -> Tally:
        """Nothing is counted yet but what a model's folder says."""
        tally = self._empty()
        for index, side in enumerate(self.sides):
            if side.distribution is not None:
                tally.counts[index] = side.distribution.counts
        return tally

    def _empty(self) -> Tally:
        counts = [ScoreCounts.none(len(side.label_set)) for side in self.sides]
        none_L = np.zeros(len(self.common), np.int64)
        return Tally(counts, none_L, none_L.copy())

    def files(self) -> list[File]:
        """Files of either side."""
        by_source = [side.by_source() for side in self.sides]
        facts = [_facts(side) for side in self.sides]
        nothing = np.zeros(0, np.int64)
        return [
            File(
                source,
                (by_source[0].get(source, nothing), by_source[1].get(source, nothing)),
                # plans name the files of all nights
                source in by_source[0]
                and source in by_source[1]
                and _same_file(facts[0].get(source), facts[1].get(source)),
            )
            for source in dict.fromkeys([*by_source[0], *by_source[1]])
        ]

    def compare_file(self, file: File) -> Tally:
        """Count the rows of one file; where both sides have planned it, what differs as well."""
        tally = self._empty()
        streams = [
            _parts(side, file.positions[index], index, tally, hold=file.same)
            for index, side in enumerate(self.sides)
        ]
        one, two = (next(stream, None) for stream in streams)
        while one is not None or two is not None:
            if file.same and one is not None and two is not None:
                self._join(file.source, one, two, tally)
            # the one that ends first makes room for its next, before that is read
            if two is None or (one is not None and one.end <= two.end):
                one = None
                one = next(streams[0], None)
            else:
                two = None
                two = next(streams[1], None)
        return tally

    def _join(self, source: str, one: Part, two: Part, tally: Tally) -> None:
        """Compare the rows that two parts share."""
        low, high = max(one.first, two.first), min(one.end, two.end)
        if low >= high:
            return
        both_N = one.scored(low, high) & two.scored(low, high)
        width = len(self.common)
        one_keys = one.label_keys(low, both_N, self.common_of[0])
        two_keys = two.label_keys(low, both_N, self.common_of[1])
        lost = np.setdiff1d(one_keys, two_keys, assume_unique=True)
        gained = np.setdiff1d(two_keys, one_keys, assume_unique=True)
        tally.lost_L += np.bincount(lost % width, minlength=width)
        tally.gained_L += np.bincount(gained % width, minlength=width)
        flips = np.concatenate([lost, gained])
        rows, row_F = np.unique(flips // width, return_inverse=True)
        joined = int(both_N.sum())
        tally.joined += joined
        tally.same += joined - len(rows)
        if not len(rows):
            return
        scores = [
            part.scores_at(
                flips // width + low,
                self.columns(index)[flips % width],
            )
            for index, part in enumerate((one, two))
        ]
        known = [
            np.nan_to_num(score_F, nan=side.floor)
            for score_F, side in zip(scores, self.sides, strict=True)
        ]
        size_R = np.bincount(row_F, np.abs(known[0] - known[1]))
        flips_R = np.bincount(row_F)
        for row in np.lexsort((-flips_R, -size_R))[:EXAMPLES].tolist():
            which = np.flatnonzero(row_F == row)
            labels = [
                {
                    "label": self.common.names[int(flips[flip] % width)],
                    "a": _score(scores[0][flip]),
                    "b": _score(scores[1][flip]),
                    "given": "a" if flip < len(lost) else "b",
                }
                for flip in which.tolist()
            ]
            size = round(float(size_R[row]), 6)
            place = int(rows[row]) + low
            tally.examples.append((size, int(flips_R[row]), source, place, labels))
        tally.examples = heapq.nlargest(EXAMPLES, tally.examples)


def _score(value: np.float32) -> float | None:
    """None: it is not stored."""
    return None if np.isnan(value) else round(float(value), 6)


def _facts(side: Side) -> dict[str, Mapping[str, Any]]:
    if side.run is None:
        return {}
    return {row["source"]: row for row in side.run.plan.files.to_pylist()}


def _same_file(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two plans name the same content, as far as a listing and a footer say."""
    if one is None or other is None:
        return False
    tags = {one["etag"], other["etag"]} - {""}
    return len(tags) <= 1 and (one["size"], one["rows"]) == (other["size"], other["rows"])


def _parts(
    side: Side, positions: NDArray[np.int64], index: int, tally: Tally, *, hold: bool
) -> Iterator[Part]:
    """Parts of a side, one by one; each is counted when it is read, and given if it is to be held.

    Of one that was given nothing is kept here.
    """
    if side.run is None:
        return
    scored = ScoredOutput(side.run, side.set_aside)
    for unit in side.run.plan.units_at(positions):
        try:
            part, counts, k_cut = _read_part(scored, unit, hold=hold)
        except ValueError:
            tally.missing[index] += 1
            tally.set_aside[index] += (unit.source, unit.first_row) in side.set_aside
            continue
        tally.counts[index] += counts
        tally.k_cut[index] += k_cut
        if part is not None:
            yield part
            part = None


def _read_part(
    scored: ScoredOutput, unit: Unit, *, hold: bool
) -> tuple[Part | None, ScoreCounts, int]:
    """A part, what is counted of it, and how many scores `k` has cut."""
    run = scored.run
    names = score_columns(run.output)
    table, receipt = scored.read(unit, ["labels", "status", *names])
    given = label_cells(table["labels"], run.label_set)
    scored_N = scored_rows(table)
    rows = int(scored_N.sum())
    counts = ScoreCounts(
        rows,
        np.bincount(given[1], minlength=len(run.label_set)),
        count_bins(table, run.output, rows=rows),
    )
    part = Part(unit.first_row, scored_N, *given, table.select(names), run.output) if hold else None
    return part, counts, receipt.k_cut


def figures(pairing: Pairing, tally: Tally) -> dict[str, Any]:
    """What `compare --json` prints, but for the gates.

    Returns:
        `a` and `b` (who they are), `labels` (how many are in common, and which are not),
        `per_label` (for each in common `rate_a`, `interval_a`, `rate_b`, `interval_b`, `change`,
        `psi`, `psi_by_chance`, `js`, `gained`, `lost`), `flips` (null where no row is on both
        sides), `largest_flips`, `worst` (what gates look at) and `notes`.
    """
    one, two = pairing.sides
    columns = [pairing.columns(0), pairing.columns(1)]
    floor = max(one.floor, two.floor)
    bins = [
        merge_unknown(counts.scores_LB[column], floor=floor)
        for counts, column in zip(tally.counts, columns, strict=True)
    ]
    measures = psi(*bins), psi_by_chance(*bins), jensen_shannon(*bins)
    rows = []
    for index, name in enumerate(pairing.common.names):
        given = [
            int(counts.given_L[column[index]])
            for counts, column in zip(tally.counts, columns, strict=True)
        ]
        sizes = [counts.rows for counts in tally.counts]
        rates = [count / size if size else 0.0 for count, size in zip(given, sizes, strict=True)]
        smooth = [(count + 0.5) / (size + 1) for count, size in zip(given, sizes, strict=True)]
        rows.append(
            {
                "label": name,
                "rate_a": rates[0],
                "interval_a": rate_interval(given[0], sizes[0]),
                "rate_b": rates[1],
                "interval_b": rate_interval(given[1], sizes[1]),
                "change": rates[1] - rates[0],
                "ratio": max(smooth) / min(smooth),
                "psi": float(measures[0][index]),
                "psi_by_chance": float(measures[1][index]),
                "js": float(measures[2][index]),
                "gained": int(tally.gained_L[index]),
                "lost": int(tally.lost_L[index]),
            }
        )
    flips = None
    if tally.joined:
        flips = {
            "rows": tally.joined,
            "same": tally.same,
            "agreement": tally.same / tally.joined,
            "gained": int(tally.gained_L.sum()),
            "lost": int(tally.lost_L.sum()),
        }
    return {
        "a": _who(pairing, tally, 0),
        "b": _who(pairing, tally, 1),
        "labels": {
            "common": len(pairing.common),
            "only_a": [name for name in one.label_set.names if name not in pairing.common.index],
            "only_b": [name for name in two.label_set.names if name not in pairing.common.index],
        },
        "per_label": rows,
        "flips": flips,
        "largest_flips": [
            {"source": source, "row": row, "difference": size, "labels": labels}
            for size, _, source, row, labels in tally.examples
        ],
        "worst": _worst(pairing, tally, rows, flips),
        "notes": list(_notes(pairing, tally, floor)),
    }


def _who(pairing: Pairing, tally: Tally, index: int) -> dict[str, Any]:
    side, counts = pairing.sides[index], tally.counts[index]
    return {
        "name": side.name,
        "kind": "model" if side.run is None else "output",
        "rows": counts.rows,
        "labels": len(side.label_set),
        "labels_per_row": int(counts.given_L.sum()) / max(1, counts.rows),
        "model": side.model,
        "decision": side.decision,
        "floor": side.floor,
        "units_missing": tally.missing[index],
        "units_set_aside": tally.set_aside[index],
    }


def _worst(
    pairing: Pairing, tally: Tally, rows: list[dict[str, Any]], flips: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Each figure that a gate may limit, with the label that is worst.

    None can be had where units of a side cannot be read, and nobody has said that they are left
    out: what happens to be left is no sample.
    """
    keys = {"psi": "psi", "js": "js", "rate_change": "change", "rate_ratio": "ratio"}
    lost = [count - known for count, known in zip(tally.missing, tally.set_aside, strict=True)]
    if any(lost):
        why = " and ".join(
            f"{count:,} unit(s) of {side.name}"
            for side, count in zip(pairing.sides, lost, strict=True)
            if count
        )
        return {
            name: {"value": None, "why": f"{why} cannot be read"} for name in ("agreement", *keys)
        }
    found: dict[str, Any] = {
        "agreement": {"value": None, "why": "no row is on both sides"}
        if flips is None
        else {"value": flips["agreement"]}
    }
    if not all(counts.rows for counts in tally.counts):
        return found | {name: {"value": None, "why": "a side has no rows"} for name in keys}
    for name, key in keys.items():
        row = max(rows, key=lambda item: abs(item[key]))
        found[name] = {"value": abs(row[key]), "label": row["label"]}
    return found


def _notes(pairing: Pairing, tally: Tally, floor: float) -> Iterator[str]:
    """What has to be known to read the figures rightly."""
    one, two = pairing.sides
    if one.decision != two.decision:
        yield "the decisions differ: rates and flips are of them as well, psi and js are of scores"
    if one.model != two.model:
        yield "the models differ: psi and js say how far their scores are apart, not the documents"
    if floor:
        yield f"scores below {floor:g} are not stored: in psi and js they are one bin"
    counted = zip(pairing.sides, tally.missing, tally.set_aside, tally.k_cut, strict=True)
    for side, missing, set_aside, cut in counted:
        if missing:
            named = f", {set_aside:,} of them set aside by name" if set_aside else ""
            yield f"{side.name}: {missing:,} unit(s) have no part that can be read: left out{named}"
        if not side.finished:
            yield f"{side.name}: is not finished"
        if cut:
            yield f"{side.name}: output.k has cut {cut:,} scores, which count as below the floor"
