"""Decide again: new labels from the stored scores of a finished run.

    OUT/<part> ──▶ stored scores ──▶ decide ──▶ NEW/<part>

The output is a run of its own, with the plan of the one that it reads: the same units, so the same
names of parts, and in each row the same but for `labels`. All that holds for `score` holds for it:
what is done is the listing of the output, a part appears whole or not at all, `_SUCCESS` is last.
The run that is read is never changed, and must be finished: the decision may depend on all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from ray_mlc.config import LimitsConfig
from ray_mlc.corpus.reading import open_parquet, refuse_local_stores_fault
from ray_mlc.corpus.rows import OK, STATUSES
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import DataError, RunMismatchError, StorageError, UsageError, first_line
from ray_mlc.model.decisions import Decision, Rules, decide, decide_cells
from ray_mlc.scoring.identity import refuse_place_in_input, versions
from ray_mlc.scoring.ledger import (
    FAILURES_FILE,
    JOB_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    SCRATCH,
    SUCCESS_FILE,
    Run,
    create_run,
    decode_record,
    digest_of,
    read_run,
    refuse_foreign,
)
from ray_mlc.scoring.nights import now, read_nights, write_night
from ray_mlc.scoring.origins import KEY, Origin, origin_of
from ray_mlc.scoring.parts import (
    CommitSpec,
    OutputSpec,
    Receipt,
    commit_part,
    label_lists,
    lists_of,
    read_footer_key,
)
from ray_mlc.scoring.plan import CorpusPlan, combine
from ray_mlc.scoring.stored import (
    check_floor,
    cut_off,
    known_cells,
    label_cells,
    rounded,
    stored_scores,
)
from ray_mlc.storage import Storage, filesystem_of, join, local_path, open_storage, sweep

ORIGIN_NIGHTS = "origin_nights"
"""Of `night.json`: nights of the run that is read, up to and including this one's."""


class PartError(ValueError):
    """A part is not what its run has planned, or cannot be read."""


