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
CHUNK = 256  # trials that are asked for at once whether they wait


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
class Wanted:
    """What a runner asks for: a trial for each of these slots, with what is noted of the machine there.

    The first waiting ones of ``among``, trials by id in the order in which they are wanted; else of the study version,
    in plan order, those of ``arms`` alone if there are any. ``code`` is the hash of the task's source: an attempt goes
    on from checkpoints of the same code alone.
    """

    runner: str
    slots: Sequence[tuple[str, Mapping[str, str]]]
    among: Sequence[int]
    code: str = ""
    lease_s: float = LEASE_S


@dataclass(frozen=True)
class Finished:
    """An attempt that has ended: what it measured, by epoch (``epoch``, ``values``) and at its end, and its scores."""

    claim: Claim
    ending: Ending
    metrics: Mapping[str, float] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    scores: KeptScores | None = None


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


def waiting_trials(
    store: Store, study_id: int, *, arms: Sequence[str] | None = None, fuse: int = 1
) -> list[Sequence[int]]:
    """Return the waiting trials of a study version in plan order, by id: each in a list of its own.

    Where up to ``fuse`` seeds of one arm are trained in one model, those that can be are in one list. A seed has one
    place in such a model, its remainder by ``fuse``.
    """
    query = (
        select(trial.c.id, *((trial.c.settings_json, trial.c.seed) if fuse > 1 else ()))
        .join_from(replicate, trial, trial.c.id == replicate.c.trial)
        .join(arm, arm.c.id == replicate.c.arm)
        .where(arm.c.study == study_id, trial.c.state == "waiting")
        .order_by(replicate.c.position)
    )
    if arms is not None:
        query = query.where(arm.c.name.in_(arms))
    rows = list(dict.fromkeys(store.read(lambda connection: list(connection.execute(query)))))
    if fuse == 1:
        return [[row.id] for row in rows]
    groups: dict[tuple[str, int], list[int]] = {}
    taken: dict[tuple[str, int], int] = {}
    for row in rows:  # the n-th of a place is in its arm's n-th group
        place = (row.settings_json, row.seed % fuse)
        number = taken[place] = taken.get(place, -1) + 1
        groups.setdefault((row.settings_json, number), []).append(row.id)
    return list(groups.values())


def unsettled(store: Store, trials: Iterable[int]) -> set[int]:
    """Return those of these trials, by id, that still wait or are at work."""
    query = select(trial.c.id).where(trial.c.id.in_(list(trials)), trial.c.state.in_(("waiting", "running")))
    return store.read(lambda connection: set(connection.execute(query).scalars()))


