"""The settings tree: reading, patching and comparing it by dotted paths. Values are plain JSON, never shared."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    """Return a copy with the values of ``patch`` (dotted path → value) in place; numbers keep the kind they had."""
    result = copy.deepcopy(settings)
    for path, value in patch.items():
        *groups, last = path.split(".")
        group = result
        for key in groups:
            group = group[key]
        group[last] = _same_kind(group[last], copy.deepcopy(value))
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return every setting that differs, in the order of ``new``; a setting on one side only has None on the other."""
    before, after = dict(leaves(old)), dict(leaves(new))
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
    """Return a value as a study would write it on one line."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, ensure_ascii=False, default=str)


def kind(value: Any) -> str:
    """Return the name of a value's type as messages call it."""
    names = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list", dict: "group"}
    return "null" if value is None else names[type(value)]


def fits(base: Any, value: Any) -> bool:
    """Tell whether a value may stand where ``base`` stands: null takes anything, an int may become a float."""
    if base is None:
        return True
    if isinstance(base, (int, float)) and not isinstance(base, bool):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(base) is type(value)


def _same_kind(base: Any, value: Any) -> Any:
    """``lr: 1`` over ``0.1`` is 1.0, and ``5.0`` over ``3`` is 5: the same number must give the same trial."""
    if isinstance(base, float) and type(value) is int:
        return float(value)
    if type(base) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
