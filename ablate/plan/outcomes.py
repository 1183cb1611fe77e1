"""What is told of a trial, and the number it enters a comparison with. The same rule chooses seeds and makes tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ablate.stats.intervals import is_usable
from ablate.study.schema import Metric

Status = Literal["finished", "diverged", "failed", "running", "waiting"]
SETTLED = ("finished", "diverged", "failed")


class Told(NamedTuple):  # as there may be 100,000: a frozen dataclass takes twice as long
    """What became of a trial: ``value`` is that of one metric, where it has one; ``oom``: it failed for memory."""

    status: Status
    value: float | None = None
    oom: bool = False


@dataclass(frozen=True)
class Scored:
    """One arm's values by seed. ``scored``: seeds with a declared value; ``undefined``: diverged ones without.

    A declared value that is better than what a finished seed reached is replaced by that seed's: neither to diverge nor
    to run out of memory ever helps.
    """

    values: Mapping[int, float]
    scored: tuple[int, ...] = ()
    undefined: tuple[int, ...] = ()


def scored(seeds: Mapping[int, Told], metric: Metric) -> Scored:
    """Return the numbers that an arm is compared with, from what is told of each of its seeds."""
    finished = {seed: value for seed, (status, value, _) in seeds.items() if status == "finished" and value is not None}
    values = {seed: value for seed, value in finished.items() if is_usable(value)}
    if len(values) == len(seeds):
        return Scored(values)
    unusable = finished.keys() - values.keys()
    diverged = tuple(seed for seed, each in seeds.items() if each.status == "diverged" or seed in unusable)
    out_of_memory = [seed for seed, each in seeds.items() if each.oom]
    declared = dict.fromkeys(diverged, metric.on_diverged) | dict.fromkeys(out_of_memory, metric.on_oom)
    worst = min if metric.goal == "max" else max
    scores = {
        seed: worst([score, *values.values()])
        for seed in seeds
        if seed not in values and (score := declared.get(seed)) is not None
    }
    both = {**values, **scores}
    in_order = {seed: both[seed] for seed in seeds if seed in both}
    return Scored(in_order, tuple(scores), () if metric.on_diverged is not None else diverged)


def told(state: str, outcome: str | None, value: float | None) -> Told:
    """Return what is told of a trial by its state, its last attempt's outcome and its metric (None: not returned)."""
    return Told(status_of(state, outcome, value), value, oom=state == "failed" and outcome == "oom")


def status_of(state: str, outcome: str | None, value: float | None) -> Status:
    """Return what became of a trial by its state, its attempt's outcome and its primary metric (None: not returned)."""
    if state == "failed":
        return "failed"
    if state != "done":
        return "running" if state == "running" else "waiting"
    if outcome == "diverged":
        return "diverged"
    if outcome == "pruned":  # it was stopped because others were better: it has no final value, and is no failure
        return "finished"
    if value is None:
        return "failed"
    return "finished" if is_usable(value) else "diverged"
