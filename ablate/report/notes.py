"""What stands under a table: what its signs mean, what was planned and what came of it, and what a row hides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.analyse.findings import Analysis, ArmResult, Comparison, Counts, DesignResult, Effect
from ablate.report.numbers import duration, plural, seed_list

IDENTICAL = "bit-identical results: the change is probably not reaching the code"
NO_SEED_EFFECT = "seeds give identical runs; check seeding"

# below this many seeds neither sd nor interval is printed: with one degree of freedom they mislead
SPREAD_FROM = 3


@dataclass(frozen=True)
class Note:
    """A sentence about a table, or about the rows with these numbers; ``item``: one of a list of its kind."""

    text: str
    rows: tuple[int, ...] = ()
    item: bool = False


def notes_of(
    analysis: Analysis,
    design: DesignResult,
    number: Mapping[str, int],
    *,
    spread: bool,
    shown: Sequence[Effect],
) -> tuple[Note, ...]:
    """Return the notes of a table, those about rows first. ``shown``: the effects that are printed with an interval."""
    names = sorted(number, key=lambda name: number[name])
    general = [
        " ".join(_signs(analysis, names, spread=spread, shown=shown)),
        _metric(analysis),
        _counts(design.counts),
        _caveat(design),
        _cost(analysis, design),
        *_published(analysis),
    ]
    return (
        *_row_notes(analysis, design, number),
        *(Note(text) for text in general if text),
        *(Note(text, item=True) for text in _assumed(analysis)),
    )


def _signs(analysis: Analysis, names: Sequence[str], *, spread: bool, shown: Sequence[Effect]) -> Iterator[str]:
    most = max(analysis.arm(name).cells[analysis.primary.name].n for name in names)
    if most == 1:
        yield "1 seed per row: no intervals, no verdicts."
    elif most == 2:
        yield "2 seeds per row: means only, no intervals, no verdicts; those need 3 seeds."
    else:
        yield f"n counts the seeds that finished{_planned_seeds(analysis.seeds)}."
    if spread:
        yield "± is the standard deviation over seeds."
    if shown:
        level = f"{100 * (1 - analysis.alpha):g}%"
        sizes = sorted({effect.n for effect in shown})
        seeds = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        yield f"Brackets are {level} confidence intervals of the mean difference (paired t, {seeds} shared seeds),"
        yield "each for its own comparison, not corrected for their number."
    if spread and any(0 < analysis.arm(name).cells[analysis.primary.name].n < SPREAD_FROM for name in names):
        yield f"Below {SPREAD_FROM} seeds neither is printed."


def _planned_seeds(seeds: Sequence[int]) -> str:
    text = seed_list(seeds)
    return f"; planned are {text} in every row" if len(text) < 20 else ""


def _metric(analysis: Analysis) -> str:
    metric = analysis.primary
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "higher is better" if metric.goal == "max" else "lower is better, so that a negative difference is a gain"
    return f"Metric: {metric.label}{unit}, {better}. Last epoch, no checkpoint selection."


def _counts(counts: Counts) -> str:
    parts = {"failed": counts.failed, "running": counts.running, "waiting": counts.waiting}
    kinds = [f"{value} {name}" for name, value in parts.items() if value]
    missing = f"{counts.missing} missing" + (f" ({', '.join(kinds)})" if kinds else "")
    planned = plural(counts.planned, "trial")
    return f"{planned} planned = {counts.finished} finished + {counts.diverged} diverged + {missing}."


def _caveat(design: DesignResult) -> str:
    if design.name != "ladder" or not design.comparisons:
        return ""
    text = "Each step is conditional on the steps above it; the order was chosen."
    if any(comparison.branch for comparison in design.comparisons):
        text += " └ marks what was tried and not kept: no later row builds on it unless it says so."
    return text


def _cost(analysis: Analysis, design: DesignResult) -> str:
    if not design.seconds:
        return ""
    device = "GPU" if analysis.gpus else "CPU"
    total = duration(design.seconds)
    return f"{device} time is the wall time of the trials with a result, summed over seeds; {total} in all."


def _published(analysis: Analysis) -> Iterator[str]:
    if analysis.source:
        yield f"Published figures: {analysis.source.rstrip('.')}."


def _assumed(analysis: Analysis) -> Iterator[str]:
    for path, text in analysis.assumed.items():
        yield f"Assumed, {path}: {text.rstrip('.')}."


def _row_notes(analysis: Analysis, design: DesignResult, number: Mapping[str, int]) -> tuple[Note, ...]:
    """Return the notes about rows, one for all rows that say the same."""
    rows: dict[str, list[int]] = {}
    for name, row in sorted(number.items(), key=lambda item: item[1]):
        for text in _notes_of_row(analysis, analysis.arm(name), design.comparison(name), number):
            rows.setdefault(text, []).append(row)
    return tuple(Note(text, tuple(numbers)) for text, numbers in rows.items())


def _notes_of_row(
    analysis: Analysis, arm: ArmResult, comparison: Comparison | None, number: Mapping[str, int]
) -> Iterator[str]:
    primary = analysis.primary.name
    undefined = arm.cells[primary].undefined
    if undefined:
        yield (
            f"{len(undefined)} of {plural(len(arm.trials), 'seed')} diverged ({_seeds(undefined)}). "
            "† is the mean of those that finished; no difference is made with it."
        )
    failed = arm.seeds("failed")
    yield from _secondary_notes(analysis, arm)
    if failed:
        yield f"{_seeds(failed)} failed ({arm.failure}); left out on both sides of each comparison."
    if arm.identical_seeds:
        yield f"{NO_SEED_EFFECT}."
    if arm.other_code:
        yield f"{_seeds(arm.other_code)} ran another version of the task's code than most trials."
    for drift in arm.drifts:
        yield f"{_seeds(drift.seeds)} ran with {drift.fact} {drift.here}, most trials with {drift.usual}."
    if comparison is None:
        return
    if comparison.note:
        yield f"{comparison.note}."
    if comparison.identical:
        yield f"{IDENTICAL}."
    effect = comparison.effects[primary]
    yield from _interval_notes(analysis, comparison, effect, number)
    if effect.withheld and arm.name not in effect.withheld:
        yield f"no difference: row {number[comparison.other]} has a seed that diverged."
    elif effect.mean is not None and 0 < effect.n < arm.cells[primary].n:
        yield f"the difference is over the {_shared(effect)} that row {number[comparison.other]} has as well."


def _secondary_notes(analysis: Analysis, arm: ArmResult) -> Iterator[str]:
    """Say where another metric is there for fewer seeds than the primary one, which is what the column n counts."""
    first = arm.cells[analysis.primary.name]
    for metric in analysis.metrics[1:]:
        cell = arm.cells[metric.name]
        undefined = [seed for seed in cell.undefined if seed not in first.undefined]
        if undefined:
            yield f"{metric.label} is no finite number for {_seeds(undefined)}. † is the mean of the others."
        elif cell.n < first.n:
            yield f"{metric.label} was returned for {cell.n} of {plural(first.n, 'seed')} only."


def _interval_notes(
    analysis: Analysis, comparison: Comparison, effect: Effect, number: Mapping[str, int]
) -> Iterator[str]:
    """Say why a difference that has seeds enough stands without an interval, where no other note does."""
    if effect.mean is None or effect.n < SPREAD_FROM or effect.interval is not None or comparison.identical:
        return
    if analysis.arm(comparison.other).identical_seeds:
        yield f"no interval: the seeds of row {number[comparison.other]} give identical runs."
    elif effect.sd == 0:
        yield "no interval: every seed gives the same difference."


def _shared(effect: Effect) -> str:
    return f"{plural(effect.n, 'seed')} ({seed_list(list(effect.differences))})"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seed_list(seeds)}"
