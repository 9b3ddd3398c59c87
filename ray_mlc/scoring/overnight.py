"""Look back at a night: read its parts, and add up what they hold.

Some rows of a part are read at a time; what is held is `Sums` and a few numbers per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.corpus.reading import open_parquet
from ray_mlc.corpus.rows import BLOCK_FAULT, BLOCK_TEXT, read_block
from ray_mlc.errors import UsageError, first_line
from ray_mlc.scoring.ledger import Run
from ray_mlc.scoring.parts import read_footer_key
from ray_mlc.scoring.stored import MAX_CELLS, label_cells, score_columns
from ray_mlc.scoring.sums import READ_ALWAYS, Sums
from ray_mlc.storage import filesystem_of

CANDIDATES = 60
"""Labels of which is counted how often two come together."""
SAMPLED = 16
"""Parts that say which are the most frequent ones, where not all labels are candidates."""
PROBLEMS_KEPT = 20

Spread = Callable[[Callable[[int], Any], Iterable[int]], Iterator[Any]]
"""As `map`: calls something for each unit, and gives the results in order."""


@dataclass(frozen=True)
class Look:
    """What the parts of a night hold."""

    sums: Sums
    positions: NDArray[np.int64]
    """Units whose parts were read, by position in the run's plan; the arrays below are theirs."""
    tokens_U: NDArray[np.int64]
    """Tokens before cutting."""
    real_U: NDArray[np.int64]
    """Tokens that were scored."""
    k_cut_U: NDArray[np.int64]
    """Scores above the floor that `k` cut."""
    seconds_U: NDArray[np.float64]
    """Time of an actor that the unit took; NaN where nobody measured it."""
    actors_U: list[str]
    """Who scored it; empty where nobody knows."""
    failed_rows: int
    """Rows over which tokenizer or engine failed."""
    problems: list[str]
    """Sentences that name a part and what is wrong with it; its rows are in no figure."""


def night_of(run: Run, number: int | None) -> int:
    """The night that is meant: the last one, unless a number says which.

    Raises:
        UsageError: If the run has no such night.
    """
    last = len(run.nights)
    if number is not None and not 1 <= number <= last:
        nights = "only night 1" if last == 1 else f"nights 1 to {last}"
        raise UsageError(f"{run.storage.uri}: there is no night {number}: the run has {nights}")
    return number or last


def look_at(
    run: Run,
    positions: NDArray[np.int64],
    *,
    scores: bool = True,
    spread: Spread = map,
    progress: Callable[[int], None] = lambda _: None,
) -> Look:
    """Read the parts of some units.

    Args:
        run: The run.
        positions: Units whose parts are there.
        scores: Whether to look at scores; False: labels, lengths and statuses alone.
        spread: As `map`; may read several parts at once.
        progress: Called with 1 after each part.

    Raises:
        StorageError: If the store failed, and went on failing.
    """
    reader, size = _Reader(run, scores=scores), len(positions)
    shown_H = reader.frequent(positions) if scores else np.zeros(0, np.int64)
    sums, failed = reader.nothing(shown_H), 0
    tokens_U, real_U, k_cut_U = (np.zeros(size, np.int64) for _ in range(3))
    seconds_U, actors_U = np.full(size, np.nan), [""] * size
    problems: list[str] = []

    def read(unit: int) -> tuple[Sums, dict[str, Any]] | str:
        return reader.read(unit, shown_H)

    for place, found in enumerate(spread(read, positions.tolist())):
        progress(1)
        if isinstance(found, str):
            if len(problems) < PROBLEMS_KEPT:
                problems.append(found)
            continue
        part, receipt = found
        sums.merge(part)
        failed += sum(receipt.get("errors", {}).values())
        tokens_U[place], real_U[place] = receipt["tokens"], receipt["real_tokens"]
        k_cut_U[place] = receipt["k_cut"]
        if (seconds := receipt.get("seconds")) is not None:
            seconds_U[place] = seconds
        actors_U[place] = receipt.get("actor") or ""
    return Look(sums, positions, tokens_U, real_U, k_cut_U, seconds_U, actors_U, failed, problems)


class _Reader:
    """Reads parts of a run."""

    def __init__(self, run: Run, *, scores: bool) -> None:
        self._run, self._scores = run, scores
        self._label_set, self._output = run.label_set, run.output
        self._columns = [*READ_ALWAYS, *(score_columns(self._output) if scores else [])]
        self._thresholds_L = run.decision.thresholds_L(run.label_set)
        self._filesystem, base = filesystem_of(run.storage.uri)
        self._base = base.rstrip("/")
        self._paths = run.part_paths

    def nothing(self, shown_H: NDArray[np.int64]) -> Sums:
        """Sums of no rows."""
        return Sums(self._label_set, self._thresholds_L, shown_H)

    def read(self, unit: int, shown_H: NDArray[np.int64]) -> tuple[Sums, dict[str, Any]] | str:
        """Sums and receipt of a unit's part; a sentence if it cannot be used."""
        part = self._paths[unit]
        try:
            with open_parquet(self._filesystem, f"{self._base}/{part}") as file:
                footer = read_footer_key(file.metadata)
                if footer is None or footer["run"] != self._run.digest:
                    return f"{part}: is not a part of this run"
                sums, first = self.nothing(shown_H), 0
                for batch in file.iter_batches(
                    self._batch_rows, columns=self._columns, use_threads=False
                ):
                    rows = pa.Table.from_batches([batch])
                    sums.add(rows, self._output, scores=self._scores, unit=unit, first=first)
                    first += len(rows)
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            return f"{part}: cannot be read ({first_line(error)})"
        return sums, footer["receipt"]

    def frequent(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The most frequent labels: of all, or of a sample of the parts."""
        count = len(self._label_set)
        if count <= CANDIDATES:
            return np.arange(count)
        given_L = np.zeros(count, np.int64)
        places = np.linspace(0, len(positions) - 1, min(SAMPLED, len(positions))).astype(np.int64)
        for unit in positions[places].tolist():
            try:
                path = f"{self._base}/{self._paths[unit]}"
                with open_parquet(self._filesystem, path) as file:
                    labels = file.read(columns=["labels"], use_threads=False)["labels"]
                _, labels_C = label_cells(labels, self._label_set)
            except (OSError, pa.ArrowException, ValueError, KeyError):
                continue  # `read` names it
            given_L += np.bincount(labels_C, minlength=count)
        return np.sort(np.argsort(-given_L, kind="stable")[:CANDIDATES])

    @property
    def _batch_rows(self) -> int:
        width = len(self._label_set)
        if self._output.format == "sparse":
            width = min(width, self._output.k)
        return max(1, MAX_CELLS // width)


def texts_of(run: Run, cells: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Texts of some rows, read from the input again.

    Args:
        run: The run.
        cells: Unit, by position in the plan, and the row's place in the unit.

    Returns:
        Text of each row; those whose file has changed or is gone are left out.

    Raises:
        StorageError: If the store failed, and went on failing.
    """
    wanted: dict[int, list[int]] = {}
    for position, row in cells:
        wanted.setdefault(position, []).append(row)
    spec = replace(run.plan.spec, kept=())
    texts: dict[tuple[int, int], str] = {}
    for position, rows in wanted.items():
        units = run.plan.units_at(np.array([position], np.int64))
        block = read_block(units, spec, max_text_bytes=run.identity["input.max_text_bytes"])
        if block[BLOCK_FAULT][0].as_py() is not None:
            continue
        for row in rows:
            text = block[BLOCK_TEXT][row].as_py()
            if text is not None:
                texts[position, row] = text
    return texts
