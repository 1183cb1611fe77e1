"""What a study has found, in a sentence or two: what stands above its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ablate.analyse.findings import Analysis, Counts, DesignResult, Effect
from ablate.report.numbers import listed, plain, plural, signed
from ablate.report.table import digits_of
from ablate.study.schema import SMALLEST_TEST

# what is counted, by design, and how each was judged
_SUBJECTS = {
    "ladder": ("step", "each compared with its parent"),
    "leave-one-out": ("step", "each judged by taking it alone from the final model"),
    "one-at-a-time": ("step", "each alone"),
    "path": ("step", "in the order of the path and on fresh seeds"),
    "factorial": ("step", "each in the mean over all settings of the others"),
    "fractional": ("main effect", "each a sum with the interactions that its row names"),
}


def answer(analysis: Analysis) -> str:
    """Return what the comparisons of the first design came to on the primary metric, and no more than they did."""
    design = analysis.designs[0]
    primary = analysis.primary.name
    tested = [row for row in design.comparisons if row.effects[primary].conclusion is not None]
    main = [row.effects[primary] for row in tested if not design.components or row.name in design.components]
    most = max((effect.n for effect in main if effect.mean is not None), default=0)
    if not most:
        return f"Nothing can be compared{' yet' if _is_open(design.counts) else ''}: {_ended(design.counts)}."
    noun, how = _SUBJECTS[design.name]
    subject = f"of {plural(len(main), noun)}, {how}, " if len(main) > 1 else f"the only {noun} "
    if most < SMALLEST_TEST:
        said = f"{subject}{listed(list(_raw(analysis, main)))}, which may be chance"
        if none := sum(effect.mean is None for effect in main):
            said += f"; {none} can't be compared{' yet' if _is_open(design.counts) else ''}"
        return f"Too early to tell, with {plural(most, 'seed')} per comparison: {said}."
    first = subject[0].upper() + subject[1:]
    said = f"{first}{_said(analysis, main)}{_together(analysis, design)}."
    pairs = [row.effects[primary] for row in tested if design.name == "factorial" and row.name not in design.components]
    return f"{said} {_interactions(analysis, pairs)}" if pairs else said


def standing(analysis: Analysis) -> str:
    """Return how far the trials have come; empty where every one of them finished."""
    counts = analysis.counts
    if counts.finished == counts.planned:
        return ""
    parts = {
        "finished": counts.finished,
        "diverged": counts.diverged,
        "failed": counts.failed,
        "running": counts.running,
        "waiting": counts.waiting,
    }
    kinds = [f"{number:,} {name}" for name, number in parts.items() if number or name == "finished"]
    return (
        f"{'Not finished' if _is_open(counts) else 'Incomplete'}: {plural(counts.planned, 'trial')}, {listed(kinds)}."
    )


def _is_open(counts: Counts) -> bool:
    return bool(counts.running + counts.waiting)


def _ended(counts: Counts) -> str:
    return f"{counts.done:,} of {plural(counts.planned, 'trial')} {'has' if counts.done == 1 else 'have'} a result"


def _verdict(effect: Effect) -> str:
    return effect.conclusion.verdict if effect.conclusion else "not tested"


def _said(analysis: Analysis, effects: Sequence[Effect]) -> str:
    parts = list(_parts(analysis, effects))
    if len(effects) == 1:
        return parts[0].removeprefix("all 1 ")
    if any(_verdict(effect) in ("better", "worse") for effect in effects):
        return listed(parts)
    return f"none is shown to change {analysis.primary.label}: {listed(parts)}"


def _parts(analysis: Analysis, effects: Sequence[Effect]) -> Iterator[str]:
    """Yield how many came to each verdict, in words."""
    margin = "" if analysis.primary.margin is None else plain(analysis.primary.margin)
    yet = " yet" if _is_open(analysis.counts) else ""
    named = analysis.primary.label
    for verdict, one, many in (
        ("better", "improves", "improve"),
        ("worse", "worsens", "worsen"),
        ("no effect", f"has no effect beyond ±{margin}", f"have no effect beyond ±{margin}"),
        ("unresolved", "is unresolved", "are unresolved"),
        ("identical", "leaves every number as it was", "leave every number as it was"),
        (
            "no seed effect",
            "can't be judged (seeds give identical runs)",
            "can't be judged (seeds give identical runs)",
        ),
        ("not tested", f"is not tested{yet}", f"are not tested{yet}"),
    ):
        found = [effect for effect in effects if _verdict(effect) == verdict]
        if not found:
            continue
        every = "all " if len(found) == len(effects) else ""
        words = f"{every}{len(found)} {one if len(found) == 1 else many}"
        if verdict in ("better", "worse"):
            words, named = f"{words} {named}", "it"
            small = sum(effect.conclusion is not None and effect.conclusion.within_margin for effect in found)
            words += f" ({'' if small == len(found) else f'{small} of them '}by less than {margin})" if small else ""
        yield words


def _raw(analysis: Analysis, effects: Sequence[Effect]) -> Iterator[str]:
    """Say which way differences point where nothing can be tested."""
    means = [effect.mean for effect in effects if effect.mean is not None]
    up, down = sum(mean > 0 for mean in means), sum(mean < 0 for mean in means)
    named = analysis.primary.label
    for number, words in ((up, "raised"), (down, "lowered")):
        if number:
            yield f"{number} {words} {named}"
            named = "it"
    if same := len(means) - up - down:
        yield f"{same} left {named} as it was"


def _together(analysis: Analysis, design: DesignResult) -> str:
    """Say what the whole ladder, or the whole path, came to; it is not tested."""
    total = design.total.effects[analysis.primary.name] if design.total else None
    if total is None or total.mean is None or len(design.comparisons) < 2:
        return ""
    # the decimals of the table below, where the same number stands
    arms = [arm for arm in analysis.arms if arm.role == design.role and arm.name in design.arms]
    places = digits_of(analysis, arms, [row.effects[analysis.primary.name] for row in design.comparisons]).effects
    unit = {"": "", "%": " percentage points"}.get(analysis.primary.unit, f" {analysis.primary.unit}")
    amount = f"{signed(total.mean, places)}{unit}"
    if total.interval is not None and total.n >= SMALLEST_TEST:
        amount += f" [{signed(total.interval.low, places)}, {signed(total.interval.high, places)}]"
    which = "those kept" if any(row.branch for row in design.comparisons) else "they"
    return f"; together {which} come to {amount}"


def _interactions(analysis: Analysis, pairs: Sequence[Effect]) -> str:
    """Say how many pairs of steps do more, or less, together than the two do alone."""
    margin = "" if analysis.primary.margin is None else plain(analysis.primary.margin)
    parts = []
    for verdict, one, many in (
        ("better", "helps each other", "help each other"),
        ("worse", "gets in each other's way", "get in each other's way"),
        ("no effect", f"does not interact beyond ±{margin}", f"do not interact beyond ±{margin}"),
        ("unresolved", "is unresolved", "are unresolved"),
    ):
        if number := sum(_verdict(effect) == verdict for effect in pairs):
            parts.append(f"{number} {one if number == 1 else many}")
    if rest := sum(_verdict(effect) not in ("better", "worse", "no effect", "unresolved") for effect in pairs):
        parts.append(f"{rest} {'is' if rest == 1 else 'are'} not tested")
    return f"Of {plural(len(pairs), 'pair')} of steps, {listed(parts)}."
