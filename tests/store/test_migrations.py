"""Stores of earlier schemas: real ones, upgraded whole or left alone.

``schema-1.sql`` is what ablate of schema 1 wrote (``iterdump``): the truth study's first step at two seeds, with a
trial that finished at once, one that diverged, one that was interrupted twice, resumed and finished, and one that ran
out of memory, was put back and interrupted.
"""

from __future__ import annotations

import math
import multiprocessing
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.errors import StoreError
from ablate.store import claims, migrations
from ablate.store.claims import Ending, KeptScores
from ablate.store.facts import earlier_results_of, find_study, measurements_of, read_number, results_of
from ablate.store.history import history_of
from ablate.store.integrity import store_flaws
from ablate.store.scores import pack, scores_of
from ablate.store.store import open_store
from ablate.store.tables import SCHEMA_VERSION
from tests.command import ablate

DUMP = Path(__file__).with_name("schema-1.sql")
TABLES = ("study", "plan", "arm", "runner", "trial", "replicate", "attempt", "measurement")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "ablate.db"
    with closing(sqlite3.connect(path)) as file:
        file.executescript(DUMP.read_text())
    return path


def ask(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as file:
        return file.execute(sql).fetchall()


def schema(path: Path) -> list[tuple[str, str, str]]:
    rows = ask(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    return [(kind, name, f"{table}: {''.join((sql or '').split())}") for kind, name, table, sql in rows]


def version(path: Path) -> str:
    return str(ask(path, "SELECT value FROM meta WHERE key = 'schema'")[0][0])


def test_each_schema_has_its_step() -> None:
    assert list(migrations.STEPS) == list(range(2, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("read_only", [False, True])
def test_an_upgraded_store_has_the_schema_of_a_fresh_one(old: Path, tmp_path: Path, read_only: bool) -> None:
    fresh = tmp_path / "fresh.db"
    open_store(fresh, create=True).close()
    assert schema(old) != schema(fresh)
    open_store(old, read_only=read_only).close()
    assert schema(old) == schema(fresh)
    assert version(old) == version(fresh) == str(SCHEMA_VERSION)


def test_every_row_stays_as_it_was(old: Path) -> None:
    before = {table: ask(old, f"SELECT * FROM {table} ORDER BY 1") for table in TABLES}
    open_store(old).close()
    assert {table: ask(old, f"SELECT * FROM {table} ORDER BY 1") for table in TABLES} == before


def test_all_that_was_found_reads_the_same(old: Path) -> None:
    store = open_store(old, read_only=True)
    study = find_study(store, "basenet")
    trials, finals = results_of(store, study.id)
    assert [(each.arm, each.seed, each.state, each.outcome, each.seconds, each.attempts) for each in trials] == [
        ("baseline", 1, "done", "ok", 47.0, 1),
        ("batchnorm", 1, "done", "diverged", 47.0, 1),
        ("baseline", 2, "done", "ok", 54.0, 3),
        ("batchnorm", 2, "waiting", "interrupted", None, 2),
    ]
    values = {(row.arm, row.seed, row.metric): read_number(row.value, row.kind) for row in finals}
    assert len(values) == 6 + 2 + 3
    assert values["baseline", 1, "val_acc"] == 30.8
    assert math.isnan(values["batchnorm", 1, "val_acc"])
    assert (values["baseline", 2, "macro_f1"], values["baseline", 2, "val_loss"]) == (27.25, math.inf)
    epochs = [row for row in measurements_of(store, study.id, final=False) if row.metric == "val_acc"]
    assert [(row.epoch, row.value) for row in epochs] == [(1, 20.0), (2, 25.0), (3, 29.9)]
    attempts = history_of(store, study.id).attempts
    third = [each for each in attempts if (each.arm, each.seed) == ("baseline", 2)]
    assert [(each.claim, each.outcome, each.stands) for each in third] == [
        (1, "interrupted", False), (2, "interrupted", False), (3, "ok", True),
    ]  # fmt: skip
    assert attempts[5].environment == {"data_sha256": "da7a", "python": "3.11.7", "torch": "2.15.0"}
    assert earlier_results_of(store, study.id) == []
    assert scores_of(store, study.id) == {}
    assert store_flaws(store) == []


def test_work_goes_on_in_an_upgraded_store(old: Path) -> None:
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
    assert store_flaws(store) == []


def test_a_report_of_an_old_store(old: Path) -> None:
    done = ablate("report", "--markdown", "--store", str(old), cwd=old.parent)
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout
    assert version(old) == str(SCHEMA_VERSION)


def test_a_step_that_fails_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema(old)
    monkeypatch.setattr(migrations, "STEPS", {2: (*migrations.STEPS[2], "CREATE TABLE score (x)")})
    with pytest.raises(StoreError, match="an earlier ablate wrote this store, and it can't be upgraded") as caught:
        open_store(old)
    assert "hint: " in str(caught.value)
    assert (schema(old), version(old)) == (before, "1")


def test_a_file_that_can_not_be_written_is_said_in_one_line(old: Path) -> None:
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


def test_a_runner_of_an_earlier_ablate_is_not_disturbed(old: Path) -> None:
    with closing(sqlite3.connect(old)) as file, file:
        file.execute("UPDATE runner SET ended = NULL, heartbeat = ?", (time.time() - 20,))
    with pytest.raises(
        StoreError, match="`ablate run` on here, started by an earlier ablate, is at work on this store"
    ):
        open_store(old)
    assert version(old) == "1"
    with closing(sqlite3.connect(old)) as file, file:
        file.execute("UPDATE runner SET heartbeat = ?", (time.time() - 61,))
    open_store(old).close()
    assert version(old) == str(SCHEMA_VERSION)


def _open(path: Path, barrier: Any, answers: Any) -> None:
    barrier.wait()
    store = open_store(path, read_only=True)
    answers.put(find_study(store, "basenet").version)


def test_of_several_that_come_at_once_one_upgrades(old: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_open, args=(old, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [1, 1, 1, 1]
    for process in processes:
        process.join()
    assert version(old) == str(SCHEMA_VERSION)
