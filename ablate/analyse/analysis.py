"""``analyse``: one study version in the store to all its findings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from ablate.analyse.best import best_arms
from ablate.analyse.declared import ADDED, family_of, first_ended, later_versions, remarks_of
from ablate.analyse.effects import ArmScores, Sample, cell, compare, effect, sample_of, seeds_identical
from ablate.analyse.findings import (
    Analysis,
    ArmResult,
    Cell,
    Comparison,
    Conclusion,
    DesignResult,
    Drift,
    Effect,
    MetricInfo,
    Mismatch,
    TrialResult,
    count,
)
from ablate.analyse.results import Results, read_results
from ablate.analyse.tuning import tuning_of
from ablate.analyse.verdicts import Judged, judge
from ablate.plan.arms import Arm, Contrast
from ablate.plan.designs import BOTH, TOTAL
from ablate.plan.replication import adjusted
from ablate.plan.trials import Plan
from ablate.stats.intervals import are_usable, is_usable
from ablate.stats.replication import anytime_p
from ablate.store.facts import StoredStudy, StoredVersion, versions_of
from ablate.store.replays import Replay, replays_of
from ablate.store.scores import Scores, scores_of
from ablate.store.store import Store
from ablate.study.schema import BASELINE, FULL, Role, Study

FACTS = ("parameters", "flops", "images_per_s")


# what must not differ between the trials of a table; data only within an arm, for a step may change the data
DRIFT_FACTS = ("ablate", "cpu", "driver", "gpu", "python", "threads", "torch")
CODE = "code"
DATA = "data_sha256"

Arms = Mapping[tuple[str, Role], ArmResult]
Scored = Mapping[tuple[str, Role], ArmScores]


def analyse(store: Store, stored: StoredStudy) -> Analysis:
    """Return the findings of a study version as far as its trials have come. Same store, same findings.

    Raises StoreError where the store can't be read, or where another version of ablate wrote the study.
    """
    plan, results = read_results(store, stored)
    versions = versions_of(store, stored.name, stored.profile)
    study = plan.study
    scores = _scores(store, stored)
    arms = _with_mismatches(_arm_results(plan, results, scores), store, stored, tuple(study.metrics))
    family = family_of(plan, versions)
    compared = {
        (contrast.design, contrast.name): _compared(plan, contrast, arms, scores) for contrast in plan.contrasts
    }
    tests = _tests(plan, arms, scores, compared, family.size)
    current = next(version for version in versions if version.id == stored.id)
    tests = _with_remarks(plan, tests, results, current, versions)
    tests = _with_anytime(plan, tests, compared, family.size)
    return Analysis(
        title=stored.title,
        name=stored.name,
        profile=stored.profile,
        version=stored.version,
        question=study.question,
        task=study.task.label,
        metrics=metric_infos(study),
        seeds=study.seeds.numbers,
        fresh_seeds=study.fresh_seeds,
        looks=study.seeds.looks,
        weights=study.seeds.weights,
        half_width=study.seeds.half_width,
        pilot=study.seeds.pilot,
        alpha=study.analysis.alpha,
        correction=study.analysis.correction,
        pairing=study.analysis.pairing,
        scope=study.analysis.scope,
        family=family,
        later_versions=later_versions(plan, current, versions),
        gpus=study.resources.gpus,
        arms=tuple(arms.values()),
        designs=tuple(_design_results(plan, arms, scores, compared, tests)),
        counts=count(trial for trials in results.values() for trial in trials),
        source=study.reference.source if study.reference else "",
        assumed=study.assumed,
        tuning=tuning_of(plan, results),
    )


def metric_infos(study: Study) -> tuple[MetricInfo, ...]:
    return tuple(
        MetricInfo(name, each.goal, each.unit, each.title, each.margin, each.on_diverged, each.on_oom)
        for name, each in study.metrics.items()
    )


def _scores(store: Store, stored: StoredStudy) -> Scored:
    found: dict[tuple[str, Role], dict[int, Scores]] = {}
    for (arm, role, seed), scores in scores_of(store, stored.id).items():
        found.setdefault((arm, role), {})[seed] = scores
    return found


# --- arms ----------------------------------------------------------------------------------------------------------


def _arm_results(plan: Plan, results: Results, scores: Scored) -> Arms:
    usual = _usual_facts([trial for trials in results.values() for trial in trials if trial.has_result])
    arms = {arm.name: arm for arm in plan.arms}
    return {
        (name, role): arm_result(arms[name], role, trials, plan.study, usual, scores.get((name, role), {}))
        for (name, role), trials in results.items()
        if role != "tune"  # which is told of by itself: its values were chosen among
    }


def arm_result(
    arm: Arm,
    role: Role,
    trials: tuple[TrialResult, ...],
    study: Study,
    usual: Mapping[str, str | None],
    scores: ArmScores,
) -> ArmResult:
    """Return an arm with its cells. ``usual`` has, by fact, what most trials ran with; any other is marked as drift.

    It is empty where all trials ran with the same.
    """
    cells = {name: cell(trials, name, metric) for name, metric in study.metrics.items()}
    with_result = [trial for trial in trials if trial.has_result]
    seconds = [spent for trial in with_result if (spent := trial.whole_s) is not None]
    finished = [trial.values for trial in trials if trial.status == "finished"]
    facts = {name: _mean(finished, name) for name in FACTS}
    published = study.reference.values if study.reference else {}
    examples, top = _right_or_wrong(scores)
    return ArmResult(
        name=arm.name,
        title=arm.title,
        steps=arm.steps,
        trials=trials,
        cells=cells,
        counts=count(trials),
        seconds=sum(seconds) if seconds else None,
        energy_j=_energy(with_result),
        facts={name: mean for name, mean in facts.items() if mean is not None},
        published={metric: values[arm.name] for metric, values in published.items() if arm.name in values},
        identical_seeds=seeds_identical(cells),
        drifts=tuple(_drifts(with_result, usual)) if usual else (),
        role=role,
        examples=examples,
        top=top,
    )


def _energy(trials: Sequence[TrialResult]) -> float | None:
    """Return the joules of all these trials; None where one of them is not known, or not of its whole training."""
    if any(trial.reused_s for trial in trials):
        return None
    try:
        return math.fsum(float(trial.environment["energy_j"]) for trial in trials) if trials else None
    except (KeyError, ValueError):  # not measured; or a task of somebody's calls something else so
        return None


def _mean(numbers: Sequence[Mapping[str, float]], fact: str) -> float | None:
    found = [each[fact] for each in numbers if fact in each]
    usable = found if are_usable(found) else [value for value in found if is_usable(value)]
    return fmean(usable) if usable else None


def _right_or_wrong(scores: ArmScores) -> tuple[int, float]:
    """Return how many examples were scored, and the score of a right one where the others have zero; else (0, 0)."""
    levels = {level for each in scores.values() for level in each.levels}
    sizes = {len(each.ids) for each in scores.values()}
    if len(sizes) != 1 or len(levels) != 2 or min(levels) != 0:
        return 0, 0.0
    return sizes.pop(), max(levels)


def _drifts(trials: Sequence[TrialResult], usual: Mapping[str, str | None]) -> Iterator[Drift]:
    kinds = _kinds(trials)
    for fact, most in {**usual, DATA: _usual(DATA, kinds)}.items():
        if {_fact(trial, fact) for trial, _ in kinds} == {most}:
            continue  # which is nearly always so
        others: dict[str, list[int]] = {}
        for trial in trials:
            here = _fact(trial, fact)
            if here and most and here != most:
                others.setdefault(here, []).append(trial.seed)
        for here, seeds in others.items():
            yield Drift(fact, tuple(seeds), here, str(most))


def _with_mismatches(arms: Arms, store: Store, stored: StoredStudy, metrics: Sequence[str]) -> Arms:
    """Note on each arm which of its seeds did not repeat themselves. What a task records beside may be a time."""
    if not any(trial.attempts > 1 for arm in arms.values() for trial in arm.trials):
        return arms
    found: dict[tuple[str, str, int], list[Replay]] = {}
    for replay in replays_of(store, stored.id):
        if replay.metric in metrics:
            found.setdefault((replay.arm, replay.role, replay.seed), []).append(replay)
    noted = dict(arms)
    for (name, role), arm in arms.items():
        noted[name, role] = replace(
            arm,
            mismatches=tuple(
                Mismatch(seed, each[0].metric, each[0].epoch, each[0].first, each[0].again, len(each))
                for (of_arm, of_role, seed), each in found.items()
                if (of_arm, of_role) == (name, role)
            ),
        )
    return noted


def _fact(trial: TrialResult, fact: str) -> str | None:
    return trial.code_sha256 if fact == CODE else trial.environment.get(fact) or None


def _usual_facts(trials: Sequence[TrialResult]) -> Mapping[str, str | None]:
    """Return what most of these trials ran with, by fact; nothing where all ran with the same."""
    if len(set(_kind_of_each(trials))) < 2:  # which is nearly always so
        return {}
    kinds = _kinds({trial.fingerprint: trial for trial in trials}.values())
    return {fact: _usual(fact, kinds) for fact in (CODE, *DRIFT_FACTS)}


def _kinds(trials: Collection[TrialResult]) -> list[tuple[TrialResult, int]]:
    """Group trials by what they ran on: of each kind one trial, and how many there are, the kind first met first."""
    kinds = list(_kind_of_each(trials))
    numbers = Counter(kinds)
    return [(trial, numbers[kind]) for kind, trial in dict(zip(kinds, trials, strict=True)).items()]


def _kind_of_each(trials: Iterable[TrialResult]) -> Iterator[tuple[str | None, int]]:
    """Yield what tells apart on what trials ran: those that ran on the same share one mapping (see ``results``)."""
    return ((trial.code_sha256, id(trial.environment)) for trial in trials)


def _usual(fact: str, kinds: Iterable[tuple[TrialResult, int]]) -> str | None:
    """Return the value of a fact that most trials have; of two equally common ones, the first met."""
    known: Counter[str] = Counter()
    for trial, number in kinds:
        value = _fact(trial, fact)
        if value is not None:
            known[value] += number
    return known.most_common(1)[0][0] if known else None


# --- comparisons ---------------------------------------------------------------------------------------------------


def _role(study: Study, design: str) -> Role:
    return study.role("ladder" if design == BOTH else design)


def _sample(plan: Plan, contrast: Contrast, arms: Arms, scores: Scored) -> Sample:
    """Return what a comparison is made from; an arm without trials of the design's role has no values."""
    study = plan.study
    role = _role(study, contrast.design)
    sample = Sample(
        {name: arms.get((name, role)) or _emptied(arms[name, "main"], role) for name in contrast.arms},
        study.seeds.numbers if role == "main" else study.fresh_seeds,
        study.analysis.alpha,
        study.seeds.first,
        {name: scores.get((name, role), {}) for name in contrast.arms},
    )
    reached = plan.reached.get(plan.key(contrast)) if contrast.tested else None
    return sample_of(study, contrast, reached, sample)


