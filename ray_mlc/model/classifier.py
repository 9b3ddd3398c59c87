"""The trained classifier in memory: tokenizer, engine and batch budget put together."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import RayMlcError, first_line
from ray_mlc.labels import LabelSet
from ray_mlc.model.batching import padding_fraction, plan_batches
from ray_mlc.model.engines.protocol import Engine, OutOfMemoryError
from ray_mlc.model.tokenization import AnyTokenizer, Ragged
from ray_mlc.model.windows import aggregate_logits

log = logging.getLogger(__name__)

WINDOW_CELLS = 2**25
"""Logits of windows held at once, in cells of W × L: 128 MiB."""
HARMLESS = "Yes"
"""A document that every engine can score: it is among the canaries."""


@dataclass
class ForwardStats:
    """What the forward passes cost."""

    real_tokens: int = 0
    """Tokens of the documents."""
    padded_tokens: int = 0
    """Tokens computed, padding included."""

    @property
    def padding(self) -> float:
        """Share of the computed tokens that was padding."""
        return padding_fraction(self.real_tokens, self.padded_tokens)


@dataclass
class Classifier:
    """Scores texts on one device; holds no rows between calls."""

    label_set: LabelSet
    """Labels in column order."""
    tokenizer: AnyTokenizer
    """Text to ids."""
    engine: Engine
    """Ids to logits."""
    max_batch_tokens: int
    """Padded tokens per forward pass; falls when memory runs out."""
    stats: ForwardStats = field(default_factory=ForwardStats)
    """Totals since the start."""

    def predict_proba(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Scores of N texts, shape [N, L]."""
        return self.scores(self.tokenizer.encode(texts), progress=progress)

    def scores(
        self,
        ragged: Ragged,
        *,
        progress: Callable[[int], None] | None = None,
        fault: Callable[[int, str], None] | None = None,
    ) -> NDArray[np.float32]:
        """Scores of N tokenized documents.

        Args:
            ragged: Token ids.
            progress: Called with the documents done after each forward pass.
            fault: Told the position of a document over which the engine fails, and what it says; a
                batch that fails is halved until the guilty one is found. None: failures are raised.

        Returns:
            Sigmoids of the logits, those of a document's windows aggregated, shape [N, L]; NaN
            where a logit is not finite, and in the rows that `fault` was told of.

        Raises:
            RayMlcError: If the engine fails over every document, or one alone exceeds the memory.
        """
        if len(ragged.lengths) == len(ragged):
            return sigmoid(self.window_logits(ragged, progress=progress, fault=fault))
        scores_NL = np.empty((len(ragged), len(self.label_set)), np.float32)
        for rows in self.parts(ragged):
            part = ragged.take(rows)

            def of_part(position: int, message: str, rows: NDArray[np.intp] = rows) -> None:
                assert fault is not None
                fault(int(rows[position]), message)

            told = of_part if fault is not None else None
            logits_WL = self.window_logits(part, progress=progress, fault=told)
            scores_NL[rows] = sigmoid(self.join(logits_WL, part.firsts))
        return scores_NL

    def parts(self, ragged: Ragged) -> Iterator[NDArray[np.intp]]:
        """Consecutive documents whose windows' logits fit into `WINDOW_CELLS`, or one of them."""
        most = max(1, WINDOW_CELLS // len(self.label_set))
        ends = ragged.firsts[1:]
        low = before = 0
        while low < len(ends):
            high = max(low + 1, int(np.searchsorted(ends, before + most, side="right")))
            yield np.arange(low, high)
            low, before = high, int(ends[high - 1])

    def join(
        self, logits_WL: NDArray[np.float32], firsts: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Logits of documents, shape [N, L], from those of their windows; see `Ragged.firsts`."""
        if len(logits_WL) == len(firsts) - 1:
            return logits_WL
        windows = self.tokenizer.windows
        assert windows is not None
        assert windows.aggregate != "auto"
        return aggregate_logits(logits_WL, firsts, how=windows.aggregate, top=windows.top)

    def window_logits(
        self,
        ragged: Ragged,
        *,
        progress: Callable[[int], None] | None = None,
        fault: Callable[[int, str], None] | None = None,
    ) -> NDArray[np.float32]:
        """Logits of W windows, shape [W, L]; arguments and errors as for `scores`."""
        lengths_W = ragged.lengths
        logits_WL = np.empty((len(lengths_W), len(self.label_set)), np.float32)
        documents_W = ragged.documents
        left_N = ragged.n_windows
        todo = plan_batches(
            lengths_W,
            max_batch_tokens=self.max_batch_tokens,
            batch_cost=self.engine.batch_cost,
        )[::-1]
        begun: deque[tuple[NDArray[np.intp], Callable[[], NDArray[np.float32]]]] = deque()
        fetch: Callable[[], NDArray[np.float32]] | None
        while todo or begun:
            if todo and len(begun) < self.engine.depth:
                batch = todo.pop()
                padded = _padded(batch, lengths_W)
                if len(batch) > 1 and padded > self.max_batch_tokens:
                    todo += _halves(batch)  # planned before memory ran out
                    continue
                fetch = None
            else:
                batch, fetch = begun.popleft()
            try:
                if fetch is None:
                    begun.append((batch, self.engine.begin(ragged.windows(batch))))
                    continue
                logits_WL[batch] = fetch()
            except OutOfMemoryError:
                self._lower_budget(batch, _padded(batch, lengths_W))
                todo += _halves(batch)
                continue
            except Exception as error:
                if fault is None:
                    raise
                if len(batch) > 1:
                    todo += _halves(batch)
                    continue
                self._refuse_broken_engine()
                logits_WL[batch] = np.nan
                fault(int(documents_W[batch[0]]), first_line(error))
                continue
            real = int(lengths_W[batch].sum())
            self.stats.real_tokens += real
            self.stats.padded_tokens += real if self.engine.packed else _padded(batch, lengths_W)
            if progress is not None:
                whole = documents_W[batch]
                np.subtract.at(left_N, whole, 1)
                progress(int((left_N[np.unique(whole)] == 0).sum()))
        return logits_WL

    def _lower_budget(self, batch: NDArray[np.intp], padded: int) -> None:
        """Make later batches smaller than one that did not fit.

        Raises:
            RayMlcError: If that is a single document.
        """
        if len(batch) == 1:
            raise RayMlcError(
                f"a document of {padded} tokens alone exceeds the memory of the "
                f"{self.engine.device}: lower long.max_tokens"
            ) from None
        # the longest document of a later block must still fit; of two batches that were on their
        # way together, the later one must not raise what the first has lowered
        fits = max(padded // 2, self.tokenizer.max_tokens)
        self.max_batch_tokens = min(self.max_batch_tokens, fits)
        log.warning("out of memory: max_batch_tokens is %d now", self.max_batch_tokens)

    def _refuse_broken_engine(self) -> None:
        """Tell a document that cannot be scored from an engine that scores nothing any more.

        Raises:
            RayMlcError: If a harmless document fails as well, as after an error on a GPU.
        """
        try:
            self.engine.logits([self.tokenizer.encode([HARMLESS]).window(0)])
        except Exception as error:
            raise RayMlcError(
                f"{self.engine.name} on {self.engine.device} fails over every document "
                f"({first_line(error)}): run the same command again"
            ) from None


def _padded(batch: NDArray[np.intp], lengths_N: NDArray[np.int64]) -> int:
    """Tokens that a batch costs, padding included."""
    return len(batch) * int(lengths_N[batch].max())


def _halves(batch: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """A batch in two, for a stack: the first half on top."""
    half = len(batch) // 2
    return [batch[half:], batch[:half]]


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + e^-x) in float32, as transformers' pipeline computes it; NaN for ±inf."""
    with np.errstate(over="ignore"):
        scores = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    # an infinite logit is a numerical accident, not certainty
    finite: NDArray[np.float32] = np.where(np.isfinite(logits), scores, np.float32("nan"))
    return finite
