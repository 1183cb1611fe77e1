"""Tests that stay valid while seeds are added.

Rule A, declared looks: each look k spends its share of alpha, its weight w. p* = min p/w over the looks reached; by the
union bound P(any p ≤ alpha·w) ≤ alpha·Σw, whatever is stopped when and however the comparisons depend on each other.

Rule B, no plan: a t statistic's e-process, with a normal mixture on the effect in units of sd (Wang & Ramdas 2025,
arXiv:2310.03722). P(E ever ≥ 1/alpha) ≤ alpha, so 1/(running maximum) is a p-value at any time.

Rule C, a declared precision: Stein's two stages (1945, Ann. Math. Stat. 16:243).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.stats.intervals import SMALLEST_P, summarise, t_quantile

LOOKS = (3, 5, 8, 12, 20)  # seeds per arm
WEIGHTS = (0.05, 0.15, 0.20, 0.20, 0.40)  # each look's share of alpha

# the mixture: variances of the effect in units of sd², from far below the noise to far above it
_VARIANCES = (0.25, 1.0, 4.0, 16.0, 64.0)


def look_p(ps: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Return Rule A's p* = min p/w over the looks reached, at most 1; None where no look has a p-value."""
    if len(ps) > len(weights):
        raise ValueError(f"{len(ps)} looks, and weights for {len(weights)}")
    shares = [p / weight for p, weight in zip(ps, weights, strict=False) if p is not None]
    return min(1.0, *shares) if shares else None


def log_e_value(t: float, n: int, variance: float) -> float:
    """Return the logarithm of Rule B's e-value for one variance g of the effect, of a t statistic over n differences.

    e = (1 + ng)^−½ · [(1 + t²/ν) / (1 + t²/(ν(1 + ng)))]^((ν + 1)/2) with ν = n − 1.
    """
    df, shrink = n - 1, math.log1p(n * variance)
    return (n * (math.log1p(t * t / df) - math.log1p(t * t / (df * math.exp(shrink)))) - shrink) / 2


def anytime_p(differences: Sequence[float]) -> float | None:
    """Return Rule B's p-value after these differences, in the order their seeds finished: 1 / max E over all n so far.

    None for fewer than two, and where they have no spread.
    """
    if len(differences) < 2 or not summarise(differences).sd:
        return None
    evidence = 0.0  # E before the first seed is 1
    for n in range(2, len(differences) + 1):
        so_far = summarise(differences[:n])
        if so_far.se:  # leaving a moment out of the maximum only makes the test stricter
            evidence = max(evidence, _log_e(so_far.mean / so_far.se, n))
    return max(math.exp(-evidence), SMALLEST_P)


def anytime_interval(differences: Sequence[float], alpha: float) -> tuple[float, float] | None:
    """Return Rule B's interval of level 1 − alpha, which holds at every n at once: mean ± t*·sd/√n.

    t* is ``anytime_t``'s. None where nothing bounds the mean: no spread, or too few differences for this alpha.
    """
    if len(differences) < 2:
        return None
    sample, t = summarise(differences), anytime_t(len(differences), alpha)
    if not sample.se or t is None:
        return None
    return sample.mean - t * sample.se, sample.mean + t * sample.se


def anytime_t(n: int, alpha: float) -> float | None:
    """Return the t statistic at which Rule B's E reaches 1/alpha after n differences; None where no t does."""
    target = -math.log(alpha)
    low, high = 0.0, 1.0
    while _log_e(high, n) < target:
        low, high = high, 2 * high
        if high > 1e100:  # E is bounded by the mean of (1 + ng)^(ν/2): at n = 2 no t is enough for alpha = 0.05
            return None
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return high
        low, high = (middle, high) if _log_e(middle, n) < target else (low, middle)


def stein_size(differences: Sequence[float], half_width: float, alpha: float) -> int:
    """Return Rule C's number of seeds from a pilot's n₀ differences: max(n₀, ⌈(t(1 − alpha/2, n₀ − 1)·s/h)²⌉)."""
    pilot = summarise(differences)
    if pilot.sd is None or not half_width > 0:
        raise ValueError("a precision needs a pilot of two seeds or more and a half-width above zero")
    ratio = t_quantile(1 - alpha / 2, pilot.n - 1) * pilot.sd / half_width
    return max(pilot.n, math.ceil(min(ratio, 1e100) ** 2))  # what is almost divergence has a square beyond every float


def _log_e(t: float, n: int) -> float:
    """Return log E, E the mean of the e-values over the mixture."""
    logs = [log_e_value(t, n, variance) for variance in _VARIANCES]
    highest = max(logs)
    return highest + math.log(math.fsum(math.exp(log - highest) for log in logs) / len(logs))


__all__ = ["LOOKS", "WEIGHTS", "anytime_interval", "anytime_p", "anytime_t", "log_e_value", "look_p", "stein_size"]