def _compared(plan: Plan, contrast: Contrast, arms: Arms, scores: Scored) -> Comparison:
    study = plan.study
    found = compare(study, contrast, _sample(plan, contrast, arms, scores))
    if contrast.design != "path":
        return found
    chosen = {name: arms[name, "main"].cells[study.primary].mean for name in contrast.arms}
    known = [weight * mean for name, weight in contrast.weights if (mean := chosen[name]) is not None]
    return replace(found, claimed=sum(known) if len(known) == len(chosen) else None)


def _emptied(arm: ArmResult, role: Role) -> ArmResult:
    cells = {name: Cell(name, 0, None, None, None, {}) for name in arm.cells}
    return replace(arm, trials=(), cells=cells, role=role)


def _tests(
    plan: Plan, arms: Arms, scores: Scored, compared: Mapping[tuple[str, str], Comparison], family: int
) -> dict[str, Conclusion]:
    """Return the conclusion of each declared comparison by key, and where diverged seeds decide it, the other one."""
    metric = metric_infos(plan.study)[0]
    judged = {key: _judged(plan, contrast, arms, compared) for key, contrast in plan.family.items() if contrast}
    tests = judge(plan.study, metric, judged, family)
    dropped = {key: _without_scored(plan, contrast, arms, scores) for key, contrast in plan.family.items() if contrast}
    if not any(dropped.values()):
        return tests
    others = {key: replace(each, comparison=dropped[key] or each.comparison) for key, each in judged.items()}
    verdicts = judge(plan.study, metric, others, family)
    return {
        key: replace(test, if_dropped=verdicts[key].verdict) if verdicts[key].verdict != test.verdict else test
        for key, test in tests.items()
    }


