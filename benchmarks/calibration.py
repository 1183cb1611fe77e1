"""How often ablate's intervals miss the truth and its verdicts are wrong, in simulated studies whose truth is known.

    python -m benchmarks.calibration > benchmarks/results/calibration.md    # 10000 studies a figure, minutes

Every interval, p-value and correction comes from ablate.stats itself, called once per simulated comparison. Noise is
normal with σ = 1 per arm unless a row says otherwise. The exit code is 1 if a required figure is out of its bounds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import numpy as np
import scipy

from ablate.plan.lattice import effect_weights, subsets
from ablate.stats.corrections import holm
from ablate.stats.intervals import Cells, Estimate, paired_estimate, welch_estimate
from ablate.stats.replication import LOOKS, WEIGHTS, anytime_t, look_p

ALPHA = 0.05
MOST = LOOKS[-1]
Rows = list[list[float]]  # a study's arms, and in each the value of every seed


@dataclass(frozen=True)
class Share:
    """How many of the simulated studies; ``required`` bounds hold where there are any."""

    hits: int
    reps: int
    required: tuple[float, float] | None = None

    @property
    def value(self) -> float:
        return self.hits / self.reps

    @property
    def se(self) -> float:
        return math.sqrt(self.value * (1 - self.value) / self.reps)

    @property
    def holds(self) -> bool:
        return self.required is None or self.required[0] <= self.value <= self.required[1]

    def __str__(self) -> str:
        mark = "" if self.holds else " **out of bounds**"
        return f"{100 * self.value:.1f} ± {100 * self.se:.1f}{mark}"


def close_to(expected: float, reps: int) -> tuple[float, float]:
    """Within one point, or where so few studies cannot tell, within four standard errors."""
    slack = max(0.01, 4 * math.sqrt(expected * (1 - expected) / reps))
    return expected - slack, expected + slack


def at_least(bound: float, reps: int) -> tuple[float, float]:
    return bound - 4 * math.sqrt(bound * (1 - bound) / reps), 1.0


def at_most(bound: float, reps: int) -> tuple[float, float]:
    return 0.0, bound + 4 * math.sqrt(bound * (1 - bound) / reps)


# --- coverage ------------------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
Engine = Callable[[Cells], Estimate]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape)


def left_exponential(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return 1 - rng.exponential(size=shape)


def collapsing(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape) - 10 * (rng.uniform(size=shape) < 0.05)


BOUNDS: dict[str, Callable[[int], tuple[float, float]]] = {
    "95 ± 1": lambda reps: close_to(0.95, reps),
    "≥ 94": lambda reps: at_least(0.94, reps),
}


@dataclass(frozen=True)
class Noise:
    """Two arms' noise: one draw per arm, the variant's ``ratio`` times as large, and a normal part that seeds share."""

    label: str
    engine: Engine
    draw: Draw
    correlation: float = 0.0
    ratio: float = 1.0
    required: str = "not required"

    def arms(self, rng: np.random.Generator, reps: int, n: int) -> Iterator[tuple[list[float], list[float]]]:
        shared = math.sqrt(self.correlation) * rng.normal(size=(reps, n))
        own = math.sqrt(1 - self.correlation)
        variant, parent = (shared + own * self.draw(rng, (reps, n)) for _ in range(2))
        return zip((self.ratio * variant).tolist(), parent.tolist(), strict=True)


NOISES = [
    Noise("paired, normal, ρ = 0", paired_estimate, normal, required="95 ± 1"),
    Noise("paired, normal, ρ = .5", paired_estimate, normal, 0.5, required="95 ± 1"),
    Noise("paired, normal, ρ = .9", paired_estimate, normal, 0.9, required="95 ± 1"),
    Noise("unpaired, normal", welch_estimate, normal, required="≥ 94"),
    Noise("unpaired, normal, variant's sd ×4", welch_estimate, normal, ratio=4, required="≥ 94"),
    Noise("paired, left-exponential, ρ = 0", paired_estimate, left_exponential),
    Noise("paired, 5 % of seeds collapse by 10σ, ρ = .5", paired_estimate, collapsing, 0.5),
    Noise("unpaired, left-exponential", welch_estimate, left_exponential),
    Noise("unpaired, left-exponential, variant's sd ×4", welch_estimate, left_exponential, ratio=4),
]
SIZES = (3, 5, 10)


@dataclass(frozen=True)
class Coverage:
    share: Share
    width: float


def coverage(noise: Noise, n: int, reps: int, rng: np.random.Generator) -> Coverage:
    """Return how often the 95 % interval of the difference holds the truth, which is zero, and its mean width."""
    covered, widths = 0, []
    for variant, parent in noise.arms(rng, reps, n):
        bounds = noise.engine([(1, variant), (-1, parent)]).interval(ALPHA)
        assert bounds is not None
        covered += bounds[0] <= 0 <= bounds[1]
        widths.append(bounds[1] - bounds[0])
    required = None if noise.required == "not required" else BOUNDS[noise.required](reps)
    return Coverage(Share(covered, reps, required), float(np.mean(widths)))


# --- rules that add seeds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """At each look the unsettled comparisons are tested, each p divided by the look's weight, the least of them counts.

    ``margin`` is that of "no effect", in σ. Holm corrects the p-values of an effect and those of "no effect", each for
    the number of comparisons, unless ``corrected`` or ``corrected_none`` is False.
    """

    label: str
    looks: tuple[int, ...]
    weights: tuple[float, ...]
    corrected: bool = True
    margin: float | None = None
    corrected_none: bool = True


def fixed(n: int) -> Rule:
    return Rule(f"fixed n = {n}", (n,), (1.0,))


def naive(label: str, looks: Sequence[int], *, corrected: bool = True) -> Rule:
    return Rule(label, tuple(looks), (1.0,) * len(looks), corrected)


RULE_A = Rule("Rule A", LOOKS, WEIGHTS)


@dataclass(frozen=True)
class Ended:
    """Per comparison why it stopped ("effect", "no effect" or ""), and how many trials the study took."""

    why: list[str]
    trials: int


class Study:
    """One simulated ladder: arm k + 1 is compared with arm k, from the first n seeds of each."""

    def __init__(self, arms: Rows):
        self.arms, self.steps = arms, len(arms) - 1
        self.known: dict[tuple[int, int], Estimate] = {}  # the rules ask for the same ones

    def estimate(self, step: int, n: int) -> Estimate:
        if (step, n) not in self.known:
            cells = [(1, self.arms[step + 1][:n]), (-1, self.arms[step][:n])]
            self.known[step, n] = paired_estimate(cells)
        return self.known[step, n]

    def run(self, rule: Rule) -> Ended:
        """Follow the rule: only the arms of unsettled comparisons get more seeds."""
        effects: list[list[float | None]] = [[] for _ in range(self.steps)]
        nones: list[list[float | None]] = [[] for _ in range(self.steps)]
        why, seeds = [""] * self.steps, [0] * len(self.arms)
        for n in rule.looks:
            unsettled = [step for step in range(self.steps) if not why[step]]
            for step in unsettled:
                seeds[step] = seeds[step + 1] = n
                found = self.estimate(step, n)
                effects[step].append(found.p)
                nones[step].append(None if rule.margin is None else found.p_equivalent(rule.margin))
            of_effect, of_none = ([look_p(ps, rule.weights) for ps in tested] for tested in (effects, nones))
            of_effect = holm(of_effect) if rule.corrected else of_effect
            of_none = holm(of_none) if rule.corrected_none else of_none
            for step in unsettled:
                if is_below(of_effect[step]):
                    why[step] = "effect"
                elif is_below(of_none[step]):
                    why[step] = "no effect"
            if all(why):
                break
        return Ended(why, sum(seeds))

    def run_anytime(self) -> Ended:
        """Follow Rule B on the only comparison, after every seed."""
        for n in range(2, MOST + 1):
            found, critical = self.estimate(0, n), critical_t(n)
            assert found.se
            if critical is not None and abs(found.mean / found.se) >= critical:
                return Ended(["effect"], 2 * n)
        return Ended([""], 2 * MOST)


def is_below(p: float | None) -> bool:
    return p is not None and p < ALPHA


@cache
def critical_t(n: int) -> float | None:
    return anytime_t(n, ALPHA)


def ladders(effects: Sequence[float], reps: int, rng: np.random.Generator) -> Iterator[Study]:
    """Draw studies of a ladder whose steps have these effects; the arms of two steps share nothing but one arm."""
    means = np.concatenate([[0.0], np.cumsum(effects)])[:, None]
    for _ in range(reps):
        yield Study((means + rng.normal(size=(len(means), MOST))).tolist())


# --- one comparison ------------------------------------------------------------------------------------------------

ONE_RULES = [
    *(fixed(5), fixed(10), fixed(20)),
    naive("naive, at every seed 2…10", range(2, 11)),
    naive("naive, at every seed 3…20", range(3, 21)),
    naive("naive, at 3, 5, 8, 12, 20", LOOKS),
    RULE_A,
    Rule("Rule A, equal weights", LOOKS, (0.2,) * 5),
]
RULE_B = "Rule B, at every seed to 20"
ONE_EFFECTS = (0.0, 1.0, 2.0, 5.0)
# what promises an error of at most 5 %
PROMISES = {*(rule.label for rule in ONE_RULES if not rule.label.startswith("naive")), RULE_B}


@dataclass(frozen=True)
class Tally:
    share: Share
    seeds: float


def one_comparison(effect: float, reps: int, rng: np.random.Generator) -> dict[str, Tally]:
    """Return, per rule, how often it finds this effect (in σ, pairs that share nothing) and its mean seeds per arm."""
    labels = [*(rule.label for rule in ONE_RULES), RULE_B]
    hits, seeds = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
    for study in ladders([effect], reps, rng):
        for label, ended in zip(labels, [*map(study.run, ONE_RULES), study.run_anytime()], strict=True):
            hits[label] += ended.why == ["effect"]
            seeds[label] += ended.trials // 2
    required = at_most(ALPHA, reps)
    return {
        label: Tally(
            Share(hits[label], reps, required if not effect and label in PROMISES else None), seeds[label] / reps
        )
        for label in labels
    }


# --- a ladder of ten -----------------------------------------------------------------------------------------------

MARGIN = 1.5
LADDERS = {
    "ten steps without effect": (0.0,) * 10,
    "effects of 20, 17, 10, −60, 0, 1, −2, 15, 20, 0 σ": (20.0, 17.0, 10.0, -60.0, 0.0, 1.0, -2.0, 15.0, 20.0, 0.0),
    f"ten steps of exactly the margin, {MARGIN} σ": (MARGIN,) * 10,
}
LADDER_RULES = [
    *(fixed(5), fixed(20), RULE_A),
    Rule(f"Rule A, margin {MARGIN} σ", LOOKS, WEIGHTS, margin=MARGIN),
    Rule(f"Rule A, margin {MARGIN} σ, not corrected", LOOKS, WEIGHTS, margin=MARGIN, corrected_none=False),
    naive("naive at the looks, Holm", LOOKS),
    naive("naive at the looks, no correction", LOOKS, corrected=False),
]


@dataclass(frozen=True)
class Family:
    """Of one rule on one ladder. ``steps``: the share of studies that find each step."""

    trials: float
    any_false: Share | None  # of the steps without effect, at least one is found
    steps: tuple[Share, ...]
    certified: tuple[Share, ...]  # each step is called "no effect"
    any_wrongly_certified: Share | None  # of the steps as large as the margin


def ladder(effects: Sequence[float], reps: int, rng: np.random.Generator) -> dict[str, Family]:
    ends: dict[str, list[Ended]] = {rule.label: [] for rule in LADDER_RULES}
    for study in ladders(effects, reps, rng):
        for rule in LADDER_RULES:
            ends[rule.label].append(study.run(rule))
    return {rule.label: family(rule, effects, ends[rule.label]) for rule in LADDER_RULES}


def family(rule: Rule, effects: Sequence[float], ends: Sequence[Ended]) -> Family:
    nulls = [step for step, effect in enumerate(effects) if effect == 0]
    large = [step for step, effect in enumerate(effects) if abs(effect) >= MARGIN]

    def share_of_any(steps: Sequence[int], why: str) -> Share:
        naive_here = rule.label.startswith("naive") or (why == "no effect" and not rule.corrected_none)
        required = None if naive_here else at_most(ALPHA, len(ends))
        return Share(sum(any(end.why[step] == why for step in steps) for end in ends), len(ends), required)

    def shares(why: str) -> tuple[Share, ...]:
        return tuple(Share(sum(end.why[step] == why for end in ends), len(ends)) for step in range(len(effects)))

    return Family(
        trials=sum(end.trials for end in ends) / len(ends),
        any_false=share_of_any(nulls, "effect") if nulls else None,
        steps=shares("effect"),
        certified=shares("no effect"),
        any_wrongly_certified=share_of_any(large, "no effect") if large and rule.margin is not None else None,
    )


# --- tables --------------------------------------------------------------------------------------------------------


class Report:
    """Prints Markdown as it comes, and remembers the required figures."""

    def __init__(self) -> None:
        self.required: list[tuple[str, Share]] = []

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        for cells in (header, [":--", *["--:"] * (len(header) - 1)], *rows):
            self.line("| " + " | ".join(map(str, cells)) + " |")
        self.line()

    def note(self, label: str, share: Share | None) -> str:
        """Return the share for a table; remember it where it is required."""
        if share is None:
            return ""
        if share.required is not None:
            self.required.append((label, share))
        return str(share)

    def failed(self) -> list[str]:
        return [
            f"{label}: {share} %, required {100 * share.required[0]:.1f} to {100 * share.required[1]:.1f} %"
            for label, share in self.required
            if share.required is not None and not share.holds
        ]


def report_coverage(report: Report, reps: int, rng: np.random.Generator) -> None:
    report.line("## Coverage of the 95 % interval of a difference\n")
    report.line("In % of studies ± Monte-Carlo standard error, and the interval's mean width in σ.\n")
    rows = []
    for noise in NOISES:
        found = [coverage(noise, n, reps, rng) for n in SIZES]
        shares = [report.note(f"coverage, {noise.label}, n = {n}", c.share) for n, c in zip(SIZES, found, strict=True)]
        widths = " / ".join(f"{c.width:.2f}" for c in found)
        rows.append([noise.label, *shares, widths, noise.required])
    report.table(["difference", *(f"n = {n}" for n in SIZES), "widths", "required"], rows)
    report.line(
        "Satterthwaite's degrees of freedom are few at n = 3: unpaired intervals of equal arms are a little too wide.\n"
        "Skewed noise cancels where both arms share its shape; where one arm's is larger, no t interval is right.\n"
    )


# seed noise of an arm: parts that all arms share, that those alike in the first step share, and its own; as sd
SHARING = {
    "nothing shared": (0.0, 0.0, 1.0),
    "shared by all": (0.9, 0.0, 0.44),
    "shared where the first step is alike": (0.0, 0.96, 0.3),
}


def main_effect(sharing: tuple[float, float, float], steps: int, reps: int, rng: np.random.Generator) -> list[Cells]:
    """Return the first step's main effect, which is zero, of so many whole factorials with five seeds."""
    cells = list(subsets([f"step-{k}" for k in range(steps)]))
    weights = effect_weights(frozenset(["step-0"]), cells)
    assert weights is not None
    everywhere, by_level, own = sharing
    base = everywhere * rng.normal(size=(reps, 1, 5))
    level = by_level * rng.normal(size=(reps, 2, 5))
    alone = own * rng.normal(size=(reps, len(cells), 5))
    found = []
    for k in range(reps):
        noise = [base[k, 0] + level[k, int("step-0" in cell)] + alone[k, i] for i, cell in enumerate(cells)]
        found.append([(weights[cell], values.tolist()) for cell, values in zip(cells, noise, strict=True)])
    return found


