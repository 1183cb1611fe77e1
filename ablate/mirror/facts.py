"""What the store says of each study version, as far as a mirror shows it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, or_, select

from ablate.store.dialects import now
from ablate.store.facts import read_metrics
from ablate.store.store import Store
from ablate.store.tables import arm, attempt, measurement, plan, replicate, runner, study, trial

_CHUNK = 500  # ids per statement: SQLite allows 32,766 parameters, older ones 999


@dataclass(frozen=True)
class Version:
    """One version of a study: what is declared, and never changes."""

    id: int
    title: str
    number: int
    spec_sha256: str
    question: str
    primary: str
    goal: str
    created: float
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, Any]]  # name → settings, in plan order
    titles: Mapping[str, str]
    tune: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # tuned setting → its range


@dataclass(frozen=True)
class Stamp:
    """What changes whenever a trial that is not running has changed. ``state``: of a dead runner's trial, waiting."""

    arms: tuple[str, ...]
    state: str
    claim: int
    result_claim: int | None


@dataclass(frozen=True)
class Try:
    """One attempt."""

    claim: int
    slot: str
    started: float
    ended: float | None
    outcome: str | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True)
class TrialFacts:
    """One trial of a study version, with the attempts and numbers that a mirror shows.

    ``epochs`` holds the primary metric as the attempt that counts recorded it, or the one at work.
    """

    fingerprint: str
    seed: int
    stamp: Stamp
    reason: str | None
    tries: tuple[Try, ...]
    finals: Mapping[str, float]
    epochs: Mapping[int, float]
    role: str = "main"
    settings: Mapping[str, Any] = field(default_factory=dict)  # where some are tuned

    @property
    def standing(self) -> Try | None:
        """The attempt whose result stands, else the last one."""
        claim = self.stamp.result_claim or self.stamp.claim
        return next((each for each in self.tries if each.claim == claim), None)


def versions(store: Store, known: Mapping[int, Version]) -> list[Version]:
    """Return all study versions in order of first use; those in ``known`` are not read again until they have grown."""

    def work(connection: Connection) -> list[Version]:
        arms = select(func.count()).where(arm.c.study == study.c.id).correlate(study).scalar_subquery()
        query = select(study.c.id, study.c.spec_sha256, arms.label("arms")).join(plan).order_by(study.c.id)
        rows = connection.execute(query).all()
        return [
            known[row.id]
            if row.id in known and (known[row.id].spec_sha256, len(known[row.id].arms)) == (row.spec_sha256, row.arms)
            else _version(connection, row.id)
            for row in rows
        ]

    return store.read(work)


def changed_trials(
    store: Store, version: Version, known: Mapping[str, Stamp]
) -> tuple[list[str], dict[str, TrialFacts]]:
    """Return the fingerprints of the trials that were begun, oldest first, and facts of those that may have changed.

    ``known``: the stamps that were seen before. All is read in one transaction.
    """

    def work(connection: Connection) -> tuple[list[str], dict[str, TrialFacts]]:
        rows = _trials(connection, version.id)
        changed = {
            fingerprint: (row, stamp)
            for fingerprint, (row, stamp) in rows.items()
            if stamp.state == "running" or known.get(fingerprint) != stamp
        }
        return list(rows), dict(_facts(connection, version, changed))

    return store.read(work)


def _version(connection: Connection, study_id: int) -> Version:
    row = connection.execute(select(study, plan.c.plan_json).join(plan).where(study.c.id == study_id)).one()
    frozen = json.loads(row.plan_json)
    query = select(arm.c.name, arm.c.title, arm.c.settings_json).where(arm.c.study == study_id).order_by(arm.c.position)
    arms = connection.execute(query).all()
    return Version(
        id=row.id,
        title=f"{row.name}@{row.profile}" if row.profile else row.name,
        number=row.version,
        spec_sha256=row.spec_sha256,
        question=json.loads(row.spec_json).get("question", ""),
        primary=frozen["primary"],
        goal=frozen["goal"],
        created=row.created,
        seeds=tuple(frozen.get("numbers", frozen["seeds"])),  # schema 1 kept them under one name
        arms={each.name: json.loads(each.settings_json) for each in arms},
        titles={each.name: each.title for each in arms},
        tune=frozen.get("tune", {}),
    )


