"""What changes a study before it is validated: a profile from the file, and ``--set`` from the command line.

Where a changed value came from is kept beside it, so that a fault still points at the line that holds it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablate.errors import Fault, StudyError
from ablate.study.document import Document, Flaw, Place, parse_value
from ablate.study.schema import NAME_RULE, Study, is_name, step_of
from ablate.study.settings import as_found, brief, fits, get, kind, leaves, same_kind
from ablate.study.words import did_you_mean, with_article

# what `--set` reaches outside the settings
STUDY_KEYS = ("resources", "execution", "analysis", "seeds", "designs", "metrics", "budget")
_PROFILE = "for example `quick: {seeds: 3, settings: {train: {epochs: 2}}}`"
FIXED_KEYS = ("schema", "name", "profiles")


def with_profile(document: Document, profile: str | None) -> tuple[Document, list[Fault]]:
    """Return the document with ``profiles`` taken out and the named one merged in, and the faults of doing so."""
    value = copy.deepcopy(document.value)
    profiles = value.pop("profiles", {})
    flaws = list(_profile_flaws(profiles))
    if profile is None or flaws:
        return document.changed(value, {}), [document.fault(flaw) for flaw in flaws]
    if profile not in profiles:
        hint = did_you_mean(profile, profiles) or "the study has no profiles"
        where = f"--profile {profile}" if document.name else f"profile={profile}"
        fault = Fault(f"{document.name or 'the study'} has no such profile", where, hint)
        return document.changed(value, {}), [fault]
    merge = _Merge(value)
    merge.study(profiles[profile], ("profiles", profile))
    return document.changed(value, merge.moves), [document.fault(flaw) for flaw in merge.flaws]


def _profile_flaws(profiles: Any) -> Iterator[Flaw]:
    if not isinstance(profiles, dict):
        yield Flaw(("profiles",), "`profiles` takes a mapping of names to patches", _PROFILE)
        return
    for name, patch in profiles.items():
        if not is_name(name):
            yield Flaw(("profiles", name), f"the name of a profile takes {NAME_RULE}; here it is `{name}`")
        if not isinstance(patch, dict):
            yield Flaw(("profiles", name), f"the profile `{name}` is not a mapping", _PROFILE)


@dataclass
class _Merge:
    """Merges a profile into a study's value, in place; notes where each changed place came from, and what is wrong."""

    value: dict[str, Any]
    moves: dict[Place, Place | str] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)

    def study(self, patch: dict[str, Any], source: Place) -> None:
        for key, new in patch.items():
            if key in FIXED_KEYS:
                hint = "a profile makes a study of its own, named `study@profile`"
                self.flaws.append(Flaw((*source, key), f"a profile can't change `{key}`", hint))
            elif key == "steps" and new is not None:
                self._steps(new, (*source, key))
            else:
                self._key(self.value, key, new, (), source)

    def _key(self, base: dict[str, Any], key: str, new: Any, place: Place, source: Place) -> None:
        here, there = (*place, key), (*source, key)
        old = base.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            for name, value in new.items():
                self._key(old, name, value, here, there)
            return
        self.moves[here] = there
        if new is not None:
            base[key] = same_kind(old, new) if place[:1] == ("settings",) else new
        elif key in base:
            del base[key]
        else:
            hint = did_you_mean(key, base)
            self.flaws.append(Flaw(there, f"`{key}: null` deletes nothing: the study has no such key here", hint))

    def _steps(self, patch: Any, source: Place) -> None:
        steps = self.value.get("steps")
        if not isinstance(patch, dict):
            hint = "write `steps: {step-name: {set: {…}}}`; null deletes a step"
            self.flaws.append(Flaw(source, "`steps` in a profile is a mapping of step names to patches", hint))
            return
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            return  # the schema will say so
        names = [str(step.get("name")) for step in steps]
        deleted = {name for name in patch if patch[name] is None and name in names}
        kept = [index for index, name in enumerate(names) if name not in deleted]
        self.moves.update({("steps", new): ("steps", old) for new, old in enumerate(kept)})
        for name, change in patch.items():
            there = (*source, name)
            if name not in names:
                self.flaws.append(Flaw(there, f"there is no step `{name}`", did_you_mean(name, names)))
            elif isinstance(change, dict):
                index = names.index(name)
                for key, new in change.items():
                    self._key(steps[index], key, new, ("steps", kept.index(index)), there)
            elif name not in deleted:
                self.flaws.append(Flaw(there, f"the patch of the step `{name}` is not a mapping", "null deletes it"))
        self.value["steps"] = [steps[index] for index in kept]
        self._forget(deleted)

    def _forget(self, deleted: set[str]) -> None:
        """Drop what is assumed and published of deleted steps: else each profile would have to delete that as well."""
        reference = self.value.get("reference")
        figures = reference.get("values") if isinstance(reference, dict) else None
        tables = [self.value.get("assumed"), *(figures.values() if isinstance(figures, dict) else ())]
        for table in tables:
            if isinstance(table, dict):
                for arm in [arm for arm in table if {arm, step_of(arm)} & deleted]:
                    del table[arm]


