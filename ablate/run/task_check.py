"""Whether a study's task can be imported, before any trial is touched."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ablate.errors import EXIT_ENVIRONMENT, AblateError, EnvironmentFault
from ablate.failpoints import failpoint
from ablate.plan.trials import Plan
from ablate.run.endings import last_word
from ablate.run.progress import FAILURE_LINES
from ablate.run.workers import Exit, Workers
from ablate.train.folder import AttemptFolder, Work


def check_task(plan: Plan, workers: Workers, study_folder: Path) -> None:
    """Import the task in a worker without calling it. Raises AblateError where that fails; no trial is touched."""
    failpoint("check-begun")
    with tempfile.TemporaryDirectory(prefix="ablate-check-") as name:
        folder = AttemptFolder(name)
        folder.create(Work(str(plan.study.task), str(study_folder), {}, 0, "", check_only=True))
        worker, end = workers.spawn(folder.path, {"CUDA_VISIBLE_DEVICES": ""}), None
        while end is None:
            end = next((each for each in workers.wait(1.0) if isinstance(each, Exit) and each.worker == worker), None)
        result = last_word(folder, end)
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
