"""The output: its schema, the columns made of scores, and part files.

A part holds exactly the rows of its unit, in their order. It is serialized in memory and then
committed whole, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_mlc.corpus.listing import part_folder_of
from ray_mlc.corpus.rows import (
    BLOCK_FAULT,
    BLOCK_UNIT_FIRST,
    BLOCK_UNIT_ROWS,
    SOURCE_TYPE,
)
from ray_mlc.errors import first_line
from ray_mlc.labels import LabelSet
from ray_mlc.scoring.lease import check_holder
from ray_mlc.storage import Storage

T = TypeVar("T")
U = TypeVar("U")

FOOTER_KEY = b"ray_mlc"
ERRORS_KEPT = 10
"""Different error messages that a receipt keeps."""
PARTS_AT_ONCE = 16
"""Parts that are looked at together."""
PARTS_QUEUED = 1024
"""Parts that wait for that."""
WIDE_UP_TO = 64
"""Labels up to which `format: auto` gives one column per label."""
BLOCK_REAL = "__ray_mlc_real"
"""int64: tokens of the row that were computed, in all its windows."""
BLOCK_PADDED = "__ray_mlc_padded"
"""int64: padded tokens that a block cost, in its first row; 0 elsewhere."""
BLOCK_K_CUT = "__ray_mlc_k_cut"
"""int32: scores above the floor that `k` cut from the row; in the sparse form only."""
BLOCK_ERROR = "__ray_mlc_error"
"""string: what the tokenizer or engine raised over the row; null otherwise."""
BLOCK_SECONDS = "__ray_mlc_seconds"
"""float64: the row's share of the time that an actor took; absent where nobody measured it."""
BLOCK_ACTOR = "__ray_mlc_actor"
"""string: host and process of that actor; absent likewise."""
SCORED_BLOCK_COLUMNS = (
    BLOCK_UNIT_FIRST,
    BLOCK_UNIT_ROWS,
    BLOCK_FAULT,
    BLOCK_REAL,
    BLOCK_PADDED,
    BLOCK_ERROR,
)
TOP_TYPE = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))


@dataclass(frozen=True)
class OutputSpec:
    """What parts look like, fixed for the whole run."""

    kept: pa.Schema
    """Kept input columns under their output names."""
    label_set: LabelSet
    """Labels in column order."""
    format: str
    """`wide`, `sparse` or `dense`."""
    k: int
    """Most labels stored per row in the sparse form."""
    floor: float
    """Smallest score stored in the sparse form."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of every part."""
        match self.format:
            case "wide":
                scores = [
                    pa.field(f"score_{name}", pa.float32()) for name in self.label_set.column_names
                ]
            case "sparse":
                scores = [pa.field("top", TOP_TYPE)]
            case _:
                scores = [pa.field("scores", pa.list_(pa.float16(), len(self.label_set)))]
        return pa.schema(
            [
                *self.kept,
                ("source", SOURCE_TYPE),
                ("row", pa.int64()),
                ("labels", pa.list_(pa.string())),
                *scores,
                ("n_tokens", pa.int32()),
                ("truncated", pa.bool_()),
                ("n_windows", pa.int16()),
                ("status", SOURCE_TYPE),
            ]
        )


def resolve_format(format_: str, label_set: LabelSet) -> str:
    """What `auto` comes to: wide up to 64 labels, sparse above."""
    if format_ != "auto":
        return format_
    return "wide" if len(label_set) <= WIDE_UP_TO else "sparse"


def reserved_columns(format_: str, label_set: LabelSet) -> list[str]:
    """Output columns of ours, whose names input columns cannot keep."""
    spec = OutputSpec(pa.schema([]), label_set, format_, 1, 0.0)
    return list(spec.schema.names)


def label_lists(
    scores_NL: NDArray[np.float32], given_NL: NDArray[np.bool_], names: Sequence[str]
) -> pa.ListArray:
    """Labels given to each row, best score first, as list<string> of length N."""
    rows, columns, _ = _sorted_cells(scores_NL, given_NL)
    return lists_of(rows, columns, len(scores_NL), names)


def lists_of(
    rows: NDArray[np.int64], columns: NDArray[np.int64], count: int, names: Sequence[str]
) -> pa.ListArray:
    """Labels by row and column, rows in order, as list<string> of length `count`."""
    values = pa.array(list(names), pa.string()).take(pa.array(columns))
    return pa.ListArray.from_arrays(pa.array(_offsets(rows, count)), values)


