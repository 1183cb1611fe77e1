"""Stores of earlier schemas: real ones, upgraded whole or left alone.

``schema-1.sql`` is what ablate of schema 1 wrote (``iterdump``): the truth study's first step at two seeds, with a
trial that finished at once, one that diverged, one that was interrupted twice, resumed and finished, and one that ran
out of memory, was put back and interrupted.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from ablate.errors import StoreError
from ablate.store import claims, migrations
from ablate.store.claims import Ending, KeptScores
from ablate.store.facts import earlier_results_of, find_study, measurements_of, read_metrics, trials_of
from ablate.store.history import history_of
from ablate.store.integrity import store_flaws
from ablate.store.scores import pack, scores_of
from ablate.store.store import open_store
from ablate.store.tables import SCHEMA_VERSION
from tests.command import ablate
from tests.postgres import Server

DUMP = Path(__file__).with_name("schema-1.sql")
TABLES = ("study", "plan", "arm", "runner", "trial", "replicate", "attempt", "measurement")
SERIAL = ("study", "arm", "trial", "replicate", "attempt", "measurement")

# all that PostgreSQL knows of a schema, but for the order in which it was made
SCHEMA = (
    """SELECT table_name, column_name, data_type, is_nullable, column_default,
       col_description(table_name::regclass, ordinal_position) FROM information_schema.columns
       WHERE table_schema = 'public' ORDER BY 1, 2""",
    """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
       WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2""",
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
)


@pytest.fixture
def old(location: str) -> str:
    """A store of schema 1."""
    Path(location).parent.mkdir(exist_ok=True) if "://" not in location else None
    make_old(location)
    return location


def make_old(location: str) -> None:
    with closing(sqlite3.connect(":memory:" if "://" in location else location)) as file:
        file.executescript(DUMP.read_text())
        if "://" in location:
            copy_to_server(file, location)


def copy_to_server(file: sqlite3.Connection, url: str) -> None:
    """Make of an SQLite store the one that an ablate of its time would have made on a server."""
    made = dict(file.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    indexes = [sql for (sql,) in file.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")]
    with psycopg.connect(url.replace("+psycopg", "")) as server:
        for table in ("meta", *TABLES):
            sql = made[table].replace("DOUBLE", "DOUBLE PRECISION")
            server.execute(sql.replace("id INTEGER NOT NULL,", "id SERIAL NOT NULL,") if table in SERIAL else sql)
            rows = file.execute(f"SELECT * FROM {table}").fetchall()
            places = ", ".join("%s" for _ in rows[0])
            server.cursor().executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        for table in SERIAL:
            server.execute(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))")
        for sql in indexes:
            server.execute(sql)


def ask(location: str | Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask (or tell) the database itself."""
    if "://" in str(location):
        with psycopg.connect(str(location).replace("+psycopg", "")) as server:
            done = server.execute(sql)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []
    with closing(sqlite3.connect(location)) as file, file:
        return file.execute(sql).fetchall()


