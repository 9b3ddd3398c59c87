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
import tokenizers
from numpy.typing import NDArray

from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.cache import cache_folder, write_into_cache

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 2**20
"""Text tokenized in one call: the encodings take about a hundred bytes per token meanwhile."""
CHUNK_DOCUMENTS = 4096
_PROBES = ("a", "the word", "1 2", "и")
_NO_LIMIT = 10**9
"""`model_max_length` above this is transformers' way to say that there is none."""


@dataclass(frozen=True)
class Ragged:
    """Token ids of N documents, end to end."""

    values: NDArray[np.int32]
    """All ids, shape [sum of lengths]."""
    offsets: NDArray[np.int64]
    """Where each document begins, and the end of the last; shape [N + 1]."""
    n_tokens: NDArray[np.int32]
    """Tokens of each whole document before cutting, special tokens included; shape [N]."""

    def __len__(self) -> int:
        return len(self.n_tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document after cutting, shape [N]."""
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Ids of one document."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def rows(self, indices: NDArray[np.intp]) -> list[NDArray[np.int32]]:
        """Ids of some documents."""
        return [self.row(index) for index in indices.tolist()]


class AnyTokenizer(Protocol):
    """What turns texts into ids: word pieces for encoders, words and pairs for TF-IDF."""

    max_tokens: int
    """Ids kept per document, special ones included."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Pieces in id order."""

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Ids of N texts, none of them None, cut to `max_tokens`; at least one of each."""


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
    def load(cls, folder: str | Path, *, digest: str | None = None) -> TokenizerState:
        """Load from a folder or the hub.

        Args:
            folder: Checkpoint folder or hub id.
            digest: Of the tokenizer's files: names the state in the user's cache. None: no cache.

        Raises:
            ModelError: If there is no fast tokenizer.
        """
        if digest is None:
            return cls.of(load_pretrained_tokenizer(folder))
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

    def __init__(self, state: TokenizerState, *, max_tokens: int) -> None:
        """Make a tokenizer.

        Args:
            state: What it does.
            max_tokens: Tokens kept per document, special tokens included.

        Raises:
            ModelError: If no token of a document would be kept.
        """
        self.pad_id = state.pad_id
        self.max_tokens = max_tokens
        self._backend = tokenizers.Tokenizer.from_str(state.backend)
        self._prefix, self._suffix = self._special_ids()
        self._left = state.cuts_left
        if max_tokens <= len(self._prefix) + len(self._suffix):
            raise ModelError(
                f"max_tokens is {max_tokens}, expected more than the "
                f"{len(self._prefix) + len(self._suffix)} special tokens of a document"
            )

    @classmethod
    def load(
        cls, folder: str | Path, *, max_tokens: int | None = None, digest: str | None = None
    ) -> Tokenizer:
        """Load from a folder or the hub.

        Args:
            folder: Checkpoint folder or hub id.
            max_tokens: Tokens kept per document; None: the tokenizer's `model_max_length`.
            digest: Of its files, for the user's cache; see `TokenizerState.load`.

        Raises:
            ModelError: If there is no fast tokenizer, or no limit is known.
        """
        state = TokenizerState.load(folder, digest=digest)
        max_tokens = max_tokens or state.max_tokens
        if max_tokens is None:
            raise ModelError(f"{folder}: the tokenizer says no maximum: set long.max_tokens")
        return cls(state, max_tokens=max_tokens)

    @property
    def vocabulary(self) -> list[str]:
        """Pieces in id order."""
        by_id = sorted(self._backend.get_vocab(with_added_tokens=False).items(), key=lambda x: x[1])
        return [piece for piece, _ in by_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return str(self._backend.decode(list(ids)))

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Tokenize texts and cut them to `max_tokens`.

        Args:
            texts: N texts, none of them None.

        Returns:
            Ragged ids: what `tokenizer(text, truncation=True)["input_ids"]` gives for each.
        """
        room = self.max_tokens - len(self._prefix) - len(self._suffix)
        special = len(self._prefix) + len(self._suffix)
        pieces: list[NDArray[np.int32]] = []
        n_tokens = np.zeros(len(texts), np.int32)
        offsets = np.zeros(len(texts) + 1, np.int64)
        for start, stop in _chunks(texts):
            encodings = self._backend.encode_batch_fast(
                list(texts[start:stop]), add_special_tokens=False
            )
            flat: list[int] = []
            for position, encoding in enumerate(encodings, start):
                ids = encoding.ids
                n_tokens[position] = len(ids) + special
                if len(ids) > room:
                    ids = ids[-room:] if self._left else ids[:room]
                flat += self._prefix
                flat += ids
                flat += self._suffix
                offsets[position + 1] = len(ids) + special
            pieces.append(np.array(flat, np.int32))
        values = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        return Ragged(values, np.cumsum(offsets), n_tokens)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a document's own."""
        for probe in _PROBES:
            bare = self._backend.encode(probe, add_special_tokens=False).ids
            full = self._backend.encode(probe, add_special_tokens=True).ids
            for start in range(len(full) - len(bare) + 1):
                if bare and full[start : start + len(bare)] == bare:
                    return full[:start], full[start + len(bare) :]
        raise ModelError("the tokenizer's special tokens do not stand around the text")


def load_pretrained_tokenizer(folder: str | Path) -> Any:
    """`AutoTokenizer.from_pretrained`, with our errors."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        line = first_line(error)
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({line[:200]})") from None


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
