"""``study_from``: from what is declared to a ``Study``, with every fault at once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablate.errors import Fault
from ablate.study.checks import CROSSED, Declared, flaws_in
from ablate.study.document import Document, Flaw, Place, read_document
from ablate.study.patches import with_overrides, with_profile
from ablate.study.refusals import flaws_of
from ablate.study.schema import BASELINE, Study, from_document, is_name
from ablate.study.task import program_faults, task_faults

MAX_FAULTS = 50

# what stands in for a part that every study has, where the file's own is missing or broken
_TUNING: set[Place] = {("tune",), ("budget",)}
_UNTUNED: set[Place] = {*_TUNING, ("settings",)}
_STAND_INS: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "study",
    "task": "json:loads",
    "metrics": {"metric": {"goal": "max"}},
    "settings": {"setting": None},
}


def study_from(
    read: Document, *, profile: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Study | None, list[Fault]]:
    """Return the study that is declared, and the faults of its declaration.

    With faults, the study holds only what its designs can still be expanded from without blaming what is sound, or is
    None. Runs no code of the study's task.
    """
    faults = list(read.faults)
    document, found = with_profile(read, profile)
    faults += found
    document, found = with_overrides(document, overrides)
    faults += found
    study, flaws, broken = _validated(document, profile or "")
    faults += map(document.fault, flaws)
    if study is None:
        return None, faults
    found_flaws = list(flaws_in(study, _declared(document, broken, read)))
    faults += (Fault(flaw.message, study.where(*flaw.place), flaw.hint) for flaw in found_flaws)
    if ("task",) not in broken:
        folder, where = read.folder, study.where("task")
        task = study.task
        faults += (
            task_faults(task.function, folder, where=where)
            if task.function is not None
            else program_faults(task.command or "", folder, where=study.where("task", "command"))
        )
    if flaws or found_flaws:
        study = _expandable(study, broken, [flaw.place for flaw in found_flaws])
    return study, faults


def profiles_of(path: str | Path) -> list[str]:
    """Return the names of a file's profiles."""
    profiles = read_document(path).value.get("profiles")
    return list(profiles) if isinstance(profiles, dict) else []


def sorted_faults(faults: Sequence[Fault]) -> list[Fault]:
    """Return the first 50 faults in the order of their lines, each once: two designs may meet the same mistake."""

    def line(fault: Fault) -> float:
        match = re.fullmatch(r"(?!--).*:([0-9]+)", fault.where)
        return int(match[1]) if match else 0 if fault.where else math.inf

    distinct: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        distinct.setdefault((fault.where, fault.message), fault)
    found = sorted(distinct.values(), key=line)
    more = len(found) - MAX_FAULTS
    return found if more <= 0 else [*found[:MAX_FAULTS], Fault(f"and {more:,} more", "", "mend these first")]


def _validated(document: Document, profile: str) -> tuple[Study | None, list[Flaw], set[Place]]:
    """Validate; on flaws, once more without the broken places, so that the rest can still be checked."""
    try:
        return from_document(document.value, document, profile), [], set()
    except ValidationError as error:
        details = error.errors(include_url=False)
    flaws = list(flaws_of(details[: 2 * MAX_FAULTS], document.value))
    broken = {_part(detail["loc"]) for detail in details}
    if broken & _TUNING:  # one of the two says nothing without the other
        broken |= _TUNING
    sound = _without(document, broken)
    try:
        return from_document(sound.value, sound, profile), flaws, broken
    except ValidationError:
        return None, flaws, broken


def _part(place: Place) -> Place:
    """Return the part of a study that is left out where this place is broken: a step, or a whole section."""
    return place[:2] if place[0] == "steps" else place[:1]


def _without(document: Document, broken: set[Place]) -> Document:
    value = {key: part for key, part in document.value.items() if (key,) not in broken}
    value |= {key: part for key, part in _STAND_INS.items() if key not in value}
    moves: dict[Place, Place | str] = {}
    if isinstance(value.get("steps"), list):
        kept = [index for index in range(len(value["steps"])) if ("steps", index) not in broken]
        value["steps"] = [value["steps"][index] for index in kept]
        moves = {("steps", new): ("steps", old) for new, old in enumerate(kept)}
    return document.changed(value, moves)


def _declared(document: Document, broken: set[Place], before: Document) -> Declared:
    """Return what the file declares: a broken step or metric is declared all the same, as long as it has a name."""
    settings, metrics = document.value.get("settings"), document.value.get("metrics")
    steps = _step_names(document)
    return Declared(
        settings=settings if isinstance(settings, dict) and ("settings",) not in broken else None,
        steps=steps,
        metrics=list(metrics) if isinstance(metrics, dict) else None,
        deleted=frozenset(_step_names(before) or ()) - frozenset(steps or ()),
        complete=all(place[0] != "steps" for place in broken),
    )


def _step_names(document: Document) -> list[str] | None:
    steps = document.value.get("steps", [])
    names = (
        [step.get("name") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else [None]
    )
    return [str(name) for name in names] if all(isinstance(name, str) and is_name(name) for name in names) else None


def _expandable(study: Study, broken: set[Place], flawed: Sequence[Place]) -> Study:
    """Return the study less its flawed designs, its broken steps and all steps below those, which build upon them."""
    lost = [int(place[1]) for place in broken if len(place) == 2]  # counted as in the file: all above were kept
    lost += [int(place[1]) for place in flawed if place[0] == "steps"]
    above = {BASELINE, None}
    for index, step in enumerate(study.steps):  # where a step has no name, what others build from is not judged
        lost += [index] * (step.from_ not in above)
        above.add(step.name)
    if ("settings",) in broken or ("steps",) in broken:
        lost.append(0)
    steps = study.steps[: min(lost, default=None)]
    designs = tuple(
        design
        for index, design in enumerate(study.designs)
        if not {("designs",), ("designs", index)} & {*broken, *flawed}
        and set(design.steps) <= {step.name for step in steps}
        and (not lost or design.steps or design.name not in CROSSED)
    )
    untuned: dict[str, Any] = (
        {"tune": {}, "budget": None} if {place[:1] for place in (*broken, *flawed)} & _UNTUNED else {}
    )
    return study.model_copy(update={"steps": steps, "designs": designs, **untuned})
