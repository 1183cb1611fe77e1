"""A commit whose reply is lost may have been done or not: the same work again comes out right either way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import make_url, text

from ablate.errors import StoreError
from ablate.store import claims
from ablate.store.claims import Claim, Ending, KeptScores
from ablate.store.facts import find_study, measurements_of, read_metrics, record_plan, trials_of
from ablate.store.history import runners_of
from ablate.store.integrity import store_flaws
from ablate.store.scores import pack, scores_of
from ablate.store.store import Store, open_store
from tests.command import finish, start
from tests.postgres import Server
from tests.store.proxy import Fault, Proxy
from tests.studies import TOY_STUDY, toy_plan, write_study

FACTS = {"host": "h", "boot_id": "b", "lock_file": "", "command": "test"}
FAULTS: dict[str, Callable[[Server], Fault]] = {
    "reply lost": lambda _: Fault(reaches=True),
    "request lost": lambda _: Fault(reaches=False),
    "restarted after the commit": lambda server: Fault(reaches=True, also=server.restart),
    "restarted before the commit": lambda server: Fault(reaches=False, also=server.restart),
}


class Shaky:
    """A store behind a proxy: each call of it that is a write meets a fault at its first COMMIT."""

    def __init__(self, server: Server, fault: Fault, folder: Path) -> None:
        url = make_url(server.new_database())
        self.proxy = Proxy(server.port)
        self.fault = fault
        self.store = open_store(
            url.set(port=self.proxy.port).render_as_string(hide_password=False), folder=folder, create=True
        )

    def __enter__(self) -> Store:
        self.proxy.arm(self.fault)
        return self.store

    def __exit__(self, *_: object) -> None:
        wait_until(lambda: self.proxy.disturbed == 1)  # the server may be up before the one who restarts it has seen it
        self.proxy.disturbed = 0


@pytest.fixture(params=list(FAULTS))
def shaky(request: pytest.FixtureRequest, postgres: Server, tmp_path: Path) -> Iterator[Shaky]:
    made = Shaky(postgres, FAULTS[request.param](postgres), tmp_path)
    yield made
    made.store.close()
    made.proxy.close()


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def take(store: Store, runner: str) -> Claim:
    claim = claims.claim_trial(store, runner_id=runner, study_id=1, arms=None, slot="cpu:0")
    assert claim is not None
    return claim


def test_every_write_comes_out_right(shaky: Shaky, tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    with shaky as store:
        assert record_plan(store, plan) == 1
    assert [each.state for each in trials_of(store, 1)] == ["waiting"] * 6
    assert find_study(store, "toy").version == 1

    for runner in ("r1", "r2"):
        with shaky:
            claims.register_runner(store, runner_id=runner, study_id=1, facts=FACTS)
    assert len(runners_of(store, 1)) == 2

    with shaky:
        claim = take(store, "r1")
    held = {(each.trial, each.claim): each for each in claims.held_trials(store)}
    mine = held.pop((claim.trial, claim.number))
    assert len(held) <= 1, "the trial of a claim whose reply was lost: it is held, and its runner knows nothing of it"
    for each in held.values():  # that a runner gives it back by itself is tested below
        assert claims.take_back(store, each, Ending("lost", "waiting"))

    with shaky:
        claims.renew(store, "r1", lease_s=1000.0)
    assert claims.held_trials(store)[0].lease_until > mine.lease_until + 500

    with shaky:
        assert claims.add_measurements(store, [(claim, [{"epoch": 1, "values": {"acc": 0.25}}])]) == []

    scores = KeptScores("acc", *pack(np.arange(4), np.array([0.0, 1.0, 0.0, 1.0])))
    with shaky:
        claims.finish(store, claim, Ending("ok", "done", seconds=1.0), {"acc": 0.5}, scores)
    assert [read_metrics(each.metrics_json) for each in trials_of(store, 1) if each.metrics_json] == [{"acc": 0.5}]
    assert [row.value for row in measurements_of(store, 1)] == [0.25]
    assert len(scores_of(store, 1)) == 1

    lost = take(store, "r2")
    (seen,) = claims.held_trials(store)
    with shaky:
        claims.take_back(store, seen, Ending("lost", "waiting"))
    assert claims.held_trials(store) == []
    with shaky, pytest.raises(claims.Fenced):
        claims.finish(store, lost, Ending("ok", "done"), {"acc": 9.0})
    with shaky:
        claims.fence(store, lost)

    failed = take(store, "r1")
    with shaky:
        claims.finish(store, failed, Ending("error", "failed", reason="error: boom", errors=1))
    with shaky:
        claims.reopen(store, 1, states=["failed"])
    assert [each.state for each in trials_of(store, 1)] == ["done", *["waiting"] * 5]
    with shaky:
        claims.retrain(store, [claim.fingerprint])
    with shaky:
        claims.end_runner(store, "r1")
    assert [each.ended is None for each in runners_of(store, 1)] == [False, True]
    assert store_flaws(store, thorough=True) == []


def test_runs_that_lose_replies_all_the_time_end_as_one_that_loses_none(project: Path, postgres: Server) -> None:
    """Two runners; every fifth commit is done and not answered, every seventh is neither."""
    path = write_study(project, TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 4, pause: 0.1"))
    url = make_url(postgres.new_database())
    proxy = Proxy(
        postgres.port,
        lambda number: Fault(reaches=True) if number % 5 == 0 else Fault(reaches=False) if number % 7 == 0 else None,
    )
    shaken = url.set(port=proxy.port).render_as_string()
    runs = [start("run", str(path), "-j", "1", "--store", shaken, cwd=project) for _ in range(2)]
    for process in runs:
        said = finish(process, timeout=240)
        assert process.returncode == 0, said
    proxy.close()
    assert proxy.disturbed > 5
    with closing(open_store(url.render_as_string(), folder=project / "runs")) as store:
        study = find_study(store).id  # a transaction that was not done has used up a number
        assert [each.state for each in trials_of(store, study) if each.metrics_json] == ["done"] * 6
        assert claims.held_trials(store) == []
        assert len(measurements_of(store, study)) == 24
        assert store_flaws(store, thorough=True) == []
        query = text("SELECT outcome, count(*) FROM attempt GROUP BY outcome")
        outcomes = {row.outcome: row.count for row in store.read(lambda c: list(c.execute(query)))}
    assert outcomes.pop("ok") == 6
    assert set(outcomes) <= {"lost"}, "claims that their runner did not know of"


def test_a_server_that_is_away_for_a_while_is_waited_for(postgres: Server, tmp_path: Path) -> None:
    with closing(open_store(postgres.new_database(), folder=tmp_path, create=True)) as store:
        record_plan(store, toy_plan(tmp_path))
        postgres.stop("immediate")
        later = threading.Timer(2.0, postgres.start)
        later.start()
        try:
            assert len(trials_of(store, 1)) == 6
            claims.register_runner(store, runner_id="r1", study_id=1, facts=FACTS)
        finally:
            later.join()


def test_a_server_that_stays_away_is_said_in_one_line(postgres: Server, tmp_path: Path) -> None:
    with closing(open_store(postgres.new_database(), folder=tmp_path, create=True)) as store:
        store.retry_deadline_s = 0.5
        postgres.stop("immediate")
        try:
            with pytest.raises(StoreError, match=r"the store can't be used: .*(refused|closed)") as caught:
                trials_of(store, 1)
        finally:
            postgres.start()
        assert "hint: is the server there, and the URL right?" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "other", "said", "hint"),
    [
        ("/test_", "/no_such_", "does not exist", "make it first (`createdb`)"),
        ("ablate@", "nobody@", 'role "nobody" does not exist', ""),
        ("ablate@", "guarded:wrong-one@", "password authentication failed", "~/.pgpass"),
        ("ablate@", "guarded@", "no password supplied", "~/.pgpass"),
    ],
)
def test_what_patience_will_not_mend_is_said_at_once(
    postgres: Server, tmp_path: Path, part: str, other: str, said: str, hint: str
) -> None:
    url = postgres.new_database()
    postgres.guard("guarded", "right-one")
    proxy = Proxy(postgres.port)
    shaken = make_url(url.replace(part, other)).set(port=proxy.port).render_as_string(hide_password=False)
    with pytest.raises(StoreError) as caught:
        open_store(shaken, folder=tmp_path)
    assert said in str(caught.value)
    assert hint in str(caught.value)
    assert "wrong-one" not in str(caught.value)
    assert proxy.connections <= 2, "asked once; libpq asks again by itself without encryption"
    proxy.close()


def test_a_connection_is_given_up_before_a_lease_is_over(postgres: Server, tmp_path: Path) -> None:
    with closing(open_store(postgres.new_database(), folder=tmp_path, create=True)) as store:
        with store.engine.connect() as connection:
            number = connection.connection.driver_connection.pgconn.socket  # type: ignore[union-attr]
            with socket.socket(fileno=socket.dup(number)) as used:
                limit = used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert 0 < limit < 1000 * claims.LEASE_S


def test_time_is_the_servers(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_store(postgres.new_database(), folder=tmp_path, create=True)) as store:
        true = time.time()
        monkeypatch.setattr("time.time", lambda: true + 3600)
        assert abs(store.now() - true) < 600
        record_plan(store, toy_plan(tmp_path))
        claims.register_runner(store, runner_id="r1", study_id=1, facts=FACTS)
        take(store, "r1")
        (held,) = claims.held_trials(store)
        assert held.now < held.lease_until < true + 1800
        (runner,) = runners_of(store, 1)
        assert max(runner.started, runner.heartbeat, runner.now) < true + 1800
