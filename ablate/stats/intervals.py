"""The mean of replicates, and a contrast of arms' means with Student's t around it.

A contrast is L = Σ a·μ over cells: an arm's values, each cell with its coefficient a; a step's effect is +1 · arm
and −1 · parent. Paired by seed, its interval is exact for any correlation between the arms and any variances, given
near-normal differences (Student 1908, Biometrika 6:1). No bootstrap: at n = 3 a percentile interval is [min, max]
and covers 75 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

# a spread this small beside the values is rounding: equal runs must not give an interval of width 1e-16
NEGLIGIBLE = 1e-12
# sums of ten thousand such values stay finite; whatever is larger has diverged
LARGEST = 1e300
# a p-value below the smallest float is printed as small, not as impossible
SMALLEST_P = math.ulp(0.0)

Cells = Sequence[tuple[float, Sequence[float]]]  # a contrast: each arm's coefficient and values


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
class Estimate:
    """A contrast of means: its value, and Student's t with ``df`` around it.

    ``n`` counts seeds: pairs, or without pairing the fewest seeds of any cell. ``sd`` is that of the paired differences
    (ddof = 1); None for n = 1, and without pairing, where there is no one sd. ``se`` is None where nothing is known of
    the noise (n = 1, ``df`` 0), and 0 where there is none: neither gives an interval or a p-value.
    """

    n: int
    mean: float
    sd: float | None
    se: float | None
    df: float
    method: Literal["paired", "welch", "stein", "crossed"]

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """Return the interval of level 1 − alpha: mean ± t(1 − alpha/2, df) · se."""
        if not self.se:
            return None
        half = -t_quantile(alpha / 2, self.df) * self.se  # the lower tail keeps its digits where alpha is small
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float | None:
        """The two-sided p-value of "the contrast is zero"; never 0, for no noise is that well known."""
        return None if not self.se else _never_zero(2 * _t_below(-abs(self.mean) / self.se, self.df))

    def p_equivalent(self, margin: float) -> float | None:
        """Return the p-value of "the contrast is ``margin`` or more, in either direction" (TOST).

        The larger of the two one-sided p-values (Schuirmann 1987, J. Pharmacokin. Biopharm. 15:657): it is below alpha
        exactly where the interval of level 1 − 2·alpha lies inside ±margin.
        """
        if not margin > 0:
            raise ValueError(f"a margin is above zero, not {margin}")
        return None if not self.se else _never_zero(_t_below((abs(self.mean) - margin) / self.se, self.df))


def is_usable(value: float) -> bool:
    """Tell whether a value can be averaged: a finite number, and no larger than 1e300."""
    return abs(value) <= LARGEST  # False for NaN too


def are_usable(values: Iterable[float]) -> bool:
    """Tell whether all of these values can be averaged."""
    return all(map(LARGEST.__ge__, map(abs, values)))  # a loop in C: a report may ask of 600,000


def summarise(values: Sequence[float]) -> Summary:
    """Return n, mean and standard deviation. Raises ValueError for no values, or for one that is not usable."""
    return _summary(values, scale=max(map(abs, _usable(values))))


def paired_estimate(cells: Cells) -> Estimate:
    """Return the contrast from each seed's own difference d = Σ a·y: mean d, se = sd(d)/√n, df = n − 1.

    The cells' values are aligned by seed. Raises ValueError for no values, for cells of unequal length, or for a value
    that is not usable.
    """
    spread = _differences(cells)
    return Estimate(spread.n, spread.mean, spread.sd, spread.se, spread.n - 1, "paired")


def welch_estimate(cells: Cells) -> Estimate:
    """Return the contrast from the cells' means: se² = Σ a²s²/n, with Satterthwaite's degrees of freedom.

    df = se⁴ / Σ (a²s²/n)²/(n − 1) (Welch 1938, Biometrika 29:350; Satterthwaite 1946, Biometrics 2:110). The cells may
    differ in length. Raises ValueError for a cell without values, or for a value that is not usable.
    """
    arms = [(a, summarise(values)) for a, values in _counted(cells)]
    n, mean = min(arm.n for _, arm in arms), math.fsum(a * arm.mean for a, arm in arms)
    errors = [(abs(a) * arm.se, arm.n - 1) for a, arm in arms if arm.se is not None]
    if len(errors) < len(arms):
        return Estimate(n, mean, None, None, 0, "welch")
    se = math.hypot(*(error for error, _ in errors))
    if se == 0:
        return Estimate(n, mean, None, 0.0, n - 1, "welch")
    df = 1 / math.fsum((error / se) ** 4 / df for error, df in errors)
    return Estimate(n, mean, None, se, df, "welch")


def stein_estimate(cells: Cells, *, pilot: int) -> Estimate:
    """Return the contrast over all n differences, its noise from the first ``pilot`` of them: se = s(pilot)/√n.

    ``sd`` and ``df`` are the pilot's: what made n must not also be n's own sd (Stein 1945, Ann. Math. Stat. 16:243).
    """
    if pilot < 2:
        raise ValueError(f"a pilot has two seeds or more, not {pilot}")
    everything, first = _differences(cells), _differences([(a, values[:pilot]) for a, values in cells])
    se = None if first.sd is None else first.sd / math.sqrt(everything.n)
    return Estimate(everything.n, everything.mean, first.sd, se, first.n - 1, "stein")


def crossed_estimate(differences: np.ndarray) -> Estimate:
    """Return the mean of ``differences`` [seeds, examples] with the error of new seeds *and* new examples.

    Two-way random effects: var = max(Vs + Ve − Vi, Vs, Ve), of the seeds' means Vs, the examples' means Ve and the
    residuals Vi; df = var² / Σ V²/df(V), Satterthwaite's.
    """
    seeds, examples = differences.shape
    if seeds < 2 or examples < 2:
        raise ValueError("seeds crossed with examples need two of each")
    scale = max(map(abs, _usable(differences.ravel().tolist())))
    unit = differences / (scale or 1.0)  # squares of large values would overflow
    rows, columns, mean = unit.mean(axis=1), unit.mean(axis=0), float(unit.mean())
    residuals = unit - rows[:, None] - columns[None, :] + mean
    sd, free = float(rows.std(ddof=1)), (seeds - 1) * (examples - 1)
    v_seeds = sd**2 / seeds
    v_examples = float(columns.var(ddof=1)) / examples
    v_both = float((residuals**2).sum()) / free / (seeds * examples)
    variance = max(v_seeds + v_examples - v_both, v_seeds, v_examples)
    sd, se = (size if size > NEGLIGIBLE else 0.0 for size in (sd, math.sqrt(variance)))
    if not se:
        return Estimate(seeds, mean * scale, sd * scale, 0.0, seeds - 1, "crossed")
    parts = [(v_seeds, seeds - 1), (v_examples, examples - 1), (v_both, free)]
    df = 1 / math.fsum((part / variance) ** 2 / part_df for part, part_df in parts)
    return Estimate(seeds, mean * scale, sd * scale, se * scale, df, "crossed")


def t_quantile(probability: float, df: float) -> float:
    """Return the value that Student's t with ``df`` degrees of freedom stays below with this probability."""
    from scipy.special import stdtrit  # here and below: every command imports this module, and few compute

    return float(stdtrit(df, probability))


