"""Sample sizes are Cohen's (1988) and G*Power's; the detectable effects are those of the noncentral t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import nctdtr

from ablate.stats.intervals import paired_estimate, t_quantile
from ablate.stats.power import certifiable, detectable, power, seeds_for


@pytest.mark.parametrize(("effect", "expected"), [(0.5, 64), (1.0, 17), (2.0, 6)])
def test_seeds_per_arm_unpaired(effect: float, expected: int) -> None:
    assert seeds_for(effect, 0.05, paired=False) == expected


@pytest.mark.parametrize(("effect", "expected"), [(0.5, 34), (1.0, 10), (-1.0, 10)])
def test_seeds_paired(effect: float, expected: int) -> None:
    assert seeds_for(effect, 0.05) == expected


# in sd of one arm: unpaired, paired with a correlation of ½ (sd of differences: 1), and of 0 (sd of differences: √2)
@pytest.mark.parametrize(
    ("n", "expected"),
    [(3, (3.07, 3.26, 4.62)), (5, (2.02, 1.68, 2.38)), (10, (1.32, 1.00, 1.41)), (20, (0.91, 0.66, 0.93))],
)
def test_the_smallest_effect_that_shows(n: int, expected: tuple[float, float, float]) -> None:
    unpaired, paired = detectable(n, 0.05, paired=False), detectable(n, 0.05)
    assert paired is not None
    assert (unpaired, paired, paired * math.sqrt(2)) == pytest.approx(expected, abs=0.0051)


@pytest.mark.parametrize(("n", "expected"), [(3, (5.8, 10.4)), (5, (3.1, 3.2)), (10, (1.8, 1.5)), (20, (1.2, 0.9))])
def test_the_smallest_effect_that_passes_the_first_of_ten_holm_steps(n: int, expected: tuple[float, float]) -> None:
    assert (detectable(n, 0.005, paired=False), detectable(n, 0.005)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("n", "expected"), [(3, 2.9), (5, 2.0), (10, 1.4), (20, 0.94), (50, 0.59)])
def test_the_smallest_margin_that_can_be_certified(n: int, expected: float) -> None:
    assert certifiable(n, 0.05, paired=False) == pytest.approx(expected, abs=0.05 if expected > 1 else 0.005)


@pytest.mark.parametrize(("n", "one", "two"), [(5, 0.23, 0.67), (10, 0.52, 0.98), (20, 0.85, 1.0)])
def test_the_power_of_a_fixed_number_of_seeds(n: int, one: float, two: float) -> None:
    """Effects of 1 and 2 sd of one arm, in pairs that share nothing."""
    assert (power(1 / math.sqrt(2), n, 0.05), power(math.sqrt(2), n, 0.05)) == pytest.approx((one, two), abs=0.0101)


def test_three_seeds_do_not_find_two_sd_among_ten_steps() -> None:
    assert 0.03 < power(math.sqrt(2), 3, 0.005) < power(2.0, 3, 0.005) < 0.08


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 100, 1998])
@pytest.mark.parametrize("alpha", [0.05, 0.005, 1e-4])
def test_power_is_that_of_the_noncentral_t(df: int, alpha: float) -> None:
    critical = t_quantile(1 - alpha / 2, df)
    for delta in (0.0, 0.3, 1.0, 3.0, 5.0):
        expected = 1 - nctdtr(df, delta, critical) + nctdtr(df, delta, -critical)
        if math.isfinite(expected):
            assert power(delta / math.sqrt(df + 1), df + 1, alpha) == pytest.approx(expected, abs=1e-7)


def test_statsmodels_finds_the_same_power() -> None:
    models = pytest.importorskip("statsmodels.stats.power")
    for effect, n, alpha in ((0.5, 5, 0.05), (2.0, 3, 0.005), (1.0, 20, 0.01)):
        assert power(effect, n, alpha) == pytest.approx(models.TTestPower().power(effect, n, alpha), abs=1e-7)
        expected = models.TTestIndPower().power(effect, n, alpha)
        assert power(effect, n, alpha, paired=False) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("n", [2, 3, 20, 1000])
def test_no_effect_is_found_as_often_as_alpha_says(n: int) -> None:
    assert power(0.0, n, 0.05) == pytest.approx(0.05, abs=1e-9)
    assert power(0.0, n, 0.001, paired=False) == pytest.approx(0.001, abs=1e-9)


@pytest.mark.parametrize("effect", [30.0, 60.0, 1e4, 1e12, 1e300])
def test_a_broken_arm_is_found(effect: float) -> None:
    """Where the noncentral t of the libraries is NaN."""
    assert power(effect, 5, 0.05) == pytest.approx(1.0)
    assert power(-effect, 2, 0.05, paired=False) == pytest.approx(1.0)


def test_power_grows_with_effect_seeds_and_alpha() -> None:
    assert np.all(np.diff([power(effect, 5, 0.05) for effect in np.linspace(0, 4, 20)]) > 0)
    assert np.all(np.diff([power(1.0, n, 0.05) for n in range(2, 25)]) > 0)
    assert np.all(np.diff([power(1.0, 5, alpha) for alpha in (0.001, 0.005, 0.05, 0.2)]) > 0)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [2, 3, 8, 100])
def test_the_detectable_effect_is_the_one_with_that_power(n: int, paired: bool) -> None:
    effect = detectable(n, 0.01, target=0.9, paired=paired)
    assert effect is not None
    assert power(effect, n, 0.01, paired=paired) == pytest.approx(0.9, abs=1e-6)
    enough = seeds_for(effect * (1 + 1e-6), 0.01, target=0.9, paired=paired)
    assert enough == n


def test_a_margin_is_certified_as_often_as_promised() -> None:
    rng, draws, n = np.random.default_rng(8), 10_000, 5
    margin = certifiable(n, 0.05, target=0.8)
    assert margin is not None
    ps = [paired_estimate([(1, row)]).p_equivalent(margin) for row in rng.normal(size=(draws, n)).tolist()]
    share = sum(p is not None and p < 0.05 for p in ps) / draws
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / draws))


def test_one_seed_shows_nothing() -> None:
    assert (power(5.0, 1, 0.05), detectable(1, 0.05), certifiable(1, 0.05)) == (0.0, None, None)
    assert (detectable(0, 0.05), certifiable(0, 0.05, paired=False)) == (None, None)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 1e-4, 1e-9])
def test_the_seeds_wanted_are_the_fewest_that_are_enough(alpha: float, paired: bool) -> None:
    """Where the guess that is tried first is close, and where it is far off: few seeds, large effects."""
    for effect in (0.15, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 300.0):
        enough = [n for n in range(2, 100) if power(effect, n, alpha, paired=paired) >= 0.8]
        assert seeds_for(effect, alpha, paired=paired, most=99) == (enough[0] if enough else None)


@pytest.mark.parametrize("most", [2, 3, 784, 785, 787, 788, 1000])
def test_no_more_seeds_are_named_than_there_may_be(most: int) -> None:
    """787 pairs show a tenth of an sd: by the normal distribution 784.9, and 1.9 more."""
    assert seeds_for(0.1, 0.05, most=most) == (787 if most >= 787 else None)


def test_too_small_an_effect_has_no_number_of_seeds() -> None:
    assert seeds_for(1e-300, 0.05) is None
    assert seeds_for(0.0, 0.05) is None
    assert seeds_for(0.01, 0.05) is None
    assert seeds_for(0.1, 0.05, most=100) is None
    assert seeds_for(1e6, 0.05) == 2


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_is_a_chance(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        power(1.0, 5, alpha)


@pytest.mark.parametrize("target", [0.0, 1.0, 80.0])
def test_the_target_is_a_chance(target: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        detectable(5, 0.05, target=target)
