"""Opening a store: what it refuses, and that nothing is touched when it does."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from ablate.errors import AblateError, StoreError
from ablate.plan.trials import open_plan
from ablate.store.facts import find_study, record_plan
from ablate.store.integrity import store_flaws
from ablate.store.store import NoStoreYet, Store, journal_mode, open_store
from ablate.store.tables import SCHEMA_VERSION, metadata
from tests.postgres import Server
from tests.studies import TOY_STUDY, toy_plan, write_study

ROUNDS = 4  # in which eight processes make a store at once


def test_a_missing_store_is_not_made_for_reading(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store yet"):
        open_store(tmp_path / "runs" / "ablate.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ablate.db"
    path.write_bytes(content)
    for create in (False, True):
        with pytest.raises(StoreError, match="can't be used") as caught:
            open_store(path, create=create)
        assert caught.value.exit_code == 3
    assert path.read_bytes() == content


def test_a_foreign_database_is_refused(empty: Store, location: str) -> None:
    def make_foreign(connection: Connection) -> None:
        metadata.drop_all(connection)
        connection.execute(text("CREATE TABLE mine (x INTEGER)"))

    empty.write(make_foreign)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="no store of ablate"):
            open_store(location, read_only=read_only)


def test_an_empty_database_is_no_store_yet_and_is_left_empty(postgres: Server, tmp_path: Path) -> None:
    url = postgres.new_database()
    for read_only in (False, True):
        with pytest.raises(NoStoreYet, match="there is no store yet"):
            open_store(url, folder=tmp_path, read_only=read_only)
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_newer_store_is_refused_by_name_of_both_versions(empty: Store, location: str) -> None:
    empty.write(lambda connection: connection.execute(text("UPDATE meta SET value = '99'")))
    with pytest.raises(StoreError, match=r"schema 99; this is 4"):
        open_store(location)


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "sqlite://", "postgresql+nodriver://h/d", "://", "postgresql://h:x/d"]
)
def test_other_urls_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(AblateError) as caught:
        open_store(url, create=True)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_password_is_never_in_a_name_or_an_error(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    with pytest.raises(StoreError) as caught:
        open_store("postgresql+psycopg://me:canary@127.0.0.1:1/none", folder=tmp_path)
    assert "canary" not in str(caught.value)


def test_a_read_only_store_refuses_to_write(empty: Store, location: str) -> None:
    store = open_store(location, read_only=True)
    with closing(store), pytest.raises(StoreError, match=r"readonly|read-only"):
        store.write(lambda connection: connection.execute(text("UPDATE meta SET value = '0'")))
    empty.write(lambda connection: connection.execute(text("UPDATE meta SET value = value")))


def test_a_read_sees_one_moment_and_writes_nothing(empty: Store, location: str, tmp_path: Path) -> None:
    other = open_store(location, folder=tmp_path)
    query = text("SELECT value FROM meta")

    def work(connection: Connection) -> list[str]:
        first = connection.execute(query).scalar_one()
        if other.engine.dialect.name == "postgresql":  # in SQLite a reader and a writer take turns
            other.write(lambda c: c.execute(text("UPDATE meta SET value = '7'")))
        return [first, connection.execute(query).scalar_one()]

    assert empty.read(work) == [str(SCHEMA_VERSION)] * 2
    other.close()
    if other.engine.dialect.name == "postgresql":
        assert empty.read(lambda connection: connection.execute(query).scalar_one()) == "7"
        with pytest.raises(StoreError, match="read-only"):
            empty.read(lambda connection: connection.execute(text("UPDATE meta SET value = '3'")))


def test_wal_is_used_only_where_its_fault_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    assert journal_mode() == "TRUNCATE"
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert journal_mode() == "WAL"


def test_a_lock_held_by_another_program_is_waited_for(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ablate.db", create=True)
    other = sqlite3.connect(tmp_path / "ablate.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, lambda: other.execute("COMMIT"))
    timer.start()
    started = time.monotonic()
    store.write(lambda connection: connection.execute(text("UPDATE meta SET value = value")))
    assert time.monotonic() - started > 0.5
    timer.join()
    other.close()


def test_a_lock_that_is_never_given_up_ends_in_one_line(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ablate.db", create=True)
    store.retry_deadline_s = 0.0
    store.engine.dispose()
    other = sqlite3.connect(tmp_path / "ablate.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked") as caught:
        store.write(lambda connection: connection.execute(text("UPDATE meta SET value = value")))
    assert "hint: another program holds it" in str(caught.value)
    other.close()


def test_the_whole_transaction_is_retried(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ablate.db", create=True)
    calls = []

    def work(_: object) -> int:
        calls.append(1)
        if len(calls) < 3:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY  # type: ignore[misc]
            from sqlalchemy.exc import OperationalError

            raise OperationalError("", {}, error)
        return 7

    assert store.write(work) == 7
    assert len(calls) == 3


def _create(folder: Path, locations: list[str], name: str, barrier: Any, answers: Any) -> None:
    plan = open_plan(folder / f"{name}.yaml")
    for number, location in enumerate(locations):
        barrier.wait()
        store = open_store(location, folder=folder, create=True)
        answers.put((number, name, record_plan(store, plan)))
        store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_runs_that_make_store_and_study_at_once_agree(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Eight of them, of two studies that share their trials, several times over."""
    toy_plan(tmp_path)
    write_study(tmp_path, TOY_STUDY.replace("name: toy", "name: other"), name="other")
    server = request.getfixturevalue("postgres") if kind == "postgresql" else None
    locations = [server.new_database() if server else str(tmp_path / f"{i}" / "ablate.db") for i in range(ROUNDS)]
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(8), context.Queue()
    processes = [
        context.Process(target=_create, args=(tmp_path, locations, name, barrier, answers))
        for name in ("toy", "other") * 4
    ]
    for process in processes:
        process.start()
    told = {answers.get(timeout=120) for _ in processes for _ in locations}
    for process in processes:
        process.join()
    assert len(told) == 2 * ROUNDS, "each study has one id in each store"
    for location in locations:
        store = open_store(location, folder=tmp_path)
        assert (find_study(store, "toy").version, find_study(store, "other").version) == (1, 1)
        count = "SELECT (SELECT count(*) FROM trial), (SELECT count(*) FROM plan), (SELECT count(*) FROM replicate)"
        assert tuple(store.read(lambda c, sql=count: c.execute(text(sql)).one())) == (6, 2, 12)
        assert store_flaws(store, thorough=True) == []
        store.close()


def test_every_column_says_what_it_is() -> None:
    silent = [str(column) for table in metadata.tables.values() for column in table.columns if not column.comment]
    assert silent == []
