"""What the schema refuses, in words: pydantic's errors become flaws that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ablate.study import schema
from ablate.study.document import Flaw, Place
from ablate.study.settings import as_found, brief, leaves, show
from ablate.study.words import did_you_mean, nearest

# words of the format that this version refuses rather than ignores, by section of the file
NOT_BUILT = {
    "analysis": {"variance", "best", "moderated"},
    "resources": {"memory"},
    "seeds": {"anytime"},
}
_NOT_BUILT_HINT = "take it out; what this version can't do it refuses, rather than ignore it"

_MODELS: dict[str, type[BaseModel]] = {
    "": schema.Study,
    "task": schema.Task,
    "metrics": schema.Metric,
    "steps": schema.Step,
    "analysis": schema.Analysis,
    "execution": schema.Execution,
    "resources": schema.Resources,
    "reference": schema.Reference,
    "budget": schema.Budget,
}

_TAKES = {
    "string_type": "text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}

_LIMITS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
}

# by the last key of a place
_EXAMPLES = {
    "name": schema.NAME_RULE,
    "from": "name a step above, or `baseline`",
    "designs": "for example `designs: [ladder]`",
    "schema": "begin the file with `schema: ablate/v1`",
    "task": "for example `task: basenet:train`, with basenet.py beside the study",
    "metrics": "for example `metrics: {val_acc: {goal: max}}`; the first is the primary one",
    "settings": "the baseline's settings: the whole tree that the task receives",
    "goal": "write `goal: max` or `goal: min`",
    "margin": "the smallest effect that would matter, in the metric's unit: `margin: 1.0`",
    "on_diverged": "the value of a model that learnt nothing, such as chance: `on_diverged: 1.0`",
    "set": "for example `set: {model.norm: before_relu}`",
    "steps": "write a list: `- name: batchnorm`, and below it `set: {model.norm: before_relu}`",
    "tune": "for example `tune: {train.lr: {low: 0.001, high: 1, log: true}}`",
    "budget": "for example `budget: 16`: so many settings are tried for every arm",
    "source": "say where the figures are published",
    "values": "for example `values: {val_acc: {baseline: 23}}`",
}


def flaws_of(details: Sequence[ErrorDetails], value: dict[str, Any]) -> Iterator[Flaw]:
    """Yield a flaw for each mistake: pydantic reports some twice, as a wrong key and as a missing one."""
    for detail in details:
        if not (_is_misspelt(detail, details) or _is_emptied(detail, details)):
            yield _flaw(detail, value)


def _is_misspelt(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Tell whether a missing key stands there under an unknown name that is close to it."""
    *around, key = detail["loc"]
    others = [str(each["loc"][-1]) for each in details if _is_unknown(each) and [*each["loc"][:-1]] == around]
    return detail["type"] == "missing" and any(nearest(other, _fields(detail["loc"])) == key for other in others)


def _is_unknown(detail: ErrorDetails) -> bool:
    return detail["type"] == "extra_forbidden"


def _is_emptied(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Tell whether a list is too short only because an item of it was refused."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(each["loc"]) > len(place) and each["loc"][: len(place)] == place for each in details
    )


def _flaw(detail: ErrorDetails, value: dict[str, Any]) -> Flaw:
    place = tuple(part for part in detail["loc"] if part != "[key]")
    place = place[:1] if place[:2] == ("task", "function") else place  # written as the task itself
    found, error, limit = detail["input"], detail["type"], next(iter(detail.get("ctx", {}).values()), None)
    key, what = str(place[-1]), _spelt(place, value)
    word = _not_built(place, found, error)
    if word:
        return Flaw(place, f"`{word}` is not built yet", _NOT_BUILT_HINT)
    if error == "preset":  # at the key that says otherwise
        meant, other = detail["ctx"]["meant"], detail["ctx"]["key"]
        return Flaw(
            (*place, other),
            f"`preset: {found['preset']}` means `{meant}`; here is `{other}: {show(found[other])}`",
            "take out one of them; in a profile, null takes out what stands in the study",
        )
    if error == "missing":
        message = f"{_spelt(place[:-1], value)} has no `{key}`" if len(place) > 1 else f"`{key}` is missing"
        return Flaw(place, message, _EXAMPLES.get(key, ""))
    if error == "extra_forbidden":
        owner = f" in {_spelt(place[:-1], value)}" if len(place) > 1 else ""
        return Flaw(place, f"unknown key `{key}`{owner}", _unknown_hint(place, value))
    if error == "literal_error":
        known = str(limit).replace("'", "").replace(" or ", ", ").split(", ")
        close = nearest(str(found), known)
        hint = f"did you mean `{close}`?" if close and len(known) > 1 else ""
        return Flaw(
            place,
            f"{what} takes {' or '.join(known).replace(' or ', ', ', len(known) - 2)}; here it is {brief(found)}",
            hint,
        )
    if error == "string_pattern_mismatch":
        return _pattern_flaw(place, str(found), what)
    if error in _TAKES:
        return Flaw(place, f"{what} takes {_TAKES[error]}; {as_found(found)}", _type_hint(place, found, error))
    if error in _LIMITS:
        hint = _EXAMPLES.get(key, "")
        return Flaw(place, f"{what} must be {_LIMITS[error]} {limit:g}; here it is {brief(found)}", hint)
    if error in ("too_short", "string_too_short"):
        return Flaw(place, f"{what} is empty", _EXAMPLES.get(key, ""))
    if error in ("too_long", "string_too_long"):
        allowed = detail["ctx"]["max_length"]
        return Flaw(place, f"{what} holds at most {allowed:,} {'steps' if error == 'too_long' else 'characters'}")
    return Flaw(place, f"{what} {detail['msg']}; here it is {brief(found)}")


