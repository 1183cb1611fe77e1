"""Which arms of a design have the best mean, or can't be told from the one that has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ablate.analyse.findings import ArmResult, Effect, TrialResult
from ablate.analyse.verdicts import as_estimate
from ablate.plan.replication import adjusted
from ablate.study.schema import SMALLEST_TEST, Study


def best_arms(
    study: Study, arms: Sequence[ArmResult], difference: Callable[[str, str], Effect], worse: Collection[str]
) -> tuple[str, ...]:
    """Return the arm with the best mean of the primary metric, and those that are not shown to be worse than it.

    ``difference`` gives the effect of one arm against another; ``worse`` are the arms that a declared comparison has
    shown to be worse than some other. Holm's correction is over the differences to the best, at the study's alpha. An
    arm that is really best is then left out in no more than alpha of all studies (2.7 % at alpha 5 % in the worst of
    eleven simulated kinds), though the seeds chose the one that it is held against.

    Empty where no two arms have three seeds, while planned seeds are still to come, and where no arm is shown to be
    worse: all would be marked, and that says nothing. An arm with a diverged seed that has no value, or whose seeds
    give one and the same run, is no candidate.
    """
    metric, primary = study.metrics[study.primary], study.primary
    unfinished = [trial for arm in arms if arm.is_unfinished for trial in arm.trials if _is_due(study, trial)]
    if any(trial.status in ("running", "waiting") for trial in unfinished):
        return ()
    means = {
        arm.name: cell.mean * (1 if metric.goal == "max" else -1)
        for arm in arms
        for cell in [arm.cells[primary]]
        if cell.mean is not None and cell.n >= SMALLEST_TEST and not cell.undefined and not arm.identical_seeds
    }
    if len(means) < 2:
        return ()
    best = max(means, key=lambda name: means[name])
    others = [name for name in means if name != best]
    ps = adjusted([_p(study, difference(best, name)) for name in others], len(others), "holm")
    alike = {name for name, p in zip(others, ps, strict=True) if p is None or p >= study.analysis.alpha}
    alike = (alike - set(worse)) | {best}
    return tuple(name for name in means if name in alike) if len(alike) < len(means) else ()


def _is_due(study: Study, trial: TrialResult) -> bool:
    """Tell whether a first verdict waits for this trial: for every planned seed, or those of the first look."""
    return not study.seeds.looks or trial.seed in study.seeds.first


def _p(study: Study, found: Effect) -> float | None:
    """Return p, at a look divided by the look's share of alpha, as for every other comparison there."""
    if found.mean is None or found.n < SMALLEST_TEST or found.interval is None:
        return None
    p, share = as_estimate(found).p, (1 - found.interval.level) / study.analysis.alpha
    return None if p is None else min(1.0, p / share)
