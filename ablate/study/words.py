"""Small helpers for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

LISTED = 8
CITED = 60  # characters
COMPARED = 100  # characters: difflib takes quadratic time


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known word, or a few of them; empty where nothing is known."""
    words = list(known)
    close = nearest(word, words)
    if close:
        return f"did you mean `{close}`?"
    if not words:
        return ""
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return "known: " + ", ".join(words[:LISTED]) + more


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant: alike in its letters, or with the same last dotted part."""
    words = list(known)
    last = word.rpartition(".")[2]
    same_end = [each for each in words if each.rpartition(".")[2] == last]
    if len(same_end) == 1:
        return same_end[0]
    import difflib  # late, as few commands need it

    close = difflib.get_close_matches(word[:COMPARED].lower(), [each.lower() for each in words], n=1, cutoff=0.6)
    return next((each for each in words if close and each.lower() == close[0]), None)


def with_article(noun: str) -> str:
    """Return `an integer`, `a list`; words that take no article stay as they are."""
    if noun in ("text", "null"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def cited(text: str) -> str:
    """Return a stranger's text in backquotes: on one line, printable, and cut to what a message has room for."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())
    return f"`{shown}`" if len(shown) <= CITED else f"`{shown[: CITED - 1]}…`"


def listed(words: Iterable[str]) -> str:
    """Return `a`, `b` and `c`, each in backquotes."""
    *first, last = (f"`{word}`" for word in words)
    return f"{', '.join(first)} and {last}" if first else last


def duration(seconds: float) -> str:
    """Return a time as a person would say it: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def without_secrets(text: str) -> str:
    """Return a text with the password and the query of each URL in it left out: others may come to read it."""
    return re.sub(r"(\w://)(\S+)", lambda found: found[1] + _place(found[2]), text)


def _place(rest: str) -> str:
    head, mark, query = rest.partition("?")
    if "@" not in head and "@" in query:  # a question mark of the password
        head, mark, query = rest.rpartition("@")[0] + "@" + rest.rpartition("@")[2].partition("?")[0], "", ""
    user, at, place = head.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{name}{':***' if colon else ''}{at}{place}{'?***' if mark else ''}"


def storable(text: str) -> str:
    """Return a text that every store can keep: PostgreSQL has no NUL, none has lone surrogates (of odd file names)."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def from_here(path: str) -> str:
    """Return a path as it is named from the current folder: relative where it lies below it, else whole."""
    whole = Path(path).absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