def _t_below(t: float, df: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(df, t))


def _never_zero(p: float) -> float:
    return max(p, SMALLEST_P)


def _counted(cells: Cells) -> Cells:
    """Return the cells that take part: those with a coefficient."""
    counted = [(a, values) for a, values in cells if a]
    if not counted:
        raise ValueError("no values: a contrast has cells with a coefficient")
    return counted


def _differences(cells: Cells) -> Summary:
    """Return the summary of d = Σ a·y over seeds."""
    # differences first, then their variance: variances less covariances would cancel
    products = [[a * value for value in _usable(values)] for a, values in _counted(cells)]
    differences = list(map(math.fsum, zip(*products, strict=True)))
    return _summary(differences, scale=max(max(map(abs, cell)) for cell in products))


def _usable(values: Sequence[float]) -> Sequence[float]:
    if not len(values):
        raise ValueError("no values")
    total = sum(map(abs, values))  # a sum, for a maximum passes over NaN
    if not total <= LARGEST and not (math.isfinite(total) and max(map(abs, values)) <= LARGEST):
        raise ValueError("a value is not finite, or beyond 1e300: what diverged has no mean")
    return values


def _summary(values: Sequence[float], *, scale: float) -> Summary:
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None)
    # hypot neither overflows nor underflows where a sum of squares would
    sd = math.hypot(*[value - mean for value in values]) / math.sqrt(n - 1)
    return Summary(n, mean, 0.0 if sd <= NEGLIGIBLE * scale else sd)
