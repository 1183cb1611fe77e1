"""``plan --time``: run each arm up to its first record, or two, and stop it there, to know what the study will cost."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import EnvironmentFault
from ablate.failpoints import failpoint
from ablate.plan.trials import Plan, Trial
from ablate.run.slots import SlotPool
from ablate.run.workers import Workers
from ablate.train.folder import AttemptFolder, Work

SLOT_PATIENCE_S = 60.0
GRACE_S = 10.0


@dataclass(frozen=True)
class Timing:
    """How long one arm took to its first record, and what a whole trial should take; None where it can't be known."""

    arm: str
    first_record_s: float | None
    trial_s: float | None
    error: str = ""


def time_arms(plan: Plan, workers: Workers, *, study_folder: Path, environment: Mapping[str, str]) -> Iterator[Timing]:
    """Time each distinct arm, one after another in one slot. Writes nothing that is kept."""
    study = plan.study
    pool = SlotPool(study.resources, threads=study.execution.threads, jobs=1)
    slot = _wait_for(pool)
    timed: dict[str, Timing] = {}
    first = {replicate.arm: replicate for replicate in reversed(plan.replicates)}
    try:
        for arm in plan.arms:
            if arm.name not in first:
                continue
            replicate = first[arm.name]
            known = timed.get(replicate.trial.fingerprint)
            if known is None:
                known = _time(replicate.trial, plan, workers, study_folder, {**slot.environment, **environment})
                timed[replicate.trial.fingerprint] = known
            yield Timing(replicate.arm, known.first_record_s, known.trial_s, known.error)
    finally:
        pool.release(slot)


def _wait_for(pool: SlotPool) -> Any:
    deadline = time.monotonic() + SLOT_PATIENCE_S
    while (slot := pool.acquire()) is None:
        if time.monotonic() > deadline:
            raise EnvironmentFault("no slot is free", hint="another run uses them all; try again when it has ended")
        time.sleep(0.1)
    return slot


def _time(trial: Trial, plan: Plan, workers: Workers, study_folder: Path, environment: dict[str, str]) -> Timing:
    study = plan.study
    failpoint("timing-begun")
    with tempfile.TemporaryDirectory(prefix="ablate-time-") as name:
        folder = AttemptFolder(name)
        folder.create(
            Work(
                task=str(study.task),
                study_folder=str(study_folder),
                settings=trial.settings,
                seed=trial.seed,
                fingerprint=trial.fingerprint,
                device="cuda" if study.resources.gpus else "cpu",
                dtype=study.execution.dtype,
                memory_format=study.execution.memory_format,
                compile=study.execution.compile,
                graphs=study.execution.graphs,
                threads=study.execution.threads,
                metrics=tuple(study.metrics),
                fuse=study.execution.members,
            )
        )
        started = time.monotonic()
        worker = workers.spawn(folder.path, environment)
        records: list[dict[str, Any]] = []
        ended = False
        # what is compiled is so in the first epoch, which then is no measure of the others
        wanted = 2 if study.execution.compile else 1
        while len(records) < wanted and not ended:
            ended = any(end.worker == worker for end in workers.wait(0.02))
            records, _ = folder.records()
        took = (time.monotonic() - started) / study.execution.members  # the share of one seed
        _end(workers, worker, ended)
        result = folder.result()
        if records:
            epochs = records[0].get("epochs")
            pace = took
            if len(records) > 1:
                pace = (records[-1]["time"] - records[0]["time"]) / (len(records) - 1) / study.execution.members
            return Timing("", took, took + pace * (epochs - len(records)) if epochs else None)
        if result is not None and result.outcome == "ok":
            return Timing("", None, took)  # it records nothing: the whole trial was run
        return Timing("", None, None, result.error if result else "the worker died")


def _end(workers: Workers, worker: int, ended: bool) -> None:
    deadline = time.monotonic() + GRACE_S
    if not ended:
        workers.signal(worker, signal.SIGTERM)
    while not ended:
        if time.monotonic() > deadline:
            workers.signal(worker, signal.SIGKILL)
        ended = any(end.worker == worker for end in workers.wait(0.1))
