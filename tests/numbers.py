"""All numbers of a store, wherever they are kept: on their way in rows, at their end with the attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import select

from ablate.store.facts import read_metrics, stored_number
from ablate.store.tables import attempt, measurement, trial

# for SQLite: `number` has all of them, epoch NULL where they are of the end
NUMBERS = """WITH number AS (
    SELECT trial, claim, metric, epoch, value, kind FROM measurement
    UNION ALL
    SELECT a.trial, a.claim, j.key, NULL, iif(j.type = 'text', NULL, j.value), iif(j.type = 'text', j.value, 'num')
    FROM attempt a, json_each(a.metrics_json) j
) """


def numbers_of_results(rows: Callable[[Any], Iterable[Any]]) -> list[tuple[str, str, int | None, float | None, str]]:
    """Return (fingerprint, metric, epoch, value, kind) of every result; ``rows`` asks the store."""
    on_the_way = select(
        trial.c.fingerprint, measurement.c.metric, measurement.c.epoch, measurement.c.value, measurement.c.kind
    ).join(trial, (measurement.c.trial == trial.c.id) & (measurement.c.claim == trial.c.result_claim))
    at_end = select(trial.c.fingerprint, attempt.c.metrics_json).join(
        trial, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim)
    )
    found: list[tuple[str, str, int | None, float | None, str]] = [tuple(row) for row in rows(on_the_way)]
    for fingerprint, text in rows(at_end):
        for metric, value in read_metrics(text).items():
            kept = stored_number(value)
            found.append((fingerprint, metric, None, kept["value"], kept["kind"]))
    return found
