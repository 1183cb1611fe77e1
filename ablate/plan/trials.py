"""A plan: arms × seeds as trials, each known by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.errors import AblateError, Fault, StudyError
from ablate.plan.designs import Arm, Contrast, expand_designs
from ablate.study.reading import read_study, sorted_faults
from ablate.study.schema import Study
from ablate.study.settings import Settings, canonical
from ablate.study.words import did_you_mean

MAX_TRIALS = 100_000


@dataclass(frozen=True)
class Trial:
    """One arm × one seed: the unit of work and of statistics. Known by its fingerprint, wherever it stands."""

    fingerprint: str
    settings: Settings = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Replicate:
    """The place of a trial in a study: which arm, which seed, and for what (``main``, ``confirm`` or ``tune``)."""

    arm: str
    seed: int
    trial: Trial
    role: str = "main"


@dataclass(frozen=True)
class Plan:
    """All that a study asks for, in the order in which it is run: seed by seed, so that early results are paired."""

    study: Study
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    replicates: tuple[Replicate, ...]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def parent(self, name: str) -> str | None:
        """Return what an arm is compared with in the first design that has a row for it."""
        return next((c.other for c in self.contrasts if c.arm == name), None)

    def trials(self) -> dict[str, Trial]:
        """Return the distinct trials by fingerprint; rows that two designs share are one."""
        return {replicate.trial.fingerprint: replicate.trial for replicate in self.replicates}

    def frozen(self) -> dict[str, Any]:
        """Return what is fixed before the first trial runs: the comparisons and how they are made."""
        return {
            "primary": self.study.primary,
            "goal": self.study.metrics[self.study.primary].goal,
            "analysis": self.study.analysis.model_dump(mode="json"),
            "seeds": list(self.study.seeds),
            "contrasts": [[c.design, c.minuend, c.subtrahend] for c in self.contrasts],
        }


def open_plan(
    path: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Read a study and expand it. Raises StudyError with all faults of the file, those of its designs included."""
    study, faults = read_study(path, profile=profile, overrides=overrides)
    if study is not None:
        plan, found = _expand(study, sound=not faults)
        faults = sorted_faults([*faults, *found])
        if plan is not None and not faults:
            return _restricted(plan, only) if only else plan
    raise StudyError(faults)


def make_plan(study: Study) -> Plan:
    """Expand a study that is known to be sound. Raises StudyError with the faults of its designs."""
    plan, faults = _expand(study, sound=True)
    if plan is None or faults:
        raise StudyError(faults)
    return plan


def fingerprint(study: Study, settings: Settings, seed: int) -> str:
    """Return the identity of a trial: SHA-256 of what is declared about it, in hexadecimal.

    Fields of ``execution`` at their default are left out, so that a later version may add one without new identities.
    """
    content = {
        "settings": settings,
        "seed": seed,
        "task": study.task,
        "execution": study.execution.model_dump(mode="json", exclude_defaults=True),
        "device": "cuda" if study.resources.gpus else "cpu",
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _expand(study: Study, *, sound: bool) -> tuple[Plan | None, list[Fault]]:
    """Expand the designs as far as the study's other faults let them be expanded."""
    if not sound and any(_dangling(study)):
        return None, []
    expansion = expand_designs(study)
    faults = list(expansion.faults)
    faults += _reference_faults(study, [arm.name for arm in expansion.arms])
    count = len(expansion.arms) * len(study.seeds)
    if count > MAX_TRIALS:
        hint = f"a study has at most {MAX_TRIALS:,}"
        faults.append(
            Fault(
                f"{len(expansion.arms)} arms × {len(study.seeds)} seeds are {count:,} trials",
                study.where("seeds"),
                hint,
            )
        )
    if faults:
        return None, faults
    replicates = tuple(
        Replicate(arm.name, seed, Trial(fingerprint(study, arm.settings, seed), arm.settings, seed))
        for seed in study.seeds
        for arm in expansion.arms
    )
    return Plan(study, expansion.arms, expansion.contrasts, replicates), []


def _dangling(study: Study) -> list[str]:
    """Return the names and paths that point nowhere: they have their faults already and would stop the expansion."""
    known: set[str] = {"baseline"}
    wrong: list[str] = []
    for step in study.steps:
        wrong += [name for name in (*step.requires, *([step.from_] if step.from_ else [])) if name not in known]
        wrong += [path for path in step.set if not _reaches(study.settings, path)]
        wrong += [step.name] if step.name in known else []
        known.add(step.name)
    return wrong


def _reaches(settings: Settings, path: str) -> bool:
    group: Any = settings
    for key in path.split("."):
        if not isinstance(group, dict) or key not in group:
            return False
        group = group[key]
    return not isinstance(group, dict)


def _reference_faults(study: Study, arms: Sequence[str]) -> list[Fault]:
    if study.reference is None:
        return []
    return [
        Fault(
            f"`reference` has a figure for the unknown arm `{arm}`",
            study.where("reference", "values", metric, arm),
            did_you_mean(arm, arms),
        )
        for metric, values in study.reference.values.items()
        for arm in values
        if arm not in arms
    ]


def _restricted(plan: Plan, only: Sequence[str]) -> Plan:
    """Keep the trials of the named arms and of what they are compared with; the comparisons stay declared."""
    names = [arm.name for arm in plan.arms]
    for name in only:
        if name not in names:
            raise AblateError(f"there is no arm `{name}`", where="--only", hint=did_you_mean(name, names))
    wanted = set(only) | {c.other for c in plan.contrasts if c.arm in only}
    kept = tuple(replicate for replicate in plan.replicates if replicate.arm in wanted)
    return Plan(plan.study, plan.arms, plan.contrasts, kept)
