"""Numbered steps from the schema of an earlier ablate to today's.

A step is plain SQL as it was right in its time, or a function where SQL does not do: it knows nothing of ``tables``,
which goes on changing, and one that was released is never edited. ``{key}``, ``{double}`` and ``{blob}`` stand for what
the databases call differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from sqlalchemy import Connection, select, text, update
from sqlalchemy.schema import SetColumnComment

from ablate.errors import StoreError
from ablate.store.dialects import alone, is_postgresql, now
from ablate.store.tables import SCHEMA_VERSION, meta, metadata, runner

SILENCE_S = 60.0  # a runner that was not heard of for that long is dead: it renews four times as often

Statement = str | Callable[[Connection], None]


def _final_numbers_to_attempts(connection: Connection) -> None:
    """Write an attempt's final numbers as JSON, in the order in which they were kept.

    Not by SQL: SQLite writes 15 digits of a number in JSON.
    """
    query = text(
        "SELECT trial, claim, metric, value, kind FROM measurement WHERE epoch IS NULL ORDER BY trial, claim, id"
    )
    kept = text("UPDATE attempt SET metrics_json = :metrics WHERE trial = :trial AND claim = :claim")

    def rows() -> Iterator[dict[str, object]]:
        for (trial, claim), found in groupby(connection.execute(query), key=lambda row: (row.trial, row.claim)):
            numbers = {row.metric: row.kind if row.value is None else row.value for row in found}
            yield {"trial": trial, "claim": claim, "metrics": json.dumps(numbers)}

    if written := list(rows()):
        connection.execute(kept, written)


# statements, or where the databases differ, those of each
STEPS: Mapping[int, tuple[Statement, ...] | Mapping[str, tuple[Statement, ...]]] = {
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
    # final numbers lie with their attempt, and trials are found by their state
    4: {
        "postgresql": (
            "CREATE INDEX trial_state ON trial (state)",
            "ALTER TABLE attempt ADD COLUMN metrics_json TEXT",
            _final_numbers_to_attempts,
            "DELETE FROM measurement WHERE epoch IS NULL",
            "DROP INDEX measurement_epoch",
            "DROP INDEX measurement_final",
            "ALTER TABLE measurement ALTER COLUMN epoch SET NOT NULL",
            "ALTER TABLE measurement ADD UNIQUE (trial, claim, metric, epoch)",
        ),
        "sqlite": (
            "CREATE INDEX trial_state ON trial (state)",
            "DROP INDEX attempt_running",
            "ALTER TABLE attempt RENAME TO attempt_old",
            """
            CREATE TABLE attempt (
                id INTEGER NOT NULL,
                trial INTEGER NOT NULL,
                claim INTEGER NOT NULL,
                runner VARCHAR NOT NULL,
                slot VARCHAR NOT NULL,
                folder TEXT NOT NULL,
                started DOUBLE NOT NULL,
                ended DOUBLE,
                outcome VARCHAR,
                exit_code INTEGER,
                signal INTEGER,
                error TEXT,
                seconds DOUBLE,
                resumed_from INTEGER,
                code_sha256 VARCHAR,
                environment_json TEXT,
                metrics_json TEXT,
                PRIMARY KEY (id),
                UNIQUE (trial, claim),
                CONSTRAINT attempt_ended_has_outcome CHECK ((ended IS NULL) = (outcome IS NULL)),
                FOREIGN KEY(trial) REFERENCES trial (id),
                FOREIGN KEY(runner) REFERENCES runner (id)
            )
            """,
            """
            INSERT INTO attempt SELECT id, trial, claim, runner, slot, folder, started, ended, outcome, exit_code,
                signal, error, seconds, resumed_from, code_sha256, environment_json, NULL FROM attempt_old
            """,
            "DROP TABLE attempt_old",
            "CREATE UNIQUE INDEX attempt_running ON attempt (trial) WHERE ended IS NULL",
            _final_numbers_to_attempts,
            "DROP INDEX measurement_epoch",
            "DROP INDEX measurement_final",
            "ALTER TABLE measurement RENAME TO measurement_old",
            """
            CREATE TABLE measurement (
                id INTEGER NOT NULL,
                trial INTEGER NOT NULL,
                claim INTEGER NOT NULL,
                metric VARCHAR NOT NULL,
                epoch INTEGER NOT NULL,
                value DOUBLE,
                kind VARCHAR NOT NULL,
                PRIMARY KEY (id),
                CONSTRAINT measurement_kind CHECK (kind IN ('num', 'nan', '+inf', '-inf')),
                CONSTRAINT measurement_value CHECK ((kind = 'num') = (value IS NOT NULL)),
                UNIQUE (trial, claim, metric, epoch),
                FOREIGN KEY(trial) REFERENCES trial (id)
            )
            """,
            """
            INSERT INTO measurement SELECT id, trial, claim, metric, epoch, value, kind FROM measurement_old
                WHERE epoch IS NOT NULL
            """,
            "DROP TABLE measurement_old",
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
            if isinstance(statement, str):
                connection.exec_driver_sql(statement.format(**words))
            else:
                statement(connection)
    connection.execute(update(meta).where(meta.c.key == "schema").values(value=str(SCHEMA_VERSION)))
    if is_postgresql(connection):
        _comment(connection)


def statements(number: int, database: str) -> tuple[Statement, ...]:
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
