"""What SQLite and PostgreSQL say differently."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Table, cast, extract, func, literal, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

_ALONE = int.from_bytes(b"ablate")  # the advisory lock of those who make a store, upgrade it, or record a plan


def is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def now(connection: Connection) -> ColumnElement[float]:
    """Return the store's time in Unix seconds, to stand in a statement: the server's, or of a file this host's.

    Hosts may disagree on the time; what is compared with a time in the store is therefore this, and never a host's own.
    """
    if is_postgresql(connection):
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return literal(time.time(), Double)


def in_json(connection: Connection, text: ColumnElement[str], key: str) -> ColumnElement[Any]:
    """Return the number or text that a JSON object, kept as text, has under a key; NULL where it has none."""
    if is_postgresql(connection):
        from sqlalchemy.dialects.postgresql import JSON  # late: a store on SQLite needs none of it

        found: ColumnElement[Any] = cast(text, JSON)[key].astext
        return found
    return func.json_extract(text, f'$."{key}"')


def alone(connection: Connection) -> None:
    """Keep others out who ask for the same, until the transaction ends. SQLite's write transaction does as it is."""
    if is_postgresql(connection):
        connection.execute(select(func.pg_advisory_xact_lock(_ALONE)))


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an insert that may say what becomes of a conflict."""
    if is_postgresql(connection):
        from sqlalchemy.dialects.postgresql import insert  # late as well

        return insert(table)
    return sqlite_insert(table)
