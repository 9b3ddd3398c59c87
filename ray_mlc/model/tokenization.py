"""Text to ragged token ids, the same for training, evaluation and scoring.

Ids travel without padding: the padded form is made per batch, in the engine. Whole texts are
tokenized and cut afterwards, so that `n_tokens` says how long a document really is.

What transformers makes of a folder's tokenizer files is kept in the user's cache, under their
digest: importing transformers, and PyTorch with it, takes longer than all else that an actor of
another engine does before its first document.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from ray_mlc.config import WindowsConfig
from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.cache import cache_folder, write_into_cache
from ray_mlc.model.encoder import load_config, pooling_of

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 2**20
"""Text tokenized in one call: the encodings take about a hundred bytes per token meanwhile."""
CHUNK_DOCUMENTS = 4096
_PROBES = ("a", "the word", "1 2", "и")
_NO_LIMIT = 10**9
"""`model_max_length` above this is transformers' way to say that there is none."""


@dataclass(frozen=True)
class Ragged:
    """Token ids of N documents in W windows, end to end; W is N where none has several."""

    values: NDArray[np.int32]
    """All ids, shape [sum of lengths]."""
    offsets: NDArray[np.int64]
    """Where each window begins, and the end of the last; shape [W + 1]."""
    n_tokens: NDArray[np.int32]
    """Tokens of each whole document before cutting, special tokens included; shape [N]."""
    firsts: NDArray[np.int64]
    """First window of each document, and W; shape [N + 1]."""

    @classmethod
    def of(
        cls,
        values: NDArray[np.int32],
        offsets: NDArray[np.int64],
        n_tokens: NDArray[np.int32],
        n_windows: NDArray[np.integer] | None = None,
    ) -> Ragged:
        """Put together; None: each document has one window."""
        firsts = np.arange(len(n_tokens) + 1, dtype=np.int64)
        if n_windows is not None:
            firsts[0] = 0
            np.cumsum(n_windows, out=firsts[1:])
        return cls(values, offsets, n_tokens, firsts)

    def __len__(self) -> int:
        return len(self.n_tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window, shape [W]."""
        return np.diff(self.offsets)

    @property
    def n_windows(self) -> NDArray[np.int64]:
        """Windows of each document, shape [N]."""
        return np.diff(self.firsts)

    @property
    def documents(self) -> NDArray[np.int64]:
        """Document of each window, shape [W]."""
        return np.repeat(np.arange(len(self)), self.n_windows)

    @property
    def costs(self) -> NDArray[np.int64]:
        """Tokens that each document costs in one forward pass, its windows padded; shape [N]."""
        if not len(self):
            return np.zeros(0, np.int64)
        costs: NDArray[np.int64] = self.n_windows * np.maximum.reduceat(
            self.lengths, self.firsts[:-1]
        )
        return costs

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens of each document in all its windows, shape [N]."""
        return np.diff(self.offsets[self.firsts])

    def window(self, index: int) -> NDArray[np.int32]:
        """Ids of one window."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def windows(self, indices: NDArray[np.intp]) -> list[NDArray[np.int32]]:
        """Ids of some windows."""
        return [self.window(index) for index in indices.tolist()]

    def take(self, documents: NDArray[np.intp]) -> Ragged:
        """Some documents, in the order asked."""
        windows = self.windows_of(documents)
        lengths = self.lengths[windows]
        offsets = np.zeros(len(windows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.repeat(self.offsets[windows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        counts = self.n_windows[documents]
        return Ragged.of(self.values[places], offsets, self.n_tokens[documents], counts)

    def distinct(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Documents with the same ids, window by window, are one.

        Returns:
            The first of each such group, rising, shape [D]; and for each document, shape [N], which
            of these D it equals.
        """
        if not len(self):
            return np.zeros(0, np.intp), np.zeros(0, np.intp)
        begins = self.offsets[self.firsts] * self.values.itemsize
        buffers = [None, pa.py_buffer(begins), pa.py_buffer(np.ascontiguousarray(self.values))]
        ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)
        code_N = ids.dictionary_encode().indices.to_numpy().astype(np.int64)
        # all windows but the last are full: their number tells how equal ids are cut
        key_N = code_N * (int(self.n_windows.max()) + 1) + self.n_windows
        _, first_D, group_N = np.unique(key_N, return_index=True, return_inverse=True)
        order_D = np.argsort(first_D)
        place_D = np.empty_like(order_D)
        place_D[order_D] = np.arange(len(order_D))
        return first_D[order_D], place_D[group_N]

    def windows_of(self, documents: NDArray[np.intp]) -> NDArray[np.intp]:
        """The windows of some documents, document by document."""
        counts = self.n_windows[documents]
        begins = np.cumsum(counts) - counts
        shifts = np.repeat(self.firsts[documents] - begins, counts)
        windows: NDArray[np.intp] = np.arange(len(shifts)) + shifts
        return windows


