"""What stands under a table: what its signs mean, what was planned and what came of it, and what a row hides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ablate.analyse.findings import COMPARE, Analysis, ArmResult, Comparison, Counts, DesignResult, Effect
from ablate.report.numbers import duration, fixed, listed, p_value, plain, plural, seed_list
from ablate.report.text import one_line
from ablate.stats.power import detectable
from ablate.stats.proportions import accuracy_noise, clopper_pearson
from ablate.study.schema import SMALLEST_TEST

IDENTICAL = "bit-identical results: the change is probably not reaching the code"
NO_SEED_EFFECT = "seeds give identical runs; check seeding"

SAMPLERS = {"tpe": "TPE", "qmc": "quasi-random search", "grid": "grid search"}

# below this many seeds neither sd nor interval is printed: with one degree of freedom they mislead
SPREAD_FROM = SMALLEST_TEST
FULL_FROM = 5  # from here on a table needs no word about how little so few seeds can show


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
    with_rows_only: bool = False,
) -> tuple[Note, ...]:
    """Return the notes of a table of arms, those about rows first. ``shown``: effects printed with an interval."""
    about_rows: dict[str, list[int]] = {}
    there = {name: row for name, row in number.items() if _is_there(analysis, design, name)}
    for name, row in sorted(there.items(), key=lambda item: item[1]):
        for text in _notes_of_arm(analysis, design, analysis.arm(name, design.role), number):
            about_rows.setdefault(text, []).append(row)
    rows = tuple(Note(text, tuple(numbers)) for text, numbers in about_rows.items())
    if with_rows_only:
        return rows
    return (*rows, *general_notes(analysis, design, shown=shown, spread=spread))


def row_notes(
    analysis: Analysis, design: DesignResult, found: Sequence[Comparison], number: Mapping[str, int]
) -> tuple[Note, ...]:
    """Return the notes about effects over many cells, one for all rows that say the same."""
    rows: dict[str, list[int]] = {}
    for comparison in found:
        for text in _notes_of_comparison(analysis, design, comparison, number={}):
            rows.setdefault(text, []).append(number[comparison.name])
    return tuple(Note(text, tuple(numbers)) for text, numbers in rows.items())


def general_notes(
    analysis: Analysis, design: DesignResult, *, shown: Sequence[Effect], spread: bool = False
) -> Iterator[Note]:
    """Yield the notes about the whole table: signs, method, metric, what was planned, cost."""
    texts = [
        " ".join(_signs(analysis, design, spread=spread, shown=shown)),
        " ".join(_method(analysis, design)),
        " ".join(_seeds_rule(analysis, design)),
        _tuned(analysis),
        _metric(analysis),
        _counts(design.counts),
        _caveat(design),
        " ".join(_pairing(analysis, design)),
        _cost(analysis, design),
        *_published(analysis),
    ]
    yield from (Note(text) for text in texts if text)
    yield from (Note(text, item=True) for text in _assumed(analysis))


def _signs(analysis: Analysis, design: DesignResult, *, spread: bool, shown: Sequence[Effect]) -> Iterator[str]:
    arms = [analysis.arm(name, design.role) for name in design.arms if _is_there(analysis, design, name)]
    most = max((arm.cells[analysis.primary.name].n for arm in arms), default=0)
    if most == 1:
        yield "1 seed per row: no intervals, no verdicts."
        yield from _noise(analysis, arms)
    elif most == 2:
        yield "2 seeds per row: means only, no intervals, no verdicts; those need 3 seeds."
    else:
        seeds = analysis.seeds if design.role == "main" else analysis.fresh_seeds
        varies = analysis.is_adaptive or design.name == COMPARE
        yield f"n counts the seeds with a value{'' if varies else _planned_seeds(seeds)}."
    if spread:
        yield "± is the standard deviation over seeds."
    if shown:
        yield _brackets(analysis, shown)
    if spread and any(0 < arm.cells[analysis.primary.name].n < SPREAD_FROM for arm in arms):
        yield f"Below {SPREAD_FROM} seeds neither is printed."


def _brackets(analysis: Analysis, shown: Sequence[Effect]) -> str:
    sizes = sorted({effect.n for effect in shown})
    seeds = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    level = f"{100 * (1 - analysis.alpha):g}%"
    methods = {effect.method for effect in shown}
    how = {
        frozenset({"paired"}): f"paired t, {seeds} shared seeds",
        frozenset({"welch"}): f"Welch-Satterthwaite t, {seeds} seeds per model",
        frozenset({"stein"}): f"Stein's two-stage t, {seeds} shared seeds",
        frozenset({"crossed"}): f"t over {seeds} seeds crossed with the test examples",
    }.get(frozenset(methods), f"t, {seeds} seeds")
    each = "each for its own comparison, not corrected for their number"
    if analysis.looks:
        return f"Brackets are repeated confidence intervals of the difference ({how}): {level} over all looks, {each}."
    return f"Brackets are {level} confidence intervals of the mean difference ({how}), {each}."


def _method(analysis: Analysis, design: DesignResult) -> Iterator[str]:
    """Say how many comparisons p is corrected for, what a margin is, and what results can't have been foreseen."""
    tests = [test for row in design.comparisons if (test := row.effects[analysis.primary.name].conclusion) is not None]
    if not any(test.adjusted is not None for test in tests):
        return
    family = analysis.family
    withdrawn = f", {family.withdrawn} of them from other versions of the study" if family.withdrawn else ""
    name = "Holm" if analysis.correction == "holm" else "Benjamini-Hochberg (FDR)"
    if design.name == COMPARE:
        yield f"p: two-sided, {name} over the {plural(family.size, 'arm')} compared, after results were seen."
    elif family.size == 1:
        yield "p: two-sided, of the study's only comparison."
    else:
        yield f"p: two-sided, {name} over the {plural(family.size, 'comparison')} of the study{withdrawn}."
    if any(test.verdict == "no effect" for test in tests):
        yield "p is that of an effect; a verdict of no effect comes from two one-sided tests, corrected likewise."
    if analysis.later_versions:
        which = f"version{'s' if len(analysis.later_versions) > 1 else ''} {seed_list(analysis.later_versions)}"
        yield f"The study was run on other seeds since ({which}): to choose between them by results is one look more."
    margin = analysis.primary.margin
    if margin is not None and design.name == COMPARE:
        yield f"Equivalence margin ±{plain(margin)}, the study's."
    elif margin is not None:
        told = {"margin set after data", "declared after results were seen"}
        late = any(told & set(test.remarks) for test in tests)
        when = "declared after results were seen" if late else "declared before the first trial"
        yield f"Equivalence margin ±{plain(margin)}, {when}."
    if analysis.scope == "population":
        yield "Scope: new seeds and new examples of the same kind, not this test set alone."
    elif any(test.adjusted is not None for test in tests):
        yield "Scope: retrained with new seeds, scored on this same test set."
    small = [row.effects[analysis.primary.name] for row in design.comparisons]
    least = min(
        (effect.n for effect in small if effect.conclusion and effect.conclusion.adjusted is not None),
        default=FULL_FROM,
    )
    if least < FULL_FROM and not analysis.looks:
        paired = analysis.pairing == "seed"
        needed = detectable(least, analysis.alpha / family.size, paired=paired)
        if needed is not None:
            of = "the differences" if paired else "one arm"
            step = f"the first of {family.size} corrected tests" if family.size > 1 else "the test"
            yield f"n={least}: an effect needs to be about {needed:.2g} sd of {of} to pass {step} 80% of the time."