def ends_of(store: Store, fingerprints: Sequence[str], *, code: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return, by fingerprint, the folder and the facts of the attempt whose result stands, if it ran this code."""
    query = (
        select(trial.c.fingerprint, attempt.c.folder, attempt.c.environment_json)
        .join_from(trial, attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
        .where(trial.c.fingerprint.in_(list(fingerprints)), trial.c.state == "done", attempt.c.outcome == "ok")
        .where(attempt.c.code_sha256 == code)
    )
    rows = store.read(lambda connection: list(connection.execute(query)))
    return {row.fingerprint: (row.folder, json.loads(row.environment_json or "{}")) for row in rows}


def exchange(store: Store, finished: Sequence[Finished], wanted: Wanted | None) -> tuple[list[Claim], list[Claim]]:
    """Close attempts and claim trials in their place, in one transaction.

    Returns the claims of those that were fenced, of which nothing was written, and the new claims: fewer than are
    wanted where fewer wait.
    """

    def work(connection: Connection) -> tuple[list[Claim], list[Claim]]:
        fenced = _finish(connection, finished) if finished else []
        return fenced, _claim(connection, wanted) if wanted is not None else []

    return store.write(work)


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
    """Claim the first waiting trial of a study version in plan order and open its attempt; None where none waits."""
    while waiting := waiting_trials(store, study_id, arms=arms):
        among = [number for group in waiting[:CHUNK] for number in group]
        wanted = Wanted(runner_id, [(slot, environment or {})], among, code, lease_s)
        _, claimed = exchange(store, (), wanted)
        if claimed:
            return claimed[0]
    return None


def _claim(connection: Connection, wanted: Wanted) -> list[Claim]:
    ids = _first_waiting(connection, wanted.among, len(wanted.slots))
    if not ids:
        return []
    at = now(connection)
    query = (
        update(trial)
        .where(trial.c.id.in_(ids))
        .values(
            state="running", claim=trial.c.claim + 1, owner=wanted.runner, lease_until=at + wanted.lease_s, reason=None
        )
        .returning(
            trial.c.id.label("trial"), trial.c.claim.label("number"), trial.c.fingerprint, trial.c.task,
            trial.c.settings_json, trial.c.seed, trial.c.errors, trial.c.idle_deaths,
        )
    )  # fmt: skip
    rows = {row.trial: row for row in connection.execute(query)}
    earlier = _folders(connection, [row.trial for row in rows.values() if row.number > 1], wanted.code)
    claimed = [Claim(**rows[number]._mapping, earlier=tuple(earlier.get(number, ()))) for number in ids]
    attempts = [
        {
            "trial": claim.trial,
            "claim": claim.number,
            "runner": wanted.runner,
            "slot": slot,
            "folder": attempt_folder(claim.fingerprint, claim.number),
            "code_sha256": wanted.code,
            "environment_json": json.dumps(dict(environment), sort_keys=True),
        }
        for claim, (slot, environment) in zip(claimed, wanted.slots, strict=False)
    ]
    connection.execute(insert(attempt).values(started=at), attempts)
    return claimed


def _first_waiting(connection: Connection, among: Sequence[int], number: int) -> list[int]:
    """Return the first so many of these trials that wait, in their order, and lock them."""
    query = select(trial.c.id).where(trial.c.id.in_(bindparam("among", expanding=True)), trial.c.state == "waiting")
    found = set(connection.execute(query, {"among": among}).scalars())
    waiting = [each for each in among if each in found]
    if not is_postgresql(connection):
        return waiting[:number]  # no other writes before we have committed
    locked: list[int] = []
    while waiting and len(locked) < number:
        part, waiting = waiting[: number - len(locked)], waiting[number - len(locked) :]
        got = set(connection.execute(query.with_for_update(skip_locked=True), {"among": part}).scalars())
        locked += [each for each in part if each in got]
    return locked


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
        held = _held_claims(connection, [claim for claim, _ in batch])
        _upsert(connection, [each for each in batch if (each[0].trial, each[0].number) in held])
        return [claim for claim, _ in batch if (claim.trial, claim.number) not in held]

    return store.write(work)


def finish(
    store: Store,
    claim: Claim,
    ending: Ending,
    metrics: Mapping[str, float] | None = None,
    scores: KeptScores | None = None,
) -> None:
    """Close an attempt and give its trial the next state, in one transaction. Raises Fenced and writes nothing more."""
    fenced, _ = exchange(store, [Finished(claim, ending, metrics or {}, scores=scores)], None)
    if fenced:
        raise Fenced


def _finish(connection: Connection, finished: Sequence[Finished]) -> list[Claim]:
    """Close attempts and give their trials the next state; return the claims of those that are fenced.

    A result stands in place of earlier ones; what earlier attempts measured stays with them. Twice is the same as once:
    a commit whose reply was lost is found to be done, as nobody else gives an attempt of ours such an end.
    """
    held = _held_claims(connection, [each.claim for each in finished])
    ours = [each for each in finished if (each.claim.trial, each.claim.number) in held]
    late = [each for each in finished if (each.claim.trial, each.claim.number) not in held]
    if ours:
        connection.execute(_RELEASE, [_next_state(each) for each in ours])
        _upsert(connection, [(each.claim, each.records) for each in ours])
        _close(connection, [(each.claim.trial, each.claim.number, each.ending) for each in ours])
    done = [each for each in ours if each.ending.state == "done"]
    rows = [
        {"trial": each.claim.trial, "claim": each.claim.number, "metric": storable(name), "epoch": None}
        | stored_number(value)
        for each in done
        for name, value in each.metrics.items()
    ]
    if rows:
        connection.execute(insert(measurement), rows)
    for each in done:
        if each.scores is not None:
            _keep_scores(connection, each.claim, each.scores)
    return [each.claim for each in late if _outcome(connection, each.claim) != each.ending.outcome]


_RELEASE = (
    update(trial)
    .where(trial.c.id == bindparam("held_trial"))
    .values(
        state=bindparam("next_state"), reason=bindparam("why"), owner=None, lease_until=None,
        result_claim=bindparam("stands"), errors=bindparam("made"), idle_deaths=bindparam("died"),
    )
)  # fmt: skip


def _next_state(finished: Finished) -> dict[str, Any]:
    ending = finished.ending
    return {
        "held_trial": finished.claim.trial,
        "next_state": ending.state,
        "why": ending.reason and storable(ending.reason),
        "stands": finished.claim.number if ending.state == "done" else None,
        "made": ending.errors,
        "died": ending.idle_deaths,
    }


def fence(store: Store, claim: Claim) -> None:
    """Close the attempt of a claim that was taken over, where the one who took it has not done so."""
    ending = Ending("fenced", "waiting")
    store.write(lambda connection: _close(connection, [(claim.trial, claim.number, ending)]))


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
        _close(connection, [(held.trial, held.claim, ending)])
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


def _held_claims(connection: Connection, claims: Sequence[Claim]) -> set[tuple[int, int]]:
    """Return which of these claims still hold, as (trial, claim)."""
    query = select(trial.c.id, trial.c.claim).where(trial.c.id.in_([each.trial for each in claims]))
    query = query.where(trial.c.state == "running")
    if is_postgresql(connection):
        query = query.order_by(trial.c.id).with_for_update()  # or a taker could slip in before our write
    return {(row.id, row.claim) for row in connection.execute(query)}


def _outcome(connection: Connection, claim: Claim) -> str | None:
    query = select(attempt.c.outcome).where(attempt.c.trial == claim.trial, attempt.c.claim == claim.number)
    return connection.execute(query).scalar()


def _upsert(connection: Connection, batch: Iterable[tuple[Claim, Sequence[Mapping[str, Any]]]]) -> None:
    latest = {
        (claim.trial, claim.number, storable(name), record["epoch"]): value
        for claim, records in batch
        for record in records
        for name, value in record["values"].items()
    }  # one statement must not touch a row twice
    rows = [
        {"trial": trial_id, "claim": number, "metric": name, "epoch": epoch, **stored_number(float(value))}
        for (trial_id, number, name, epoch), value in latest.items()
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


def _close(connection: Connection, ends: Sequence[tuple[int, int, Ending]]) -> None:
    """Write how attempts ended, given by trial and claim; one that has an end keeps it."""
    this = (attempt.c.trial == bindparam("of")) & (attempt.c.claim == bindparam("under"))
    for trial_id, number, ending in ends:
        if ending.facts:
            key = {"of": trial_id, "under": number}
            known = json.loads(connection.execute(select(attempt.c.environment_json).where(this), key).scalar() or "{}")
            text = json.dumps({**known, **ending.facts}, sort_keys=True)
            connection.execute(update(attempt).where(this).values(environment_json=text), key)
    rows = [
        {
            "of": trial_id,
            "under": number,
            "how": ending.outcome,
            "said": ending.error and storable(ending.error),
            "code": ending.exit_code,
            "by": ending.signal,
            "took": ending.seconds,
            "gone_on_from": ending.resumed_from,
        }
        for trial_id, number, ending in ends
    ]
    query = (
        update(attempt)
        .where(this, attempt.c.ended.is_(None))
        .values(
            ended=now(connection),
            outcome=bindparam("how"),
            error=bindparam("said"),
            exit_code=bindparam("code"),
            signal=bindparam("by"),
            seconds=bindparam("took"),
            resumed_from=bindparam("gone_on_from"),
        )
    )
    connection.execute(query, rows)


def _keep_scores(connection: Connection, claim: Claim, scores: KeptScores) -> None:
    examples = asdict(scores.examples)
    same = select(example_set.c.id).where(example_set.c.sha256 == examples["sha256"])
    if connection.execute(same).first() is None:
        # on a server another runner may be first after all
        statement = insert_into(connection, example_set).on_conflict_do_nothing(index_elements=["sha256"])
        connection.execute(statement, examples)
    row = {"trial": claim.trial, "claim": claim.number, "metric": scores.metric, **asdict(scores.values)}
    connection.execute(insert(score).values(examples=connection.execute(same).scalar_one(), **row))


def _folders(connection: Connection, trials: Sequence[int], code: str) -> dict[int, list[str]]:
    """Return the folders of earlier attempts by trial, newest first."""
    query = select(attempt.c.trial, attempt.c.folder).where(attempt.c.trial.in_(trials), attempt.c.code_sha256 == code)
    found: dict[int, list[str]] = {}
    for number, folder in connection.execute(query.order_by(attempt.c.claim.desc())) if trials else ():
        found.setdefault(number, []).append(folder)
    return found
