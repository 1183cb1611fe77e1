"""All about one arm: what `ablate show` tells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.analyse.findings import TrialResult
from ablate.analyse.results import results_from
from ablate.errors import AblateError
from ablate.plan.trials import Trial
from ablate.store.facts import StoredStudy
from ablate.store.history import History, StoredArm, StoredAttempt, arms_of, history_of
from ablate.store.store import Store
from ablate.study.schema import Study
from ablate.study.settings import differences, get, show
from ablate.study.words import did_you_mean


@dataclass(frozen=True)
class ComparedWith:
    """A row that the arm stands in: what is subtracted from what, and in which design."""

    design: str
    minuend: str
    subtrahend: str


@dataclass(frozen=True)
class Reused:
    """What an attempt took from a shorter trial: so many epochs and seconds; ``arm`` is empty where that is gone."""

    arm: str
    epochs: int
    seconds: float


@dataclass(frozen=True)
class AttemptDetails:
    """One attempt. ``environment`` is what was found and not declared; ``folder`` is where its files lie."""

    number: int
    outcome: str
    host: str
    slot: str
    started: float
    ended: float | None
    seconds: float | None
    resumed_from: int | None
    error: str
    folder: str
    stands: bool
    environment: dict[str, str]
    reused: Reused | None = None


@dataclass(frozen=True)
class SeedDetails:
    """One trial of the arm, and its attempts. ``tuned`` are the settings that it does not share with the arm."""

    result: TrialResult
    attempts: tuple[AttemptDetails, ...]
    tuned: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArmDetails:
    """One arm of a study version. ``changes`` are the settings that differ from its parent's."""

    study: str
    name: str
    title: str
    parent: str | None
    changes: tuple[str, ...]
    compared: tuple[ComparedWith, ...]
    settings: dict[str, Any]
    metrics: tuple[str, ...]
    seeds: tuple[SeedDetails, ...]


def arm_details(store: Store, stored: StoredStudy, name: str) -> ArmDetails:
    """Return all about one arm. Raises AblateError where the study has none of that name."""
    arms = [arm.name for arm in arms_of(store, stored.id)]
    if name not in arms:
        raise AblateError(f"`{stored.title}` has no arm `{name}`", hint=did_you_mean(name, arms))
    return details_from(store, stored, history_of(store, stored.id), [name])[0]


def details_from(
    store: Store, stored: StoredStudy, history: History, names: Sequence[str] | None = None
) -> tuple[ArmDetails, ...]:
    """Return all about each of these arms of a study, or about every arm, in plan order."""
    arms = {arm.name: arm for arm in arms_of(store, stored.id)}
    plan, results = results_from(store, stored, history.trials, history.finals)
    trials = {trial.fingerprint: trial.trial for trial in history.trials}
    planned = plan.trials()
    arm_of = {trial.fingerprint: trial.arm for trial in history.trials}
    attempts: dict[int, list[AttemptDetails]] = {}
    for attempt in history.attempts:
        attempts.setdefault(attempt.trial, []).append(_attempt(attempt, store.folder, arm_of))

    def details(arm: StoredArm) -> ArmDetails:
        parent = arms.get(arm.parent) if arm.parent else None
        return ArmDetails(
            study=f"{stored.title} (version {stored.version})" if stored.version > 1 else stored.title,
            name=arm.name,
            title=arm.title,
            parent=arm.parent,
            changes=tuple(map(str, differences(parent.settings, arm.settings))) if parent else (),
            compared=tuple(
                ComparedWith(c.design, c.minuend, c.subtrahend)
                for c in plan.contrasts
                if c.arm == arm.name and c.tested
            ),
            settings=plan.arm(arm.name).settings,  # in the order of the study file
            metrics=tuple(plan.study.metrics),
            seeds=tuple(
                SeedDetails(
                    result,
                    tuple(attempts.get(trials.get(result.fingerprint, -1), ())),
                    _tuned(plan.study, planned.get(result.fingerprint)),
                )
                for (of_arm, _), found in results.items()
                if of_arm == arm.name
                for result in found
            ),
        )

    return tuple(details(arm) for arm in arms.values() if names is None or arm.name in names)


def _tuned(study: Study, trial: Trial | None) -> tuple[str, ...]:
    return () if trial is None else tuple(f"{path}: {show(get(trial.settings, path))}" for path in study.tune)


def _attempt(attempt: StoredAttempt, folder: Path, arm_of: Mapping[str, str]) -> AttemptDetails:
    environment = {key: value for key, value in attempt.environment.items() if key not in _REUSED}
    return AttemptDetails(
        number=attempt.claim,
        outcome=attempt.outcome or "running",
        host=attempt.host,
        slot=attempt.slot,
        started=attempt.started,
        ended=attempt.ended,
        seconds=attempt.seconds,
        resumed_from=attempt.resumed_from,
        error=attempt.error or "",
        folder=str(folder / attempt.folder),
        stands=attempt.stands,
        environment={"code_sha256": attempt.code_sha256 or "", **environment},
        reused=_reused(attempt.environment, arm_of),
    )


_REUSED = ("reused_epochs", "reused_from", "reused_seconds")


def _reused(facts: Mapping[str, str], arm_of: Mapping[str, str]) -> Reused | None:
    try:
        epochs, seconds = int(facts["reused_epochs"]), float(facts["reused_seconds"])
    except (KeyError, ValueError):  # there is nothing; or a task of somebody's calls something else so
        return None
    arm = arm_of.get(facts.get("reused_from", ""), "")
    return Reused(arm, epochs, seconds) if math.isfinite(seconds) else None