def with_overrides(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Fault]]:
    """Return the document with each ``path=value`` in place: a setting, or a path that begins with a STUDY_KEY."""
    value = copy.deepcopy(document.value)
    moves: dict[Place, Place | str] = {}
    faults: list[Fault] = []
    for override in overrides:
        source = f"--set {override}"
        path, equals, text = override.partition("=")
        if not equals or not path.strip() or not text.strip():
            hint = "for example --set train.epochs=2; write path=null for null"
            faults.append(Fault("an override is `path=value`", source, hint))
            continue
        try:
            new = parse_value(text, source=source)
        except StudyError as error:
            faults += error.faults
            continue
        place = _override_place(path)
        problem = _override_problem(value, place, new)
        if problem:
            message, hint = problem
            faults.append(Fault(message, source, hint))
            continue
        group = value
        for key in place[:-1]:
            group = group.setdefault(key, {})
        group[place[-1]] = same_kind(group.get(place[-1]), new) if place[0] == "settings" else new
        moves[place] = source
    return document.changed(value, moves), faults


def _override_place(path: str) -> tuple[str, ...]:
    keys = tuple(path.strip().split("."))
    return keys if keys[0] in ("settings", *STUDY_KEYS) else ("settings", *keys)


def _override_problem(value: dict[str, Any], place: tuple[str, ...], new: Any) -> tuple[str, str] | None:
    """Return what is wrong with setting this place, and a hint; None where nothing is."""
    if place[0] == "settings":
        settings = value.get("settings")
        if not isinstance(settings, dict):
            return None  # the schema will say so
        unreached = len(place) > 1 and place[1] in Study.model_fields and place[1] not in settings
        return _unreached(place[1:]) if unreached else _setting_problem(settings, ".".join(place[1:]), new)
    group: Any = value
    for key in place[:-1]:
        group = group.get(key, {})
        if not isinstance(group, dict):
            return _unreached(place)
    return None


def _unreached(place: tuple[str, ...]) -> tuple[str, str]:
    return f"--set does not reach `{'.'.join(place)}`", "edit the study file, or write a profile in it"


def _setting_problem(settings: dict[str, Any], path: str, new: Any) -> tuple[str, str] | None:
    try:
        old = get(settings, path) if path else settings
    except KeyError:
        return f"there is no setting `{path}`", did_you_mean(path, dict(leaves(settings)))
    if isinstance(old, dict):
        names = [f"{path}.{key}".lstrip(".") for key in old]
        return f"`{path or 'settings'}` is a group of settings", f"set one of them: {', '.join(names)}"
    if isinstance(new, dict):
        return f"`{path}` is one setting, not a group", ""
    if not fits(old, new):
        return f"`{path}` takes {with_article(kind(old))}; {as_found(new)}", f"the study has {brief(old)}"
    return None
