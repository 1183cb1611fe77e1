"""What holds of every contrast, whatever the numbers: shifts, scales, signs, order; and how often it is wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ablate.stats.corrections import benjamini_hochberg, holm
from ablate.stats.intervals import Cells, Estimate, paired_estimate, welch_estimate

Engine = Callable[[Cells], Estimate]
engines = pytest.mark.parametrize("engine", [paired_estimate, welch_estimate])

values = st.floats(-1e3, 1e3, allow_subnormal=False)
pairs = st.lists(st.tuples(values, values), min_size=2, max_size=12)
Pairs = list[tuple[float, float]]


def cells(sample: Pairs) -> Cells:
    left, right = zip(*sample, strict=True)
    return [(1, left), (-1, right)]


@engines
@given(sample=pairs, constant=values)
def test_adding_a_constant_to_all_leaves_the_difference(engine: Engine, sample: Pairs, constant: float) -> None:
    before, after = engine(cells(sample)), engine(cells([(x + constant, y + constant) for x, y in sample]))
    assert after.mean == pytest.approx(before.mean, abs=1e-9)
    assert after.se == pytest.approx(before.se, abs=1e-8)


@engines
@given(sample=pairs, factor=st.floats(1e-3, 1e3))
def test_scaling_scales(engine: Engine, sample: Pairs, factor: float) -> None:
    before, after = engine(cells(sample)), engine(cells([(x * factor, y * factor) for x, y in sample]))
    assert after.mean == pytest.approx(before.mean * factor, abs=1e-8 * factor)
    assert after.se == pytest.approx((before.se or 0.0) * factor, abs=1e-8 * factor)


@engines
@given(sample=pairs)
def test_swapping_the_arms_changes_the_sign_and_nothing_else(engine: Engine, sample: Pairs) -> None:
    one, other = engine(cells(sample)), engine(cells([(y, x) for x, y in sample]))
    assert other.mean == -one.mean
    assert (other.se, other.df, other.p) == pytest.approx((one.se, one.df, one.p))
    assert other.p_equivalent(1.0) == pytest.approx(one.p_equivalent(1.0))
    bounds = one.interval(0.05)
    assert other.interval(0.05) == (pytest.approx((-bounds[1], -bounds[0])) if bounds else None)


@engines
@given(sample=pairs, shuffler=st.randoms(use_true_random=False))
def test_the_order_of_seeds_does_not_matter(engine: Engine, sample: Pairs, shuffler: random.Random) -> None:
    shuffled = list(sample)
    shuffler.shuffle(shuffled)
    before, after = engine(cells(sample)), engine(cells(shuffled))
    assert after.mean == pytest.approx(before.mean, abs=1e-9)
    assert after.se == pytest.approx(before.se, abs=1e-9)


@engines
@given(sample=pairs, alpha=st.floats(1e-6, 0.4), margin=st.floats(1e-3, 1e3))
def test_p_values_and_intervals_agree(engine: Engine, sample: Pairs, alpha: float, margin: float) -> None:
    found = engine(cells(sample))
    bounds, narrow = found.interval(alpha), found.interval(2 * alpha)
    if bounds is None or narrow is None:
        assert found.p is None
        return
    p, p_equivalent = found.p, found.p_equivalent(margin)
    assert p is not None
    assert p_equivalent is not None
    if not math.isclose(p, alpha, rel_tol=1e-9):
        assert (p < alpha) == (not bounds[0] <= 0 <= bounds[1])
    if not math.isclose(p_equivalent, alpha, rel_tol=1e-9):
        assert (p_equivalent < alpha) == (-margin < narrow[0] and narrow[1] < margin)


@given(pairs)
def test_without_pairing_the_degrees_of_freedom_lie_between_the_smallest_arm_and_all(sample: Pairs) -> None:
    found = welch_estimate(cells(sample))
    if found.se:
        assert len(sample) - 1 - 1e-9 <= found.df <= 2 * len(sample) - 2 + 1e-9


p_values = st.lists(st.none() | st.floats(0, 1), max_size=12)


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@given(ps=p_values, more=st.integers(0, 5), shuffler=st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_corrected(
    correct: Callable[..., list[float | None]], ps: list[float | None], more: int, shuffler: random.Random
) -> None:
    m, order = len(ps) + more, list(range(len(ps)))
    shuffler.shuffle(order)
    adjusted = correct(ps, m)
    assert correct([ps[k] for k in order], m) == [adjusted[k] for k in order]
    for p, corrected in zip(ps, adjusted, strict=True):
        assert (corrected is None) == (p is None)
        assert p is None or corrected is None or p <= corrected <= min(1.0, m * p) + 1e-15


@given(p_values)
def test_holm_is_the_stricter_of_the_two(ps: list[float | None]) -> None:
    for strict, lenient in zip(holm(ps), benjamini_hochberg(ps), strict=True):
        assert strict is None or lenient is None or lenient <= strict * (1 + 1e-12)


# how often it is wrong; seeded, the tolerance four standard errors of the simulation

DRAWS = 20_000


def test_p_is_uniform_where_there_is_no_effect() -> None:
    """Five pairs; the arms' noise differs fourfold and shares a part: p-values are exact all the same."""
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(DRAWS, 5))
    left, right = shared + rng.normal(size=(DRAWS, 5)) * 4, shared + rng.normal(size=(DRAWS, 5))
    ps = [paired_estimate([(1, one), (-1, other)]).p for one, other in zip(left.tolist(), right.tolist(), strict=True)]
    for level in (0.001, 0.005, 0.05, 0.2, 0.5, 0.8, 0.95):
        share = sum(p is not None and p <= level for p in ps) / DRAWS
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / DRAWS))