def _seeds_rule(analysis: Analysis, design: DesignResult) -> Iterator[str]:
    if analysis.looks:
        shares = ", ".join(f"{weight:.2g}" for weight in analysis.weights)
        yield f"Seeds were added at looks of {', '.join(map(str, analysis.looks))}, to unsettled comparisons only;"
        yield f"p is the least p/share over the looks reached (shares of alpha {shares}), valid however one stops."
        yield "A row's difference is over the seeds of its own last look, which may be fewer than its n."
    elif analysis.half_width is not None:
        yield f"Seeds: a pilot of {analysis.pilot}, then as many as its spread needs for intervals of"
        yield f"±{plain(analysis.half_width)}, without a look at the effects; intervals use the pilot's spread."
        most = max((row.effects[analysis.primary.name].n for row in design.comparisons), default=0)
        if most == len(analysis.seeds):
            yield f"Rows of {most} seeds are at the most that was allowed; their intervals may be wider."
    if design.role == "confirm":
        chosen, fresh = seed_list(analysis.seeds), seed_list(analysis.fresh_seeds)
        role = "only served to choose" if design.name == "path" else "are not in this table"
        yield f"All values are of fresh seeds ({fresh}); seeds {chosen} {role}."


def _tuned(analysis: Analysis) -> str:
    """Say that each arm has settings of its own, and that the seeds which chose them are not these."""
    tuning = analysis.tuning
    if tuning is None:
        return ""
    paths, sampler = listed(list(tuning.ranges)), SAMPLERS[tuning.sampler]
    seeds = f"seed{'s' if len(tuning.seeds) > 1 else ''} {seed_list(tuning.seeds)}"
    tried = f"the best of {tuning.size} tried ({sampler}, on {seeds})"
    edges = sum(bool(arm.edges) for arm in tuning.arms)
    warning = f" At the edge of a range for {plural(edges, 'arm')}: see the table of tuning." if edges else ""
    return (
        f"Each row has its own {paths}, {tried}; all values here are of other seeds.{warning} "
        "Intervals are for the settings that were chosen: another search could choose others."
    )


