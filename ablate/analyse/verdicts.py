"""What is concluded of every declared comparison on the primary metric, all of them corrected for together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ablate.analyse.findings import Comparison, Conclusion, Effect, MetricInfo, Verdict
from ablate.plan.replication import Reached, adjusted
from ablate.stats.intervals import Estimate
from ablate.stats.power import seeds_for
from ablate.study.schema import SMALLEST_TEST, Study


@dataclass(frozen=True)
class Judged:
    """A declared comparison before its verdict. ``lifeless``: an arm of it gives the same run for every seed.

    ``unfinished``: planned seeds are still to come. A fixed number of seeds is looked at once, at its end: a verdict
    that comes early and may be acted upon is one look more than alpha allows for. ``collapsed``: arms that diverged at
    every seed, and whose value is a declared one alone: such an arm may be worse than another, and never better.
    """

    comparison: Comparison
    reached: Reached | None = None
    lifeless: bool = False
    unfinished: bool = False
    collapsed: frozenset[str] = frozenset()


def judge(study: Study, metric: MetricInfo, judged: Mapping[str, Judged], family: int) -> dict[str, Conclusion]:
    """Return the conclusion of each comparison, by the key that was given."""
    ps = {key: _ps(study, metric, each) for key, each in judged.items()}
    correction = study.analysis.correction
    effect = dict(zip(ps, adjusted([p for p, _ in ps.values()], family, correction), strict=True))
    none = dict(zip(ps, adjusted([p for _, p in ps.values()], family, correction), strict=True))
    return {
        key: _test(study, metric, each, p=ps[key][0], effect=effect[key], none=none[key], family=family)
        for key, each in judged.items()
    }


def _ps(study: Study, metric: MetricInfo, judged: Judged) -> tuple[float | None, float | None]:
    """Return p, and the p of "as large as the margin"; None where nothing is tested."""
    found = judged.comparison.effects[metric.name]
    if _untested(judged, found) is not None:
        return None, None
    if study.seeds.looks:
        return (judged.reached.p, judged.reached.p_equivalent) if judged.reached else (None, None)
    estimate = as_estimate(found)
    return estimate.p, None if metric.margin is None else estimate.p_equivalent(metric.margin)


def _untested(judged: Judged, found: Effect) -> Verdict | None:
    """Return the verdict of a comparison that has no test, the plainest reason first; None where there is one."""
    if found.mean is None or found.n < SMALLEST_TEST:
        return "not tested"
    if judged.comparison.identical:
        return "identical"
    if judged.lifeless:
        return "no seed effect"
    return "not tested" if judged.unfinished or not found.se else None


def _test(
    study: Study,
    metric: MetricInfo,
    judged: Judged,
    *,
    p: float | None,
    effect: float | None,
    none: float | None,
    family: int,
) -> Conclusion:
    found = judged.comparison.effects[metric.name]
    look = judged.reached.look + 1 if judged.reached else 0
    untested = _untested(judged, found)
    if untested is not None or found.mean is None:
        return Conclusion(untested or "not tested", look=look)
    alpha = study.analysis.alpha * (study.seeds.weights[look - 1] if look else 1)
    ends = as_estimate(found).interval(2 * alpha)
    bound = None if ends is None else max(map(abs, ends))
    within = metric.margin is not None and bound is not None and bound < metric.margin
    test = Conclusion("unresolved", p, effect, none, bound=bound, look=look)
    if effect is not None and effect < study.analysis.alpha:
        better = (found.mean > 0) == (metric.goal == "max")
        favoured = {arm for arm, weight in judged.comparison.weights if (weight > 0) == better}
        if favoured & judged.collapsed:
            return Conclusion("not tested", look=look)
        return replace(test, verdict="better" if better else "worse", within_margin=within)
    if none is not None and none < study.analysis.alpha:
        return replace(test, verdict="no effect")
    target = metric.margin if metric.margin is not None else abs(found.mean)
    return replace(test, target=target, seeds_needed=_seeds_needed(found, target, study.analysis.alpha / family))


def as_estimate(found: Effect) -> Estimate:
    assert found.mean is not None
    return Estimate(found.n, found.mean, found.sd, found.se, found.df, found.method)


def _seeds_needed(found: Effect, target: float, alpha: float) -> int | None:
    """Return the seeds that would show an effect of this size; over many cells, as if they were pairs.

    None where no number of seeds is known to (what new examples would change, more seeds do not), or where a rule gives
    as many as it wants.
    """
    if found.method in ("crossed", "stein"):
        return None
    sd = (found.se or 0.0) * found.n**0.5
    return seeds_for(target / sd, alpha) if sd and target else None
