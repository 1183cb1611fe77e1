"""Numbers as text. One place, so that every rendering prints the same digits."""

from __future__ import annotations

from collections.abc import Sequence


def fixed(value: float, places: int) -> str:
    """``64.9``. A value that is exactly zero has no sign, whatever its bits say."""
    return f"{value or 0.0:.{places}f}"


def signed(value: float, places: int) -> str:
    """``+6.0``; ``-0.0`` is a little below zero, and exactly zero is ``0.0``."""
    return f"{value:+.{places}f}" if value else fixed(value, places)


def plain(value: float) -> str:
    """A figure as it was written down: ``23``, ``64.85``."""
    return f"{value:.10g}"


def p_value(value: float) -> str:
    """``<.001``, ``.012``, ``.39``; never zero, and nothing that would round to a level it has not reached."""
    if value < 0.001:
        return "<.001"
    if value > 0.995:
        return "1"
    places = 3 if value < 0.0995 else 2
    return f"{value:.{places}f}".removeprefix("0")


def duration(seconds: float) -> str:
    """``2.3 s``, ``12 s``, ``3.4 min``, ``1.2 h``, ``140 h``."""
    if seconds < 59.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    if seconds < 59.95 * 60:
        return f"{seconds / 60:.{1 if seconds < 597 else 0}f} min"
    hours = seconds / 3600
    return f"{hours:.{1 if hours < 99.95 else 0}f} h"


def energy(joules: float) -> str:
    """``0.42 Wh``, ``35 Wh``, ``1.2 kWh``."""
    hours = joules / 3600
    return f"{hours / 1000:.3g} kWh" if hours >= 999.5 else f"{hours:.3g} Wh"


def quantity(value: float) -> str:
    """Three digits with an SI prefix: ``950``, ``11.7 M``, ``1.82 G``."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and (larger := next(prefixes, None)) is not None:
        value, prefix = value / 1000, larger
    digits = "#.3g" if prefix else ".3g"
    text = f"{value:{digits}}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    return f"{text} {prefix}".rstrip()


def seed_list(seeds: Sequence[int]) -> str:
    """``1-5`` for a run of three or more, else ``1, 4, 9``."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
