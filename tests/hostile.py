"""Names that carry something: formulas, markup, commands, paths, escape codes. And judges for each kind of output.

Every place that a foreign string can come from is given each of them in ``tests/report/test_hostile_names.py``; a new
kind of output joins by one line in its ``OUTPUTS``.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from typing import NoReturn

CANARY = "http://127.0.0.1:{port}/canary"  # a page that fetches this has run, or loaded, what a name carried

FORMULAS = (
    "=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://127.0.0.1/","x")', '=IMPORTXML("http://127.0.0.1/","//a")',
    "+1+1",
    "+cmd|' /C calc'!A0", "-1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1+9)*cmd|' /C calc'!A0", "\t=1+1", "\r=1+1",
    "\n=1+1",
    " =1+1", "'=1+1", '"=1+1', '","=1+1', '"\n=1+1\n"', ";=1+1", "％=1+1", "＝1+1",
)  # fmt: skip
# document.title, a request, an alert: each would be seen
MARKUP = (
    "<script>fetch('{canary}')</script>", "<script src={canary}></script>",
    "</script><script>fetch('{canary}')</script>",
    "<img src=x onerror=fetch('{canary}')>", "<img src={canary}>", "<svg onload=fetch('{canary}')>",
    "<svg/onload=fetch('{canary}')//",
    "<iframe src={canary}></iframe>", "<iframe srcdoc=\"<script>fetch('{canary}')</script>\">",
    "<link rel=stylesheet href={canary}>",
    "<style>@import '{canary}';</style>", "<body onload=fetch('{canary}')>", "<base href={canary}/>",
    "<object data={canary}>",
    "<embed src={canary}>", "<video><source onerror=fetch('{canary}')>",
    "<meta http-equiv=refresh content='0;url={canary}'>",
    "<a href=\"javascript:fetch('{canary}')\">x</a>", "<details open ontoggle=fetch('{canary}')>",
    "<input autofocus onfocus=fetch('{canary}')>",
    "--><script>fetch('{canary}')</script>", "<!--", "]]><script>fetch('{canary}')</script>", "<![CDATA[",
    "<plaintext>", "<textarea>", "</table>",
    "</td></tr></table><h1>", "<b>bold", "&lt;script&gt;", "&#60;script&#62;", "&#x3c;img src={canary}&#x3e;",
    "\" onmouseover=\"fetch('{canary}')",
    "' onfocus='fetch(\"{canary}\")", "javascript:fetch('{canary}')",
    "data:text/html,<script>fetch('{canary}')</script>",
)  # fmt: skip
MARKDOWN = (
    "![x]({canary})", "![x][y]", "[x]({canary})", "[x](javascript:fetch('{canary}'))", "[x]: {canary}", "[^1]",
    "[^1]: x", "<{canary}>",
    "a | b", "a \\| b", "a \\\\| b", "|---|", "| :-- |", "`code`", "``", "```", "~~~", "~~x~~", "*x*", "**x**", "_x_",
    "__x__", "***",
    "# x", "## x", "- x", "+ x", "* x", "1. x", "1) x", "> x", "---", "===", "    x", "\\", "\\\\", "trailing \\",
    "- [ ] x", "$x$",
    "$$x$$", "\\(x\\)", "@everyone", "#1", ":smile:", "[[x]]", "<br>", "x  \ny", "\n\n# x", "| a |\n|---|\n| b |",
    "www.example.com", "![",
    "](", "[", "]", "&amp;", "&", "&copy;", "<", ">", "http://example.com",
)  # fmt: skip
LATEX = (
    "\\input{/etc/passwd}", "\\write18{touch x}", "\\immediate\\write18{x}", "\\include{x}", "\\def\\x{\\x}\\x",
    "\\end{document}", "%", "$",
    "_", "^", "~", "#", "{", "}", "&", "\\\\", "$\\frac{1}{0}$", "^^5cinput", "\\catcode`\\%=12", "\\openout",
    "\\csname",
)  # fmt: skip
TERMINAL = (
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;http://127.0.0.1/\x1b\\x\x1b]8;;\x1b\\",
    "\x1b]52;c;eA==\x07", "\x1b[6n",
    "\x1bP+q544e\x1b\\", "\x1b(0", "\x1bc", "\x1b_x\x1b\\", "\x9b31m", "\x9d0;x\x9c", "\x90x\x9c", "\x07",
    "\x08\x08\x08", "\x0b\x0c", "\x7f",
    "\x00", "a\x00b", "\r", "x\ry", "x\r\ny", "\n", "x\ny", "\x85", "\u2028", "\u2029", "x\u2028y", "\x1a", "\x0e",
    "\x05", "\x1b[8m", "[red]x[/red]",
    "[link=http://127.0.0.1/]x[/link]", "[/]", ":boom:",
)  # fmt: skip
UNICODE = (
    "\u202egpj.exe", "\u202dx", "\u2066x\u2069", "\u2067x", "\u200e", "\u200f", "\u061c", "\u200b", "x\u200dy",
    "\ufeff", "\u2060",
    "e" + "\u0301" * 50, "\u0336x", "مرحبا", "שלום", "אab|ג", "深さ：六", "🧪🔥", "👩‍👩‍👧", "\ufffd", "\uffff",
    "\U000e0041",
    "\ue000", "ß", "İ", "ﬀ", "а",
    "\u00a0", "\u3000", "\u115f", "\u2800", "\u00ad",
)  # fmt: skip
PATHS = (
    "../../../etc/passwd", "..\\..\\x", "/etc/passwd", "C:\\x", "\\\\host\\share", "~root", "file:///etc/passwd", ".",
    "..", "con", "nul", "a/b",
    "x;touch y", "$(touch y)", "`touch y`", "| touch y", "&& touch y", "-rf", "--help", "*", "?", "%00", "%2e%2e%2f",
    "${PATH}", "{0}", "%s", "%n",
    "' OR 1=1 --", "'; DROP TABLE study; --", "\"", "'", "''", "null", "None", "NaN", "true", "0", "-0", "1e999", "",
    " ", "x" * 300, "x " * 200,
    "{{7*7}}", "${{7*7}}", "<%= 7*7 %>",
)  # fmt: skip


def corpus(canary: str = CANARY.format(port=9)) -> list[str]:
    """Return all hostile strings, those that load something with this address, each once."""
    every = (*FORMULAS, *MARKUP, *MARKDOWN, *LATEX, *TERMINAL, *UNICODE, *PATHS)
    return list(dict.fromkeys(text.replace("{canary}", canary) for text in every))


# --- judges --------------------------------------------------------------------------------------------------------


def drives_terminal(text: str) -> str:
    """Return what of a text would drive a terminal, or turn its line around; empty where nothing does."""
    bad = sorted({c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"})
    return " ".join(f"U+{ord(c):04X}" for c in bad)


def rows_of_csv(text: str) -> list[list[str]]:
    """Return the rows of a CSV text. Fails where they differ in length, or a cell is a formula."""
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert len({len(row) for row in rows}) == 1, "rows of several lengths"
    for row in rows:
        for cell in row:
            if cell[:1] in tuple("=+-@\t\r\n"):
                assert re.fullmatch(r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|inf)", cell), f"a formula: {cell!r}"
    return rows


def strict_json(text: str) -> object:
    """Return what strict JSON holds: no NaN, no key twice."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs), f"a key twice: {[key for key, _ in pairs]}"
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def strings_in(value: object) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return set().union(*({key} | strings_in(item) for key, item in value.items()))
    return set().union(*map(strings_in, value)) if isinstance(value, list) else set()
