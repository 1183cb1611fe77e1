from __future__ import annotations

import math

import pytest

from ablate.stats.digits import decimals


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.5 / math.sqrt(5)] * 3, 1),  # the mock tables: sd 0.5 over 5 seeds
        ([0.22, 0.18, 4.1, 0.25], 1),  # one broken arm does not blunt the others
        ([0.0312], 2),
        ([0.004], 3),
        ([0.0996], 1),  # prints as 0.1
        ([0.94], 1),
        ([0.96], 0),  # prints as 1
        ([12.0], 0),
        ([1e-9], 4),
        ([None, 0.0, 0.03], 2),  # one seed, and identical seeds, say nothing
    ],
)
def test_the_leading_digit_of_the_typical_error_is_the_last_printed(errors: list[float | None], expected: int) -> None:
    assert decimals(errors, [65.3]) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([65.3, 23.7, 0.0], 1),
        ([0.653], 3),
        ([2.31], 2),
        ([150.0], 0),
        ([0.0001], 6),
        ([5e-7, 4e-7], 9),
        ([None], 1),
        ([], 1),
    ],
)
def test_without_an_error_the_typical_value_gets_three_digits(values: list[float | None], expected: int) -> None:
    assert decimals([None, 0.0], values) == expected
