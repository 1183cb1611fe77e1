"""How many seeds each arm is given: a fixed number, more at each look, or as many as make the intervals narrow.

A pure function of what is told of the trials: whoever asks again with the same facts is given the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ablate.plan.arms import Contrast
from ablate.plan.outcomes import SETTLED, Scored, Told, scored
from ablate.stats.corrections import benjamini_hochberg, holm
from ablate.stats.intervals import Cells, Estimate, paired_estimate, welch_estimate
from ablate.stats.replication import look_p, stein_size
from ablate.study.schema import SMALLEST_TEST, Study

# what is told of one arm at these seeds
Tell = Callable[[str, Sequence[int]], Mapping[int, Told]]


@dataclass(frozen=True)
class Reached:
    """How far one comparison has come under ``looks``: the last look it was at (from 0), its p* and what stopped it.

    ``p`` is the least p_k/w_k of the looks so far, and ``p_equivalent`` the same of the test for no effect.
    """

    look: int
    p: float | None
    p_equivalent: float | None
    stopped: Literal["", "effect", "no effect", "no comparison"] = ""


@dataclass(frozen=True)
class Replication:
    """The seeds that each arm has been given so far, and under ``looks`` how far each comparison (by key) has come."""

    seeds: Mapping[str, tuple[int, ...]]
    reached: Mapping[str, Reached]


def replicate(
    study: Study, arms: Sequence[str], contrasts: Mapping[str, Contrast], tell: Tell, *, family: int
) -> Replication:
    """Return the seeds that are asked for. ``contrasts`` are the tested ones by key, ``family`` counts the planned."""
    if study.seeds.looks:
        return _at_looks(study, arms, contrasts, tell, family)
    if study.seeds.half_width is not None:
        return Replication(_precise(study, arms, contrasts, tell, study.seeds.half_width), {})
    return Replication(dict.fromkeys(arms, study.seeds.numbers), {})


def adjusted(ps: Sequence[float | None], family: int, correction: str) -> list[float | None]:
    """Return p-values corrected for this many comparisons, as the study's ``analysis.correction`` says."""
    return {"holm": holm, "bh": benjamini_hochberg}[correction](ps, family)


def contrast_cells(
    contrast: Contrast, values: Mapping[str, Mapping[int, float]], seeds: Sequence[int], *, paired: bool
) -> tuple[Cells, tuple[int, ...]]:
    """Return weights with values, and the seeds that every arm has. Unpaired, an arm's values at others count too."""
    common = tuple(seeds)
    if all(tuple(values[arm]) == common for arm in contrast.arms):  # which is nearly always so
        return [(weight, list(values[arm].values())) for arm, weight in contrast.weights], common
    for arm in contrast.arms:
        its = values[arm]
        common = tuple([seed for seed in common if seed in its])
    of_arm = {arm: common if paired else [seed for seed in seeds if seed in values[arm]] for arm in contrast.arms}
    return [(weight, list(map(values[arm].__getitem__, of_arm[arm]))) for arm, weight in contrast.weights], common


def is_paired(study: Study) -> bool:
    """Tell which engine compares: each seed's own contrast, or with ``pairing: none`` Welch–Satterthwaite.

    Over many cells too: arms that share a seed share noise wherever a step leaves it alone. Where it does not, the
    cells of each of its levels hold one noise several times, and Welch takes them for independent.
    """
    return study.analysis.pairing == "seed"


def estimate(
    contrast: Contrast, values: Mapping[str, Mapping[int, float]], seeds: Sequence[int], *, paired: bool
) -> Estimate | None:
    """Return the estimate from these values; None where some arm has none."""
    cells, _ = contrast_cells(contrast, values, seeds, paired=paired)
    if any(not numbers for _, numbers in cells):
        return None
    return paired_estimate(cells) if paired else welch_estimate(cells)


# --- looks ---------------------------------------------------------------------------------------------------------


