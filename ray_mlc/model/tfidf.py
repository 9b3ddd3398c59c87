"""TF-IDF and a linear model per label: what a model folder of kind `tfidf` holds.

It is run as an encoder is: a tokenizer turns texts into ids, an engine turns ids into logits. The
ids are those of the words and pairs of neighbouring words that the vocabulary has, in the order of
the text and as often as they are in it; an unknown word has none. So batches, long documents,
canaries and the columns of the output mean the same for both kinds.

The features are those of scikit-learn's `TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)`.
Fitting and scoring both use the code here, which needs neither scikit-learn nor PyTorch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.config import WindowsConfig
from ray_mlc.errors import ModelError, first_line
from ray_mlc.labels import LabelSet
from ray_mlc.model.tokenization import Ragged

MODEL_TYPE = "ray_mlc_tfidf"
"""`model_type` in `config.json`: unknown to transformers, which therefore refuses the folder."""
VOCABULARY_FILE = "vocabulary.json"
"""Words and pairs, a list; the position plus one is the id."""
WEIGHTS_FILE = "model.safetensors"
START = 0
"""Id that every document begins with, as an encoder's do: it stands for the bias, and a document
without a known word has it alone."""
MAX_TOKENS = 2**20
"""Ids kept per document unless a job says less: half a million words, for bounded memory alone."""
FEATURES = {
    "token_pattern": r"(?u)\b\w\w+\b",
    "lowercase": True,
    "ngram_range": [1, 2],
    "sublinear_tf": True,
    "norm": "l2",
}
"""How features are made, in scikit-learn's words: recorded in `config.json`, and no other is read.
"""
_WORDS = re.compile(str(FEATURES["token_pattern"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class TfidfModel:
    """A vocabulary of F words and pairs, and a linear model of each of L labels."""

    vocabulary: Sequence[str]
    """Words, and pairs with a space between; F distinct names."""
    idf_F: NDArray[np.float32]
    """How rare each is: ln((1 + documents) / (1 + documents that have it)) + 1."""
    weights_FL: NDArray[np.float32]
    """Weight of each for each label."""
    bias_L: NDArray[np.float32]
    """Logits of a text without a known word."""

    def save(self, folder: Path, label_set: LabelSet) -> None:
        """Write weights, vocabulary and `config.json`, without what makes it a model folder."""
        from safetensors.numpy import save_file

        names = dict(enumerate(label_set.names))
        config = {
            "model_type": MODEL_TYPE,
            "problem_type": "multi_label_classification",
            "id2label": names,
            "label2id": {name: column for column, name in names.items()},
            "features": FEATURES,
        }
        _write_json(folder / "config.json", config)
        _write_json(folder / VOCABULARY_FILE, list(self.vocabulary))
        tensors = {"idf": self.idf_F, "weights": self.weights_FL, "bias": self.bias_L}
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            folder / WEIGHTS_FILE,
        )

    @classmethod
    def load(cls, folder: Path) -> TfidfModel:
        """Read what `save` wrote.

        Raises:
            ModelError: If a file is missing or malformed, or they do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        vocabulary = read_vocabulary(folder)
        try:
            found = load_file(folder / WEIGHTS_FILE)
            idf_F, weights_FL, bias_L = (found[name] for name in ("idf", "weights", "bias"))
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: {WEIGHTS_FILE} cannot be read ({first_line(error)})"
            ) from None
        except KeyError as error:
            raise ModelError(f"{folder}: {WEIGHTS_FILE} lacks {error}") from None
        labels = len(_read_json(folder / "config.json").get("id2label", ()))
        size = len(vocabulary)
        if (idf_F.shape, weights_FL.shape, bias_L.shape) != ((size,), (size, labels), (labels,)):
            raise ModelError(
                f"{folder}: {WEIGHTS_FILE} is not for {size} words and pairs and {labels} labels: "
                "the folder's files do not belong together"
            )
        if any(array.dtype != np.float32 for array in (idf_F, weights_FL, bias_L)):
            raise ModelError(f"{folder}: {WEIGHTS_FILE} holds other numbers than float32")
        return cls(vocabulary=vocabulary, idf_F=idf_F, weights_FL=weights_FL, bias_L=bias_L)


@dataclass(frozen=True, slots=True)
class TextTerms:
    """One text's words, and the K words and pairs in it that a vocabulary has."""

    spans: list[tuple[int, int]]
    """Where each word begins and ends in the text, in characters."""
    ids_K: NDArray[np.int32]
    """What `TfidfTokenizer.encode` gives, without `START`."""
    first_K: NDArray[np.int64]
    """Its word, or the first one of the pair, as an index into `spans`."""
    pair_K: NDArray[np.bool_]
    """Whether it is a pair."""


