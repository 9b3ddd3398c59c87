"""How far two distributions of scores are apart, label by label.

    psi   population stability index: Σ (q − p) ln(q / p) over bins. Below 0.1 is commonly called
          stable, above 0.25 shifted (Siddiqi 2006). It has no upper end.
    js    Jensen-Shannon divergence, in bits: 0 for equal distributions, 1 for disjoint ones
          (Lin 1991).

Bins are those of `model.distribution`. Below the floor of a sparse output nobody knows the scores:
its bins there are taken together, on both sides. Half a document is added to each bin, so that an
empty one is rare and not impossible.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ray_mlc.model.distribution import EDGES

_SMOOTHING = 0.5
CHANCE = 4.0
"""Standard deviations that chance is given: one in 30,000 labels that have not moved lies beyond,
so that thousands of them raise no alarm."""
_NORMAL_95 = 1.959964


def merge_unknown(counts_LB: NDArray[np.int64], *, floor: float) -> NDArray[np.int64]:
    """Rows in each bin, those below the floor and the one that it cuts taken as one.

    Args:
        counts_LB: See `model.distribution.ScoreCounts`.
        floor: Scores below it are not known.
    """
    whole = int(np.searchsorted(np.array(EDGES, np.float32), np.float32(floor), side="left"))
    if floor <= 0:
        return counts_LB
    # bins 0 to `whole` begin below the floor
    lowest = counts_LB[:, : whole + 1].sum(axis=1, keepdims=True)
    return np.concatenate([lowest, counts_LB[:, whole + 1 :]], axis=1)


def _shares(counts_LB: NDArray[np.int64]) -> NDArray[np.float64]:
    smooth_LB = counts_LB + _SMOOTHING
    shares: NDArray[np.float64] = smooth_LB / smooth_LB.sum(axis=1, keepdims=True)
    return shares


def psi(a_LB: NDArray[np.int64], b_LB: NDArray[np.int64]) -> NDArray[np.float64]:
    """Population stability index of each label, shape [L]."""
    p_LB, q_LB = _shares(a_LB), _shares(b_LB)
    found_L: NDArray[np.float64] = ((q_LB - p_LB) * np.log(q_LB / p_LB)).sum(axis=1)
    return found_L


def jensen_shannon(a_LB: NDArray[np.int64], b_LB: NDArray[np.int64]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of each label in bits, shape [L]."""
    p_LB, q_LB = _shares(a_LB), _shares(b_LB)
    middle_LB = (p_LB + q_LB) / 2
    both = (share_LB * np.log2(share_LB / middle_LB) for share_LB in (p_LB, q_LB))
    found_L: NDArray[np.float64] = sum(both).sum(axis=1) / 2  # type: ignore[union-attr]
    return found_L


def psi_by_chance(a_LB: NDArray[np.int64], b_LB: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the index hardly exceeds where nothing has moved, shape [L].

    Then it is nearly (1/n + 1/m) times a chi-squared variable, with a degree of freedom less than
    there are bins in use (Yurdakul 2018); its quantile is Wilson and Hilferty's.
    """
    degrees_L = np.maximum(((a_LB + b_LB) > 0).sum(axis=1) - 1, 1)
    ninth_L = 2 / (9 * degrees_L)
    quantile_L = degrees_L * (1 - ninth_L + CHANCE * np.sqrt(ninth_L)) ** 3
    sizes_L = (1 / np.maximum(counts_LB.sum(axis=1), 1) for counts_LB in (a_LB, b_LB))
    found_L: NDArray[np.float64] = quantile_L * sum(sizes_L)
    return found_L


def rate_interval(given: int, rows: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a rate; None of no rows."""
    if not rows:
        return None
    share, z2 = given / rows, _NORMAL_95**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    spread = share * (1 - share) / rows + z2 / (4 * rows * rows)
    half = _NORMAL_95 * math.sqrt(spread) / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def rates_apart(
    rates: NDArray[np.float64], total: int, others: NDArray[np.float64], other_total: int | None
) -> NDArray[np.float64]:
    """Standard errors by which each rate lies above the other: near 0 by chance, 4.5 hardly ever.

    Args:
        rates: Of these rows.
        total: How many they are.
        others: Of other rows.
        other_total: How many those are; None: nobody knows, and the other rate counts as exact.
    """
    if not total or other_total == 0:
        return np.zeros(len(rates))
    if other_total is None:
        pooled, spread = others, 1 / total
    else:
        pooled = (rates * total + others * other_total) / (total + other_total)
        spread = 1 / total + 1 / other_total
    errors = np.sqrt(pooled * (1 - pooled) * spread)
    # a rate of 0 or 1 that counts as exact has no error: one row then counts as one
    errors = np.maximum(errors, 1 / total if other_total is None else 1e-300)
    result: NDArray[np.float64] = (rates - others) / errors
    return result
