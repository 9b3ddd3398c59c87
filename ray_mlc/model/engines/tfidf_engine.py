"""TF-IDF on CPU: sparse rows times the weights of all labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_mlc.labels import LabelSet
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.engines.protocol import OneByOne, OutOfMemoryError
from ray_mlc.model.tfidf import MAX_TOKENS, TfidfModel, TfidfTokenizer, tfidf_rows

BATCH_COST = 16_384
"""What making a sparse matrix costs besides its entries, in ids: about a millisecond."""


class TfidfEngine(OneByOne):
    """The linear models of a TF-IDF folder, in float32 on one core."""

    name, device, dtype = "tfidf", "cpu", "float32"
    packed, batch_cost = True, BATCH_COST

    def __init__(self, model: TfidfModel) -> None:
        """Take over a model."""
        self.model = model

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Run one batch; see `Engine.logits`. Dense is only what is returned."""
        try:
            rows_BF = tfidf_rows(ids, self.model.idf_F).astype(np.float32)
            logits_BL: NDArray[np.float32] = rows_BF @ self.model.weights_FL
            logits_BL += self.model.bias_L
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from None
        return logits_BL


def tfidf_classifier(model: TfidfModel, label_set: LabelSet) -> Classifier:
    """A model in memory, ready to score."""
    return Classifier(label_set, TfidfTokenizer(model.vocabulary), TfidfEngine(model), MAX_TOKENS)
