"""What a page tells beside the findings: each arm, why trials failed, how metrics went, and what arms cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.analyse.arm_details import ArmDetails, details_from
from ablate.analyse.curves import Curve, study_curves
from ablate.analyse.findings import Analysis, ArmResult, TrialResult
from ablate.stats.intervals import is_usable, paired_estimate
from ablate.store.facts import IMPORTED, StoredStudy
from ablate.store.history import history_of, runners_of
from ablate.store.store import Store
from ablate.study.schema import SMALLEST_TEST, Role

MOST_ARMS = 200  # of more, a page tells the findings alone
MOST_TRIALS = 2_000  # of more, it tells nothing seed by seed
_MOST_EPOCHS = 60  # of a curve: more would not show on a panel's width
_MOST_LOGS = 20


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with the ends of its t interval, which need three seeds and some noise; else both are it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Course:
    """How a metric went in one arm: the mean over its seeds epoch by epoch, and each seed's own values.

    Only epochs at which every seed has a finite value are told of, be it none, and of many a part, the first and the
    last among them. ``seeds`` is empty in a study of many trials.
    """

    arm: str
    metric: str
    n: int
    epochs: tuple[int, ...]
    means: tuple[Mean, ...]
    seeds: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class Cost:
    """An arm's value of the primary metric beside what it takes: seconds of a trial, parameters, FLOPs.

    ``number`` is the arm's row in the first table where that lists arms in the order of its design, else its place.
    """

    number: int
    arm: str
    value: Mean
    seconds: Mean | None
    parameters: float | None
    flops: float | None


@dataclass(frozen=True)
class FailureDetails:
    """A failed trial, why, and the last lines of its log, where that is here and not too many failed before it."""

    arm: str
    seed: int
    candidate: int | None
    outcome: str
    attempts: int
    reason: str
    log: tuple[str, ...]


@dataclass(frozen=True)
class StudyDetails:
    """All that a page tells beside the findings. ``command`` is the one that last ran the study.

    Of a study of more than MOST_ARMS arms there is the command alone.
    """

    command: str
    arms: tuple[ArmDetails, ...] = ()
    failures: tuple[FailureDetails, ...] = ()
    courses: tuple[Course, ...] = ()
    costs: tuple[Cost, ...] = ()


def study_details(
    store: Store, stored: StoredStudy, analysis: Analysis, *, log_of: Callable[[str], Sequence[str]]
) -> StudyDetails:
    """Return what a page tells beside these findings. ``log_of`` gives the last lines of the log in a folder."""
    runners = runners_of(store, stored.id)
    command = runners[-1].command if runners else ""
    if len(analysis.arms) > MOST_ARMS:
        return StudyDetails(command)
    arms = details_from(store, stored, history_of(store, stored.id))
    return StudyDetails(
        command=command,
        arms=arms,
        failures=tuple(_failures(arms, log_of)),
        courses=tuple(_courses(analysis, study_curves(store, stored, analysis))),
        costs=tuple(_costs(analysis)),
    )


def _failures(arms: Sequence[ArmDetails], log_of: Callable[[str], Sequence[str]]) -> Iterator[FailureDetails]:
    """Yield the failed trials in plan order; one that two arms share is told of once."""
    seen: set[str] = set()
    for arm in arms:
        for seed in arm.seeds:
            result = seed.result
            if result.status != "failed" or result.fingerprint in seen:
                continue
            last = seed.attempts[-1] if seed.attempts else None
            has_log = last is not None and last.slot != IMPORTED and len(seen) < _MOST_LOGS
            log = log_of(last.folder) if last is not None and has_log else ()
            seen.add(result.fingerprint)
            yield FailureDetails(
                arm.name,
                result.seed,
                result.candidate,
                result.outcome or "",
                result.attempts,
                result.reason,
                tuple(log),
            )


# --- means over seeds ----------------------------------------------------------------------------------------------


def _mean(values: Sequence[float], alpha: float) -> Mean:
    estimate = paired_estimate([(1.0, values)])
    ends = estimate.interval(alpha) if len(values) >= SMALLEST_TEST else None
    return Mean(estimate.mean, *(ends or (estimate.mean, estimate.mean)))


def _courses(analysis: Analysis, curves: Sequence[Curve]) -> Iterator[Course]:
    """Yield the course of one metric in each arm: of the first declared one that was recorded on the way."""
    role = shown_role(analysis)
    of_role = [curve for curve in curves if curve.role == role]
    metric = next((each.name for each in analysis.metrics if any(curve.metric == each.name for curve in of_role)), None)
    by_arm: dict[str, list[Curve]] = {}
    for curve in of_role:
        if curve.metric == metric:
            by_arm.setdefault(curve.arm, []).append(curve)
    for arm, its in by_arm.items():
        values = {curve.seed: dict(zip(curve.epochs, curve.values, strict=True)) for curve in its}
        shared = set.intersection(*({e for e, v in each.items() if is_usable(v)} for each in values.values()))
        epochs = _thinned(sorted(shared))
        yield Course(
            arm=arm,
            metric=its[0].metric,
            n=len(its),
            epochs=epochs,
            means=tuple(_mean([each[epoch] for each in values.values()], analysis.alpha) for epoch in epochs),
            seeds={seed: tuple(each[epoch] for epoch in epochs) for seed, each in values.items()}
            if analysis.counts.planned <= MOST_TRIALS
            else {},
        )


def _thinned(epochs: Sequence[int]) -> tuple[int, ...]:
    """Return at most _MOST_EPOCHS of them, evenly, with the first and the last."""
    if len(epochs) <= _MOST_EPOCHS:
        return tuple(epochs)
    step = (len(epochs) - 1) / (_MOST_EPOCHS - 1)
    return tuple(epochs[round(index * step)] for index in range(_MOST_EPOCHS))


def shown_role(analysis: Analysis) -> Role:
    """Return whose seeds the first table is made from: those that confirm, where there are any."""
    return analysis.designs[0].role


def _costs(analysis: Analysis) -> Iterator[Cost]:
    """Yield the arms that have a mean of the primary metric, those of the first design before others."""
    arms = {arm.name: arm for arm in analysis.arms if arm.role == shown_role(analysis)}
    first = [name for name in analysis.designs[0].arms if name in arms]
    for number, name in enumerate(dict.fromkeys([*first, *arms])):
        arm, cell = arms[name], arms[name].cells[analysis.primary.name]
        if cell.values and not cell.undefined:
            seconds = [each for trial in arm.trials if (each := _seconds(trial)) is not None]
            yield Cost(
                number=number,
                arm=name,
                value=_mean(list(cell.values.values()), analysis.alpha),
                seconds=_mean(seconds, analysis.alpha) if seconds else None,
                parameters=_fact(arm, "parameters"),
                flops=_fact(arm, "flops"),
            )


def _seconds(trial: TrialResult) -> float | None:
    return trial.whole_s if trial.has_result else None


def _fact(arm: ArmResult, name: str) -> float | None:
    value = arm.facts.get(name)
    return value if value is not None and math.isfinite(value) else None
