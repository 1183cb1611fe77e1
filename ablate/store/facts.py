"""Studies, plans and results as rows: what is declared goes in, what was found comes out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlalchemy import (
    Connection,
    Row,
    Select,
    case,
    func,
    insert,
    null,
    select,
    update,
)

from ablate.errors import StoreError
from ablate.plan.outcomes import Told, told
from ablate.plan.trials import Plan, Replicate, make_plan
from ablate.store.dialects import alone, in_json, now
from ablate.store.store import Store
from ablate.store.tables import arm, attempt, measurement, plan, replicate, runner, study, trial
from ablate.study.document import Document
from ablate.study.schema import Role, Study, from_document
from ablate.study.settings import canonical
from ablate.study.words import did_you_mean, storable

IMPORTED = "imported"  # a trial's source, and its attempt's slot
_CHUNK = 500  # rows per statement: SQLite allows 32,766 parameters, older ones 999


@dataclass(frozen=True)
class StoredStudy:
    """One version of a study as it was recorded."""

    id: int
    name: str
    profile: str
    version: int
    spec: dict[str, Any]
    plan: dict[str, Any]
    file: str

    @property
    def title(self) -> str:
        return f"{self.name}@{self.profile}" if self.profile else self.name


class StoredTrial(NamedTuple):  # a tuple, as the row is: a study may have 100,000
    """A replicate of a study version with the state of its trial and of the attempt that counts, if there is one.

    ``candidate``: of a trial that tunes, the place of its settings among those tried for the arm, from 1.
    ``outcome`` is that of the attempt whose result stands, else of the last one; ``seconds`` likewise. ``first_ended``
    is when the trial first had a result, be it that another has replaced it since. ``metrics_json`` has the numbers of
    the result, if it is done (``read_metrics``). ``position`` is its place in plan order.
    """

    arm: str
    role: Role
    seed: int
    trial: int
    fingerprint: str
    state: str
    reason: str | None
    attempts: int
    source: str
    outcome: str | None
    seconds: float | None
    error: str | None
    code_sha256: str | None
    environment_json: str | None
    metrics_json: str | None
    first_ended: float | None
    position: int
    candidate: int | None = None


@dataclass(frozen=True)
class StoredVersion:
    """What one version of a study had declared, and when (Unix seconds)."""

    id: int
    version: int
    plan: dict[str, Any]
    written: float


@dataclass(frozen=True)
class EarlierResult:
    """What a trial had come to before it was trained afresh: an earlier attempt of it that ended with a result."""

    arm: str
    role: str
    seed: int
    trial: int
    claim: int
    outcome: str
    seconds: float | None
    code_sha256: str | None
    environment_json: str | None
    metrics: dict[str, float]

    @property
    def environment(self) -> dict[str, str]:
        return {key: str(value) for key, value in json.loads(self.environment_json or "{}").items()}


def record_plan(store: Store, made: Plan) -> int:
    """Write a study version with its plan, arms, replicates and trials, and return its id. Twice is the same as once.

    Trials that are in the store already, by this or another study, keep their state and results. A plan that has grown
    adds its arms and replicates; what was frozen before the first trial stays as it was written.
    """
    return store.write(lambda connection: write_plan(connection, made))


def write_plan(connection: Connection, made: Plan) -> int:
    """Do so in the caller's transaction."""
    spec = json.dumps(made.study.spec(), allow_nan=False)  # in its own order: the first metric is the primary one
    frozen = canonical(made.frozen())
    alone(connection)
    study_id = _study_id(connection, made, spec)
    if connection.execute(select(plan.c.study).where(plan.c.study == study_id)).first() is None:
        row = {"study": study_id, "plan_json": frozen, "sha256": _sha256(frozen), "written": now(connection)}
        connection.execute(insert(plan).values(row))
    _write_arms(connection, study_id, made)
    _write_replicates(connection, study_id, made)
    return study_id


