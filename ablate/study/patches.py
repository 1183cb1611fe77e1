"""What changes a study before it is validated: a profile from the file, and ``--set`` from the command line.

A value and the lines of its places change together, so that a fault still points at the line that holds it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ablate.errors import Fault
from ablate.study.document import Document, Place, parse_value
from ablate.study.settings import fits, get, kind, leaves, show
from ablate.study.words import did_you_mean, with_article

Lines = dict[Place, int | str]

# what `--set` reaches outside the settings
STUDY_KEYS = ("resources", "execution", "analysis", "seeds", "designs", "metrics")
FIXED_KEYS = ("schema", "name", "profiles")


def with_profile(document: Document, profile: str | None) -> tuple[Document, list[Fault]]:
    """Return the document with ``profiles`` taken out and the named one merged in, and the faults of doing so."""
    value = copy.deepcopy(document.value)
    lines: Lines = dict(document.lines)
    profiles = value.pop("profiles", {})
    faults: list[Fault] = []
    if not isinstance(profiles, dict) or any(not isinstance(patch, dict) for patch in profiles.values()):
        message = "`profiles` is a mapping of names to patches"
        return replace(document, value=value), [Fault(message, document.where(("profiles",)))]
    if profile is not None and profile not in profiles:
        hint = did_you_mean(profile, profiles) or "the study has no profiles"
        return replace(document, value=value), [Fault(f"there is no profile `{profile}`", document.name, hint)]
    if profile is not None:
        place: Place = ("profiles", profile)
        patch = dict(profiles[profile])
        for key in FIXED_KEYS:
            if patch.pop(key, None) is not None:
                faults.append(Fault(f"a profile can't change `{key}`", document.where((*place, key))))
        steps = patch.pop("steps", None)
        if steps is not None:
            faults += _merge_steps(value, steps, (*place, "steps"), lines, document)
        faults += _merge(value, patch, (), place, lines, document)
    return replace(document, value=value, lines=lines), faults


def with_overrides(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Fault]]:
    """Return the document with each ``path=value`` in place: a setting, or a path that begins with a STUDY_KEY."""
    value = copy.deepcopy(document.value)
    lines: Lines = dict(document.lines)
    faults: list[Fault] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        source = f"--set {override}"
        if not equals or not path:
            faults.append(Fault("an override is `path=value`", source, "for example --set train.epochs=2"))
            continue
        keys = path.split(".")
        if keys[0] == "settings" or keys[0] not in STUDY_KEYS:
            keys = keys[1:] if keys[0] == "settings" else keys
            fault = _settings_fault(value.get("settings"), ".".join(keys), parse_value(text), source)
            if fault:
                faults.append(fault)
                continue
            keys = ["settings", *keys]
        group = value
        for key in keys[:-1]:
            if not isinstance(group.setdefault(key, {}), dict):
                faults.append(Fault(f"`{path}` is not reached by --set", source, "use a profile in the study file"))
                break
            group = group[key]
        else:
            group[keys[-1]] = parse_value(text)
            _replace_lines(lines, tuple(keys), {(): source})
    return replace(document, value=value, lines=lines), faults


def _settings_fault(settings: Any, path: str, new: Any, source: str) -> Fault | None:
    if not isinstance(settings, dict):
        return None  # the schema will say so
    try:
        old = get(settings, path)
    except KeyError:
        return Fault(f"there is no setting `{path}`", source, did_you_mean(path, dict(leaves(settings))))
    if isinstance(old, dict):
        return Fault(f"`{path}` is a group of settings", source, "name one setting of it")
    if not fits(old, new):
        return Fault(
            f"`{path}` is {with_article(kind(old))} ({show(old)}); {show(new)} is {with_article(kind(new))}",
            source,
        )
    return None


def _merge(
    base: dict[str, Any], patch: dict[str, Any], place: Place, source: Place, lines: Lines, document: Document
) -> list[Fault]:
    faults: list[Fault] = []
    for key, new in patch.items():
        here, there = (*place, key), (*source, key)
        if new is None:
            if key not in base:
                faults.append(Fault(f"`{key}: null` deletes nothing: there is no such key", document.where(there)))
            base.pop(key, None)
        elif isinstance(new, dict) and isinstance(base.get(key), dict):
            faults += _merge(base[key], new, here, there, lines, document)
        else:
            base[key] = copy.deepcopy(new)
            _replace_lines(lines, here, _lines_below(lines, there))
    return faults


def _merge_steps(value: dict[str, Any], patch: Any, source: Place, lines: Lines, document: Document) -> list[Fault]:
    if not isinstance(patch, dict):
        hint = "write `steps: {step-name: {set: …}}`; null deletes a step"
        return [Fault("`steps` in a profile is a map by step name", document.where(source), hint)]
    steps = value.get("steps")
    if not isinstance(steps, list) or any(not isinstance(step, dict) for step in steps):
        return []  # the schema will say so
    faults: list[Fault] = []
    names = [step.get("name") for step in steps]
    for name, change in patch.items():
        there = (*source, name)
        if name not in names:
            hint = did_you_mean(name, [n for n in names if isinstance(n, str)])
            faults.append(Fault(f"there is no step `{name}`", document.where(there), hint))
        elif change is not None and not isinstance(change, dict):
            faults.append(Fault("a step's patch is a mapping, or null to delete it", document.where(there)))
        elif change is not None:
            index = names.index(name)
            faults += _merge(steps[index], change, ("steps", index), there, lines, document)
    kept = [i for i, name in enumerate(names) if patch.get(name, {}) is not None]
    below = [_lines_below(lines, ("steps", i)) for i in kept]
    for i in range(len(steps)):
        _replace_lines(lines, ("steps", i), below[i] if i < len(kept) else {})
    value["steps"] = [steps[i] for i in kept]
    return faults


def _lines_below(lines: Lines, place: Place) -> Lines:
    return {key[len(place) :]: line for key, line in lines.items() if key[: len(place)] == place}


def _replace_lines(lines: Lines, place: Place, below: Lines) -> None:
    for key in [key for key in lines if key[: len(place)] == place]:
        del lines[key]
    lines.update({(*place, *key): line for key, line in below.items()})
