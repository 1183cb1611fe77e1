"""How small an effect n seeds can show, before the first of them is trained.

Effects and margins are in units of sd: of the differences where arms are paired by seed (df = n − 1), of one arm where
they are not (n seeds per arm, df = 2n − 2). All of it is the noncentral t distribution, here as an average over the
sample sd S (in units of the true one) of what a normal would do: |Z + δ| > c·S. ``scipy.special.nctdtr`` gives NaN for
a δ of 60, which a broken arm has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from ablate.stats.intervals import t_quantile

if TYPE_CHECKING:
    import numpy as np

_REACH = 9.0  # standard deviations: beyond them lies 2e-19 of a normal
_PANELS = 64
_NODES = 16  # in each panel


def power(effect: float, n: int, alpha: float, *, paired: bool = True) -> float:
    """Return the chance that a two-sided t test at level alpha shows an effect of this size; 0 for n < 2."""
    if n < 2:
        return 0.0
    df, scale = _shape(n, paired)
    return _rejected(abs(effect) * scale, df, _critical(alpha / 2, df))


def detectable(n: int, alpha: float, *, target: float = 0.8, paired: bool = True) -> float | None:
    """Return the effect that n seeds show with the chance ``target``; None for n < 2."""
    if n < 2:
        return None
    df, scale = _shape(n, paired)
    critical = _critical(alpha / 2, df)
    return _reaches(target, lambda delta: _rejected(delta, df, critical)) / scale


def seeds_for(effect: float, alpha: float, *, target: float = 0.8, paired: bool = True, most: int = 1000) -> int | None:
    """Return the seeds per arm that show this effect with the chance ``target``; None where ``most`` are too few."""
    low, high = 1, most + 1  # too few, enough: power grows with n
    about = _about(effect, alpha, target, paired, most)
    for guess in (about, about - 1, about + 1):  # two of them are nearly always all it takes
        if low < guess < high:
            low, high = (low, guess) if power(effect, guess, alpha, paired=paired) >= target else (guess, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, alpha, paired=paired) >= target else (middle, high)
    return high if high <= most else None


def _about(effect: float, alpha: float, target: float, paired: bool, most: int) -> int:
    """Return roughly the seeds wanted, at most so many: by the normal distribution, and z²/2 more for what is paired.

    z²/4 for what is not (Guenther 1981, Am. Stat. 35:243). Too few by one, or right, but for a handful of seeds.
    """
    z = NormalDist().inv_cdf(1 - alpha / 2)
    reach = (z + NormalDist().inv_cdf(target)) / effect if effect else math.inf
    about = reach * reach + z * z / 2 if paired else 2 * reach * reach + z * z / 4  # infinite for a tiny effect
    return round(min(about, most))


def certifiable(n: int, alpha: float, *, target: float = 0.8, paired: bool = True) -> float | None:
    """Return the margin inside which TOST at level alpha finds a true effect of zero with the chance ``target``.

    None for n < 2.
    """
    if n < 2:
        return None
    df, scale = _shape(n, paired)
    critical = _critical(alpha, df)
    return _reaches(target, lambda margin: _certified(margin, df, critical)) / scale


def _shape(n: int, paired: bool) -> tuple[int, float]:
    """Return the degrees of freedom, and the standard errors in one sd."""
    return (n - 1, math.sqrt(n)) if paired else (2 * n - 2, math.sqrt(n / 2))


def _critical(tail: float, df: int) -> float:
    if not 0 < tail < 0.5:
        raise ValueError("alpha lies between 0 and 1, and below ½ for one side")
    return -t_quantile(tail, df)


def _rejected(delta: float, df: int, critical: float) -> float:
    """Return P(|Z + delta| > critical·S)."""
    kink = max(-delta, -_REACH)  # where Z + delta changes sign
    below, above = (
        _integral(lambda z: _normal(z) * _sd_below(abs(z + delta) / critical, df), low, high)
        for low, high in ((-_REACH, kink), (kink, _REACH))
    )
    return min(1.0, below + above)


def _certified(margin: float, df: int, critical: float) -> float:
    """Return P(|Z| < margin − critical·S)."""
    return _integral(lambda z: 2 * _normal(z) * _sd_below((margin - z) / critical, df), 0.0, min(margin, _REACH))


def _normal(z: np.ndarray) -> np.ndarray:
    import numpy as np  # here and below: late, as few commands compute

    return np.asarray(np.exp(-z * z / 2) / math.sqrt(2 * math.pi))


def _sd_below(ratio: np.ndarray, df: int) -> np.ndarray:
    """Return P(S < ratio), where df·S² is chi-squared with df degrees of freedom."""
    import numpy as np
    from scipy.special import gammainc

    ratio = np.minimum(ratio, 1e3)  # certain by then, and squares stay finite
    return np.asarray(gammainc(df / 2, df / 2 * ratio * ratio))


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(_NODES)
    return nodes, weights


def _integral(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Return ∫ function by Gauss–Legendre in equal panels: the sd of 2000 values is a step only 0.03 wide."""
    import numpy as np

    nodes, weights = _nodes()
    half = (high - low) / _PANELS / 2
    middles = low + half * (2 * np.arange(_PANELS) + 1)
    values = function(middles[:, None] + half * nodes[None, :])
    return float(half * (values @ weights).sum())


def _reaches(target: float, chance: Callable[[float], float]) -> float:
    """Return where a growing chance reaches the target."""
    if not 0 < target < 1:
        raise ValueError(f"the chance of finding an effect lies between 0 and 1, not {target}")
    low, high = 0.0, 1.0
    while chance(high) < target:
        low, high = high, 2 * high
        if high > 1e300:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < target else (low, middle)
    return high


__all__ = ["certifiable", "detectable", "power", "seeds_for"]
