"""Examples into parts: train, validation, test. Which row goes where, and how well that came out.

What must stay together (the same text, the rows of one group) is a unit and moves as one. Three
ways to place units, and one that only reads what a column says:

- `stratified`: iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), which places the
  rarest label first, each unit where the label is missed most; then rows are swapped between parts
  as long as labels, and pairs of labels (as in Szymański & Kajdanowicz 2017), come closer to what
  is asked. All on sparse labels: the cost grows with the labels that are set.
- `random`: by chance.
- `time`: the oldest into the first part, the newest into the last; equal times stay together.

No part is further from the size asked for than the largest unit is large: a unit goes where it
fits, and only where it fits nowhere into the part with the most room left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, DataError
from ray_mlc.training.examples import Examples
from ray_mlc.training.pieces import is_text
from ray_mlc.training.stratification import Cells, fitting_parts, place_units, swap_rows

WAYS = ("stratified", "time", "random", "given")
"""How rows are placed."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_USUAL = ("train", "validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class Share:
    """A part and how much of the examples it is to have."""

    name: str
    share: float


@dataclass(frozen=True)
class LabelBalance:
    """A label's rate in each part, against its rate in all."""

    label: str
    rows: int
    """Rows that have it."""
    rate: float
    """Share of all annotated cells."""
    count_by_part: dict[str, int]
    rate_by_part: dict[str, float]
    difference: float
    """Largest difference between a part's rate and the whole's."""
    rows_off: float
    """Rows too many or too few for the whole's rate, in the part where that is most."""


@dataclass(frozen=True)
class Balance:
    """How alike the label rates of the parts are."""

    mean_difference: float
    """Mean over labels of the largest difference between a part's rate and the whole's."""
    largest_difference: float
    mean_rows_off: float
    """Mean over labels and parts of the rows too many or too few for the whole's rate."""
    absent: dict[str, int]
    """Labels of the examples that a part lacks."""
    labels: tuple[LabelBalance, ...]
    """Those that differ most in the rows off, by the chance of their number of rows."""


def parse_parts(spec: str) -> tuple[Share, ...]:
    """`train=0.8,validation=0.1,test=0.1` as shares.

    Raises:
        ConfigError: If a name cannot be a file's, is there twice, or the shares do not add up.
    """
    shares = []
    for item in spec.split(","):
        name, equals, value = (piece.strip() for piece in item.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not equals or not 0 < share < 1:
            raise ConfigError(
                f"--parts has {item.strip()!r}, expected a name and a share between 0 and 1, as in "
                "train=0.8,validation=0.1,test=0.1"
            )
        shares.append(Share(part_name(name, "--parts"), share))
    names = [share.name.casefold() for share in shares]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"--parts names {twice[0]!r} twice: name each part once")
    total = sum(share.share for share in shares)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"--parts adds up to {total:g}, expected 1: change a share")
    if len(shares) < 2:
        raise ConfigError("--parts names one part: at least two are needed")
    return tuple(shares)


def part_name(name: str, where: str) -> str:
    """A name that can be a file's, and that readers of a folder do not skip.

    Raises:
        ConfigError: If it is none.
    """
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise ConfigError(
            f"{where} has the part {name[:60]!r}, expected a name of letters, digits, '-', '_' "
            "and '.' that begins with a letter or digit"
        )
    return name


def sizes_of(shares: Sequence[float], rows: int) -> NDArray[np.int64]:
    """Whole rows for shares that add up to 1, by largest remainder, shape [P].

    Raises:
        DataError: If a part would be empty.
    """
    exact_P = np.array(shares) * rows
    sizes_P = np.floor(exact_P + 1e-9).astype(np.int64)
    largest = np.argsort(-(exact_P - sizes_P), kind="stable")
    sizes_P[largest[: rows - int(sizes_P.sum())]] += 1
    if sizes_P.min() < 1:
        raise DataError(
            f"a part of {min(shares):g} of {rows} rows would be empty: give it a larger share"
        )
    return sizes_P


