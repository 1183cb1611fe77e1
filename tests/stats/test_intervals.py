"""Reference values are from R (`t.test`, `qt`) and Student (1908); the properties are those of a mean difference."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.stats.intervals import paired_interval, summarise, t_quantile

# Student's sleep data: extra hours of sleep of ten patients under two drugs (R: datasets::sleep)
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

values = st.floats(-1e3, 1e3, allow_subnormal=False)
pairs = st.lists(st.tuples(values, values), min_size=2, max_size=12)


@pytest.mark.parametrize(("df", "expected"), [(1, 12.7062047), (2, 4.3026527), (4, 2.7764451), (9, 2.2621572)])
def test_t_quantiles(df: int, expected: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(expected, abs=5e-8)


def test_the_sleep_data() -> None:
    found = paired_interval(DRUG_1, DRUG_2)
    assert (found.n, found.df, found.level) == (10, 9, 0.95)
    assert found.se is not None
    assert found.mean / found.se == pytest.approx(-4.062128, abs=5e-7)
    assert (found.low, found.high) == (pytest.approx(-2.4598858, abs=5e-8), pytest.approx(-0.7001142, abs=5e-8))


def test_a_smaller_alpha_gives_the_wider_interval_of_that_level() -> None:
    found = paired_interval(DRUG_1, DRUG_2, alpha=0.01)
    half = (2.4598858 - 0.7001142) / 2 * 3.2498355 / 2.2621572  # the one above, by qt(0.995, 9) over qt(0.975, 9)
    assert found.level == 0.99
    assert found.high == pytest.approx(-1.58 + half, abs=1e-6)


def test_a_summary_has_the_sample_standard_deviation() -> None:
    summary = summarise([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (summary.n, summary.mean) == (8, 5.0)
    assert summary.sd == pytest.approx(math.sqrt(32 / 7))
    assert summary.se == pytest.approx(math.sqrt(32 / 7 / 8))


def test_one_value_has_a_mean_and_no_spread() -> None:
    summary = summarise([23.7])
    assert (summary.mean, summary.sd, summary.se) == (23.7, None, None)
    found = paired_interval([23.7], [20.0])
    assert found.mean == pytest.approx(3.7)
    assert (found.sd, found.low, found.high) == (None, None, None)


def test_two_pairs_have_an_interval_of_12_7_standard_errors() -> None:
    found = paired_interval([1.0, 3.0], [0.0, 0.0])
    assert (found.low, found.high) == (pytest.approx(2 - 12.7062047), pytest.approx(2 + 12.7062047))


def test_rounding_is_no_spread() -> None:
    """0.1 + 0.2 is not 0.3 in floating point: such differences must not become an interval of width 1e-17."""
    found = paired_interval([0.1 + 0.2, 0.3, 0.3], [0.2, 0.2, 0.2])
    assert found.mean == pytest.approx(0.1)
    assert (found.sd, found.low, found.high) == (0.0, None, None)
    assert summarise([0.1 + 0.2, 0.3, 0.3]).sd == 0.0


def test_a_small_spread_of_small_values_is_one() -> None:
    sd = summarise([1e-9, 2e-9, 3e-9]).sd
    assert sd == pytest.approx(1e-9)


def test_differences_come_before_variances() -> None:
    """The arms share a noise ten million times their own: what is left after subtraction is still exact."""
    noise = [1e6, -2e6, 3e6, 5e5]
    own = [0.25, 0.5, 0.75, 0.5]
    found = paired_interval([a + b for a, b in zip(noise, own, strict=True)], noise)
    assert found.sd == pytest.approx(summarise(own).sd)


def test_huge_values_do_not_overflow() -> None:
    assert summarise([1e200, 3e200]).sd == pytest.approx(math.sqrt(2) * 1e200)


@pytest.mark.parametrize("wrong", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no values|not finite"):
        summarise(wrong)
    with pytest.raises(ValueError, match=r"no values|not finite"):
        paired_interval(wrong, wrong)


def test_a_pair_has_two_values() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_interval([1.0, 2.0], [1.0])


@given(pairs, values)
def test_adding_a_constant_to_all_leaves_the_difference(sample: list[tuple[float, float]], constant: float) -> None:
    left, right = zip(*sample, strict=True)
    before = paired_interval(left, right)
    after = paired_interval([x + constant for x in left], [x + constant for x in right])
    assert after.mean == pytest.approx(before.mean, abs=1e-9)
    assert after.sd == pytest.approx(before.sd, abs=1e-9)


@given(pairs, st.floats(1e-3, 1e3))
def test_scaling_scales(sample: list[tuple[float, float]], factor: float) -> None:
    left, right = zip(*sample, strict=True)
    before = paired_interval(left, right)
    after = paired_interval([x * factor for x in left], [x * factor for x in right])
    assert after.mean == pytest.approx(before.mean * factor, abs=1e-8 * factor)
    assert after.sd == pytest.approx((before.sd or 0.0) * factor, abs=1e-8 * factor)


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_seeds_does_not_matter(sample: list[tuple[float, float]], shuffler: random.Random) -> None:
    left, right = zip(*sample, strict=True)
    shuffled = list(sample)
    shuffler.shuffle(shuffled)
    before, after = paired_interval(left, right), paired_interval(*map(list, zip(*shuffled, strict=True)))
    assert after.mean == pytest.approx(before.mean, abs=1e-9)
    assert after.sd == pytest.approx(before.sd, abs=1e-9)


@given(pairs)
def test_swapping_the_arms_mirrors_the_interval(sample: list[tuple[float, float]]) -> None:
    left, right = zip(*sample, strict=True)
    one, other = paired_interval(left, right), paired_interval(right, left)
    assert other.mean == -one.mean
    assert other.sd == one.sd
    if one.low is not None and one.high is not None:
        assert (other.low, other.high) == (-one.high, -one.low)


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(n: int) -> None:
    """Seeded; the noise of the two arms has a ratio of 4 and a correlation. Tolerance: four standard errors."""
    draw, draws, covered = random.Random(n), 10_000, 0
    for _ in range(draws):
        shared = [draw.gauss(0, 1) for _ in range(n)]
        left = [3 + s + draw.gauss(0, 4) for s in shared]
        right = [s + draw.gauss(0, 1) for s in shared]
        found = paired_interval(left, right)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 3 <= found.high
    assert covered / draws == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws))
