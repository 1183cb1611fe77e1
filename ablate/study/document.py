"""YAML text to plain values with the line of each, strictly and within limits.

The format is YAML 1.2 without its traps: duplicate keys, tags and merge keys are faults; only what *looks* like a
number, a boolean or null is one. The values are built here from the parser's events, because the limits must hold
before anything is built: an alias bomb of 306 bytes expands to five million nodes, and deep nesting overflows
recursive loaders.
"""

from __future__ import annotations

import copy
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from ablate.errors import Fault, StudyError
from ablate.study.syntax import in_plain_words

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 50_000
MAX_KEY = 200
MAX_LINE = 100_000  # characters: the parser takes quadratic time for some
MAX_DIGITS = 20  # more than 64 bits need: longer ones are never turned into a number

Place = tuple[str | int, ...]

# YAML 1.2 core schema; a leading zero is no octal there, and a version like 010 is no number at all for us
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
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
    builder = _Builder(name)
    value = builder.document(text)
    if value is None:
        raise StudyError([Fault("the file is empty", name, _BEGINS)])
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else "single value"
        raise StudyError([Fault(f"a study is a mapping of keys; this is a {kind}", builder.where(()), _BEGINS)])
    return Document(name, value, builder.lines, tuple(builder.faults))


def parse_value(text: str, *, source: str) -> Any:
    """Parse one value as it would stand in a study, for ``--set path=value``. Raises StudyError."""
    builder = _Builder(source, numbered=False)
    value = builder.document(text)
    if builder.faults:
        raise StudyError(builder.faults)
    return value


