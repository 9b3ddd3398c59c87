"""Texts that are there twice, and texts that nearly are.

The same text: equal after lower-casing and with any white space taken for one space. Nearly the
same: the sets of `SHINGLE_WORDS` consecutive words (marks of punctuation left out) overlap by at
least a given Jaccard similarity. Candidates come from MinHash signatures (Broder 1997) cut into
bands, as in locality-sensitive hashing (Indyk & Motwani 1998); the similarity of each candidate is
then computed exactly, so that what is reported holds. A pair at the threshold is found with a
probability of at least `RECALL`. Where very many texts are alike, each is compared with some
`NEIGHBOURS` of its bucket per band and not with all: chains connect them, and the memory stays
bounded.

Written here on arrays and not taken from a library: those make an object of each document, and
dictionaries of sets of the bands, where sorting the bands needs no more than the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.errors import DataError

SHINGLE_WORDS = 3
"""Consecutive words that make one element of a text's set."""
HASHES = 120
"""Numbers of a signature."""
RECALL = 0.99
"""Least probability with which a pair of exactly the threshold's similarity becomes a candidate."""
NEIGHBOURS = 8
"""Texts that a text is compared with in its bucket of a band."""
LEAST_JACCARD = 0.3
"""Below it most pairs of texts of one language would be candidates."""

_BLOCK_BYTES = 8 * 2**20  # text looked at together
_BLOCK_SHINGLES = 2**17  # so that what one hash function reads and writes stays in the cache
_PAIRS = 2**12  # pairs compared together
_BITS = 30  # of a set's element: of two texts of a thousand words one in a thousand matches falsely
_SLACK = 0.1  # three standard errors of a similarity estimated by a signature
# one character is one word in scripts that put no space between words
_SPACELESS = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which of N texts are the same, and which nearly are."""

    text_N: NDArray[np.int64]
    """Number of the distinct text of each row, shape [N]; -1 where it is empty."""
    first_T: NDArray[np.int64]
    """First row of each distinct text, shape [T]."""
    pairs_P2: NDArray[np.int64]
    """Distinct texts that are nearly the same, shape [P, 2], the smaller number first."""
    jaccard_P: NDArray[np.float64]
    """Their similarity, shape [P]."""
    jaccard: float | None
    """The threshold; None: nobody looked for texts that are nearly the same."""

    def presence_TK(self, part_N: NDArray[np.intp], parts: int) -> NDArray[np.int64]:
        """Rows of each distinct text in each of K parts, shape [T, K]."""
        rows = np.flatnonzero(self.text_N >= 0)
        keys = self.text_N[rows] * parts + part_N[rows]
        counts = np.bincount(keys, minlength=len(self.first_T) * parts)
        return counts.reshape(len(self.first_T), parts)

    def near_TK(self, presence_TK: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a part holds another text that is nearly the same, shape [T, K]."""
        near_TK = np.zeros(presence_TK.shape, dtype=np.bool_)
        left, right = self.pairs_P2[:, 0], self.pairs_P2[:, 1]
        np.logical_or.at(near_TK, left, presence_TK[right] > 0)
        np.logical_or.at(near_TK, right, presence_TK[left] > 0)
        return near_TK


@dataclass(frozen=True)
class Shared:
    """How many rows of one part are also in another."""

    of: str
    """Part whose rows are counted."""
    also_in: str
    """The other part."""
    exact: int
    """Rows whose text is there too."""
    near: int | None
    """Rows whose text is not there, but one that is nearly the same; None: nobody looked."""
    exact_share: float
    near_share: float | None


