"""The YAML parser's complaints in words that tell a person what to mend, and on which line."""

from __future__ import annotations

import re

from ruamel.yaml.error import MarkedYAMLError

# what the parser says → whether the mistake is where the broken thing begins; what we say, and a hint
_WORDS = (
    (r"found character '\\t'", False, "a tab can't indent YAML", "indent with spaces"),
    (r"found character '(.)' that", False, "a text can't begin with the sign {found}", "put it in quotes"),
    (r"expected ',' or '(.)'", True, "a `,` or the closing `{found}` is missing", "it may be missing some lines below"),
    (r"unexpected end of stream", True, "a quote that begins here is not closed", ""),
    (
        r"mapping values are not",
        False,
        "a second `: ` on one line, or a line indented too far",
        "quote a text that holds `: `; else compare the indentation with the line above",
    ),
    (
        r"<block end>, but found '<scalar>'",
        False,
        "text after the end of a value",
        "put the whole value in quotes; a quote inside '…' is written ''",
    ),
    (
        r"<block end>, but found",
        False,
        "this line does not fit the lines above it",
        "check its indentation: the block it should belong to begins on line {begun}",
    ),
    (r"alphabetic or numeric char", False, "a text can't begin with one of the signs & * %", "put it in quotes"),
    (r"could not find expected ':'", True, "a `: ` is missing after a key", "a colon is followed by a space"),
    (
        r"unknown escape|escape sequence",
        False,
        "a backslash is not followed by a known letter",
        r'inside "…" write \\ for a backslash, or use single quotes',
    ),
    (r"node content, but found '(.)'", False, "a value is missing before `{found}`", "quote `{found}` if it is text"),
    (r"sequence entries are not", False, "a `- ` item can't stand on the line of its key", "begin it on the next line"),
    (r"(.+)", False, "not valid YAML: {found}", "check the indentation and the quotes around this line"),
)


def in_plain_words(error: MarkedYAMLError) -> tuple[int | None, str, str]:
    """Return the line of the mistake, a message and a hint."""
    problem = str(error.problem or error.context)
    begun, found_at = ((mark.line + 1 if mark else None) for mark in (error.context_mark, error.problem_mark))
    for pattern, is_where_begun, message, hint in _WORDS:
        match = re.search(pattern, problem)
        if match:
            words = {"found": match[match.lastindex or 0], "begun": begun}
            line = begun or found_at if is_where_begun else found_at or begun
            return line, message.format(**words), hint.format(**words)
    raise AssertionError("the last pattern fits every problem")