def grown_plan(store: Store | None, study: Study) -> Plan:
    """Return the plan of a study as far as the results in the store lead: to further seeds, or along a path."""
    earlier = [version.plan for version in versions_of(store, study.name, study.profile)] if store else []
    plan = make_plan(study, earlier=earlier)
    known: set[str] = set()
    while store is not None and study.grows and not known >= plan.trials().keys():
        known |= plan.trials().keys()
        plan = make_plan(study, told_of(store, list(known), study.primary), earlier)
    return plan


def settled_plan(store: Store | None, made: Plan) -> Plan:
    """Return the plan with what ``fuse: auto`` and ``per_gpu: auto`` came to when the study first ran, if it has."""
    is_open = "auto" in (made.study.execution.fuse, made.study.resources.per_gpu)
    for version in reversed(versions_of(store, made.study.name, made.study.profile)) if is_open and store else ():
        if made.study.execution.fuse == "auto" and "fusing" in version.plan:
            made = made.fused(version.plan["fusing"])
        if made.study.resources.per_gpu == "auto" and "sharing" in version.plan:
            made = made.shared(version.plan["sharing"])
    return made


def find_study(store: Store, title: str | None = None) -> StoredStudy:
    """Return the version last run of a study named like ``basenet`` or ``basenet@quick``; without a name, of any.

    ``basenet:2`` is its second version. Raises StoreError where there is none.
    """

    def work(connection: Connection) -> StoredStudy:
        last = select(runner.c.study, func.max(runner.c.started).label("at")).group_by(runner.c.study).subquery()
        query = select(study, plan.c.plan_json).join(plan).outerjoin(last, last.c.study == study.c.id)
        if title is not None:
            title_only, _, version = title.partition(":")
            name, _, profile = title_only.partition("@")
            query = query.where(study.c.name == name, study.c.profile == profile)
            if version:
                query = query.where(study.c.version == (int(version) if version.isdecimal() else -1))
        row = connection.execute(query.order_by(func.coalesce(last.c.at, 0).desc(), study.c.id.desc())).first()
        if row is None:
            raise _no_study(connection, title, store.name)
        return StoredStudy(
            row.id, row.name, row.profile, row.version, json.loads(row.spec_json), json.loads(row.plan_json), row.file
        )

    return store.read(work)


def stored_study(stored: StoredStudy, *, file: Path | None = None) -> Study:
    """Return a study version as it was recorded, with its code beside ``file``, or where its study file was.

    Raises StoreError where this version of ablate can't read it.
    """
    spec = dict(stored.spec)
    primary = stored.plan["primary"]
    spec["metrics"] = {primary: spec["metrics"][primary], **spec["metrics"]}  # JSON in the store may be sorted
    place = Path(file or stored.file or stored.name)
    try:
        return from_document(spec, Document(str(place), spec, {}, folder=place.parent), stored.profile)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        message = f"the study `{stored.title}` was recorded by another version of ablate: `{field}` is unknown here"
        raise StoreError(message, hint="report it with the version that ran it") from None


def versions_of(store: Store, name: str, profile: str) -> list[StoredVersion]:
    """Return what every version of a study declared, the oldest first."""
    query = select(study.c.id, study.c.version, plan.c.plan_json, plan.c.written).join(plan)
    query = query.where(study.c.name == name, study.c.profile == profile).order_by(study.c.version)
    rows = store.read(lambda connection: list(connection.execute(query)))
    return [StoredVersion(row.id, row.version, json.loads(row.plan_json), row.written) for row in rows]


def trials_of(store: Store, study_id: int) -> list[StoredTrial]:
    """Return the replicates of a study version in plan order."""
    return store.read(lambda connection: select_trials(connection, study_id))


def unsorted_trials_of(store: Store, study_id: int) -> list[StoredTrial]:
    """Return the same in no order, and without the numbers of candidates.

    SQLite finds them arm by arm, and so the rows of an arm lie together in memory: of 100,000 rows in another order,
    each is waited for wherever an arm is gone over.
    """
    return store.read(lambda connection: _trials(connection, study_id))


# joins a trial with the attempt that counts: whose result stands, else the last one
STANDS = (attempt.c.trial == trial.c.id) & (attempt.c.claim == func.coalesce(trial.c.result_claim, trial.c.claim))