def report_factorials(report: Report, reps: int, rng: np.random.Generator) -> None:
    report.line("## Main effect of a factorial, five seeds, α = .05\n")
    report.line("A step worth nothing is called an effect, in % of studies, by each engine.\n")
    rows = []
    for label, sharing in SHARING.items():
        for steps in (2, 3):
            drawn = main_effect(sharing, steps, reps, rng)
            paired = sum(is_below(paired_estimate(cells).p) for cells in drawn)
            welch = sum(is_below(welch_estimate(cells).p) for cells in drawn)
            share = Share(paired, reps, close_to(0.05, reps))
            rows.append(
                [
                    f"2^{steps}, seed noise {label}",
                    report.note(f"factorial 2^{steps}, {label}", share),
                    Share(welch, reps),
                ]
            )
    report.table(["design", "each seed's own contrast (`pairing: seed`)", "Welch–Satterthwaite (`none`)"], rows)
    report.line(
        "Welch takes the cells for independent. Where a step changes what a seed means, and the others do not, the\n"
        "cells of a level hold one noise several times: that is why seeds are paired in factorials too.\n"
    )


def report_one_comparison(report: Report, reps: int, rng: np.random.Generator) -> None:
    report.line("## One comparison, at most 20 seeds per arm, α = .05\n")
    report.line(
        "In % of studies that find the effect ± Monte-Carlo standard error, then the mean seeds per arm. ρ = 0.\n"
    )
    found = {effect: one_comparison(effect, reps, rng) for effect in ONE_EFFECTS}
    rows = []
    for label in found[0.0]:
        null, *rest = (found[effect][label] for effect in ONE_EFFECTS)
        powers = [f"{100 * tally.share.value:.0f}, {tally.seeds:.1f}" for tally in rest]
        required = "≤ 5" if label in PROMISES else "not required"
        rows.append([label, report.note(f"type-I error, {label}", null.share), *powers, required])
    effects = (f"{effect:g} σ: power, seeds" for effect in ONE_EFFECTS[1:])
    report.table(["rule", "no effect: type-I error", *effects, "required"], rows)


