"""From the store's rows to what became of each arm at each seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ablate.analyse.findings import Status, TrialResult
from ablate.errors import StoreError
from ablate.plan.trials import Plan, make_plan
from ablate.stats.intervals import is_usable
from ablate.store.facts import StoredStudy, StoredTrial, read_number, results_of
from ablate.store.store import Store
from ablate.study.document import Document
from ablate.study.schema import from_document

Results = Mapping[str, tuple[TrialResult, ...]]


def stored_plan(stored: StoredStudy) -> Plan:
    """Expand a study version as it was recorded. Raises StoreError where this version of ablate can't read it."""
    spec = dict(stored.spec)
    primary = stored.plan["primary"]
    spec["metrics"] = {primary: spec["metrics"][primary], **spec["metrics"]}  # JSON in the store may be sorted
    try:
        study = from_document(spec, Document(stored.file or stored.name, spec, {}), stored.profile)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        message = f"the study `{stored.title}` was recorded by another version of ablate: `{field}` is unknown here"
        raise StoreError(message, hint="report it with the version that ran it") from None
    return make_plan(study)


def read_results(store: Store, stored: StoredStudy, plan: Plan) -> Results:
    """Return, by arm in plan order, one result per planned seed; a trial that was never asked for is ``waiting``."""
    trials, measurements = results_of(store, stored.id)  # read at once: a trial may end at any moment
    return results_from(trials, measurements, plan)


def results_from(trials: Sequence[StoredTrial], measurements: Sequence[Any], plan: Plan) -> Results:
    """Order what was read from the store as ``read_results`` gives it."""
    found = {(row.arm, row.seed): row for row in trials}
    values: dict[tuple[str, int], dict[str, float]] = {}
    for row in measurements:
        values.setdefault((row.arm, row.seed), {})[row.metric] = read_number(row.value, row.kind)
    results: dict[str, list[TrialResult]] = {arm.name: [] for arm in plan.arms}
    for replicate in plan.replicates:
        key = (replicate.arm, replicate.seed)
        if key in found:
            result = _result(found[key], values.get(key, {}), plan.study.primary)
        else:
            result = TrialResult(replicate.seed, replicate.trial.fingerprint, "waiting", "waiting")
        results[replicate.arm].append(result)
    return {arm: tuple(each) for arm, each in results.items()}


def _result(row: StoredTrial, values: Mapping[str, float], primary: str) -> TrialResult:
    status, reason = _status(row, values, primary)
    return TrialResult(
        seed=row.seed,
        fingerprint=row.fingerprint,
        state=row.state,
        status=status,
        outcome=row.outcome,
        attempts=row.attempts,
        seconds=row.seconds,
        reason=reason,
        code_sha256=row.code_sha256,
        environment=json.loads(row.environment_json or "{}"),
        values=values,
    )


def _status(row: StoredTrial, values: Mapping[str, float], primary: str) -> tuple[Status, str]:
    if row.state == "failed":
        return "failed", row.reason or row.error or row.outcome or "no reason was recorded"
    if row.state != "done":
        return ("running" if row.state == "running" else "waiting"), ""
    if row.outcome == "diverged":
        return "diverged", ""
    if primary not in values:
        return "failed", f"the task returned no {primary}"
    return ("finished" if is_usable(values[primary]) else "diverged"), ""