# the numbers of a result; what is trained afresh has none
_RESULT = case((trial.c.state == "done", attempt.c.metrics_json)).label("metrics_json")


def select_trials(connection: Connection, study_id: int, *, without: str | None = None) -> list[StoredTrial]:
    """Return the replicates in plan order; ``without``: those alone that failed or ended without this metric."""
    # sorted here: SQLite would write whole rows to a temporary file
    found = sorted(_trials(connection, study_id, without=without), key=attrgetter("position"))
    return list(_numbered(found)) if any(each.role == "tune" for each in found) else found


def _trials(connection: Connection, study_id: int, *, without: str | None = None) -> list[StoredTrial]:
    every, results = attempt.alias(), ("ok", "diverged")
    with_result = (every.c.trial == trial.c.id) & every.c.outcome.in_(results)
    earliest = select(func.min(every.c.ended)).where(with_result).correlate(trial).scalar_subquery()
    # most trials have one attempt, and need not be looked up once more
    first_ended = case((trial.c.claim > 1, earliest), (attempt.c.outcome.in_(results), attempt.c.ended))
    query = (
        select(
            arm.c.name.label("arm"),
            replicate.c.role,
            replicate.c.seed,
            trial.c.id.label("trial"),
            trial.c.fingerprint,
            trial.c.state,
            trial.c.reason,
            trial.c.claim.label("attempts"),
            trial.c.source,
            attempt.c.outcome,
            attempt.c.seconds,
            attempt.c.error,
            attempt.c.code_sha256,
            attempt.c.environment_json,
            _RESULT,
            first_ended.label("first_ended"),
            replicate.c.position,
            null().label("candidate"),
        )
        .join_from(replicate, arm, arm.c.id == replicate.c.arm)
        .join(trial, trial.c.id == replicate.c.trial)
        .outerjoin(attempt, STANDS)
        .where(arm.c.study == study_id)
    )
    if without is not None:
        value = in_json(connection, attempt.c.metrics_json, without)
        query = query.where((trial.c.state == "failed") | ((trial.c.state == "done") & value.is_(None)))
    rows: Sequence[Any] = connection.execute(query).all()
    return [StoredTrial._make(row) for row in rows]


def _numbered(trials: Sequence[StoredTrial]) -> Iterator[StoredTrial]:
    """Yield the trials with their candidates counted: they stand in the order in which they were asked for."""
    counts: Counter[tuple[str, int]] = Counter()
    for each in trials:
        if each.role == "tune":
            counts[each.arm, each.seed] += 1
            yield each._replace(candidate=counts[each.arm, each.seed])
        else:
            yield each


def measurements_of(store: Store, study_id: int) -> list[Row[Any]]:
    """Return (arm, role, seed, trial, fingerprint, metric, epoch, value, kind) of finished trials on their way.

    ``read_number(row.value, row.kind)`` is the number, NaN and infinities included.
    """
    return store.read(lambda connection: select_measurements(connection, study_id))


def select_measurements(connection: Connection, study_id: int) -> list[Row[Any]]:
    query = (
        select(
            arm.c.name.label("arm"),
            replicate.c.role,
            replicate.c.seed,
            measurement.c.trial,
            trial.c.fingerprint,
            measurement.c.metric,
            measurement.c.epoch,
            measurement.c.value,
            measurement.c.kind,
        )
        .join_from(replicate, arm, arm.c.id == replicate.c.arm)
        .join(trial, trial.c.id == replicate.c.trial)
        .join(measurement, (measurement.c.trial == trial.c.id) & (measurement.c.claim == trial.c.result_claim))
        .where(arm.c.study == study_id, trial.c.state == "done")
        .order_by(replicate.c.position, measurement.c.epoch, measurement.c.id)
    )
    return list[Any](connection.execute(query).all())


