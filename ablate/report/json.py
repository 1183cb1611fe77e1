"""Everything that was found, as strict JSON: every number, every seed, and what was compared how.

``ablate-report/v1``. Numbers are in the metrics' own units and signs, times in seconds. A value that is not finite is
null, with the kind (``nan``, ``+inf``, ``-inf``) beside it. Further versions of ablate may add keys.
docs/report-files.md says what each is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ablate.analyse.curves import Curve
from ablate.analyse.findings import (
    Analysis,
    ArmResult,
    Cell,
    Comparison,
    Conclusion,
    Counts,
    DesignResult,
    Effect,
    Interval,
    TrialResult,
    Tuning,
)
from ablate.report.designs import ESTIMANDS

SCHEMA = "ablate-report/v1"


def render(analysis: Analysis, curves: Sequence[Curve] | None = None) -> str:
    """Return the whole analysis as JSON text, in ASCII and with keys in a fixed order; each curve is on one line."""
    report = json.dumps(_report(analysis), indent=2, allow_nan=False)
    if curves is None:
        return report + "\n"
    lines = ",".join(f"\n    {json.dumps(_curve(curve), allow_nan=False)}" for curve in curves)
    return f'{report.removesuffix("}").rstrip()},\n  "curves": [{lines}\n  ]\n}}\n'


def _curve(curve: Curve) -> dict[str, Any]:
    values = [value if math.isfinite(value) else _number(value)["kind"] for value in curve.values]
    return {**asdict(curve), "values": values}


def _report(analysis: Analysis) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": {
            "title": analysis.title,
            "name": analysis.name,
            "profile": analysis.profile,
            "version": analysis.version,
            "question": analysis.question,
            "task": analysis.task,
        },
        "method": {
            "select": "the value that each trial returned at its end",
            "spread": "sample standard deviation over seeds (ddof 1)",
            "interval": "Student's t for each comparison by itself: of each seed's own contrast, or Welch-"
            "Satterthwaite where pairing is none; each effect names its own",
            "level": 1 - analysis.alpha,
            "alpha": analysis.alpha,
            "correction": analysis.correction,
            "pairing": analysis.pairing,
            "scope": analysis.scope,
            "looks": list(analysis.looks),
            "weights": list(analysis.weights),
            "half_width": analysis.half_width,
            "pilot": analysis.pilot,
            "family": {**asdict(analysis.family), "size": analysis.family.size},
            "later_versions": list(analysis.later_versions),
            "cost": "wall seconds of the trials with a result, summed over seeds; of an arm, with those of the "
            "shorter trials that they went on from",
            "gpus": analysis.gpus,
        },
        "metrics": [{**asdict(metric), "primary": metric == analysis.primary} for metric in analysis.metrics],
        "seeds": list(analysis.seeds),
        "fresh_seeds": list(analysis.fresh_seeds),
        "counts": _counts(analysis.counts),
        "arms": [_arm(arm) for arm in analysis.arms],
        "designs": [_design(design) for design in analysis.designs],
        **({"tuning": _tuning(analysis.tuning)} if analysis.tuning else {}),
        "reference": analysis.source or None,
        "assumed": dict(analysis.assumed),
    }


def _tuning(tuning: Tuning) -> dict[str, Any]:
    return {
        "ranges": dict(tuning.ranges),
        "sampler": tuning.sampler,
        "candidates": tuning.size,
        "seeds": list(tuning.seeds),
        "prune": tuning.prune,
        "seconds": _finite(tuning.seconds),
        "arms": [
            {
                "arm": arm.arm,
                "complete": arm.is_complete,
                "chosen": None if arm.chosen is None else arm.chosen.number,
                "edges": [asdict(edge) for edge in arm.edges],
                "candidates": [
                    {
                        "number": each.number,
                        "settings": dict(each.settings),
                        "status": each.status,
                        "mean": _finite(each.mean),
                        "trials": [{"seed": trial.seed, "fingerprint": trial.fingerprint} for trial in each.trials],
                    }
                    for each in arm.candidates
                ],
            }
            for arm in tuning.arms
        ],
    }


def _counts(counts: Counts) -> dict[str, int]:
    return {**asdict(counts), "missing": counts.missing}


def _arm(arm: ArmResult) -> dict[str, Any]:
    return {
        "name": arm.name,
        "role": arm.role,
        "title": arm.title,
        "steps": list(arm.steps),
        "metrics": {name: _cell(cell) for name, cell in arm.cells.items()},
        "published": dict(arm.published),
        "counts": _counts(arm.counts),
        "failure": arm.failure or None,
        "identical_seeds": arm.identical_seeds,
        "drifts": [asdict(drift) for drift in arm.drifts],
        "mismatches": [
            {**asdict(each), "first": _number(each.first), "again": _number(each.again)} for each in arm.mismatches
        ],
        "seconds": _finite(arm.seconds),
        "energy_j": _finite(arm.energy_j),
        "examples": arm.examples,
        "top": arm.top,
        "facts": {name: _finite(value) for name, value in arm.facts.items()},
        "trials": [_trial(trial) for trial in arm.trials],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "n": cell.n,
        "mean": _finite(cell.mean),
        "sd": _finite(cell.sd),
        "se": _finite(cell.se),
        "values": _by_seed(cell.values),
        "undefined": list(cell.undefined),
        "scored": list(cell.scored),
    }


def _trial(trial: TrialResult) -> dict[str, Any]:
    return {
        "seed": trial.seed,
        "status": trial.status,
        "state": trial.state,
        "source": trial.source,
        "outcome": trial.outcome,
        "attempts": trial.attempts,
        "seconds": _finite(trial.seconds),
        "reason": trial.reason or None,
        "code_sha256": trial.code_sha256,
        "environment": dict(trial.environment),
        "fingerprint": trial.fingerprint,
        "values": {name: _number(value) for name, value in trial.values.items()},
    }


def _design(design: DesignResult) -> dict[str, Any]:
    return {
        "name": design.name,
        "role": design.role,
        "components": list(design.components),
        "estimand": ESTIMANDS[design.name],
        "arms": list(design.arms),
        "best": list(design.best),
        "counts": _counts(design.counts),
        "seconds": _finite(design.seconds),
        "comparisons": [_comparison(comparison) for comparison in design.comparisons],
        "total": None if design.total is None else _comparison(design.total),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": comparison.name,
        "title": comparison.title,
        "arm": comparison.arm or None,
        "other": comparison.other or None,
        "weights": [{"arm": arm, "weight": weight} for arm, weight in comparison.weights],
        "changes": list(comparison.changes),
        "branch": comparison.branch,
        "note": comparison.note or None,
        "identical": comparison.identical,
        "claimed": _finite(comparison.claimed),
        "networks_differ": _finite(comparison.networks_differ),
        "effects": {name: _effect(effect) for name, effect in comparison.effects.items()},
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "n": effect.n,
        "mean": _finite(effect.mean),
        "sd": _finite(effect.sd),
        "se": _finite(effect.se),
        "interval": _interval(effect.interval),
        "differences": _by_seed(effect.differences),
        "dropped": list(effect.dropped),
        "withheld": list(effect.withheld),
        "why": effect.why or None,
        "method": effect.method,
        "df": _finite(effect.df),
        "conclusion": None if effect.conclusion is None else _conclusion(effect.conclusion),
    }


def _conclusion(test: Conclusion) -> dict[str, Any]:
    values = asdict(test)
    return {name: _finite(value) if isinstance(value, float) else value for name, value in values.items()}


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {name: _finite(value) for name, value in asdict(interval).items()}


def _by_seed(values: Mapping[int, float]) -> list[dict[str, Any]]:
    return [{"seed": seed, "value": _finite(value)} for seed, value in values.items()]


def _number(value: float) -> dict[str, Any]:
    if math.isfinite(value):
        return {"value": value, "kind": "num"}
    return {"value": None, "kind": "nan" if math.isnan(value) else "+inf" if value > 0 else "-inf"}


def _finite(value: float | None) -> float | None:
    """Derived numbers are finite but for overflow, which strict JSON can't hold."""
    return value if value is not None and math.isfinite(value) else None
