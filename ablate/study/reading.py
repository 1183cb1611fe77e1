"""``read_study``: from a file to a ``Study``, with every fault of the file at once."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ablate.errors import Fault
from ablate.study import schema
from ablate.study.document import Document, Place, read_document
from ablate.study.patches import with_overrides, with_profile
from ablate.study.schema import BASELINE, FULL, Step, Study
from ablate.study.settings import fits, get, kind, leaves, show
from ablate.study.words import did_you_mean, with_article

# words of the format that this version refuses rather than ignores
NOT_BUILT = {
    "": {"tune", "budget", "confirm_seeds"},
    "metrics": {"margin", "on_diverged", "on_oom"},
    "steps": {"conflicts"},
    "designs": {"factorial", "fractional", "path", "resolution"},
    "analysis": {"correction", "scope", "margin", "looks", "variance", "none", "best"},
    "execution": {"preset", "isolation", "memory_format"},
    "resources": {"memory"},
    "seeds": {"looks", "weights", "mode"},
    "task": {"command", "metrics_from"},
}

_MODELS: dict[str, type[BaseModel]] = {
    "": schema.Study,
    "metrics": schema.Metric,
    "steps": schema.Step,
    "analysis": schema.Analysis,
    "execution": schema.Execution,
    "resources": schema.Resources,
    "reference": schema.Reference,
}

_NOUNS = {
    "string_type": "text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}


def read_study(
    path: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Study | None, list[Fault]]:
    """Return the study and the faults of its file. With faults, the study holds the sound parts, or is None.

    Runs no code of the study's task. Raises StudyError where the file is no YAML mapping at all.
    """
    document = read_document(path)
    faults = list(document.faults)
    document, found = with_profile(document, profile)
    faults += found
    document, found = with_overrides(document, overrides)
    faults += found
    study, found = _validated(document, profile or "")
    faults += found
    if study is not None:
        names = _step_names(document)
        faults += _settings_faults(study)
        faults += _step_faults(study, names)
        faults += _design_faults(study, names)
        faults += _reference_faults(study)
        if not any("task" in fault.message for fault in found):
            faults += _task_faults(study, Path(path).resolve().parent)
    return study, sorted_faults(faults)


def profiles_of(path: str | Path) -> list[str]:
    """Return the names of a file's profiles."""
    profiles = read_document(path).value.get("profiles")
    return list(profiles) if isinstance(profiles, dict) else []


def sorted_faults(faults: Sequence[Fault]) -> list[Fault]:
    """Return the distinct faults in the order of their lines."""

    def line(fault: Fault) -> int:
        number = fault.where.rpartition(":")[2]
        return int(number) if number.isdigit() else 0

    return sorted(dict.fromkeys(faults), key=line)


# --- the schema's faults -------------------------------------------------------------------------------------------