@dataclass(frozen=True, eq=False)
class Units:
    """Rows that stay together: U units of N rows."""

    unit_N: NDArray[np.int64]
    """Unit of each row, shape [N]."""
    size_U: NDArray[np.int64]
    """Rows of each unit, shape [U]."""

    @classmethod
    def of(cls, *groups_N: NDArray[np.int64]) -> Units:
        """Units of the rows that share a number in any of the groupings, directly or by a chain.

        Args:
            groups_N: A number per row, shape [N]; at least one grouping.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows = len(groups_N[0])
        left, right = [], []
        for group_N in groups_N:
            _, first, number = np.unique(group_N, return_index=True, return_inverse=True)
            left.append(np.arange(rows))
            right.append(first[number])
        ends = (np.concatenate(left), np.concatenate(right))
        graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(rows, rows))
        unit_N = connected_components(graph, directed=False)[1].astype(np.int64)
        return cls(unit_N, np.bincount(unit_N))


# --- placing


def split_stratified(
    examples: Examples, units: Units, shares: Sequence[float], *, seed: int
) -> NDArray[np.int64]:
    """Place units so that each label is as frequent in each part as in all.

    Args:
        examples: N rows. Those in which nothing is annotated are spread as if that were a label.
        units: What stays together.
        shares: Of P parts, adding up to 1.
        seed: Of the order of units, and of ties.

    Returns:
        Part of each row, shape [N].

    Raises:
        DataError: If a part would be empty.
    """
    sizes_P = sizes_of(shares, len(examples))
    part_U = place_units(Cells.of(examples, units.unit_N), units.size_U, sizes_P, shares, seed)
    # a pair so rare that no part but the largest would have two says nothing
    cells = Cells.of(examples, units.unit_N, pairs_from=2 / min(shares))
    return swap_rows(cells, units.size_U, part_U, shares)[units.unit_N]


def split_random(units: Units, shares: Sequence[float], *, seed: int) -> NDArray[np.int64]:
    """Place units by chance, each part drawn by the room that it has left, shape [N].

    Raises:
        DataError: If a part would be empty.
    """
    generator = np.random.default_rng(seed)
    sizes_P = sizes_of(shares, len(units.unit_N))
    order = generator.permutation(len(units.size_U))
    room_P = sizes_P.tolist()
    part_U = np.empty(len(units.size_U), np.int64)
    sizes = units.size_U[order].tolist()
    draws = generator.random(len(order)).tolist()
    for unit, size, draw in zip(order.tolist(), sizes, draws, strict=True):
        parts = fitting_parts(room_P, size)
        reach = draw * sum(room_P[part] for part in parts)
        for part in parts:
            reach -= room_P[part]
            if reach < 0:
                break
        part_U[unit] = part
        room_P[part] -= size
    return part_U[units.unit_N]


def split_by_time(
    time_N: NDArray[np.float64] | NDArray[np.int64], units: Units, shares: Sequence[float]
) -> NDArray[np.int64]:
    """Place units by time, the oldest into the first part, shape [N].

    A unit counts by its newest row: no part knows of anything newer than what the next begins
    with. Cuts are made between different times, where that is nearest to the sizes asked for.

    Raises:
        DataError: If a part would be empty.
    """
    sizes_P = sizes_of(shares, len(time_N))
    newest_U = np.full(len(units.size_U), time_N.min(), dtype=time_N.dtype)
    np.maximum.at(newest_U, units.unit_N, time_N)
    times, block_U = np.unique(newest_U, return_inverse=True)
    rows_B = np.bincount(block_U, weights=units.size_U).astype(np.int64)
    after_B = np.cumsum(rows_B)
    part_B = np.zeros(len(times), np.int64)
    start = 0
    for part, end in enumerate(np.cumsum(sizes_P)[:-1].tolist()):
        right = int(np.searchsorted(after_B, end))
        nearer = right > 0 and end - after_B[right - 1] <= after_B[right] - end
        cut = right if nearer else right + 1  # blocks before the cut
        if cut <= start or cut >= len(times):
            raise DataError(
                f"part {part + 1} of {len(sizes_P)} cannot be cut by time: there are too few "
                f"different times, or one of them has {int(rows_B.max())} of {len(time_N)} rows"
            )
        part_B[cut:] = part + 1
        start = cut
    return part_B[block_U][units.unit_N]


# --- columns that say how


def parts_given(column: pa.Array, name: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The parts that a column names, and each row's, shape [N].

    Raises:
        DataError: If the column is not text, a row names none, or there is only one.
        ConfigError: If a name cannot be a file's.
    """
    texts = as_text(column, name)
    _refuse_nulls(pc.equal(texts.fill_null(""), ""), name, "its part")
    encoded = texts.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    if len(found) > 20:
        raise DataError(
            f"column {name!r} has {len(found)} different values: it does not look like one that "
            "names each row's part"
        )
    if len(found) < 2:
        raise DataError(f"column {name!r} names one part only, {found[0]!r}: expected two or more")
    folded: dict[str, str] = {}
    for value in sorted(found):
        other = folded.setdefault(part_name(value, f"column {name!r}").casefold(), value)
        if other != value:
            raise DataError(f"column {name!r} has {other!r} and {value!r}: write one of them")
    names = sorted(found, key=lambda part: (usual_place(part), part))
    place = np.array([names.index(value) for value in found], dtype=np.int64)
    return tuple(names), place[encoded.indices.to_numpy()]