def top_lists(
    scores_NL: NDArray[np.float32], names: Sequence[str], *, k: int, floor: float
) -> tuple[pa.ListArray, NDArray[np.int32]]:
    """Scores of at least `floor`, at most `k` per row, best first; and how many `k` cut per row."""
    rows, columns, offsets = _sorted_cells(scores_NL, scores_NL >= np.float32(floor))
    rank = np.arange(len(rows)) - offsets[rows]
    within = rank < k
    cut_N = np.bincount(rows[~within], minlength=len(scores_NL)).astype(np.int32)
    rows, columns = rows[within], columns[within]
    offsets = _offsets(rows, len(scores_NL))
    labels = pa.array(list(names), pa.string()).take(pa.array(columns))
    scores = pa.array(scores_NL[rows, columns], pa.float32())
    values = pa.StructArray.from_arrays([labels, scores], fields=list(TOP_TYPE.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets), values), cut_N


def _sorted_cells(
    scores_NL: NDArray[np.float32], chosen_NL: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Row, column and row offsets of the chosen cells: by row, then best score first."""
    rows, columns = np.nonzero(chosen_NL)
    order = np.lexsort((columns, -scores_NL[rows, columns], rows))
    return rows[order], columns[order], _offsets(rows, len(scores_NL))


def _offsets(rows: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=count), out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Receipt:
    """What became of one unit."""

    source: str
    first_row: int
    rows: int
    part: str
    """Path of the part below the output."""
    fault: str | None = None
    """Why the unit was set aside; None if the part was written."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Rows per status."""
    errors: dict[str, int] = field(default_factory=dict)
    """Rows per message of what the tokenizer or engine raised over them."""
    labels: int = 0
    """Labels given."""
    tokens: int = 0
    """Tokens before cutting."""
    truncated: int = 0
    """Rows of which something was cut."""
    real_tokens: int = 0
    """Tokens that were scored."""
    padded_tokens: int = 0
    """Tokens computed, padding included; whole blocks count in one of their units."""
    k_cut: int = 0
    """Scores above the floor that `k` cut."""
    labels_before: int = 0
    """Of a unit that was decided again: labels that it had."""
    unsettled: int = 0
    """Likewise: rows whose labels the stored scores do not settle."""
    bytes: int = 0
    """Size of the part."""
    seconds: float | None = None
    """Time of an actor that it took; None: nobody measured it."""
    actor: str = ""
    """Host and process of that actor."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """The receipt that `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class CommitSpec:
    """What a process needs to write parts."""

    storage: Storage
    """The output folder."""
    output: OutputSpec
    """What parts look like."""
    footer: dict[str, Any]
    """Content of the footer key that all parts share."""
    holder: str | None = None
    """Token of the lease that this is done under; None: without a lease."""


def commit_parts(scored: pa.Table, spec: CommitSpec) -> list[Receipt]:
    """Split a scored block at its unit boundaries and commit a part for each unit.

    Args:
        scored: Whole units: the output columns and `SCORED_BLOCK_COLUMNS`.
        spec: Where and how.

    Raises:
        RuntimeError: If a piece of a unit arrives; that would be a bug of the topology, and
            writing it would lose rows.
        StorageError: If the storage refuses.
        LeaseError: If another run has taken over.
    """
    receipts = []
    for unit in split_units(scored):
        source, first = unit["source"][0].as_py(), unit[BLOCK_UNIT_FIRST][0].as_py()
        rows = unit[BLOCK_UNIT_ROWS][0].as_py()
        part = f"{part_folder_of(source)}/{first:012d}.parquet"
        fault = unit[BLOCK_FAULT][0].as_py()
        if fault is not None:
            receipts.append(Receipt(source, first, rows, part, fault))
            continue
        positions = unit["row"].to_numpy()
        if len(positions) != rows or not np.array_equal(positions, np.arange(first, first + rows)):
            raise RuntimeError(
                f"{source}: the writer got {len(positions)} rows of the unit of {rows} rows at "
                f"{first}: a block was split or merged on the way"
            )
        receipts.append(commit_part(unit, _summarize(unit, source, first, rows, part, spec), spec))
    return receipts


def commit_part(unit: pa.Table, receipt: Receipt, spec: CommitSpec) -> Receipt:
    """Commit the part of one unit.

    Args:
        unit: The output columns, and maybe others.
        receipt: What is to be said of it.
        spec: Where and how.

    Returns:
        The receipt with the size of the part, or one that sets the unit aside.

    Raises:
        StorageError: If the storage refuses.
        LeaseError: If another run has taken over.
    """
    source, first, rows = receipt.source, receipt.first_row, receipt.rows
    footer = {
        **spec.footer,
        "unit": {"source": source, "first_row": first, "rows": rows},
        "receipt": asdict(receipt),
    }
    try:
        data = serialize(unit.select(spec.output.schema.names), spec.output.schema, footer)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        # some values of nested types can be read by Arrow, but not written
        return Receipt(source, first, rows, receipt.part, f"write: {first_line(error)}")
    if spec.holder is not None:
        check_holder(spec.storage, spec.holder)
    spec.storage.put(receipt.part, data)
    return replace(receipt, bytes=len(data))


def split_units(block: pa.Table) -> Iterator[pa.Table]:
    """Slices of a block, one per unit, in order."""
    if block.num_rows == 0:
        return
    source = block["source"].combine_chunks()
    if isinstance(source, pa.ChunkedArray):
        source = source.unify_dictionaries().combine_chunks()
    codes = source.indices.to_numpy(zero_copy_only=False)
    first = block[BLOCK_UNIT_FIRST].to_numpy()
    starts = np.flatnonzero(np.diff(codes) | (np.diff(first) != 0)) + 1
    bounds = [0, *starts.tolist(), block.num_rows]
    for low, high in pairwise(bounds):
        yield block.slice(low, high - low)


def _summarize(
    unit: pa.Table, source: str, first: int, rows: int, part: str, spec: CommitSpec
) -> Receipt:
    counts = unit["status"].combine_chunks().cast(pa.string()).value_counts().to_pylist()
    tokens = unit["n_tokens"].to_numpy(zero_copy_only=False)
    tokens = np.nan_to_num(tokens.astype(np.float64)).astype(np.int64)
    errors = unit[BLOCK_ERROR].drop_null().value_counts().to_pylist()
    cut = 0
    if spec.output.format == "sparse":
        cut = int(unit[BLOCK_K_CUT].to_numpy().sum())
    return Receipt(
        source=source,
        first_row=first,
        rows=rows,
        part=part,
        statuses={item["values"]: item["counts"] for item in counts},
        errors={item["values"]: item["counts"] for item in errors[:ERRORS_KEPT]},
        labels=int(pc.sum(pc.list_value_length(unit["labels"])).as_py() or 0),
        tokens=int(tokens.sum()),
        truncated=int(pc.sum(unit["truncated"]).as_py() or 0),
        real_tokens=int(unit[BLOCK_REAL].to_numpy().sum()),
        padded_tokens=int(unit[BLOCK_PADDED].to_numpy().sum()),
        k_cut=cut,
        **_stamps(unit),
    )


def _stamps(unit: pa.Table) -> dict[str, Any]:
    """Time and actor of a unit, where they are known."""
    if BLOCK_SECONDS not in unit.column_names or not unit.num_rows:
        return {}
    seconds = float(unit[BLOCK_SECONDS].to_numpy().sum())
    return {"seconds": round(seconds, 4), "actor": str(unit[BLOCK_ACTOR][0].as_py() or "")}


def serialize(table: pa.Table, schema: pa.Schema, footer: dict[str, Any]) -> bytes:
    """A Parquet file in memory, zstd, with the footer key."""
    # column by column: Arrow cannot cast slices of some nested types, not even to themselves
    columns = [
        column if column.type.equals(item.type) else column.cast(item.type)
        for column, item in zip(table.columns, schema, strict=True)
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    sink = pa.BufferOutputStream()
    repeated = [
        name
        for name in schema.names
        if not pa.types.is_floating(schema.field(name).type) and name != "row"
    ]
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=repeated or False) as w:
        w.write_table(table)
        # not as metadata of the schema: Arrow would keep it twice, as base64 in its own key as well
        w.add_key_value_metadata({FOOTER_KEY: json.dumps(footer, ensure_ascii=False)})
    return bytes(sink.getvalue())


def read_footer_key(metadata: pq.FileMetaData) -> dict[str, Any] | None:
    """Content of a part's footer key; None if the file is not a part of ours."""
    raw = (metadata.metadata or {}).get(FOOTER_KEY)
    return None if raw is None else dict(json.loads(raw))


def map_parts(look: Callable[[T], U], parts: Sequence[T]) -> Iterator[U]:
    """Call `look` for every part, several at a time and in order: each mostly waits for storage.

    Only some are queued at once, so that memory does not grow with the number of parts.
    """
    with ThreadPoolExecutor(max_workers=PARTS_AT_ONCE) as pool:
        for low in range(0, len(parts), PARTS_QUEUED):
            yield from pool.map(look, parts[low : low + PARTS_QUEUED])
