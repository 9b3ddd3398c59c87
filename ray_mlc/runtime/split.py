"""The order of a split: read, find what belongs together, place, measure, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.runtime.progress import Display
from ray_mlc.training.duplicates import Duplicates, find_duplicates, groups_of, shared_rows
from ray_mlc.training.examples import read_examples
from ray_mlc.training.sources import find_files
from ray_mlc.training.split_files import read_column, split_folder, write_parts
from ray_mlc.training.splits import (
    WAYS,
    Share,
    Units,
    balance_of,
    groups_given,
    parse_parts,
    parts_given,
    sizes_of,
    split_by_time,
    split_random,
    split_stratified,
    times_of,
)

PARTS = "train=0.8,validation=0.1,test=0.1"
"""Parts, if none are asked for."""
GROUPING = ("exact", "near", "none")
"""Which duplicates stay together."""


def split_examples(
    source: str,
    output: str,
    *,
    by: str,
    column: str | None,
    parts: str | None,
    group: str | None,
    group_duplicates: str,
    near: float,
    seed: int,
    text: str,
    labels: str | Sequence[str],
    overwrite: bool,
    display: Display,
) -> dict[str, Any]:
    """Write the rows of `source` to `output/<part>.parquet`.

    Args:
        source: File, folder or glob of examples.
        output: Local folder.
        by: One of `WAYS`.
        column: What `time` and `given` go by.
        parts: Names and shares; None: `PARTS`, or what the column says.
        group: Column whose equal values stay together.
        group_duplicates: One of `GROUPING`.
        near: Jaccard similarity from which texts are nearly the same; 0: do not look.
        seed: Of whatever is left to chance.
        text: Text column.
        labels: Label column, or 0/1 columns.
        overwrite: Replace the parts of an earlier split.
        display: Where progress is shown.

    Returns:
        What `_split.json` says: how it was made, `parts`, `units`, `balance`, `leakage`.

    Raises:
        ConfigError: If options do not fit each other.
        DataError: If the examples cannot be used, or a part exists.
        StorageError: If a part cannot be written.
    """
    started = time.monotonic()
    _check_options(by, column, parts, group, group_duplicates, near)
    shares = () if by == "given" else parse_parts(parts or PARTS)
    files = find_files(source)
    # columns first: a typo in a name should not cost a minute
    names = tuple(share.name for share in shares)
    part_N = times_N = group_N = None
    if by == "given":
        names, part_N = parts_given(read_column(files, str(column), "--column"), str(column))
    if by == "time":
        times_N = times_of(read_column(files, str(column), "--column"), str(column))
    if group is not None:
        group_N = groups_given(read_column(files, group, "--group"), group)
    folder = split_folder(output, files, names, overwrite=overwrite)

    display.say(f"reading {source}")
    examples = read_examples(source, text=text, labels=labels)
    # the similar texts of the parts are reported even where they do not stay together
    with display.stage("compare texts", len(examples) * (2 if near else 1), "readings") as stage:
        duplicates = find_duplicates(examples.texts, jaccard=near or None, progress=stage.advance)
    if any(len(read) != len(examples) for read in (part_N, times_N, group_N) if read is not None):
        raise DataError(f"{source}: the examples changed while they were read: run it again")
    if by == "given":
        group_duplicates = "none"  # rows stay where the column has them
    units = _units(duplicates, group_duplicates, group_N)
    if part_N is None:
        display.say(f"placing {len(examples):,} rows ({by}){_together(units)}")
        wanted = [share.share for share in shares]
        if times_N is not None:
            part_N = split_by_time(times_N, units, wanted)
        elif by == "stratified":
            part_N = split_stratified(examples, units, wanted, seed=seed)
        else:
            part_N = split_random(units, wanted, seed=seed)
    record = {
        "source": source,
        "by": by,
        "column": column,
        "seed": seed,
        "group": group,
        "group_duplicates": group_duplicates,
        "parts": _part_rows(part_N, names, shares),
        "units": {
            "count": len(units.size_U),
            "largest": int(units.size_U.max()),
            "rows_in_groups": int(units.size_U[units.size_U > 1].sum()),
        },
        "balance": asdict(balance_of(examples, part_N, names)),
        "leakage": {
            "jaccard": duplicates.jaccard,
            "parts": [asdict(s) for s in shared_rows(duplicates, part_N, names)],
        },
    }
    zero_one = () if isinstance(labels, str) else labels
    with display.stage("write", len(examples), "rows") as stage:
        paths = write_parts(
            files, folder, part_N, names, record, zero_one=zero_one, progress=stage.advance
        )
    return {
        **record,
        "output": output,
        "files": [str(path) for path in paths],
        "seconds": round(time.monotonic() - started, 3),
    }


def _check_options(
    by: str,
    column: str | None,
    parts: str | None,
    group: str | None,
    group_duplicates: str,
    near: float,
) -> None:
    if by not in WAYS:
        raise ConfigError(f"--by is {by!r}, expected one of {', '.join(WAYS)}")
    if group_duplicates not in GROUPING:
        raise ConfigError(
            f"--group-duplicates is {group_duplicates!r}, expected one of {', '.join(GROUPING)}"
        )
    if by in ("time", "given") and column is None:
        what = "time" if by == "time" else "part"
        raise ConfigError(f"--by {by} needs --column: the one that says each row's {what}")
    if by not in ("time", "given") and column is not None:
        raise ConfigError(f"--column is for --by time and --by given, not for --by {by}")
    if by == "given" and parts is not None:
        raise ConfigError("--parts is not for --by given: the column names the parts")
    if by == "given" and group is not None:
        raise ConfigError("--group is not for --by given: the column places each row")
    if group_duplicates == "near" and not near:
        raise ConfigError("--group-duplicates near needs --near: the similarity to look for")


def _units(
    duplicates: Duplicates, group_duplicates: str, group_N: NDArray[np.int64] | None
) -> Units:
    groupings = [np.arange(len(duplicates.text_N))]
    if group_duplicates != "none":
        groupings.append(groups_of(duplicates, near=group_duplicates == "near"))
    if group_N is not None:
        groupings.append(group_N)
    return Units.of(*groupings)


def _together(units: Units) -> str:
    """What of the rows is placed as one, in words."""
    groups_G = units.size_U[units.size_U > 1]
    if not len(groups_G):
        return ""
    return f"; {int(groups_G.sum()):,} of them stay together in {len(groups_G):,} group(s)"


def _part_rows(
    part_N: NDArray[np.int64], names: Sequence[str], shares: Sequence[Share]
) -> list[dict[str, Any]]:
    rows = np.bincount(part_N, minlength=len(names)).tolist()
    asked: list[int | None] = [None] * len(names)
    if shares:
        asked = sizes_of([share.share for share in shares], len(part_N)).tolist()
    return [
        {"name": name, "rows": count, "share": count / len(part_N), "asked": wish}
        for name, count, wish in zip(names, rows, asked, strict=True)
    ]
