"""``Store``: one database, opened safely. Every transaction is retried as a whole while others hold the lock."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from ablate.errors import AblateError, StoreError
from ablate.failpoints import failpoint
from ablate.store import migrations
from ablate.store.dialects import alone, now
from ablate.store.mounts import file_system, is_network
from ablate.store.tables import SCHEMA_VERSION, create_tables, meta

T = TypeVar("T")

RETRY_DEADLINE_S = 60.0
SERVER_PATIENCE_S = 3.0
BUSY_TIMEOUT_MS = 5_000
# WAL can lose a commit in every SQLite from 3.7.0 to 3.51.2 (sqlite.org/wal.html#walresetbug)
WAL_FIXED = (3, 51, 3)

_LEFT_ALONE = "the file is damaged or is something else; ablate leaves it as it is"
_NOT_WRITABLE = "make it writable, or name another store (--store PATH)"
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# serialization failure, deadlock, lock not available; the server is stopped, has crashed, starts up; it has no room for
# one more connection. 08… are troubles of the connection
_PG_RETRIED = {"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300"}
# a connection that is refused for good: neither server nor driver gives a code with it
_PG_REFUSED = (
    "authentication failed", "password supplied", "does not exist", "no pg_hba.conf entry", "not permitted to log in",
    "permission denied", "connection is bad: invalid",
)  # fmt: skip
# a server that went without a word (power, a cable) is missed before a lease is over; libpq would wait for hours
_PG_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class NoStoreYet(StoreError):
    """There is nothing at this place, or an empty database."""


class Store:
    """A store of one project. ``folder`` holds the attempt folders and the locks of its runners."""

    def __init__(self, engine: Engine, folder: Path, *, retry_deadline_s: float = RETRY_DEADLINE_S) -> None:
        self.engine = engine
        self.folder = folder
        self.retry_deadline_s = retry_deadline_s

    @property
    def name(self) -> str:
        """The store as messages name it: never with a password."""
        url = self.engine.url
        return str(url.database) if is_sqlite(url) else url.set(query={}).render_as_string(hide_password=True)

    def path_of(self, attempt: str) -> Path:
        """Return where an attempt's folder lies. Raises StoreError where its row would lead anywhere else."""
        if not re.fullmatch(r"trials/[0-9a-z]+/[0-9]+", attempt):
            raise StoreError(f"an attempt names a folder that is not its own: {attempt!a:.100}", where=self.name)
        return self.folder / attempt

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one write transaction and return its value.

        ``work`` must touch only the database: it runs again from the start when another process holds the lock.
        Raises StoreError after the retry deadline, or where the database is damaged or full.
        """
        return self._transaction(work, write=True)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one read transaction, so that it sees one moment of the store."""
        return self._transaction(work, write=False)

    def now(self) -> float:
        """Return the store's time: see ``now``."""
        return self.read(lambda connection: float(connection.execute(select(now(connection))).scalar_one()))

    def close(self) -> None:
        self.engine.dispose()

    def _transaction(self, work: Callable[[Connection], T], *, write: bool) -> T:
        name = work.__qualname__.partition(".")[0].strip("_")  # of the function that the transaction is about
        deadline = time.monotonic() + self.retry_deadline_s
        pause = 0.002
        options: dict[str, Any] = {"ablate_write": write}
        if not write and not is_sqlite(self.engine.url):
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        while True:
            try:
                with self.engine.connect().execution_options(**options) as connection, connection.begin():
                    done = work(connection)
                    failpoint(f"{name}-uncommitted" if write else "store-read", meets_disk=True)
                if write:
                    failpoint(f"{name}-committed", meets_disk=True)
                return done
            except SQLAlchemyError as error:
                if not is_retried(error) or time.monotonic() > deadline:
                    raise self._store_error(error) from error
            except UnicodeDecodeError as error:
                # SQLite's own words can hold a piece of a damaged file, and its driver reads them as UTF-8
                raise StoreError("the store is damaged", where=self.name, hint=_LEFT_ALONE) from error
            except UnicodeEncodeError as error:  # the shell hands on any bytes, as a name or as a path
                raise AblateError(f"{error.object!a:.200} is no UTF-8 text, and a store holds no other") from None
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 0.16)

    def _store_error(self, error: SQLAlchemyError) -> Exception:
        if isinstance(error, DBAPIError) and not isinstance(error.orig, AssertionError):
            text = str(error.orig).strip().splitlines()[0].partition(" with text ")[0]  # that of the rows is not ours
            hint = _hint(text) if is_sqlite(self.engine.url) else _server_hint(text)
            return StoreError(f"the store can't be used: {text}", where=self.name, hint=hint)
        return error