@dataclass(frozen=True)
class WindowWords:
    """One window of a text, and the words in it."""

    ids: NDArray[np.int32]
    """T token ids, special ones included: what `Tokenizer.encode` gives."""
    words: list[int | None]
    """Word of each token, as an index into `spans`; None for special tokens."""
    spans: list[tuple[int, int]]
    """Where each word begins and ends in the text, in characters."""


class AnyTokenizer(Protocol):
    """What turns texts into ids: word pieces for encoders, words and pairs for TF-IDF."""

    max_tokens: int
    """Ids kept per document or window, special ones included."""
    windows: WindowsConfig | None
    """How long documents are cut into windows; None: they lose their end."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Pieces in id order."""

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Ids of N texts, none of them None, cut to `max_tokens`; at least one of each."""

    def covered(self, n_tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether documents of so many ids are kept whole."""


@dataclass(frozen=True)
class TokenizerState:
    """What a tokenizer does, as transformers understands the files of its folder."""

    backend: str
    """The fast tokenizer in the form of `tokenizer.json`; it neither cuts nor pads."""
    pad_id: int
    """Token id to pad with."""
    cuts_left: bool
    """Whether long documents lose their beginning."""
    max_tokens: int | None
    """The tokenizer's own limit; None: it knows none."""

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerState:
        """Take it from a fast `PreTrainedTokenizerBase`.

        Raises:
            ModelError: If the tokenizer has no fast form.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer {type(tokenizer).__name__} has no fast "
                "form (tokenizer.json); convert it with transformers first"
            )
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        own = tokenizer.model_max_length
        return cls(
            backend=backend.to_str(),
            pad_id=int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0),
            cuts_left=tokenizer.truncation_side == "left",
            max_tokens=int(own) if own <= _NO_LIMIT else None,
        )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        digest: str | None = None,
        special_tokens: Sequence[str] = (),
    ) -> TokenizerState:
        """Load from a folder or the hub.

        Args:
            folder: Checkpoint folder or hub id.
            digest: Of the tokenizer's files: names the state in the user's cache. None: no cache.
            special_tokens: Those that a training adds; a model folder has them already.

        Raises:
            ModelError: If there is no fast tokenizer.
        """
        if digest is None or special_tokens:
            return cls.of(load_pretrained_tokenizer(folder, special_tokens))
        versions = f"{version('transformers')}-{version('tokenizers')}"
        try:
            path = cache_folder("tokenizers") / f"{digest[:32]}-{versions}.json"
        except OSError as error:
            log.info("the tokenizer cannot be kept in a cache: %s", first_line(error))
            return cls.of(load_pretrained_tokenizer(folder))
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there, or not what was written
            state = cls.of(load_pretrained_tokenizer(folder))
        try:
            write_into_cache(path, json.dumps(asdict(state)))
        except OSError as error:
            log.info("the tokenizer cannot be kept in a cache: %s", first_line(error))
        return state


class Tokenizer:
    """A fast Hugging Face tokenizer, without padding and with exact lengths."""

    def __init__(
        self, state: TokenizerState, *, max_tokens: int, windows: WindowsConfig | None = None
    ) -> None:
        """Make a tokenizer.

        Args:
            state: What it does.
            max_tokens: Tokens kept per document or window, special tokens included.
            windows: How long documents are cut into windows; None: they lose their end.

        Raises:
            ModelError: If no token of a document would be kept, or windows would not advance.
        """
        self.pad_id = state.pad_id
        self.max_tokens = max_tokens
        self.windows = windows
        self._backend = tokenizers.Tokenizer.from_str(state.backend)
        self._prefix, self._suffix = self._special_ids()
        self._left = state.cuts_left
        if max_tokens <= len(self._prefix) + len(self._suffix):
            raise ModelError(
                f"max_tokens is {max_tokens}, expected more than the "
                f"{len(self._prefix) + len(self._suffix)} special tokens of a document"
            )
        self._room = max_tokens - len(self._prefix) - len(self._suffix)
        if windows is not None and windows.overlap >= self._room:
            raise ModelError(
                f"windows.overlap is {windows.overlap}, expected less than the {self._room} tokens "
                "of a window that are the document's own"
            )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        max_tokens: int | None = None,
        windows: WindowsConfig | None = None,
        digest: str | None = None,
        special_tokens: Sequence[str] = (),
    ) -> Tokenizer:
        """Load from a folder or the hub.

        Args:
            folder: Checkpoint folder or hub id.
            max_tokens: Tokens kept per document or window; None: the tokenizer's
                `model_max_length`.
            windows: See the constructor.
            digest: Of its files, for the user's cache; see `TokenizerState.load`.
            special_tokens: Those that a training adds; a model folder has them already.

        Raises:
            ModelError: If there is no fast tokenizer, or no limit is known.
        """
        state = TokenizerState.load(folder, digest=digest, special_tokens=special_tokens)
        max_tokens = max_tokens or state.max_tokens
        if max_tokens is None:
            raise ModelError(f"{folder}: the tokenizer says no maximum: set long.max_tokens")
        return cls(state, max_tokens=max_tokens, windows=windows)

    @property
    def vocabulary(self) -> list[str]:
        """Pieces in id order."""
        by_id = sorted(self._backend.get_vocab(with_added_tokens=False).items(), key=lambda x: x[1])
        return [piece for piece, _ in by_id]

    @property
    def vocabulary_size(self) -> int:
        """Embeddings that its ids ask for, added tokens included: one more than the largest id."""
        return 1 + int(max(self._backend.get_vocab(with_added_tokens=True).values()))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return str(self._backend.decode(list(ids)))

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Tokenize texts, and cut them to `max_tokens` or into windows of so many.

        Args:
            texts: N texts, none of them None.

        Returns:
            Ragged ids: what `tokenizer(text, truncation=True)["input_ids"]` gives for each; with
            windows, what it gives with `return_overflowing_tokens=True` and `stride` besides.
        """
        special = len(self._prefix) + len(self._suffix)
        pieces: list[NDArray[np.int32]] = []
        n_tokens = np.zeros(len(texts), np.int32)
        n_windows = np.ones(len(texts), np.int64)
        lengths: list[int] = []
        for start, stop in _chunks(texts):
            encodings = self._backend.encode_batch_fast(
                list(texts[start:stop]), add_special_tokens=False
            )
            flat: list[int] = []
            for position, encoding in enumerate(encodings, start):
                ids = encoding.ids
                n_tokens[position] = len(ids) + special
                windows = self._windows(ids)
                n_windows[position] = len(windows)
                for window in windows:
                    flat += self._prefix
                    flat += window
                    flat += self._suffix
                    lengths.append(len(window) + special)
            pieces.append(np.array(flat, np.int32))
        values = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Ragged.of(values, offsets, n_tokens, n_windows)

    def words(self, text: str) -> list[WindowWords]:
        """The windows of one text, token by token, with the word that each token is part of."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        places = list(range(len(encoding.ids)))
        windows = []
        for window in self._windows(places):
            spans: list[tuple[int, int]] = []
            words: list[int | None] = [None] * len(self._prefix)
            previous = None
            for place in window:
                start, stop = encoding.offsets[place]
                word = encoding.word_ids[place]
                if spans and word is not None and word == previous:
                    spans[-1] = (spans[-1][0], stop)
                else:
                    spans.append((start, stop))
                previous = word
                words.append(len(spans) - 1)
            words += [None] * len(self._suffix)
            ids = [*self._prefix, *(encoding.ids[place] for place in window), *self._suffix]
            windows.append(WindowWords(np.array(ids, np.int32), words, spans))
        return windows

    def covered(self, n_tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether documents of so many tokens, special ones included, are kept whole."""
        room, special = self._room, len(self._prefix) + len(self._suffix)
        if self.windows is not None:
            room += (room - self.windows.overlap) * (self.windows.max_windows - 1)
        whole: NDArray[np.bool_] = n_tokens <= room + special
        return whole

    def _windows(self, ids: list[int]) -> list[list[int]]:
        """A document's own tokens (or their places), cut; at least one window, maybe empty."""
        room = self._room
        if len(ids) <= room:
            return [ids]
        if self.windows is None:
            return [ids[-room:] if self._left else ids[:room]]
        step = room - self.windows.overlap
        count = min(1 + -(-(len(ids) - room) // step), self.windows.max_windows)
        kept = room + (count - 1) * step
        if len(ids) > kept:
            ids = ids[-kept:] if self._left else ids[:kept]
        return [ids[low : low + room] for low in range(0, count * step, step)]

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a document's own."""
        for probe in _PROBES:
            bare = self._backend.encode(probe, add_special_tokens=False).ids
            full = self._backend.encode(probe, add_special_tokens=True).ids
            for start in range(len(full) - len(bare) + 1):
                if bare and full[start : start + len(bare)] == bare:
                    return full[:start], full[start + len(bare) :]
        raise ModelError("the tokenizer's special tokens do not stand around the text")


def load_pretrained_tokenizer(folder: str | Path, special_tokens: Sequence[str] = ()) -> Any:
    """`AutoTokenizer.from_pretrained`, with our errors.

    Args:
        folder: Checkpoint folder or hub id.
        special_tokens: Markers that are to be one token each wherever they stand in a text. One
            that the vocabulary has keeps its id, others get ids after its last one.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    # transformers asks the model's type for the class, and would not know that of ours
    ours = pooling_of(Path(folder)) is not None
    options = {"config": load_config(folder)} if ours else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError) as error:
        line = first_line(error)
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({line[:200]})") from None
    if special_tokens:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": list(special_tokens)}, replace_extra_special_tokens=False
        )
    return tokenizer


def _chunks(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of texts of bounded count and size."""
    ranges = []
    start = size = 0
    for position, text in enumerate(texts):
        if position > start and (
            size + len(text) > CHUNK_BYTES or position - start >= CHUNK_DOCUMENTS
        ):
            ranges.append((start, position))
            start, size = position, 0
        size += len(text)
    if start < len(texts):
        ranges.append((start, len(texts)))
    return ranges