def _judged(plan: Plan, contrast: Contrast, arms: Arms, compared: Mapping[tuple[str, str], Comparison]) -> Judged:
    role = _role(plan.study, contrast.design)
    found = [arms[name, role] for name in contrast.arms if (name, role) in arms]
    return Judged(
        compared[contrast.design, contrast.name],
        plan.reached.get(plan.key(contrast)),
        lifeless=any(arm.identical_seeds for arm in found),
        unfinished=not plan.study.seeds.looks and any(arm.is_unfinished for arm in found),
        collapsed=frozenset(arm.name for arm in found if _has_collapsed(arm.cells[plan.study.primary])),
    )


def _has_collapsed(cell: Cell) -> bool:
    return bool(cell.scored) and not cell.finished


def _without_scored(plan: Plan, contrast: Contrast, arms: Arms, scores: Scored) -> Comparison | None:
    """Return a comparison as it would be without the seeds that are scored; None where none of its arms has any."""
    role, primary = _role(plan.study, contrast.design), plan.study.primary
    present = {name: arms[name, role] for name in contrast.arms if (name, role) in arms}
    if not any(arm.cells[primary].scored for arm in present.values()) or plan.study.seeds.looks:
        return None
    kept = {name: _finished_only(arm, plan.study) for name, arm in present.items()}
    return _compared(plan, contrast, {**arms, **{(name, role): arm for name, arm in kept.items()}}, scores)


