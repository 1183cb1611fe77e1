"""The trials as comma-separated values (RFC 4180), safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

from ablate.report.text import visible

if TYPE_CHECKING:
    from ablate.analyse.frames import Frame

# a spreadsheet takes such a text for a formula and runs it (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def render(frame: Frame) -> str:
    """Return the frame of trials with a header line, lines ending in CR LF, and empty fields for what is not there.

    Text that begins like a formula gets a leading apostrophe; numbers are printed with all their digits.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([_cell(str(name)) for name in frame.columns])
    for row in frame.itertuples(index=False, name=None):
        writer.writerow([_cell(value) for value in row])
    return lines.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        text = visible(value, keep="\t\r\n")  # RFC 4180 has no place for other control characters
        return f"'{text}" if text.startswith(_FORMULA) else text
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)
