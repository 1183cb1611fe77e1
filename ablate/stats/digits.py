"""How many decimals a column of numbers carries."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

MAX_DECIMALS = 4
_SIGNIFICANT = 3  # where nothing is known of the error
_ROUNDING = 1e-12


def decimals(standard_errors: Iterable[float | None], values: Iterable[float | None]) -> int:
    """Return the decimals (0 to 4) that show the leading digit of the median standard error.

    One number for a whole column, so that its rows can be compared by eye; the median, because one broken arm must not
    blunt the others. Where no standard error is known (one seed) or all are zero, the median value gets three
    significant digits.
    """
    sizes = [abs(value) for value in values if value]
    floor = _ROUNDING * max(sizes, default=0.0)  # equal differences leave an error of rounding, which shows no digit
    errors = [error for error in standard_errors if error and error > floor]
    if errors:
        return _clamped(-_exponent(median(errors)))
    return _clamped(_SIGNIFICANT - 1 - _exponent(median(sizes))) if sizes else 1


def _exponent(size: float) -> int:
    """Return the power of ten of the leading digit, of the value as it is printed: 0.0996 is 0.1."""
    return int(f"{size:.0e}".partition("e")[2])


def _clamped(places: int) -> int:
    return max(0, min(MAX_DECIMALS, places))


__all__ = ["MAX_DECIMALS", "decimals"]