def _finished_only(arm: ArmResult, study: Study) -> ArmResult:
    trials = tuple(trial for trial in arm.trials if trial.status == "finished")
    return replace(arm, trials=trials, cells={n: cell(trials, n, metric) for n, metric in study.metrics.items()})


def _with_remarks(
    plan: Plan,
    tests: Mapping[str, Conclusion],
    results: Results,
    current: StoredVersion,
    versions: Sequence[StoredVersion],
) -> dict[str, Conclusion]:
    """Add what of each comparison was declared after its first result."""
    declared = {version.id: plan.keys_of(version.plan) for version in versions}
    ended = {place: first_ended(trials) for place, trials in results.items()}
    found = {}
    for key, contrast in plan.family.items():
        if contrast is not None:
            role = _role(plan.study, contrast.design)
            of_arms = [ended.get((arm, role), {}) for arm in contrast.arms]
            remarks = remarks_of(key, of_arms, current, versions, declared)
            found[key] = replace(tests[key], remarks=remarks)
    return found


def _with_anytime(
    plan: Plan, tests: Mapping[str, Conclusion], compared: Mapping[tuple[str, str], Comparison], family: int
) -> dict[str, Conclusion]:
    """Add p-values that allow for seeds added by hand, corrected like the others."""
    ps: dict[str, float | None] = dict.fromkeys(tests)
    for key, contrast in plan.family.items():
        if contrast is not None and ADDED in tests[key].remarks:
            effect = compared[contrast.design, contrast.name].effects[plan.study.primary]
            ps[key] = anytime_p(list(effect.differences.values())) if effect.mean is not None else None
    corrected = adjusted(list(ps.values()), family, plan.study.analysis.correction)
    return {key: replace(test, anytime=p) for (key, test), p in zip(tests.items(), corrected, strict=True)}