def parse_scalar(text: str) -> Any:
    """Return what an unquoted scalar means: null, a boolean, an int, a float, or else the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?[0-9]+", text) and math.isfinite(float(text)):
        return float(text) + 0.0  # -0.0 becomes 0.0: equal numbers must give the same trial
    return text  # 12e34567 overflows a float: it is a git hash, not infinity


def control_character(text: str) -> str:
    """Return what is wrong with a text that holds a control character, or nothing."""
    strange = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n"), None)
    return "" if strange is None else f"a text may not hold the control character U+{ord(strange):04X}"


_BEGINS = "a study begins with `schema: ablate/v1` and `name: …`; `ablate schema` prints all that it may hold"


class _Builder:
    """Builds one value from the parser's events, and notes the line of each place and the faults that it can pass."""

    def __init__(self, name: str, *, numbered: bool = True) -> None:
        self.name = name
        self.lines: dict[Place, int] = {}
        self.faults: list[Fault] = []
        self._numbered = numbered
        self._anchors: dict[str, Any] = {}
        self._nodes = 0

    def document(self, text: str) -> Any:
        yaml = YAML(typ="safe", pure=True)  # never the C loader: it dies of signal 11 on deep nesting
        value = None
        documents = 0
        try:
            events: Iterator[Event] = iter(yaml.parse(text))
            for event in events:
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._stop("a file holds one study; here a second document begins", event)
                    value = self._node(next(events), events, ())
        except MarkedYAMLError as error:
            line, message, hint = in_plain_words(error)
            hint = hint if self._numbered else ""  # it speaks of lines
            raise StudyError([*self.faults, Fault(message, self._at(line) if line else self.name, hint)]) from None
        except ReaderError as error:
            line = text[: error.position].count("\n") + 1
            character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1])
            message = f"the character U+{character:04X} may not stand in YAML"
            raise StudyError([*self.faults, Fault(message, self._at(line))]) from None
        except (YAMLError, ValueError) as error:
            raise StudyError([*self.faults, Fault(f"not valid YAML: {error}", self.name)]) from None
        return value

    def where(self, place: Place) -> str:
        return self._at(self.lines[place])

    def _node(self, event: Event, events: Iterator[Event], place: Place) -> Any:
        self._count(1, event)
        if len(place) > MAX_DEPTH:
            self._stop(f"nested deeper than {MAX_DEPTH} levels", event)
        self.lines.setdefault(place, _line(event))
        if isinstance(event, AliasEvent):
            return self._alias(event, place)
        self._refuse_tag(event)
        value: Any
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(events, place)
        elif isinstance(event, MappingStartEvent):
            value = self._mapping(events, place)
        else:
            raise AssertionError(f"unexpected YAML event {event!r}")
        if getattr(event, "anchor", None):
            self._anchors[event.anchor] = value
        return value

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        strange = control_character(text)
        if strange:
            self._fault(strange, event)
            return ""
        if event.style:  # quoted or a block: text, whatever it looks like
            return text
        value = parse_scalar(text)
        if _NOT_FINITE.fullmatch(text):
            self._fault(f"`{text}` is not a finite number", event, "quote it if it is text")
        elif _INT.fullmatch(text) and (isinstance(value, str) or abs(value) >= 1 << 63):
            self._fault("an integer that needs more than 64 bits", event, "quote it if it is text")
        return value

    def _sequence(self, events: Iterator[Event], place: Place) -> list[Any]:
        values: list[Any] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                return values
            values.append(self._node(event, events, (*place, len(values))))
        raise AssertionError("the parser closes every sequence")

    def _mapping(self, events: Iterator[Event], place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                return values
            key = self._key(event)
            line = _line(event)
            if key in values:
                first = self.lines[(*place, key)]
                earlier = f", first on line {first}" if first < line else ""
                self._fault(f"the key `{key}` stands twice{earlier}", event, "remove one of the two")
                self._node(next(events), events, (*place, f"{key} (again, line {line})"))
                continue
            self.lines[(*place, key)] = line
            values[key] = self._node(next(events), events, (*place, key))
        raise AssertionError("the parser closes every mapping")

    def _key(self, event: Event) -> str:
        if not isinstance(event, ScalarEvent):
            self._stop("a key must be plain text", event)
        self._refuse_tag(event)
        key: str = event.value
        if key == "<<":
            self._stop("merge keys (`<<`) are not part of YAML 1.2", event, "write the keys out, or use a profile")
        if len(key) > MAX_KEY:
            self._stop(f"a key of {len(key):,} characters; a key has at most {MAX_KEY}", event)
        if not key.isprintable():
            self._stop("a key must be printable text on one line", event)
        return key

    def _alias(self, event: AliasEvent, place: Place) -> Any:
        name = f"*{event.anchor[:MAX_KEY]}"
        if event.anchor not in self._anchors:
            self._stop(f"the alias `{name}` has no anchor above it, or stands inside it", event)
        value = self._anchors[event.anchor]
        nodes, depth = _extent(value)
        self._count(nodes, event)
        if len(place) + depth > MAX_DEPTH:
            self._stop(f"the alias `{name}` nests deeper than {MAX_DEPTH} levels", event)
        return copy.deepcopy(value)  # shared, a change of one place by a profile would change the other as well

    def _count(self, nodes: int, event: Event) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            self._stop(f"the file holds, or its aliases expand to, more than {MAX_NODES:,} values", event)

    def _refuse_tag(self, event: Any) -> None:
        tag = getattr(event, "tag", None)
        if tag:
            name = str(tag).replace("tag:yaml.org,2002:", "!!")[:MAX_KEY]
            self._stop(f"the tag `{name}` is not allowed", event, "write plain values; quote what is text")

    def _at(self, line: int) -> str:
        return f"{self.name}:{line}" if self._numbered else self.name

    def _fault(self, message: str, event: Event, hint: str = "") -> None:
        self.faults.append(Fault(message, self._at(_line(event)), hint))

    def _stop(self, message: str, event: Event, hint: str = "") -> NoReturn:
        self._fault(message, event, hint)
        raise StudyError(self.faults)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _extent(value: Any) -> tuple[int, int]:
    """Return how many values a value holds, itself included, and how deep they are nested."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    extents = [_extent(item) for item in below]
    return 1 + sum(nodes for nodes, _ in extents), max((1 + depth for _, depth in extents), default=0)


def _neighbours(path: Path) -> str:
    found = sorted(str(study) for study in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
    return "studies there: " + ", ".join(found) if found else "give the path of a study file"
