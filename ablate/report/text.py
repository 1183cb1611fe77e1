"""Foreign text (titles, reasons, notes of a study) made harmless: it can neither break a table nor drive a terminal."""

from __future__ import annotations

import io
import os
import re
import sys


def one_line(text: str) -> str:
    """Return the text on one line; control characters and invisible marks (bidi overrides) are shown, not sent."""
    return visible(" ".join(text.split()))


def visible(text: str, *, keep: str = "") -> str:
    """Return the text with what no screen shows spelt out, but for the characters in ``keep``."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


# what ASCII terminals print in place of the signs that we use ourselves
_ASCII = str.maketrans(
    {
        "±": "+/-", "Δ": "diff", "−": "-", "×": "x", "·": "-", "→": "->", "≥": ">=", "└": "`-", "†": "^",
        "—": "--", "…": "...", "─": "-", "●": "o", "│": "|", "✓": "x",
    }
)  # fmt: skip


def in_encoding(text: str, encoding: str) -> str:
    """Return the text as a console of this encoding can print it; what it lacks is spelt out or escaped."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def make_streams_safe() -> None:
    """See to it that no character can end a command: what a stream's encoding lacks is escaped.

    Under LANG=C Python writes UTF-8 all the same; a terminal that was told so shows it as rubbish, and gets ASCII.
    """
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_plain = locale in ("C", "POSIX") and sys.flags.utf8_mode and stream.isatty()
            stream.reconfigure(encoding="ascii" if is_plain else None, errors="backslashreplace")


def markdown(text: str) -> str:
    """Return foreign text so that GitHub's Markdown prints it as it stands, inside a pipe table too."""
    text = re.sub(r"([\\`*\[\]<|~$])", r"\\\1", one_line(text))
    # inside a word an underscore is plain in GitHub's dialect, and val_acc stays readable
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text)
    text = re.sub(r"^([#>+=-])", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)
