"""``fuse: auto``: how many seeds of an arm to train in one model, measured before the study first runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ablate.plan.fusing import CANDIDATES, Paces, chosen, length, measured
from ablate.plan.trials import Plan
from ablate.run.measuring import first_trials, seeds_of, sound, start, timed_arms, wait_for_slot, work_of
from ablate.run.options import Options
from ablate.run.slots import Slot, SlotPool
from ablate.run.task_check import ends_of
from ablate.run.workers import Workers
from ablate.train.folder import Result

BUDGET_S = 3.5  # of measuring, all arms together; with what they build for it, about five seconds


def choose_fuse(plan: Plan, workers: Workers, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Return how many seeds to train in one model (``fuse``), why, and the numbers that say so.

    Measured in as many workers at once as the study is to have. Raises AblateError where an arm can't be trained.
    """
    began = time.monotonic()
    study, seeds = plan.study, seeds_of(plan)
    pool = SlotPool(study.resources, threads=study.execution.threads, jobs=options.jobs)
    slots = [wait_for_slot(pool, plan, say)]
    slots += [slot for slot in (pool.acquire() for _ in range(1, pool.size)) if slot is not None]
    try:
        results = _measured(plan, workers, slots, options)
    finally:
        for slot in slots:
            pool.release(slot)
    found: dict[str, Any] = {"slots": pool.size, "seconds": round(time.monotonic() - began, 1)}
    for arm, of_arm in results.items():
        if "unfusable" in of_arm[0].facts:
            return {"fuse": 1, "why": f"the arm `{arm}`: {of_arm[0].facts['unfusable']}", **found}
    paces = {arm: _paces(of_arm) for arm, of_arm in results.items() if _paces(of_arm)}
    fuse = chosen(paces, seeds, pool.size)
    return {"fuse": fuse, "why": _why(paces, seeds, pool.size), **found, "paces": _in_json(paces)}


def _measured(plan: Plan, workers: Workers, slots: Sequence[Slot], options: Options) -> dict[str, list[Result]]:
    """Return of each arm what the workers in these slots have measured; that it can be fused is checked of all."""
    trials = first_trials(plan)
    timed = timed_arms(list(trials))
    places = [
        {arm: workers.folder / "fusing" / str(number) / str(place) for place, arm in enumerate(trials)}
        for number in range(len(slots))
    ]
    seconds = {arm: BUDGET_S / len(timed) if arm in timed else 0.0 for arm in trials}
    started = []
    for slot, folders in zip(slots, places, strict=True):
        works = {
            folders[arm]: work_of(plan, trial, candidates=CANDIDATES, seconds=seconds[arm])
            for arm, trial in trials.items()
        }
        started.append(start(works, slot, workers, options))
    ends_of(started, workers)
    return {arm: [sound(plan, arm, folders[arm], "execution", "fuse") for folders in places] for arm in trials}


def _paces(results: Sequence[Result]) -> dict[int, float]:
    """Return the seconds of an iteration that all workers have measured, the mean of theirs."""
    known = [fuse for fuse in CANDIDATES if all(str(fuse) in each.facts for each in results)]
    return {fuse: fmean(float(each.facts[str(fuse)]) for each in results) for fuse in known}


def _why(paces: Paces, seeds: Mapping[str, Sequence[int]], slots: int) -> str:
    alone = length(paces, seeds, slots, 1)
    speeds = {each: alone / length(paces, seeds, slots, each) for each in measured(paces)[1:]}
    told = ", ".join(f"{each} in one model: {speed:.2f} times as fast" for each, speed in speeds.items())
    return f"against seeds one by one, {told}" if told else "one seed takes too long to try more in one model"


def _in_json(paces: Paces) -> dict[str, dict[str, float]]:
    return {arm: {str(fuse): float(f"{pace:.4g}") for fuse, pace in found.items()} for arm, found in paces.items()}
