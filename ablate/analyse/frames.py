"""Tidy tables of trials, measurements and effects. Here, and only here, is pandas imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ablate.analyse.findings import Analysis
from ablate.analyse.results import read_results
from ablate.plan.trials import Plan
from ablate.store.facts import StoredStudy, measurements_of, read_number
from ablate.store.store import Store
from ablate.study.schema import Role
from ablate.study.settings import Settings, canonical, leaves, show

if TYPE_CHECKING:
    import pandas

Frame: TypeAlias = "pandas.DataFrame"

_LEADING = ("arm", "title", "seed", "role", "state", "outcome", "attempts", "seconds")
_EFFECT_COLUMNS = (
    "design", "row", "title", "arm", "other", "metric",
    "n", "mean", "sd", "se", "low", "high", "p", "adjusted", "verdict",
)  # fmt: skip
_CLOSING = ("reason", "code_sha256", "fingerprint")


def trials_frame(store: Store, stored: StoredStudy) -> Frame:
    """Return one row per (arm, seed), arms in plan order: what became of the trial and every final metric.

    ``role``: ``main``, ``confirm`` for seeds that measure again what the others chose, or ``tune`` for the candidates
    whose best settings the others run with. There is a row per candidate, and ``candidate`` has its number.

    Settings that differ between arms are columns by their dotted path. What is not there is None or NaN. A metric or a
    setting with the name of another column is called ``metric:…`` or ``setting:…``. What the attempt ran on (commit,
    versions, device, data) has a column each, before the hash of the code.
    """
    import pandas

    plan, results = read_results(store, stored)
    roles: tuple[Role, ...] = ("main", "confirm", "tune")
    recorded = {name for trials in results.values() for trial in trials for name in trial.values}
    metrics = [*plan.study.metrics, *sorted(recorded - set(plan.study.metrics))]
    settings = differing(plan)
    trials = plan.trials()
    tuned = trials if plan.tuned else {}
    leading = [*_LEADING, "candidate"] if plan.tuned else list(_LEADING)
    metric_columns = _columns(metrics, taken={*leading, *_CLOSING}, prefix="metric:")
    taken = {*leading, *_CLOSING, *metric_columns.values()}
    setting_columns = _columns(settings, taken=taken, prefix="setting:")
    facts = sorted({name for trials in results.values() for trial in trials for name in trial.environment})
    fact_columns = _columns(facts, taken={*taken, *setting_columns.values()}, prefix="ran:")
    rows = [
        {
            "arm": arm.name,
            "title": arm.title,
            "seed": trial.seed,
            "role": role,
            **({"candidate": trial.candidate} if plan.tuned else {}),
            "state": trial.state,
            "outcome": trial.outcome,
            "attempts": trial.attempts,
            "seconds": trial.seconds,
            **{column: trial.values.get(name) for name, column in metric_columns.items()},
            **{column: values.get(path) for path, column in setting_columns.items()},
            "reason": trial.reason or None,
            **{column: trial.environment.get(name) for name, column in fact_columns.items()},
            "code_sha256": trial.code_sha256,
            "fingerprint": trial.fingerprint if trial.fingerprint in trials else None,
        }
        for arm in plan.arms
        for usual in [_cells(arm.settings)]
        for role in roles
        for trial in results.get((arm.name, role), ())
        for values in [_cells(trials[trial.fingerprint].settings) if trial.fingerprint in tuned else usual]
    ]
    columns = [*leading, *metric_columns.values(), *setting_columns.values(), *fact_columns.values(), *_CLOSING]
    frame = pandas.DataFrame(rows, columns=columns, dtype=object)
    numbers = {"seed": "int64", "attempts": "int64", "seconds": "float64"}
    return frame.astype({**numbers, **dict.fromkeys(metric_columns.values(), "float64")})


def measurements_frame(store: Store, stored: StoredStudy) -> Frame:
    """Return one row per number that a finished trial recorded on its way: arm, role, seed, metric, epoch, value.

    In plan order, then by epoch; every metric, be it declared or not.
    """
    import pandas

    names = ("arm", "role", "seed", "metric", "epoch", "value")
    rows = [
        (row.arm, row.role, row.seed, row.metric, row.epoch, read_number(row.value, row.kind))
        for row in measurements_of(store, stored.id)
    ]
    frame = pandas.DataFrame(rows, columns=list(names), dtype=object)
    return frame.astype({"seed": "int64", "epoch": "int64", "value": "float64"})


def effects_frame(analysis: Analysis) -> Frame:
    """Return one row per comparison and metric, in the order of the report: what was compared, and what came out.

    ``mean`` is in the metric's own unit and sign, ``low`` and ``high`` are the ends of its interval. Only the primary
    metric has p-values (``p`` of this comparison alone, ``adjusted`` for all of them) and a ``verdict``.
    """
    import pandas

    rows = [
        {
            "design": design.name,
            "row": row.name,
            "title": row.title,
            "arm": row.arm or None,
            "other": row.other or None,
            "metric": name,
            "n": effect.n,
            "mean": effect.mean,
            "sd": effect.sd,
            "se": effect.se,
            "low": effect.interval.low if effect.interval else None,
            "high": effect.interval.high if effect.interval else None,
            "p": effect.conclusion.p if effect.conclusion else None,
            "adjusted": effect.conclusion.adjusted if effect.conclusion else None,
            "verdict": effect.conclusion.verdict if effect.conclusion else None,
        }
        for design in analysis.designs
        for row in (*design.comparisons, *([design.total] if design.total else []))
        for name, effect in row.effects.items()
    ]
    columns = list(_EFFECT_COLUMNS)
    numbers = ("mean", "sd", "se", "low", "high", "p", "adjusted")
    frame = pandas.DataFrame(rows, columns=columns, dtype=object)
    return frame.astype({"n": "int64", **dict.fromkeys(numbers, "float64")})


def differing(plan: Plan) -> list[str]:
    """Return the dotted paths whose value is not the same in every arm, or is tuned, in the order of the settings."""
    trees = [dict(leaves(arm.settings)) for arm in plan.arms]
    paths = dict.fromkeys(path for tree in trees for path in tree)
    tuned = plan.study.tune
    return [
        path
        for path in paths
        if path in tuned or len({canonical([tree.get(path), path in tree]) for tree in trees}) > 1
    ]


def _cells(settings: Settings) -> dict[str, Any]:
    """Return settings as table cells: numbers and text as they are, all else as a study would write it."""
    plain = (int, float, str)
    return {
        path: value if isinstance(value, plain) and not isinstance(value, bool) else show(value)
        for path, value in leaves(settings)
    }


def _columns(names: list[str], *, taken: set[str], prefix: str) -> Mapping[str, str]:
    return {name: f"{prefix}{name}" if name in taken else name for name in names}
