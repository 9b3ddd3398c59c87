"""Fit the baseline that an encoder has to beat: TF-IDF and one logistic regression per label.

Words and word pairs are counted, dampened (1 + log of the count), weighted by how rare they are,
and scaled to unit length per document; each label then gets a linear model of its own. There are
no word orders and no pretrained weights here, and fitting takes seconds: if a fine-tuned encoder
does not beat these scores, it has not learned to read.

Thousands of labels take as many fits over the same sparse matrix, some of them at a time: time
grows with the labels, memory with the matrix, and the F × L weights, which are dense, with the
words kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import DataError
from ray_mlc.model.tfidf import TfidfModel, TfidfTokenizer, tfidf_rows, words_and_pairs
from ray_mlc.training.logistic import coarse, fit_logistic

MAX_WEIGHTS = 2**27
"""Weights of all labels together, unless more are asked for: 512 MiB in every process that scores.
"""
SURE = 100.0
"""Logit of a label that never varied: its score is 0 or 1 exactly, and finite as logits must be."""
_BLOCK_DOCUMENTS = 1_024  # texts made rows of at a time: their ids stay below 2**31 in any case
_BLOCKS_BYTES = 4 * 2**30
"""What the blocks of labels may take that are fitted at a time, beside the matrix."""
_BLOCK_BYTES = 2**30
_BLOCK_LABELS = 16  # more share the reads of the matrix no better, and fill the caches
_LABEL_BYTES = 8 * 10  # float64: what a label keeps for each text, and for each word, of a step


def fit_tfidf(
    texts: Sequence[str],
    targets_of: Callable[[int], NDArray[np.float32]],
    labels: int,
    *,
    C: float = 15.0,
    min_df: int = 2,
    max_features: int | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> TfidfModel:
    """Learn the vocabulary and the L models. The same input gives the same model.

    A label with one value in all its annotated documents gets that value as its score everywhere;
    one that nobody annotated gets 0.

    Args:
        texts: N documents.
        targets_of: Targets of a label by its column, shape [N]: 1, 0, or NaN for "not annotated".
            A document without annotation for a label takes no part in that label's model. Called
            twice for each label, and from several threads.
        labels: How many labels there are.
        C: Inverse strength of the L2 penalty; larger fits closer.
        min_df: Documents that must hold a word or word pair for it to count.
        max_features: Keep so many words and pairs, those of the most documents; None: as many as
            `MAX_WEIGHTS` has room for.
        workers: Blocks of labels that are fitted at a time, if memory allows.
        progress: Called with the labels that are done.

    Raises:
        DataError: If there is not a target per text, one is none of 0, 1, NaN, or no word is in
            `min_df` documents.
    """
    most = max_features_for(labels) if max_features is None else max_features
    vocabulary, idf_F = _vocabulary(texts, min_df=min_df, max_features=most)
    features_NF = _features(texts, vocabulary, idf_F)
    coarse_NF = coarse(features_NF)
    weights_FL = np.zeros((len(vocabulary), labels), dtype=np.float32)
    rates_L = np.array([_rate(targets_of(label), len(texts)) for label in range(labels)])
    bias_L = np.where(rates_L == 1, SURE, -SURE).astype(np.float32)
    varying = np.flatnonzero((rates_L > 0) & (rates_L < 1))
    stop = Event()

    def fit(block: NDArray[np.intp]) -> int:
        targets_NK = np.stack([targets_of(label) for label in block.tolist()], axis=1)
        weights_FL[:, block], bias_L[block] = fit_logistic(
            features_NF, targets_NK, C=C, coarse_NF=coarse_NF, stopped=stop.is_set
        )
        return len(block)

    # alike labels take alike many steps, and a block as many as its slowest; the most frequent
    # ones, which take longest, do not come last
    ordered = varying[np.argsort(-rates_L[varying], kind="stable")]
    blocks, room = _blocks(ordered, sum(features_NF.shape))
    if progress is not None and len(varying) < labels:
        progress(labels - len(varying))
    # threads: sparse products let go of Python's lock, and processes would need the matrix each
    pool = ThreadPoolExecutor(max(1, min(workers, room)))
    try:
        for done in as_completed([pool.submit(fit, block) for block in blocks]):
            fitted = done.result()
            if progress is not None:
                progress(fitted)
    finally:
        # on Ctrl-C the labels that were not begun are dropped, and the others end early
        stop.set()
        pool.shutdown(cancel_futures=True)
    return TfidfModel(vocabulary=vocabulary, idf_F=idf_F, weights_FL=weights_FL, bias_L=bias_L)


def max_features_for(labels: int) -> int:
    """Words and pairs that `MAX_WEIGHTS` has room for."""
    return max(1, MAX_WEIGHTS // labels)


def _vocabulary(
    texts: Sequence[str], *, min_df: int, max_features: int
) -> tuple[list[str], NDArray[np.float32]]:
    """Words and pairs of enough documents, sorted, and how rare each is."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(set(words_and_pairs(text)))
    kept = [(-count, name) for name, count in found.items() if count >= min_df]
    if not kept:
        raise DataError(
            f"no word is in {min_df} of the {len(texts)} texts: expected more text, or a lower "
            "min_df"
        )
    # of those of equally many documents the first by name: no order of rows or of hashes decides
    names = sorted(name for _, name in sorted(kept)[:max_features])
    counts_F = np.array([found[name] for name in names])
    idf_F = np.log((1 + len(texts)) / (1 + counts_F)) + 1
    return names, idf_F.astype(np.float32)


def _features(texts: Sequence[str], vocabulary: Sequence[str], idf_F: NDArray[np.float32]) -> Any:
    """TF-IDF rows as scoring makes them, in float64, which is what the fit works in."""
    from scipy.sparse import vstack

    tokenizer = TfidfTokenizer(vocabulary)
    blocks = []
    for start in range(0, len(texts), _BLOCK_DOCUMENTS):
        ids = tokenizer.encode(texts[start : start + _BLOCK_DOCUMENTS])
        blocks.append(tfidf_rows(ids.windows(np.arange(len(ids))), idf_F))
    return vstack(blocks, format="csr")


def _blocks(labels: NDArray[np.intp], size: int) -> tuple[list[NDArray[np.intp]], int]:
    """Labels that are fitted together, and how many such blocks memory has room for at a time.

    `size` is that of the texts and the words together. Neither depends on the cores: where within
    the tolerance a label ends depends on its block.
    """
    fitting = max(1, _BLOCK_BYTES // (_LABEL_BYTES * size))
    # few labels go in small blocks, so that many cores have one each
    most = min(_BLOCK_LABELS, fitting, max(4, len(labels) // _BLOCK_LABELS))
    blocks = [labels[start : start + most] for start in range(0, len(labels), most)]
    return blocks, max(1, _BLOCKS_BYTES // (_LABEL_BYTES * size * most))


def _rate(targets_N: NDArray[np.float32], texts: int) -> float:
    """Share of a label's annotated documents that have it; 0 without any."""
    if targets_N.shape != (texts,):
        raise DataError(f"targets have shape {targets_N.shape}: expected one for each of {texts}")
    given, missing = int((targets_N == 1).sum()), int((targets_N == 0).sum())
    if given + missing + int(np.isnan(targets_N).sum()) != texts:
        raise DataError("targets hold another value than 1, 0 and NaN (not annotated)")
    return given / max(1, given + missing)