def _at_looks(
    study: Study, arms: Sequence[str], contrasts: Mapping[str, Contrast], tell: Tell, family: int
) -> Replication:
    """Replay the looks: at each, those that are not settled are given seeds, and compared once all have a result."""
    seeds = dict.fromkeys(arms, study.seeds.first)
    reached: dict[str, Reached] = {}
    tested: dict[str, list[tuple[float | None, float | None]]] = {key: [] for key in contrasts}
    for look, count in enumerate(study.seeds.looks):
        numbers = study.seeds.numbers[:count]
        unsettled = [key for key in contrasts if key not in reached or not reached[key].stopped]
        if not unsettled:
            break
        asked = {arm for key in unsettled for arm in contrasts[key].arms} if look else set(arms)
        seeds |= dict.fromkeys(asked, numbers)
        told = {arm: tell(arm, numbers) for arm in asked}
        if any(each.status not in SETTLED for of_arm in told.values() for each in of_arm.values()):
            break
        found = {arm: scored(of_arm, study.metrics[study.primary]) for arm, of_arm in told.items()}
        for key in unsettled:
            tested[key].append(_tested(study, contrasts[key], found, numbers))
            reached[key] = Reached(look, *_best(tested[key], study.seeds.weights))
        reached |= _stopped(study, contrasts, reached, unsettled, found, family)
    return Replication(seeds, reached)


def _tested(
    study: Study, contrast: Contrast, found: Mapping[str, Scored], numbers: Sequence[int]
) -> tuple[float | None, float | None]:
    """Return p and the p of the test for no effect; None where no comparison is made."""
    if any(found[arm].undefined for arm in contrast.arms):
        return None, None
    values = {arm: found[arm].values for arm in contrast.arms}
    got = estimate(contrast, values, numbers, paired=is_paired(study))
    if got is None or got.n < SMALLEST_TEST:
        return None, None
    margin = study.metrics[study.primary].margin
    return got.p, None if margin is None else got.p_equivalent(margin)


def _best(
    tested: Sequence[tuple[float | None, float | None]], weights: Sequence[float]
) -> tuple[float | None, float | None]:
    return look_p([p for p, _ in tested], weights), look_p([p for _, p in tested], weights)


def _stopped(
    study: Study,
    contrasts: Mapping[str, Contrast],
    reached: Mapping[str, Reached],
    unsettled: Sequence[str],
    found: Mapping[str, Scored],
    family: int,
) -> dict[str, Reached]:
    """Return those that this look has settled, by the same adjusted p-values as the verdicts."""
    alpha, correction = study.analysis.alpha, study.analysis.correction
    keys = list(contrasts)
    so_far = [reached[key] for key in keys]
    of_effect = dict(zip(keys, adjusted([each.p for each in so_far], family, correction), strict=True))
    of_none = dict(zip(keys, adjusted([each.p_equivalent for each in so_far], family, correction), strict=True))
    stopped: dict[str, Reached] = {}
    for key in unsettled:
        effect, none = of_effect[key], of_none[key]
        why: Literal["", "effect", "no effect", "no comparison"] = ""
        if any(found[arm].undefined for arm in contrasts[key].arms):
            why = "no comparison"
        elif effect is not None and effect < alpha:
            why = "effect"
        elif none is not None and none < alpha:
            why = "no effect"
        if why:
            was = reached[key]
            stopped[key] = Reached(was.look, was.p, was.p_equivalent, why)
    return stopped


# --- precision -----------------------------------------------------------------------------------------------------


def _precise(
    study: Study, arms: Sequence[str], contrasts: Mapping[str, Contrast], tell: Tell, half_width: float
) -> dict[str, tuple[int, ...]]:
    """After the pilot, give each arm as many seeds as the widest of its comparisons needs (Stein 1945)."""
    pilot = study.seeds.first
    seeds = dict.fromkeys(arms, pilot)
    told = {arm: tell(arm, pilot) for arm in arms}
    if any(each.status not in SETTLED for of_arm in told.values() for each in of_arm.values()):
        return seeds
    found = {arm: scored(of_arm, study.metrics[study.primary]) for arm, of_arm in told.items()}
    for contrast in contrasts.values():
        if any(found[arm].undefined for arm in contrast.arms):
            continue
        cells, common = contrast_cells(contrast, {arm: found[arm].values for arm in contrast.arms}, pilot, paired=True)
        if len(common) < SMALLEST_TEST:
            continue
        differences = [sum(w * values[i] for w, values in cells) for i in range(len(common))]
        size = stein_size(differences, half_width, study.analysis.alpha)
        for arm in contrast.arms:
            if size > len(seeds[arm]):
                seeds[arm] = study.seeds.numbers[:size]
    return seeds