def _validated(document: Document, profile: str) -> tuple[Study | None, list[Fault]]:
    """Validate; on faults, once more without the broken parts, so that the rest can still be checked."""
    try:
        return schema.from_document(document.value, document, profile), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    faults = [_schema_fault(detail, document) for detail in details if not _follows(detail, details)]
    sound = _without(document, [detail["loc"] for detail in details])
    try:
        return schema.from_document(sound.value, sound, profile), faults
    except ValidationError:
        return None, faults


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Tell whether this error only says that an item of the same list was refused."""
    length = len(detail["loc"])
    return detail["type"] == "too_short" and any(
        other["loc"][:length] == detail["loc"] and len(other["loc"]) > length for other in details
    )


def _schema_fault(detail: ErrorDetails, document: Document) -> Fault:
    place = tuple(part for part in detail["loc"] if part != "[key]")
    where = document.where(place)
    section = str(place[0]) if len(place) > 1 or place[:1] in (("seeds",), ("task",)) else ""
    key, value, error = str(place[-1]) if place else "", detail["input"], detail["type"]
    context = detail.get("ctx", {})
    for word in (key, *(value if isinstance(value, dict) else [str(value).partition("(")[0]])):
        if word in NOT_BUILT.get(section, ()) and error != "missing":
            return Fault(f"`{word}` is not built yet", where, "this version refuses it rather than ignore it")
    if error == "missing":
        what = f"`{key}` is missing" if len(place) == 1 else f"`{_spell(place[:-1])}` has no `{key}`"
        return Fault(what, where, _missing_hint(key))
    if error == "extra_forbidden":
        return Fault(f"unknown key `{key}`", where, did_you_mean(key, _fields(section)))
    if error == "literal_error":
        known = context.get("expected", "").replace("'", "").replace(" or ", ", ").split(", ")
        hint = did_you_mean(str(value), known)
        return Fault(f"`{_spell(place)}`: {show(value)} is not one of {', '.join(known)}", where, hint)
    if error == "string_pattern_mismatch":
        return Fault(f"`{_spell(place)}`: {show(value)} {_pattern_text(place)}", where, _pattern_hint(place))
    if error in _NOUNS:
        found = f"{show(value)} is {with_article(kind(value))}"
        hint = "remove the quotes" if isinstance(value, str) and error in ("int_type", "float_type") else ""
        return Fault(f"`{_spell(place)}` is {_NOUNS[error]}; {found}", where, hint)
    if error in ("value_error", "json_invalid"):
        return Fault(f"`{_spell(place)}`: {detail['msg']}", where)
    limits = {"greater_than_equal": "at least", "greater_than": "more than", "less_than_equal": "at most"}
    limits["less_than"] = "less than"
    if error in limits:
        limit = next(iter(context.values()))
        return Fault(f"`{_spell(place)}` is {limits[error]} {limit}; here it is {show(value)}", where)
    if error in ("too_short", "string_too_short"):
        return Fault(f"`{_spell(place)}` is empty", where)
    return Fault(f"`{_spell(place)}`: {detail['msg']}", where)


def _spell(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _fields(section: str) -> list[str]:
    model = _MODELS.get(section)
    names = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return [*names, "profiles"] if section == "" else names


def _missing_hint(key: str) -> str:
    return {
        "schema": "begin the file with `schema: ablate/v1`",
        "task": "for example `task: basenet:train`, with basenet.py beside the study",
        "metrics": "for example `metrics: {val_acc: {goal: max}}`; the first is the primary one",
        "settings": "the baseline's settings: the whole tree that the task receives",
        "goal": "write `goal: max` or `goal: min`",
        "set": "for example `set: {model.norm: before_relu}`",
    }.get(key, "")


def _pattern_text(place: Place) -> str:
    if place[0] == "task":
        return "is not `module:function`"
    return "is not a metric's name" if place[0] == "metrics" else "is not a name"


def _pattern_hint(place: Place) -> str:
    if place[0] == "task":
        return "for example `basenet:train`, with basenet.py beside the study"
    if place[0] == "metrics":
        return "letters, digits and `_`, not beginning with a digit"
    return "lower-case letters, digits and `-`, at most 64"


def _without(document: Document, places: Sequence[tuple[str | int, ...]]) -> Document:
    """Return the document less the parts that hold these places; what a study must have is put in their stead."""
    stand_ins = {
        "schema": "ablate/v1",
        "name": "study",
        "task": "json:loads",
        "metrics": {"metric": {"goal": "max"}},
        "settings": {"a": None},
    }
    value = dict(document.value)
    lines = dict(document.lines)
    broken_steps = sorted({place[1] for place in places if place[0] == "steps" and len(place) > 1}, reverse=True)
    for place in places:
        if place[0] == "steps" and len(place) > 1:
            continue
        value.pop(str(place[0]), None)
        if place[0] in stand_ins:
            value[str(place[0])] = stand_ins[str(place[0])]
    if broken_steps and isinstance(value.get("steps"), list):
        kept = [i for i in range(len(value["steps"])) if i not in broken_steps]
        steps = {("steps", i, *key[2:]): line for i, old in enumerate(kept) for key, line in lines.items()
                 if key[:2] == ("steps", old)}  # fmt: skip
        lines = {key: line for key, line in lines.items() if key[:1] != ("steps",)} | steps
        value["steps"] = [value["steps"][i] for i in kept]
    return Document(document.name, value, lines)


# --- what the schema can't see -------------------------------------------------------------------------------------


def _step_names(document: Document) -> list[str]:
    steps = document.value.get("steps")
    names = [step.get("name") for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    return [name for name in names if isinstance(name, str)]


def _settings_faults(study: Study) -> Iterator[Fault]:
    def walk(group: dict[str, Any], place: Place) -> Iterator[Fault]:
        for key, value in group.items():
            here = (*place, key)
            if "." in key or not key.strip():
                hint = "nest it: `train: {lr: 0.1}` is the setting train.lr"
                yield Fault(f"the settings key `{key}` holds a dot or is empty", study.where(*here), hint)
            if isinstance(value, dict):
                yield from walk(value, here)

    yield from walk(study.settings, ("settings",))


def _step_faults(study: Study, names: list[str]) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    kinds: dict[str, Any] = dict(leaves(study.settings))
    trunk: dict[str, str] = {}
    for index, step in enumerate(study.steps):
        where = study.where("steps", index)
        if step.name in (BASELINE, FULL):
            yield Fault(f"a step can't be called `{step.name}`", where, "this word is an arm of every design")
        if step.name in seen:
            yield Fault(f"the step `{step.name}` stands twice, first at {seen[step.name]}", where)
        yield from _order_faults(study, index, step, set(seen), names)
        yield from _patch_faults(study, index, step, kinds)
        if step.group and not step.branch:
            if step.group in trunk:
                message = f"`{trunk[step.group]}` and `{step.name}` are alternatives of the group `{step.group}`"
                yield Fault(message, where, "at most one of a group is built upon: give the others `branch: true`")
            trunk.setdefault(step.group, step.name)
        seen.setdefault(step.name, where)


def _order_faults(study: Study, index: int, step: Step, above: set[str], names: list[str]) -> Iterator[Fault]:
    mentions = [("from", step.from_)] if step.from_ not in (None, BASELINE) else []
    mentions += [("requires", required) for required in step.requires]
    for key, name in mentions:
        where = study.where("steps", index, key)
        if name == step.name:
            yield Fault(f"`{key}: {name}`: a step can't name itself", where)
        elif name not in names:
            known = [BASELINE, *names] if key == "from" else names
            yield Fault(f"`{key}: {name}`: there is no such step", where, did_you_mean(str(name), known))
        elif name not in above:
            yield Fault(f"`{key}: {name}`: that step stands below", where, "move it above this one")


def _patch_faults(study: Study, index: int, step: Step, kinds: dict[str, Any]) -> Iterator[Fault]:
    """Check a step's paths and types; ``kinds`` learns the type of a setting declared with null from its first step."""
    for path, value in step.set.items():
        where = study.where("steps", index, "set", path)
        if path.rpartition(".")[2] == "seed":
            yield Fault(f"a step can't set `{path}`", where, "seeds are replicates, paired across arms: `seeds: 5`")
            continue
        try:
            base = get(study.settings, path)
        except KeyError:
            hint = did_you_mean(path, kinds)
            yield Fault(
                f"`{path}` is not in the settings",
                where,
                f"{hint}; or declare it there with null".lstrip("; "),
            )
            continue
        if isinstance(base, dict):
            yield Fault(f"`{path}` is a group of settings", where, f"set one of: {', '.join(base)}")
        elif isinstance(value, dict):
            hint = "write one line a setting: `{a.b: 1, a.c: 2}`"
            yield Fault(f"`{path}` is set to a mapping; a step sets single values", where, hint)
        elif not fits(kinds[path], value):
            hint = f"{with_article(kind(kinds[path]))} is expected, as in the settings"
            if value is None:
                hint = "declare it with null in the settings and give it a value in a step"
            yield Fault(
                f"`{path}` is {show(kinds[path])} in the settings; {show(value)} is {with_article(kind(value))}",
                where,
                hint,
            )
        elif kinds[path] is None:
            kinds[path] = value