def _pairing(analysis: Analysis, design: DesignResult) -> Iterator[str]:
    """Say what sharing seeds has brought: how wide differences are beside those of independent seeds."""
    ratios = []
    for row in design.comparisons:
        effect = row.effects[analysis.primary.name]
        if (
            design.components
            or len(row.weights) != 2
            or effect.n < FULL_FROM
            or effect.sd is None
            or effect.method != "paired"
        ):
            continue
        sds = [analysis.arm(name, design.role).cells[analysis.primary.name].sd or 0.0 for name, _ in row.weights]
        if math.hypot(*sds) > 0:
            ratios.append(effect.sd / math.hypot(*sds))
    if ratios:
        ratio = median(ratios)
        change = "narrower" if ratio < 0.95 else "wider" if ratio > 1.05 else "neither narrower nor wider"
        by = "" if 0.95 <= ratio <= 1.05 else f" ({ratio:.2f} times)"
        yield f"Sharing seeds made differences {change}{by} than independent seeds would have, in the median row."


def _noise(analysis: Analysis, arms: Sequence[ArmResult]) -> Iterator[str]:
    """Say how far two runs of one configuration would differ from the size of the test set alone."""
    bands = [band for arm in arms if (band := _noise_of(analysis, arm)) is not None]
    if bands:
        size = median(bands) * math.sqrt(2) * 1.96
        examples = max(arm.examples for arm in arms)
        yield f"Two runs of one configuration would differ by up to about {size:.2g} here from test-set noise alone"
        yield f"({examples:,} examples); ~ marks smaller differences."


def noise_band(analysis: Analysis, comparison: Comparison) -> float | None:
    """Return the difference that two runs of one configuration stay within 95 % of the time; None if not known."""
    arms = [next((arm for arm in analysis.arms if arm.name == name), None) for name, _ in comparison.weights]
    sds = [_noise_of(analysis, arm) for arm in arms if arm is not None]
    return 1.96 * math.hypot(*(sd for sd in sds if sd is not None)) if len(sds) == 2 and None not in sds else None


def _noise_of(analysis: Analysis, arm: ArmResult) -> float | None:
    """Return the sd over seeds that the test set's size alone makes (Jordan 2024, eq. 6): a floor, for accuracies."""
    mean = arm.cells[analysis.primary.name].mean
    if mean is None or not arm.examples or not 0 <= mean <= arm.top:
        return None
    return accuracy_noise(mean / arm.top, arm.examples) * arm.top


def _is_there(analysis: Analysis, design: DesignResult, name: str) -> bool:
    return analysis.has_arm(name, design.role)


def _planned_seeds(seeds: Sequence[int]) -> str:
    text = seed_list(seeds)
    return f"; planned are {text} in every row" if len(text) < 20 else ""


def _metric(analysis: Analysis) -> str:
    metric = analysis.primary
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "higher is better" if metric.goal == "max" else "lower is better, so that a negative difference is a gain"
    return f"Metric: {metric.label}{unit}, {better}; each trial's is the value that it returned."


def _counts(counts: Counts) -> str:
    parts = {"failed": counts.failed, "running": counts.running, "waiting": counts.waiting}
    kinds = [f"{value} {name}" for name, value in parts.items() if value]
    missing = f"{counts.missing} missing" + (f" ({', '.join(kinds)})" if kinds else "")
    planned = plural(counts.planned, "trial")
    return f"{planned} planned = {counts.finished} finished + {counts.diverged} diverged + {missing}."


def _caveat(design: DesignResult) -> str:
    if design.name == "path" and not design.comparisons:
        return "The first step is not chosen yet: every trial of the candidates has to end first."
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
    text = f"{device} time is the wall time of the trials with a result, summed over seeds; {total} in all."
    trials = [trial for arm in analysis.arms if arm.name in design.arms for trial in arm.trials if trial.reused_s]
    reused = {trial.fingerprint: trial.reused_s for trial in trials if trial.has_result}
    if reused:
        text += (
            f" Of {plural(len(reused), 'trial')}, the first epochs were those of a shorter trial, to the same bits: "
            f"{duration(sum(reused.values()))} of the rows, spent there alone and once in the total."
        )
    return text


