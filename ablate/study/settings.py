"""The settings tree: reading, patching and comparing it by dotted paths. Values are plain JSON, and never changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.study.document import parse_scalar
from ablate.study.words import with_article

MAX_SHOWN = 60

Settings = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One setting that differs: its dotted path, and the value before and after."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {show(self.old)} → {show(self.new)}"


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every setting; an empty group is a leaf."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def get(settings: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path. Raises KeyError where there is none."""
    value: Any = settings
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(path)
        value = value[key]
    return value


def patched(settings: Settings, patch: Mapping[str, Any]) -> Settings:
    """Return settings with the values of ``patch`` (dotted path → value) in place; numbers keep the kind they had.

    What the patch does not touch is shared with the given settings.
    """
    for path, value in patch.items():
        settings = _with(settings, path.split("."), value)
    return settings


def _with(group: Settings, keys: Sequence[str], value: Any) -> Settings:
    key, *below = keys
    return {**group, key: _with(group[key], below, value) if below else same_kind(group[key], value)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return every setting that differs, in the order of ``new``; a setting on one side only has None on the other."""
    # groups that are the same object are skipped: settings of two arms share what no step has changed
    before = dict(leaves({key: value for key, value in old.items() if value is not new.get(key)}))
    after = dict(leaves({key: value for key, value in new.items() if value is not old.get(key)}))
    paths = [*after, *(path for path in before if path not in after)]
    return tuple(
        Change(path, before.get(path), after.get(path))
        for path in paths
        if canonical(before.get(path)) != canonical(after.get(path))
    )


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, types kept (1, 1.0 and true differ)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def show(value: Any) -> str:
    """Return a value as a study would write it on one line; text is quoted where it could be taken for another kind."""
    if value is None:
        return "null"
    quoted = not isinstance(value, str) or not _is_plain(value)
    text = json.dumps(value, ensure_ascii=False) if quoted else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_plain(text: str) -> bool:
    return parse_scalar(text) == text and text == text.strip() and text.isprintable()


def brief(value: Any) -> str:
    """Return a value in backquotes, as ``show`` writes it, cut to what a message has room for."""
    text = show(value)
    return f"`{text}`" if len(text) <= MAX_SHOWN else f"`{text[: MAX_SHOWN - 1]}…`"


def as_found(value: Any) -> str:
    """Return what stands where another type was expected: ``"2"`` is text."""
    if value is None or isinstance(value, (list, dict)):
        return f"here it is {with_article(kind(value))}"
    return f"{brief(value)} is {with_article(kind(value))}"


def kind(value: Any) -> str:
    """Return the name of a value's type as messages call it."""
    names = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    return "null" if value is None else names[type(value)]


def fits(base: Any, value: Any) -> bool:
    """Tell whether a value may stand where ``base`` stands: null takes anything, an int may become a float."""
    if base is None:
        return True
    if isinstance(base, (int, float)) and not isinstance(base, bool):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(base) is type(value)


def same_kind(base: Any, value: Any) -> Any:
    """``lr: 1`` over ``0.1`` is 1.0, and ``5.0`` over ``3`` is 5: the same number must give the same trial."""
    if isinstance(base, float) and type(value) is int:
        return float(value)
    if type(base) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
