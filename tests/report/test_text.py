from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.report.text import in_encoding, markdown, one_line

SPECIAL = r"[\\`*\[\]<|~$]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\t c\r\nd", "a b c d"),
        ("red\x1b[31m", r"red\x1b[31m"),
        ("abc\u202edef", r"abc\u202edef"),
        ("\x00", r"\x00"),
        ("Größe 深さ → 6", "Größe 深さ → 6"),
    ],
)
def test_one_line_shows_what_would_drive_a_terminal(text: str, expected: str) -> None:
    assert one_line(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("<b>", r"\<b>"),
        ("[x](y)", r"\[x\](y)"),
        ("`*`", r"\`\*\`"),
        ("val_acc", "val_acc"),
        ("_it_ a_", r"\_it\_ a\_"),
        ("__init__", r"\_\_init\_\_"),
        ("&lt; &#35; & more", r"\&lt; \&#35; & more"),
        ("# no heading", r"\# no heading"),
        ("- no list", r"\- no list"),
        ("1. no list", r"1\. no list"),
        ("depth 4 -> 6", "depth 4 -> 6"),
    ],
)
def test_markdown_prints_foreign_text_as_it_stands(text: str, expected: str) -> None:
    assert markdown(text) == expected


@given(st.text())
def test_no_foreign_text_leaves_its_cell(text: str) -> None:
    escaped = markdown(text)
    assert escaped.isprintable()
    bare = re.sub(r"\\.", "", escaped)  # an escaped character is plain
    assert not re.search(SPECIAL, bare)


@given(st.text())
def test_an_ascii_console_can_print_everything(text: str) -> None:
    assert in_encoding(text, "ascii").isascii()
    assert in_encoding(text, "ascii") == text or not text.isascii()


def test_our_own_signs_have_ascii_names() -> None:
    assert in_encoding("64.9 ± 0.5† └ Δ ──●─ │ −", "ascii") == "64.9 +/- 0.5^ `- diff --o- | -"
