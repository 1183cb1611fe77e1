"""From the store's rows to what became of each arm at each seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter

from ablate.analyse.findings import TrialResult
from ablate.plan.outcomes import Status, status_of
from ablate.plan.trials import UNTOLD, Plan, Replicate, make_plan
from ablate.stats.intervals import are_usable
from ablate.store.facts import (
    IMPORTED,
    StoredStudy,
    StoredTrial,
    read_all_metrics,
    stored_study,
    unsorted_trials_of,
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
    return results_from(store, stored, unsorted_trials_of(store, stored.id))


def results_from(store: Store, stored: StoredStudy, trials: Sequence[StoredTrial]) -> tuple[Plan, Results]:
    """Order what was read from the store as ``read_results`` gives it."""
    study = stored_study(stored)
    primary = study.primary
    found: Results = {
        place: _results(its, read_all_metrics([trial.metrics_json for trial in its]), primary)
        for place, its in _in_places(trials).items()
    }
    told = {each.fingerprint: each.told(primary) for its in found.values() for each in its} if study.grows else UNTOLD
    plan = make_plan(study, told, [version.plan for version in versions_of(store, stored.name, stored.profile)])
    if study.grows or len(trials) != sum(map(len, plan.seeds.values())):
        found = _as_planned(plan, found)
    results: dict[tuple[str, Role], tuple[TrialResult, ...]] = {(arm.name, "main"): () for arm in plan.arms}
    results |= {place: found[place] for place in plan.seeds if place in found}
    for arm, tuned in plan.tuned.items():
        if tuned.chosen is None:
            results[arm, "main"] = tuple(_unchosen(arm, seed, failed=tuned.is_complete) for seed in study.seeds.first)
    return plan, results


def _in_places(trials: Iterable[StoredTrial]) -> dict[tuple[str, Role], list[StoredTrial]]:
    """Return the trials of each arm and role in plan order."""
    places: dict[tuple[str, Role], list[StoredTrial]] = {}
    for trial in trials:
        places.setdefault((trial.arm, trial.role), []).append(trial)
    for its in places.values():
        its.sort(key=attrgetter("position"))
    return places


def _as_planned(plan: Plan, found: Results) -> Results:
    """Return the result of each planned trial. Of what grows, or runs only in part, the store has more, or less."""
    here = {(*place, result.fingerprint): result for place, its in found.items() for result in its}
    results: dict[tuple[str, Role], list[TrialResult]] = {}
    for each in plan.replicates:
        result = here.get((each.arm, each.role, each.trial.fingerprint)) or _unasked(each)
        results.setdefault((each.arm, each.role), []).append(result._replace(candidate=each.candidate))
    return {place: tuple(its) for place, its in results.items()}


def failed_results(trials: Iterable[StoredTrial], primary: str) -> Results:
    """Return the results of trials that are known to have no value of the primary metric, by arm and role."""
    return {place: _results(its, [{}] * len(its), primary) for place, its in _in_places(trials).items()}


def _unasked(replicate: Replicate) -> TrialResult:
    return TrialResult(replicate.seed, replicate.trial.fingerprint, "waiting", "waiting")


def _unchosen(arm: str, seed: int, *, failed: bool) -> TrialResult:
    """Return what there is of a trial whose settings are not chosen: it waits for that, or for ever."""
    reason = "none of the candidates that tuned this arm has a value" if failed else ""
    return TrialResult(seed, f"{UNCHOSEN}{arm}:{seed}", "failed" if failed else "waiting", _HOPE[failed], reason=reason)


def _results(
    trials: Sequence[StoredTrial], values: Sequence[Mapping[str, float]], primary: str
) -> tuple[TrialResult, ...]:
    """Return what became of trials with these final values. Column by column: row by row takes twice as long."""
    rows = dict(zip(StoredTrial._fields, zip(*trials, strict=True), strict=True))
    told: Sequence[tuple[Status, str]]
    if set(zip(rows["state"], rows["outcome"], strict=True)) == {("done", "ok")} and _are_usable(values, primary):
        told = [("finished", "")] * len(trials)  # which is nearly always so
    else:
        told = [_status(row, its, primary) for row, its in zip(trials, values, strict=True)]
    statuses, reasons = zip(*told, strict=True)
    environments, reused_s = zip(*map(_environment, rows["environment_json"]), strict=True)
    columns = {
        **rows,
        "status": statuses,
        "reason": reasons,
        # what is imported was there before all that is declared
        "first_ended": [0.0 if row.source == IMPORTED else row.first_ended for row in trials],
        "environment": environments,
        "values": values,
        "reused_s": reused_s,
    }
    return tuple(map(TrialResult._make, zip(*(columns[name] for name in TrialResult._fields), strict=True)))


def _are_usable(values: Sequence[Mapping[str, float]], metric: str) -> bool:
    return are_usable([its.get(metric, math.nan) for its in values])


@lru_cache(maxsize=256)  # there are few of them, and a study may have 100,000 trials
def _environment(text: str | None) -> tuple[Mapping[str, str], float]:
    """Return the facts of an attempt, and the seconds of what it reused."""
    facts = {key: str(value) for key, value in json.loads(text or "{}").items()}
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
