"""Whether a store holds what it promises: read-only questions whose answer should be nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, func, select, text

from ablate.store.store import Store, is_sqlite
from ablate.store.tables import arm, attempt, measurement, plan, replicate, runner, study, trial

_SHOWN = 5


def store_flaws(store: Store) -> list[str]:
    """Return what is wrong with a store, in words, as of one moment; nothing where all is well."""

    def work(connection: Connection) -> list[str]:
        flaws: list[str] = []
        if is_sqlite(store.engine.url):
            flaws += _sqlite_flaws(connection)
            if flaws:
                return flaws  # a damaged file's rows say nothing
        for check in _CHECKS:
            flaws += check(connection)
        return flaws

    return store.read(work)


def _sqlite_flaws(connection: Connection) -> Iterator[str]:
    for line in connection.exec_driver_sql(f"PRAGMA quick_check({_SHOWN})").scalars():
        if line != "ok":
            yield f"SQLite finds damage: {line}"
    broken = list(connection.exec_driver_sql("PRAGMA foreign_key_check"))
    if broken:
        yield f"{len(broken):,} rows name a row that is not there, the first in table {broken[0][0]}"
    # a store from elsewhere could bring code that runs when it is read or written
    foreign = connection.execute(text("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"))
    for row in foreign:
        yield f"the {row.type} `{row.name}` is none of ablate's"


def _replicates_without_trial(connection: Connection) -> Iterator[str]:
    query = select(replicate.c.id).outerjoin(trial, trial.c.id == replicate.c.trial)
    yield from _told(connection, query.where(trial.c.id.is_(None)), "planned replicates have no trial", "replicate")
    query = select(replicate.c.id).join(trial, trial.c.id == replicate.c.trial)
    query = query.where(trial.c.seed != replicate.c.seed)
    yield from _told(connection, query, "replicates have a trial of another seed", "replicate")


def _arms_without_all_seeds(connection: Connection) -> Iterator[str]:
    """An arm has all the planned seeds, or none yet (`--only` asked for others)."""
    query = (
        select(arm.c.name.label("arm"), study.c.name, plan.c.plan_json, func.count(replicate.c.id).label("there"))
        .join_from(arm, study, study.c.id == arm.c.study)
        .join(plan, plan.c.study == study.c.id)
        .join(replicate, (replicate.c.arm == arm.c.id) & (replicate.c.role == "main"))
        .group_by(arm.c.id, arm.c.name, study.c.name, plan.c.plan_json)
    )
    for row in connection.execute(query):
        planned = len(json.loads(row.plan_json)["seeds"])
        if row.there != planned:
            yield f"arm `{row.arm}` of `{row.name}` has {row.there} of its {planned} planned seeds"


def _several_running_attempts(connection: Connection) -> Iterator[str]:
    query = select(attempt.c.trial).where(attempt.c.ended.is_(None)).group_by(attempt.c.trial)
    query = query.having(func.count() > 1)
    yield from _told(connection, query, "trials have more than one running attempt", "trial")


def _running_without_attempt(connection: Connection) -> Iterator[str]:
    ours = (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.claim) & attempt.c.ended.is_(None)
    query = select(trial.c.id).outerjoin(attempt, ours).where(trial.c.state == "running", attempt.c.id.is_(None))
    yield from _told(connection, query, "running trials have no open attempt", "trial")
    query = select(trial.c.id).join(attempt, (attempt.c.trial == trial.c.id) & attempt.c.ended.is_(None))
    query = query.where(trial.c.state != "running")
    yield from _told(connection, query, "trials that do not run have an open attempt", "trial")


def _claims_with_gaps(connection: Connection) -> Iterator[str]:
    """Claims of a trial are 1, 2, … up to its own, each with an attempt."""
    first, last, number = func.min(attempt.c.claim), func.max(attempt.c.claim), func.count(attempt.c.id)
    query = select(trial.c.id).outerjoin(attempt, attempt.c.trial == trial.c.id).where(trial.c.source == "trained")
    query = query.group_by(trial.c.id, trial.c.claim)
    whole = ((trial.c.claim == 0) & (number == 0)) | ((first == 1) & (last == trial.c.claim) & (number == last))
    yield from _told(connection, query.having(~func.coalesce(whole, False)), "trials have claims with gaps", "trial")


def _done_without_result(connection: Connection) -> Iterator[str]:
    standing = (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim)
    standing = standing & attempt.c.outcome.in_(("ok", "diverged"))
    query = select(trial.c.id).outerjoin(attempt, standing)
    query = query.where(trial.c.state == "done", trial.c.source == "trained", attempt.c.id.is_(None))
    yield from _told(connection, query, "done trials have no attempt that ended with a result", "trial")


def _done_without_metrics(connection: Connection) -> Iterator[str]:
    """A trial that ended `ok` has every metric that the study declares for which it was run."""
    query = (
        select(trial.c.id, attempt.c.claim, runner.c.study)
        .join_from(trial, attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
        .join(runner, runner.c.id == attempt.c.runner)
        .where(trial.c.state == "done", attempt.c.outcome == "ok", runner.c.study.is_not(None))
    )
    specs = {row.id: set(json.loads(row.spec_json)["metrics"]) for row in connection.execute(select(study))}
    found: dict[tuple[int, int], set[str]] = {}
    finals = select(measurement.c.trial, measurement.c.claim, measurement.c.metric)
    for row in connection.execute(finals.where(measurement.c.epoch.is_(None))):
        found.setdefault((row.trial, row.claim), set()).add(row.metric)
    lacking = []
    for row in connection.execute(query):
        if specs.get(row.study, set()) - found.get((row.id, row.claim), set()):
            lacking.append(row.id)
    if lacking:
        yield _flaw(lacking, "done trials lack a declared metric", "trial")


_CHECKS: Sequence[Callable[[Connection], Iterator[str]]] = (
    _replicates_without_trial,
    _arms_without_all_seeds,
    _several_running_attempts,
    _running_without_attempt,
    _claims_with_gaps,
    _done_without_result,
    _done_without_metrics,
)


def _told(connection: Connection, query: Any, what: str, table: str) -> Iterator[str]:
    rows = list(dict.fromkeys(connection.execute(query).scalars()))
    if rows:
        yield _flaw(rows, what, table)


def _flaw(rows: Sequence[int], what: str, table: str) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
    return f"{len(rows):,} {what} ({table} {shown})"
