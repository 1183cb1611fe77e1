"""What the trials of a study measured on their way, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

from ablate.analyse.findings import Analysis
from ablate.store.facts import StoredStudy, measurements_of, read_number
from ablate.store.store import Store
from ablate.study.schema import Role


@dataclass(frozen=True)
class Curve:
    """One metric of one arm at one seed. ``epochs`` rise, from 1; ``values`` may be NaN or infinite where it diverged.

    An epoch may be missing: a task records a metric when it likes.
    """

    arm: str
    role: Role
    seed: int
    metric: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


def study_curves(store: Store, stored: StoredStudy, analysis: Analysis) -> tuple[Curve, ...]:
    """Return the curves of every declared metric, arms in plan order, then role, seed and metric as declared.

    They are of the attempts that tables take their values from, those that diverged among them: nothing of trials that
    have no result yet, nor of candidates that were tried in tuning. A resumed attempt has the epochs that it took over.
    An arm that shares its trials with another has the same curves under its own name.
    """
    points: dict[tuple[str, str], dict[int, float]] = {}
    for row in measurements_of(store, stored.id):
        points.setdefault((row.fingerprint, row.metric), {})[row.epoch] = read_number(row.value, row.kind)
    return tuple(
        Curve(arm.name, arm.role, trial.seed, metric.name, tuple(found), tuple(found.values()))
        for arm in analysis.arms
        for trial in arm.trials
        for metric in analysis.metrics
        if (found := points.get((trial.fingerprint, metric.name)))
    )
