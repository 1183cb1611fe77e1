"""Who works on what: claims, leases and fencing.

A trial is claimed in one transaction. Each claim raises the trial's ``claim``; every later write names the claim it was
made under, and changes nothing where that is no longer the trial's (``Fenced``). A lease says how long a claim holds
without renewal; on one host the kernel's lock on the runner's file tells earlier that a runner is dead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, insert, select, update

from ablate.store.dialects import insert_into, is_postgresql, now
from ablate.store.facts import stored_number
from ablate.store.store import Store
from ablate.store.tables import arm, attempt, example_set, measurement, replicate, runner, score, trial
from ablate.study.words import storable

if TYPE_CHECKING:
    from ablate.store.scores import PackedIds, PackedScores

LEASE_S = 60.0


class Fenced(Exception):
    """The trial was taken over under a newer claim: this attempt may write nothing more."""


@dataclass(frozen=True)
class Claim:
    """A trial that is ours for now."""

    trial: int
    number: int
    fingerprint: str
    task: str
    settings_json: str
    seed: int
    errors: int
    idle_deaths: int
    earlier: tuple[str, ...]  # folders of earlier attempts, newest first


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and what becomes of its trial: ``state`` is ``done``, ``waiting`` or ``failed``."""

    outcome: str
    state: str
    reason: str | None = None
    error: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    seconds: float | None = None
    resumed_from: int | None = None
    errors: int = 0
    idle_deaths: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)  # joined to the attempt's environment


@dataclass(frozen=True)
class KeptScores:
    """One score per example of a finished attempt, and the metric that is their mean."""

    metric: str
    examples: PackedIds
    values: PackedScores


@dataclass(frozen=True)
class Held:
    """A running trial with its owner, for those who look whether the owner still lives."""

    trial: int
    claim: int
    owner: str
    host: str
    boot_id: str
    lock_file: str
    lease_until: float
    now: float  # the store's time when this was read
    folder: str
    errors: int
    idle_deaths: int


def register_runner(
    store: Store, *, runner_id: str, study_id: int | None, facts: Mapping[str, str], ended: bool = False
) -> None:
    """Write a runner's row; ``ended``: of one that leaves the running to others. ``facts``: host, boot_id, lock_file,
    command."""

    def work(connection: Connection) -> None:
        at = now(connection)
        row: dict[str, Any] = {"id": runner_id, "study": study_id, "started": at, "heartbeat": at}
        row |= {"ended": at} if ended else {}
        row |= {name: storable(fact) for name, fact in facts.items()}
        # it may be there: written by a commit whose reply was lost
        connection.execute(insert_into(connection, runner).values(row).on_conflict_do_nothing(index_elements=["id"]))

    store.write(work)


def end_runner(store: Store, runner_id: str) -> None:
    query = update(runner).where(runner.c.id == runner_id)
    store.write(lambda connection: connection.execute(query.values(ended=now(connection))))


def claim_trial(
    store: Store,
    *,
    runner_id: str,
    study_id: int,
    arms: Sequence[str] | None,
    slot: str,
    code: str = "",
    environment: Mapping[str, str] | None = None,
    lease_s: float = LEASE_S,
) -> Claim | None:
    """Claim the first waiting trial of a study version in plan order and open its attempt; None where none waits.

    ``code`` is the hash of the task's source: the attempt goes on from checkpoints of the same code alone.
    """
    waiting = (
        select(trial.c.id)
        .join_from(replicate, trial, trial.c.id == replicate.c.trial)
        .join(arm, arm.c.id == replicate.c.arm)
        .where(arm.c.study == study_id, trial.c.state == "waiting")
        .order_by(replicate.c.position)
        .limit(1)
    )
    if arms is not None:
        waiting = waiting.where(arm.c.name.in_(arms))
    waiting = waiting.with_for_update(skip_locked=True, of=trial)  # SQLite leaves it out

    def work(connection: Connection) -> Claim | None:
        at = now(connection)
        query = (
            update(trial)
            .where(trial.c.id == waiting.scalar_subquery(), trial.c.state == "waiting")
            .values(state="running", claim=trial.c.claim + 1, owner=runner_id, lease_until=at + lease_s, reason=None)
            .returning(trial)
        )
        row = connection.execute(query).first()
        if row is None:
            return None
        earlier = _folders(connection, row.id, code)
        values = {"trial": row.id, "claim": row.claim, "runner": runner_id, "slot": slot, "started": at}
        values["folder"] = attempt_folder(row.fingerprint, row.claim)
        values |= {"code_sha256": code, "environment_json": json.dumps(environment or {}, sort_keys=True)}
        connection.execute(insert(attempt).values(**values))
        return Claim(
            row.id,
            row.claim,
            row.fingerprint,
            row.task,
            row.settings_json,
            row.seed,
            row.errors,
            row.idle_deaths,
            earlier,
        )

    return store.write(work)


