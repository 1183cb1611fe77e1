"""YAML text to plain values with the line of each, strictly and within limits.

The format is YAML 1.2 without its traps: duplicate keys, tags and merge keys are faults; only what *looks* like a
number, a boolean or null is one. The values are built here from the parser's events, because the limits must hold
before anything is built: an alias bomb of 306 bytes expands to five million nodes, and deep nesting overflows
recursive loaders.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablate.errors import Fault, StudyError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 50_000
MAX_KEY = 200
MAX_LINE = 100_000  # characters: the parser takes quadratic time for some
MAX_DIGITS = 20  # more than 64 bits need: longer ones are never turned into a number

Place = tuple[str | int, ...]

# YAML 1.2 core schema; a leading zero is no octal there, and a version like 010 is no number at all for us
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Flaw:
    """A fault that knows its place in the document, and not yet its line."""

    place: Place
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Document:
    """A parsed file: its value, and for each place in it (a path of keys and indexes) the line it stands on.

    Each change of the value adds a map to ``moves``: from a place to where it came from, which is a place before the
    change, or the words of the command line. So a fault points at the line that holds it, whatever was merged. What
    was declared in Python has no file: its ``name`` is empty, and ``lines`` has words for places (`steps[2].set`).
    """

    name: str
    value: dict[str, Any]
    lines: Mapping[Place, int | str] = field(repr=False)
    faults: tuple[Fault, ...] = ()
    moves: tuple[Mapping[Place, Place | str], ...] = field(default=(), repr=False)
    folder: Path = Path()  # where the task lies

    def where(self, place: Place) -> str:
        """Return ``file:line`` of a place, or of the nearest thing around it that has a line."""
        for moves in reversed(self.moves):
            source = next((part for part in _prefixes(place) if part in moves), None)
            if source is None:
                continue
            origin = moves[source]
            if isinstance(origin, str):
                return origin
            place = (*origin, *place[len(source) :])
        line = next((self.lines[part] for part in _prefixes(place) if part in self.lines), None)
        if isinstance(line, str):
            return line
        return self.name if line is None else f"{self.name}:{line}"

    def fault(self, flaw: Flaw) -> Fault:
        return Fault(flaw.message, self.where(flaw.place), flaw.hint)

    def changed(self, value: dict[str, Any], moves: Mapping[Place, Place | str]) -> Document:
        """Return the document with another value, and from where its changed places came."""
        return replace(self, value=value, moves=(*self.moves, moves))


def _prefixes(place: Place) -> Iterator[Place]:
    return (place[:length] for length in range(len(place), -1, -1))


def read_document(path: str | Path) -> Document:
    """Read one YAML file. Raises StudyError where it can't be read or is no mapping at the top."""
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # not all of it: it may be /dev/zero
    except FileNotFoundError:
        raise StudyError([Fault("no such study file", name, _neighbours(Path(path)))]) from None
    except OSError as error:
        raise StudyError([Fault(f"the study can't be read: {error.strerror}", name)]) from None
    if len(data) > MAX_BYTES:
        raise StudyError([Fault(f"the file is too large: a study has at most {MAX_BYTES:,} bytes", name)])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        hint = "save it with the encoding UTF-8"
        raise StudyError([Fault("the file is not UTF-8 text", f"{name}:{line}", hint)]) from None
    return replace(parse_document(text, name=name), folder=Path(path).parent)


def parse_document(text: str, *, name: str) -> Document:
    """Parse YAML text as ``read_document`` does. Faults of single places are returned; the rest is kept."""
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > MAX_LINE:
            raise StudyError([Fault(f"a line of more than {MAX_LINE:,} characters", f"{name}:{number}")])
    from ablate.study.building import Builder  # here and below: late, as a study in a store is no YAML

    builder = Builder(name)
    value = builder.document(text)
    if value is None:
        raise StudyError([Fault("the file is empty", name, _BEGINS)])
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else "single value"
        raise StudyError([Fault(f"a study is a mapping of keys; this is a {kind}", builder.where(()), _BEGINS)])
    return Document(name, value, builder.lines, tuple(builder.faults))


def parse_value(text: str, *, source: str) -> Any:
    """Parse one value as it would stand in a study, for ``--set path=value``. Raises StudyError."""
    from ablate.study.building import Builder

    builder = Builder(source, numbered=False)
    value = builder.document(text)
    if builder.faults:
        raise StudyError(builder.faults)
    return value


def parse_scalar(text: str) -> Any:
    """Return what an unquoted scalar means: null, a boolean, an int, a float, or else the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if INT.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?[0-9]+", text) and math.isfinite(float(text)):
        return float(text) + 0.0  # -0.0 becomes 0.0: equal numbers must give the same trial
    return text  # 12e34567 overflows a float: it is a git hash, not infinity


def control_character(text: str) -> str:
    """Return what is wrong with a text that holds a control character, or nothing."""
    strange = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n"), None)
    return "" if strange is None else f"a text may not hold the control character U+{ord(strange):04X}"


_BEGINS = "a study begins with `schema: ablate/v1` and `name: …`; `ablate schema` prints all that it may hold"


def _neighbours(path: Path) -> str:
    found = sorted(str(study) for study in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
    return "studies there: " + ", ".join(found) if found else "give the path of a study file"
