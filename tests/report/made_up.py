"""A made-up ladder of any size: findings as an analysis would give them, without a store to fill."""

from __future__ import annotations

import itertools
import random

from ablate.analyse.findings import (
    Analysis,
    ArmResult,
    Cell,
    Comparison,
    Conclusion,
    Counts,
    DesignResult,
    Effect,
    Family,
    Interval,
    MetricInfo,
    TrialResult,
    Verdict,
)
from ablate.stats.intervals import paired_estimate, summarise

_VERDICTS: tuple[Verdict, ...] = ("better", "worse", "no effect", "unresolved")


def ladder(*, arms: int, seeds: int) -> Analysis:
    """Return a ladder whose verdicts come in turn, each row with a note of its own where it is unresolved."""
    draw = random.Random(0)
    made = [_arm(number, [70 + 0.01 * number + draw.gauss(0, 1) for _ in range(seeds)]) for number in range(arms)]
    counts = Counts(arms * seeds, arms * seeds)
    rows = tuple(_row(number, arm, other) for number, (other, arm) in enumerate(itertools.pairwise(made), 1))
    total = _compared(made[-1], made[0])
    return Analysis(
        title="made-up",
        name="made-up",
        profile="",
        version=1,
        question=f"Which of {arms} components earn their place?",
        task="made:up",
        metrics=(MetricInfo("val_acc", "max", "%", "validation accuracy", margin=0.5),),
        seeds=tuple(range(1, seeds + 1)),
        fresh_seeds=(),
        looks=(),
        weights=(),
        half_width=None,
        pilot=0,
        alpha=0.05,
        correction="holm",
        pairing="seed",
        scope="test-set",
        family=Family(arms - 1),
        later_versions=(),
        gpus=0,
        arms=tuple(made),
        designs=(
            DesignResult(
                "ladder", tuple(arm.name for arm in made), rows, counts, 12.0 * arms * seeds,
                total=Comparison("total", ((made[-1].name, 1.0), (made[0].name, -1.0)), {"val_acc": total}),
            ),
        ),
        counts=counts,
    )  # fmt: skip


def _arm(number: int, values: list[float]) -> ArmResult:
    by_seed = dict(enumerate(values, start=1))
    told = summarise(values)
    return ArmResult(
        name=f"step-{number}" if number else "baseline",
        title=f"the component of number {number}" if number else "baseline",
        steps=(),
        trials=tuple(
            TrialResult(seed, f"{number}-{seed}", "done", "finished", "ok", 1, 12.0, values={"val_acc": value})
            for seed, value in by_seed.items()
        ),
        cells={"val_acc": Cell("val_acc", told.n, told.mean, told.sd, told.se, by_seed)},
        counts=Counts(len(values), len(values)),
        seconds=12.0 * len(values),
        facts={"parameters": 1e6 + number, "flops": 1e9 + number},
    )


def _row(number: int, arm: ArmResult, other: ArmResult) -> Comparison:
    verdict = _VERDICTS[number % len(_VERDICTS)]
    test = Conclusion(verdict, 0.01, 0.02, bound=0.1 + number / 1000, target=0.5, seeds_needed=100 + number)
    effect = _compared(arm, other, test)
    return Comparison(
        arm.name, ((arm.name, 1.0), (other.name, -1.0)), {"val_acc": effect}, arm=arm.name, other=other.name
    )


def _compared(arm: ArmResult, other: ArmResult, test: Conclusion | None = None) -> Effect:
    mine, theirs = arm.cells["val_acc"].values, other.cells["val_acc"].values
    differences = {seed: value - theirs[seed] for seed, value in mine.items()}
    found = paired_estimate([(1.0, list(differences.values()))])
    ends = found.interval(0.05)
    interval = None if ends is None else Interval(*ends, level=0.95)
    return Effect("val_acc", found.n, found.mean, found.sd, found.se, interval, differences, conclusion=test)
