"""The mean of replicates, and Student's t interval of paired differences.

Paired by seed, the interval is exact for any correlation between the arms and any two variances, given near-normal
differences (Student 1908, Biometrika 6:1). No bootstrap: at n = 3 a percentile interval is [min, max] and covers 75 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

# a spread this small beside the values is rounding: equal runs must not give an interval of width 1e-16
NEGLIGIBLE = 1e-12
# sums of ten thousand such values stay finite; whatever is larger has diverged
LARGEST = 1e300


@dataclass(frozen=True)
class Summary:
    """Of one arm's values: how many, their mean, and the sample standard deviation (ddof = 1), None for n = 1."""

    n: int
    mean: float
    sd: float | None

    @property
    def se(self) -> float | None:
        """The standard error of the mean."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


@dataclass(frozen=True)
class PairedInterval:
    """The mean of n differences d and its t interval: mean ± t(1 − alpha/2, n − 1) · sd/√n, with ``level`` 1 − alpha.

    ``low`` and ``high`` are None for n = 1, and where sd is zero: differences without noise say nothing about noise.
    """

    n: int
    mean: float
    sd: float | None
    se: float | None
    df: int
    low: float | None
    high: float | None
    level: float


def is_usable(value: float) -> bool:
    """Tell whether a value can be averaged: a finite number, and no larger than 1e300."""
    return abs(value) <= LARGEST  # False for NaN too


def summarise(values: Sequence[float]) -> Summary:
    """Return n, mean and standard deviation. Raises ValueError for no values, or for one that is not usable."""
    return _summary(values, scale=max(map(abs, _usable(values))))


def paired_interval(minuend: Sequence[float], subtrahend: Sequence[float], *, alpha: float = 0.05) -> PairedInterval:
    """Return the mean of ``minuend − subtrahend``, value by value, with its interval of level 1 − alpha.

    Raises ValueError for no pairs, for lists of unequal length, or for a value that is not usable.
    """
    # differences first, then their variance: two variances less a covariance would cancel
    differences = [a - b for a, b in zip(_usable(minuend), _usable(subtrahend), strict=True)]
    summary = _summary(differences, scale=max(map(abs, (*minuend, *subtrahend))))
    df = summary.n - 1
    low = high = None
    if summary.se:
        half = t_quantile(1 - alpha / 2, df) * summary.se
        low, high = summary.mean - half, summary.mean + half
    return PairedInterval(summary.n, summary.mean, summary.sd, summary.se, df, low, high, 1 - alpha)


def t_quantile(probability: float, df: int) -> float:
    """Return the value that Student's t with ``df`` degrees of freedom stays below with this probability."""
    return float(stdtrit(df, probability))


def _usable(values: Sequence[float]) -> Sequence[float]:
    if not values:
        raise ValueError("no values")
    if not all(map(is_usable, values)):
        raise ValueError("a value is not finite, or beyond 1e300: what diverged has no mean")
    return values


def _summary(values: Sequence[float], *, scale: float) -> Summary:
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None)
    # hypot neither overflows nor underflows where a sum of squares would
    sd = math.hypot(*(value - mean for value in values)) / math.sqrt(n - 1)
    return Summary(n, mean, 0.0 if sd <= NEGLIGIBLE * scale else sd)
