"""Small helpers for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 8


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known word, or a few of them; empty where nothing is known."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    if not words:
        return ""
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return "known: " + ", ".join(words[:LISTED]) + more


def with_article(noun: str) -> str:
    """Return `an integer`, `a list`; words that take no article stay as they are."""
    if noun in ("text", "null", "true or false"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def duration(seconds: float) -> str:
    """Return a time as a person would say it: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