def open_store(
    location: str | Path, *, folder: Path | None = None, create: bool = False, read_only: bool = False
) -> Store:
    """Open a store by path or database URL. ``folder`` is where attempt folders go; default: beside the SQLite file.

    A store of an earlier version is upgraded first, even to be read. Raises NoStoreYet where there is none (unless
    ``create``); StoreError where it is damaged, of a later version, or can't be upgraded, and where SQLite would write
    to a network file system. To read one there is fine.
    """
    url = _url(location)
    if is_sqlite(url):
        path = Path(str(url.database))
        folder = folder or path.parent
        if not os.path.exists(path) and not create:
            raise _no_store(str(path))
        if create or not read_only:
            _refuse_network(path)
        if create:
            _make_folder(path.parent)
    store = Store(_engine(url, read_only=read_only), folder or Path("runs"))
    try:
        _make_ready(store, url, create=create)
    except BaseException:
        store.close()
        raise
    return store


def _make_ready(store: Store, url: URL, *, create: bool) -> None:
    if not is_sqlite(url):
        # a server that does not answer at the start is more likely a wrong URL than a restart
        store.retry_deadline_s = SERVER_PATIENCE_S
    if is_sqlite(url):
        store.read(_refuse_code)
    if create:
        store.write(_create)
    version = store.read(_schema_version)
    if version is None and store.read(_is_empty):
        raise _no_store(store.name)  # or the disk was full, or the power went, when it was to be made
    if version is None:
        raise StoreError("this database is no store of ablate", where=store.name, hint="a store has one of its own")
    if version > SCHEMA_VERSION:
        hint = "upgrade ablate to use it"
        raise StoreError(
            f"a newer ablate wrote this store (schema {version}; this is {SCHEMA_VERSION})", where=store.name, hint=hint
        )
    if version < SCHEMA_VERSION:
        _upgrade(url, store)
    store.retry_deadline_s = RETRY_DEADLINE_S


def _upgrade(url: URL, store: Store) -> None:
    """Bring an old store to today's schema by a connection of its own: ``store`` may be there to read only."""
    writable = Store(_engine(url, read_only=False), store.folder, retry_deadline_s=store.retry_deadline_s)
    try:
        if is_sqlite(url):
            _refuse_network(Path(str(url.database)))
        writable.write(lambda connection: migrations.upgrade(connection, where=store.name))
    except migrations.InUse:
        raise
    except StoreError as error:
        fault = error.faults[0]
        hint = "" if fault.hint == _NOT_WRITABLE else fault.hint
        raise StoreError(
            f"an earlier ablate wrote this store, and it can't be upgraded: {fault.message}",
            where=store.name,
            hint=hint or "make it writable, or upgrade a copy of it: `--store COPY`",
        ) from error
    finally:
        writable.close()


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def is_retried(error: SQLAlchemyError) -> bool:
    """Tell whether an error only says that somebody else was first, so that the transaction may be run again."""
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return (code & 0xFF) in _BUSY
    if isinstance(error.orig, sqlite3.Error):
        return False  # said by the driver itself, such as of text that is no UTF-8
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated:
        return True
    if state is not None:
        return state in _PG_RETRIED or state.startswith("08")
    return isinstance(error, OperationalError) and not any(words in str(error.orig) for words in _PG_REFUSED)


def _url(location: str | Path) -> URL:
    if "://" not in str(location):
        return URL.create("sqlite", database=str(Path(location).absolute()))
    try:
        url = make_url(str(location))
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):  # a port that is no number
        raise AblateError(
            "this is no database URL or path", where="--store", hint="for example runs/ablate.db"
        ) from None
    if backend not in ("sqlite", "postgresql"):
        raise AblateError(f"a store is SQLite or PostgreSQL, not {backend}", where="--store")
    if backend == "sqlite" and not url.database:
        raise AblateError("an SQLite store needs a file", where="--store", hint="for example runs/ablate.db")
    return url.set(database=str(Path(str(url.database)).absolute())) if backend == "sqlite" else url