# --- designs -------------------------------------------------------------------------------------------------------


def _design_results(
    plan: Plan,
    arms: Arms,
    scores: Scored,
    compared: Mapping[tuple[str, str], Comparison],
    tests: Mapping[str, Conclusion],
) -> Iterator[DesignResult]:
    both = [BOTH] if any(contrast.design == BOTH for contrast in plan.contrasts) else []
    for design in [*plan.rows, *both]:
        role = _role(plan.study, design)
        contrasts = [contrast for contrast in plan.contrasts if contrast.design == design]
        rows = [_with_test(plan, contrast, compared[contrast.design, contrast.name], tests) for contrast in contrasts]
        names = _row_order(plan, design, contrasts)
        asked_for = dict.fromkeys((*names, *plan.rows.get(design, ())))  # a path tries more than its rows show
        trained = [trial for name in asked_for for trial in _trials_of(arms, name, role)]
        done = {each.fingerprint: each.seconds or 0.0 for each in trained if each.has_result}
        yield DesignResult(
            name=design,
            arms=names,
            comparisons=tuple(row for row in rows if row.name != TOTAL),
            counts=count(trained),
            seconds=sum(done.values()),
            total=next((row for row in rows if row.name == TOTAL), None),
            role=role,
            components=_components(plan, design),
            best=()
            if design == BOTH
            else _best(plan, design, [arms[k] for n in names if (k := (n, role)) in arms], arms, scores, rows),
        )


def _best(
    plan: Plan,
    design: str,
    shown: Sequence[ArmResult],
    arms: Arms,
    scores: Scored,
    comparisons: Sequence[Comparison],
) -> tuple[str, ...]:
    verdicts = [(row, row.effects[plan.study.primary].conclusion) for row in comparisons if row.arm]
    worse = {row.arm for row, found in verdicts if found and found.verdict == "worse"}
    worse |= {row.other for row, found in verdicts if found and found.verdict == "better"}

    def difference(one: str, other: str) -> Effect:
        contrast = Contrast(design, f"{one} − {other}", ((one, 1.0), (other, -1.0)), tested=False)
        return effect(plan.study, contrast, plan.study.primary, _sample(plan, contrast, arms, scores))

    return best_arms(plan.study, shown, difference, worse)


def _trials_of(arms: Arms, name: str, role: Role) -> Iterator[TrialResult]:
    """Yield an arm's trials for a design: with those that chose, where others confirm."""
    for each in dict.fromkeys(("main", role)):
        found = arms.get((name, each))
        yield from found.trials if found else ()


def _with_test(plan: Plan, contrast: Contrast, found: Comparison, tests: Mapping[str, Conclusion]) -> Comparison:
    if not contrast.tested:
        return found
    primary = plan.study.primary
    effect: Effect = replace(found.effects[primary], conclusion=tests[plan.key(contrast)])
    return replace(found, effects={**found.effects, primary: effect})


def _components(plan: Plan, design: str) -> tuple[str, ...]:
    declared = next((each for each in plan.study.designs if each.name == design), None)
    if design not in ("factorial", "fractional") or declared is None:
        return ()
    wanted = set(declared.steps or (step.name for step in plan.study.trunk))
    return tuple(step.name for step in plan.study.steps if step.name in wanted)


def _row_order(plan: Plan, design: str, contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """Return the arms of a design as its table lists them: what a row is compared with stands above it."""
    if design in ("factorial", "fractional"):
        return plan.rows[design]
    if design == BOTH:
        return tuple(dict.fromkeys(name for each in ("leave-one-out", "one-at-a-time") for name in plan.rows[each]))
    first = FULL if design == "leave-one-out" else BASELINE
    rows = [name for each in contrasts if each.arm for name in (each.other, each.arm)]
    return tuple(dict.fromkeys([first, *rows]))
