"""Counts: intervals of a share, and what one run says about two networks."""

from __future__ import annotations

import math


def clopper_pearson(k: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return the exact interval of level 1 − alpha for a share seen k times in n (1934, Biometrika 26:404)."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is no share")
    from scipy.special import betaincinv  # late, as few commands compute

    low = float(betaincinv(k, n - k + 1, alpha / 2)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - alpha / 2)) if k < n else 1.0
    return low, high


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p-value that two networks err alike: b examples only one gets right, c only the other.

    Binomial(b + c, ½), twice the smaller tail. It compares these two networks, and not what they were made to compare.
    """
    if min(b, c) < 0:
        raise ValueError(f"{b} and {c} are no counts")
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def accuracy_noise(accuracy: float, examples: int) -> float:
    """Return the standard deviation over seeds that a test set of this size alone gives an accuracy: √(error/2N).

    Fractions, not percent. Exact for a calibrated two-class task, a floor otherwise (Jordan, ICLR 2024, eq. 6).
    """
    if not 0 <= accuracy <= 1 or examples < 1:
        raise ValueError(f"an accuracy of {accuracy} over {examples} examples: give a fraction of one example or more")
    return math.sqrt((1 - accuracy) / (2 * examples))


__all__ = ["accuracy_noise", "clopper_pearson", "mcnemar"]
