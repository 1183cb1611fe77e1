"""From values by seed to cells and effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablate.analyse.findings import ArmResult, Cell, Comparison, Effect, Interval, TrialResult
from ablate.plan.designs import Contrast
from ablate.stats.intervals import is_usable, paired_interval, summarise


def cell(trials: Sequence[TrialResult], metric: str) -> Cell:
    """Summarise one metric over the seeds that finished."""
    values: dict[int, float] = {}
    undefined: list[int] = []
    for trial in trials:
        if trial.status == "diverged":
            undefined.append(trial.seed)
        elif trial.status == "finished" and metric in trial.values:
            if is_usable(trial.values[metric]):
                values[trial.seed] = trial.values[metric]
            else:
                undefined.append(trial.seed)
    if not values:
        return Cell(metric, 0, None, None, None, {}, tuple(undefined))
    summary = summarise(list(values.values()))
    return Cell(metric, summary.n, summary.mean, summary.sd, summary.se, values, tuple(undefined))


def seeds_identical(cells: Mapping[str, Cell]) -> bool:
    """Tell whether two or more seeds gave one and the same value of every metric.

    Of every metric: an accuracy may tie by chance, or sit at the floor that a collapsed network has on every seed.
    """
    measured = [each for each in cells.values() if each.n]
    return bool(measured) and all(each.n > 1 and each.sd == 0 for each in measured)


def compare(
    contrast: Contrast, arms: Mapping[str, ArmResult], *, metrics: Sequence[str], seeds: Sequence[int], alpha: float
) -> Comparison:
    """Return the effect of a contrast on each metric, paired by seed."""
    minuend, subtrahend = arms[contrast.minuend], arms[contrast.subtrahend]
    effects = {name: effect(name, minuend, subtrahend, seeds=seeds, alpha=alpha) for name in metrics}
    return Comparison(
        arm=contrast.arm,
        other=contrast.other,
        minuend=contrast.minuend,
        subtrahend=contrast.subtrahend,
        changes=tuple(map(str, contrast.changes)),
        effects=effects,
        branch=contrast.branch,
        note=contrast.note,
        identical=_identical(effects, primary=metrics[0]),
    )


def effect(metric: str, minuend: ArmResult, subtrahend: ArmResult, *, seeds: Sequence[int], alpha: float) -> Effect:
    """Return the mean difference over the seeds that both arms have; none where an arm has an undefined value."""
    left, right = minuend.cells[metric], subtrahend.cells[metric]
    common = [seed for seed in seeds if seed in left.values and seed in right.values]
    dropped = tuple(seed for seed in seeds if seed not in common)
    differences = {seed: left.values[seed] - right.values[seed] for seed in common}
    withheld = tuple(arm.name for arm in (minuend, subtrahend) if arm.cells[metric].undefined)
    if withheld or not common:
        return Effect(
            metric, minuend.name, subtrahend.name, len(common), None, None, None, None, differences, dropped, withheld
        )
    found = paired_interval(
        [left.values[seed] for seed in common], [right.values[seed] for seed in common], alpha=alpha
    )
    interval = None
    # an arm whose seeds are all one run lends its comparison a spread that is not that of seeds
    if found.low is not None and found.high is not None and not minuend.identical_seeds | subtrahend.identical_seeds:
        interval = Interval(found.low, found.high, found.level)
    return Effect(
        metric, minuend.name, subtrahend.name, found.n, found.mean, found.sd, found.se, interval, differences, dropped
    )


def _identical(effects: Mapping[str, Effect], *, primary: str) -> bool:
    """A change that moves any metric reaches the code, even where the primary one ties."""
    values = [difference for each in effects.values() for difference in each.differences.values()]
    return bool(effects[primary].differences) and not any(values)