def attempt_folder(fingerprint: str, claim: int) -> str:
    """Return an attempt's folder, relative to the store's: named by content and claim, so that no two share one."""
    return f"trials/{fingerprint[:16]}/{claim}"


def renew(store: Store, runner_id: str, *, lease_s: float = LEASE_S) -> None:
    """Extend the leases of all that a runner holds, and its heartbeat."""

    def work(connection: Connection) -> None:
        held = (trial.c.owner == runner_id) & (trial.c.state == "running")
        connection.execute(update(trial).where(held).values(lease_until=now(connection) + lease_s))
        connection.execute(update(runner).where(runner.c.id == runner_id).values(heartbeat=now(connection)))

    store.write(work)


def add_measurements(store: Store, batch: Iterable[tuple[Claim, Sequence[Mapping[str, Any]]]]) -> list[Claim]:
    """Write the epochs recorded under each claim; a value recorded again under it replaces the former one.

    ``Mapping``: epoch, values. Returns the claims that were fenced: nothing was written for those.
    """
    batch = list(batch)

    def work(connection: Connection) -> list[Claim]:
        fenced = []
        for claim, records in batch:
            if _holds(connection, claim.trial, claim.number):
                _upsert(connection, claim, records)
            else:
                fenced.append(claim)
        return fenced

    return store.write(work)


def finish(
    store: Store,
    claim: Claim,
    ending: Ending,
    metrics: Mapping[str, float] | None = None,
    scores: KeptScores | None = None,
) -> None:
    """Close an attempt and give its trial the next state, in one transaction. Raises Fenced and writes nothing more.

    A result stands in place of earlier ones; what earlier attempts measured stays with them. Twice is the same as once:
    a commit whose reply was lost is found to be done.
    """

    def work(connection: Connection) -> None:
        done = ending.state == "done"
        query = (
            update(trial)
            .where(trial.c.id == claim.trial, trial.c.claim == claim.number, trial.c.state == "running")
            .values(
                state=ending.state,
                reason=ending.reason and storable(ending.reason),
                owner=None,
                lease_until=None,
                result_claim=claim.number if done else None,
                errors=ending.errors,
                idle_deaths=ending.idle_deaths,
            )
            .returning(trial.c.id)
        )
        if connection.execute(query).first() is None:
            if _outcome(connection, claim) == ending.outcome:
                return  # nobody else gives an attempt of ours such an end: it was us
            raise Fenced
        _close(connection, claim.trial, claim.number, ending)
        if done:
            rows = [
                {
                    "trial": claim.trial,
                    "claim": claim.number,
                    "metric": storable(name),
                    "epoch": None,
                    **stored_number(value),
                }
                for name, value in (metrics or {}).items()
            ]
            if rows:
                connection.execute(insert(measurement), rows)
            if scores is not None:
                _keep_scores(connection, claim, scores)

    store.write(work)


def fence(store: Store, claim: Claim) -> None:
    """Close the attempt of a claim that was taken over, where the one who took it has not done so."""
    ending = Ending("fenced", "waiting")
    store.write(lambda connection: _close(connection, claim.trial, claim.number, ending))


def held_trials(store: Store) -> list[Held]:
    """Return all running trials with their owners."""

    def work(connection: Connection) -> list[Held]:
        query = _held.add_columns(now(connection).label("now"))
        return [Held(**row._mapping) for row in connection.execute(query)]

    return store.read(work)


_held = (
    select(
        trial.c.id.label("trial"),
        trial.c.claim,
        trial.c.owner,
        runner.c.host,
        runner.c.boot_id,
        runner.c.lock_file,
        trial.c.lease_until,
        attempt.c.folder,
        trial.c.errors,
        trial.c.idle_deaths,
    )
    .join_from(trial, runner, runner.c.id == trial.c.owner)
    .join(attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.claim))
    .where(trial.c.state == "running")
)


def take_back(store: Store, held: Held, ending: Ending) -> bool:
    """Release a trial whose owner is dead or late. False where another was first, or the owner renewed after all.

    False also after a commit whose reply was lost: the trial waits all the same.
    """

    def work(connection: Connection) -> bool:
        still = (trial.c.id == held.trial) & (trial.c.claim == held.claim) & (trial.c.owner == held.owner)
        query = (
            update(trial)
            .where(still, trial.c.state == "running", trial.c.lease_until <= held.lease_until)
            .values(
                state=ending.state,
                reason=ending.reason,
                owner=None,
                lease_until=None,
                errors=ending.errors,
                idle_deaths=ending.idle_deaths,
            )
            .returning(trial.c.id)
        )
        if connection.execute(query).first() is None:
            return False
        _close(connection, held.trial, held.claim, ending)
        return True

    return store.write(work)


