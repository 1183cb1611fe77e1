"""The values of a YAML text, built from the parser's events: the limits must hold before anything is built."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
from ablate.study.document import (
    INT,
    MAX_DEPTH,
    MAX_KEY,
    MAX_NODES,
    NOT_FINITE,
    Place,
    control_character,
    parse_scalar,
)
from ablate.study.syntax import in_plain_words


class Builder:
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
        if NOT_FINITE.fullmatch(text):
            self._fault(f"`{text}` is not a finite number", event, "quote it if it is text")
        elif INT.fullmatch(text) and (isinstance(value, str) or abs(value) >= 1 << 63):
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