def report_ladders(report: Report, reps: int, rng: np.random.Generator) -> None:
    report.line("## A ladder of ten steps, α = .05 for all of them together\n")
    report.line("In % of studies ± Monte-Carlo standard error. Neighbouring steps share an arm.\n")
    null, user, edge = (ladder(effects, reps, rng) for effects in LADDERS.values())
    null_name, user_name, edge_name = LADDERS
    one, two = LADDERS[user_name].index(1.0), LADDERS[user_name].index(-2.0)

    report.line(f"### {null_name.capitalize()}\n")
    rows = [
        [
            label,
            report.note(f"family-wise error, {null_name}, {label}", found.any_false),
            f"{found.trials:.0f}",
            "not required" if label.startswith("naive") else "≤ 5",
        ]
        for label, found in null.items()
    ]
    report.table(["rule", "some step is found", "trials", "required"], rows)

    report.line(f"### {user_name.capitalize()}\n")
    rows = [
        [
            label,
            report.note(f"family-wise error, {user_name}, {label}", found.any_false),
            f"{100 * found.steps[one].value:.0f}",
            f"{100 * found.steps[two].value:.0f}",
            f"{100 * min(found.steps[k].value for k, e in enumerate(LADDERS[user_name]) if abs(e) >= 10):.0f}",
            f"{found.trials:.0f}",
        ]
        for label, found in user.items()
    ]
    report.table(["rule", "a step of 0 is found", "1 σ found", "2 σ found", "10 σ and more found", "trials"], rows)

    report.line('### "No effect"\n')
    rows = []
    for label, found in user.items():
        if found.any_wrongly_certified is not None:
            zeros = [found.certified[k].value for k, e in enumerate(LADDERS[user_name]) if e == 0]
            right = f"{100 * sum(zeros) / len(zeros):.0f}"
            wrong = report.note(f"wrongly certified, {user_name}, {label}", found.any_wrongly_certified)
            worst = report.note(f"wrongly certified, {edge_name}, {label}", edge[label].any_wrongly_certified)
            rows.append([label, right, wrong, worst, "not required" if "not corrected" in label else "≤ 5"])
    report.table(
        ["rule", "0 called no effect", f"some effect ≥ {MARGIN} σ called none", f"the same, {edge_name}", "required"],
        rows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.partition("\n")[0])
    parser.add_argument("--reps", type=int, default=10_000, help="simulated studies per figure (10000)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    rng, started, report = np.random.default_rng(chosen.seed), time.monotonic(), Report()
    report.line("# Calibration\n")
    report.line(f"`python -m benchmarks.calibration --reps {chosen.reps} --seed {chosen.seed}`,")
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}"
    report.line(f"{datetime.now(UTC):%Y-%m-%d}, {chosen.reps} studies per figure, {versions}.\n")
    for part in (report_coverage, report_factorials, report_one_comparison, report_ladders):
        part(report, chosen.reps, rng)
    failed = report.failed()
    report.line("## Required figures\n")
    report.line(
        f"{len(report.required) - len(failed)} of {len(report.required)} within bounds. An error rate "
        "may exceed its bound, and the coverage of unpaired arms fall short of it, by four standard errors."
    )
    for line in failed:
        report.line(f"- {line}")
    report.line(f"\n{(time.monotonic() - started) / 60:.1f} minutes.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
