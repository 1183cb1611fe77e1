"""``run_study``: from a plan to settled trials. ``queue_study``: to trials that wait for agents.

Nothing is written before the request is known to be sound.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ablate.errors import AblateError
from ablate.failpoints import failpoint
from ablate.plan.trials import Plan
from ablate.run.options import Options
from ablate.run.progress import Progress
from ablate.run.provenance import code_sha256, importer_facts, machine_facts, preloaded
from ablate.run.runner import Runner, Summary
from ablate.run.slots import SlotPool
from ablate.run.task_check import check_compiler, check_task
from ablate.run.workers import Workers
from ablate.store.claims import register_runner, retrain
from ablate.store.facts import Left, Origin, StoredTrial, grown_plan, left_of, origins_of, record_plan, states_of
from ablate.store.store import Store

OldCode = Literal["ask", "keep", "fresh"]


@contextmanager
def worker_server() -> Iterator[Workers]:
    """Give a worker server that is started when it is first needed, and ended with all it runs."""
    failpoint("server-folder-begun")
    folder = Path(tempfile.mkdtemp(prefix="ablate-"))
    workers = Workers(folder / "server.log")
    try:
        yield workers
    finally:
        workers.close()
        shutil.rmtree(folder, ignore_errors=True)


def run_study(
    plan: Plan,
    *,
    existing: Store | None,
    make_store: Callable[[], Store],
    options: Options,
    old_code: Callable[[int], OldCode],
    progress: Callable[[Sequence[StoredTrial]], Progress],
    fresh: bool = False,
    beside: Callable[[Store], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Summary, Store]:
    """Run what is missing of a plan and return what is there then, with the store it is in.

    ``make_store`` is called once the request is known to be sound. ``old_code`` is asked what to do with so many
    finished trials that other code than today's trained; ``fresh`` trains them again unasked, and those of another
    Python, torch or torchvision. ``beside`` starts what follows the run (the mirror); ``say`` is told what was chosen.
    Raises AblateError for a task that can't be imported, EnvironmentFault where no slot or data is to be had.
    """
    SlotPool(plan.study.resources, threads=plan.study.execution.threads)  # no GPU: said before anything is written
    check_compiler(plan.study)
    with worker_server() as workers:
        is_measured = "auto" in (plan.study.execution.fuse, plan.study.resources.per_gpu)
        if is_measured:
            plan = _chosen_for(plan, workers, options, say)
        missing = _missing(_grown(existing, plan, options.arms), existing, old_code, fresh=fresh)
        store, study_id = _recorded(missing, existing, make_store, workers, options.data_dir, is_checked=is_measured)
        beside(store)
        runner = Runner(
            store,
            missing.plan,
            study_id,
            workers=workers,
            study_folder=plan.study.folder,
            options=options,
            code=missing.code,
            progress=progress,
        )
        return runner.run(), store


def queue_study(
    plan: Plan,
    *,
    existing: Store | None,
    make_store: Callable[[], Store],
    arms: Sequence[str] | None,
    old_code: Callable[[int], OldCode],
    fresh: bool = False,
) -> tuple[Store, Left]:
    """Record what is missing of a plan for agents to run, and return the store and what is left to do there.

    The machine need not be one that could run it. Arguments and errors are otherwise those of ``run_study``.
    """
    missing = _missing(_grown(existing, plan.settled(), arms), existing, old_code, fresh=fresh)
    with worker_server() as workers:
        store, study_id = _recorded(missing, existing, make_store, workers)
    facts = importer_facts()  # of a runner that has ended: the study is the one last run
    register_runner(store, runner_id=facts.pop("id"), study_id=study_id, facts=facts, ended=True)
    return store, left_of(store, study_id)


def _chosen_for(plan: Plan, workers: Workers, options: Options, say: Callable[[str], None]) -> Plan:
    """Return the plan with the number of seeds in one model, and then of trials on a GPU, that is the fastest here."""
    from ablate.run.fusing import choose_fuse  # as few studies need them
    from ablate.run.sharing import choose_per_gpu

    workers.start(preloaded(plan.study.task, plan.study.folder))
    check_task(plan, workers, plan.study.folder)
    if plan.study.execution.fuse == "auto":
        plan = plan.fused(choose_fuse(plan, workers, options, say))
        say(_said("fuse", plan.fusing))
    if plan.study.resources.per_gpu == "auto":
        plan = plan.shared(choose_per_gpu(plan, workers, options, say))
        say(_said("per_gpu", plan.sharing))
    return plan


def _said(key: str, found: Mapping[str, Any]) -> str:
    return f"{key}: {found[key]} ({found['why']}; measured in {found['seconds']:.0f} s)"


def _grown(existing: Store | None, plan: Plan, arms: Sequence[str] | None) -> Plan:
    return replace(grown_plan(existing, plan.study).restricted(arms), fusing=plan.fusing, sharing=plan.sharing)


@dataclass(frozen=True)
class _Missing:
    """What is to be done for a plan: whether anything is, and the finished trials to train again."""

    plan: Plan
    code: str
    anything: bool
    again: tuple[str, ...]


def _missing(plan: Plan, existing: Store | None, old_code: Callable[[int], OldCode], *, fresh: bool) -> _Missing:
    prints = list(plan.trials())
    states = states_of(existing, prints) if existing else {}
    code = code_sha256(plan.study.task, plan.study.folder)
    origins = origins_of(existing, prints) if existing else {}
    stale = [name for name, known in origins.items() if known.code_sha256 != code]
    if not fresh:
        fresh = bool(stale) and _chosen(old_code(len(stale)), len(stale), plan) == "fresh"
    again = _trained_by_others(origins, code) if fresh else ()
    unsettled = any(states.get(name) not in ("done", "failed") for name in prints)
    return _Missing(plan, code, unsettled or bool(again), again)


def _recorded(
    missing: _Missing,
    existing: Store | None,
    make_store: Callable[[], Store],
    workers: Workers,
    data_dir: Path | None = None,
    *,
    is_checked: bool = False,
) -> tuple[Store, int]:
    """Return the store with the plan in it, and its study's id, once the task is known to be there."""
    if missing.anything and not is_checked:
        workers.start(preloaded(missing.plan.study.task, missing.plan.study.folder))
        check_task(missing.plan, workers, missing.plan.study.folder, data_dir)
    store = existing or make_store()
    study_id = record_plan(store, missing.plan)
    retrain(store, missing.again)
    return store, study_id


# versions that may change what a trial computes; drift of any other fact is marked and trains nothing again
_VERSIONS = ("python", "torch", "torchvision")


def _trained_by_others(origins: Mapping[str, Origin], code: str) -> tuple[str, ...]:
    """Return the trials that other code or other versions than today's trained."""
    here = machine_facts()

    def is_ours(known: Origin) -> bool:
        same = all(known.environment.get(name, here.get(name)) == here.get(name) for name in _VERSIONS)
        return same and known.code_sha256 == code

    return tuple(name for name, known in origins.items() if not is_ours(known))


def _chosen(choice: OldCode, count: int, plan: Plan) -> OldCode:
    if choice == "ask":
        what = "1 finished trial" if count == 1 else f"{count} finished trials"
        raise AblateError(
            f"the code of `{plan.study.task.label}` has changed since {what} of this study",
            where=plan.study.where("task"),
            hint="--keep keeps them (the report marks mixed rows); --fresh trains them again; "
            'in Python old_code="keep", or "fresh"',
        )
    return choice