class TfidfTokenizer:
    """Texts to ids of the words and pairs that a vocabulary has."""

    def __init__(self, vocabulary: Sequence[str], *, max_tokens: int | None = None) -> None:
        """Make a tokenizer.

        Args:
            vocabulary: Words, and pairs with a space between.
            max_tokens: Ids kept per document, `START` included; None: `MAX_TOKENS`.
        """
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens or MAX_TOKENS
        self.windows: WindowsConfig | None = None
        self._id_of = {name: position for position, name in enumerate(vocabulary, START + 1)}

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Find the ids of texts, and cut them to `max_tokens`.

        `n_tokens` counts `START`, the known words and the known pairs of a text; none of an unknown
        word.

        Args:
            texts: N texts, none of them None.
        """
        find = self._id_of.get
        rows: list[NDArray[np.int32]] = []
        n_tokens = np.zeros(len(texts), np.int32)
        for position, text in enumerate(texts):
            # no id but START is 0, so that `filter` drops what was not found
            ids = [START, *filter(None, map(find, words_and_pairs(text)))]
            n_tokens[position] = len(ids)
            rows.append(np.array(ids[: self.max_tokens], np.int32))
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return Ragged.of(values, offsets, n_tokens)

    def terms(self, text: str) -> TextTerms:
        """The ids of one text, and where in it they come from."""
        found = [
            (id, place)
            for place, name in enumerate(words_and_pairs(text))
            if (id := self._id_of.get(name)) is not None
        ][: self.max_tokens - 1]
        ids_K, places_K = np.array(found, np.int64).reshape(-1, 2).T
        return TextTerms(word_spans(text), ids_K.astype(np.int32), places_K // 2, places_K % 2 == 1)

    def covered(self, n_tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether documents of so many ids are kept whole."""
        whole: NDArray[np.bool_] = n_tokens <= self.max_tokens
        return whole


def words_and_pairs(text: str) -> list[str]:
    """Lowercased words of two or more letters or digits, each followed by its pair with the next.

    scikit-learn's words and pairs, in the order of the text.
    """
    words = _WORDS.findall(text.lower())
    if len(words) < 2:
        return words
    names = [""] * (2 * len(words) - 1)
    names[::2] = words
    names[1::2] = [f"{first} {second}" for first, second in pairwise(words)]
    return names


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of `words_and_pairs` begin and end in a text, in characters."""
    lower = text.lower()
    spans = [found.span() for found in _WORDS.finditer(lower)]
    if len(lower) == len(text):
        return spans
    # a few letters become two: İ is i and a dot
    sizes = [len(char.lower()) for char in text]
    place_of = np.repeat(np.arange(len(text)), sizes)
    return [(int(place_of[start]), int(place_of[stop - 1]) + 1) for start, stop in spans]


def tfidf_rows(ids: Sequence[NDArray[np.int32]], idf_F: NDArray[np.float32]) -> Any:
    """TF-IDF rows of documents: 1 + ln(count), times rarity, scaled to unit length.

    A row depends on its own document alone, to the last bit.

    Args:
        ids: As the tokenizer gives them, `START` first, for each of B documents.
        idf_F: How rare each word and pair is.

    Returns:
        A `scipy.sparse.csr_array` of float64, shape [B, F], columns sorted within rows.
    """
    from scipy.sparse import csr_array

    lengths_B = np.array([len(row) - 1 for row in ids], np.int32)
    # 32 bits, as the ids have: a product reads these beside the values
    offsets = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int32)
    columns = np.concatenate([row[1:] for row in ids]) - (START + 1)
    rows_BF = csr_array(
        (np.ones(len(columns)), columns, offsets), shape=(len(lengths_B), len(idf_F))
    )
    rows_BF.sum_duplicates()
    rows_BF.data = (1 + np.log(rows_BF.data)) * idf_F[rows_BF.indices]
    document = np.repeat(np.arange(len(lengths_B)), np.diff(rows_BF.indptr))
    squares_B = np.bincount(document, weights=rows_BF.data**2, minlength=len(lengths_B))
    rows_BF.data /= np.sqrt(squares_B)[document]
    return rows_BF


def is_tfidf(folder: Path) -> bool:
    """Whether a folder holds a TF-IDF model, or the beginning of one."""
    try:
        config = _read_json(folder / "config.json")
    except ModelError:
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def read_vocabulary(folder: Path) -> list[str]:
    """Words and pairs of a model folder, in the order of their ids.

    Raises:
        ModelError: If the folder is of another kind, or features are made otherwise there.
    """
    if not is_tfidf(folder):
        raise ModelError(f"{folder}: is no TF-IDF model")
    config = _read_json(folder / "config.json")
    if config.get("features") != FEATURES:
        raise ModelError(
            f"{folder}: config.json makes features in a way that this ray_mlc does not know: "
            "upgrade ray-mlc"
        )
    names = _read_json(folder / VOCABULARY_FILE)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{folder}: {VOCABULARY_FILE} is not a list of words and pairs")
    if len(set(names)) != len(names):
        raise ModelError(f"{folder}: {VOCABULARY_FILE} has a word or pair twice")
    return names


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        raise ModelError(f"{file.parent}: {file.name} is missing or not valid JSON") from None
