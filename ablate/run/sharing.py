"""``per_gpu: auto``: how many trials to put on one GPU, measured before the study first runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ablate.plan.sharing import Shared, candidates, chosen, length_of
from ablate.plan.trials import Plan
from ablate.run.measuring import first_trials, seeds_of, sound, start, timed_arms, wait_for_slot, work_of
from ablate.run.options import Options
from ablate.run.slots import Slot, SlotPool, allotted_cores, usable_gpus
from ablate.run.task_check import PATIENCE_S
from ablate.run.workers import Exit, Workers
from ablate.train.folder import AttemptFolder, Result

SECONDS = 1.0  # of measuring each of the timed arms, for each number of trials at once
PLACE = ("resources", "per_gpu")

Measured = Mapping[str, Sequence[Result]]  # of each arm, by all that were at it


def choose_per_gpu(plan: Plan, workers: Workers, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Return how many trials to put on one GPU (``per_gpu``), why, and the numbers that say so.

    Each arm is measured alone on a GPU, and some then two, four, … at once, as long as memory and cores have room and
    the whole study is done sooner by it. Raises AblateError where an arm can't be trained.
    """
    began = time.monotonic()
    whole = plan.study.resources.model_copy(update={"per_gpu": 1})
    pool = SlotPool(whole, threads=plan.study.execution.threads, jobs=1)
    slot = wait_for_slot(pool, plan, say)
    try:
        found = _chosen(plan, options, lambda number, arms: _measured(plan, arms, number, workers, slot, options))
    finally:
        pool.release(slot)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _chosen(plan: Plan, options: Options, measure: Callable[[int, Sequence[str]], Measured]) -> dict[str, Any]:
    gpus, seeds, fuse = len(usable_gpus()), seeds_of(plan), plan.study.execution.members
    arms = list(seeds)
    alone = {arm: results[0].facts for arm, results in measure(1, arms).items()}
    if not alone:
        return {"per_gpu": 1, "why": "an arm has no memory on a GPU of its own"}
    hungriest = max(alone, key=lambda arm: int(alone[arm]["held"]))
    held, total = (int(alone[hungriest][name]) for name in ("held", "total"))
    cores = allotted_cores() // (plan.study.resources.cpus or plan.study.execution.threads)
    numbers = candidates(held=held, total=total, cores=min(cores, options.jobs or cores) // gpus)
    shared = {1: {arm: {fuse: float(alone[arm]["pace"])} for arm in timed_arms(arms)}}
    full = 0
    for number in numbers[1:]:
        found = measure(number, timed_arms(arms))
        if not found:
            full = number
            break
        shared[number] = {arm: {fuse: _pace(results)} for arm, results in found.items()}
        if chosen(shared, seeds, gpus=gpus, fuse=fuse) < number:
            break
    lengths = {number: length_of(shared, seeds, number, gpus, fuse) for number in shared}
    memory = f"`{hungriest}` holds {held / 2**30:.1f} of {total / 2**30:.1f} GiB"
    return {
        "per_gpu": chosen(shared, seeds, gpus=gpus, fuse=fuse),
        "why": f"{_why(lengths, full)}; {memory}, so memory and cores have room for {numbers[-1]}",
        "gpus": gpus,
        "held_mib": {arm: int(facts["held"]) >> 20 for arm, facts in alone.items()},
        "total_mib": total >> 20,
        "paces": _in_json(shared),
    }


def _measured(plan: Plan, arms: Sequence[str], number: int, workers: Workers, slot: Slot, options: Options) -> Measured:
    """Return what so many workers on one GPU, each at the same arm as the others, have measured of these arms.

    Nothing where there is no memory for them, or where of several one has failed otherwise: alone it has not.
    """
    trials, timed = first_trials(plan), timed_arms(arms)
    place = workers.folder / "sharing" / str(number)
    folders = {arm: [place / str(who) / str(at) for who in range(number)] for at, arm in enumerate(arms)}
    started: dict[int, Path] = {}
    for who in range(number):
        works = {
            folders[arm][who]: work_of(
                plan,
                trials[arm],
                fuse=plan.study.execution.members,
                peers=tuple(map(str, folders[arm])),
                seconds=SECONDS if arm in timed else 0.0,
            )
            for arm in arms
        }
        started[start(works, slot, workers, options)] = folders[arms[-1]][who]
    _wait_for(started, workers)
    outcomes = {_outcome(folder) for of_arm in folders.values() for folder in of_arm}
    if outcomes != {"ok"} and (number > 1 or "oom" in outcomes):
        return {}
    return {arm: [sound(plan, arm, folder, *PLACE) for folder in folders[arm]] for arm in arms}


def _wait_for(started: Mapping[int, Path], workers: Workers) -> None:
    """Wait until these workers have ended, whose last folders are given. Where one fails, the others are ended too."""
    left, deadline = set(started), time.monotonic() + PATIENCE_S
    while left:
        ended = {each.worker for each in workers.wait(0.1) if isinstance(each, Exit)} & left
        left -= ended
        if any(_outcome(started[worker]) != "ok" for worker in ended) or time.monotonic() > deadline:
            for worker in left:
                workers.signal(worker, signal.SIGKILL)


def _outcome(folder: Path) -> str:
    result = AttemptFolder(folder).result()
    return result.outcome if result is not None else ""


def _pace(results: Sequence[Result]) -> float:
    """Return the seconds of an iteration, the mean of all workers'."""
    return fmean(float(each.facts["pace"]) for each in results)


def _why(lengths: dict[int, float], full: int) -> str:
    told = [f"{number} at once: {lengths[1] / lengths[number]:.2f} times as fast" for number in sorted(lengths)[1:]]
    told += [f"{full} at once: no memory"] * bool(full)
    return f"against one at a time, {', '.join(told)}" if told else "no two at once were tried"


def _in_json(shared: Shared) -> dict[str, dict[str, float]]:
    return {
        str(number): {arm: float(f"{pace:.4g}") for arm, found in paces.items() for pace in found.values()}
        for number, paces in shared.items()
    }
