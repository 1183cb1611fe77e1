"""``analyse``: one study version in the store to all its findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ablate.analyse.effects import cell, compare, seeds_identical
from ablate.analyse.findings import Analysis, ArmResult, Comparison, DesignResult, Drift, MetricInfo, TrialResult, count
from ablate.analyse.results import read_results, stored_plan
from ablate.plan.designs import Arm, Contrast
from ablate.plan.trials import Plan
from ablate.store.facts import StoredStudy
from ablate.store.store import Store
from ablate.study.schema import BASELINE, FULL, Study
from ablate.study.settings import differences

FACTS = ("parameters", "flops", "images_per_s")


# what must not differ between the trials of a table; data only within an arm, for a step may change the data
DRIFT_FACTS = ("ablate", "cpu", "driver", "gpu", "python", "threads", "torch")
DATA = "data_sha256"


def analyse(store: Store, stored: StoredStudy) -> Analysis:
    """Return the findings of a study version as far as its trials have come. Same store, same findings.

    Raises StoreError where the store can't be read, or where another version of ablate wrote the study.
    """
    plan = stored_plan(stored)
    results = read_results(store, stored, plan)
    study = plan.study
    every = [trial for trials in results.values() for trial in trials]
    usual_code = _commonest({trial.fingerprint: trial.code_sha256 for trial in every})
    usual = {fact: _usual(fact, every) for fact in DRIFT_FACTS}
    arms = {arm.name: _arm_result(arm, results[arm.name], study, usual_code, usual) for arm in plan.arms}
    return Analysis(
        title=stored.title,
        name=stored.name,
        profile=stored.profile,
        version=stored.version,
        question=study.question,
        task=study.task,
        metrics=tuple(MetricInfo(name, each.goal, each.unit, each.title) for name, each in study.metrics.items()),
        seeds=study.seeds,
        alpha=study.analysis.alpha,
        gpus=study.resources.gpus,
        arms=tuple(arms.values()),
        designs=tuple(_design_result(name, plan, arms) for name in _design_names(study)),
        counts=count(every),
        source=study.reference.source if study.reference else "",
        assumed=study.assumed,
    )


def _design_names(study: Study) -> list[str]:
    return list(dict.fromkeys(design.name for design in study.designs))


def _arm_result(
    arm: Arm,
    trials: tuple[TrialResult, ...],
    study: Study,
    usual_code: str | None,
    usual: Mapping[str, str | None],
) -> ArmResult:
    cells = {name: cell(trials, name) for name in study.metrics}
    with_result = [trial for trial in trials if trial.status in ("finished", "diverged")]
    seconds = [trial.seconds for trial in with_result if trial.seconds is not None]
    facts = {name: cell(trials, name).mean for name in FACTS}
    published = study.reference.values if study.reference else {}
    return ArmResult(
        name=arm.name,
        title=arm.title,
        steps=arm.steps,
        trials=trials,
        cells=cells,
        counts=count(trials),
        seconds=sum(seconds) if seconds else None,
        facts={name: mean for name, mean in facts.items() if mean is not None},
        published={metric: values[arm.name] for metric, values in published.items() if arm.name in values},
        identical_seeds=seeds_identical(cells),
        other_code=tuple(t.seed for t in with_result if t.code_sha256 is not None and t.code_sha256 != usual_code),
        drifts=tuple(_drifts(with_result, {**usual, DATA: _usual(DATA, with_result)})),
    )


def _drifts(trials: Sequence[TrialResult], usual: Mapping[str, str | None]) -> Iterator[Drift]:
    for fact, most in usual.items():
        others: dict[str, list[int]] = {}
        for trial in trials:
            here = trial.environment.get(fact)
            if here and most and here != most:
                others.setdefault(here, []).append(trial.seed)
        for here, seeds in others.items():
            yield Drift(fact, tuple(seeds), here, str(most))


def _usual(fact: str, trials: Iterable[TrialResult]) -> str | None:
    """Return the value of a fact that most trials with a result have."""
    with_result = (trial for trial in trials if trial.status in ("finished", "diverged"))
    return _commonest({trial.fingerprint: trial.environment.get(fact) or None for trial in with_result})


def _commonest(values: Mapping[str, str | None]) -> str | None:
    """Return the value that most trials have, by fingerprint; of two equally common ones, the first met."""
    known = Counter(value for value in values.values() if value is not None)
    return known.most_common(1)[0][0] if known else None


def _design_result(name: str, plan: Plan, arms: Mapping[str, ArmResult]) -> DesignResult:
    contrasts = [contrast for contrast in plan.contrasts if contrast.design == name]
    comparisons = tuple(_compared(contrast, arms, plan.study) for contrast in contrasts)
    names = _row_order(name, contrasts)
    trials = {trial.fingerprint: trial for arm in names for trial in arms[arm].trials}
    done = [trial.seconds or 0.0 for trial in trials.values() if trial.status in ("finished", "diverged")]
    total = _total(contrasts, plan, arms) if name == "ladder" else None
    return DesignResult(name, names, comparisons, count(trials.values()), sum(done), total)


def _compared(contrast: Contrast, arms: Mapping[str, ArmResult], study: Study) -> Comparison:
    return compare(contrast, arms, metrics=list(study.metrics), seeds=study.seeds, alpha=study.analysis.alpha)


def _row_order(design: str, contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """Return the arms of a design as its table lists them: what a row is compared with stands above it."""
    first = FULL if design == "leave-one-out" else BASELINE
    return tuple(dict.fromkeys([first, *(name for each in contrasts for name in (each.other, each.arm))]))


def _total(contrasts: Sequence[Contrast], plan: Plan, arms: Mapping[str, ArmResult]) -> Comparison | None:
    """Compare the trunk's last rung with the baseline, unless a row does so already."""
    trunk = [contrast for contrast in contrasts if not contrast.branch]
    if not trunk or trunk[-1].other == BASELINE:
        return None
    last = plan.arm(trunk[-1].arm)
    changes = differences(plan.arm(BASELINE).settings, last.settings)
    contrast = Contrast("ladder", last.name, BASELINE, last.name, BASELINE, changes)
    return _compared(contrast, arms, plan.study)
