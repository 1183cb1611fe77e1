"""From values by seed to cells and effects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ablate.analyse.findings import ArmResult, Cell, Comparison, Effect, Interval, TrialResult
from ablate.plan.arms import Contrast
from ablate.plan.crossed import CROSS
from ablate.plan.outcomes import SETTLED, Scored, scored
from ablate.plan.replication import Reached, contrast_cells, is_paired
from ablate.stats.intervals import (
    NEGLIGIBLE,
    Estimate,
    are_usable,
    crossed_estimate,
    paired_estimate,
    stein_estimate,
    summarise,
    welch_estimate,
)
from ablate.stats.proportions import mcnemar
from ablate.store.scores import Scores
from ablate.study.schema import Metric, Study

if TYPE_CHECKING:
    import numpy as np

# per-example scores of one arm, by seed
ArmScores = Mapping[int, Scores]


@dataclass(frozen=True)
class Sample:
    """What a comparison is made from: arms by name, the seeds that may take part, in order, and the level 1 − alpha.

    ``pilot`` are the seeds that decided how many there are; ``scores`` are per-example, where the scope asks for them.
    """

    arms: Mapping[str, ArmResult]
    seeds: tuple[int, ...]
    alpha: float
    pilot: tuple[int, ...] = ()
    scores: Mapping[str, ArmScores] | None = None


def cell(trials: Sequence[TrialResult], name: str, metric: Metric) -> Cell:
    """Summarise one metric over the seeds that have a value, a declared one where they diverged."""
    values = {trial.seed: trial.values[name] for trial in trials if trial.status == "finished" and name in trial.values}
    if len(values) == len(trials) and are_usable(values.values()):  # which is nearly always so
        found = Scored(values)
    else:
        found = scored({trial.seed: trial.told(name) for trial in trials}, metric)
    if not found.values:
        return Cell(name, 0, None, None, None, {}, found.undefined)
    summary = summarise(list(found.values.values()))
    return Cell(name, summary.n, summary.mean, summary.sd, summary.se, found.values, found.undefined, found.scored)


def seeds_identical(cells: Mapping[str, Cell]) -> bool:
    """Tell whether two or more seeds gave one and the same value of every metric.

    Of every metric: an accuracy may tie by chance, or sit at the floor that a collapsed network has on every seed.
    Seeds that diverged have no value of their own.
    """
    measured = [each for each in cells.values() if each.finished]
    return bool(measured) and all(len(each.finished) > 1 and len(set(each.finished.values())) == 1 for each in measured)


def sample_of(study: Study, contrast: Contrast, reached: Reached | None, sample: Sample) -> Sample:
    """Narrow a sample to what a comparison may use: at looks, the seeds and the level of the look it is at.

    One that is not tested has looks all the same, as its arms were given their seeds after looks at others: it is at
    the last one that all of its arms have reached.
    """
    if not study.seeds.looks:
        return sample
    look = reached.look if reached else _look_reached(study, contrast, sample)
    if look is None:
        return sample
    level = study.analysis.alpha * study.seeds.weights[look]
    return replace(sample, seeds=sample.seeds[: study.seeds.looks[look]], alpha=level)


def _look_reached(study: Study, contrast: Contrast, sample: Sample) -> int | None:
    """Return the last look for whose seeds every arm has a result."""
    settled = min(sum(trial.status in SETTLED for trial in sample.arms[arm].trials) for arm in contrast.arms)
    return next((k for k, count in reversed(list(enumerate(study.seeds.looks))) if count <= settled), None)


def compare(study: Study, contrast: Contrast, sample: Sample) -> Comparison:
    """Return the effect of a contrast on each metric."""
    effects = {name: effect(study, contrast, name, sample) for name in study.metrics}
    return Comparison(
        name=contrast.name,
        weights=contrast.weights,
        effects=effects,
        title=contrast.title,
        arm=contrast.arm,
        other=contrast.other,
        changes=tuple(map(str, contrast.changes)),
        branch=contrast.branch,
        note=contrast.note,
        identical=_identical(contrast, effects, sample, primary=study.primary),
        networks_differ=_networks_differ(contrast, sample),
    )


def effect(study: Study, contrast: Contrast, metric: str, sample: Sample) -> Effect:
    """Return the weighted sum of means on one metric; no mean where an arm has an undefined value or none at all."""
    cells = {arm: sample.arms[arm].cells[metric] for arm in contrast.arms}
    values = {arm: each.values for arm, each in cells.items()}
    paired = is_paired(study)
    numbers, common = contrast_cells(contrast, values, sample.seeds, paired=paired)
    of_arms = [(weight, values[arm]) for arm, weight in contrast.weights]
    products = [[weight * its[seed] for seed in common] for weight, its in of_arms]
    differences = dict(zip(common, map(sum, zip(*products, strict=True)), strict=True))
    withheld = tuple(arm for arm, each in cells.items() if any(seed in sample.seeds for seed in each.undefined))
    dropped = _dropped(contrast, sample, common)
    nothing = Effect(metric, len(common), None, None, None, None, differences, dropped, withheld)
    if withheld or any(not each for _, each in numbers):
        return nothing
    single = all(len(each) == 1 for _, each in numbers)  # one run each has no error of any kind
    if study.analysis.scope == "population" and metric == study.primary and not single:
        found, why = _crossed(contrast, values, common, sample.scores or {})
    elif study.seeds.half_width is not None:
        pilot = sum(seed in sample.pilot for seed in common)
        found, why = (stein_estimate(numbers, pilot=pilot), "") if pilot > 1 else (None, "the pilot has too few seeds")
    else:
        found, why = (paired_estimate(numbers) if paired else welch_estimate(numbers)), ""
    if found is None:
        return Effect(metric, len(common), None, None, None, None, differences, dropped, why=why)
    return Effect(
        metric, found.n, found.mean, found.sd, found.se, _interval(found, contrast, sample), differences, dropped,
        method=found.method, df=found.df,
    )  # fmt: skip


def _dropped(contrast: Contrast, sample: Sample, common: Collection[int]) -> tuple[int, ...]:
    """Return the planned seeds that some arm has no value at."""
    if len(common) == len(sample.seeds):
        return ()
    planned = {trial.seed for arm in contrast.arms for trial in sample.arms[arm].trials}
    return tuple(seed for seed in sample.seeds if seed in planned and seed not in common)


def _interval(found: Estimate, contrast: Contrast, sample: Sample) -> Interval | None:
    # an arm whose seeds are all one run lends its comparison a spread that is not that of seeds
    if any(sample.arms[arm].identical_seeds for arm in contrast.arms):
        return None
    ends = found.interval(sample.alpha)
    return None if ends is None else Interval(*ends, 1 - sample.alpha)


def _crossed(
    contrast: Contrast, values: Mapping[str, Mapping[int, float]], seeds: Sequence[int], scores: Mapping[str, ArmScores]
) -> tuple[Estimate | None, str]:
    """Return the estimate over seeds × examples, or why there is none."""
    import numpy as np  # here and below: late, as few studies have scores

    rows = []
    ids: np.ndarray | None = None
    for seed in seeds:
        row: np.ndarray | float = 0.0
        for arm, weight in contrast.weights:
            found = scores.get(arm, {}).get(seed)
            if found is None:
                return None, f"no per-example scores of `{arm}` at seed {seed}"
            if ids is not None and not np.array_equal(ids, found.ids):
                return None, "the arms were scored on different examples"
            ids = found.ids
            mean, value = float(found.values.mean()), values[arm][seed]
            if abs(mean - value) > 1e-4 * max(abs(mean), abs(value)):
                return None, f"the mean of the scores of `{arm}` at seed {seed} is {mean:.6g}, its metric {value:.6g}"
            row = row + weight * found.values
        rows.append(row)
    if len(rows) < 2 or ids is None or len(ids) < 2:
        return None, "scope `population` needs two seeds and two examples"
    return crossed_estimate(np.asarray(rows)), ""


def _networks_differ(contrast: Contrast, sample: Sample) -> float | None:
    """Return McNemar's p that the only two networks of a row are right on different examples."""
    if len(contrast.weights) != 2 or sample.scores is None:
        return None
    pair = [sample.scores.get(arm, {}) for arm in contrast.arms]
    if any(len(each) != 1 for each in pair) or pair[0].keys() != pair[1].keys():
        return None
    (first, second) = (next(iter(each.values())) for each in pair)
    import numpy as np

    if not np.array_equal(first.ids, second.ids) or len(np.unique(np.append(first.values, second.values))) != 2:
        return None
    return mcnemar(int((first.values > second.values).sum()), int((first.values < second.values).sum()))


def _identical(contrast: Contrast, effects: Mapping[str, Effect], sample: Sample, *, primary: str) -> bool:
    """Tell whether a change leaves every seed's value of every metric as it was.

    Of every metric: what moves any of them reaches the code, even where the primary one ties. Over many cells, what is
    equal in each pair of them may leave the rounding of a sum; and an interaction may well be nothing.
    """
    if CROSS in contrast.name or not effects[primary].differences:
        return False
    return all(
        abs(difference) <= (0.0 if len(contrast.weights) == 2 else NEGLIGIBLE * _largest(contrast, name, sample))
        for name, each in effects.items()
        for difference in each.differences.values()
    )


def _largest(contrast: Contrast, metric: str, sample: Sample) -> float:
    return max(abs(value) for arm in contrast.arms for value in sample.arms[arm].cells[metric].values.values())
