"""The section of an evaluation report that shades the words of its most costly mistakes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ray_mlc.report.page import MARKS, Part, Passage, Piece, Section

if TYPE_CHECKING:
    from ray_mlc.evaluation.mistakes import Mistake
    from ray_mlc.evaluation.study import Study
    from ray_mlc.model.explain import Explanation, WordShare

TEXT_SHOWN = 1_200
"""Characters of a text that are shown: those in which most is said."""
NAMED = 6
"""Words for a label, and against it, that are named with their shares."""
STRENGTHS = (0.1, 0.3, 0.55, 0.8)
"""Shares, of the largest one of the text, from which on a mark is so strong; one for each."""
assert len(STRENGTHS) == MARKS


def explanations(
    found: Study,
    explained: Sequence[tuple[Mistake, Explanation]],
    ids: Sequence[str],
    texts: Sequence[str],
    *,
    wanted: int,
) -> Section:
    """Each mistake with its text, the words shaded by what they did for the label.

    Args:
        found: What the mistakes are of.
        explained: The most costly ones first.
        ids: Id of each document.
        texts: Text of each document.
        wanted: Mistakes that there were to explain.
    """
    title = "Why: the words behind the most costly mistakes"
    if not explained:
        why = "There was no time to explain any." if wanted else "There was none to explain."
        return Section(title, why)
    passages: list[Part] = [_legend()]
    for mistake, explanation in explained:
        what = "missed" if mistake.missed else "false alarm"
        threshold = float(found.thresholds_L[mistake.label])
        facts = f"score {mistake.score:.4f}, threshold {threshold:.4f}; logit "
        facts += f"{explanation.empty_logit:+.2f} without words, {explanation.logit:+.2f} with them"
        if explanation.window:
            facts += f", in window {explanation.window + 1}"
        passages.append(
            Passage(
                f"{what}: {explanation.label} · {ids[mistake.document]}",
                facts,
                shaded(texts[mistake.document], explanation.words),
                _named(explanation),
            )
        )
    words = "What each word did to the logit of the label that was missed or wrongly given. "
    words += "A word's share is a fact of this model, not of the language: it says where to look."
    if len(explained) < wanted:
        words += f" {len(explained)} of {wanted} were explained in the time there was."
    return Section(title, words, passages)


def _legend() -> Passage:
    pieces = [Piece("speaks for the label", MARKS), Piece(" · "), Piece("a little", 1)]
    pieces += [Piece(" · "), Piece("speaks against it", -MARKS), Piece(" · ")]
    pieces.append(Piece("a little", -1))
    facts = "Solid underlines: for; dotted ones: against. Shades are relative to the text's "
    facts += "strongest word; the strongest are named with their shares of the logit."
    return Passage("How to read the shades", facts, pieces)


def _named(explanation: Explanation) -> list[tuple[str, str]]:
    """The strongest words for and against, in words."""
    terms = [(term.text, term.share) for term in explanation.terms or explanation.words]
    said = []
    for name, sign in (("for:", 1), ("against:", -1)):
        ranked = sorted((term for term in terms if sign * term[1] > 0), key=lambda t: -abs(t[1]))
        named = " · ".join(
            f"{' '.join(text.split())} {share:+.2f}" for text, share in ranked[:NAMED]
        )
        said.append((name, named or "none"))
    return said


def shaded(text: str, words: Sequence[WordShare]) -> list[Piece]:
    """The text in pieces, marked where words have a share; of a long one where they are largest.

    Args:
        text: The whole text.
        words: In the order of the text; those that begin before another ends are cut.
    """
    most = max((abs(word.share) for word in words), default=0.0) or 1.0
    low, high = _stretch(text, words)
    pieces = [Piece("… ")] if low else []
    place = low
    for word in words:
        start, stop = max(word.start, place), min(word.start + len(word.text), high)
        strength = bisect_right(STRENGTHS, abs(word.share) / most)
        if start >= stop or not strength:
            continue
        if start > place:
            pieces.append(Piece(text[place:start]))
        mark = strength if word.share > 0 else -strength
        pieces.append(Piece(text[start:stop], mark, f"{word.share:+.3f}"))
        place = stop
    if place < high:
        pieces.append(Piece(text[place:high]))
    if high < len(text):
        pieces.append(Piece(" …"))
    return pieces


def _stretch(text: str, words: Sequence[WordShare]) -> tuple[int, int]:
    """Where the `TEXT_SHOWN` characters begin and end whose words have the largest shares."""
    if len(text) <= TEXT_SHOWN or not words:
        return 0, min(len(text), TEXT_SHOWN)
    sums = list(accumulate((abs(word.share) for word in words), initial=0.0))
    stops = [word.start + len(word.text) for word in words]
    best, first, last = -1.0, 0, 0
    for at, word in enumerate(words):
        end = max(bisect_right(stops, word.start + TEXT_SHOWN), at + 1)
        if sums[end] - sums[at] > best + 1e-12:
            best, first, last = sums[end] - sums[at], at, end
    # the words that matter in the middle of what is shown
    room = max(0, TEXT_SHOWN - (stops[last - 1] - words[first].start))
    low = max(0, words[first].start - room // 2)
    low = 0 if low < TEXT_SHOWN // 20 else low
    return low, min(len(text), low + TEXT_SHOWN)
