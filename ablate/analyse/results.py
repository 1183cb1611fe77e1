"""From the store's rows to what became of each arm at each seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from ablate.analyse.findings import TrialResult
from ablate.plan.outcomes import Status, status_of
from ablate.plan.trials import UNTOLD, Plan, Replicate, make_plan
from ablate.store.facts import (
    IMPORTED,
    StoredStudy,
    StoredTrial,
    read_all_metrics,
    stored_study,
    trials_of,
    versions_of,
)
from ablate.store.store import Store
from ablate.study.schema import Role

UNCHOSEN = "unchosen:"  # in place of a fingerprint, which hangs on settings that are not chosen
_HOPE: Mapping[bool, Status] = {True: "failed", False: "waiting"}

Results = Mapping[tuple[str, Role], tuple[TrialResult, ...]]


def read_results(store: Store, stored: StoredStudy) -> tuple[Plan, Results]:
    """Return the plan as far as it has grown, and by arm and role one result per planned seed, in plan order.

    A trial that was never asked for is ``waiting``.
    """
    return results_from(store, stored, trials_of(store, stored.id))


def results_from(store: Store, stored: StoredStudy, trials: Sequence[StoredTrial]) -> tuple[Plan, Results]:
    """Order what was read from the store as ``read_results`` gives it."""
    study = stored_study(stored)
    primary = study.primary
    numbers = read_all_metrics([trial.metrics_json for trial in trials])
    found = [_result(trial, values, primary) for trial, values in zip(trials, numbers, strict=True)]
    told = {result.fingerprint: result.told(primary) for result in found} if study.grows else UNTOLD
    plan = make_plan(study, told, [version.plan for version in versions_of(store, stored.name, stored.profile)])
    results: dict[tuple[str, Role], list[TrialResult]] = {(arm.name, "main"): [] for arm in plan.arms}
    for arm, role, result in _in_order(plan, trials, found):
        results.setdefault((arm, role), []).append(result)
    for arm, tuned in plan.tuned.items():
        if tuned.chosen is None:
            results[arm, "main"] = [_unchosen(arm, seed, failed=tuned.is_complete) for seed in study.seeds.first]
    return plan, {key: tuple(each) for key, each in results.items()}


def _in_order(
    plan: Plan, trials: Sequence[StoredTrial], found: Sequence[TrialResult]
) -> Iterator[tuple[str, Role, TrialResult]]:
    """Yield the result of each planned trial with its arm and role. Of what grows, the store may hold more, or less."""
    if not plan.study.grows and len(trials) == sum(map(len, plan.seeds.values())):
        yield from ((trial.arm, trial.role, result) for trial, result in zip(trials, found, strict=True))
        return
    here = {(trial.arm, trial.role, trial.fingerprint): result for trial, result in zip(trials, found, strict=True)}
    for each in plan.replicates:
        result = here.get((each.arm, each.role, each.trial.fingerprint)) or _unasked(each)
        yield each.arm, each.role, result._replace(candidate=each.candidate)


def failed_results(trials: Iterable[StoredTrial], primary: str) -> Results:
    """Return the results of trials that are known to have no value of the primary metric, by arm and role."""
    results: dict[tuple[str, Role], tuple[TrialResult, ...]] = {}
    for trial in trials:
        key = (trial.arm, trial.role)
        results[key] = (*results.get(key, ()), _result(trial, {}, primary))
    return results


def _unasked(replicate: Replicate) -> TrialResult:
    return TrialResult(replicate.seed, replicate.trial.fingerprint, "waiting", "waiting")


def _unchosen(arm: str, seed: int, *, failed: bool) -> TrialResult:
    """Return what there is of a trial whose settings are not chosen: it waits for that, or for ever."""
    reason = "none of the candidates that tuned this arm has a value" if failed else ""
    return TrialResult(seed, f"{UNCHOSEN}{arm}:{seed}", "failed" if failed else "waiting", _HOPE[failed], reason=reason)


def _result(row: StoredTrial, values: Mapping[str, float], primary: str) -> TrialResult:
    status, reason = _status(row, values, primary)
    environment, reused_s = _environment(row.environment_json or "{}")
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
        environment=environment,
        values=values,
        source=row.source,
        reused_s=reused_s,
    )


@lru_cache(maxsize=256)  # there are few of them, and a study may have 100,000 trials
def _environment(text: str) -> tuple[Mapping[str, str], float]:
    """Return the facts of an attempt, and the seconds of what it reused."""
    facts = {key: str(value) for key, value in json.loads(text).items()}
    try:
        reused = float(facts.get("reused_seconds", 0))
    except ValueError:  # a task of somebody's calls something else so
        reused = 0.0
    return facts, reused if 0 <= reused < math.inf else 0.0


def _status(row: StoredTrial, values: Mapping[str, float], primary: str) -> tuple[Status, str]:
    status = status_of(row.state, row.outcome, values.get(primary))
    if status != "failed":
        return status, ""
    if row.state == "failed":
        return status, row.reason or row.error or row.outcome or "no reason was recorded"
    return status, f"the task returned no {primary}"
