"""``ablate plan``: every arm with exactly what differs, what is done, and what the rest costs.

What differs stands below its arm and not beside it: lists of widths need the whole line, at 80 columns and in a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from ablate.plan.arms import Contrast
from ablate.plan.cost import ArmCost, Cost
from ablate.plan.prefixes import Prefixes
from ablate.plan.trials import Plan
from ablate.report.notes import SAMPLERS
from ablate.report.numbers import plural, seed_list
from ablate.report.text import in_encoding, one_line
from ablate.stats.power import certifiable, detectable
from ablate.study.schema import SMALLEST_TEST, Study
from ablate.study.settings import differences
from ablate.study.words import duration

_GAP = 2
_INDENT = 4
_MOST_REUSE = 5  # lines on which arm goes on from which


@dataclass(frozen=True)
class _Entry:
    """An arm as it is printed: the line with its numbers, and what differs."""

    heading: str
    differs: tuple[str, ...]
    done: str
    trial: str


def print_plan(
    plan: Plan, cost: Cost, console: Console, *, spread: Spread | None = None, own_loop: bool = False
) -> None:
    """Print a plan to a console: a list of arms for each design, what its seeds can show, its trials and their cost.

    ``spread`` is that of differences in results that are there already. ``own_loop``: the task trains by ablate's loop.
    """
    study = plan.study
    metric = study.metrics[study.primary]
    better = "higher" if metric.goal == "max" else "lower"
    unit = f" ({metric.unit})" if metric.unit else ""
    _print(console, f"{study.title}: {study.question}" if study.question else study.title, style="bold")
    _print(console, f"primary metric {study.primary}{unit}, {better} is better; {_seeds(study)}")
    for line in _tuning(study):
        _print(console, line)
    costs = {each.arm: each for each in cost.arms if each.planned}
    for design in plan.rows:
        rows = [row for row in plan.contrasts if row.design == design and row.tested and set(row.arms) <= costs.keys()]
        if design in _CROSSING:
            entries = list(_models(plan, design, costs))
        else:
            entries = list(_entries(plan, rows, costs)) if rows else []
        if entries:
            console.print()
            _print_design(_estimand(design, rows), entries, console)
    if not study.steps:
        _print(console, "the study has no steps: only the baseline is run")
    console.print()
    for line in (
        *_power(plan, spread),
        *_totals(study.title, cost),
        *_growth(plan),
        *(_reuse(plan, costs) if own_loop else ()),
    ):
        _print(console, line)


def _print_design(estimand: str, entries: Sequence[_Entry], console: Console) -> None:
    timed = any(entry.trial for entry in entries)
    heading = _Entry(estimand, (), "done", "a trial" if timed else "")
    done, trial = (max(len(cell) for cell in cells) for cells in zip(*map(_cells, (heading, *entries)), strict=True))
    room = min(max(len(entry.heading) for entry in (heading, *entries)), console.width - done - trial - 2 * _GAP)
    for entry in (heading, *entries):
        style = "bold" if entry is heading else ""
        first, *rest = _wrapped(entry.heading, room, console)
        line = f"{first:{room}}{'':{_GAP}}{entry.done:>{done}}{'':{_GAP}}{entry.trial:>{trial}}"
        for text in (line, *rest):
            console.print(Text(text.rstrip(), style=style), soft_wrap=True)
        for change in entry.differs:
            for text in _wrapped(change, console.width, console, indent=_INDENT):
                console.print(Text(text, style="dim"), soft_wrap=True)


def _cells(entry: _Entry) -> tuple[str, str]:
    return entry.done, entry.trial


_CROSSING = ("factorial", "fractional", "path")


def _estimand(design: str, rows: Sequence[Contrast]) -> str:
    if design == "path":
        return "path: at each step the arm that helps most, then the chosen ones on fresh seeds"
    if design in _CROSSING:
        return f"{design}: {plural(len(rows), 'effect')} over all arms"
    if rows[0].minuend == rows[0].arm:
        return f"{design}: an effect is the arm less what it is compared with"
    return f"{design}: an effect is {rows[0].minuend} less the arm"


def _models(plan: Plan, design: str, costs: Mapping[str, ArmCost]) -> Iterator[_Entry]:
    """Yield every arm of a design that crosses steps, with what it has on the baseline."""
    for name in plan.rows[design]:
        if name in costs:
            changes = differences(plan.study.settings, plan.arm(name).settings)
            yield _Entry(name, tuple(map(str, changes)) or ("the settings as they stand",), *_numbers(costs[name]))


def _tuning(study: Study) -> Iterator[str]:
    if study.tune and study.budget:
        ranges = ", ".join(f"{path} ({found})" for path, found in study.tune.items())
        how = f"{plural(study.candidates, 'candidate')} by {SAMPLERS[study.budget.sampler]}"
        yield f"tuned for every arm: {ranges}; {how} on {plural(len(study.tuning_seeds), 'seed')} of their own"


def _seeds(study: Study) -> str:
    seeds = study.seeds
    if seeds.looks:
        shares = ", ".join(f"{weight:.2g}" for weight in seeds.weights)
        return f"looks at {', '.join(map(str, seeds.looks))} seeds (shares of alpha {shares})"
    if seeds.half_width is not None:
        return f"a pilot of {len(seeds.first)} seeds, then up to {len(seeds.numbers)} for ±{seeds.half_width:g}"
    fresh = f", confirmed on {seed_list(study.fresh_seeds)}" if study.fresh_seeds else ""
    return f"seeds {seed_list(seeds.numbers)}{fresh}"


@dataclass(frozen=True)
class Spread:
    """The sd of a difference between two arms at one seed, as ``rows`` comparisons of earlier results have it."""

    sd: float
    rows: int


def _power(plan: Plan, spread: Spread | None) -> Iterator[str]:
    """Say what the seeds can show, and at what price in seeds the corrected first step is to be had."""
    study, family = plan.study, len(plan.family)
    n = len(study.fresh_seeds) if study.confirm_seeds is not None else len(study.seeds.numbers)
    if not family or study.seeds.half_width is not None:
        return
    alpha = study.analysis.alpha * (study.seeds.weights[-1] if study.seeds.looks else 1)
    paired = study.analysis.pairing == "seed"
    alone, corrected = (detectable(n, level, paired=paired) for level in (alpha, alpha / family))
    of = "the differences" if paired else "one arm"
    if n < SMALLEST_TEST or alone is None or corrected is None:
        yield f"{plural(n, 'seed')}: means only; intervals and verdicts need {SMALLEST_TEST}"
        return
    unit = study.metrics[study.primary].unit or study.primary
    spread = spread if paired else None  # that of differences says nothing of one arm
    units = [f" ({size * spread.sd:.2g} {unit})" if spread else "" for size in (alone, corrected)]
    yield (
        f"{'at most ' if study.seeds.looks else ''}{plural(n, 'seed')}, {plural(family, 'comparison')}: shown 80% of "
        f"the time are effects of {alone:.2g} sd of {of}{units[0]} by themselves, of {corrected:.2g} "
        f"sd{units[1]} corrected for all"
    )
    if spread:
        yield f"sd of the differences: {spread.sd:.2g} {unit}, the median of {plural(spread.rows, 'comparison')} so far"
    else:
        yield f"sd of {of}: not known yet; `--only` one arm tells, as a pilot of the same seeds"
    margin = study.metrics[study.primary].margin
    if margin is not None and spread:
        least = certifiable(n, alpha / family, paired=paired)
        if least is not None:
            size = f"±{least * spread.sd:.2g} {unit}"
            yield f"a true zero would be shown to lie within {size} 80% of the time; the margin is ±{margin:g} {unit}"


def _entries(plan: Plan, rows: list[Contrast], costs: Mapping[str, ArmCost]) -> Iterator[_Entry]:
    named = {row.arm for row in rows}
    # the baseline, the full model, and references that no row is named after
    for name in dict.fromkeys(row.other for row in rows if row.other not in named):
        steps = plan.arm(name).steps
        what = "baseline plus " + ", ".join(steps) if steps else "the settings as they stand"
        yield _Entry(name, (what,), *_numbers(costs[name]))
    for row in rows:
        branch = " (branch)" if row.branch else ""
        note = (f"({row.note})",) if row.note else ()
        heading = f"{row.arm}{branch}, compared with {row.other}"
        yield _Entry(heading, (*map(str, row.changes), *note), *_numbers(costs[row.arm]))


def _numbers(cost: ArmCost) -> tuple[str, str]:
    done = f"{cost.done}/{cost.planned}" + (f" ({cost.failed} failed)" if cost.failed else "")
    if cost.trial_s is None:
        return done, ""
    return done, duration(cost.trial_s) + ("" if cost.measured else " (timed)")


def _growth(plan: Plan) -> Iterator[str]:
    """Say how many trials there may be in the end, where results decide."""
    study = plan.study
    if not study.grows:
        return
    arms = len({name for design, names in plan.rows.items() if design != "path" for name in names})
    fresh = arms if study.confirm_seeds is not None else 0
    if "path" in plan.rows:
        steps = len(study.trunk)
        arms, fresh = arms + steps * (steps + 1) // 2 + 1, fresh + steps + 1
    tuning = arms * study.candidates * len(study.tuning_seeds)
    most = tuning + arms * len(study.seeds.numbers) + fresh * len(study.fresh_seeds)
    yield f"results decide how many there are in the end: at most {plural(most, 'trial')}"


def _reuse(plan: Plan, costs: Mapping[str, ArmCost]) -> Iterator[str]:
    """Say which arms need not be trained from their start."""
    pairs = [pair for pair in Prefixes(plan).pairs() if {arm.name for arm in pair} <= costs.keys()]
    for longer, shorter in pairs[:_MOST_REUSE]:
        epochs, known = (arm.settings["train"]["epochs"] for arm in (longer, shorter))
        yield f"{longer.name} goes on from the end of {shorter.name} if that has ended: {known} of {epochs} epochs"
    if pairs[_MOST_REUSE:]:
        yield f"and so do {plural(len(pairs) - _MOST_REUSE, 'other arm')}"


def _totals(title: str, cost: Cost) -> Iterator[str]:
    failed = f", {cost.failed:,} failed (`ablate retry {title}` puts them back)" if cost.failed else ""
    yield f"{plural(cost.trials, 'trial')}: {cost.done:,} done, {cost.to_do:,} to do{failed}"
    if not cost.to_do:
        return
    known = f"about {duration(cost.seconds)} on one slot" if cost.seconds else "not known yet"
    if cost.unknown and cost.seconds:
        known += f", and {plural(len(cost.unknown), 'arm')} whose cost is not known"
    hint = "; `ablate plan --time` measures it" if cost.unknown else ""
    yield f"cost: {known}{hint}"


def _print(console: Console, text: str, *, style: str = "") -> None:
    for line in _wrapped(text, console.width, console):
        console.print(Text(line, style=style), soft_wrap=True)


def _wrapped(text: str, width: int, console: Console, *, indent: int = 0) -> list[str]:
    """Return the lines of a text in this width; all but the first are indented twice as far."""
    printable = Text(in_encoding(one_line(text), console.encoding))
    first = printable.wrap(console, width - indent)
    if len(first) < 2:
        return [" " * indent + line.plain.rstrip() for line in first]
    further = Text(printable.plain[len(first[0].plain) :].strip()).wrap(console, width - indent - 2)
    return [" " * indent + first[0].plain.rstrip(), *(" " * (indent + 2) + line.plain.rstrip() for line in further)]
