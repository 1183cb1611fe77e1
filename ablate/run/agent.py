"""The agent: the runner without the planning. It works on what a store holds, study after study, while there is work.

Agents know nothing of each other: what they share is the store, and who claims a trial has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ablate.errors import AblateError, EnvironmentFault
from ablate.plan.trials import Plan
from ablate.run.options import Options
from ablate.run.progress import Progress
from ablate.run.provenance import code_sha256
from ablate.run.runner import Runner, Summary
from ablate.run.slots import shortage
from ablate.run.studies import worker_server
from ablate.run.task_check import check_compiler, check_task
from ablate.run.workers import Workers
from ablate.store.facts import (
    StoredStudy,
    StoredTrial,
    find_study,
    grown_plan,
    left_of,
    origins_of,
    stored_study,
    titles_of,
)
from ablate.store.store import Store
from ablate.study.schema import Study

LOOK_S = 1.0


@dataclass(frozen=True)
class Done:
    """What an agent did: how many attempts it made, how many trials of its studies have failed, whether what is left is
    longer than its allocation allows, and the signal that stopped it, if one did."""

    attempts: int
    failed: int = 0
    out_of_time: bool = False
    stopped_by: int | None = None


class Agent:
    """Runs what waits in a store and fits this machine. ``titles``: of these studies alone; of all where there are
    none. ``files``: where the study files of some of them lie here, with their code beside them."""

    def __init__(
        self,
        store: Store,
        titles: Sequence[str],
        *,
        files: Mapping[str, Path],
        options: Options,
        progress: Callable[[Study, Sequence[StoredTrial]], Progress],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._titles = titles
        self._files = files
        self._options = options
        self._progress = progress
        self._say = say
        self._refused: dict[int, AblateError | None] = {}  # study version → why it can't be worked on here, if so
        self._met: set[int] = set()
        self._attempts = 0
        self._failed: dict[int, int] = {}  # trials, by study version
        self._waits_for_time = False

    def run(self, *, idle_timeout_s: float) -> Done:
        """Work until nothing waits, and has not for so long; until enough is done, or a signal comes.

        Raises AblateError where none of the studies can be worked on here.
        """
        with worker_server() as workers:
            idle_since = time.monotonic()
            while True:
                before = self._attempts
                stopped_by = self._round(workers)
                if stopped_by is not None or self._room == 0 or self._waits_for_time:
                    return self._done(stopped_by)
                if self._attempts > before:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since >= idle_timeout_s:
                    self._raise_if_all_refused()
                    return self._done(None)
                else:
                    time.sleep(LOOK_S)

    def _done(self, stopped_by: int | None) -> Done:
        return Done(self._attempts, sum(self._failed.values()), self._waits_for_time, stopped_by)

    @property
    def _room(self) -> int | None:
        """How many more trials we may take; None for any number."""
        most = self._options.max_trials
        return None if most is None else most - self._attempts

    def _round(self, workers: Workers) -> int | None:
        """Work on each study that has work; return the signal that stopped us."""
        self._waits_for_time = False
        for title in self._titles or titles_of(self._store):
            stored = find_study(self._store, title)
            if self._room == 0:
                return None
            if self._has_work(stored) and self._can_work_on(stored, workers):
                summary = self._work_on(stored, workers)
                if summary.stopped_by is not None:
                    return summary.stopped_by
        return None

    def _has_work(self, stored: StoredStudy) -> bool:
        """Tell whether trials wait, or may soon: those of runners that are dead, or not known to us to be alive."""
        left = left_of(self._store, stored.id)
        is_new = stored.id not in self._met
        self._met.add(stored.id)
        return bool(left.waiting or left.lapsed or (is_new and left.running))

    def _can_work_on(self, stored: StoredStudy, workers: Workers) -> bool:
        if stored.id not in self._refused:
            self._refused[stored.id] = None
            try:
                study = self._study(stored)
                if lack := shortage(study.resources, threads=study.execution.threads):
                    raise EnvironmentFault(lack, hint="an agent takes only what its machine can run")
                check_compiler(study)
                plan = grown_plan(self._store, study)
                check_task(plan, workers, study.folder, self._options.data_dir)
                self._tell_of_other_code(plan)
            except AblateError as error:
                self._refused[stored.id] = error
                self._say(f"{stored.title}: passed over: {error.faults[0].message}")
        return self._refused[stored.id] is None

    def _tell_of_other_code(self, plan: Plan) -> None:
        """Say where finished trials had other code: nobody can be asked here, and the report marks them."""
        code = code_sha256(plan.study.task, plan.study.folder)
        known = origins_of(self._store, list(plan.trials())).values()
        others = sum(each.code_sha256 not in (None, code) for each in known)
        if others:
            what = "1 finished trial" if others == 1 else f"{others:,} finished trials"
            self._say(
                f"warning: {plan.study.title}: {what} had other code than there is here; the report marks mixed rows, "
                "and `ablate run … --queue --fresh` has them trained again"
            )

    def _work_on(self, stored: StoredStudy, workers: Workers) -> Summary:
        study = self._study(stored)
        runner = Runner(
            self._store,
            grown_plan(self._store, study),
            stored.id,
            workers=workers,
            study_folder=study.folder,
            options=replace(self._options, leaves_others=True, max_trials=self._room),
            code=code_sha256(study.task, study.folder),
            progress=lambda trials: self._progress(study, trials),
        )
        summary = runner.run()
        self._attempts += summary.attempts
        self._failed[stored.id] = summary.count("failed")
        if summary.count("waiting") and not summary.attempts and self._options.allocation is not None:
            self._waits_for_time = True
        return summary

    def _study(self, stored: StoredStudy) -> Study:
        return stored_study(stored, file=self._files.get(stored.title))

    def _raise_if_all_refused(self) -> None:
        refused = list(self._refused.values())
        if refused and all(refused) and refused[0] is not None:
            raise refused[0]