def schema(location: str | Path) -> list[tuple[Any, ...]]:
    if "://" in str(location):
        return [row for sql in SCHEMA for row in ask(location, sql)]
    rows = ask(location, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    return [(kind, name, f"{table}: {''.join((sql or '').split())}") for kind, name, table, sql in rows]


def version(location: str | Path) -> str:
    return str(ask(location, "SELECT value FROM meta WHERE key = 'schema'")[0][0])


def content(location: str | Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, and every number wherever a schema keeps it: at the end of an attempt it has no epoch."""
    rows = {table: ask(location, f"SELECT * FROM {table} ORDER BY 1") for table in TABLES if table != "measurement"}
    numbers = ask(location, "SELECT trial, claim, metric, epoch, value, kind FROM measurement ORDER BY id")
    if version(location) != "1":
        for _, trial, claim, *_, metrics in rows["attempt"]:
            for name, value in json.loads(metrics or "{}").items():
                kept = (None, value) if isinstance(value, str) else (value, "num")
                numbers.append((trial, claim, name, None, *kept))
        rows["attempt"] = [row[:-1] for row in rows["attempt"]]
    return {**rows, "numbers": sorted(numbers, key=repr)}


def test_each_schema_has_its_step() -> None:
    assert list(migrations.STEPS) == list(range(2, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("read_only", [False, True])
def test_an_upgraded_store_has_the_schema_of_a_fresh_one(
    old: str, tmp_path: Path, read_only: bool, request: pytest.FixtureRequest
) -> None:
    on_server = "://" in old
    fresh = request.getfixturevalue("postgres").new_database() if on_server else str(tmp_path / "fresh.db")
    open_store(fresh, create=True).close()
    assert schema(old) != schema(fresh)
    open_store(old, read_only=read_only).close()
    assert schema(old) == schema(fresh)
    assert version(old) == version(fresh) == str(SCHEMA_VERSION)


def test_every_row_stays_as_it_was(old: str) -> None:
    before = content(old)
    assert any(epoch is None for *_, epoch, _, _ in before["numbers"])
    open_store(old).close()
    assert content(old) == before


def test_final_numbers_stay_bit_for_bit_and_in_their_order(old: str) -> None:
    """More of them than a row or two, and none that 15 digits could tell."""
    values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3, 2**53 + 2.0, 1e22, 123456789.12345679]
    for number, value in enumerate(values):
        ask(
            old,
            "INSERT INTO measurement (id, trial, claim, metric, epoch, value, kind) "
            f"VALUES ({900 + number}, 1, 1, 'odd {9 - number}', NULL, {value!r}, 'num')",
        )
    ask(old, "INSERT INTO measurement (id, trial, claim, metric, kind) VALUES (950, 1, 1, 'late', '-inf')")
    open_store(old).close()
    ((text,),) = ask(old, "SELECT metrics_json FROM attempt WHERE trial = 1 AND claim = 1")
    found = read_metrics(text)
    assert [found[f"odd {9 - number}"].hex() for number in range(len(values))] == [value.hex() for value in values]
    assert list(found)[-8:] == [*(f"odd {9 - number}" for number in range(len(values))), "late"]
    assert found["late"] == -math.inf


def test_all_that_was_found_reads_the_same(old: str) -> None:
    store = open_store(old, read_only=True)
    study = find_study(store, "basenet")
    trials = trials_of(store, study.id)
    assert [(each.arm, each.seed, each.state, each.outcome, each.seconds, each.attempts) for each in trials] == [
        ("baseline", 1, "done", "ok", 47.0, 1),
        ("batchnorm", 1, "done", "diverged", 47.0, 1),
        ("baseline", 2, "done", "ok", 54.0, 3),
        ("batchnorm", 2, "waiting", "interrupted", None, 2),
    ]
    values = {
        (each.arm, each.seed, metric): value
        for each in trials
        for metric, value in read_metrics(each.metrics_json).items()
    }
    assert len(values) == 6 + 2 + 3
    assert values["baseline", 1, "val_acc"] == 30.8
    assert math.isnan(values["batchnorm", 1, "val_acc"])
    assert (values["baseline", 2, "macro_f1"], values["baseline", 2, "val_loss"]) == (27.25, math.inf)
    epochs = [row for row in measurements_of(store, study.id) if row.metric == "val_acc"]
    assert [(row.epoch, row.value) for row in epochs] == [(1, 20.0), (2, 25.0), (3, 29.9)]
    attempts = history_of(store, study.id).attempts
    third = [each for each in attempts if (each.arm, each.seed) == ("baseline", 2)]
    assert [(each.claim, each.outcome, each.stands) for each in third] == [
        (1, "interrupted", False), (2, "interrupted", False), (3, "ok", True),
    ]  # fmt: skip
    assert attempts[5].environment == {"data_sha256": "da7a", "python": "3.11.7", "torch": "2.15.0"}
    assert earlier_results_of(store, study.id) == []
    assert scores_of(store, study.id) == {}
    assert store_flaws(store, thorough=True) == []
    store.close()


def test_work_goes_on_in_an_upgraded_store(old: str) -> None:
    store = open_store(old)
    facts = {"host": "h", "boot_id": "b", "lock_file": "l", "command": "test"}
    claims.register_runner(store, runner_id="new", study_id=1, facts=facts)
    claim = claims.claim_trial(store, runner_id="new", study_id=1, arms=None, slot="cpu:0", code="c0de")
    assert claim is not None
    assert claim.number == 3
    claims.add_measurements(store, [(claim, [{"epoch": 1, "values": {"val_acc": 31.0}}])])
    scores = KeptScores("val_acc", *pack(np.arange(4), np.array([0.0, 100.0, 0.0, 100.0])))
    claims.finish(store, claim, Ending("ok", "done", seconds=1.0), {"val_acc": 50.0, "macro_f1": 1.0}, scores)
    assert scores_of(store, 1)["batchnorm", "main", 2].values.mean() == 50.0
    assert ask(old, "SELECT claim, value FROM measurement WHERE epoch = 1 AND trial = 4") == [(2, 31.0), (3, 31.0)]
    assert store_flaws(store, thorough=True) == []
    store.close()


def test_a_report_of_an_old_store(old: str, tmp_path: Path) -> None:
    done = ablate("report", "--markdown", "--store", old, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout
    assert version(old) == str(SCHEMA_VERSION)


def test_a_step_that_fails_leaves_the_store_as_it_was(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema(old)
    monkeypatch.setattr(migrations, "STEPS", {2: (*migrations.STEPS[2], "CREATE TABLE score (x)")})
    with pytest.raises(StoreError, match="an earlier ablate wrote this store, and it can't be upgraded") as caught:
        open_store(old)
    assert "hint: " in str(caught.value)
    assert (schema(old), version(old)) == (before, "1")


def test_a_file_that_can_not_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "ablate.db"
    make_old(str(old))
    content = bytearray(old.read_bytes())
    content[18] = 3  # the format version for writing: SQLite treats the file as read-only, even for root
    old.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        open_store(old, read_only=True)
    said = str(caught.value).splitlines()
    assert said[0].startswith(f"error: {old}: an earlier ablate wrote this store, and it can't be upgraded: ")
    assert "readonly" in said[0]
    assert said[1:] == ["hint: make it writable, or upgrade a copy of it: `--store COPY`"]
    assert old.read_bytes() == content


def test_a_runner_of_an_earlier_ablate_is_not_disturbed(old: str) -> None:
    ask(old, f"UPDATE runner SET ended = NULL, heartbeat = {time.time() - 20}")
    with pytest.raises(
        StoreError, match="`ablate run` on here, started by an earlier ablate, is at work on this store"
    ):
        open_store(old)
    assert version(old) == "1"
    ask(old, f"UPDATE runner SET heartbeat = {time.time() - 61}")
    open_store(old).close()
    assert version(old) == str(SCHEMA_VERSION)


def _open(location: str, barrier: Any, answers: Any) -> None:
    barrier.wait()
    with closing(open_store(location, read_only=True)) as store:
        answers.put(find_study(store, "basenet").version)


def test_of_several_that_come_at_once_one_upgrades(old: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_open, args=(old, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [1, 1, 1, 1]
    for process in processes:
        process.join()
    assert version(old) == str(SCHEMA_VERSION)


def test_an_upgrade_on_a_server_that_is_killed_at_each_statement_has_not_begun(
    postgres: Server, tmp_path: Path
) -> None:
    """Or is whole: what a connection that broke had not committed was never there."""
    url = postgres.new_database()
    make_old(url)
    before = schema(url)
    rows = content(url)
    done = subprocess.run([sys.executable, "-c", KILLER, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout)
    assert kills > len(migrations.STEPS[2]), "each statement of the step and more"
    assert version(url) == str(SCHEMA_VERSION)
    assert content(url) == rows
    assert schema(url) != before
    with closing(open_store(url, folder=tmp_path, read_only=True)) as store:
        assert store_flaws(store, thorough=True) == []


# a child for each statement, killed before it, though not for each of the many comments that come last; what it leaves
# is the old schema, until one is past its commit
KILLER = """
import os, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool
from ablate.store.store import open_store
from tests.store.test_migrations import schema, version

url, count = sys.argv[1], 0
old = schema(url)
for kills, number in enumerate([*range(1, 20), *range(20, 1000, 25)]):
    child = os.fork()
    if child == 0:
        def step(*_):
            global count
            count += 1
            if count == number:
                os._exit(9)
        event.listen(Engine, "before_cursor_execute", step)
        event.listen(Engine, "commit", step)
        event.listen(Pool, "checkin", step)
        try:
            open_store(url, read_only=True).close()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == 9, status
    assert (version(url) == "1") == (schema(url) == old), number
print(kills)
"""
