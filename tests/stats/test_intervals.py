"""Reference values are from R (`t.test`, `qt`), Student (1908) and Montgomery's book of experiments."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from ablate.stats.intervals import (
    Cells,
    crossed_estimate,
    paired_estimate,
    stein_estimate,
    summarise,
    t_quantile,
    welch_estimate,
)

# Student's sleep data: extra hours of sleep of ten patients under two drugs (R: datasets::sleep)
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP: Cells = [(1, DRUG_1), (-1, DRUG_2)]

# filtration rate of a pilot plant, factors A to D, A changing fastest (Montgomery, Design and Analysis of Experiments)
FILTRATION = [45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96]


def test_a_summary_has_the_sample_standard_deviation() -> None:
    summary = summarise([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (summary.n, summary.mean) == (8, 5.0)
    assert summary.sd == pytest.approx(math.sqrt(32 / 7))
    assert summary.se == pytest.approx(math.sqrt(32 / 7 / 8))


def test_one_value_has_a_mean_and_no_spread() -> None:
    summary = summarise([23.7])
    assert (summary.mean, summary.sd, summary.se) == (23.7, None, None)


def test_a_small_spread_of_small_values_is_one() -> None:
    assert summarise([1e-9, 2e-9, 3e-9]).sd == pytest.approx(1e-9)


def test_huge_values_do_not_overflow() -> None:
    assert summarise([1e200, 3e200]).sd == pytest.approx(math.sqrt(2) * 1e200)


@pytest.mark.parametrize("wrong", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no values|not finite"):
        summarise(wrong)
    with pytest.raises(ValueError, match=r"no values|not finite"):
        paired_estimate([(1, wrong)])
    with pytest.raises(ValueError, match=r"no values|not finite"):
        welch_estimate([(1, wrong), (-1, [1.0, 2.0])])


@pytest.mark.parametrize(("df", "expected"), [(1, 12.7062047), (2, 4.3026527), (4, 2.7764451), (9, 2.2621572)])
def test_t_quantiles(df: int, expected: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(expected, abs=5e-8)


# paired


def test_the_sleep_data_paired() -> None:
    found = paired_estimate(SLEEP)
    assert (found.n, found.df, found.method) == (10, 9, "paired")
    assert found.se is not None
    assert found.mean / found.se == pytest.approx(-4.062128, abs=5e-7)
    assert found.p == pytest.approx(0.002832890, abs=5e-10)
    assert found.interval(0.05) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_a_smaller_alpha_gives_the_wider_interval_of_that_level() -> None:
    half = (2.4598858 - 0.7001142) / 2 * 3.2498355 / 2.2621572  # the one above, by qt(0.995, 9) over qt(0.975, 9)
    assert paired_estimate(SLEEP).interval(0.01) == pytest.approx((-1.58 - half, -1.58 + half), abs=1e-6)


def test_one_seed_has_a_difference_and_nothing_else() -> None:
    found = paired_estimate([(1, [23.7]), (-1, [20.0])])
    assert found.mean == pytest.approx(3.7)
    assert (found.n, found.sd, found.se, found.df) == (1, None, None, 0)
    assert (found.p, found.interval(0.05), found.p_equivalent(1.0)) == (None, None, None)


def test_two_pairs_have_an_interval_of_12_7_standard_errors() -> None:
    found = paired_estimate([(1, [1.0, 3.0]), (-1, [0.0, 0.0])])
    assert found.interval(0.05) == pytest.approx((2 - 12.7062047, 2 + 12.7062047))


def test_rounding_is_no_spread() -> None:
    """0.1 + 0.2 is not 0.3 in floating point: such differences must not become an interval of width 1e-17."""
    found = paired_estimate([(1, [0.1 + 0.2, 0.3, 0.3]), (-1, [0.2, 0.2, 0.2])])
    assert found.mean == pytest.approx(0.1)
    assert (found.sd, found.se, found.df) == (0.0, 0.0, 2)
    assert (found.p, found.interval(0.05), found.p_equivalent(1.0)) == (None, None, None)
    assert summarise([0.1 + 0.2, 0.3, 0.3]).sd == 0.0


def test_differences_come_before_variances() -> None:
    """The arms share a noise ten million times their own: what is left after subtraction is still exact."""
    noise = [1e6, -2e6, 3e6, 5e5]
    own = [0.25, 0.5, 0.75, 0.5]
    found = paired_estimate([(1, [a + b for a, b in zip(noise, own, strict=True)]), (-1, noise)])
    assert found.sd == pytest.approx(summarise(own).sd)


def test_a_pair_has_two_values() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_estimate([(1, [1.0, 2.0]), (-1, [1.0])])


def test_a_cell_without_a_coefficient_takes_no_part() -> None:
    padded: Cells = [*SLEEP, (0, [1.0])]
    assert paired_estimate(padded) == paired_estimate(SLEEP)
    assert welch_estimate(padded) == welch_estimate(SLEEP)
    with pytest.raises(ValueError, match="coefficient"):
        paired_estimate([(0, [1.0])])


def factorial_cells(letters: str) -> Cells:
    """Return the contrast of a 2⁴ effect: 2 · mean(y · Π ±1)."""
    signs = [point[::-1] for point in product((-1, 1), repeat=4)]
    wanted = ["ABCD".index(letter) for letter in letters]
    return [(math.prod(sign[k] for k in wanted) / 8, [float(y)]) for sign, y in zip(signs, FILTRATION, strict=True)]


@pytest.mark.parametrize(
    ("letters", "expected"), [("A", 21.625), ("C", 9.875), ("D", 14.625), ("AC", -18.125), ("AD", 16.625)]
)
def test_a_factorial_effect_is_a_contrast_of_its_cells(letters: str, expected: float) -> None:
    assert paired_estimate(factorial_cells(letters)).mean == expected
    assert welch_estimate(factorial_cells(letters)).mean == expected


# p-values


def test_a_p_value_is_never_zero() -> None:
    far = paired_estimate([(1, [1e6, 1e6 + 1, 1e6 - 1] * 50), (-1, [0.0] * 150)])
    assert far.p == math.ulp(0.0)
    assert paired_estimate([(1, [-1.0, 0.0, 1.0] * 50)]).p_equivalent(1e6) == math.ulp(0.0)


def test_equivalence_needs_the_interval_of_twice_alpha_inside_the_margin() -> None:
    found = paired_estimate(SLEEP)
    bounds = found.interval(0.10)
    assert bounds is not None
    margin = max(map(abs, bounds))
    assert found.p_equivalent(margin) == pytest.approx(0.05)
    assert found.p_equivalent(0.5) > 0.5  # type: ignore[operator]  # the mean lies outside
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="margin"):
            found.p_equivalent(wrong)


# unpaired


def test_the_sleep_data_unpaired() -> None:
    found = welch_estimate(SLEEP)
    assert (found.n, found.sd, found.method) == (10, None, "welch")
    assert found.se is not None
    assert found.mean / found.se == pytest.approx(-1.860813, abs=5e-7)
    assert found.df == pytest.approx(17.77647, abs=5e-6)
    assert found.p == pytest.approx(0.07939414, abs=5e-9)
    assert found.interval(0.05) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


def test_without_pairing_the_arms_may_differ_in_length() -> None:
    found = welch_estimate([(1, [1.0, 2.0, 3.0]), (-1, [0.0, 4.0])])
    assert (found.n, found.mean) == (2, 0.0)
    assert found.se == pytest.approx(math.sqrt(1 / 3 + 8 / 2))
    assert found.df == pytest.approx((1 / 3 + 4) ** 2 / ((1 / 3) ** 2 / 2 + 4**2 / 1))


def test_one_arm_of_one_seed_leaves_no_error() -> None:
    found = welch_estimate([(1, [1.0, 2.0, 3.0]), (-1, [0.0])])
    assert (found.n, found.mean, found.se, found.df, found.p) == (1, 2.0, None, 0, None)


def test_arms_without_spread_have_an_error_of_zero() -> None:
    found = welch_estimate([(1, [2.0, 2.0]), (-1, [0.5, 0.5])])
    assert (found.mean, found.se, found.p, found.interval(0.05)) == (1.5, 0.0, None, None)
    # one arm without spread has no part in the error, nor in its degrees of freedom
    assert welch_estimate([(1, [1.0, 2.0, 3.0]), (-1, [0.5, 0.5])]).df == pytest.approx(2)


# two stages


def test_the_pilot_alone_knows_the_noise() -> None:
    found = stein_estimate(SLEEP, pilot=4)
    first = paired_estimate([(a, values[:4]) for a, values in SLEEP])
    assert (found.n, found.mean, found.method) == (10, paired_estimate(SLEEP).mean, "stein")
    assert (found.sd, found.df) == (first.sd, 3)
    assert found.se == pytest.approx(first.sd / math.sqrt(10))  # type: ignore[operator]


def test_a_pilot_that_is_not_over_is_what_there_is_of_it() -> None:
    found, plain = stein_estimate(SLEEP, pilot=12), paired_estimate(SLEEP)
    assert (found.mean, found.se, found.df) == (plain.mean, plain.se, 9)
    assert stein_estimate([(1, [1.0])], pilot=5).se is None
    with pytest.raises(ValueError, match="pilot"):
        stein_estimate(SLEEP, pilot=1)


# seeds and examples


def crossed_by_hand(table: list[list[float]]) -> tuple[float, float, float]:
    """Return mean, variance and df in the words of the formula, with loops."""
    n, m = len(table), len(table[0])
    rows = [sum(row) / m for row in table]
    columns = [sum(row[i] for row in table) / n for i in range(m)]
    mean = sum(rows) / n
    v_s = sum((row - mean) ** 2 for row in rows) / (n - 1) / n
    v_e = sum((column - mean) ** 2 for column in columns) / (m - 1) / m
    free = (n - 1) * (m - 1)
    left = sum((table[s][i] - rows[s] - columns[i] + mean) ** 2 for s in range(n) for i in range(m))
    v_i = left / free / (n * m)
    var = max(v_s + v_e - v_i, v_s, v_e)
    return mean, var, var**2 / (v_s**2 / (n - 1) + v_e**2 / (m - 1) + v_i**2 / free)


def test_crossed_variance_follows_its_formula() -> None:
    table = np.random.default_rng(1).normal(size=(4, 7)) + np.arange(4)[:, None]
    mean, var, df = crossed_by_hand(table.tolist())
    found = crossed_estimate(table)
    assert (found.n, found.method) == (4, "crossed")
    assert (found.mean, found.se, found.df) == pytest.approx((mean, math.sqrt(var), df))
    assert found.sd == pytest.approx(summarise(table.mean(axis=1).tolist()).sd)
    scaled = crossed_estimate(table * 1e200)  # whose squares are no numbers
    assert scaled.se == pytest.approx(math.sqrt(var) * 1e200)


def test_examples_that_agree_leave_the_paired_t_over_seeds() -> None:
    table = np.array(DRUG_1)[:, None] - np.array(DRUG_2)[:, None] + np.zeros((10, 6))
    found, plain = crossed_estimate(table), paired_estimate(SLEEP)
    assert (found.se, found.df, found.p) == pytest.approx((plain.se, plain.df, plain.p))


def test_seeds_that_agree_leave_the_t_over_examples() -> None:
    found = crossed_estimate((np.array(DRUG_1) - np.array(DRUG_2))[None, :] + np.zeros((3, 10)))
    assert (found.n, found.sd) == (3, 0.0)
    assert (found.se, found.df) == pytest.approx((paired_estimate(SLEEP).se, 9))


def test_crossed_without_any_spread_has_an_error_of_zero() -> None:
    for value in (0.0, 0.1):
        found = crossed_estimate(np.full((3, 4), value))
        assert (found.mean, found.se, found.p) == (pytest.approx(value), 0.0, None)


def test_crossing_needs_two_of_each_and_finite_scores() -> None:
    for shape in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match="two of each"):
            crossed_estimate(np.zeros(shape))
    with pytest.raises(ValueError, match="not finite"):
        crossed_estimate(np.array([[1.0, math.nan], [0.0, 1.0]]))


def test_crossed_tests_hold_for_new_seeds_and_new_examples() -> None:
    """Five seeds, 40 examples, each with an effect of its own, mean zero. Tolerance: four standard errors."""
    rng, draws, rejected = np.random.default_rng(2), 2_000, 0
    for _ in range(draws):
        noise = rng.normal(size=(5, 40)) + rng.normal(size=(5, 1)) / 4 + rng.normal(size=(1, 40)) * 2
        rejected += crossed_estimate(noise).p < 0.05  # type: ignore[operator]
    assert rejected / draws <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / draws)
