"""Reference values are from R (`binom.test`, `mcnemar.exact`)."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from ablate.stats.proportions import accuracy_noise, clopper_pearson, mcnemar


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [(0, 5, (0.0, 0.5218238)), (3, 3, (0.2924018, 1.0)), (4, 5, (0.2835821, 0.9949492))],
)
def test_clopper_pearson(k: int, n: int, expected: tuple[float, float]) -> None:
    assert clopper_pearson(k, n) == pytest.approx(expected, abs=5e-8)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_scipy_finds_the_same_interval(alpha: float) -> None:
    for n in (1, 4, 9):
        for k in range(n + 1):
            expected = stats.binomtest(k, n).proportion_ci(1 - alpha)
            assert clopper_pearson(k, n, alpha) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_share_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        clopper_pearson(k, n)


@pytest.mark.parametrize(("b", "c", "expected"), [(5, 0, 0.0625), (0, 5, 0.0625), (0, 0, 1.0), (4, 4, 1.0)])
def test_mcnemar(b: int, c: int, expected: float) -> None:
    assert mcnemar(b, c) == pytest.approx(expected)


@pytest.mark.parametrize(("b", "c"), [(86, 150), (1, 9), (7, 6)])
def test_scipy_finds_the_same_p(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="no counts"):
        mcnemar(-1, 3)


def test_the_noise_of_a_test_set() -> None:
    assert accuracy_noise(0.9, 10_000) == pytest.approx(math.sqrt(0.1 / 20_000))
    # at 50 % and 10 000 examples two runs of one arm differ by ±1.4 percentage points
    assert 1.96 * math.sqrt(2) * 100 * accuracy_noise(0.5, 10_000) == pytest.approx(1.4, abs=0.05)
    assert accuracy_noise(1.0, 10) == 0.0


@pytest.mark.parametrize(("accuracy", "examples"), [(94.4, 10_000), (-0.1, 10), (0.5, 0), (math.nan, 10)])
def test_an_accuracy_is_a_fraction_of_examples(accuracy: float, examples: int) -> None:
    with pytest.raises(ValueError, match="fraction"):
        accuracy_noise(accuracy, examples)
