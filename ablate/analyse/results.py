"""From the store's rows to what became of each arm at each seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ablate.analyse.findings import TrialResult
from ablate.errors import StoreError
from ablate.plan.outcomes import Status, Told, status_of
from ablate.plan.trials import Plan, make_plan
from ablate.store.facts import IMPORTED, StoredStudy, StoredTrial, read_number, results_of, versions_of
from ablate.store.store import Store
from ablate.study.document import Document
from ablate.study.schema import Role, Study, from_document

Results = Mapping[tuple[str, Role], tuple[TrialResult, ...]]


def stored_study(stored: StoredStudy) -> Study:
    """Return a study version as it was recorded. Raises StoreError where this version of ablate can't read it."""
    spec = dict(stored.spec)
    primary = stored.plan["primary"]
    spec["metrics"] = {primary: spec["metrics"][primary], **spec["metrics"]}  # JSON in the store may be sorted
    try:
        return from_document(spec, Document(stored.file or stored.name, spec, {}), stored.profile)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        message = f"the study `{stored.title}` was recorded by another version of ablate: `{field}` is unknown here"
        raise StoreError(message, hint="report it with the version that ran it") from None


def read_results(store: Store, stored: StoredStudy) -> tuple[Plan, Results]:
    """Return the plan as far as it has grown, and by arm and role one result per planned seed, in plan order.

    A trial that was never asked for is ``waiting``.
    """
    trials, measurements = results_of(store, stored.id)  # read at once: a trial may end at any moment
    return results_from(store, stored, trials, measurements)


def results_from(
    store: Store, stored: StoredStudy, trials: Sequence[StoredTrial], measurements: Sequence[Any]
) -> tuple[Plan, Results]:
    """Order what was read from the store as ``read_results`` gives it."""
    study = stored_study(stored)
    values: dict[tuple[str, Role, int], dict[str, float]] = {}
    for row in measurements:
        values.setdefault((row.arm, row.role, row.seed), {})[row.metric] = read_number(row.value, row.kind)
    found: dict[tuple[str, Role, int], TrialResult] = {}
    told: dict[str, Told] = {}
    for trial in trials:
        key = (trial.arm, trial.role, trial.seed)
        found[key] = _result(trial, values.get(key, {}), study.primary)
        told[trial.fingerprint] = found[key].told(study.primary)
    plan = make_plan(study, told, [version.plan for version in versions_of(store, stored.name, stored.profile)])
    results: dict[tuple[str, Role], list[TrialResult]] = {(arm.name, "main"): [] for arm in plan.arms}
    for replicate in plan.replicates:
        result = found.get((replicate.arm, replicate.role, replicate.seed))
        if result is None:
            result = TrialResult(replicate.seed, replicate.trial.fingerprint, "waiting", "waiting")
        results.setdefault((replicate.arm, replicate.role), []).append(result)
    return plan, {key: tuple(each) for key, each in results.items()}


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
        first_ended=0.0 if row.source == IMPORTED else row.first_ended,  # it was there before all that is declared
        environment={key: str(value) for key, value in json.loads(row.environment_json or "{}").items()},
        values=values,
        source=row.source,
    )


def _status(row: StoredTrial, values: Mapping[str, float], primary: str) -> tuple[Status, str]:
    status = status_of(row.state, row.outcome, values.get(primary))
    if status != "failed":
        return status, ""
    if row.state == "failed":
        return status, row.reason or row.error or row.outcome or "no reason was recorded"
    return status, f"the task returned no {primary}"
