"""Blocks of text to blocks of labels and scores: pure functions of Arrow tables.

`tokenize_block` and `score_block` are two steps because on a GPU machine they run in different
processes; on CPU they run one after the other in the same actor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.corpus.rows import (
    BLOCK_FAULT,
    BLOCK_STATUS,
    BLOCK_TEXT,
    BLOCK_UNIT_FIRST,
    BLOCK_UNIT_ROWS,
    DECODE_ERROR,
    NOT_FINITE,
    OK,
    SOURCE_TYPE,
    STATUSES,
    TOO_LONG,
)
from ray_mlc.errors import first_line
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules, decide
from ray_mlc.model.tokenization import AnyTokenizer, Ragged
from ray_mlc.scoring.parts import (
    BLOCK_ACTOR,
    BLOCK_ERROR,
    BLOCK_K_CUT,
    BLOCK_PADDED,
    BLOCK_REAL,
    BLOCK_SECONDS,
    SCORED_BLOCK_COLUMNS,
    OutputSpec,
    label_lists,
    top_lists,
)

BLOCK_IDS = "__ray_mlc_ids"
"""large_list<int32>: token ids after cutting, window after window; empty where there is nothing to
score."""
BLOCK_WINDOWS = "__ray_mlc_windows"
"""large_list<int32>: tokens of each window; empty where there is nothing to score."""
TOKEN_COLUMNS = frozenset(
    {BLOCK_STATUS, BLOCK_IDS, BLOCK_WINDOWS, "n_tokens", "truncated", BLOCK_ERROR}
)
"""What `tokenize_block` makes: other columns stay as they were."""
DIED_OVER_IT = "{} processes died over it, one after the other"
"""Why a unit is set aside whose reading or scoring kills its process."""
MAX_CELLS = 2**24
"""Scores held at once, in cells of N × L: 64 MiB of float32, whatever the number of labels."""


def tokenize_block(block: pa.Table, tokenizer: AnyTokenizer, *, policy: str) -> pa.Table:
    """Replace the text by token ids.

    Args:
        block: As `corpus.rows.read_block` returns it.
        tokenizer: Text to ids.
        policy: `truncate`, `windows`, or `skip`: longer documents get the status `too_long`.

    Returns:
        The block without its text, with `BLOCK_IDS`, `BLOCK_WINDOWS`, `n_tokens` (null for rows
        without a text), `truncated` and `BLOCK_ERROR`. A text over which the tokenizer fails gets
        the status `decode_error`.
    """
    count = block.num_rows
    status = block[BLOCK_STATUS].to_numpy().copy()
    todo = (status == OK) & block[BLOCK_FAULT].is_null().to_numpy()
    texts = block[BLOCK_TEXT].filter(pa.array(todo)).to_pylist()
    ragged, faults = _encode(tokenizer, texts)
    errors: list[str | None] = [None] * count
    if faults:
        for position, row in enumerate(np.flatnonzero(todo).tolist()):
            if position in faults:
                errors[row], status[row], todo[row] = faults[position], DECODE_ERROR, False
    n_tokens = np.zeros(count, np.int32)
    n_tokens[todo] = ragged.n_tokens
    cut = todo & ~tokenizer.covered(n_tokens)
    kept = todo.copy()
    if policy == "skip" and cut.any():
        status[cut] = TOO_LONG
        kept, cut = todo & ~cut, np.zeros(count, np.bool_)
        ragged = ragged.take(np.flatnonzero(kept[todo]))
    ids = _lists(kept, ragged.sizes, ragged.values)
    windows = _lists(kept, ragged.n_windows, ragged.lengths.astype(np.int32))
    result = block.drop_columns([BLOCK_TEXT, BLOCK_STATUS])
    result = result.append_column(BLOCK_STATUS, pa.array(status))
    result = result.append_column(BLOCK_IDS, ids)
    result = result.append_column(BLOCK_WINDOWS, windows)
    result = result.append_column("n_tokens", pa.array(n_tokens, mask=~todo))
    result = result.append_column("truncated", pa.array(cut, mask=~todo))
    return result.append_column(BLOCK_ERROR, pa.array(errors, pa.string()))


def _lists(
    filled_N: NDArray[np.bool_], sizes: NDArray[np.int64], values: NDArray[np.int32]
) -> pa.LargeListArray:
    """Lists of so many values for the rows that are `filled_N`, empty ones for the others."""
    sizes_N = np.zeros(len(filled_N), np.int64)
    sizes_N[filled_N] = sizes
    offsets = np.zeros(len(filled_N) + 1, np.int64)
    np.cumsum(sizes_N, out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _encode(tokenizer: AnyTokenizer, texts: Sequence[str]) -> tuple[Ragged, dict[int, str]]:
    """Tokenize; texts over which the tokenizer fails are left out and named by position."""
    try:
        return tokenizer.encode(texts), {}
    except BaseException as error:
        if not _is_failure(error):
            raise
    faults = find_faults(tokenizer.encode, texts)
    good = [text for position, text in enumerate(texts) if position not in faults]
    return tokenizer.encode(good), faults


def find_faults(call: Callable[[Sequence[str]], object], texts: Sequence[str]) -> dict[int, str]:
    """Halve a batch over which `call` fails until the guilty texts are found.

    Returns:
        Position of each text over which `call` fails even alone, and what it says.
    """
    faults: dict[int, str] = {}
    todo = [range(len(texts))]
    while todo:
        span = todo.pop()
        try:
            call(texts[span.start : span.stop])
        except BaseException as error:
            if not _is_failure(error):
                raise
            if len(span) == 1:
                faults[span.start] = first_line(error)
            else:
                todo += [span[: len(span) // 2], span[len(span) // 2 :]]
    return faults


def _is_failure(error: BaseException) -> bool:
    """Whether a call failed, in contrast to Ctrl-C; a panic in Rust code is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def score_block(
    block: pa.Table,
    classifier: Classifier,
    rules: Rules,
    output: OutputSpec,
    *,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Score a tokenized block.

    Args:
        block: As `tokenize_block` returns it.
        classifier: Ids to scores.
        rules: The decision.
        output: What parts look like.
        progress: Called with the rows done.

    Returns:
        The output columns and `SCORED_BLOCK_COLUMNS`, row for row.
    """
    ids, ids_offsets = _flat(block[BLOCK_IDS])
    lengths, firsts = _flat(block[BLOCK_WINDOWS])
    n_windows = np.diff(firsts)
    documents = Ragged(
        values=ids,
        offsets=np.append(0, np.cumsum(lengths, dtype=np.int64)),
        n_tokens=np.diff(ids_offsets).astype(np.int32),
        firsts=firsts,
    )
    status = block[BLOCK_STATUS].to_numpy().copy()
    faultless = block[BLOCK_FAULT].is_null().to_numpy()
    before = classifier.stats.padded_tokens
    errors = block[BLOCK_ERROR].to_pylist()
    computed_N = np.zeros(block.num_rows, np.bool_)
    pieces = []
    for low, high in _chunks(n_windows, MAX_CELLS // len(classifier.label_set)):
        todo = np.flatnonzero((status[low:high] == OK) & faultless[low:high])
        scores_NL = np.full((high - low, len(classifier.label_set)), np.nan, np.float32)
        some = documents.take(low + todo)
        first_D, group_N = some.distinct()
        computed_N[low + todo[first_D]] = True

        def fault(
            position: int,
            message: str,
            rows: NDArray[np.intp] = low + todo,
            group_N: NDArray[np.intp] = group_N,
        ) -> None:
            for row in rows[group_N == position].tolist():
                errors[row] = message

        # a text that is there more than once is scored once: the same answer, for less
        if len(first_D) < len(some):
            some = some.take(first_D)
        scores_DL = classifier.scores(some, progress=progress, fault=fault)
        scores_NL[todo] = scores_DL[group_N]
        if progress is not None and len(first_D) < len(todo):
            progress(len(todo) - len(first_D))
        broken = todo[~np.isfinite(scores_NL[todo]).all(axis=1)]
        status[low + broken] = NOT_FINITE
        scored = np.zeros(high - low, np.bool_)
        scored[todo] = True
        scored[broken] = False
        pieces.append(_score_columns(scores_NL, scored, rules, output))
    columns = pa.concat_tables(pieces).combine_chunks()
    columns = columns.append_column(BLOCK_ERROR, pa.array(errors, pa.string()))
    for name in block.column_names:
        if name not in (BLOCK_IDS, BLOCK_WINDOWS, BLOCK_STATUS, BLOCK_ERROR):
            columns = columns.append_column(name, block[name])
    scored_N = (status == OK) & faultless
    n_windows = np.where(scored_N, n_windows, 0).astype(np.int16)
    columns = columns.append_column("n_windows", pa.array(n_windows))
    statuses = pa.DictionaryArray.from_arrays(
        pa.array(status.astype(np.int32)), pa.array(list(STATUSES))
    )
    columns = columns.append_column("status", statuses)
    padded = np.zeros(block.num_rows, np.int64)
    padded[:1] = classifier.stats.padded_tokens - before
    columns = columns.append_column(BLOCK_PADDED, pa.array(padded))
    # tokens that went through the model, so that speed and padding are what they seem
    real_N = np.where(scored_N & computed_N, documents.sizes, 0)
    columns = columns.append_column(BLOCK_REAL, pa.array(real_N))
    extra = [BLOCK_K_CUT] if output.format == "sparse" else []
    return columns.select([*output.schema.names, *SCORED_BLOCK_COLUMNS, *extra])


def scored_schema(output: OutputSpec) -> pa.Schema:
    """Schema of what `score_block` returns."""
    own = [
        (BLOCK_UNIT_FIRST, pa.int64()),
        (BLOCK_UNIT_ROWS, pa.int32()),
        (BLOCK_FAULT, pa.string()),
        (BLOCK_REAL, pa.int64()),
        (BLOCK_PADDED, pa.int64()),
        (BLOCK_ERROR, pa.string()),
    ]
    if output.format == "sparse":
        own.append((BLOCK_K_CUT, pa.int32()))
    return pa.schema([*output.schema, *own])


def stamp(scored: pa.Table, *, seconds: float, actor: str) -> pa.Table:
    """Say who has scored a block, and in what time: for the report of the night.

    Args:
        scored: What `score_block` returned.
        seconds: What it took; shared out among the rows by their tokens.
        actor: Host and process.
    """
    real_N = scored[BLOCK_REAL].to_numpy().astype(np.float64)
    total, count = real_N.sum(), scored.num_rows
    shares_N = real_N / total if total else np.full(count, 1 / max(1, count))
    places = pa.array(np.zeros(count, np.int32))
    actors = pa.DictionaryArray.from_arrays(places, pa.array([actor]))
    scored = scored.append_column(BLOCK_SECONDS, pa.array(seconds * shares_N))
    return scored.append_column(BLOCK_ACTOR, actors)


def stamped_schema(output: OutputSpec) -> pa.Schema:
    """Schema of what `stamp` returns."""
    stamps = [pa.field(BLOCK_SECONDS, pa.float64()), pa.field(BLOCK_ACTOR, SOURCE_TYPE)]
    return pa.schema([*scored_schema(output), *stamps])


def died_scoring(deaths: int) -> str:
    """Why a unit is set aside that has killed its process so many times while it was scored."""
    return f"score: {DIED_OVER_IT.format(deaths)}"


def is_died_scoring(reason: str) -> bool:
    """Whether it is that."""
    return reason.startswith("score: ") and reason.endswith(DIED_OVER_IT.format(""))


def set_aside(unit: pa.Table, reason: str) -> pa.Table:
    """A unit of a block as the one marker row that says why it is set aside."""
    marker = unit.slice(0, 1)
    position = marker.schema.get_field_index(BLOCK_FAULT)
    return marker.set_column(position, marker.schema.field(position), pa.array([reason]))


def _flat(lists: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Values of a column of lists, and where each row's begin, from 0 on."""
    array = pa.concat_arrays(lists.chunks) if lists.num_chunks else lists.combine_chunks()
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _chunks(n_windows: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with `most` windows or fewer, unless one row alone has more."""
    # a row without windows takes its place among the scores all the same
    ends = np.cumsum(np.maximum(n_windows, 1))
    low = before = 0
    while low < len(ends):
        high = max(low + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield low, high
        low, before = high, int(ends[high - 1])


def _score_columns(
    scores_NL: NDArray[np.float32],
    scored_N: NDArray[np.bool_],
    rules: Rules,
    output: OutputSpec,
) -> pa.Table:
    """The columns that are made of scores; null for rows that were not scored."""
    names = output.label_set.names
    unscored = pa.array(~scored_N)
    scores_NL = np.where(scored_N[:, None], scores_NL, np.float32("nan"))
    labels = label_lists(scores_NL, decide(scores_NL, rules), names)
    columns: dict[str, pa.Array] = {"labels": _null_where(unscored, labels)}
    match output.format:
        case "wide":
            for column, name in enumerate(output.label_set.column_names):
                values = np.ascontiguousarray(scores_NL[:, column])
                columns[f"score_{name}"] = pa.array(values, mask=~scored_N)
        case "sparse":
            filled = np.where(scored_N[:, None], scores_NL, np.float32(-1))
            top, cut_N = top_lists(filled, names, k=output.k, floor=output.floor)
            columns["top"] = _null_where(unscored, top)
            columns[BLOCK_K_CUT] = pa.array(cut_N)
        case _:
            flat = pa.array(scores_NL.astype(np.float16).ravel())
            lists = pa.FixedSizeListArray.from_arrays(flat, len(names))
            columns["scores"] = _null_where(unscored, lists)
    return pa.table(columns)


def _null_where(mask: pa.Array, values: pa.Array) -> pa.Array:
    if not pc.any(mask).as_py():
        return values
    return pc.if_else(mask, pa.scalar(None, values.type), values)