def _published(analysis: Analysis) -> Iterator[str]:
    if analysis.source:
        yield f"Published figures: {analysis.source.rstrip('.')}."


def _assumed(analysis: Analysis) -> Iterator[str]:
    for path, text in analysis.assumed.items():
        yield f"Assumed, {path}: {text.rstrip('.')}."


def _notes_of_arm(analysis: Analysis, design: DesignResult, arm: ArmResult, number: Mapping[str, int]) -> Iterator[str]:
    primary = analysis.primary.name
    cell = arm.cells[primary]
    if cell.undefined:
        kept = "† is the mean of those that finished; no difference is made with it." if cell.n else "No mean is made."
        yield f"{len(cell.undefined)} of {plural(len(arm.trials), 'seed')} diverged ({_seeds(cell.undefined)}). {kept}"
    yield from _scored_notes(analysis, arm)
    failed = [seed for seed in arm.seeds("failed") if seed not in cell.scored]
    yield from _secondary_notes(analysis, arm)
    if failed:
        yield f"{_seeds(failed)} failed ({arm.failure}); left out on both sides of each comparison."
    imported: dict[str, list[int]] = {}
    for trial in arm.trials:
        if trial.source == "imported":
            imported.setdefault(one_line(trial.environment.get("imported_from", "elsewhere")), []).append(trial.seed)
    for source, seeds in imported.items():
        was = "was" if len(seeds) == 1 else "were"
        yield f"{_seeds(seeds)} {was} imported ({source}), not run here."
    if arm.identical_seeds:
        yield f"{NO_SEED_EFFECT}."
    yield from drift_notes(arm)
    comparison = design.comparison(arm.name)
    if comparison is not None:
        yield from _notes_of_comparison(analysis, design, comparison, number=number)


def drift_notes(arm: ArmResult) -> Iterator[str]:
    """Say which seeds ran on something else than most trials did, or did not repeat themselves."""
    for drift in arm.drifts:
        if drift.fact == "code":
            yield f"{_seeds(drift.seeds)} ran another version of the task's code than most trials."
        else:
            yield f"{_seeds(drift.seeds)} ran with {drift.fact} {drift.here}, most trials with {drift.usual}."
    for miss in arm.mismatches:
        yield (
            f"seed {miss.seed} was resumed and did not repeat itself bit for bit: {miss.metric} of epoch {miss.epoch} "
            f"was {miss.first!r}, then {miss.again!r}{f' ({miss.count} numbers differ)' if miss.count > 1 else ''}."
        )


def _scored_notes(analysis: Analysis, arm: ArmResult) -> Iterator[str]:
    """Say what a mean with scored seeds would be without them, and how sure the share of those that converge is."""
    cell, metric = arm.cells[analysis.primary.name], analysis.primary
    if not cell.scored:
        return
    memory = [trial.seed for trial in arm.trials if trial.seed in cell.scored and trial.is_out_of_memory]
    diverged = [seed for seed in cell.scored if seed not in memory]
    kept = list(cell.finished.values())
    low, high = clopper_pearson(len(kept), cell.n)
    of = plural(cell.n, "seed")
    told = [
        f"{len(seeds)} of {of} {what} ({_seeds(seeds)}) and {'is' if len(seeds) == 1 else 'are'} scored "
        f"{_score(cell.values[seeds[0]], declared, word)}. "
        for seeds, what, declared, word in (
            (diverged, "diverged", metric.on_diverged, "on_diverged"),
            (memory, "ran out of memory", metric.on_oom, "on_oom"),
        )
        if seeds and declared is not None
    ]
    yield (
        f"! {''.join(told)}"
        + (f"Finished seeds only: {fixed(math.fsum(kept) / len(kept), 2)} (n = {len(kept)}). " if kept else "")
        + f"{'Finished' if memory else 'Converged'} {len(kept)}/{cell.n}, 95% CI {100 * low:.0f}-{100 * high:.0f}%."
    )


def _score(score: float, declared: float, word: str) -> str:
    if score == declared:
        return f"{plain(score)} ({word})"
    return f"{score:.5g}, the worst that finished ({word}, {plain(declared)}, would be better than that)"


