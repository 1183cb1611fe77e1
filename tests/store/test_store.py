"""Opening a store: what it refuses, and that nothing is touched when it does."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from ablate.errors import AblateError, StoreError
from ablate.plan.trials import open_plan
from ablate.store.facts import find_study, record_plan
from ablate.store.store import journal_mode, open_store
from tests.studies import toy_plan


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


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="no store of ablate"):
        open_store(path)


def test_a_newer_store_is_refused_by_name_of_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "ablate.db"
    store = open_store(path, create=True)
    store.write(lambda connection: connection.execute(text("UPDATE meta SET value = '99'")))
    store.close()
    with pytest.raises(StoreError, match=r"schema 99; this is 2"):
        open_store(path)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "postgresql+nodriver://h/d", "://"])
def test_other_urls_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(AblateError) as caught:
        open_store(url, create=True)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_password_is_never_in_a_name_or_an_error(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    with pytest.raises(StoreError) as caught:
        open_store("postgresql+psycopg://me:canary@127.0.0.1:1/none", folder=tmp_path)
    assert "canary" not in str(caught.value)


def test_a_read_only_store_refuses_to_write(tmp_path: Path) -> None:
    path = tmp_path / "ablate.db"
    open_store(path, create=True).close()
    store = open_store(path, read_only=True)
    with pytest.raises(StoreError, match="readonly"):
        store.write(lambda connection: connection.execute(text("UPDATE meta SET value = '0'")))


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


def _create(path: Path, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    store = open_store(path / "ablate.db", create=True)
    answers.put(record_plan(store, open_plan(path / "toy.yaml")))  # type: ignore[attr-defined]


def test_two_runs_that_make_store_and_study_at_once_agree(tmp_path: Path) -> None:
    toy_plan(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_create, args=(tmp_path, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [1, 1, 1, 1]
    for process in processes:
        process.join()
    store = open_store(tmp_path / "ablate.db")
    assert find_study(store, "toy").version == 1
    count = store.read(
        lambda c: c.execute(text("SELECT (SELECT count(*) FROM trial), (SELECT count(*) FROM plan)")).one()
    )
    assert tuple(count) == (6, 1)


def test_every_column_says_what_it_is() -> None:
    from ablate.store.tables import metadata

    silent = [str(column) for table in metadata.tables.values() for column in table.columns if not column.comment]
    assert silent == []
