"""A plan: arms × seeds as trials, each known by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablate.errors import Fault, StudyError
from ablate.plan.designs import Arm, Contrast, expand_designs
from ablate.study.reading import profiles_of, read_study, sorted_faults
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
    if study is None:
        raise StudyError(sorted_faults(faults))
    plan, found = _expanded(study)
    if faults or plan is None:
        raise StudyError(sorted_faults([*faults, *found]))
    return _restricted(plan, only) if only else plan


def plans_of(path: str | Path) -> tuple[list[Plan], list[Fault]]:
    """Return the plans of a file, without and with each of its profiles, and all faults that stand in their way."""
    plans: list[Plan] = []
    faults: list[Fault] = []
    try:
        profiles = profiles_of(path)
    except StudyError as error:
        return [], list(error.faults)
    for profile in (None, *profiles):
        try:
            plans.append(open_plan(path, profile=profile))
        except StudyError as error:
            for fault in error.faults:
                # a fault of the file itself is met again with each profile
                if (fault.where, fault.message) not in {(known.where, known.message) for known in faults}:
                    told = f"{fault.message} (with the profile `{profile}`)" if profile else fault.message
                    faults.append(replace(fault, message=told))
    return plans, sorted_faults(faults)


def make_plan(study: Study) -> Plan:
    """Expand a study that is known to be sound. Raises StudyError with the faults of its designs."""
    plan, faults = _expanded(study)
    if plan is None:
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


def _expanded(study: Study) -> tuple[Plan | None, list[Fault]]:
    """Return the plan, or None and the faults of the designs."""
    expansion = expand_designs(study)
    faults = list(expansion.faults)
    count = len(expansion.arms) * len(study.seeds)
    if count > MAX_TRIALS:
        message = f"{len(expansion.arms):,} arms × {len(study.seeds):,} seeds are {count:,} trials"
        faults.append(Fault(message, study.where("seeds"), f"a study has at most {MAX_TRIALS:,}"))
    if faults:
        return None, faults
    replicates = tuple(
        Replicate(arm.name, seed, Trial(fingerprint(study, arm.settings, seed), arm.settings, seed))
        for seed in study.seeds
        for arm in expansion.arms
    )
    return Plan(study, expansion.arms, expansion.contrasts, replicates), []


def _restricted(plan: Plan, only: Sequence[str]) -> Plan:
    """Keep the trials of the named arms and of what they are compared with; the comparisons stay declared."""
    names = [arm.name for arm in plan.arms]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise StudyError(Fault(f"there is no arm `{name}`", "--only", did_you_mean(name, names)) for name in unknown)
    wanted = set(only) | {c.other for c in plan.contrasts if c.arm in only}
    kept = tuple(replicate for replicate in plan.replicates if replicate.arm in wanted)
    return Plan(plan.study, plan.arms, plan.contrasts, kept)