def earlier_results_of(store: Store, study_id: int) -> list[EarlierResult]:
    """Return, in plan order, the last result before the standing one of each replicate whose trial has one.

    A trial has one where it was trained afresh and finished. An ``ok`` attempt without numbers is passed over: stores
    of schema 1 kept none but the last.
    """

    def work(connection: Connection) -> list[EarlierResult]:
        found: dict[tuple[str, str, int, int], EarlierResult] = {}
        for row in connection.execute(_earlier_attempts(study_id)):
            columns = dict(row._mapping)
            earlier = EarlierResult(metrics=read_metrics(columns.pop("metrics_json")), **columns)
            if earlier.metrics or earlier.outcome == "diverged":
                found.setdefault((earlier.arm, earlier.role, earlier.seed, earlier.trial), earlier)
        return list(found.values())

    return store.read(work)


def _earlier_attempts(study_id: int) -> Select[Any]:
    names = ("trial", "claim", "outcome", "seconds", "code_sha256", "environment_json", "metrics_json")
    return (
        select(arm.c.name.label("arm"), replicate.c.role, replicate.c.seed, *(attempt.c[name] for name in names))
        .join_from(replicate, arm, arm.c.id == replicate.c.arm)
        .join(trial, trial.c.id == replicate.c.trial)
        .join(attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim < trial.c.result_claim))
        .where(arm.c.study == study_id, attempt.c.outcome.in_(("ok", "diverged")))
        .order_by(replicate.c.position, replicate.c.id, attempt.c.claim.desc())
    )


