"""The baseline that an encoder has to beat: TF-IDF and one logistic regression per label.

Words and word pairs are counted, dampened (1 + log of the count), weighted by how rare they are,
and scaled to unit length per document; each label then gets a linear model of its own. There are
no word orders and no pretrained weights here, and fitting takes seconds: if a fine-tuned encoder
does not beat these scores, it has not learned to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import DataError

_BLOCK_DOCUMENTS = 8_192  # texts turned into TF-IDF rows at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class TfidfBaseline:
    """A fitted TF-IDF vocabulary and a linear model per label; made by `fit`."""

    vectorizer: Any
    """The fitted `TfidfVectorizer`: texts to float32 rows of F features."""
    weights_FL: NDArray[np.float32]
    """Weight of each feature for each label, shape [F, L]; 0 for a label that never varied."""
    bias_L: NDArray[np.float32]
    """Log-odds of an empty text, shape [L]; ±infinity for a label that never varied."""

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        targets_NL: NDArray[np.float32],
        *,
        C: float = 15.0,
        min_df: int = 2,
        max_features: int | None = None,
    ) -> TfidfBaseline:
        """Learn the vocabulary and the L models. The same input gives the same model.

        A label with one value in all its annotated documents gets that value as its score
        everywhere; one that nobody annotated gets 0.

        Args:
            texts: N documents.
            targets_NL: 1, 0, or NaN for "not annotated", shape [N, L]. A document without
                annotation for a label takes no part in that label's model.
            C: Inverse strength of the L2 penalty; larger fits closer.
            min_df: Documents that must hold a word or word pair for it to count.
            max_features: Keep the most frequent words and pairs only, so that the L weights of
                each fit into memory; None: all.

        Raises:
            DataError: If there is not a row of targets per text, a target is none of 0, 1, NaN,
                or no word is in `min_df` documents.
        """
        # one process, one label at a time: OneVsRestClassifier with n_jobs > 1 fails in
        # scikit-learn 1.9.1 where joblib memory-maps the sparse matrix
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        _check_targets(texts, targets_NL)
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=min_df,
            max_features=max_features,
            dtype=np.float32,
        )
        try:
            features_NF = vectorizer.fit_transform(texts)
        except ValueError as error:  # the one that it raises for an empty vocabulary
            raise DataError(
                f"no word is in {min_df} of the {len(texts)} texts: expected more text, or a "
                "lower min_df"
            ) from error
        labels = targets_NL.shape[1]
        weights_FL = np.zeros((features_NF.shape[1], labels), dtype=np.float32)
        bias_L = np.zeros(labels, dtype=np.float32)
        # one BLAS thread: liblinear's many short vector operations gain nothing from more, and
        # threads that wait for one another on a busy machine made the fit 3 to 13 times slower
        with threadpool_limits(limits=1, user_api="blas"):
            for label in range(labels):
                weights_F, bias_L[label] = _fit_label(features_NF, targets_NL[:, label], C)
                weights_FL[:, label] = weights_F
        return cls(vectorizer=vectorizer, weights_FL=weights_FL, bias_L=bias_L)

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores in [0, 1] of N texts × L labels; one without a known word gets the bias alone."""
        from scipy.special import expit

        scores_NL = np.empty((len(texts), len(self.bias_L)), dtype=np.float32)
        for start in range(0, len(texts), _BLOCK_DOCUMENTS):
            block = slice(start, start + _BLOCK_DOCUMENTS)
            features_BF = self.vectorizer.transform(texts[block])
            expit(features_BF @ self.weights_FL + self.bias_L, out=scores_NL[block])
        return scores_NL


def _fit_label(
    features_NF: Any, targets_N: NDArray[np.float32], C: float
) -> tuple[NDArray[np.float32] | float, float]:
    """Weights, shape [F], and bias of one label; zero and ±infinity if it never varies."""
    from sklearn.linear_model import LogisticRegression

    annotated_N = ~np.isnan(targets_N)
    positive_N = targets_N[annotated_N] == 1
    positives = int(np.count_nonzero(positive_N))
    if positives in (0, len(positive_N)):
        return 0.0, np.inf if positives else -np.inf
    rows_AF = features_NF if annotated_N.all() else features_NF[annotated_N]
    # liblinear's Newton method in the primal: the fastest of scikit-learn's solvers on sparse
    # text at equal quality, and free of randomness
    model = LogisticRegression(C=C, solver="liblinear", max_iter=1_000).fit(rows_AF, positive_N)
    return model.coef_[0], float(model.intercept_[0])


def _check_targets(texts: Sequence[str], targets_NL: NDArray[np.float32]) -> None:
    if targets_NL.ndim != 2 or len(targets_NL) != len(texts):
        raise DataError(f"targets have shape {targets_NL.shape}: expected {len(texts)} × labels")
    known = np.count_nonzero((targets_NL == 0) | (targets_NL == 1))
    if known + np.count_nonzero(np.isnan(targets_NL)) != targets_NL.size:
        raise DataError("targets hold another value than 1, 0 and NaN (not annotated)")