def _notes_of_comparison(
    analysis: Analysis, design: DesignResult, comparison: Comparison, *, number: Mapping[str, int]
) -> Iterator[str]:
    """Yield what is to be said of one comparison. ``number`` has the rows of arms, where the table lists arms."""
    effect = comparison.effects[analysis.primary.name]
    if comparison.note:
        yield f"{comparison.note}."
    if comparison.identical:
        yield f"{IDENTICAL}."
    yield from _interval_notes(analysis, design, comparison, effect, number)
    yield from _test_notes(analysis, effect)
    others = [name for name in effect.withheld if name != comparison.arm]
    if others and number and comparison.arm not in effect.withheld:
        yield f"no difference: row {number[others[0]]} has a seed that diverged."
    elif others and not number:
        some = ", ".join(sorted(others)[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        yield f"no effect: {plural(len(others), 'model')} of it diverged at a seed ({some})."
    elif effect.why:
        yield f"no difference: {effect.why}."
    elif effect.mean is None and not effect.withheld:
        empty = sorted(name for name in _arms_of(comparison) if not _has_value(analysis, design, name))
        if empty and not (number and comparison.arm in empty):
            yield f"no difference: no seed of {', '.join(empty[:3])} has a value."
    elif (
        number
        and design.name != COMPARE
        and comparison.arm
        and effect.mean is not None
        and _is_partial(analysis, design, comparison, effect)
    ):
        yield f"the difference is over the {_shared(effect)} that row {number[comparison.other]} has as well."
    if comparison.networks_differ is not None:
        word = "err on different examples" if comparison.networks_differ < analysis.alpha else "may err alike"
        p = p_value(comparison.networks_differ)
        yield f"these two networks {word} (McNemar's exact p {p}), which says nothing of the change itself."


def _arms_of(comparison: Comparison) -> list[str]:
    return [name for name, _ in comparison.weights]


def _has_value(analysis: Analysis, design: DesignResult, name: str) -> bool:
    return _is_there(analysis, design, name) and analysis.arm(name, design.role).cells[analysis.primary.name].n > 0


def _is_partial(analysis: Analysis, design: DesignResult, comparison: Comparison, effect: Effect) -> bool:
    arm = analysis.arm(comparison.arm, design.role)
    own = arm.cells[analysis.primary.name].values.keys()
    if analysis.is_adaptive or not 0 < effect.n < len(own):
        return False
    return effect.n < len(own & {trial.seed for trial in arm.trials})


def _test_notes(analysis: Analysis, effect: Effect) -> Iterator[str]:
    test = effect.conclusion
    if test is None:
        return
    unit = f" {analysis.primary.unit}".replace(" %", "%") if analysis.primary.unit else ""
    if test.verdict == "unresolved" and test.bound is not None:
        level = f"{100 * (1 - analysis.alpha):g}%"
        bound = f"|effect| is below {test.bound:.2g}{unit} (one-sided {level}, not corrected)"
        if test.seeds_needed and test.target is not None and not analysis.is_adaptive:
            of = "the margin" if analysis.primary.margin is not None else "this size"
            seeds = plural(test.seeds_needed, "seed")
            bound += f"; about {seeds} would show an effect of {of}, corrected, 80% of the time"
        yield f"unresolved: {bound}."
    for remark in test.remarks:
        anytime = f" (p that allows for it, corrected: {p_value(test.anytime)})" if test.anytime else ""
        if "added" not in remark:
            anytime = ""
        elif test.verdict == "no effect":
            anytime = " (and no p that allows for it is made for no effect)"
        yield f"{remark}{anytime}."
    if test.if_dropped is not None:
        yield f"with the scored seeds left out instead, the verdict would be: {test.if_dropped}."


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
    analysis: Analysis, design: DesignResult, comparison: Comparison, effect: Effect, number: Mapping[str, int]
) -> Iterator[str]:
    """Say why a difference that has seeds enough stands without an interval, where no other note does."""
    if effect.mean is None or effect.n < SPREAD_FROM or effect.interval is not None or comparison.identical:
        return
    others = [name for name, _ in comparison.weights if name != comparison.arm]
    lifeless = [name for name in others if analysis.arm(name, design.role).identical_seeds]
    if lifeless:
        where = f"row {number[lifeless[0]]}" if number else lifeless[0]
        yield f"no interval: the seeds of {where} give identical runs."
    elif effect.sd == 0:
        yield "no interval: every seed gives the same difference."


def _shared(effect: Effect) -> str:
    return f"{plural(effect.n, 'seed')} ({seed_list(list(effect.differences))})"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seed_list(seeds)}"
