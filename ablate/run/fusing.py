"""``fuse: auto``: how many seeds of an arm to train in one model, measured before the study first runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ablate.errors import EXIT_ENVIRONMENT, AblateError, EnvironmentFault
from ablate.plan.fusing import CANDIDATES, Paces, chosen, length, measured
from ablate.plan.trials import Plan
from ablate.run.options import Options
from ablate.run.slots import Slot, SlotPool
from ablate.run.task_check import DEAD, ends_of
from ablate.run.workers import Workers
from ablate.train.folder import AttemptFolder, Result, Work

BUDGET_S = 3.5  # of measuring, all arms together; with what they build for it, about five seconds
MEASURED = 3  # arms: the first, the last, and one between; of the others it is checked that they can be fused


def choose_fuse(plan: Plan, workers: Workers, options: Options) -> dict[str, Any]:
    """Return how many seeds to train in one model (``fuse``), why, and the numbers that say so.

    Measured in as many workers at once as the study is to have. Raises AblateError where an arm can't be trained.
    """
    began = time.monotonic()
    study = plan.study
    seeds: dict[str, list[int]] = {}
    for each in plan.replicates:
        seeds.setdefault(each.arm, []).append(each.seed)
    pool = SlotPool(study.resources, threads=study.execution.threads, jobs=options.jobs)
    slots = [slot for slot in (pool.acquire() for _ in range(pool.size)) if slot is not None]
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
    """Return of each arm what the workers in these slots have measured."""
    study = plan.study
    first_of = {each.arm: each.trial for each in reversed(plan.replicates)}
    names = [arm.name for arm in plan.arms if arm.name in first_of]
    timed = {names[0], names[len(names) // 2], names[-1]}
    environment = {"ABLATE_DATA": str(options.data_dir.resolve())} if options.data_dir else {}
    folders: dict[str, list[AttemptFolder]] = {arm: [] for arm in names}
    started: list[int] = []
    for number, slot in enumerate(slots):
        for place, arm in enumerate(names):
            folder = AttemptFolder(workers.folder / "fusing" / str(number) / str(place))
            work = Work(
                task=str(study.task),
                study_folder=str(study.folder),
                settings=first_of[arm].settings,
                seed=first_of[arm].seed,
                fingerprint="",
                device="cuda" if study.resources.gpus else "cpu",
                dtype=study.execution.dtype,
                memory_format=study.execution.memory_format,
                threads=study.execution.threads,
                check_only=True,
                candidates=CANDIDATES,
                seconds=BUDGET_S / len(timed) if arm in timed else 0.0,
            )
            folder.create(work)
            folders[arm].append(folder)
        first, *others = [folders[arm][number].path for arm in names]
        worker = workers.spawn(first, {**slot.environment, **environment}, warm=True)
        workers.go_on(worker, others)
        workers.retire(worker)
        started.append(worker)
    ends_of(started, workers)
    return {arm: [_sound(plan, arm, folder) for folder in folders[arm]] for arm in names}


def _sound(plan: Plan, arm: str, folder: AttemptFolder) -> Result:
    result = folder.result() or Result("error", error=DEAD)
    if result.exit_code == EXIT_ENVIRONMENT:
        raise EnvironmentFault(result.error, hint=result.hint)
    if result.outcome != "ok":
        raise AblateError(
            f"the arm `{arm}` can't be measured for `fuse: auto`: {result.error}",
            where=plan.study.where("execution", "fuse"),
            hint=result.hint or "take `fuse` out",
        )
    return result


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