def reopen(store: Store, study_id: int, *, states: Sequence[str], arms: Sequence[str] | None = None) -> int:
    """Make trials of a study version wait again (``failed`` for a retry, ``done`` to train afresh); return how many."""
    chosen = select(replicate.c.trial).join(arm, arm.c.id == replicate.c.arm).where(arm.c.study == study_id)
    if arms is not None:
        chosen = chosen.where(arm.c.name.in_(arms))
    query = (
        update(trial)
        .where(trial.c.id.in_(chosen), trial.c.state.in_(states))
        .values(state="waiting", reason=None, result_claim=None, errors=0, idle_deaths=0)
    )
    return store.write(lambda connection: connection.execute(query).rowcount)


def retrain(store: Store, fingerprints: Sequence[str]) -> None:
    """Make finished trials wait again. What they measured stays with the attempts that measured it."""
    if not fingerprints:
        return  # of no parameters SQLAlchemy would make one statement, and miss its name
    query = (
        update(trial)
        .where(trial.c.fingerprint == bindparam("name"), trial.c.state == "done")
        .values(state="waiting", result_claim=None, errors=0, idle_deaths=0)
    )
    if fingerprints:
        store.write(lambda connection: connection.execute(query, [{"name": name} for name in fingerprints]))


def _holds(connection: Connection, trial_id: int, number: int) -> bool:
    query = select(trial.c.id).where(trial.c.id == trial_id, trial.c.claim == number, trial.c.state == "running")
    if is_postgresql(connection):
        query = query.with_for_update()  # or a taker could slip in before our write
    return connection.execute(query).first() is not None


def _outcome(connection: Connection, claim: Claim) -> str | None:
    query = select(attempt.c.outcome).where(attempt.c.trial == claim.trial, attempt.c.claim == claim.number)
    return connection.execute(query).scalar()


def _upsert(connection: Connection, claim: Claim, records: Sequence[Mapping[str, Any]]) -> None:
    latest = {
        (storable(name), record["epoch"]): value for record in records for name, value in record["values"].items()
    }  # one statement must not touch a row twice
    rows = [
        {"trial": claim.trial, "claim": claim.number, "metric": name, "epoch": epoch, **stored_number(float(value))}
        for (name, epoch), value in latest.items()
    ]
    if not rows:
        return
    statement = insert_into(connection, measurement)
    statement = statement.on_conflict_do_update(
        index_elements=["trial", "claim", "metric", "epoch"],
        index_where=measurement.c.epoch.is_not(None),
        set_={"value": statement.excluded.value, "kind": statement.excluded.kind},
    )
    connection.execute(statement, rows)


def _close(connection: Connection, trial_id: int, number: int, ending: Ending) -> None:
    this = (attempt.c.trial == trial_id) & (attempt.c.claim == number)
    if ending.facts:
        known = json.loads(connection.execute(select(attempt.c.environment_json).where(this)).scalar() or "{}")
        text = json.dumps({**known, **ending.facts}, sort_keys=True)
        connection.execute(update(attempt).where(this).values(environment_json=text))
    query = (
        update(attempt)
        .where(this, attempt.c.ended.is_(None))
        .values(
            ended=now(connection),
            outcome=ending.outcome,
            error=ending.error and storable(ending.error),
            exit_code=ending.exit_code,
            signal=ending.signal,
            seconds=ending.seconds,
            resumed_from=ending.resumed_from,
        )
    )
    connection.execute(query)


def _keep_scores(connection: Connection, claim: Claim, scores: KeptScores) -> None:
    examples = asdict(scores.examples)
    same = select(example_set.c.id).where(example_set.c.sha256 == examples["sha256"])
    if connection.execute(same).first() is None:
        # on a server another runner may be first after all
        statement = insert_into(connection, example_set).on_conflict_do_nothing(index_elements=["sha256"])
        connection.execute(statement, examples)
    row = {"trial": claim.trial, "claim": claim.number, "metric": scores.metric, **asdict(scores.values)}
    connection.execute(insert(score).values(examples=connection.execute(same).scalar_one(), **row))


def _folders(connection: Connection, trial_id: int, code: str) -> tuple[str, ...]:
    query = select(attempt.c.folder).where(attempt.c.trial == trial_id, attempt.c.code_sha256 == code)
    return tuple(connection.execute(query.order_by(attempt.c.claim.desc())).scalars())