def _trials(connection: Connection, study_id: int) -> dict[str, tuple[Any, Stamp]]:
    """Return row and stamp of each trial that was begun, by fingerprint, oldest first; one of two arms stands once."""
    first = select(attempt.c.trial, func.min(attempt.c.id).label("id")).group_by(attempt.c.trial).subquery()
    query = (
        select(
            trial.c.id,
            trial.c.fingerprint,
            trial.c.state,
            trial.c.reason,
            trial.c.claim,
            trial.c.result_claim,
            trial.c.lease_until,
            replicate.c.seed,
            replicate.c.role,
            arm.c.name.label("arm"),
            runner.c.boot_id,
            runner.c.lock_file,
            now(connection).label("now"),
        )
        .join_from(replicate, arm, arm.c.id == replicate.c.arm)
        .join(trial, trial.c.id == replicate.c.trial)
        .outerjoin(runner, runner.c.id == trial.c.owner)
        .outerjoin(first, first.c.trial == trial.c.id)
        .where(arm.c.study == study_id, or_(first.c.id.is_not(None), trial.c.state == "done"))
        .order_by(func.coalesce(first.c.id, 0), replicate.c.position)
    )
    found: dict[str, tuple[Any, Stamp]] = {}
    alive: dict[str, bool] = {}
    row: Any
    for row in connection.execute(query):
        arms = found[row.fingerprint][1].arms if row.fingerprint in found else ()
        state = row.state
        if state == "running":
            if row.lock_file not in alive:
                alive[row.lock_file] = _is_alive(row)
            state = "running" if alive[row.lock_file] else "waiting"
        found[row.fingerprint] = (row, Stamp((*arms, row.arm), state, row.claim, row.result_claim))
    return found


def _is_alive(row: Any) -> bool:
    """Tell whether the runner of a running trial lives: by the kernel's word on this host, else by the lease."""
    if row.boot_id and row.boot_id == _boot_id():
        try:
            return _is_locked(row.lock_file)
        except OSError:
            pass  # another container's file, or another user's: it says nothing
    return bool(row.lease_until >= row.now)


def _is_locked(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would keep us
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _facts(
    connection: Connection, version: Version, rows: Mapping[str, tuple[Any, Stamp]]
) -> Iterator[tuple[str, TrialFacts]]:
    ids = [row.id for row, _ in rows.values()]
    tries = _tries(connection, ids)
    finals = _finals(connection, ids)
    epochs = _epochs(connection, ids, version.primary)
    settings = _settings(connection, ids) if version.tune else {}
    for fingerprint, (row, stamp) in rows.items():
        yield (
            fingerprint,
            TrialFacts(
                fingerprint=fingerprint,
                seed=row.seed,
                stamp=stamp,
                reason=row.reason,
                tries=tuple(tries.get(row.id, ())),
                finals=finals.get(row.id, {}) if stamp.state == "done" else {},
                epochs=epochs.get(row.id, {}),
                role=row.role,
                settings=settings.get(row.id, {}),
            ),
        )


def _settings(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for some in _chunks(ids):
        query = select(trial.c.id, trial.c.settings_json).where(trial.c.id.in_(some))
        found.update({row.id: json.loads(row.settings_json) for row in connection.execute(query)})
    return found


def _tries(connection: Connection, ids: Sequence[int]) -> dict[int, list[Try]]:
    columns = [attempt.c[name] for name in ("claim", "slot", "started", "ended", "outcome", "seconds", "error")]
    found: dict[int, list[Try]] = {}
    for some in _chunks(ids):
        query = select(attempt.c.trial, *columns).where(attempt.c.trial.in_(some)).order_by(attempt.c.claim)
        for trial_id, *values in connection.execute(query):
            found.setdefault(trial_id, []).append(Try(*values))
    return found


def _finals(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for some in _chunks(ids):
        query = (
            select(attempt.c.trial, attempt.c.metrics_json)
            .join(trial, (trial.c.id == attempt.c.trial) & (trial.c.result_claim == attempt.c.claim))
            .where(attempt.c.trial.in_(some))
        )
        found.update({row.trial: read_metrics(row.metrics_json) for row in connection.execute(query)})
    return found


def _epochs(connection: Connection, ids: Sequence[int], metric: str) -> dict[int, dict[int, float]]:
    """Return one metric by trial and epoch, as the attempt that counts recorded it, else the last one.

    Values that are not finite are left out.
    """
    claim = func.coalesce(trial.c.result_claim, trial.c.claim)
    found: dict[int, dict[int, float]] = {}
    for some in _chunks(ids):
        query = (
            select(measurement.c.trial, measurement.c.epoch, measurement.c.value)
            .join(trial, (trial.c.id == measurement.c.trial) & (measurement.c.claim == claim))
            .where(measurement.c.trial.in_(some), measurement.c.metric == metric)
            .where(measurement.c.kind == "num")
            .order_by(measurement.c.epoch)
        )
        for row in connection.execute(query):
            found.setdefault(row.trial, {})[row.epoch] = row.value
    return found


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))
