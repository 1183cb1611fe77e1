"""Claims, leases and fencing: nobody works on a trial twice, and nobody late writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from ablate.store import claims
from ablate.store.claims import Claim, Ending, Fenced
from ablate.store.facts import (
    EarlierResult,
    earlier_results_of,
    measurements_of,
    read_metrics,
    record_plan,
    trials_of,
)
from ablate.store.history import runners_of
from ablate.store.store import Store
from tests.studies import toy_plan

DONE = Ending("ok", "done", seconds=1.5, exit_code=0)
LOST = Ending("lost", "waiting")
FACTS = {"host": "h", "boot_id": "b", "lock_file": "/nowhere/r", "command": "test"}


@pytest.fixture
def store(empty: Store, tmp_path: Path) -> Store:
    record_plan(empty, toy_plan(tmp_path))
    for name in ("r1", "r2"):
        claims.register_runner(empty, runner_id=name, study_id=1, facts={**FACTS, "lock_file": f"/nowhere/{name}"})
    return empty


def take(store: Store, runner: str = "r1", **options: Any) -> Claim:
    claim = claims.claim_trial(store, runner_id=runner, study_id=1, arms=None, slot="cpu0", **options)
    assert claim is not None
    return claim


def final(store: Store) -> list[tuple[str, int, str, float]]:
    return [
        (each.arm, each.seed, metric, value)
        for each in trials_of(store, 1)
        for metric, value in read_metrics(each.metrics_json).items()
    ]


def test_trials_are_claimed_in_plan_order_until_none_waits(store: Store) -> None:
    claimed = [take(store) for _ in range(6)]
    assert [(json.loads(c.settings_json)["level"], c.seed) for c in claimed] == [
        (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2),
    ]  # fmt: skip
    assert claims.claim_trial(store, runner_id="r1", study_id=1, arms=None, slot="") is None


def test_what_is_trained_in_one_model_is_of_one_arm_and_has_a_place_of_its_own(empty: Store, tmp_path: Path) -> None:
    record_plan(empty, toy_plan(tmp_path, overrides=["seeds=[1, 2, 3, 5, 8]"]))
    named = {each.trial: (each.arm, each.seed) for each in trials_of(empty, 1)}
    groups = [[named[trial] for trial in group] for group in claims.waiting_trials(empty, 1, fuse=4)]
    assert groups[:3] == [[(arm, seed) for seed in (1, 2, 3, 8)] for arm in ("baseline", "two", "three")]
    assert groups[3:] == [[("baseline", 5)], [("two", 5)], [("three", 5)]]  # 5 has the place of 1
    alone = [named[trial] for (trial,) in claims.waiting_trials(empty, 1)]
    assert alone[:4] == [("baseline", 1), ("two", 1), ("three", 1), ("baseline", 2)]


def test_only_some_arms_are_claimed(store: Store) -> None:
    options = {"runner_id": "r1", "study_id": 1, "slot": ""}
    got = [claims.claim_trial(store, arms=["three"], **options) for _ in range(3)]
    assert [json.loads(c.settings_json)["level"] for c in got if c] == [3, 3]


def test_a_result_is_kept_with_every_kind_of_number(store: Store) -> None:
    claim = take(store)
    claims.add_measurements(store, [(claim, [{"epoch": 1, "values": {"acc": 0.25, "loss": "nan"}}])])
    claims.finish(store, claim, DONE, {"acc": 0.5, "loss": math.inf})
    assert final(store) == [("baseline", 1, "acc", 0.5), ("baseline", 1, "loss", math.inf)]
    epochs = measurements_of(store, 1)
    assert [(row.metric, row.epoch, row.kind) for row in epochs] == [("acc", 1, "num"), ("loss", 1, "nan")]


def test_the_final_numbers_of_a_study_are_those_of_its_results_by_trial_and_metric(store: Store) -> None:
    first = take(store)
    claims.add_measurements(store, [(first, [{"epoch": 1, "values": {"seen": 0.25}}])])
    claims.finish(store, first, DONE, {"acc": 0.5, "before": 1.0})
    claims.retrain(store, [first.fingerprint])
    again, other = take(store), take(store, "r2")
    numbers = {"acc": math.nan, "loss": math.inf, "gain": -math.inf, "odd name'); --": -7.5, "tiny": 5e-324}
    many = {f"class {number:03}": number / 7 for number in range(130)}
    claims.finish(store, again, DONE, {"zzz": 1e308, **many, **numbers})
    claims.finish(store, other, DONE, {"acc": 0.1 + 0.2})
    finals = {each.trial: read_metrics(each.metrics_json) for each in trials_of(store, 1) if each.metrics_json}
    assert set(finals) == {again.trial, other.trial}
    assert finals[other.trial] == {"acc": 0.30000000000000004}
    found = dict(finals[again.trial])
    assert math.isnan(found.pop("acc"))
    assert found == {"zzz": 1e308, **many, **{name: value for name, value in numbers.items() if name != "acc"}}
    assert list(finals[again.trial])[:3] == ["zzz", "class 000", "class 001"], "in the order they came"


def test_an_epoch_recorded_again_replaces_the_former_value(store: Store) -> None:
    claim = take(store)
    for value in (0.1, 0.2):
        claims.add_measurements(store, [(claim, [{"epoch": 1, "values": {"acc": value}}] * 2)])
    claims.finish(store, claim, DONE, {"acc": 1.0})
    assert [row.value for row in measurements_of(store, 1)] == [0.2]


def test_who_was_taken_over_writes_nothing_more(store: Store) -> None:
    late = take(store, "r1")
    (held,) = claims.held_trials(store)
    assert claims.take_back(store, held, LOST)
    new = take(store, "r2")
    assert (new.trial, new.number, new.earlier) == (late.trial, 2, ("trials/" + late.fingerprint[:16] + "/1",))
    assert claims.add_measurements(store, [(late, [{"epoch": 1, "values": {"acc": 9.0}}])]) == [late]
    with pytest.raises(Fenced):
        claims.finish(store, late, DONE, {"acc": 9.0})
    claims.finish(store, new, DONE, {"acc": 1.0})
    with pytest.raises(Fenced):
        claims.finish(store, late, DONE, {"acc": 9.0})
    assert final(store) == [("baseline", 1, "acc", 1.0)]


def test_a_result_stands_without_what_lost_attempts_measured(store: Store) -> None:
    first = take(store)
    claims.add_measurements(store, [(first, [{"epoch": e, "values": {"acc": 0.1}} for e in (1, 2, 3)])])
    assert claims.take_back(store, claims.held_trials(store)[0], LOST)
    second = take(store)
    claims.add_measurements(store, [(second, [{"epoch": 1, "values": {"acc": 0.7}}])])
    claims.finish(store, second, DONE, {"acc": 0.7})
    assert [(row.epoch, row.value) for row in measurements_of(store, 1)] == [(1, 0.7)]


def test_results_before_the_standing_one_stay_with_their_attempts(store: Store) -> None:
    first = take(store, code="old", environment={"torch": "1"})
    claims.add_measurements(store, [(first, [{"epoch": 1, "values": {"acc": 0.1}}])])
    claims.finish(store, first, DONE, {"acc": 0.5, "loss": math.inf})
    assert earlier_results_of(store, 1) == []
    claims.retrain(store, [first.fingerprint])
    lost = take(store)
    claims.finish(store, lost, LOST)
    third = take(store)
    claims.finish(store, third, Ending("diverged", "done", seconds=2.0), {"acc": math.nan})
    (earlier,) = earlier_results_of(store, 1)
    assert earlier == EarlierResult(
        "baseline", "main", 1, first.trial, 1, "ok", 1.5, "old", '{"torch": "1"}', {"acc": 0.5, "loss": math.inf}
    )
    assert [row[3] for row in final(store)] == [pytest.approx(math.nan, nan_ok=True)]
    assert measurements_of(store, 1) == []

    claims.retrain(store, [first.fingerprint])
    assert earlier_results_of(store, 1) == [], "without a standing result nothing is earlier"
    claims.finish(store, take(store), DONE, {"acc": 0.7})
    assert [(each.claim, each.outcome) for each in earlier_results_of(store, 1)] == [(3, "diverged")]


def test_an_owner_that_renewed_is_not_taken_from(store: Store) -> None:
    take(store, lease_s=0.0)
    (held,) = claims.held_trials(store)
    claims.renew(store, "r1", lease_s=60.0)
    assert not claims.take_back(store, held, LOST)
    assert claims.held_trials(store)[0].lease_until > held.now + 30


def test_two_cannot_take_back_the_same_trial(store: Store) -> None:
    take(store)
    (held,) = claims.held_trials(store)
    assert [claims.take_back(store, held, LOST) for _ in range(2)] == [True, False]


def test_failed_trials_wait_again_after_a_retry(store: Store) -> None:
    claim = take(store)
    claims.finish(store, claim, Ending("error", "failed", reason="error: boom", errors=1))
    assert trials_of(store, 1)[0].reason == "error: boom"
    assert claims.reopen(store, 1, states=["failed"], arms=["two"]) == 0
    assert claims.reopen(store, 1, states=["failed"]) == 1
    assert take(store).number == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trial SET state = 'running' WHERE id = 1",
        "UPDATE trial SET state = 'done' WHERE id = 1",
        "UPDATE trial SET owner = 'r1' WHERE id = 1",
        "UPDATE trial SET state = 'nonsense' WHERE id = 1",
        "INSERT INTO attempt (trial, claim, runner, slot, folder, started) VALUES (2, 7, 'r1', '', '', 0)",
        "UPDATE attempt SET outcome = 'ok'",
    ],
)
def test_the_schema_refuses_what_must_not_be(store: Store, statement: str) -> None:
    for _ in range(2):
        take(store)
    store.write(lambda c: c.execute(text("UPDATE trial SET state='waiting', owner=NULL, lease_until=NULL WHERE id=1")))
    with pytest.raises(Exception, match="constraint") as caught:
        store.write(lambda connection: connection.execute(text(statement)))
    assert isinstance(caught.value.__cause__, IntegrityError)


def test_what_one_database_could_not_keep_is_kept_escaped(store: Store) -> None:
    """PostgreSQL has no NUL in texts; neither has lone surrogates, as in the name of a file that is no UTF-8."""
    claim = take(store)
    claims.add_measurements(store, [(claim, [{"epoch": 1, "values": {"a\0": 1.0}}])])
    claims.finish(store, claim, Ending("error", "failed", reason="why\0", error="no file caf\udce9\0"), {})
    found = trials_of(store, 1)[0]
    assert (found.reason, found.error) == ("why\\x00", "no file caf\\udce9\\x00")
    facts = {"host": "h", "boot_id": "b", "lock_file": "/caf\udce9", "command": "ablate run 'a\0'"}
    claims.register_runner(store, runner_id="odd", study_id=1, facts=facts)


def test_an_end_that_is_said_twice_is_said_once(store: Store) -> None:
    """As after a commit whose reply was lost."""
    claim = take(store)
    for _ in range(2):
        claims.finish(store, claim, DONE, {"acc": 0.5})
    assert final(store) == [("baseline", 1, "acc", 0.5)]
    with pytest.raises(Fenced):
        claims.finish(store, claim, Ending("error", "failed", errors=1))


def test_a_runner_that_registers_twice_is_one(store: Store) -> None:
    facts = {"host": "h", "boot_id": "b", "lock_file": "", "command": "test"}
    for _ in range(2):
        claims.register_runner(store, runner_id="r3", study_id=1, facts=facts)
    assert [each.id for each in runners_of(store, 1)] == ["r1", "r2", "r3"]