def find_duplicates(
    texts: pa.Array, *, jaccard: float | None, progress: Progress | None = None
) -> Duplicates:
    """Compare N texts with each other.

    Args:
        texts: large_string without nulls, shape [N]. Empty ones equal nothing.
        jaccard: From which similarity texts are nearly the same, `LEAST_JACCARD` to 1; None:
            look for the same texts only.
        progress: Told how many rows were looked at; each row twice unless `jaccard` is None.

    Raises:
        DataError: If the similarity is outside its range.
    """
    if jaccard is not None and not LEAST_JACCARD <= jaccard <= 1:
        raise DataError(
            f"near is {jaccard:g}, expected a Jaccard similarity from {LEAST_JACCARD} to 1, or 0 "
            "to look for equal texts only"
        )
    text_N, first_T = _distinct(texts, progress)
    pairs_P2 = np.empty((0, 2), np.int64)
    jaccard_P = np.empty(0, np.float64)
    if jaccard is not None:
        candidates_P2 = _candidates(texts, first_T, jaccard, progress)
        pairs_P2, jaccard_P = _confirmed(texts, first_T, candidates_P2, jaccard)
        if progress is not None:
            progress(len(texts) - len(first_T))  # rows that need no second look
    return Duplicates(text_N, first_T, pairs_P2, jaccard_P, jaccard)


def shared_rows(
    duplicates: Duplicates, part_N: NDArray[np.intp], names: tuple[str, ...]
) -> tuple[Shared, ...]:
    """For each ordered pair of parts, the rows of one whose text is in the other.

    Args:
        duplicates: Of the N rows of all parts together.
        part_N: Which part each row is in, shape [N].
        names: Of the parts.
    """
    presence_TK = duplicates.presence_TK(part_N, len(names))
    near_TK = duplicates.near_TK(presence_TK)
    sizes_K = np.bincount(part_N, minlength=len(names))
    found = []
    for one, of in enumerate(names):
        rows_T = presence_TK[:, one]
        for other, also_in in enumerate(names):
            if one == other:
                continue
            is_there_T = presence_TK[:, other] > 0
            exact = int(rows_T[is_there_T].sum())
            near = int(rows_T[near_TK[:, other] & ~is_there_T].sum())
            size = max(int(sizes_K[one]), 1)
            looked = duplicates.jaccard is not None
            found.append(
                Shared(
                    of,
                    also_in,
                    exact,
                    near if looked else None,
                    exact / size,
                    near / size if looked else None,
                )
            )
    return tuple(found)


def groups_of(duplicates: Duplicates, *, near: bool) -> NDArray[np.int64]:
    """Rows that belong together, by the same number, shape [N].

    Args:
        duplicates: Of the N rows.
        near: Whether texts that are nearly the same belong together too, and with them those that
            are nearly the same as these.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(duplicates.text_N)
    texts = len(duplicates.first_T)
    component_T = np.arange(texts)
    if near and len(duplicates.pairs_P2):
        left, right = duplicates.pairs_P2.T
        ones = np.ones(len(left), np.int8)
        graph = coo_array((ones, (left, right)), shape=(texts, texts))
        component_T = connected_components(graph, directed=False)[1].astype(np.int64)
    group_N = np.arange(rows) + texts  # an empty text is with nobody
    known = duplicates.text_N >= 0
    group_N[known] = component_T[duplicates.text_N[known]]
    return np.unique(group_N, return_inverse=True)[1].astype(np.int64)


# --- the same text


def _distinct(
    texts: pa.Array, progress: Progress | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of each row's text in order of first sight, -1 where empty; the first row of each."""
    keys_N = np.empty(len(texts), np.uint64)
    empty_N = np.empty(len(texts), np.bool_)
    for start, stop, some in _blocks(texts, np.arange(len(texts))):
        words = pc.utf8_split_whitespace(pc.utf8_lower(some))
        joined = pc.binary_join(words, pa.scalar(" ", words.type.value_type))
        plain = pc.utf8_trim_whitespace(joined)
        empty_N[start:stop] = pc.equal(plain, "").to_numpy(zero_copy_only=False)
        # 64 bits: among ten million texts two that differ clash once in 370,000 runs
        keys_N[start:stop] = _hashes(plain)
        if progress is not None:
            progress(stop - start)
    rows = np.flatnonzero(~empty_N)
    _, first, number = np.unique(keys_N[rows], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    text_N = np.full(len(texts), -1, np.int64)
    text_N[rows] = rank[number]
    return text_N, rows[first[order]].astype(np.int64)


def _hashes(strings: pa.Array) -> NDArray[np.uint64]:
    values = strings.cast(pa.large_binary()).to_pylist()
    digests = b"".join(blake2b(value, digest_size=8).digest() for value in values)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _blocks(texts: pa.Array, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, pa.Array]]:
    """The texts of `rows` in blocks of about `_BLOCK_BYTES`: from, to, texts."""
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)[rows].astype(np.int64)
    ends = np.cumsum(sizes + 64)  # short texts cost too
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _BLOCK_BYTES, side="right"))
        stop = max(stop, start + 1)
        yield start, stop, texts.take(pa.array(rows[start:stop]))
        start = stop


