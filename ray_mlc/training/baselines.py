"""Fit the baseline that an encoder has to beat: TF-IDF and one logistic regression per label.

Words and word pairs are counted, dampened (1 + log of the count), weighted by how rare they are,
and scaled to unit length per document; each label then gets a linear model of its own. There are
no word orders and no pretrained weights here, and fitting takes seconds: if a fine-tuned encoder
does not beat these scores, it has not learned to read.

Thousands of labels take as many fits, each over the same sparse matrix: time grows with the labels,
memory with the matrix, and the F × L weights, which are dense, with the words kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import DataError
from ray_mlc.model.tfidf import TfidfModel, TfidfTokenizer, tfidf_rows, words_and_pairs

MAX_WEIGHTS = 2**27
"""Weights of all labels together, unless more are asked for: 512 MiB in every process that scores.
"""
SURE = 100.0
"""Logit of a label that never varied: its score is 0 or 1 exactly, and finite as logits must be."""
_BLOCK_DOCUMENTS = 1_024  # texts made rows of at a time: their ids stay below 2**31 in any case
_COPIES_BYTES = 4 * 2**30
"""What the copies of the matrix may take that liblinear makes, one for each label in the works."""
_NODE_BYTES = 16  # liblinear's form of an entry


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
            from several threads.
        labels: How many labels there are.
        C: Inverse strength of the L2 penalty; larger fits closer.
        min_df: Documents that must hold a word or word pair for it to count.
        max_features: Keep so many words and pairs, those of the most documents; None: as many as
            `MAX_WEIGHTS` has room for.
        workers: Labels that are fitted at a time, if memory allows.
        progress: Called with the labels that are done.

    Raises:
        DataError: If there is not a target per text, one is none of 0, 1, NaN, or no word is in
            `min_df` documents.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    most = max_features_for(labels) if max_features is None else max_features
    vocabulary, idf_F = _vocabulary(texts, min_df=min_df, max_features=most)
    features_NF = _features(texts, vocabulary, idf_F)
    weights_FL = np.zeros((len(vocabulary), labels), dtype=np.float32)
    bias_L = np.zeros(labels, dtype=np.float32)

    def fit(label: int) -> None:
        targets_N = targets_of(label)
        _check_targets(targets_N, len(texts))
        weights_FL[:, label], bias_L[label] = _fit_label(features_NF, targets_N, C)

    room = _COPIES_BYTES // (_NODE_BYTES * max(1, features_NF.nnz + len(texts)))
    # threads: liblinear lets go of Python's lock, and processes would need the matrix each
    pool = ThreadPoolExecutor(max(1, min(workers, room, labels)))
    # one BLAS thread: liblinear's many short vector operations gain nothing from more, and threads
    # that wait for one another on a busy machine made the fit 3 to 13 times slower
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            for done in as_completed([pool.submit(fit, label) for label in range(labels)]):
                done.result()
                if progress is not None:
                    progress(1)
        finally:
            # on Ctrl-C the labels that were not begun are dropped
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
    """TF-IDF rows as scoring makes them, in float64, which is what liblinear works in."""
    from scipy.sparse import vstack

    tokenizer = TfidfTokenizer(vocabulary)
    blocks = []
    for start in range(0, len(texts), _BLOCK_DOCUMENTS):
        ids = tokenizer.encode(texts[start : start + _BLOCK_DOCUMENTS])
        blocks.append(tfidf_rows(ids.windows(np.arange(len(ids))), idf_F))
    return vstack(blocks, format="csr")


def _fit_label(
    features_NF: Any, targets_N: NDArray[np.float32], C: float
) -> tuple[NDArray[np.float64] | float, float]:
    """Weights, shape [F], and bias of one label; zero and ±`SURE` if it never varies."""
    from sklearn.linear_model import LogisticRegression

    annotated_N = ~np.isnan(targets_N)
    positive_N = targets_N[annotated_N] == 1
    positives = int(np.count_nonzero(positive_N))
    if positives in (0, len(positive_N)):
        return 0.0, SURE if positives else -SURE
    rows_AF = features_NF if annotated_N.all() else features_NF[annotated_N]
    # liblinear's Newton method in the primal: the fastest of scikit-learn's solvers on sparse
    # text at equal quality, and free of randomness
    model = LogisticRegression(C=C, solver="liblinear", max_iter=1_000).fit(rows_AF, positive_N)
    return model.coef_[0], float(model.intercept_[0])


def _check_targets(targets_N: NDArray[np.float32], texts: int) -> None:
    if targets_N.shape != (texts,):
        raise DataError(f"targets have shape {targets_N.shape}: expected one for each of {texts}")
    known = np.count_nonzero((targets_N == 0) | (targets_N == 1))
    if known + np.count_nonzero(np.isnan(targets_N)) != targets_N.size:
        raise DataError("targets hold another value than 1, 0 and NaN (not annotated)")