@dataclass(frozen=True)
class ScoredOutput:
    """A finished run, whose parts are read."""

    run: Run
    set_aside: Mapping[tuple[str, int], str]
    """Why units have no part, by source and first row."""
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of each file as it was scored, by source."""

    @classmethod
    def open(cls, output: str) -> ScoredOutput:
        """Find a run and make sure that it is complete.

        Raises:
            UsageError: If there is none, or it is not.
        """
        storage = open_storage(output)
        run, reasons = read_run(storage), reasons_set_aside(storage)
        if not run.succeeded:
            advice = "finish it with the command that began it"
            if run.summary and all(
                (unit.source, unit.first_row) in reasons for _, unit in units_of(run, run.pending())
            ):  # all is accounted for, but not within its limits
                advice = f"see {FAILURES_FILE}: repair what was set aside, or score with limits "
                advice += "that allow it"
            raise UsageError(
                f"{output}: is not finished ({SUCCESS_FILE} is missing): {advice}, then decide "
                "again"
            )
        return cls(run, reasons, _versions(run))

    @property
    def limits(self) -> LimitsConfig:
        """What it was declared complete with: a run that reads it has to set aside no more."""
        summary = self.run.summary
        return LimitsConfig(
            bad_rows=float(summary.get("bad_rows", 0)), bad_files=float(summary.get("bad_files", 0))
        )

    def read(self, unit: Unit, columns: list[str] | None = None) -> tuple[pa.Table, Receipt]:
        """A part and its receipt.

        Args:
            unit: Whose.
            columns: Which to read; None: all.

        Raises:
            PartError: If it is missing, damaged, or not the part of its unit.
            StorageError: If the storage fails.
        """
        filesystem, base = filesystem_of(self.run.storage.uri)
        path = f"{base.rstrip('/')}/{unit.part}"
        try:
            with open_parquet(filesystem, path) as file:
                footer = read_footer_key(file.metadata)
                if footer is None or footer.get("run") != self.run.digest:
                    raise PartError("its part is of another run")
                if file.metadata.num_rows != unit.rows or footer["unit"]["source"] != unit.source:
                    raise PartError("its part has other rows than were planned")
                if missing := set(self.run.output.schema.names) - set(file.schema_arrow.names):
                    raise PartError(f"its part has no column {min(missing)!r}")
                table = file.read(columns=columns, use_threads=False)
        except FileNotFoundError as error:
            refuse_local_stores_fault(filesystem, base, path, error)
            reason = self.set_aside.get((unit.source, unit.first_row), "its part is gone")
            raise PartError(reason) from None
        except (OSError, pa.ArrowException) as error:
            refuse_local_stores_fault(filesystem, base, path, error)
            raise PartError(f"its part cannot be read ({first_line(error)})") from None
        return table, Receipt(**footer["receipt"])


def reasons_set_aside(storage: Storage) -> dict[tuple[str, int], str]:
    """Why units of a run were set aside, by source and first row."""
    failures = json.loads(storage.read(FAILURES_FILE) or b"[]")
    return {
        (item["source"], item["first_row"]): item["reason"]
        for item in failures
        if item["first_row"] is not None
    }


def refuse_place(scored: ScoredOutput, output: str) -> None:
    """Refuse an output whose parts would be taken for those of the run that is read, or its input.

    Raises:
        DataError: If one lies in the other.
    """
    one, other = (_normal(uri) for uri in (scored.run.storage.uri, output))
    if one == other:
        raise DataError(f"{output}: is the output that is read: name another one to write")
    if one.startswith(other) or other.startswith(one):
        raise DataError(
            f"{output} and {scored.run.storage.uri} lie one in the other: readers would take the "
            "parts of both for one table: name another output"
        )
    if (paths := _input_paths(scored.run)) is not None:
        plan = scored.run.plan
        refuse_place_in_input(output, paths, plan.spec.root, plan.part_folders)


def _input_paths(run: Run) -> str | list[str] | None:
    """What the job that began it all names as input; None: its file is gone, or not ours."""
    try:
        job = yaml.safe_load(run.storage.read(JOB_FILE) or b"")
        found: str | list[str] = job["input"]["path"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return found


def _normal(uri: str) -> str:
    path = local_path(uri)
    return f"{uri if path is None else path.resolve()}".rstrip("/") + "/"


def open_retag(
    scored: ScoredOutput,
    output: str,
    asked: Mapping[str, Any],
    decide_anew: Callable[[], Decision],
    *,
    add_new: bool = False,
    check: Callable[[], None] = lambda: None,
) -> tuple[Run, NDArray[np.int64], list[str]]:
    """Start a run that decides stored scores anew, or continue the one that is there.

    Args:
        scored: The run that is read.
        output: The folder to write.
        asked: Where the decision comes from, in a form that two commands can be compared by.
        decide_anew: Gives the decision; called only for a new run.
        add_new: Let nights that the run that is read has got since join.
        check: Called before anything becomes valid; raises if the output is no longer ours.

    Returns:
        The run, the positions of the units to do, and sentences that the user should see.

    Raises:
        RunMismatchError: If the folder holds another run.
        ConfigError: If a threshold lies below what is stored.
    """
    storage = open_storage(output)
    found = storage.read(RUN_FILE)
    if found is None:
        refuse_foreign(storage)
        decision = decide_anew()
        check_floor(decision, scored.run.output, uri=scored.run.storage.uri)
        decision.check(scored.run.label_set)
        check()
        _begin(storage, scored, Origin(scored.run.storage.uri, scored.run.digest, asked), decision)
        found = storage.read(RUN_FILE)
        if found is None:
            raise StorageError(f"{join(storage.uri, RUN_FILE)}: written, but it cannot be read")
    record = decode_record(storage, found)
    _refuse_difference(record, scored, asked, uri=storage.uri)
    if not (nights := read_nights(storage)):
        _plan(storage, 1, scored, 0, check)
        nights = read_nights(storage)
    notes = []
    known = int(nights[-1].record[ORIGIN_NIGHTS])
    there = len(scored.run.nights)
    if add_new and there > known:
        _refuse_replaced(Run(storage, record, nights), scored)
        check()
        storage.delete(SUCCESS_FILE)
        _plan(storage, len(nights) + 1, scored, known, check)
        nights = read_nights(storage)
        notes.append(f"{there - known} more night(s) of {scored.run.storage.uri} join")
    elif there > known:
        notes.append(
            f"{scored.run.storage.uri} has {there - known} night(s) that this output has not: "
            "--add-new decides them too, by the decision of this output"
        )
    run = Run(storage, record, nights)
    sweep(storage, SCRATCH)
    pending = run.pending()
    if len(pending):
        check()
        storage.delete(SUCCESS_FILE)  # goes before there is more to do, and comes back last
    return run, pending, notes


def _versions(run: Run) -> dict[str, tuple[int, int]]:
    """Size and time of each planned file; of one that was planned again the last count."""
    return {row["source"]: (row["size"], row["mtime_ns"]) for row in run.plan.files.to_pylist()}


def _refuse_replaced(run: Run, scored: ScoredOutput) -> None:
    """Refuse to take parts of an earlier version of a file for those of the present one.

    Raises:
        RunMismatchError: If the other run has scored a file again of which parts are here.
    """
    before = _versions(run)
    for source, folder in zip(run.plan.sources, run.plan.part_folders, strict=True):
        if scored.files.get(source, before[source]) == before[source]:
            continue
        if next(run.storage.list(f"{folder}/"), None) is not None:
            raise RunMismatchError(
                f"{source}: was scored again in {scored.run.storage.uri} since its labels here "
                f"were decided: delete {join(run.storage.uri, folder)}/ and run the same command"
            )


def _begin(storage: Storage, scored: ScoredOutput, origin: Origin, decision: Decision) -> None:
    run = scored.run
    identity = {**run.identity, **origin.identity, "decision": decision.digest}
    record = {
        **run.record,
        "schema_version": SCHEMA_VERSION,
        "digest": digest_of(identity),
        "created": now(),
        "identity": identity,
        "versions": versions(),
        KEY: origin.dump(),
    }
    job = {
        "kind": "retag",
        "scored": run.storage.uri,
        "input": {"path": _input_paths(run)},
        "output": {"path": storage.uri},
        **origin.asked,
    }
    create_run(storage, record, decision, yaml.safe_dump(job, sort_keys=False, allow_unicode=True))


def _plan(
    storage: Storage, number: int, scored: ScoredOutput, known: int, check: Callable[[], None]
) -> None:
    """Plan what the nights after the `known` first ones of the other run have planned."""
    plan: CorpusPlan = combine(
        scored.run.plan.spec, [(night.files, night.units) for night in scored.run.nights[known:]]
    )
    more = {ORIGIN_NIGHTS: len(scored.run.nights)}
    write_night(storage, number, plan, more, check=check)


def _refuse_difference(
    record: Mapping[str, Any], scored: ScoredOutput, asked: Mapping[str, Any], *, uri: str
) -> None:
    origin = origin_of(record)
    if origin is None:
        raise RunMismatchError(f"{uri}: holds a run of `ray-mlc score`: choose another output")
    if origin.run != scored.run.digest:
        raise RunMismatchError(
            f"{uri}: holds labels from the scores in {origin.output} (run {origin.run[:12]}), the "
            f"command names {scored.run.storage.uri} (run {scored.run.digest[:12]}): choose "
            "another output"
        )
    if dict(origin.asked) != dict(asked):
        first, second = (
            ", ".join(f"{key} {_short(value)}" for key, value in item.items())
            for item in (origin.asked, asked)
        )
        raise RunMismatchError(
            f"{uri}: holds labels by {first}, the command has {second}: repeat the first command, "
            "or choose another output"
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:12]}…"


def retag_unit(scored: ScoredOutput, unit: Unit, rules: Rules, spec: CommitSpec) -> Receipt:
    """Read the part of a unit, decide again, and commit the new part.

    Args:
        scored: The run that is read.
        unit: Which.
        rules: The decision.
        spec: Where the new part goes; its output spec is that of the run that is read.

    Returns:
        The receipt; a part that cannot be read sets its unit aside.

    Raises:
        StorageError: If a storage refuses.
        LeaseError: If another command has taken over.
    """
    try:
        if scored.files.get(unit.source) != (unit.file_size, unit.file_mtime_ns):
            raise PartError("its file was scored again since: --add-new decides it")
        table, before = scored.read(unit)
        labels, left_open = decide_again(table, spec.output, rules, cut=before.k_cut > 0)
    except ValueError as error:  # a PartError, or a label that the run does not have
        return Receipt(unit.source, unit.first_row, unit.rows, unit.part, f"read: {error}")
    place = table.schema.get_field_index("labels")
    table = table.set_column(place, spec.output.schema.field("labels"), labels)
    receipt = replace(
        before,
        labels=int(pc.sum(pc.list_value_length(labels)).as_py() or 0),
        labels_before=before.labels,
        unsettled=left_open,
        real_tokens=0,
        padded_tokens=0,
        bytes=0,
        seconds=None,
        actor="",
    )
    return commit_part(table, receipt, spec)


def decide_again(
    table: pa.Table, output: OutputSpec, rules: Rules, *, cut: bool
) -> tuple[pa.ChunkedArray, int]:
    """Labels of the rows of a part, and how many rows the stored scores do not settle.

    Args:
        table: With its status and scores.
        output: What parts look like.
        rules: The decision.
        cut: Whether `k` has cut any of these rows.
    """
    scored_N = scored_rows(table)
    names = output.label_set.names
    if output.format == "sparse":
        cells = known_cells(table, output)
        rows, columns = decide_cells(cells.row_C, cells.column_C, cells.score_C, cells.rows, rules)
        pieces = [lists_of(rows, columns, cells.rows, names)]
        left_open = int((cut_off(cells, rules, output, cut=cut) & scored_N).sum())
    else:
        pieces, left_open = [], 0
        for low, scores_NL in stored_scores(table, output):
            pieces.append(label_lists(scores_NL, decide(scores_NL, rules), names))
            if output.format == "dense":
                within = scored_N[low : low + len(scores_NL)]
                left_open += int((rounded(scores_NL, rules) & within).sum())
    labels = pa.chunked_array(pieces, output.schema.field("labels").type)
    if not scored_N.all():
        labels = pc.if_else(pa.array(scored_N), labels, pa.scalar(None, labels.type))
    return labels, left_open


def scored_rows(table: pa.Table) -> NDArray[np.bool_]:
    """Rows that have scores, shape [N]."""
    status = table["status"].cast(pa.string())
    found: NDArray[np.bool_] = pc.equal(status, STATUSES[OK]).to_numpy()
    return found


def labels_by_scores(table: pa.Table, output: OutputSpec, rules: Rules) -> NDArray[np.bool_]:
    """What the stored scores of a few rows give, shape [N, L]: for `verify --deep`."""
    labels, _ = decide_again(table, output, rules, cut=False)
    given_NL = np.zeros((table.num_rows, len(output.label_set)), np.bool_)
    given_NL[label_cells(labels, output.label_set)] = True
    return given_NL


def units_of(run: Run, positions: NDArray[np.int64]) -> Iterator[tuple[int, Unit]]:
    """Position and unit, some at a time: a plan of millions is no list of objects."""
    for low in range(0, len(positions), 1024):
        some = positions[low : low + 1024]
        yield from zip(some.tolist(), run.plan.units_at(some), strict=True)
