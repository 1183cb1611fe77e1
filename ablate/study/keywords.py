"""A study declared in Python: plain values by keyword, held to the rules and limits of the study file.

A fault names its keyword, such as `settings.train.lr` or `steps[2].set`, where a file would have a line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ablate.errors import Fault, StudyError
from ablate.study.document import MAX_DEPTH, MAX_KEY, MAX_NODES, Document, Place, control_character

NAME = "declare()"  # where a fault is that no keyword holds
_TASK_HINT = 'put it into a module beside the study, and write task="module:function"'


class Declaration(TypedDict, total=False):
    """The keywords of a study: the keys of a study file, less ``schema``."""

    name: str
    question: str
    task: str | Callable[..., Any] | Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    designs: Sequence[str | Mapping[str, Any]]
    seeds: int | Sequence[int] | Mapping[str, Any]
    tune: Mapping[str, Mapping[str, Any]]
    budget: int | Mapping[str, Any]
    confirm_seeds: int | Sequence[int]
    analysis: Mapping[str, Any]
    execution: Mapping[str, Any]
    resources: Mapping[str, Any]
    reference: Mapping[str, Any]
    assumed: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, Any]]


def declared(keywords: Mapping[str, Any], *, folder: Path | None) -> Document:
    """Return what is declared as a document. ``folder`` is where the task lies; None: where its function's module is.

    Raises StudyError where so much or so deeply nested is declared that no study file could hold it.
    """
    reader = _Reader()
    task = keywords.get("task")
    function = task if callable(task) else None
    plain = {key: value for key, value in keywords.items() if key != "task" or function is None}
    value = {"schema": "ablate/v1", **reader.mapping(plain, ())}
    if function is not None:
        reader.places[("task",)] = "task"
        value["task"], problem = _name_of(function)
        if problem:
            reader.faults.append(Fault(problem, "task", _TASK_HINT))
    if folder is None:
        folder = _home_of(function) if function is not None else Path()
    return Document("", value, reader.places, tuple(reader.faults), folder=folder.resolve())


class _Reader:
    """Copies plain values, and notes the words for each place and the faults; what is not plain has a stand-in."""

    def __init__(self) -> None:
        self.places: dict[Place, str] = {}
        self.faults: list[Fault] = []
        self._nodes = 0

    def mapping(self, values: Mapping[Any, Any], place: Place) -> dict[str, Any]:
        self.places[place] = _spelt(place)
        found = {}
        for key, value in values.items():
            text = str(key)
            found[text] = self.value(value, (*place, text))
            problem = _key_problem(key)
            if problem:
                self.faults.append(Fault(problem, _spelt(place)))
        return found

    def value(self, value: Any, place: Place) -> Any:
        self.places[place] = _spelt(place)
        self._nodes += 1
        if len(place) > MAX_DEPTH:
            raise StudyError([*self.faults, Fault(f"nested deeper than {MAX_DEPTH} levels", _spelt(place[:3]))])
        if self._nodes > MAX_NODES:
            raise StudyError([*self.faults, Fault(f"a study holds at most {MAX_NODES:,} values", _spelt(place[:1]))])
        if isinstance(value, Mapping):
            return self.mapping(value, place)
        if isinstance(value, (list, tuple, range)):
            return [self.value(item, (*place, index)) for index, item in enumerate(value)]
        plain, problem, hint = _plain(value)
        if problem:
            self.faults.append(Fault(problem, _spelt(place), hint))
        return plain


def _plain(value: Any) -> tuple[Any, str, str]:
    """Return a single value as JSON has it, what is wrong with it if anything is, and a hint."""
    if value is None or isinstance(value, bool):
        return value, "", ""
    if isinstance(value, str):
        problem = control_character(value)
        return "" if problem else str(value), problem, ""
    if type(value) is int:
        wide = abs(value) >= 1 << 63
        return (0, "an integer that needs more than 64 bits", "") if wide else (value, "", "")
    if type(value) is float:
        # -0.0 becomes 0.0: equal numbers must give the same trial
        return (value + 0.0, "", "") if math.isfinite(value) else (0.0, f"`{value}` is not a finite number", "")
    what, kind = f"a value of the type `{type(value).__qualname__}` is not plain", type(value).__name__
    if isinstance(value, Path):
        return str(value), what, "write it as text: `str(path)`"
    if callable(getattr(value, "item", None)) and getattr(value, "size", 1) == 1:
        plain, problem, _ = _plain(value.item()) if value.item() is not value else (0, "", "")
        return plain, problem or what, "`.item()` gives the plain number"
    if isinstance(value, (set, frozenset)) or hasattr(value, "tolist"):
        return [1], what, f"write it as a list: `{'list(…)' if kind != 'ndarray' else '.tolist()'}`"
    return "", what, "write null, a boolean, a number, text, a list or a mapping"


def _key_problem(key: object) -> str:
    if not isinstance(key, str):
        return f"a key must be text; here it is `{key!r:.40}`"
    if key == "<<" or not key.isprintable() or len(key) > MAX_KEY:
        return f"a key must be printable text of at most {MAX_KEY} characters, and not `<<`"
    return ""


def _spelt(place: Place) -> str:
    """Return a place as Python would reach it: ``steps[2].set``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".") or NAME


# --- the task as a function ------------------------------------------------------------------------------------------


def _name_of(function: Any) -> tuple[str, str]:
    """Return ``module:function``, and why a worker could not import it, if so."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    stand_in = "json:loads"
    if not isinstance(module, str) or not isinstance(name, str):
        return stand_in, "the task is no function of a module"
    if name.endswith("<lambda>"):
        return stand_in, "the task is a lambda, which no other process can import"
    if not name.isidentifier():
        return stand_in, f"the task `{name}` is defined inside a function or a class, where no other process finds it"
    if module == "__main__":
        return stand_in, f"the task `{name}` is defined in the program that runs, which no other process can import"
    if getattr(sys.modules.get(module), name, None) is not function:
        return stand_in, f"`{module}.{name}` is another object than this task"
    return f"{module}:{name}", ""


def _home_of(function: Any) -> Path:
    """Return the folder that a function's module is found in, by its whole name; else the current one."""
    name = str(getattr(function, "__module__", ""))
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return Path()
    path = Path(file).with_suffix("")
    parts = name.split(".") if path.name != "__init__" else [*name.split("."), "__init__"]
    return path.parents[len(parts) - 1]
