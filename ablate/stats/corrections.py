"""P-values adjusted for the number of comparisons, in the order they were given.

A None is a comparison without a test. It stays None and yet counts: a comparison that was declared and could not be
made has not made the others fewer. ``m`` is that count, and larger than the list where comparisons were withdrawn.
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(ps: Sequence[float | None], m: int | None = None) -> list[float | None]:
    """Return Holm's step-down p-values: cumulative maximum of (m − i)·p over ascending p, i from 0 (1979, SJS 6:65).

    Rejecting those below alpha keeps the chance of any false rejection below alpha, whatever their dependence.
    """
    m = _count(ps, m)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(_ascending(ps)):
        highest = max(highest, min(1.0, (m - rank) * p))
        adjusted[place] = highest
    return adjusted


def benjamini_hochberg(ps: Sequence[float | None], m: int | None = None) -> list[float | None]:
    """Return the step-up p-values: cumulative minimum of m·p/i over descending p, i the rank from 1.

    Benjamini & Hochberg (1995, JRSSB 57:289). Rejecting those below alpha keeps the expected share of false ones
    among the rejected below alpha.
    """
    m = _count(ps, m)
    adjusted: list[float | None] = [None] * len(ps)
    lowest = 1.0
    for rank, (p, place) in reversed(list(enumerate(_ascending(ps), start=1))):
        lowest = min(lowest, m / rank * p)  # in this order it rounds to p or above
        adjusted[place] = lowest
    return adjusted


def _ascending(ps: Sequence[float | None]) -> list[tuple[float, int]]:
    """Return each p-value that there is with its place, the smallest first."""
    return sorted((p, place) for place, p in enumerate(ps) if p is not None)


def _count(ps: Sequence[float | None], m: int | None) -> int:
    if m is not None and m < len(ps):
        raise ValueError(f"{len(ps)} comparisons cannot be counted as {m}")
    return len(ps) if m is None else m


__all__ = ["benjamini_hochberg", "holm"]
