"""Numbered steps from the schema of an earlier ablate to today's.

A step is plain SQL as it was right in its time: it knows nothing of ``tables``, which goes on changing, and one that
was released is never edited. ``{key}``, ``{double}`` and ``{blob}`` stand for what the databases call differently.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select, update
from sqlalchemy.schema import SetColumnComment

from ablate.errors import StoreError
from ablate.store.dialects import alone, is_postgresql, now
from ablate.store.tables import SCHEMA_VERSION, meta, metadata, runner

SILENCE_S = 60.0  # a runner that was not heard of for that long is dead: it renews four times as often

# statements, or where the databases differ, those of each
STEPS: Mapping[int, tuple[str, ...] | Mapping[str, tuple[str, ...]]] = {
    # each attempt keeps what it measured, and its scores per example
    2: (
        "DROP INDEX measurement_epoch",
        "CREATE UNIQUE INDEX measurement_epoch ON measurement (trial, claim, metric, epoch) WHERE epoch IS NOT NULL",
        "DROP INDEX measurement_final",
        "CREATE UNIQUE INDEX measurement_final ON measurement (trial, claim, metric) WHERE epoch IS NULL",
        """
        CREATE TABLE example_set (
            id {key} NOT NULL,
            sha256 VARCHAR NOT NULL,
            size INTEGER NOT NULL,
            ids {blob} NOT NULL,
            PRIMARY KEY (id),
            UNIQUE (sha256)
        )
        """,
        """
        CREATE TABLE score (
            trial INTEGER NOT NULL,
            claim INTEGER NOT NULL,
            metric VARCHAR NOT NULL,
            examples INTEGER NOT NULL,
            kind VARCHAR NOT NULL,
            low {double},
            high {double},
            data {blob} NOT NULL,
            PRIMARY KEY (trial, claim),
            CONSTRAINT score_kind CHECK (kind IN ('bits', 'float32')),
            CONSTRAINT score_levels CHECK ((kind = 'bits') = (low IS NOT NULL AND high IS NOT NULL)),
            FOREIGN KEY(trial) REFERENCES trial (id),
            FOREIGN KEY(examples) REFERENCES example_set (id)
        )
        """,
    ),
    # candidates of an arm share a seed
    3: {
        "postgresql": (
            "ALTER TABLE replicate DROP CONSTRAINT replicate_arm_role_seed_key",
            "ALTER TABLE replicate ADD UNIQUE (arm, role, seed, trial)",
        ),
        "sqlite": (  # which drops no constraint
            "DROP INDEX replicate_trial",
            "ALTER TABLE replicate RENAME TO replicate_old",
            """
            CREATE TABLE replicate (
                id INTEGER NOT NULL,
                arm INTEGER NOT NULL,
                role VARCHAR NOT NULL,
                seed INTEGER NOT NULL,
                trial INTEGER NOT NULL,
                position INTEGER NOT NULL,
                PRIMARY KEY (id),
                UNIQUE (arm, role, seed, trial),
                CONSTRAINT replicate_role CHECK (role IN ('main', 'confirm', 'tune')),
                FOREIGN KEY(arm) REFERENCES arm (id),
                FOREIGN KEY(trial) REFERENCES trial (id)
            )
            """,
            "INSERT INTO replicate SELECT id, arm, role, seed, trial, position FROM replicate_old",
            "DROP TABLE replicate_old",
            "CREATE INDEX replicate_trial ON replicate (trial)",
        ),
    },
}

_WORDS = {
    "sqlite": {"key": "INTEGER", "double": "DOUBLE", "blob": "BLOB"},
    "postgresql": {"key": "SERIAL", "double": "DOUBLE PRECISION", "blob": "BYTEA"},
}


class InUse(StoreError):
    """A runner of an earlier ablate is at work: its next write into an upgraded store would fail."""


def upgrade(connection: Connection, *, where: str) -> None:
    """Take the steps that a store lacks, in the caller's transaction: all or none. Nothing where it lacks none.

    Of several that come at once the first does it: the others wait for its lock. Raises InUse.
    """
    alone(connection)
    version = int(connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one())
    if version >= SCHEMA_VERSION:
        return
    _refuse_while_in_use(connection, where)
    words = _WORDS[connection.dialect.name]
    for number in range(version + 1, SCHEMA_VERSION + 1):
        for statement in statements(number, connection.dialect.name):
            connection.exec_driver_sql(statement.format(**words))
    connection.execute(update(meta).where(meta.c.key == "schema").values(value=str(SCHEMA_VERSION)))
    if is_postgresql(connection):
        _comment(connection)


def statements(number: int, database: str) -> tuple[str, ...]:
    """Return the statements of a step, as this kind of database takes them."""
    step = STEPS[number]
    return step if isinstance(step, tuple) else step[database]


def _refuse_while_in_use(connection: Connection, where: str) -> None:
    heard = runner.c.heartbeat > now(connection) - SILENCE_S
    row = connection.execute(select(runner.c.host, runner.c.command).where(runner.c.ended.is_(None), heard)).first()
    if row is not None:
        hint = "wait until it has ended; after a kill, a minute is enough"
        what = f"`{row.command}` on {row.host}, started by an earlier ablate, is at work on this store"
        raise InUse(what, where=where, hint=hint)


def _comment(connection: Connection) -> None:
    """Write all comments: they are part of no step, and of what is new only a fresh store would have them."""
    for table in metadata.tables.values():
        for column in table.columns:
            connection.execute(SetColumnComment(column))
