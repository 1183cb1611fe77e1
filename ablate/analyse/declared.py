"""What was declared when: how many comparisons there are to correct for, and which were changed after a look.

A comparison's results are seen from the moment its first seed has finished in all of its arms. What is declared about
it later than that is allowed, and said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ablate.analyse.findings import Family, TrialResult
from ablate.plan.trials import Plan
from ablate.store.facts import StoredVersion

ADDED = "seeds added after results; the error rate is not guaranteed"

# fields of a frozen plan, and how a change of them is told
_FIELDS = {
    "goal": "the goal changed after results",
    "margin": "margin set after data",
    "on_diverged": "on_diverged set after data",
    "on_oom": "on_oom set after data",
    "analysis": "the analysis changed after results",
    "confirm_seeds": "confirm_seeds changed after results",
}


def family_of(plan: Plan, versions: Sequence[StoredVersion]) -> Family:
    """Count the comparisons of this plan, and those of the study's other versions that this one no longer has."""
    return Family(len(plan.family), plan.withdrawn(version.plan for version in versions))


def later_versions(plan: Plan, current: StoredVersion, versions: Sequence[StoredVersion]) -> tuple[int, ...]:
    """Return the later versions of a study that compare the same on other seeds: who goes back has seen those too."""
    own = plan.family.keys()
    return tuple(
        version.version
        for version in versions
        if version.version > current.version
        and version.plan["seeds"] != current.plan["seeds"]
        and plan.keys_of(version.plan) & own
    )


def remarks_of(
    key: str, ended: Sequence[Mapping[int, float]], current: StoredVersion, versions: Sequence[StoredVersion],
    declared: Mapping[int, Collection[str]],
) -> tuple[str, ...]:  # fmt: skip
    """Return what was changed about a comparison after its first result.

    ``ended`` is that of each of its arms (``first_ended``); ``declared`` has the keys of each version's comparisons, by
    version id.
    """
    seen = _first_seen(ended)
    if seen is None or current.written <= seen:
        return ()
    before = [version for version in versions if version.written <= seen and key in declared[version.id]]
    if not before:
        return ("declared after results were seen",)
    return tuple(_changes(before[-1].plan, current.plan))


def first_ended(trials: Sequence[TrialResult]) -> dict[int, float]:
    """Return when each seed of an arm first had a result."""
    return {trial.seed: trial.first_ended for trial in trials if trial.first_ended is not None}


def _first_seen(ended: Sequence[Mapping[int, float]]) -> float | None:
    """Return when a seed had first finished in every arm of a comparison."""
    common = set.intersection(*(set(each) for each in ended)) if ended else set()
    return min(map(max, zip(*([each[seed] for seed in common] for each in ended), strict=True)), default=None)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = before["seeds"], now["seeds"]
    if old != new:
        more = isinstance(new, list) and isinstance(old, list) and new[: len(old)] == old
        yield ADDED if more else "seeds changed after results; the error rate is not guaranteed"
    if before["primary"] != now["primary"]:
        yield "the primary metric changed after results"
        if now["margin"] is not None:
            yield "margin set after data"
        return  # goal and score of another metric can't be compared with this one's
    for field, text in _FIELDS.items():
        if field in before and before[field] != now[field]:
            yield text
