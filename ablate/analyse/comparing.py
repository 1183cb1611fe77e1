"""``ablate compare``: arms of two studies, or of one before and after it was trained afresh, by the same engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ablate.analyse.analysis import DRIFT_FACTS, analyse, arm_result, metric_infos
from ablate.analyse.effects import Sample, compare
from ablate.analyse.findings import COMPARE, Analysis, ArmResult, Comparison, DesignResult, Family, TrialResult, count
from ablate.analyse.verdicts import Judged, judge
from ablate.errors import AblateError
from ablate.plan.arms import Arm, Contrast
from ablate.plan.outcomes import Status, status_of
from ablate.plan.trials import make_plan
from ablate.store.facts import EarlierResult, StoredStudy, earlier_results_of, stored_study
from ablate.store.store import Store
from ablate.study.schema import Study
from ablate.study.settings import differences

BEFORE, AFTER = "A", "B"


def compare_studies(first: tuple[Store, StoredStudy], second: tuple[Store, StoredStudy]) -> Analysis:
    """Return what differs between the arms of two studies that have one name. Raises AblateError where nothing can be.

    An arm that both have as the same trials is left out: it is one and the same result. So is a metric that one of the
    two does not declare.
    """
    before, after = (analyse(*side) for side in (first, second))
    old, new = stored_study(first[1]), stored_study(second[1])
    _check_metric(before, after)
    sides = {
        name: (arm, _reported(after, name))
        for name in dict.fromkeys(each.name for each in before.arms)
        if (arm := _reported(before, name)) is not None
    }
    pairs = {name: (a, b) for name, (a, b) in sides.items() if b is not None}
    if not pairs:
        raise AblateError(f"`{before.title}` and `{after.title}` have no arm of the same name", where="compare")
    differing = _distinct({name: (a, b) for name, (a, b) in pairs.items() if not _are_same(a, b)})
    if not differing:
        hint = "compare studies whose settings differ, or one study before and after `ablate run --fresh`"
        names = [_with_version(stored, first[1], second[1]) for stored in (first[1], second[1])]
        raise AblateError(f"every arm of `{names[0]}` and `{names[1]}` is the same trials", hint=hint)
    names = [_with_version(stored, first[1], second[1]) for stored in (first[1], second[1])]
    settings = [{arm.name: arm.settings for arm in make_plan(study).arms} for study in (old, new)]  # once, not per arm
    changes = {
        name: tuple(map(str, differences(*(side[name] for side in settings))))
        for name in differing
        if all(name in side for side in settings)
    }
    common = {name: spec for name, spec in new.metrics.items() if name in old.metrics}
    return _compared(new.model_copy(update={"metrics": common}), after, differing, names, changes)


def compare_with_earlier(store: Store, stored: StoredStudy) -> Analysis:
    """Return what changed where a study was trained afresh. Raises AblateError where no trial has an earlier result."""
    after = analyse(store, stored)
    study = stored_study(stored)
    earlier = earlier_results_of(store, stored.id)
    pairs: dict[str, tuple[ArmResult, ArmResult]] = {}
    for arm in after.arms:
        trials = tuple(_earlier(arm, each, study) for each in earlier if (each.arm, each.role) == (arm.name, arm.role))
        if trials and (arm.role == "main" or arm.name not in pairs):
            told = Arm(arm.name, arm.title, arm.steps, {})
            usual = dict.fromkeys(DRIFT_FACTS)
            pairs[arm.name] = (arm_result(told, arm.role, trials, study, usual, {}), arm)
    if not pairs:
        hint = "`ablate run --fresh` trains again what other code trained; two studies are compared as `compare A B`"
        raise AblateError(f"no trial of `{stored.title}` has a result from before it was trained afresh", hint=hint)
    return _compared(study, after, _distinct(pairs), [f"{stored.title} before", f"{stored.title} after"], {})


def _reported(analysis: Analysis, name: str) -> ArmResult | None:
    """Return an arm with the seeds that its table reports: the fresh ones, where all arms have them."""
    roles = {arm.role: arm for arm in analysis.arms if arm.name == name and arm.trials}
    confirmed = any(design.role == "confirm" and design.name != "path" for design in analysis.designs)
    return (roles.get("confirm") if confirmed else None) or roles.get("main")


def _check_metric(before: Analysis, after: Analysis) -> None:
    primary = after.primary
    other = next((metric for metric in before.metrics if metric.name == primary.name), None)
    if other is None:
        message = f"`{before.title}` has no metric `{primary.name}`, the primary one of `{after.title}`"
        theirs = ", ".join(f"`{metric.name}`" for metric in before.metrics)
        raise AblateError(message, where="compare", hint=f"it has {theirs}; the first of the later study is compared")
    if other.goal != primary.goal:
        raise AblateError(f"`{primary.name}` has the goal {other.goal} in one study and {primary.goal} in the other")


def _are_same(before: ArmResult, after: ArmResult) -> bool:
    """Tell whether the seeds that both have are one and the same trials: then there is nothing to compare."""
    old, new = ({trial.seed: trial.fingerprint for trial in arm.trials} for arm in (before, after))
    common = old.keys() & new.keys()
    return bool(common) and all(old[seed] == new[seed] for seed in common)


def _distinct(pairs: Mapping[str, tuple[ArmResult, ArmResult]]) -> dict[str, tuple[ArmResult, ArmResult]]:
    """Return the arms without those that are the same trials as another, under the name of another design."""
    first: dict[tuple[str, ...], str] = {}
    for name, (before, after) in pairs.items():
        first.setdefault(tuple(trial.fingerprint for trial in (*before.trials, *after.trials)), name)
    return {name: pairs[name] for name in first.values()}


def _with_version(stored: StoredStudy, first: StoredStudy, second: StoredStudy) -> str:
    return f"{stored.title}:{stored.version}" if first.title == second.title else stored.title


def _earlier(arm: ArmResult, found: EarlierResult, study: Study) -> TrialResult:
    now = next(trial for trial in arm.trials if trial.seed == found.seed)
    status: Status = status_of("done", found.outcome, found.metrics.get(study.primary))
    return TrialResult(
        seed=found.seed,
        fingerprint=f"{now.fingerprint}:{found.claim}",
        state="done",
        status=status,
        outcome=found.outcome,
        seconds=found.seconds,
        code_sha256=found.code_sha256,
        environment=found.environment,
        values=found.metrics,
    )


def _compared(
    study: Study,
    after: Analysis,
    pairs: Mapping[str, tuple[ArmResult, ArmResult]],
    names: list[str],
    changes: Mapping[str, tuple[str, ...]],
) -> Analysis:
    """Return an analysis whose one design compares B with A, arm by arm; p is corrected for these comparisons."""
    arms: dict[str, ArmResult] = {}
    for name, (old, new) in pairs.items():
        arms[f"{BEFORE}/{name}"] = replace(old, name=f"{BEFORE}/{name}", role="main", drifts=())
        arms[f"{AFTER}/{name}"] = replace(new, name=f"{AFTER}/{name}", role="main")
    rows = {name: _row(study, name, arms, changes.get(name, ())) for name in pairs}
    primary = metric_infos(study)[0]
    judged = {name: _judged(row, [arms[arm] for arm, _ in row.weights]) for name, row in rows.items()}
    plain = study.model_copy(update={"seeds": study.seeds.model_validate([1])})  # one look at all there is
    tests = judge(plain, primary, judged, len(rows))
    comparisons = []
    for name, row in rows.items():
        effects = {**row.effects, primary.name: replace(row.effects[primary.name], conclusion=tests[name])}
        comparisons.append(replace(row, effects=effects))
    trained = [trial for arm in arms.values() for trial in arm.trials]
    design = DesignResult(COMPARE, tuple(arms), tuple(comparisons), count(trained), 0.0)
    return replace(
        after,
        title=f"{names[0]} and {names[1]}",
        question="",
        metrics=metric_infos(study),
        looks=(),
        weights=(),
        half_width=None,
        fresh_seeds=(),
        family=Family(len(rows)),
        later_versions=(),
        arms=tuple(arms.values()),
        designs=(design,),
        counts=count(trained),
        source="",
        assumed={},
        scope="test-set",
    )


def _row(study: Study, name: str, arms: Mapping[str, ArmResult], changes: tuple[str, ...]) -> Comparison:
    old, new = f"{BEFORE}/{name}", f"{AFTER}/{name}"
    seeds = tuple(dict.fromkeys(trial.seed for arm in (old, new) for trial in arms[arm].trials))
    shared = set(arms[old].cells[study.primary].values) & set(arms[new].cells[study.primary].values)
    fixed = study.analysis.model_copy(
        update={"scope": "test-set", **({} if shared else {"pairing": "none"})}
    )  # seeds that both have pair them; studies without one are two samples
    plain = study.model_copy(update={"analysis": fixed, "seeds": study.seeds.model_validate([1])})
    contrast = Contrast(COMPARE, name, ((new, 1.0), (old, -1.0)), new, old, name)
    found = compare(plain, contrast, Sample(arms, seeds, study.analysis.alpha))
    notes = [*changes, *_drift_notes(arms[old], arms[new])]
    return replace(found, changes=changes, note="; ".join(notes))


def _drift_notes(old: ArmResult, new: ArmResult) -> Iterator[str]:
    """Yield what B ran on that A did not."""
    if (codes := {t.code_sha256 for t in old.trials} ^ {t.code_sha256 for t in new.trials}) and None not in codes:
        yield "other code"
    for fact in DRIFT_FACTS:
        before, after = (sorted({t.environment.get(fact, "") for t in arm.trials} - {""}) for arm in (old, new))
        if before and after and before != after:
            yield f"{fact} {', '.join(before)} → {', '.join(after)}"


def _judged(row: Comparison, arms: Sequence[ArmResult]) -> Judged:
    lifeless, unfinished = any(arm.identical_seeds for arm in arms), any(arm.is_unfinished for arm in arms)
    return Judged(row, lifeless=lifeless, unfinished=unfinished)
