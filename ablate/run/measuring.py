"""What an ``auto`` is decided by: the loops of a study's arms, run for some iterations before it first runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.errors import EXIT_ENVIRONMENT, AblateError, EnvironmentFault
from ablate.plan.trials import Plan, Trial
from ablate.run.options import Options
from ablate.run.progress import HUNGRY, HUNGRY_S
from ablate.run.slots import Slot, SlotPool
from ablate.run.task_check import DEAD
from ablate.run.workers import Workers
from ablate.train.folder import AttemptFolder, Result, Work


def first_trials(plan: Plan) -> dict[str, Trial]:
    """Return the first trial of each arm that has any, in the order of the arms."""
    first_of = {each.arm: each.trial for each in reversed(plan.replicates)}
    return {arm.name: first_of[arm.name] for arm in plan.arms if arm.name in first_of}


def timed_arms(arms: Sequence[str]) -> list[str]:
    """Return three arms, from the first to the last, whose iterations are timed; the others are taken to be alike."""
    return list(dict.fromkeys((arms[0], arms[len(arms) // 2], arms[-1])))


def seeds_of(plan: Plan) -> dict[str, list[int]]:
    """Return the seeds of each arm."""
    seeds: dict[str, list[int]] = {}
    for each in plan.replicates:
        seeds.setdefault(each.arm, []).append(each.seed)
    return seeds


def wait_for_slot(pool: SlotPool, plan: Plan, say: Callable[[str], None]) -> Slot:
    """Return a slot once there is a free one; say what is waited for, where that takes a while."""
    began, is_said = time.monotonic(), False
    while (slot := pool.acquire()) is None:
        if not is_said and time.monotonic() > began + HUNGRY_S:
            say(f"{plan.study.title} {HUNGRY}")
            is_said = True
        time.sleep(0.05)
    return slot


def start(works: Mapping[Path, Work], slot: Slot, workers: Workers, options: Options) -> int:
    """Start a worker that does these works, by folder, one after another; return its number."""
    for path, work in works.items():
        AttemptFolder(path).create(work)
    first, *others = works
    data = {"ABLATE_DATA": str(options.data_dir.resolve())} if options.data_dir else {}
    worker = workers.spawn(first, {**slot.environment, **data}, warm=True)
    workers.go_on(worker, others)
    workers.retire(worker)
    return worker


def work_of(plan: Plan, trial: Trial, **asked: Any) -> Work:
    """Return the work of measuring a trial's loop; ``asked`` says what of it."""
    study = plan.study
    return Work(
        task=str(study.task),
        study_folder=str(study.folder),
        settings=trial.settings,
        seed=trial.seed,
        fingerprint="",
        device="cuda" if study.resources.gpus else "cpu",
        dtype=study.execution.dtype,
        memory_format=study.execution.memory_format,
        threads=study.execution.threads,
        check_only=True,
        **asked,
    )


def sound(plan: Plan, arm: str, folder: Path, *place: str) -> Result:
    """Return what was measured of an arm. Raises AblateError where it could not be, for the key at that ``place``."""
    result = AttemptFolder(folder).result() or Result("error", error=DEAD)
    if result.exit_code == EXIT_ENVIRONMENT:
        raise EnvironmentFault(result.error, hint=result.hint)
    if result.outcome != "ok":
        raise AblateError(
            f"the arm `{arm}` can't be measured for `{place[-1]}: auto`: {result.error}",
            where=plan.study.where(*place),
            hint=result.hint or f"take `{place[-1]}` out",
        )
    return result
