"""A migration that is killed at any statement leaves the old schema or the new one, whole, and every row."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ablate.store.integrity import store_flaws
from ablate.store.store import open_store
from ablate.store.tables import SCHEMA_VERSION
from tests.store.test_migrations import DUMP, ask, content, schema, version

# One process that opens the store again and again: each time in a child, killed at the next statement. With a cache of
# one page, SQLite writes to the file long before the commit: what is left is a journal to roll back, not a clean file.
KILLER = """
import os, shutil, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool
from ablate.store.store import open_store

old, folder, when = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def die_at(number):
    count = 0
    def step(*_):
        nonlocal count
        count += 1
        if count == number:
            os._exit(9)
    @event.listens_for(Engine, "connect")
    def little_cache(connection, _):
        connection.execute("PRAGMA cache_size = 1")
    event.listen(Engine, f"{when}_cursor_execute", step)
    event.listen(Engine, "commit", step)  # before it
    event.listen(Pool, "checkin", step)  # after it

for number in range(1, 1000):
    path = folder / f"{when}-{number}.db"
    shutil.copy(old, path)
    child = os.fork()
    if child == 0:
        die_at(number)
        try:
            open_store(path, read_only=True).close()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break  # it came to its end before the statement at which it was to die
    assert status == 9, status
print(number - 1)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_upgrade_killed_at_each_statement_is_whole_or_has_not_begun(tmp_path: Path, when: str) -> None:
    old, fresh, folder = tmp_path / "old.db", tmp_path / "fresh.db", tmp_path / "killed"
    folder.mkdir()
    with closing(sqlite3.connect(old)) as file:
        file.executescript(DUMP.read_text())
    open_store(fresh, create=True).close()
    rows = content(old)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(old), str(folder), when], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout)
    assert kills >= 10, "each statement of the step and more"
    versions, journals = [], 0
    for number in range(1, kills + 1):
        path = folder / f"{when}-{number}.db"
        journals += any(other.stat().st_size for other in folder.glob(f"{path.name}-*"))
        seen = tmp_path / "seen"  # SQLite itself looks first, at a copy: ablate would upgrade it
        shutil.rmtree(seen, ignore_errors=True)
        seen.mkdir()
        for file_left in folder.glob(f"{path.name}*"):
            shutil.copy(file_left, seen)
        found = seen / path.name
        assert ask(found, "PRAGMA integrity_check") == [("ok",)]
        versions.append(version(found))
        assert schema(found) == schema(old if versions[-1] == "1" else fresh), f"killed at {number}"
        store = open_store(path, read_only=True)
        assert store_flaws(store, thorough=True) == []
        store.close()
        assert (schema(path), version(path)) == (schema(fresh), str(SCHEMA_VERSION))
        assert content(path) == rows
    assert versions == sorted(versions), "the commit is one moment"
    assert set(versions) == {"1", str(SCHEMA_VERSION)}
    assert journals, "some were killed with pages in the file that no commit had confirmed"
