"""Claims and leases against a small model: whatever runners do, die of, and think the time is.

Runners here are locks and words to the store; the kernel's locks and the store are real. Time passes for the store and
for the monotonic clock alike; the time of day may jump, and reaches the store where that is a file. Runners that are
elsewhere have another boot id: nothing but their lease is known of them (PostgreSQL alone has those).
``ABLATE_TEST_SOAK=1`` tries many more histories.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, text

from ablate.run.liveness import Owners
from ablate.run.locks import FileLock, boot_id
from ablate.store import claims
from ablate.store.claims import Claim, Ending, Fenced
from ablate.store.dialects import now
from ablate.store.facts import record_plan
from ablate.store.integrity import store_flaws
from ablate.store.store import Store, open_store
from tests.postgres import Server
from tests.studies import toy_plan

SOAK = bool(os.environ.get("ABLATE_TEST_SOAK"))
EXAMPLES = {"sqlite": 2_000 if SOAK else 40, "postgresql": 1_000 if SOAK else 15}
STEPS = 50 if SOAK else 30
LEASE_S = 60.0
TRIALS = 3


@dataclass
class Trial:
    """What the store should hold of a trial."""

    state: str = "waiting"
    claim: int = 0
    owner: str | None = None
    result: int | None = None
    outcomes: list[str | None] = field(default_factory=list)
    written: set[tuple[int, int]] = field(default_factory=set)  # (claim, epoch)
    expires: float = 0.0
    renewals: int = 0
    first_seen: tuple[int, int, float] = (0, 0, 0.0)  # (claim, renewals, when) by the one who looks for the dead


@dataclass
class Runner:
    name: str
    lock: FileLock
    elsewhere: bool
    frozen: bool = False
    claims: dict[int, Claim] = field(default_factory=dict)  # what it believes to hold


class Machine(RuleBasedStateMachine):
    store: ClassVar[Store]
    folder: ClassVar[Path]
    clock: ClassVar[dict[str, float]]  # by what the time of day is off, and how much time has passed

    @initialize()
    def begin(self) -> None:
        self.clock.update(wall=0.0, passed=0.0)
        self.trials = {number: Trial() for number in range(1, TRIALS + 1)}
        self.runners: list[Runner] = []
        self.epoch = self.born = 0
        self.now = 0.0
        self.owners = Owners(self.store, lease_s=LEASE_S)

        def clear(connection: Any) -> None:
            for table in ("measurement", "attempt"):
                connection.execute(text(f"DELETE FROM {table}"))
            connection.execute(
                text("UPDATE trial SET state='waiting', claim=0, owner=NULL, lease_until=NULL, result_claim=NULL")
            )
            connection.execute(text("DELETE FROM runner"))

        self.store.write(clear)
        for _ in range(3):
            self._bear()

    def _bear(self) -> None:
        self.born += 1
        name = f"r{self.born}"
        elsewhere = self.store.engine.dialect.name == "postgresql" and self.born % 2 == 0
        lock = FileLock.try_take(Path(tempfile.mkdtemp(dir=self.folder)) / name)
        assert lock is not None
        facts = {
            "host": "h",
            "boot_id": "other" if elsewhere else boot_id(),
            "lock_file": str(lock.path),
            "command": "",
        }
        claims.register_runner(self.store, runner_id=name, study_id=1, facts=facts)
        self.runners.append(Runner(name, lock, elsewhere))

    def _awake(self, number: int) -> Runner | None:
        runner = self.runners[number % len(self.runners)]
        return None if runner.frozen else runner

    def _holds(self, runner: Runner, trial: int) -> bool:
        model, claim = self.trials[trial], runner.claims[trial]
        return (model.state, model.claim, model.owner) == ("running", claim.number, runner.name)

    @rule(number=st.integers(0, 2))
    def claim(self, number: int) -> None:
        if (runner := self._awake(number)) is None:
            return
        got = claims.claim_trial(
            self.store, runner_id=runner.name, study_id=1, arms=None, slot="cpu:0", lease_s=LEASE_S
        )
        waiting = [trial for trial, model in self.trials.items() if model.state == "waiting"]
        assert (got.trial if got else None) == (waiting[0] if waiting else None)
        if got is not None:
            model = self.trials[got.trial]
            model.state, model.claim, model.owner = "running", model.claim + 1, runner.name
            model.expires, model.renewals = self.now + LEASE_S, 0
            model.outcomes.append(None)
            assert got.number == model.claim
            runner.claims[got.trial] = got

    @rule(number=st.integers(0, 2))
    def record(self, number: int) -> None:
        if (runner := self._awake(number)) is None:
            return
        self.epoch += 1
        batch = [(claim, [{"epoch": self.epoch, "values": {"acc": 1.0}}]) for claim in runner.claims.values()]
        fenced = claims.add_measurements(self.store, batch)
        for trial, claim in list(runner.claims.items()):
            assert (claim in fenced) == (not self._holds(runner, trial))
            if claim in fenced:
                del runner.claims[trial]
            else:
                self.trials[trial].written.add((claim.number, self.epoch))

    @rule(number=st.integers(0, 2))
    def renew(self, number: int) -> None:
        if (runner := self._awake(number)) is None:
            return
        claims.renew(self.store, runner.name, lease_s=LEASE_S)
        for model in self.trials.values():
            if model.owner == runner.name:
                model.expires, model.renewals = self.now + LEASE_S, model.renewals + 1

    @rule(number=st.integers(0, 2), outcome=st.sampled_from(["ok", "diverged", "error", "interrupted"]))
    def finish(self, number: int, outcome: str) -> None:
        runner = self._awake(number)
        if runner is None or not runner.claims:
            return
        trial, claim = next(iter(runner.claims.items()))
        state = {"error": "failed", "interrupted": "waiting"}.get(outcome, "done")
        ours = self._holds(runner, trial)
        try:
            claims.finish(self.store, claim, Ending(outcome, state), {"acc": 1.0})
        except Fenced:
            assert not ours
        else:
            assert ours
            model = self.trials[trial]
            model.state, model.owner = state, None
            model.result = claim.number if state == "done" else None
            model.outcomes[-1] = outcome
        del runner.claims[trial]

    @rule(number=st.integers(0, 2))
    def crash(self, number: int) -> None:
        runner = self.runners.pop(number % len(self.runners))
        runner.lock.release()
        self._bear()

    @rule(number=st.integers(0, 2))
    def freeze_or_thaw(self, number: int) -> None:
        runner = self.runners[number % len(self.runners)]
        runner.frozen = not runner.frozen

    @rule(hours=st.sampled_from([-1, 1]))
    def the_hosts_clock_jumps(self, hours: int) -> None:
        self.clock["wall"] += 3600 * hours

    @rule()
    def a_lease_passes(self) -> None:
        """Those that are awake renew in time."""
        self.now += LEASE_S + 1
        self.clock["passed"] += LEASE_S + 1
        for number in range(len(self.runners)):
            self.renew(number)

    @rule()
    def take_back(self) -> None:
        expected = set()
        for trial, model in self.trials.items():
            if model.state != "running":
                continue
            if model.first_seen[:2] != (model.claim, model.renewals):
                model.first_seen = (model.claim, model.renewals, self.now)
            owner = next((each for each in self.runners if each.name == model.owner), None)
            here = int(str(model.owner)[1:]) % 2 == 1 or self.store.engine.dialect.name == "sqlite"
            late = self.now - model.first_seen[2] > 2 * LEASE_S
            if (owner is None or late) if here else model.expires < self.now:
                expected.add(trial)
        gone = self.owners.gone(claims.held_trials(self.store))
        assert {each.trial for each in gone} == expected
        for each in gone:
            assert claims.take_back(self.store, each, Ending("lost", "waiting"))
            model = self.trials[each.trial]
            model.state, model.owner, model.outcomes[-1] = "waiting", None, "lost"
        assert not any(claims.take_back(self.store, each, Ending("lost", "waiting")) for each in gone)

    @precondition(lambda self: any(model.state in ("done", "failed") for model in self.trials.values()))
    @rule()
    def reopen(self) -> None:
        claims.reopen(self.store, 1, states=["done", "failed"])
        for model in self.trials.values():
            if model.state in ("done", "failed"):
                model.state, model.result = "waiting", None

    @invariant()
    def the_store_holds_what_it_should(self) -> None:
        def read(connection: Any) -> tuple[list[Any], list[Any], list[Any]]:
            trials = "SELECT id, state, claim, owner, lease_until, result_claim FROM trial ORDER BY id"
            attempts = "SELECT trial, claim, outcome FROM attempt ORDER BY trial, claim"
            numbers = "SELECT trial, claim, epoch FROM measurement"
            return tuple(list(connection.execute(text(sql))) for sql in (trials, attempts, numbers))  # type: ignore[return-value]

        trials, attempts, numbers = self.store.read(read)
        for row in trials:
            model = self.trials[row.id]
            assert (row.state, row.claim, row.owner, row.result_claim) == (
                model.state, model.claim, model.owner, model.result,
            )  # fmt: skip
            assert (row.state == "running") == (row.owner is not None) == (row.lease_until is not None)
            own = [each for each in attempts if each.trial == row.id]
            assert [each.claim for each in own] == list(range(1, model.claim + 1)), "claims have gaps"
            assert [each.outcome for each in own] == model.outcomes
            assert sum(each.outcome is None for each in own) == (row.state == "running")
            assert row.result_claim is None or own[row.result_claim - 1].outcome in ("ok", "diverged")
            assert {(each.claim, each.epoch) for each in numbers if each.trial == row.id} == model.written

    def teardown(self) -> None:
        assert store_flaws(self.store, thorough=True) == []
        for runner in self.runners:
            runner.lock.release()


@pytest.fixture(params=["sqlite", "postgresql"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Machine]]:
    kind: str = request.param
    server: Server | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    store = open_store(server.new_database() if server else tmp_path / "ablate.db", folder=tmp_path, create=True)
    if server is None:
        store.close()

        @event.listens_for(store.engine, "connect")
        def quickly(connection: Any, _: object) -> None:
            connection.execute("PRAGMA synchronous=OFF")

    record_plan(store, toy_plan(tmp_path, overrides=["seeds=1"]))
    clock = {"wall": 0.0, "passed": 0.0}
    wall, monotonic = time.time, time.monotonic
    monkeypatch.setattr("ablate.store.dialects.time.time", lambda: wall() + clock["wall"])
    monkeypatch.setattr("ablate.run.liveness.monotonic", lambda: monotonic() + clock["passed"])
    monkeypatch.setattr("ablate.store.claims.now", lambda connection: now(connection) + clock["passed"])
    yield type(kind, (Machine,), {"store": store, "folder": tmp_path, "clock": clock})
    store.close()


@pytest.mark.timeout(7200 if SOAK else 300)
def test_no_history_makes_two_owners(machine: type[Machine]) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    options = settings(
        max_examples=EXAMPLES[machine.__name__],
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=checks,
        database=None,
    )
    run_state_machine_as_test(machine, settings=options)


def test_a_clock_that_jumps_kills_nobody(machine: type[Machine]) -> None:
    history = machine()
    history.begin()
    for number in range(3):
        history.claim(number)
    for hours in (1, 1, -1, -1, -1):
        history.the_hosts_clock_jumps(hours)
        history.take_back()
        history.the_store_holds_what_it_should()
    assert {each.state for each in history.trials.values()} == {"running"}
    history.teardown()


def test_who_is_frozen_for_long_is_taken_from_and_writes_nothing_more(machine: type[Machine]) -> None:
    history = machine()
    history.begin()
    history.claim(0)
    history.take_back()
    history.freeze_or_thaw(0)
    for _ in range(3):
        history.a_lease_passes()
        history.take_back()
        history.the_store_holds_what_it_should()
    assert history.trials[1].outcomes == ["lost"]
    history.claim(1)
    history.freeze_or_thaw(0)
    history.record(0)
    history.finish(1, "ok")
    history.the_store_holds_what_it_should()
    assert history.trials[1].outcomes == ["lost", "ok"]
    assert history.trials[1].written == set()
    history.teardown()
