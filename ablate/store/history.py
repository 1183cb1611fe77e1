"""Who ran what and when: runners and attempts as rows, for those who look and change nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Double, Row, case, cast, func, or_, select

from ablate.stats.intervals import LARGEST
from ablate.store.dialects import in_json, now
from ablate.store.facts import (
    STANDS,
    StoredTrial,
    read_metrics,
    read_number,
    select_measurements,
    select_trials,
    stored_number,
)
from ablate.store.store import Store
from ablate.store.tables import arm, attempt, measurement, replicate, runner, study, trial


@dataclass(frozen=True)
class StoredRunner:
    """A runner as it registered; ``ended`` is None while it runs, and for ever after a kill.

    ``now`` is the store's time when this was read: what the other times are to be compared with.
    """

    id: str
    host: str
    boot_id: str
    lock_file: str
    command: str
    started: float
    heartbeat: float
    ended: float | None
    now: float


@dataclass(frozen=True)
class StoredAttempt:
    """One try at a trial, under the first arm and seed at which the trial stands in its study.

    ``claim`` is its number among the attempts of the trial; ``stands`` tells whether the trial's result is its own.
    """

    id: int
    arm: str
    seed: int
    trial: int
    claim: int
    stands: bool
    runner: str
    host: str
    slot: str
    folder: str
    started: float
    ended: float | None
    outcome: str | None
    exit_code: int | None
    signal: int | None
    error: str | None
    seconds: float | None
    resumed_from: int | None
    code_sha256: str | None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """Where it runs, in words: the host, and what an engine calls the agent there."""
        return machine(self.host, self.environment.get("agent", ""))


def machine(host: str, agent: str) -> str:
    return f"{host} ({agent})" if agent else host


@dataclass(frozen=True)
class Moment:
    """One moment of a study version: its trials, attempts in their order, all or some, and the runners that matter."""

    trials: tuple[StoredTrial, ...]
    attempts: tuple[StoredAttempt, ...]
    runners: tuple[StoredRunner, ...]


@dataclass(frozen=True)
class Pile:
    """How many places of an arm hold a trial in this state; ``trials`` of them are the first place of their trial.

    ``value`` stands for their final values of one metric: None where they have none, NaN where it can't be averaged.
    """

    arm: str
    state: str
    outcome: str | None
    value: float | None
    places: int
    trials: int


@dataclass(frozen=True)
class Tally:
    """One moment of a study version, counted by the database, for it may have 100,000 trials: only those that failed
    or ended without the metric are there one by one, and of the attempts those at work.
    """

    piles: tuple[Pile, ...]
    failed: tuple[StoredTrial, ...]
    attempts: tuple[StoredAttempt, ...]
    runners: tuple[StoredRunner, ...]


@dataclass(frozen=True)
class StoredArm:
    """An arm as it was recorded; ``parent`` is what it is compared with, None for the baseline."""

    name: str
    title: str
    parent: str | None
    settings: dict[str, Any]


def history_of(store: Store, study_id: int) -> Moment:
    """Return all that is known of a study version, read in one transaction."""
    return store.read(lambda connection: _history(connection, study_id))


def whole_of(store: Store, study_id: int) -> tuple[Moment, list[Row[Any]]]:
    """Return the same with the measurements of every epoch."""
    return store.read(lambda c: (_history(c, study_id), select_measurements(c, study_id)))


def moment_of(store: Store, study_id: int, *, after: int, among: Collection[int]) -> Moment:
    """Return what changed of a study version: all its trials, and attempts as ``attempts_of`` chooses them."""

    def work(connection: Connection) -> Moment:
        return Moment(
            tuple(select_trials(connection, study_id)),
            tuple(_attempts(connection, study_id, after=after, among=among)),
            tuple(_runners(connection, study_id)),
        )

    return store.read(work)


@dataclass(frozen=True)
class Open:
    """A runner that has not ended, with the number of trials that it holds and where it is, in words."""

    runner: StoredRunner
    held: int
    machine: str


def open_runners(store: Store) -> list[Open]:
    """Return the runners of all studies that have not ended. Some may be dead."""
    columns = [runner.c[name] for name in StoredRunner.__dataclass_fields__ if name != "now"]

    def work(connection: Connection) -> list[Open]:
        its = (attempt.c.runner == runner.c.id) & attempt.c.ended.is_(None)
        query = select(*columns, now(connection), func.count(attempt.c.id), func.max(attempt.c.environment_json))
        query = query.outerjoin_from(runner, attempt, its).where(runner.c.ended.is_(None))
        found = []
        for *values, held, facts in connection.execute(query.group_by(runner.c.id).order_by(runner.c.started)):
            each = StoredRunner(*values)
            found.append(Open(each, held, machine(each.host, json.loads(facts or "{}").get("agent", ""))))
        return found

    return store.read(work)


def tally_of(store: Store, study_id: int, metric: str) -> Tally:
    """Return how the trials of a study version stand; ``metric`` is the one that tells who diverged or failed."""

    def work(connection: Connection) -> Tally:
        return Tally(
            tuple(_piles(connection, study_id, metric)),
            tuple(select_trials(connection, study_id, without=metric)),
            tuple(_attempts(connection, study_id, running=True)),
            tuple(_runners(connection, study_id)),
        )

    return store.read(work)


def _piles(connection: Connection, study_id: int, metric: str) -> Iterator[Pile]:
    other, other_arm = replicate.alias(), arm.alias()
    first = (
        select(func.min(other.c.id))
        .join(other_arm, other_arm.c.id == other.c.arm)
        .where(other.c.trial == trial.c.id, other_arm.c.study == study_id)
        .correlate(trial)
        .scalar_subquery()
    )
    found = in_json(connection, case((trial.c.state == "done", attempt.c.metrics_json)), metric)
    # of a word SQLite makes 0
    is_usable = found.not_in(("nan", "+inf", "-inf")) & (func.abs(cast(found, Double)) <= LARGEST)
    value = case((is_usable, 1), (found.is_not(None), 0))
    query = (
        _of_study(
            select(
                arm.c.name,
                trial.c.state,
                attempt.c.outcome,
                value,
                func.count(),
                func.sum(case((replicate.c.id == first, 1), else_=0)),
            ),
            study_id,
        )
        .outerjoin(attempt, STANDS)
        .group_by(arm.c.position, arm.c.name, trial.c.state, attempt.c.outcome, value)
        .order_by(arm.c.position)
    )
    for name, state, outcome, usable, places, trials in connection.execute(query):
        yield Pile(name, state, outcome, {1: 0.0, 0: math.nan}.get(usable), places, trials)


def attempts_of(
    store: Store, study_id: int, *, after: int | None = None, among: Collection[int] | None = None
) -> list[StoredAttempt]:
    """Return the attempts of a study version in the order they began.

    All of them, or those with an id above ``after`` together with those whose id is in ``among``.
    """
    return store.read(lambda connection: _attempts(connection, study_id, after=after, among=among))


def runners_of(store: Store, study_id: int) -> list[StoredRunner]:
    """Return the runners that were started for a study version, and those that hold a trial of it; oldest first."""
    return store.read(lambda connection: _runners(connection, study_id))


def arms_of(store: Store, study_id: int) -> list[StoredArm]:
    """Return the arms of a study version in plan order."""
    query = select(arm.c.name, arm.c.title, arm.c.parent, arm.c.settings_json).where(arm.c.study == study_id)
    query = query.order_by(arm.c.position)
    rows = store.read(lambda connection: list(connection.execute(query)))
    return [StoredArm(row.name, row.title, row.parent, json.loads(row.settings_json)) for row in rows]


def titles_of(store: Store) -> list[str]:
    """Return the titles of all studies, with their profiles: ``basenet``, ``basenet@quick``."""
    query = select(study.c.name, study.c.profile).distinct().order_by(study.c.name, study.c.profile)
    rows = store.read(lambda connection: list(connection.execute(query)))
    return [f"{row.name}@{row.profile}" if row.profile else row.name for row in rows]


def final_values(store: Store, trial_id: int) -> dict[str, float]:
    """Return what a finished trial measured at its end, by metric."""
    query = (
        select(attempt.c.metrics_json)
        .join(trial, (trial.c.id == attempt.c.trial) & (trial.c.result_claim == attempt.c.claim))
        .where(trial.c.id == trial_id)
    )
    return read_metrics(store.read(lambda connection: connection.execute(query).scalar()))


def values_of(
    store: Store, fingerprints: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[tuple[str, int | None], tuple[float | None, str]]]:
    """Return, of each trial that is done, by (metric, epoch) the value and kind as stored; epoch None is the end."""
    at_end = (
        select(trial.c.fingerprint, attempt.c.metrics_json)
        .join(attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
        .where(trial.c.fingerprint.in_(fingerprints))
    )
    on_the_way = (
        select(trial.c.fingerprint, measurement.c.metric, measurement.c.epoch, measurement.c.value, measurement.c.kind)
        .join(trial, (trial.c.id == measurement.c.trial) & (trial.c.result_claim == measurement.c.claim))
        .where(trial.c.fingerprint.in_(fingerprints), measurement.c.metric.in_(metrics))
    )
    found: dict[str, dict[tuple[str, int | None], tuple[float | None, str]]] = {}
    ends, recorded = store.read(lambda c: (c.execute(at_end).all(), c.execute(on_the_way).all()))
    for row in recorded:
        found.setdefault(row.fingerprint, {})[row.metric, row.epoch] = (row.value, row.kind)
    for fingerprint, text in ends:
        for name, number in read_metrics(text).items():
            if name in metrics:
                kept = stored_number(number)
                found.setdefault(fingerprint, {})[name, None] = (kept["value"], kept["kind"])
    return found


def recorded_values(store: Store, trial_id: int, claim: int) -> tuple[int | None, dict[str, float]]:
    """Return the last epoch that a running attempt recorded, and its values."""
    query = (
        select(measurement.c.epoch, measurement.c.metric, measurement.c.value, measurement.c.kind)
        .where(measurement.c.trial == trial_id, measurement.c.claim == claim)
        .order_by(measurement.c.epoch)
    )
    rows = store.read(lambda connection: list(connection.execute(query)))
    epoch = rows[-1].epoch if rows else None
    return epoch, {row.metric: read_number(row.value, row.kind) for row in rows if row.epoch == epoch}


def _history(connection: Connection, study_id: int) -> Moment:
    return Moment(
        tuple(select_trials(connection, study_id)),
        tuple(_attempts(connection, study_id)),
        tuple(_runners(connection, study_id)),
    )


def _attempts(
    connection: Connection,
    study_id: int,
    *,
    after: int | None = None,
    among: Collection[int] | None = None,
    running: bool = False,
) -> list[StoredAttempt]:
    query = _of_study(
        select(
            *(column for column in attempt.c if column is not attempt.c.metrics_json),
            arm.c.name.label("arm"),
            replicate.c.seed,
            runner.c.host,
            trial.c.result_claim,
        ),
        study_id,
    )
    query = query.join(attempt, attempt.c.trial == trial.c.id).join(runner, runner.c.id == attempt.c.runner)
    if running:
        query = query.where(attempt.c.ended.is_(None))
    if after is not None or among is not None:
        chosen = [attempt.c.id.in_(among or ()), *([attempt.c.id > after] if after is not None else [])]
        query = query.where(or_(*chosen))
    query = query.order_by(attempt.c.id, replicate.c.position)
    rows: dict[int, Row[Any]] = {}
    for row in connection.execute(query):
        rows.setdefault(row.id, row)  # a trial that two arms share is told of once
    return [_attempt(row) for row in rows.values()]


def _attempt(row: Row[Any]) -> StoredAttempt:
    values = dict(row._mapping)
    environment = json.loads(values.pop("environment_json") or "{}")
    stands = values.pop("result_claim") == row.claim
    return StoredAttempt(**values, stands=stands, environment={key: str(value) for key, value in environment.items()})


def _runners(connection: Connection, study_id: int) -> list[StoredRunner]:
    holders = _of_study(select(trial.c.owner), study_id).where(trial.c.owner.is_not(None))
    columns = [runner.c[name] for name in StoredRunner.__dataclass_fields__ if name != "now"]
    query = select(*columns, now(connection).label("now")).where(
        or_(runner.c.study == study_id, runner.c.id.in_(holders))
    )
    return [StoredRunner(**row._mapping) for row in connection.execute(query.order_by(runner.c.started))]


def _of_study(query: Any, study_id: int) -> Any:
    joined = query.select_from(replicate).join(arm, arm.c.id == replicate.c.arm)
    return joined.join(trial, trial.c.id == replicate.c.trial).where(arm.c.study == study_id)