def _design_faults(study: Study, names: list[str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, design in enumerate(study.designs):
        where = study.where("designs", index)
        if design.name in seen:
            yield Fault(f"the design `{design.name}` stands twice", where)
        seen.add(design.name)
        for name in design.except_:
            if name not in names:
                yield Fault(f"`except: {name}`: there is no such step", where, did_you_mean(name, names))


def _reference_faults(study: Study) -> Iterator[Fault]:
    for metric in study.reference.values if study.reference else ():
        if metric not in study.metrics:
            hint = did_you_mean(metric, study.metrics)
            yield Fault(
                f"`reference` has the unknown metric `{metric}`",
                study.where("reference", "values", metric),
                hint,
            )


def _task_faults(study: Study, folder: Path) -> Iterator[Fault]:
    """Look for the task without running any of it: a module beside the study is parsed, another only located."""
    module, _, function = study.task.partition(":")
    where = study.where("task")
    file = folder / f"{module}.py"
    if "." in module or not file.exists():
        top = module.partition(".")[0]
        if not (folder / top).is_dir() and top not in sys.modules and importlib.util.find_spec(top) is None:
            yield Fault(f"the task's module `{module}` is not there", where, f"write {file.name} beside the study")
        return
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        yield Fault(f"the task does not parse: {getattr(error, 'msg', error)}", f"{file}:{line}")
        return
    defined = set(_top_level_names(tree))
    if function not in defined and "*" not in defined:
        functions = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        yield Fault(f"{file.name} has no function `{function}`", where, did_you_mean(function, functions))


def _top_level_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