@pytest.mark.parametrize("n", [3, 5])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(n: int) -> None:
    rng, covered, draws = np.random.default_rng(n), 0, 10_000
    left, right = rng.normal(3, 1, size=(draws, n)), rng.normal(size=(draws, n))
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        bounds = paired_estimate([(1, one), (-1, other)]).interval(0.05)
        assert bounds is not None
        covered += bounds[0] <= 3 <= bounds[1]
    assert covered / draws == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("n", "expected"), [(3, 0.962), (5, 0.956)])
def test_the_unpaired_interval_covers_a_little_more(n: int, expected: float) -> None:
    """Satterthwaite's degrees of freedom err on the safe side for equal arms."""
    rng, covered, draws = np.random.default_rng(10 + n), 0, 10_000
    left, right = rng.normal(3, 1, size=(draws, n)), rng.normal(size=(draws, n))
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        bounds = welch_estimate([(1, one), (-1, other)]).interval(0.05)
        assert bounds is not None
        covered += bounds[0] <= 3 <= bounds[1]
    assert covered / draws == pytest.approx(expected, abs=0.01)


def test_an_effect_as_large_as_the_margin_is_rarely_called_none() -> None:
    rng, draws, certified = np.random.default_rng(5), 10_000, 0
    for differences in rng.normal(2.5, 1, size=(draws, 5)).tolist():
        p = paired_estimate([(1, differences)]).p_equivalent(2.5)
        certified += p is not None and p < 0.05
    assert certified / draws == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / draws))


# the same numbers elsewhere


def samples(seed: int) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 2, size=7).tolist(), rng.normal(size=7).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_scipy_finds_the_same(seed: int) -> None:
    left, right = samples(seed)
    paired, welch = paired_estimate([(1, left), (-1, right)]), welch_estimate([(1, left), (-1, right[:4])])
    assert paired.p == pytest.approx(stats.ttest_rel(left, right).pvalue)
    other = stats.ttest_ind(left, right[:4], equal_var=False)
    assert (welch.p, welch.df) == pytest.approx((other.pvalue, other.df))
    assert welch.interval(0.05) == pytest.approx(tuple(other.confidence_interval(0.95)))


@pytest.mark.parametrize("seed", range(5))
def test_statsmodels_finds_the_same_equivalence(seed: int) -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    left, right = samples(seed)
    for margin in (0.5, 2.0, 4.0):
        expected = weightstats.ttost_paired(np.array(left), np.array(right), -margin, margin)[0]
        assert paired_estimate([(1, left), (-1, right)]).p_equivalent(margin) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_statsmodels_corrects_the_same(seed: int) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    ps = (np.random.default_rng(seed).uniform(size=9) ** 3).tolist()
    assert holm(ps) == pytest.approx(multitest.multipletests(ps, method="holm")[1].tolist())
    assert benjamini_hochberg(ps) == pytest.approx(multitest.multipletests(ps, method="fdr_bh")[1].tolist())
