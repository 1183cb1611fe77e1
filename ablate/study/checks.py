"""What the schema can't see: whether the parts of a study fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ablate.study.document import Flaw, Place
from ablate.study.schema import BASELINE, FULL, Step, Study, step_of
from ablate.study.settings import as_found, brief, fits, get, kind, leaves
from ablate.study.words import did_you_mean, with_article


@dataclass(frozen=True)
class Declared:
    """What the file declares, broken parts included; None where that can't be told, and so nothing is judged by it."""

    settings: dict[str, Any] | None
    steps: list[str] | None
    metrics: list[str] | None
    deleted: frozenset[str]  # steps that the profile takes out
    complete: bool  # no part of the file was refused


def flaws_in(study: Study, declared: Declared) -> Iterator[Flaw]:
    """Yield the flaws of a study whose broken parts were taken out."""
    yield from _metric_flaws(study)
    if declared.settings is not None:
        yield from _key_flaws(declared.settings, ("settings",))
    yield from _step_flaws(study, declared)
    yield from _group_flaws(study)
    yield from _design_flaws(study, declared)
    yield from _reference_flaws(study, declared)
    yield from _assumed_flaws(study, declared)


def _metric_flaws(study: Study) -> Iterator[Flaw]:
    for name in study.metrics:
        if name in ("epoch", "seed"):
            yield Flaw(("metrics", name), f"a metric can't be called `{name}`", "this word is a column of every table")


def _key_flaws(group: dict[str, Any], place: Place) -> Iterator[Flaw]:
    for key, value in group.items():
        here = (*place, key)
        if not key.strip():
            yield Flaw(here, "a setting without a name")
        elif "." in key:
            yield Flaw(here, f"the key `{key}` holds a dot", f"nest it: `{_nested(key)}`")
        if isinstance(value, dict):
            yield from _key_flaws(value, here)


def _nested(key: str) -> str:
    group, _, rest = key.partition(".")
    return f"{group}: {{{rest}: …}}" if "." not in rest else f"{group}: {{{_nested(rest)}}}"


# --- steps ---------------------------------------------------------------------------------------------------------


def _step_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    first: dict[str, int] = {}
    types = {path: (value, "the settings have") for path, value in leaves(declared.settings or {})}
    for index, step in enumerate(study.steps):
        place = ("steps", index)
        if step.name in (BASELINE, FULL):
            yield Flaw(place, f"a step can't be called `{step.name}`", "this word names an arm of every study")
        elif step.name in first:
            line = study.where("steps", first[step.name])
            yield Flaw(place, f"the step `{step.name}` stands twice", f"the first is at {line}; rename one of them")
        yield from _order_flaws(study, step, place, declared)
        if declared.settings is not None:
            for path, value in step.set.items():
                yield from _value_flaws(step, path, value, (*place, "set", path), declared.settings, types)
        first.setdefault(step.name, index)


def _order_flaws(study: Study, step: Step, place: Place, declared: Declared) -> Iterator[Flaw]:
    names = declared.steps
    mentions = [("from", step.from_)] if step.from_ not in (None, BASELINE) else []
    mentions += [("requires", name) for name in dict.fromkeys(step.requires)]
    for key, name in mentions:
        verb = "is built from" if key == "from" else key
        message, here = f"step `{step.name}` {verb} {brief(name)}", (*place, key)
        if name == step.name:
            yield Flaw(here, f"step `{step.name}` {verb} itself", "name a step above it, or take this out")
        elif names is None:
            continue
        elif name in declared.deleted:
            hint = f"delete `{step.name}` as well, or its `{key}`"
            yield Flaw(here, f"{message}, which the profile `{study.profile}` deletes", hint)
        elif name not in names:
            known = [BASELINE] * (key == "from") + [each for each in names if each != step.name]
            yield Flaw(here, f"{message}, which is no step", did_you_mean(str(name), known))
        elif names.index(str(name)) > names.index(step.name):
            yield Flaw(here, f"{message}, which stands below it", "a step builds on those above: move one of the two")
    if len(set(step.requires)) < len(step.requires):
        yield Flaw((*place, "requires"), f"step `{step.name}` requires the same step twice", "name it once")


