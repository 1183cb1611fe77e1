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

SECONDS = 0.8  # of measuring each of the timed arms, for each number of trials at once
PLACE = ("resources", "per_gpu")


def choose_per_gpu(plan: Plan, workers: Workers, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Return how many trials to put on one GPU (``per_gpu``), why, and the numbers that say so.

    Each arm is measured alone on a GPU, and some then two, four, … at once, as long as memory and cores have room and
    the whole study is done sooner by it. Raises AblateError where an arm can't be trained.
    """
    began = time.monotonic()
    study, gpus, seeds = plan.study, len(usable_gpus()), seeds_of(plan)
    whole = study.resources.model_copy(update={"per_gpu": 1})
    pool = SlotPool(whole, threads=study.execution.threads, jobs=1)
    slot = wait_for_slot(pool, plan, say)
    arms = list(first_trials(plan))
    timed = timed_arms(arms)
    shared: dict[int, dict[str, dict[int, float]]] = {}

    def measure(number: int, arms: Sequence[str]) -> dict[str, list[Result]]:
        return _measured(plan, arms, timed, number, workers, slot, options)

    try:
        alone = {arm: found for arm, (found,) in measure(1, arms).items()}
        hungriest = max(alone, key=lambda arm: int(alone[arm].facts["held"]))
        held, total = (int(alone[hungriest].facts[name]) for name in ("held", "total"))
        cores = allotted_cores() // (study.resources.cpus or study.execution.threads)
        numbers = candidates(held=held, total=total, cores=min(cores, options.jobs or cores) // gpus)
        shared[1] = _paces({arm: [alone[arm]] for arm in timed}, study.execution.members)
        full = 0
        for number in numbers[1:]:
            found = measure(number, timed)
            if not found:
                full = number
                break
            shared[number] = _paces(found, study.execution.members)
            if chosen(shared, seeds, gpus=gpus, fuse=study.execution.members) < number:
                break
    finally:
        pool.release(slot)
    lengths = {number: length_of(shared, seeds, number, gpus, study.execution.members) for number in shared}
    memory = f"`{hungriest}` holds {held / 2**30:.1f} of {total / 2**30:.1f} GiB"
    return {
        "per_gpu": chosen(shared, seeds, gpus=gpus, fuse=study.execution.members),
        "why": f"{_why(lengths, full)}; {memory}, so memory and cores have room for {numbers[-1]}",
        "gpus": gpus,
        "seconds": round(time.monotonic() - began, 1),
        "held_mib": {arm: int(found.facts["held"]) >> 20 for arm, found in alone.items()},
        "total_mib": total >> 20,
        "paces": _in_json(shared),
    }


def _measured(
    plan: Plan, arms: Sequence[str], timed: Sequence[str], number: int, workers: Workers, slot: Slot, options: Options
) -> dict[str, list[Result]]:
    """Return what so many workers on one GPU, each at the same arm as the others, have measured of these arms.

    Nothing where one of several has failed: there is no room for so many.
    """
    trials = first_trials(plan)
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
    if number > 1 and not all(_is_ok(folder) for of_arm in folders.values() for folder in of_arm):
        return {}
    return {arm: [sound(plan, arm, folder, *PLACE) for folder in folders[arm]] for arm in arms}


def _wait_for(started: Mapping[int, Path], workers: Workers) -> None:
    """Wait until these workers have ended, whose last folders are given. Where one fails, the others are ended too."""
    left, deadline = set(started), time.monotonic() + PATIENCE_S
    while left:
        ended = {each.worker for each in workers.wait(0.1) if isinstance(each, Exit)} & left
        left -= ended
        if not all(_is_ok(started[worker]) for worker in ended) or time.monotonic() > deadline:
            for worker in left:
                workers.signal(worker, signal.SIGKILL)


def _is_ok(folder: Path) -> bool:
    result = AttemptFolder(folder).result()
    return result is not None and result.outcome == "ok"


def _paces(found: dict[str, list[Result]], fuse: int) -> dict[str, dict[int, float]]:
    """Return the seconds of an iteration of each arm, the mean of all workers'."""
    return {arm: {fuse: fmean(float(each.facts["pace"]) for each in results)} for arm, results in found.items()}


def _why(lengths: dict[int, float], full: int) -> str:
    told = [f"{number} at once: {lengths[1] / lengths[number]:.2f} times as fast" for number in sorted(lengths)[1:]]
    told += [f"{full} at once: no memory"] * bool(full)
    return f"against one at a time, {', '.join(told)}" if told else "no two at once were tried"


def _in_json(shared: Shared) -> dict[str, dict[str, float]]:
    return {
        str(number): {arm: float(f"{pace:.4g}") for arm, found in paces.items() for pace in found.values()}
        for number, paces in shared.items()
    }