# --- nearly the same text


def _shingles(texts: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the shingles of some texts end to end, and where each text's begin, shape [n + 1].

    A text of fewer words than a shingle is one shingle; a text without a word has none.
    """
    plain = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", " ")
    beyond_ascii = plain.filter(pc.invert(pc.string_is_ascii(plain)))
    if pc.any(pc.match_substring_regex(beyond_ascii, _SPACELESS)).as_py():
        plain = pc.replace_substring_regex(plain, _SPACELESS, r" \1 ")
    lists = pc.utf8_split_whitespace(plain)
    lengths_n = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    words = pc.list_flatten(lists)
    filled = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    row_of_word = np.repeat(np.arange(len(texts)), lengths_n)[filled]
    encoded = words.filter(pa.array(filled)).dictionary_encode()
    hashes = _hashes(encoded.dictionary)[encoded.indices.to_numpy()]

    words_n = np.bincount(row_of_word, minlength=len(texts))
    ends_n = np.cumsum(words_n)
    count_n = np.where(words_n > 0, np.maximum(words_n - SHINGLE_WORDS + 1, 1), 0)
    offsets = np.concatenate([[0], np.cumsum(count_n)]).astype(np.int64)
    row_of_shingle = np.repeat(np.arange(len(texts)), count_n)
    first = np.arange(offsets[-1]) - offsets[row_of_shingle] + (ends_n - words_n)[row_of_shingle]
    padded = np.concatenate([hashes, np.zeros(SHINGLE_WORDS, np.uint64)])
    mixed = padded[first]
    for step in range(1, SHINGLE_WORDS):
        inside = first + step < ends_n[row_of_shingle]
        mixed = mixed * _MULTIPLIER + np.where(inside, padded[first + step], np.uint64(0))
    mixed = (mixed ^ (mixed >> np.uint64(31))) * _MULTIPLIER
    return mixed ^ (mixed >> np.uint64(29)), offsets


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _signatures(
    texts: pa.Array, rows: NDArray[np.int64], progress: Progress | None
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """MinHash signatures of the texts of n rows, shape [n, `HASHES`]; which have a word at all."""
    generator = np.random.default_rng(0)  # of the method, not of the user's choice
    factors = generator.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = generator.integers(0, 2**63, HASHES, dtype=np.uint64)
    signatures = np.zeros((len(rows), HASHES), np.uint32)
    has_words = np.zeros(len(rows), np.bool_)
    for start, stop, block in _blocks(texts, rows):
        hashes, offsets = _shingles(block)
        filled = np.flatnonzero(np.diff(offsets))
        has_words[start + filled] = True
        begins = offsets[filled]
        first = 0
        while first < len(filled):
            last = int(np.searchsorted(begins, begins[first] + _BLOCK_SHINGLES, "right"))
            last = max(last, first + 1)
            some = filled[first:last]
            low, high = offsets[some[0]], offsets[some[-1] + 1]
            part, starts = hashes[low:high], offsets[some] - low
            for number in range(HASHES):
                least = np.minimum.reduceat(part * factors[number] + shifts[number], starts)
                signatures[start + some, number] = least >> np.uint64(32)
            first = last
        if progress is not None:
            progress(stop - start)
    return signatures, has_words


def _rows_per_band(jaccard: float) -> int:
    """The longest bands that still find a pair of that similarity with probability `RECALL`."""
    fitting = [rows for rows in range(1, HASHES + 1) if HASHES % rows == 0]
    return max(
        rows
        for rows in fitting
        if rows == 1 or 1 - (1 - jaccard**rows) ** (HASHES // rows) >= RECALL
    )


def _candidates(
    texts: pa.Array, first_T: NDArray[np.int64], jaccard: float, progress: Progress | None
) -> NDArray[np.int64]:
    """Pairs of texts whose signatures agree in a band, and by about `jaccard` as a whole."""
    signatures, has_words = _signatures(texts, first_T, progress)
    rows = np.flatnonzero(has_words)
    signatures = signatures[rows]
    width = _rows_per_band(jaccard)
    bands = [_band_keys(signatures[:, first : first + width]) for first in range(0, HASHES, width)]
    seen = np.empty(0, np.int64)
    for number, keys in enumerate(bands):
        # inside a bucket those next to each other agree in the next band too, if any do
        order = np.lexsort((bands[(number + 1) % len(bands)], keys))
        in_order = keys[order]
        found = []
        for distance in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(in_order[distance:] == in_order[:-distance])
            if not len(same):
                break
            one, other = order[same], order[same + distance]
            found.append(np.minimum(one, other) * len(rows) + np.maximum(one, other))
        if found:
            fresh = np.setdiff1d(np.concatenate(found), seen)
            seen = np.union1d(seen, fresh[_agreement(signatures, fresh) >= jaccard - _SLACK])
    left, right = np.divmod(seen, max(len(rows), 1))
    return np.stack([rows[left], rows[right]], axis=1)


def _band_keys(band: NDArray[np.uint32]) -> NDArray[np.uint64]:
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = (keys ^ column) * _MULTIPLIER
        keys ^= keys >> np.uint64(32)
    return keys


def _agreement(signatures: NDArray[np.uint32], keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of equal numbers in the signatures of each pair: an estimate of the similarity."""
    shares = np.empty(len(keys))
    for start in range(0, len(keys), _PAIRS):
        left, right = np.divmod(keys[start : start + _PAIRS], len(signatures))
        equal = signatures[left] == signatures[right]
        shares[start : start + _PAIRS] = np.count_nonzero(equal, axis=1) / HASHES
    return shares


def _confirmed(
    texts: pa.Array,
    first_T: NDArray[np.int64],
    candidates_P2: NDArray[np.int64],
    jaccard: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The candidates whose similarity, computed from their sets, reaches the threshold.

    The sets of all candidates take four bytes per word meanwhile: less than their texts.
    """
    from scipy.sparse import csr_array

    if not len(candidates_P2):
        return candidates_P2, np.empty(0, np.float64)
    rows, position = np.unique(candidates_P2, return_inverse=True)
    position_P2 = position.reshape(candidates_P2.shape)
    elements, sizes = [], []
    for start, stop, block in _blocks(texts, first_T[rows]):
        hashes, offsets = _shingles(block)
        short = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
        row_of = np.repeat(np.arange(stop - start), np.diff(offsets))
        keys = np.unique(row_of << _BITS | short)
        elements.append((keys & (2**_BITS - 1)).astype(np.int32))
        sizes.append(np.bincount(keys >> _BITS, minlength=stop - start))
    columns = np.concatenate(elements)
    size_n = np.concatenate(sizes)
    ends = np.concatenate([[0], np.cumsum(size_n)])
    ones = np.broadcast_to(np.int8(1), len(columns)).copy()
    sets = csr_array((ones, columns, ends), shape=(len(rows), 2**_BITS))
    sets.has_sorted_indices = True
    sets.has_canonical_format = True
    similarity = np.empty(len(candidates_P2))
    for start in range(0, len(candidates_P2), _PAIRS):
        left, right = position_P2[start : start + _PAIRS].T
        both = np.diff(sets[left].multiply(sets[right]).tocsr().indptr)
        either = size_n[left] + size_n[right] - both
        similarity[start : start + _PAIRS] = both / either
    kept = similarity >= jaccard
    return candidates_P2[kept], similarity[kept]