def known_seconds(store: Store, fingerprints: Sequence[str]) -> dict[str, float]:
    """Return the wall seconds of the finished trials among ``fingerprints``, by fingerprint."""

    def work(connection: Connection) -> dict[str, float]:
        found: dict[str, float] = {}
        for start in range(0, len(fingerprints), _CHUNK):
            query = (
                select(trial.c.fingerprint, attempt.c.seconds)
                .join(attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
                .where(trial.c.fingerprint.in_(fingerprints[start : start + _CHUNK]), attempt.c.seconds.is_not(None))
            )
            found.update({row.fingerprint: row.seconds for row in connection.execute(query)})
        return found

    return store.read(work)


def longest_seconds(store: Store, study_id: int) -> dict[str, float]:
    """Return the wall seconds of the longest attempt of each arm of a study version that ran from start to end."""
    query = (
        select(arm.c.name, func.max(attempt.c.seconds))
        .join_from(replicate, arm, arm.c.id == replicate.c.arm)
        .join(attempt, attempt.c.trial == replicate.c.trial)
        .where(arm.c.study == study_id, attempt.c.outcome == "ok")
        .where(attempt.c.resumed_from.is_(None), attempt.c.seconds.is_not(None))
        .group_by(arm.c.name)
    )
    return dict(store.read(lambda connection: [(name, float(most)) for name, most in connection.execute(query)]))


@dataclass(frozen=True)
class Left:
    """What is left of a study version: trials that wait, that run, and that run under a lease which is over."""

    waiting: int
    running: int
    lapsed: int


def left_of(store: Store, study_id: int) -> Left:
    """Return what is left of a study version; a trial counts once for each place it has."""

    def work(connection: Connection) -> Left:
        query = (
            select(
                func.count().filter(trial.c.state == "waiting"),
                func.count().filter(trial.c.state == "running"),
                func.count().filter(trial.c.lease_until < now(connection)),
            )
            .join_from(replicate, arm, arm.c.id == replicate.c.arm)
            .join(trial, trial.c.id == replicate.c.trial)
            .where(arm.c.study == study_id)
        )
        return Left(*connection.execute(query).one())

    return store.read(work)


def titles_of(store: Store) -> list[str]:
    """Return the titles of all studies in a store, those first that were recorded first."""
    query = select(study.c.name, study.c.profile).group_by(study.c.name, study.c.profile).order_by(func.min(study.c.id))
    rows = store.read(lambda connection: connection.execute(query).all())
    return [f"{row.name}@{row.profile}" if row.profile else row.name for row in rows]


@dataclass(frozen=True)
class Origin:
    """What trained a finished trial: the hash of its code, and the facts of its machine."""

    code_sha256: str | None
    environment: dict[str, str]


def origins_of(store: Store, fingerprints: Sequence[str]) -> dict[str, Origin]:
    """Return what trained each finished trial among ``fingerprints``, by fingerprint; not of those imported."""

    def work(connection: Connection) -> dict[str, Origin]:
        found: dict[str, Origin] = {}
        for start in range(0, len(fingerprints), _CHUNK):
            query = (
                select(trial.c.fingerprint, attempt.c.code_sha256, attempt.c.environment_json)
                .join(attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
                .where(trial.c.fingerprint.in_(fingerprints[start : start + _CHUNK]), trial.c.source == "trained")
            )
            for row in connection.execute(query):
                found[row.fingerprint] = Origin(row.code_sha256, json.loads(row.environment_json or "{}"))
        return found

    return store.read(work)


def told_of(store: Store, fingerprints: Sequence[str], metric: str) -> dict[str, Told]:
    """Return what became of those trials that the store knows, by fingerprint, with their final value of one metric."""

    def work(connection: Connection) -> dict[str, Told]:
        found: dict[str, Told] = {}
        for start in range(0, len(fingerprints), _CHUNK):
            query = (
                select(trial.c.fingerprint, trial.c.state, attempt.c.outcome, _RESULT)
                .outerjoin_from(trial, attempt, STANDS)
                .where(trial.c.fingerprint.in_(fingerprints[start : start + _CHUNK]))
            )
            for row in connection.execute(query):
                value = read_metrics(row.metrics_json).get(metric)
                found[row.fingerprint] = told(row.state, row.outcome, value)
        return found

    return store.read(work)


def states_of(store: Store, fingerprints: Sequence[str]) -> dict[str, str]:
    """Return the state of those trials that the store knows, by fingerprint."""

    def work(connection: Connection) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(fingerprints), _CHUNK):
            query = select(trial.c.fingerprint, trial.c.state)
            query = query.where(trial.c.fingerprint.in_(fingerprints[start : start + _CHUNK]))
            found.update({row.fingerprint: row.state for row in connection.execute(query)})
        return found

    return store.read(work)


def stored_number(value: float) -> dict[str, Any]:
    """Return the columns ``value`` and ``kind`` for a number that may not be finite."""
    if math.isfinite(value):
        return {"value": value, "kind": "num"}
    return {"value": None, "kind": _kind(value)}


def _kind(value: float) -> str:
    return "nan" if math.isnan(value) else "+inf" if value > 0 else "-inf"


def read_number(value: float | None, kind: str) -> float:
    """Return the number that ``stored_number`` kept."""
    return value if value is not None else float(kind)


def stored_metrics(metrics: Mapping[str, float]) -> str:
    """Return numbers by metric as JSON, in their order; a text stands for what is not finite, as JSON has no such."""
    numbers = {storable(name): float(value) for name, value in metrics.items()}
    return json.dumps({name: value if math.isfinite(value) else _kind(value) for name, value in numbers.items()})


def read_metrics(text: str | None) -> dict[str, float]:
    """Return the numbers that ``stored_metrics`` kept."""
    return read_all_metrics([text])[0]


def read_all_metrics(texts: Sequence[str | None]) -> list[dict[str, float]]:
    """Return those of many: as one text, they are read in half the time."""
    joined = ",".join([text or "{}" for text in texts])
    found: list[dict[str, float]] = json.loads(f"[{joined}]")
    if '": "' in joined:  # few are not finite
        return [{name: float(value) for name, value in each.items()} for each in found]
    return found


def _study_id(connection: Connection, made: Plan, spec: str) -> int:
    same = (study.c.name == made.study.name) & (study.c.profile == made.study.profile)
    file = str(Path(made.study.file).absolute()) if made.study.file else ""
    found = connection.execute(select(study.c.id).where(same, study.c.spec_sha256 == _sha256(spec))).scalar()
    if found is not None:
        connection.execute(update(study).where(study.c.id == found).values(file=file))
        return int(found)
    version = connection.execute(select(func.coalesce(func.max(study.c.version), 0) + 1).where(same)).scalar_one()
    row = {
        "name": made.study.name,
        "profile": made.study.profile,
        "version": version,
        "spec_json": spec,
        "spec_sha256": _sha256(spec),
        "file": file,
        "created": now(connection),
    }
    return int(connection.execute(insert(study).values(row).returning(study.c.id)).scalar_one())


def _write_arms(connection: Connection, study_id: int, made: Plan) -> None:
    """Write the arms that are missing: all at first, later those that a path goes on with."""
    known = set(connection.execute(select(arm.c.name).where(arm.c.study == study_id)).scalars())
    rows = [
        {
            "study": study_id,
            "position": position,
            "name": each.name,
            "title": each.title,
            "parent": made.parent(each.name),
            "settings_json": canonical(each.settings),
        }
        for position, each in enumerate(made.arms)
        if each.name not in known
    ]
    if rows:
        connection.execute(insert(arm), rows)


def _write_replicates(connection: Connection, study_id: int, made: Plan) -> None:
    """Write the replicates that are missing: all at first, those of other arms after a run with ``--only``."""
    trial_ids = _trial_ids(connection, made)
    query = select(arm.c.id, arm.c.name).where(arm.c.study == study_id).order_by(arm.c.position)
    arm_ids = {row.name: row.id for row in connection.execute(query)}
    columns = [replicate.c[name] for name in ("arm", "role", "seed", "trial")]
    query_known = select(*columns).where(replicate.c.arm.in_(arm_ids.values()))
    known = {tuple(row) for row in connection.execute(query_known)}
    order = {name: position for position, name in enumerate(arm_ids)}
    tuning = {seed: place for place, seed in enumerate(made.study.tuning_seeds)}
    before = made.study.candidates * len(tuning)  # trials that tune come first
    seeds = {seed: before + place for place, seed in enumerate((*made.study.seeds.numbers, *made.study.fresh_seeds))}

    def place(each: Replicate) -> int:
        """Return how many trials of an arm come before this one."""
        return seeds[each.seed] if each.candidate is None else (each.candidate - 1) * len(tuning) + tuning[each.seed]

    rows = [
        {
            "arm": arm_ids[each.arm],
            "role": each.role,
            "seed": each.seed,
            "trial": trial_ids[each.trial.fingerprint],
            "position": place(each) * len(arm_ids) + order[each.arm],
        }
        for each in made.replicates
        if (arm_ids[each.arm], each.role, each.seed, trial_ids[each.trial.fingerprint]) not in known
    ]
    if rows:
        connection.execute(insert(replicate), rows)


def _trial_ids(connection: Connection, made: Plan) -> dict[str, int]:
    """Return the ids of the plan's trials by fingerprint, making those that are not there."""
    trials = made.trials()
    ids = _ids(connection, list(trials))
    common = {
        "task": str(made.study.task),
        "execution_json": canonical(made.study.execution.model_dump(mode="json")),
        "resources_json": canonical(made.study.resources.model_dump(mode="json")),
        "source": "trained",
        "state": "waiting",
        "claim": 0,
        "errors": 0,
        "idle_deaths": 0,
    }
    rows: list[Mapping[str, Any]] = [
        {"fingerprint": each.fingerprint, "settings_json": canonical(each.settings), "seed": each.seed, **common}
        for each in trials.values()
        if each.fingerprint not in ids
    ]
    if rows:
        connection.execute(insert(trial), rows)
        ids = _ids(connection, list(trials))
    return ids


def _ids(connection: Connection, fingerprints: Sequence[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for start in range(0, len(fingerprints), _CHUNK):
        query = select(trial.c.fingerprint, trial.c.id).where(
            trial.c.fingerprint.in_(fingerprints[start : start + _CHUNK])
        )
        ids.update({row.fingerprint: row.id for row in connection.execute(query)})
    return ids


def _no_study(connection: Connection, title: str | None, store: str) -> StoreError:
    rows = connection.execute(select(study.c.name, study.c.profile).distinct())
    titles = sorted(f"{row.name}@{row.profile}" if row.profile else row.name for row in rows)
    if title is None or not titles:
        return StoreError("no study was run yet", where=store, hint="`ablate run STUDY` runs one")
    return StoreError(f"the store has no study `{title}`", where=store, hint=did_you_mean(title, titles))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