def times_of(column: pa.Array, name: str) -> NDArray[np.float64] | NDArray[np.int64]:
    """What a column says about time, as numbers that sort, shape [N].

    Dates, times, numbers, or text that is all of one of these (dates as ISO 8601).

    Raises:
        DataError: If it is anything else, or a row has none.
    """
    kind = column.type
    if is_text(kind):
        texts = pc.utf8_trim_whitespace(as_text(column, name))
        _refuse_nulls(pc.equal(texts.fill_null(""), ""), name, "a time")
        for target in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                return times_of(texts.cast(target), name)
            except pa.ArrowInvalid:
                continue
        raise DataError(
            f"column {name!r} is text such as {texts[0].as_py()!r}, expected dates as ISO 8601 "
            "(2026-11-24 or 2026-11-24T06:00:00Z) or numbers in every row"
        )
    _refuse_nulls(column.is_null(nan_is_null=True), name, "a time")
    if pa.types.is_integer(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    raise DataError(f"column {name!r} is {kind}, expected dates, times or numbers")


def groups_given(column: pa.Array, name: str) -> NDArray[np.int64]:
    """A number per value of a column, shape [N]; a row without a value is a group by itself.

    Raises:
        DataError: If the column holds neither text nor numbers.
    """
    texts = as_text(column, name)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)
    encoded = texts.dictionary_encode()
    numbers: NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    alone = np.flatnonzero(numbers < 0)
    numbers[alone] = len(encoded.dictionary) + np.arange(len(alone))
    return numbers


def as_text(column: pa.Array, name: str) -> pa.Array:
    """A column of text, numbers, truth values or dates as large_string.

    Raises:
        DataError: If it is of another type.
    """
    try:
        return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"column {name!r} is {column.type}, expected text or numbers") from None


def _refuse_nulls(missing: pa.Array, name: str, what: str) -> None:
    count = int(pc.sum(missing).as_py() or 0)
    if count:
        row = int(pc.index(missing, True).as_py()) + 1
        raise DataError(
            f"column {name!r} does not say {what} in {count} row(s), the first of them row {row}: "
            "fill it in, or leave these rows out"
        )


def usual_place(name: str) -> int:
    """Where a part of that name usually stands: training, validation, test, others."""
    folded = name.casefold()
    found = (place for place, usual in enumerate(_USUAL) if folded.startswith(usual))
    return next(found, len(_USUAL))


# --- how it came out


def balance_of(
    examples: Examples, part_N: NDArray[np.int64], names: Sequence[str], *, shown: int = 20
) -> Balance:
    """How alike the label rates of the parts are.

    Args:
        examples: N rows.
        part_N: Part of each, shape [N].
        names: Of the parts.
        shown: Labels listed.
    """
    labels = len(examples.label_set)
    count_PL = np.zeros((len(names), labels))
    decided_PL = np.zeros((len(names), labels))
    for part in range(len(names)):
        some = examples.take(np.flatnonzero(part_N == part))
        count_PL[part], decided_PL[part] = some.label_counts(), some.annotated_counts()
    count_L, decided_L = count_PL.sum(axis=0), decided_PL.sum(axis=0)
    rate_L = count_L / np.maximum(decided_L, 1)
    rate_PL = np.divide(
        count_PL, decided_PL, out=np.tile(rate_L, (len(names), 1)), where=decided_PL > 0
    )
    difference_L = np.abs(rate_PL - rate_L).max(axis=0)
    off_PL = np.abs(count_PL - rate_L * decided_PL)
    # in units of what a random split would be off by
    chance_PL = np.sqrt(np.maximum(rate_L * (1 - rate_L) * decided_PL, 1e-12))
    worst = np.argsort(-(off_PL / np.maximum(chance_PL, 0.5)).max(axis=0), kind="stable")
    used = count_L > 0
    return Balance(
        mean_difference=float(difference_L.mean()),
        largest_difference=float(difference_L.max()),
        mean_rows_off=float(off_PL.mean()),
        absent={name: int((used & (count_PL[part] == 0)).sum()) for part, name in enumerate(names)},
        labels=tuple(
            LabelBalance(
                label=examples.label_set.names[label],
                rows=int(count_L[label]),
                rate=float(rate_L[label]),
                count_by_part={name: int(count_PL[part, label]) for part, name in enumerate(names)},
                rate_by_part={name: float(rate_PL[part, label]) for part, name in enumerate(names)},
                difference=float(difference_L[label]),
                rows_off=float(off_PL[:, label].max()),
            )
            for label in worst[:shown].tolist()
        ),
    )
