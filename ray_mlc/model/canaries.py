"""Canaries: texts with known scores that every actor must reproduce before it takes work.

They catch what no exception reports: other weights under the same name, a kernel that is wrong on
this CPU or GPU, a tokenizer that cuts differently, a precision that moves labels. Neutral sentences
and texts drawn from the tokenizer's own vocabulary at all lengths; never a user's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ModelError
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules, decide
from ray_mlc.model.folder import Canaries
from ray_mlc.model.tokenization import AnyTokenizer

SENTENCES = (
    "The meeting starts at nine.",
    "Please close the door.",
    "Water boils at one hundred degrees.",
    "The report has twelve pages.",
    "She lives on the third floor.",
    "Nothing was found in the box.",
    "Is this seat taken?",
    "The train to the coast leaves from platform two, and it takes about four hours.",
    "A short note.",
    "Yes",
    "2026-01-01 12:00",
    "THE SAME SENTENCE IN CAPITALS",
    "Prices rose by 3.5 % in the second quarter, after a fall of 1.2 % in the first.",
    "Der Zug fährt um acht Uhr ab.",
    "図書館は九時に開きます。",
    "The committee met twice, once in spring and once in autumn; the minutes were approved.",
)
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Words of the vocabulary texts; those beyond the model's maximum are left out."""
REPEATS_UP_TO = 64
"""Lengths up to this are drawn three times, longer ones once: they cost most."""
LONGEST_WINDOWS = 8
"""Windows of the longest canary at most."""
MARKERS = 32
"""Special tokens that get a sentence of their own."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.05, "int8": 0.05}
"""Largest score difference; int8 is compared with its own scores, as measured when it was made.
Float32 kernels of other processors differ by a few 1e-6."""
MAX_FLIPS = 0.005
"""Largest share of labels that come out differently."""


@dataclass(frozen=True)
class CanaryReport:
    """How an engine's scores compare with the recorded ones."""

    max_difference: float
    """Largest absolute difference of a score; NaN if a score is not finite."""
    flips: int
    """Labels that come out differently."""
    cells: int
    """Labels compared."""
    dtype: str
    """Precision of the engine."""

    @property
    def holds(self) -> bool:
        """Whether the engine may be used."""
        near = bool(self.max_difference <= TOLERANCE[self.dtype])  # False for NaN
        return near and self.flips <= MAX_FLIPS * self.cells

    def __str__(self) -> str:
        return (
            f"largest score difference {self.max_difference:.2g} "
            f"(limit {TOLERANCE[self.dtype]:g}), {self.flips} of {self.cells} labels differ "
            f"(limit {MAX_FLIPS:.1%})"
        )


def canary_texts(
    tokenizer: AnyTokenizer, *, special_tokens: Sequence[str] = (), seed: int = 0
) -> list[str]:
    """Neutral sentences, then vocabulary texts of all lengths that the model takes.

    Longer ones follow if it reads windows.

    Args:
        tokenizer: Says what the vocabulary is.
        special_tokens: Markers that training has made tokens of their own; a sentence for each of
            the first ones shows that they still are.
        seed: Of the choice of words.
    """
    rng = np.random.default_rng(seed)
    # pairs of words are pieces of TF-IDF
    words = [
        piece
        for piece in tokenizer.vocabulary
        if len(piece) > 1 and all(word.isalpha() for word in piece.split(" "))
    ]
    words = words or [piece for piece in tokenizer.vocabulary if piece.strip()]
    texts = list(SENTENCES)
    for length in LENGTHS:
        if length <= tokenizer.max_tokens:
            for _ in range(3 if length <= REPEATS_UP_TO else 1):
                texts.append(" ".join(rng.choice(words, size=length)))
    if tokenizer.windows is not None:
        # of two windows, of several, and of more than are read
        for windows in (1.5, 3.5, tokenizer.windows.max_windows + 0.5):
            size = int(min(windows, LONGEST_WINDOWS) * tokenizer.max_tokens)
            texts.append(" ".join(rng.choice(words, size=size)))
    marked = special_tokens[:MARKERS]
    return texts + [f"The letter {marker} was sent to{marker}in May." for marker in marked]


def record_canaries(classifier: Classifier, *, special_tokens: Sequence[str] = ()) -> Canaries:
    """Score the canaries; meant for the float32 engine of the freshly trained weights."""
    texts = canary_texts(classifier.tokenizer, special_tokens=special_tokens)
    scores_NL = classifier.predict_proba(texts)
    return Canaries(texts=texts, scores=[[float(score) for score in row] for row in scores_NL])


def check_canaries(classifier: Classifier, canaries: Canaries, rules: Rules) -> CanaryReport:
    """Compare an engine's scores with the recorded ones."""
    scores_NL = classifier.predict_proba(canaries.texts)
    return compare_scores(scores_NL, canaries.scores, rules, dtype=classifier.engine.dtype)


def compare_scores(
    scores_NL: NDArray[np.float32], recorded: Sequence[Sequence[float]], rules: Rules, *, dtype: str
) -> CanaryReport:
    """Compare scores of canaries with those that are recorded.

    Raises:
        ModelError: If there are others of them.
    """
    expected_NL = np.array(recorded, np.float32)
    if scores_NL.shape != expected_NL.shape:
        raise ModelError(
            f"canaries.json holds scores of shape {expected_NL.shape}, the model gives "
            f"{scores_NL.shape}: the folder's files do not belong together"
        )
    difference = float(np.abs(scores_NL - expected_NL).max())
    differs = decide(scores_NL, rules) != decide(expected_NL, rules)
    return CanaryReport(difference, int(differs.sum()), differs.size, dtype)
