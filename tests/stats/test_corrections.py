"""Holm (1979), and the fifteen p-values of Benjamini & Hochberg (1995), section 3.2."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ablate.stats.corrections import benjamini_hochberg, holm

both = pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
Correct = Callable[..., list[float | None]]

FIFTEEN = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
]


@pytest.mark.parametrize(
    ("ps", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.30, 0.001, 0.04, 0.02], [0.30, 0.004, 0.08, 0.06]),  # in the order they came
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm(ps: list[float | None], expected: list[float]) -> None:
    assert holm(ps) == pytest.approx(expected)


def test_the_fifteen_p_values_of_1995() -> None:
    bonferroni = [15 * p for p in FIFTEEN]
    assert [sum(p is not None and p < 0.05 for p in ps) for ps in (bonferroni, holm(FIFTEEN))] == [3, 3]
    corrected = benjamini_hochberg(FIFTEEN)
    assert sum(p is not None and p < 0.05 for p in corrected) == 4
    assert corrected[3] == pytest.approx(15 * 0.0095 / 4)


def test_a_step_up_p_value_is_no_larger_than_the_next() -> None:
    assert benjamini_hochberg([0.04, 0.03, 0.9]) == pytest.approx([0.06, 0.06, 0.9])


@both
def test_what_is_not_tested_counts_all_the_same(correct: Correct) -> None:
    assert correct([0.01, None, None]) == [pytest.approx(0.03), None, None]
    assert correct([None, None]) == [None, None]


@both
def test_withdrawn_comparisons_count_too(correct: Correct) -> None:
    assert correct([0.01], 10) == pytest.approx([0.1])
    with pytest.raises(ValueError, match="cannot be counted as 1"):
        correct([0.01, 0.02], 1)
