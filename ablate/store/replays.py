"""What a resumed trial measured twice: the epochs between its last checkpoint and its death, where they differ."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import exists, func, select

from ablate.store.facts import read_number
from ablate.store.store import Store
from ablate.store.tables import arm, attempt, measurement, replicate, trial

_FINISHED = ("ok", "diverged", "pruned")


@dataclass(frozen=True)
class Replay:
    """A metric of an epoch that a later attempt of the same training measured as something else."""

    arm: str
    role: str
    seed: int
    metric: str
    epoch: int
    first: float
    again: float


def replays_of(store: Store, study_id: int) -> list[Replay]:
    """Return, in plan order and by epoch, what attempts on the same code did not repeat bit for bit.

    Only of the training whose result stands: what was there before a ``--fresh`` is none of its business.
    """
    first, again = measurement.alias(), measurement.alias()
    before, after, between = attempt.alias(), attempt.alias(), attempt.alias()
    same_code = before.c.code_sha256 == after.c.code_sha256
    other_training = exists().where(
        between.c.trial == trial.c.id,
        between.c.claim >= first.c.claim,
        between.c.claim < func.coalesce(trial.c.result_claim, trial.c.claim),
        between.c.outcome.in_(_FINISHED),
    )
    query = (
        select(
            arm.c.name, replicate.c.role, replicate.c.seed, first.c.metric, first.c.epoch,
            first.c.value, first.c.kind, again.c.value.label("value_again"), again.c.kind.label("kind_again"),
        )
        .join_from(replicate, arm, arm.c.id == replicate.c.arm)
        .join(trial, trial.c.id == replicate.c.trial)
        .join(first, first.c.trial == trial.c.id)
        .join(
            again,
            (again.c.trial == trial.c.id) & (again.c.metric == first.c.metric)
            & (again.c.epoch == first.c.epoch) & (again.c.claim > first.c.claim),
        )
        .join(before, (before.c.trial == trial.c.id) & (before.c.claim == first.c.claim))
        .join(after, (after.c.trial == trial.c.id) & (after.c.claim == again.c.claim) & same_code)
        .where(arm.c.study == study_id, trial.c.claim > 1, ~other_training)
        .where((first.c.kind != again.c.kind) | (first.c.value != again.c.value))
        .order_by(replicate.c.position, first.c.epoch, first.c.claim, again.c.claim, first.c.metric)
    )  # fmt: skip
    rows = store.read(lambda connection: list(connection.execute(query)))
    return [
        Replay(
            row.name, row.role, row.seed, row.metric, row.epoch,
            read_number(row.value, row.kind), read_number(row.value_again, row.kind_again),
        )
        for row in rows
    ]  # fmt: skip
