"""Whether a study's task can be imported, and its seeds be trained in one model, before any trial is touched."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ablate.errors import EXIT_ENVIRONMENT, AblateError, EnvironmentFault
from ablate.failpoints import failpoint
from ablate.plan.trials import Plan
from ablate.run.endings import last_word
from ablate.run.progress import FAILURE_LINES
from ablate.run.workers import Exit, Workers
from ablate.study.schema import Study
from ablate.train import toolchain
from ablate.train.folder import AttemptFolder, Result, Work

PATIENCE_S = 600.0  # for a task to come to where it is trained: to import, to download and prepare data, to build
DEAD = f"the process died, or had not called train_classifier after {PATIENCE_S:.0f} s"


def check_compiler(study: Study) -> None:
    """Raise EnvironmentFault where a study is to be compiled, and this machine can't."""
    lack = toolchain.missing(is_gpu=bool(study.resources.gpus)) if study.execution.compile else ""
    if lack:
        raise EnvironmentFault(lack, where=study.where("execution", "compile"), hint=toolchain.HINT)


def check_task(plan: Plan, workers: Workers, study_folder: Path, data_dir: Path | None = None) -> None:
    """Import the task in a worker without calling it. Raises AblateError where that fails; no trial is touched.

    Where seeds are to be trained in one model, the task is then called for each arm, up to where its training would
    begin: arms of a study are all trained alike, so where one can't be fused, none is.
    """
    failpoint("check-begun")
    with tempfile.TemporaryDirectory(prefix="ablate-check-") as name:
        folder = AttemptFolder(name)
        folder.create(_work(plan, study_folder, {}))
        worker = workers.spawn(folder.path, {"CUDA_VISIBLE_DEVICES": ""})
        result = last_word(folder, ends_of([worker], workers)[worker])
        if result is not None and result.exit_code == EXIT_ENVIRONMENT:
            raise EnvironmentFault(result.error, hint=result.hint)
        if result is None or result.outcome != "ok":
            why = result.error if result else "the process died while importing it"
            lines = "\n".join(f"    {line}" for line in folder.log_tail(FAILURE_LINES))
            hint = (result.hint if result else "") or f"its last lines were:\n{lines}"
            done = "imported" if plan.study.task.function else "run"
            raise AblateError(
                f"the task `{plan.study.task.label}` can't be {done}: {why}",
                where=plan.study.where("task"),
                hint=hint,
            )
        if plan.study.execution.members > 1:
            _check_fused(plan, workers, study_folder, folder.path, data_dir)


def _check_fused(plan: Plan, workers: Workers, study_folder: Path, within: Path, data_dir: Path | None) -> None:
    """Have one worker build the network of each arm and fuse it, on the CPU."""
    first_of = {each.arm: each.trial for each in reversed(plan.replicates)}
    arms = {arm: AttemptFolder(within / str(number)) for number, arm in enumerate(first_of)}
    for arm, folder in arms.items():
        fuse, trial = plan.study.execution.members, first_of[arm]
        folder.create(_work(plan, study_folder, trial.settings, seed=trial.seed, fuse=fuse))
    first, *others = [folder.path for folder in arms.values()]
    environment = {"ABLATE_DATA": str(data_dir.resolve())} if data_dir else {}
    worker = workers.spawn(first, {"CUDA_VISIBLE_DEVICES": "", **environment}, warm=True)
    workers.go_on(worker, others)
    workers.retire(worker)
    end = ends_of([worker], workers)[worker]
    for arm, folder in arms.items():  # it has stopped at the first that it could not fuse
        result = last_word(folder, end) or Result("error", error=DEAD)
        if result.exit_code == EXIT_ENVIRONMENT:
            raise EnvironmentFault(result.error, hint=result.hint)
        if result.outcome != "ok":
            raise AblateError(
                f"the arm `{arm}` can't be trained with `fuse: {plan.study.execution.fuse}`: {result.error}",
                where=plan.study.where("execution", "fuse"),
                hint=result.hint or "take `fuse` out: all arms of a study are trained alike",
            )


def _work(plan: Plan, study_folder: Path, settings: Mapping[str, Any], *, seed: int = 0, fuse: int = 1) -> Work:
    task, execution = str(plan.study.task), plan.study.execution
    return Work(
        task,
        str(study_folder),
        dict(settings),
        seed,
        "",
        dtype=execution.dtype,
        memory_format=execution.memory_format,
        check_only=True,
        fuse=fuse,
    )


def ends_of(started: Collection[int], workers: Workers) -> dict[int, Exit]:
    """Wait until these workers have ended and return how. What takes too long, by a loop of its own, is killed."""
    deadline = time.monotonic() + PATIENCE_S
    ended: dict[int, Exit] = {}
    while len(ended) < len(started):
        for each in workers.wait(0.1):
            if isinstance(each, Exit) and each.worker in started:
                ended[each.worker] = each
        if time.monotonic() > deadline:
            for worker in set(started) - set(ended):
                workers.signal(worker, signal.SIGKILL)
    return ended
