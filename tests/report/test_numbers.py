from __future__ import annotations

import pytest

from ablate.report.numbers import duration, fixed, listed, plain, plural, quantity, seed_list, signed


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0.0 s"), (2.34, "2.3 s"), (9.96, "10 s"), (12.4, "12 s"), (59.4, "59 s"), (59.6, "1.0 min"),
        (204, "3.4 min"), (599, "10 min"), (3596, "60 min"), (3598, "1.0 h"), (4320, "1.2 h"), (504_000, "140 h"),
    ],
)  # fmt: skip
def test_a_duration_has_the_unit_that_reads_best(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (7, "7"), (950, "950"), (999.6, "1.00 k"), (1_450_000, "1.45 M"), (11_689_512, "11.7 M"),
        (999_600, "1.00 M"), (1.82e9, "1.82 G"), (123e6, "123 M"), (4e21, "4000000 P"),
    ],
)  # fmt: skip
def test_a_quantity_has_three_digits(value: float, expected: str) -> None:
    assert quantity(value) == expected


def test_the_sign_of_an_effect_is_that_of_its_value() -> None:
    assert [signed(value, 1) for value in (6.0, -5.0, 0.04, -0.04, 0.0, -0.0)] == [
        "+6.0", "-5.0", "+0.0", "-0.0", "0.0", "0.0",
    ]  # fmt: skip
    assert fixed(-0.0, 2) == "0.00"


def test_small_words() -> None:
    assert plain(23.0) == "23"
    assert plain(64.85) == "64.85"
    assert [seed_list(seeds) for seeds in ([1], [1, 2], [1, 2, 3], [1, 2, 4], [7, 5, 6])] == [
        "1", "1, 2", "1-3", "1, 2, 4", "7, 5, 6",
    ]  # fmt: skip
    assert [plural(1, "seed"), plural(1200, "trial")] == ["1 seed", "1,200 trials"]
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
