"""YAML text to plain values with the line of each, strictly and within limits.

The format is YAML 1.2 without its traps: duplicate keys, tags and merge keys are faults; only what *looks* like a
number, a boolean or null is one. The values are built here from the parser's events, because the limits must hold
before anything is built: an alias bomb of 306 bytes expands to five million nodes, and deep nesting overflows
recursive loaders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 50_000
MAX_DIGITS = 18

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
class Document:
    """A parsed file: its value, and for each place in it (a path of keys and indexes) the line it stands on."""

    name: str
    value: dict[str, Any]
    lines: Mapping[Place, int | str] = field(repr=False)  # text where it came from the command line
    faults: tuple[Fault, ...] = ()

    def where(self, place: Place) -> str:
        """Return ``file:line`` of a place, or of the nearest thing around it that has a line."""
        for length in range(len(place), -1, -1):
            line = self.lines.get(place[:length])
            if line is not None:
                return line if isinstance(line, str) else f"{self.name}:{line}"
        return self.name


def read_document(path: str | Path) -> Document:
    """Read one YAML file. Raises StudyError where it can't be read or is no mapping at the top."""
    name = str(path)
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise StudyError([Fault(f"the file has {size:,} bytes; a study has at most {MAX_BYTES:,}", name)])
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise StudyError([Fault("no such study file", name, _neighbours(Path(path)))]) from None
    except OSError as error:
        raise StudyError([Fault(f"the study can't be read: {error.strerror}", name)]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise StudyError(
            [Fault("the file is not UTF-8 text", f"{name}:{line}", "save it with the encoding UTF-8")]
        ) from None
    return parse_document(text, name=name)


def parse_document(text: str, *, name: str) -> Document:
    """Parse YAML text as ``read_document`` does. Duplicate keys are returned as faults; the rest is kept."""
    builder = _Builder(name)
    value = builder.document(text)
    if value is None:
        raise StudyError([Fault("the file is empty", name, "`ablate schema` prints what a study may hold")])
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else "single value"
        hint = "a study begins with `schema: ablate/v1` and `name: …`"
        raise StudyError([Fault(f"a study is a mapping of keys; this is a {kind}", f"{name}:1", hint)])
    return Document(name, value, builder.lines, tuple(builder.faults))


def parse_value(text: str) -> Any:
    """Parse one value as it would stand in a study, for ``--set path=value``. Raises StudyError."""
    return _Builder("--set").document(text)


def parse_scalar(text: str) -> Any:
    """Return what an unquoted scalar means: null, a boolean, an int, a float, or else the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text) and math.isfinite(float(text)):
        return float(text)
    return text  # 12e34567 overflows a float: it is a git hash, not infinity


class _Builder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Place, int | str] = {}
        self.faults: list[Fault] = []
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
            mark = error.problem_mark or error.context_mark
            place = f"{self.name}:{mark.line + 1}" if mark else self.name
            problem = _plain_problem(str(error.problem or error.context or "not valid YAML"))
            raise StudyError([Fault(problem, place, _syntax_hint(problem))]) from None
        except ReaderError as error:
            line = text[: error.position].count("\n") + 1
            character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1])
            message = f"the character U+{character:04X} may not stand in YAML"
            raise StudyError([Fault(message, f"{self.name}:{line}")]) from None
        except (YAMLError, ValueError) as error:
            raise StudyError([Fault(f"not valid YAML: {error}", self.name)]) from None
        return value

    def _node(self, event: Event, events: Iterator[Event], place: Place) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(f"more than {MAX_NODES:,} values", event)
        if len(place) > MAX_DEPTH:
            self._stop(f"nested deeper than {MAX_DEPTH} levels", event)
        self.lines.setdefault(place, event.start_mark.line + 1)
        if isinstance(event, AliasEvent):
            return self._alias(event)
        tag = getattr(event, "tag", None)
        if tag and str(tag) not in ("!", "None"):
            self._stop(f"the tag `{tag}` is not allowed", event, "write plain values")
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
        if event.style:  # quoted or a block: text, whatever it looks like
            return event.value
        if _INT.fullmatch(event.value) and len(event.value) > MAX_DIGITS:
            self._fault("an integer of more than 18 digits", event, "quote it if it is text")
        elif _NOT_FINITE.fullmatch(event.value):
            self._fault(f"`{event.value}` is not a finite number", event, "quote it if it is text")
        return parse_scalar(event.value)

    def _sequence(self, events: Iterator[Event], place: Place) -> list[Any]:
        values: list[Any] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                return values
            values.append(self._node(event, events, (*place, len(values))))
        raise AssertionError("the parser closes every sequence")

    def _mapping(self, events: Iterator[Any], place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                return values
            if not isinstance(event, ScalarEvent):
                self._stop("a key must be plain text", event)
            key: str = event.value
            line = event.start_mark.line + 1
            if key in values:
                first = self.lines[(*place, key)]
                self._fault(f"the key `{key}` stands twice, first on line {first}", event, "remove one of the two")
                self._node(next(events), events, (*place, f"{key} (again, line {line})"))
                continue
            self.lines[(*place, key)] = line
            values[key] = self._node(next(events), events, (*place, key))
        raise AssertionError("the parser closes every mapping")

    def _alias(self, event: AliasEvent) -> Any:
        if event.anchor not in self._anchors:
            self._stop(f"the alias `*{event.anchor}` has no anchor above it, or stands inside it", event)
        value = self._anchors[event.anchor]
        self._nodes += _count(value, MAX_NODES)
        if self._nodes > MAX_NODES:
            self._stop(f"aliases expand to more than {MAX_NODES:,} values", event)
        return value

    def _fault(self, message: str, event: Event, hint: str = "") -> None:
        self.faults.append(Fault(message, f"{self.name}:{event.start_mark.line + 1}", hint))

    def _stop(self, message: str, event: Event, hint: str = "") -> None:
        raise StudyError([*self.faults, Fault(message, f"{self.name}:{event.start_mark.line + 1}", hint)])


def _count(value: Any, limit: int) -> int:
    """Count the nodes of a value, giving up a little above ``limit``."""
    count, stack = 0, [value]
    while stack and count <= limit:
        item = stack.pop()
        count += 1
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return count


def _plain_problem(problem: str) -> str:
    return problem.replace("found character '\\t' that cannot start any token", "a tab can't indent YAML")


def _syntax_hint(problem: str) -> str:
    if "tab" in problem:
        return "indent with spaces"
    if "mapping values are not allowed" in problem:
        return "a value that holds `: ` must be quoted"
    return "check the indentation and the quotes around this line"


def _neighbours(path: Path) -> str:
    found = sorted(str(study) for study in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
    return "studies there: " + ", ".join(found) if found else "give the path of a study file"
