"""Whether a store holds what it promises: read-only questions whose answer should be nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Double, Integer, LargeBinary, Row, String, create_engine, func, or_, select, text

from ablate.plan.trials import fingerprint_of
from ablate.store.claims import attempt_folder
from ablate.store.facts import read_metrics
from ablate.store.scores import packed_scores, select_example_sets, unpack_ids, unpack_values
from ablate.store.store import Store, is_sqlite
from ablate.store.tables import arm, attempt, measurement, metadata, plan, replicate, runner, score, study, trial
from ablate.study.settings import differences, leaves

_SHOWN = 5


def store_flaws(store: Store, *, thorough: bool = False) -> list[str]:
    """Return what is wrong with a store, in words, as of one moment; nothing where all is well.

    ``thorough`` reads every row and index, and compares every text with its hash. Never raises for what rows hold.
    """

    def work(connection: Connection) -> list[str]:
        flaws: list[str] = []
        if is_sqlite(store.engine.url):
            flaws += _sqlite_flaws(connection, thorough=thorough)
            if flaws:
                return flaws  # a damaged file's rows say nothing
        for check in (*_CHECKS, *(_THOROUGH if thorough else ())):
            try:
                flaws += check(connection)
            except (
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                RecursionError,
            ) as error:  # what rows hold, not what we do
                flaws.append(f"what is stored can't be read ({type(error).__name__}: {error})")
        return list(dict.fromkeys(flaws))

    return store.read(work)


def attempt_folders(store: Store) -> list[str]:
    """Return the folders of all attempts, relative to the store's."""
    query = select(attempt.c.folder).order_by(attempt.c.id)
    return store.read(lambda connection: list(connection.execute(query).scalars()))


def _sqlite_flaws(connection: Connection, *, thorough: bool) -> Iterator[str]:
    pragma = "integrity_check" if thorough else "quick_check"
    damage = [line for line in connection.exec_driver_sql(f"PRAGMA {pragma}({_SHOWN})").scalars() if line != "ok"]
    yield from (f"SQLite finds damage: {line}" for line in damage)
    broken = [] if damage else list(connection.exec_driver_sql("PRAGMA foreign_key_check"))
    if broken:
        yield f"{len(broken):,} rows name a row that is not there, the first in table {broken[0][0]}"
    # a store from elsewhere could bring code that runs when it is read or written
    foreign = connection.execute(text("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"))
    for row in foreign:
        yield f"the {row.type} `{row.name}` is none of ablate's"
    if thorough:
        yield from _schema_flaws(connection)


def _schema_flaws(connection: Connection) -> Iterator[str]:
    """Tables and indexes are those of a store made today: migrations end there too."""
    fresh = create_engine("sqlite://")
    with fresh.begin() as other:
        metadata.create_all(other)
        expected = _schema(other)
    fresh.dispose()
    found = _schema(connection)
    for key in expected.keys() | found.keys():
        kind, name = key
        if kind in ("table", "index") and key not in found:
            yield f"the {kind} `{name}` is missing"
        elif kind in ("table", "index") and key not in expected:
            yield f"the {kind} `{name}` is none of ablate's"
        elif key in expected and expected[key] != found[key]:
            yield f"the {kind} `{name}` is not as ablate makes it"