def _not_built(place: Place, found: Any, error: str) -> str | None:
    """Return the word at or in this place that is known to the format and not to this version."""
    if error == "missing":
        return None
    top_level = len(place) == 1 and place[0] not in ("seeds", "task")
    known = NOT_BUILT.get("" if top_level else str(place[0]), ())
    key = str(place[-1])
    if isinstance(found, dict):
        chosen = (f"{name}: {word}" for name, word in found.items() if isinstance(word, str) and word in known)
        return next((word for word in (key, *found) if word in known), next(chosen, None))
    word = next((word for word in (key, str(found).partition("(")[0]) if word in known), None)
    return f"{key}: {found}" if word and word != key else word


def _unknown_hint(place: Place, value: dict[str, Any]) -> str:
    key, settings = str(place[-1]), value.get("settings")
    paths = [path for path, _ in leaves(settings)] if isinstance(settings, dict) and len(place) == 1 else []
    setting = next((path for path in paths if key in (path, path.rpartition(".")[2])), None)
    if setting and not nearest(key, _fields(place)):
        return f"did you mean the setting `{setting}`? It stands under `settings`"
    return did_you_mean(key, _fields(place))


def _type_hint(place: Place, found: Any, error: str) -> str:
    takes = _TAKES[error]
    key = str(place[-1])
    if isinstance(found, str) and takes in ("an integer", "a number") and re.fullmatch(r"[+-]?\d+\.?\d*", found):
        return "remove the quotes"
    if takes == "a boolean":
        return "write true or false"
    if place[0] == "steps" and len(place) == 2:
        return _EXAMPLES["steps"]
    if key in _EXAMPLES and key != "name":
        return _EXAMPLES[key]
    if takes == "text" and isinstance(found, (int, float)):
        return "put it in quotes"
    if len(place) == 2 and place[0] == "metrics":
        return f"for example `{key}: {{goal: max}}`"
    if takes == "a list" and isinstance(found, str):
        return f"write `{key}: [{show(found)}]`"
    return ""


def _pattern_flaw(place: Place, found: str, what: str) -> Flaw:
    if place[0] == "task":
        return Flaw(place, f"{what} takes `module:function`; here it is {brief(found)}", _EXAMPLES["task"])
    if place[0] == "metrics":
        rule = "letters, digits and `_`, not beginning with a digit, at most 64"
        suggestion = re.sub(r"\W+", "_", found, flags=re.ASCII).strip("_")
        return Flaw(place, f"the name of a metric takes {rule}; here it is {brief(found)}", _example(suggestion))
    suggestion = re.sub(r"[^a-z0-9]+", "-", found.lower()).strip("-")[:64]
    return Flaw(place, f"{what} takes {schema.NAME_RULE}; here it is {brief(found)}", _example(suggestion))


def _example(name: str) -> str:
    return f"for example `{name}`" if name else ""


def _fields(place: Place) -> list[str]:
    """Return the keys that may stand beside the last one of a place."""
    if place[0] == "designs":
        return ["except", "resolution"]
    if place[0] == "tune" and len(place) > 2:
        return list(schema.Range.model_fields)
    if place[:2] == ("task", "metrics_from"):
        return [field.alias or name for name, field in schema.MetricsFrom.model_fields.items()]
    model = _MODELS.get(str(place[0]) if len(place) > 1 else "")
    names = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return [*names, "profiles"] if model is schema.Study else names


def _spelt(place: Place, value: dict[str, Any]) -> str:
    """Return a place as a person names it: `resources.gpus`, `branch` of step `residual`."""
    if place[0] == "steps" and len(place) > 1:
        keys = ".".join(str(part) for part in place[2:] if isinstance(part, str))
        return f"`{keys}` of {_step(place, value)}" if keys else _step(place, value)
    if place[0] == "designs":
        return next((f"`{key}`" for key in ("except", "resolution") if key in place), "`designs`")
    return f"`{'.'.join(map(str, place))}`"


def _step(place: Place, value: dict[str, Any]) -> str:
    """Return a step by its name, or by its number where it has none."""
    index = int(place[1])
    step = value["steps"][index]
    name = step.get("name") if isinstance(step, dict) else None
    return f"step `{name}`" if isinstance(name, str) and schema.is_name(name) else f"step {index + 1}"
