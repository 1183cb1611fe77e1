"""Results made elsewhere become trials that are done: all of them in one transaction, or none."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from ablate.errors import Fault, StudyError
from ablate.plan.matching import Found, has_diverged
from ablate.plan.trials import Plan
from ablate.store.claims import attempt_folder
from ablate.store.facts import IMPORTED, read_metrics, stored_metrics, stored_number, write_plan
from ablate.store.store import Store
from ablate.store.tables import attempt, measurement, runner, trial
from ablate.study.reading import sorted_faults

_WITH_RESULT = ("ok", "diverged")
_COLUMNS = ("metric", "epoch", "value", "kind")  # of a number
_CHUNK = 500  # rows per statement: SQLite allows 32,766 parameters, older ones 999

T = TypeVar("T")


@dataclass(frozen=True)
class Imported:
    """How many trials were written, and how many were there before with the same numbers."""

    new: int
    same: int


def record_results(
    store: Store, plan: Plan, found: Sequence[Found], *, importer: Mapping[str, str], replace: bool = False
) -> Imported:
    """Write a study version and the results of its trials. Twice is the same as once.

    ``importer``: id, host, boot_id, lock_file and command of who imports. Raises StudyError, and writes nothing, where
    a trial was trained here, or has other imported numbers that are not to be replaced.
    """

    def work(connection: Connection) -> Imported:
        study_id = write_plan(connection, plan)
        rows = _trials(connection, [each.trial.fingerprint for each in found])
        standing = _standing(connection, rows)
        told = {each.trial.fingerprint: _numbers(each) for each in found}
        new = [each for each in found if standing.get(each.trial.fingerprint) != told[each.trial.fingerprint]]
        trained = _trained(connection, [rows[each.trial.fingerprint].id for each in new])
        refused = (_refusal(each, rows[each.trial.fingerprint], trained, replace=replace) for each in new)
        if faults := [fault for fault in refused if fault is not None]:
            raise StudyError(sorted_faults(faults))
        if new:
            now = time.time()
            connection.execute(insert(runner).values(study=study_id, started=now, heartbeat=now, ended=now, **importer))
            _write(connection, new, rows, told, plan.study.primary, importer["id"], now)
        return Imported(len(new), len(found) - len(new))

    return store.write(work)


def _trials(connection: Connection, fingerprints: Sequence[str]) -> dict[str, Row[Any]]:
    found: dict[str, Row[Any]] = {}
    for some in _chunks(fingerprints):
        query = select(trial).where(trial.c.fingerprint.in_(some))
        if connection.dialect.name == "postgresql":
            query = query.with_for_update()  # or a runner could claim one before our write
        found.update({row.fingerprint: row for row in connection.execute(query)})
    return found


def _chunks(keys: Sequence[T]) -> Iterator[Sequence[T]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))


Numbers = frozenset[tuple[str, int | None, float | None, str]]


def _numbers(found: Found) -> Numbers:
    """Return what is to be kept: (metric, epoch, value, kind)."""
    records = ((name, epoch, value) for epoch, values in found.epochs.items() for name, value in values.items())
    return frozenset((*_finals(found.metrics), *((name, epoch, *_columns(value)) for name, epoch, value in records)))


def _finals(metrics: Mapping[str, float]) -> Iterator[tuple[str, None, float | None, str]]:
    return ((name, None, *_columns(value)) for name, value in metrics.items())


def _columns(value: float) -> tuple[float | None, str]:
    stored = stored_number(value)
    return stored["value"], stored["kind"]


def _standing(connection: Connection, rows: Mapping[str, Row[Any]]) -> dict[str, Numbers]:
    """Return the numbers of those trials that were imported before, by fingerprint."""
    ids = {row.id: name for name, row in rows.items() if row.source == IMPORTED and row.state == "done"}
    found: dict[str, set[tuple[str, int | None, float | None, str]]] = {}
    for some in _chunks(list(ids)):
        ends = (
            select(attempt.c.trial, attempt.c.metrics_json)
            .join(trial, (trial.c.id == attempt.c.trial) & (trial.c.result_claim == attempt.c.claim))
            .where(trial.c.id.in_(some))
        )
        for trial_id, text in connection.execute(ends):
            found.setdefault(ids[trial_id], set()).update(_finals(read_metrics(text)))
        query = (
            select(measurement.c.trial, *(measurement.c[name] for name in _COLUMNS))
            .join(trial, (trial.c.id == measurement.c.trial) & (trial.c.result_claim == measurement.c.claim))
            .where(trial.c.id.in_(some))
        )
        for trial_id, *number in connection.execute(query):
            found.setdefault(ids[trial_id], set()).add(tuple(number))
    return {name: frozenset(numbers) for name, numbers in found.items()}


def _trained(connection: Connection, ids: Sequence[int]) -> set[int]:
    """Return those trials that an attempt of ours has brought to a result, be it that another is wanted by now."""
    found: set[int] = set()
    for some in _chunks(ids):
        query = select(attempt.c.trial).where(attempt.c.trial.in_(some), attempt.c.outcome.in_(_WITH_RESULT))
        found.update(connection.execute(query).scalars())
    return found


def _refusal(found: Found, row: Row[Any], trained: Collection[int], *, replace: bool) -> Fault | None:
    what = f"`{found.arm}` seed {found.trial.seed}"
    if row.source == IMPORTED:
        if replace:
            return None
        return Fault(f"{what} was imported before, with other numbers", found.where, "`--replace` takes these instead")
    if row.state == "running":
        return Fault(f"{what} is being trained", found.where, "take it out, or stop that run first")
    if row.id in trained:
        return Fault(f"{what} was trained here", found.where, "what ablate trained is not overwritten: take it out")
    return None


def _write(
    connection: Connection,
    new: Sequence[Found],
    rows: Mapping[str, Row[Any]],
    told: Mapping[str, Numbers],
    primary: str,
    importer: str,
    now: float,
) -> None:
    trials, attempts, measurements = [], [], []
    for each in new:
        row = rows[each.trial.fingerprint]
        claim = row.claim + 1
        trials.append({"this": row.id, "next": claim})
        attempts.append(
            {
                "trial": row.id,
                "claim": claim,
                "runner": importer,
                "slot": IMPORTED,
                "folder": attempt_folder(row.fingerprint, claim),
                "started": now,
                "ended": now,
                "outcome": "diverged" if has_diverged(each, primary) else "ok",
                "environment_json": json.dumps(each.facts, sort_keys=True),
                "metrics_json": stored_metrics(dict(sorted(each.metrics.items()))),
            }
        )
        on_the_way = [number for number in told[row.fingerprint] if number[1] is not None]
        ordered = sorted(on_the_way, key=lambda number: (number[1], number[0]))
        values = (dict(zip(_COLUMNS, number, strict=True)) for number in ordered)
        measurements += [{"trial": row.id, "claim": claim, **value} for value in values]
    claim_of: Any = bindparam("next")
    done = {"state": "done", "source": IMPORTED, "claim": claim_of, "result_claim": claim_of, "reason": None}
    connection.execute(update(trial).where(trial.c.id == bindparam("this")).values(done), trials)
    connection.execute(insert(attempt), attempts)
    if measurements:
        connection.execute(insert(measurement), measurements)
