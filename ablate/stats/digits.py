"""How many decimals a column of numbers carries."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

MAX_DECIMALS = 4  # of values about 1; smaller ones have as many more as they have zeros
_SIGNIFICANT = 3  # where nothing is known of the error
_ROUNDING = 1e-12


def decimals(standard_errors: Iterable[float | None], values: Iterable[float | None]) -> int:
    """Return the decimals that show the leading digit of the median standard error.

    One number for a whole column, so that its rows can be compared by eye; the median, because one broken arm must not
    blunt the others. Where no standard error is known (one seed) or all are zero, the median value gets three
    significant digits.
    """
    sizes = [abs(value) for value in values if value]
    floor = _ROUNDING * max(sizes, default=0.0)  # equal differences leave an error of rounding, which shows no digit
    errors = [error for error in standard_errors if error and error > floor]
    most = MAX_DECIMALS + max(0, -_exponent(median(sizes)) - 1 if sizes else 0)
    if errors:
        return max(0, min(most, -_exponent(median(errors))))
    return max(0, min(most, _SIGNIFICANT - 1 - _exponent(median(sizes)))) if sizes else 1


def _exponent(size: float) -> int:
    """Return the power of ten of the leading digit, of the value as it is printed: 0.0996 is 0.1."""
    return int(f"{size:.0e}".partition("e")[2])


__all__ = ["MAX_DECIMALS", "decimals"]
