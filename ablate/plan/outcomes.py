"""What is told of a trial, and the number it enters a comparison with. The same rule chooses seeds and makes tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ablate.stats.intervals import is_usable
from ablate.study.schema import Metric

Status = Literal["finished", "diverged", "failed", "running", "waiting"]
SETTLED = ("finished", "diverged", "failed")


@dataclass(frozen=True)
class Told:
    """What became of a trial: ``value`` is that of one metric, where it has one."""

    status: Status
    value: float | None = None


@dataclass(frozen=True)
class Scored:
    """One arm's values by seed. ``scored``: diverged seeds, with the declared value; ``undefined``: those without one.

    A declared value that is better than what a finished seed reached is replaced by that seed's: to diverge never
    helps.
    """

    values: Mapping[int, float]
    scored: tuple[int, ...] = ()
    undefined: tuple[int, ...] = ()


def scored(told: Mapping[int, Told], metric: Metric) -> Scored:
    """Return the numbers that an arm is compared with, from what is told of each of its seeds."""
    values = {seed: each.value for seed, each in told.items() if _is_finished(each) and each.value is not None}
    diverged = tuple(seed for seed, each in told.items() if _has_diverged(each))
    if metric.on_diverged is None or not diverged:
        return Scored(values, (), diverged)
    worst = min if metric.goal == "max" else max
    score = worst([metric.on_diverged, *values.values()])
    return Scored({seed: values.get(seed, score) for seed in told if seed in values or seed in diverged}, diverged)


def status_of(state: str, outcome: str | None, value: float | None) -> Status:
    """Return what became of a trial by its state, its attempt's outcome and its primary metric (None: not returned)."""
    if state == "failed":
        return "failed"
    if state != "done":
        return "running" if state == "running" else "waiting"
    if outcome == "diverged":
        return "diverged"
    if value is None:
        return "failed"
    return "finished" if is_usable(value) else "diverged"


def _is_finished(told: Told) -> bool:
    return told.status == "finished" and told.value is not None and is_usable(told.value)


def _has_diverged(told: Told) -> bool:
    return told.status == "diverged" or (
        told.status == "finished" and told.value is not None and not is_usable(told.value)
    )