def _value_flaws(
    step: Step, path: str, value: Any, place: Place, settings: dict[str, Any], types: dict[str, tuple[Any, str]]
) -> Iterator[Flaw]:
    """Check one path of a step. ``types`` has the value that a setting's type is known by, and where it stands.

    A setting declared with null learns its type here, from the first step that gives it a value.
    """
    name = f"step `{step.name}`"
    if path.rpartition(".")[2] == "seed":
        yield Flaw(place, f"{name} can't set `{path}`", "seeds are replicates, the same in every arm: `seeds: 5`")
        return
    try:
        base = get(settings, path)
    except KeyError:
        meant = did_you_mean(path, types)
        stop = "" if meant.endswith("?") else "."
        hint = f"{meant}{stop} Or declare it in the settings, with null if it has no value yet"
        yield Flaw(place, f"{name} sets `{path}`, which is not in the settings", hint)
        return
    if isinstance(base, dict):
        known = [f"{path}.{key}" for key in base]
        hint = f"set one of its settings: {', '.join(known)}" if known else "it is empty: declare its settings first"
        if isinstance(value, dict) and value:
            hint = f"write its settings with dots: `{path}.{next(iter(value))}: …`"
        yield Flaw(place, f"{name} sets `{path}`, which is a group of settings", hint)
        return
    typical, origin = types[path]
    if isinstance(value, dict):
        yield Flaw(place, f"{name} sets `{path}` to a mapping", "a step sets single values: one line for each setting")
    elif value is None and base is not None:
        hint = "to allow null, declare the setting with null and give it its value in a step"
        yield Flaw(place, f"{name} sets `{path}` to null; the settings have {brief(base)}", hint)
    elif value is not None and not fits(typical, value):
        message = f"{name}: `{path}` takes {with_article(kind(typical))}; {as_found(value)}"
        yield Flaw(place, message, f"{origin} {brief(typical)}")
    elif typical is None and value is not None:
        types[path] = (value, f"{name} gives it")


def _group_flaws(study: Study) -> Iterator[Flaw]:
    built_upon: dict[str, str] = {}
    for index, step in enumerate(study.steps):
        if step.group is None or step.branch:
            continue
        first = built_upon.setdefault(step.group, step.name)
        if first != step.name:
            message = (
                f"`{first}` and `{step.name}` are alternatives of the group `{step.group}`, and both are built upon"
            )
            yield Flaw(("steps", index), message, "give all but one of them `branch: true`")


# --- the rest ------------------------------------------------------------------------------------------------------


def _design_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    names = [design.name for design in study.designs]
    trunk = {step.name for step in study.steps if not step.branch}
    branches = {step.name for step in study.steps if step.branch}
    for index, design in enumerate(study.designs):
        place = ("designs", index)
        if design.name in names[:index]:
            yield Flaw(place, f"the design `{design.name}` stands twice", "name it once")
        wrong = False
        for name in dict.fromkeys(design.except_):
            if declared.steps is not None and name not in declared.steps:
                wrong = True
                yield Flaw(place, f"`except` names {brief(name)}, which is no step", did_you_mean(name, declared.steps))
            elif name in branches:
                wrong = True
                yield Flaw(place, f"`except` names `{name}`, a branch, which the full model never has", "take it out")
        nothing_left = not trunk - set(design.except_)
        if design.name == "leave-one-out" and nothing_left and declared.complete and not wrong:
            hint = "it removes each step that is no branch and not under `except`"
            yield Flaw(place, "leave-one-out has no step to remove", hint)


def _reference_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    for metric, figures in (study.reference.values if study.reference else {}).items():
        place = ("reference", "values", metric)
        if declared.metrics is not None and metric not in declared.metrics:
            hint = did_you_mean(metric, declared.metrics)
            yield Flaw(place, f"`reference` has figures for `{metric}`, which is no metric of the study", hint)
        for arm in figures if declared.steps is not None else ():
            if not _is_arm(arm, declared.steps or []):
                hint = did_you_mean(arm, _arms(study, declared.steps or []))
                yield Flaw((*place, arm), f"`reference` has a figure for `{arm}`, which is no arm of the study", hint)


def _assumed_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    if declared.steps is None or declared.settings is None:
        return
    for word in study.assumed:
        if not _is_arm(word, declared.steps) and not _is_path(word, declared.settings):
            known = [*(path for path, _ in leaves(declared.settings)), *declared.settings, *declared.steps]
            message = f"`assumed` is about `{word}`, which is neither a setting nor an arm"
            yield Flaw(("assumed", word), message, did_you_mean(word, known))


def _is_arm(word: str, steps: list[str]) -> bool:
    """Tell whether some design of these steps has an arm of this name: a profile or ``--set`` may choose another."""
    return word in (BASELINE, FULL) or word in steps or all(each in steps for each in step_of(word).split("+"))


def _arms(study: Study, steps: list[str]) -> list[str]:
    prefixes = {"ladder": "", "one-at-a-time": "only-", "leave-one-out": "without-"}
    return [BASELINE, FULL, *(prefixes[design.name] + step for design in study.designs for step in steps)]


def _is_path(word: str, settings: dict[str, Any]) -> bool:
    try:
        get(settings, word)
    except KeyError:
        return False
    return True