def _refuse_network(path: Path) -> None:
    """Raise StoreError where two machines could write to one SQLite file: its locks may not keep them apart."""
    kind = file_system(path)
    if is_network(kind):
        raise StoreError(
            f"SQLite can't be written on a network file system ({kind}): its locks are not safe there",
            where=str(path),
            hint="name a file on a local disk (--store PATH), or use PostgreSQL (--store postgresql+psycopg://…)",
        )


def _make_folder(folder: Path) -> None:
    try:
        failpoint("store-folder-begun")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder can't be made: {error.strerror}", where=str(folder), hint=_NOT_WRITABLE) from None
    if not os.access(folder, os.W_OK):
        raise StoreError("the folder is not writable", where=str(folder), hint=_NOT_WRITABLE)


def _engine(url: URL, *, read_only: bool) -> Engine:
    options: dict[str, Any] = {"hide_parameters": True}
    if not is_sqlite(url):
        if url.get_driver_name().startswith("psycopg"):
            options["connect_args"] = {name: value for name, value in _PG_PATIENCE.items() if name not in url.query}
        if read_only:
            options["execution_options"] = {"postgresql_readonly": True}
    try:
        engine = create_engine(url, **options)
    except ModuleNotFoundError as error:
        hint = "pip install 'psycopg[binary]' and write postgresql+psycopg://…"
        raise StoreError(f"the database driver is not installed ({error.name})", where="--store", hint=hint) from None
    except NoSuchModuleError:
        raise AblateError(
            f"`{url.drivername}` is no database driver", where="--store", hint="postgresql+psycopg://…"
        ) from None
    if not is_sqlite(url):
        return engine

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes late, and not at all for SELECT and DDL
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")  # first: even a PRAGMA can meet a lock
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-16384")  # KiB: by arm, a large study's pages are come to 2 MB apart
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute(f"PRAGMA journal_mode={journal_mode()}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a deferred transaction that reads and then writes fails at once, whatever the timeout
        write = connection.get_execution_options().get("ablate_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def journal_mode() -> str:
    """Return WAL where the linked SQLite has the reset fault mended, else a rollback journal."""
    return "WAL" if sqlite3.sqlite_version_info >= WAL_FIXED else "TRUNCATE"


def _create(connection: Connection) -> None:
    alone(connection)
    if _schema_version(connection) is None:
        create_tables(connection)
        connection.execute(meta.insert().values(key="schema", value=str(SCHEMA_VERSION)))


def _refuse_code(connection: Connection) -> None:
    """Raise StoreError where a store from elsewhere brings code: it would run when it is read or written."""
    query = text("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view') ORDER BY name")
    found = connection.execute(query).first()
    if found is not None:
        hint = "ablate does not open it: what it holds could be changed by being looked at"
        message = f"the {found.type} `{found.name}` is none of ablate's"
        raise StoreError(message, where=str(connection.engine.url.database), hint=hint)


def _is_empty(connection: Connection) -> bool:
    return not inspect(connection).get_table_names()


def _schema_version(connection: Connection) -> int | None:
    if not inspect(connection).has_table("meta"):
        return None
    value = connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar()
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise StoreError(
            "the store says no schema that there ever was: it is damaged",
            where=str(connection.engine.url.database),
            hint=_LEFT_ALONE,
        )
    return int(value)


def _no_store(where: str) -> NoStoreYet:
    return NoStoreYet("there is no store yet", where=where, hint="`ablate run STUDY` makes one")


def _server_hint(text: str) -> str:
    if "password" in text or "authentication" in text:
        return "user and password stand in the URL, or the password in ~/.pgpass, where it is not shown to others"
    if "database" in text and "does not exist" in text:
        return "make it first (`createdb`), or name another (--store URL)"
    if any(words in text for words in ("refused", "resolve", "timeout", "starting up", "shutting down", "closed")):
        return "is the server there, and the URL right? What was committed is safe; run the same command again"
    if "space" in text:
        return "free some space and run the same command again: what was committed is safe"
    return ""


def _hint(text: str) -> str:
    if "locked" in text:
        return "another program holds it; close that one and run the same command again"
    if "full" in text or "disk" in text:
        return "free some space and run the same command again: what was committed is safe"
    if any(words in text for words in ("not a database", "malformed", "UTF-8", "no such", "unsupported file format")):
        return _LEFT_ALONE
    if "readonly" in text or "unable to open" in text:
        return _NOT_WRITABLE
    return ""