def _schema(connection: Connection) -> dict[tuple[str, str], str]:
    query = text("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    return {(row.type, row.name): "".join((row.sql or "").split()) for row in connection.execute(query)}


def _replicates_without_trial(connection: Connection) -> Iterator[str]:
    query = select(replicate.c.id).outerjoin(trial, trial.c.id == replicate.c.trial)
    yield from _told(connection, query.where(trial.c.id.is_(None)), "planned replicates have no trial", "replicate")
    query = select(replicate.c.id).join(trial, trial.c.id == replicate.c.trial)
    query = query.where(trial.c.seed != replicate.c.seed)
    yield from _told(connection, query, "replicates have a trial of another seed", "replicate")


def _arms_without_all_seeds(connection: Connection) -> Iterator[str]:
    """An arm has all the planned seeds, or none yet (`--only` asked for others); at looks, those of one of them."""
    count = func.count(replicate.c.seed.distinct()).label("there")
    query = (
        select(arm.c.name.label("arm"), replicate.c.role, study.c.name, plan.c.plan_json, count)
        .join_from(arm, study, study.c.id == arm.c.study)
        .join(plan, plan.c.study == study.c.id)
        .join(replicate, replicate.c.arm == arm.c.id)
        .group_by(arm.c.id, arm.c.name, replicate.c.role, study.c.name, plan.c.plan_json)
    )
    for row in connection.execute(query):
        frozen = json.loads(row.plan_json)
        seeds = frozen["budget"]["seeds"] if row.role == "tune" else frozen[_SEEDS[row.role]]
        if isinstance(seeds, list) and row.there != len(seeds):
            yield f"arm `{row.arm}` of `{row.name}` has {row.there} of its {len(seeds)} planned seeds"
        elif isinstance(seeds, dict) and row.there not in _counts_asked_for(seeds):
            yield f"arm `{row.arm}` of `{row.name}` has {row.there} seeds, which its plan never asks for"


_SEEDS = {"main": "seeds", "confirm": "confirm_seeds"}


def _counts_asked_for(seeds: dict[str, Any]) -> Collection[int]:
    """Return how many seeds an arm may have come to, by a rule that adds some where results call for them."""
    return seeds["looks"] if "looks" in seeds else range(seeds["pilot"], seeds["most"] + 1)


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
    standing = standing & attempt.c.outcome.in_(("ok", "diverged", "pruned"))
    query = select(trial.c.id).outerjoin(attempt, standing)
    query = query.where(trial.c.state == "done", trial.c.source == "trained", attempt.c.id.is_(None))
    yield from _told(connection, query, "done trials have no attempt that ended with a result", "trial")


def _done_without_metrics(connection: Connection) -> Iterator[str]:
    """A trial that ended `ok` has every metric that the study declares for which it was run."""
    query = (
        select(trial.c.id, attempt.c.metrics_json, runner.c.study)
        .join_from(trial, attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
        .join(runner, runner.c.id == attempt.c.runner)
        .where(trial.c.state == "done", attempt.c.outcome == "ok", runner.c.study.is_not(None))
    )
    specs = {row.id: set(json.loads(row.spec_json)["metrics"]) for row in connection.execute(select(study))}
    lacking = []
    for row in connection.execute(query):
        if specs.get(row.study, set()) - read_metrics(row.metrics_json).keys():
            lacking.append(row.id)
    if lacking:
        yield _flaw(lacking, "done trials lack a declared metric", "trial")


def _numbers_without_attempt(connection: Connection) -> Iterator[str]:
    for table, what in ((measurement, "measurements of"), (score, "scores of")):
        its = (attempt.c.trial == table.c.trial) & (attempt.c.claim == table.c.claim)
        query = select(trial.c.id).join(table, table.c.trial == trial.c.id).outerjoin(attempt, its)
        query = query.where(trial.c.source == "trained", attempt.c.id.is_(None))
        yield from _told(connection, query, f"trials have {what} an attempt that is not there", "trial")


def _scores_not_readable(connection: Connection) -> Iterator[str]:
    sets = select_example_sets(connection)
    for number, packed in sets.items():
        try:
            unpack_ids(packed)
        except ValueError as error:
            yield f"example set {number}: {error}"
    bad = []
    for row in connection.execute(select(score).order_by(score.c.trial)):
        try:
            unpack_values(packed_scores(row), sets[row.examples].size)
        except ValueError:
            bad.append(row.trial)
    if bad:
        yield _flaw(bad, "scores per example are damaged", "trial")


def _arms_without_settings_of_trials(connection: Connection) -> Iterator[str]:
    """But for those that are tuned."""
    columns = (
        replicate.c.id,
        arm.c.settings_json.label("of_arm"),
        trial.c.settings_json.label("own"),
        plan.c.plan_json,
    )
    query = select(*columns).join_from(replicate, arm, arm.c.id == replicate.c.arm)
    query = query.join(trial, trial.c.id == replicate.c.trial).join(plan, plan.c.study == arm.c.study)
    bad = []
    for row in connection.execute(query.where(arm.c.settings_json != trial.c.settings_json)):
        tuned = json.loads(row.plan_json).get("tune", {})
        changed = differences(json.loads(row.of_arm), json.loads(row.own))
        if {change.path for change in changed} - tuned.keys():
            bad.append(row.id)
    if bad:
        yield _flaw(bad, "replicates have a trial of other settings than their arm", "replicate")


def _replicates_twice(connection: Connection) -> Iterator[str]:
    place = [replicate.c[name] for name in ("arm", "role", "seed", "trial")]
    query = select(func.min(replicate.c.id)).group_by(*place)
    yield from _told(connection, query.having(func.count() > 1), "planned replicates are there twice", "replicate")


def _plans_not_kept(connection: Connection) -> Iterator[str]:
    """Each version has a plan; the arms it compares, and those they descend from, are there."""
    names: dict[int, set[str]] = {}
    parents: dict[int, set[str]] = {}
    for row in connection.execute(select(arm.c.study, arm.c.name, arm.c.parent)):
        names.setdefault(row.study, set()).add(row.name)
        parents.setdefault(row.study, set()).update({row.parent} - {None})
    query = select(study.c.id, study.c.name, plan.c.plan_json).outerjoin(plan, plan.c.study == study.c.id)
    for row in connection.execute(query):
        if row.plan_json is None:
            yield f"study version {row.id} (`{row.name}`) has no plan"
            continue
        compared = [each.get("arms", {}) for each in json.loads(row.plan_json)["contrasts"] if isinstance(each, dict)]
        needed = parents.get(row.id, set()).union(*compared)
        for name in sorted(needed - names.get(row.id, set())):
            yield f"the arm `{name}` that `{row.name}` compares is missing"


def _plans_not_of_their_study(connection: Connection) -> Iterator[str]:
    """What is read of a plan without a further look, with hashes that whoever made it up has made up too."""
    query = select(study.c.id, study.c.spec_json, plan.c.plan_json).join(plan, plan.c.study == study.c.id)
    for row in connection.execute(query):
        spec, found = json.loads(row.spec_json), json.loads(row.plan_json)
        metrics, settings = spec["metrics"], dict(leaves(spec["settings"]))
        sound = all(path in settings for step in spec["steps"] for path in step["set"])
        sound = sound and found["primary"] in metrics and found["goal"] == metrics[found["primary"]]["goal"]
        sound = sound and isinstance(found["analysis"], dict) and isinstance(found["seeds"], (list, dict))
        sound = sound and all(map(_is_contrast, found["contrasts"]))
        if not sound:
            yield f"the plan of study version {row.id} is none of its study"


def _is_contrast(found: Any) -> bool:
    if isinstance(found, list):  # of schema 1: design, minuend, subtrahend
        return len(found) == 3 and all(isinstance(each, str) for each in found)
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("design", "name")):
        return False
    arms = found.get("arms", {})  # along a path there are none yet
    return isinstance(arms, dict) and all(isinstance(weight, (int, float)) for weight in arms.values())


def _settings_not_trees(connection: Connection) -> Iterator[str]:
    for table in (arm, trial):
        rows = connection.execute(select(table.c.id, table.c.settings_json))
        odd = [row.id for row in rows if not isinstance(json.loads(row.settings_json), dict)]
        if odd:
            yield _flaw(odd, f"{table.name}s have settings that are none", table.name)


def _seeds_not_planned(connection: Connection) -> Iterator[str]:
    numbers = {
        row.study: set(found) for row in connection.execute(select(plan)) if (found := _numbers(row)) is not None
    }
    query = select(replicate.c.id, replicate.c.seed, arm.c.study).join(arm, arm.c.id == replicate.c.arm)
    odd = [row.id for row in connection.execute(query) if row.seed not in numbers.get(row.study, {row.seed})]
    if odd:
        yield _flaw(odd, "replicates have a seed that no plan asks for", "replicate")


def _numbers(row: Row[Any]) -> list[int] | None:
    """Return the seeds that a plan can ask for; plans of schema 1 do not list them."""
    found: list[int] | None = json.loads(row.plan_json).get("numbers")
    return found


def _owners_without_trial(connection: Connection) -> Iterator[str]:
    """Running ⇔ an owner and a lease; done ⇔ a result."""
    running, done = trial.c.state == "running", trial.c.state == "done"
    owned = (running != trial.c.owner.is_not(None)) | (running != trial.c.lease_until.is_not(None))
    yield from _told(
        connection, select(trial.c.id).where(owned), "trials run without owner and lease, or not with them", "trial"
    )
    query = select(trial.c.id).where(done != trial.c.result_claim.is_not(None))
    yield from _told(connection, query, "trials are done without a result, or not done with one", "trial")


def _above_the_claim(connection: Connection) -> Iterator[str]:
    """Nothing was written under a claim that its trial never had."""
    yield from _told(
        connection,
        select(trial.c.id).where(trial.c.result_claim > trial.c.claim),
        "trials have a result of a later claim",
        "trial",
    )
    for table, what in ((attempt, "attempts"), (measurement, "measurements"), (score, "scores")):
        query = select(trial.c.id).join(table, table.c.trial == trial.c.id).where(table.c.claim > trial.c.claim)
        yield from _told(connection, query, f"trials have {what} of a later claim than their own", "trial")


def _texts_unlike_their_hash(connection: Connection) -> Iterator[str]:
    for row in connection.execute(select(study.c.id, study.c.spec_json, study.c.spec_sha256)):
        if _sha256(row.spec_json) != row.spec_sha256:
            yield f"the declaration of study version {row.id} is not what was written (SHA-256)"
    for row in connection.execute(select(plan.c.study, plan.c.plan_json, plan.c.sha256)):
        if _sha256(row.plan_json) != row.sha256:
            yield f"the plan of study version {row.study} is not what was written (SHA-256)"
    odd = [row.id for row in connection.execute(select(trial)) if _content(row) != row.fingerprint]
    if odd:
        yield _flaw(odd, "trials are not what their fingerprint says", "trial")


def _content(row: Row[Any]) -> str:
    return fingerprint_of(
        settings=json.loads(row.settings_json),
        seed=row.seed,
        task=row.task,
        execution=json.loads(row.execution_json),
        gpus=json.loads(row.resources_json)["gpus"],
    )


def _values_of_other_types(connection: Connection) -> Iterator[str]:
    """SQLite keeps any value in any column."""
    if connection.dialect.name != "sqlite":
        return
    for table in metadata.sorted_tables:
        for column in table.columns:
            kinds = next(kinds for kind, kinds in _KINDS.items() if isinstance(column.type, kind))
            kept = func.typeof(column).in_([*kinds, *(["null"] if column.nullable else [])])
            number = connection.execute(select(func.count()).select_from(table).where(~kept)).scalar_one()
            if number:
                yield f"{number:,} values of `{table.name}.{column.name}` are of another type"


_KINDS = {Integer: ("integer",), String: ("text",), Double: ("real", "integer"), LargeBinary: ("blob",)}


def _attempts_not_readable(connection: Connection) -> Iterator[str]:
    columns = [attempt.c[name] for name in ("id", "claim", "folder", "environment_json", "metrics_json")]
    query = select(*columns, trial.c.fingerprint)
    bad, strayed = [], []
    for row in connection.execute(query.join(trial, trial.c.id == attempt.c.trial)):
        if row.folder != attempt_folder(row.fingerprint, row.claim):
            strayed.append(row.id)
        try:
            sound = isinstance(json.loads(row.environment_json or "{}"), dict)
            sound = sound and all(isinstance(number, float) for number in read_metrics(row.metrics_json).values())
        except (ValueError, TypeError, AttributeError):
            sound = False
        if not sound:
            bad.append(row.id)
    if strayed:
        yield _flaw(strayed, "attempts name a folder that is not theirs", "attempt")
    if bad:
        yield _flaw(bad, "attempts have facts or numbers that can't be read", "attempt")
    outcomes = or_(attempt.c.outcome.is_(None), attempt.c.outcome.in_(OUTCOMES))
    yield from _told(connection, select(attempt.c.id).where(~outcomes), "attempts have an unknown outcome", "attempt")


OUTCOMES = (
    "ok",
    "diverged",
    "pruned",
    "oom",
    "timeout",
    "stalled",
    "killed",
    "lost",
    "interrupted",
    "error",
    "fenced",
)

_CHECKS: Sequence[Callable[[Connection], Iterator[str]]] = (
    _replicates_without_trial,
    _arms_without_all_seeds,
    _several_running_attempts,
    _running_without_attempt,
    _claims_with_gaps,
    _done_without_result,
    _done_without_metrics,
    _numbers_without_attempt,
    _scores_not_readable,
)
_THOROUGH: Sequence[Callable[[Connection], Iterator[str]]] = (
    _values_of_other_types,
    _replicates_twice,
    _plans_not_kept,
    _plans_not_of_their_study,
    _settings_not_trees,
    _seeds_not_planned,
    _arms_without_settings_of_trials,
    _owners_without_trial,
    _above_the_claim,
    _texts_unlike_their_hash,
    _attempts_not_readable,
)


def _told(connection: Connection, query: Any, what: str, table: str) -> Iterator[str]:
    rows = list(dict.fromkeys(connection.execute(query).scalars()))
    if rows:
        yield _flaw(rows, what, table)


def _flaw(rows: Sequence[int], what: str, table: str) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
    return f"{len(rows):,} {what} ({table} {shown})"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
