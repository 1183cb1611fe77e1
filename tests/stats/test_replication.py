"""The rules that let seeds be added: their constants, and how often they are wrong when nothing is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from ablate.stats.intervals import paired_estimate, stein_estimate, t_quantile
from ablate.stats.replication import (
    LOOKS,
    WEIGHTS,
    anytime_interval,
    anytime_p,
    anytime_t,
    log_e_value,
    look_p,
    stein_size,
)

# Rule A


def test_the_looks_spend_alpha_once() -> None:
    assert math.fsum(WEIGHTS) == pytest.approx(1.0)
    assert len(LOOKS) == len(WEIGHTS)


@pytest.mark.parametrize(
    ("look", "critical", "half_width"),
    [(0, 19.96, 11.5), (1, 5.00, 2.24), (2, 3.50, 1.24), (3, 3.11, 0.90), (4, 2.54, 0.57)],
)
def test_the_critical_values_of_the_looks(look: int, critical: float, half_width: float) -> None:
    n, level = LOOKS[look], 0.05 * WEIGHTS[look]
    t = t_quantile(1 - level / 2, n - 1)
    assert t == pytest.approx(critical, abs=0.005)
    assert t / math.sqrt(n) == pytest.approx(half_width, abs=0.05 if look == 0 else 0.005)


def test_a_look_is_passed_at_its_own_share_of_alpha() -> None:
    for look, weight in enumerate(WEIGHTS):
        ps: list[float | None] = [None] * look
        assert look_p([*ps, 0.05 * weight], WEIGHTS) == pytest.approx(0.05)


def test_the_best_look_counts() -> None:
    assert look_p([0.5, 0.003, 0.1], WEIGHTS) == pytest.approx(0.02)
    assert look_p([0.5, None, 0.1], WEIGHTS) == pytest.approx(0.5)
    assert look_p([0.9], WEIGHTS) == 1.0
    assert look_p([0.03], [1.0]) == 0.03  # one look with all of alpha: no rule at all
    assert (look_p([], WEIGHTS), look_p([None, None], WEIGHTS)) == (None, None)
    with pytest.raises(ValueError, match="6 looks"):
        look_p([0.1] * 6, WEIGHTS)


def test_the_looks_together_err_less_often_than_alpha() -> None:
    rng, draws = np.random.default_rng(1), 20_000
    noise = rng.normal(size=(draws, LOOKS[-1]))
    ps = np.stack([stats.ttest_1samp(noise[:, :n], 0, axis=1).pvalue for n in LOOKS], axis=1)
    assert ps[0, 1] == pytest.approx(paired_estimate([(1, noise[0, :5].tolist())]).p)
    wrong = sum(p is not None and p < 0.05 for p in (look_p(row, WEIGHTS) for row in ps.tolist())) / draws
    assert wrong <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / draws)
    assert wrong == pytest.approx(0.041, abs=0.006)  # the looks overlap, so the union bound is not reached
    naive = (ps < 0.05).any(axis=1).mean()
    assert naive == pytest.approx(0.167, abs=0.012)  # what looking five times at .05 does


# Rule B


@pytest.mark.parametrize(
    ("t", "n", "variance", "expected"),
    [(2.5, 5, 1.0, 2.4060171), (6.0, 4, 4.0, 14.0852348), (-1.2, 10, 1.0, 0.5891638)],
)
def test_e_values(t: float, n: int, variance: float, expected: float) -> None:
    assert math.exp(log_e_value(t, n, variance)) == pytest.approx(expected, abs=5e-8)


@pytest.mark.parametrize("variance", [0.25, 1.0, 64.0])
@pytest.mark.parametrize("n", [3, 10])
def test_an_e_value_is_one_on_average_where_there_is_no_effect(n: int, variance: float) -> None:
    def weighted(t: float) -> float:
        return math.exp(log_e_value(t, n, variance) + float(stats.t.logpdf(t, n - 1)))

    half, _ = integrate.quad(weighted, 0, math.inf, limit=200)
    assert 2 * half == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(3, 16.5), (4, 8.13), (5, 6.23), (6, 5.38), (8, 4.59), (10, 4.22), (12, 4.01), (20, 3.67), (50, 3.46)],
)
def test_the_t_that_stops_at_any_time(n: int, expected: float) -> None:
    assert anytime_t(n, 0.05) == pytest.approx(expected, abs=0.05 if n == 3 else 0.005)


def test_two_seeds_never_stop_and_three_only_for_a_moderate_alpha() -> None:
    assert anytime_t(2, 0.05) is None
    assert anytime_t(3, 0.005) is None
    assert anytime_p([1.0, 1.0 + 1e-9]) > 0.05  # type: ignore[operator]
    assert anytime_interval([1.0, 2.0], 0.05) is None


def test_the_anytime_interval_is_where_e_stays_below_one_in_alpha() -> None:
    differences = [1.0, 1.4, 0.7, 1.2, 1.9]
    bounds, plain = anytime_interval(differences, 0.05), paired_estimate([(1, differences)])
    assert bounds is not None
    assert plain.se is not None
    assert bounds == pytest.approx((plain.mean - 6.2282436 * plain.se, plain.mean + 6.2282436 * plain.se))
    # shifted so that zero is its edge, and with a path of less evidence, E is 20 now
    edge = [d - bounds[0] for d in differences]
    assert anytime_p(edge) == pytest.approx(0.05, rel=1e-6)


def test_evidence_once_seen_stays() -> None:
    path = [5.0, 5.2, 4.9, 5.1, 5.05, -20.0, 30.0]
    ps = [anytime_p(path[:n]) for n in range(2, len(path) + 1)]
    assert all(p is not None for p in ps)
    assert ps == sorted(ps, reverse=True)  # type: ignore[type-var]
    assert ps[-1] == ps[3]


def test_without_spread_there_is_no_anytime_p() -> None:
    assert anytime_p([]) is None
    assert anytime_p([1.0]) is None
    assert anytime_p([0.1, 0.1, 0.1]) is None
    assert anytime_interval([0.1, 0.1, 0.1], 0.05) is None
    assert anytime_p([0.1, 0.1, 0.1, 0.5]) == anytime_p([0.5, 0.1, 0.1, 0.1])  # equal seeds before it do not count


def test_overwhelming_evidence_is_not_zero_and_does_not_overflow() -> None:
    huge = anytime_p([1e9 + k % 3 for k in range(300)])
    assert huge == math.ulp(0.0)
    assert math.isfinite(log_e_value(1e150, 1000, 64.0))


def test_looking_after_every_seed_errs_less_often_than_alpha() -> None:
    rng, draws = np.random.default_rng(4), 2_000
    ps = [anytime_p(row) for row in rng.normal(size=(draws, 20)).tolist()]
    wrong = sum(p is not None and p < 0.05 for p in ps) / draws
    assert wrong == pytest.approx(0.020, abs=4 * math.sqrt(0.02 * 0.98 / draws))


# Rule C


def test_steins_size() -> None:
    pilot = [-1.0, 0.0, 1.0]  # sd 1
    assert stein_size(pilot, 0.5, 0.05) == math.ceil((4.3026527 / 0.5) ** 2)
    assert stein_size(pilot, 100.0, 0.05) == 3
    assert stein_size([2.0, 2.0], 0.5, 0.05) == 2
    for differences, half_width in (([1.0], 0.5), (pilot, 0.0), (pilot, -1.0)):
        with pytest.raises(ValueError, match="pilot"):
            stein_size(differences, half_width, 0.05)


@pytest.mark.parametrize(("pilot", "mean_seeds"), [(8, 23), (3, 74.5)])
def test_a_pilot_of_eight_saves_two_thirds_of_the_seeds(pilot: int, mean_seeds: float) -> None:
    """Half-width 0.5 sd. The interval promised, mean ± h, covers at least as often as it says."""
    rng, draws, half_width = np.random.default_rng(6), 2_000, 0.5
    sizes, covered = [], 0
    for row in rng.normal(size=(draws, 800)):
        size = stein_size(row[:pilot].tolist(), half_width, 0.05)
        sizes.append(size)
        if size <= len(row):
            found = stein_estimate([(1, row[:size].tolist())], pilot=pilot)
            bounds = found.interval(0.05)
            assert bounds is not None
            assert bounds[1] - found.mean <= half_width * (1 + 1e-12)
            covered += abs(found.mean) <= half_width
        else:
            covered += abs(rng.normal(0, 1 / math.sqrt(size))) <= half_width  # a mean of that many
    assert np.mean(sizes) == pytest.approx(mean_seeds, abs=4 * np.std(sizes) / math.sqrt(draws))
    assert covered / draws >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / draws)
