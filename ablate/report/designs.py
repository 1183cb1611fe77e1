"""The tables of each design, from its findings: one row per arm, or one per effect over many arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ablate.analyse.findings import COMPARE, Analysis, ArmResult, Comparison, DesignResult, Effect
from ablate.plan.crossed import SHAPLEY, letters
from ablate.plan.designs import BOTH, REMAINDER
from ablate.plan.lattice import ROMAN, gains
from ablate.report.columns import chosen
from ablate.report.notes import SPREAD_FROM, Note, general_notes, noise_band, notes_of, row_notes
from ablate.report.numbers import duration, energy, plain, quantity, signed
from ablate.report.table import (
    Column,
    Digits,
    Row,
    Table,
    Text,
    Value,
    conclusion_cells,
    conclusion_columns,
    count_text,
    difference_text,
    digits_of,
    effect_title,
    filled,
    metric_columns,
    plot_of,
    step_columns,
    value_text,
)
from ablate.report.tuning import tuning_table
from ablate.study.schema import step_of

EFFECT_TITLES = {
    "ladder": "Δ vs parent",
    "leave-one-out": "worth in the final model",
    "one-at-a-time": "worth alone",
    "factorial": "effect",
    "fractional": "effect",
    "path": "Δ vs row above",
    BOTH: "worth in the final model",
    COMPARE: "B − A",
}

ESTIMANDS = {
    "ladder": "Δ is the mean of a row minus the mean of its parent: the effect of the step given the steps above it. "
    "The parent is the row above, unless the row names another.",
    "leave-one-out": "Worth in the final model is the mean of the full model (row 0) minus the mean of the row: "
    "what is lost when that step alone is taken away. Better: the step earns its place; worse: the model does better "
    "without it.",
    "one-at-a-time": "Worth alone is the mean of a row minus the mean of the baseline (row 0), or of the row that it "
    "names: the effect of that step with no other.",
    "factorial": "An effect of one step is what adding it changes, in the mean over all settings of the others. "
    "An interaction a × b is half of what b changes about the effect of a: better if the two help each other.",
    "fractional": "An effect is the sum of those that its letters name: a fraction of all models can't tell them "
    "apart. That of one step is what adding it changes, in the mean over the others, plus those interactions.",
    "path": "Each row adds the step that helped most, as the first seeds told. Δ is the mean of a row minus the mean "
    "of the row above, measured again on fresh seeds.",
    BOTH: "Worth in the final model: the full model minus the model without the step. Worth alone: the baseline with "
    "the step minus the baseline. Mean: of the two; the Shapley value of the step if no three steps interact.",
    COMPARE: "B − A is the mean of an arm there minus its mean here, seed by seed where both have the seed.",
}


_DESIGN_NOUNS = {"factorial": "factorial", "fractional": "fraction"}


def build_tables(analysis: Analysis, columns: Sequence[str] = ()) -> tuple[Table, ...]:
    """Return the tables of each design, in the order in which the study lists them, and last that of tuning.

    ``columns`` are the names of those to show, in this order. Raises AblateError for a name that there is not.
    """
    tables = [
        table for design in analysis.designs for table in _tables(analysis, design, with_steps="steps" in columns)
    ]
    if analysis.tuning:
        tables.append(tuning_table(analysis, analysis.tuning))
    return chosen(tables, analysis, columns)


def _tables(analysis: Analysis, design: DesignResult, *, with_steps: bool) -> Iterator[Table]:
    if design.name == BOTH:
        yield _side_by_side(analysis, design)
    elif design.name == COMPARE:
        yield _two_studies(analysis, design)
    elif design.components:
        yield _effects(analysis, design)
        if any(SHAPLEY in row.name for row in design.comparisons):
            yield _any_order(analysis, design)
        yield _models(analysis, design)
    else:
        yield _arms(analysis, design, with_steps=with_steps)


# --- one row per arm -----------------------------------------------------------------------------------------------


def _arms(analysis: Analysis, design: DesignResult, *, with_steps: bool) -> Table:
    number = row_numbers(analysis, design)
    arms = [analysis.arm(name, design.role) for name in number if analysis.has_arm(name, design.role)]
    effects = [row.effects[analysis.primary.name] for row in design.comparisons]
    digits = digits_of(analysis, arms, effects)
    # in the order in which the rows come by them; a thousand arms may have a thousand
    steps = list(dict.fromkeys(step for arm in arms for step in arm.steps)) if with_steps else []
    rows = [_row(analysis, design, arm, number, digits, steps) for arm in arms]
    if design.total is not None:
        rows.append(_total_row(analysis, design, design.total, number, digits))
    spread = any(isinstance(text, Value) and text.sd for row in rows for text in row.cells.values())
    shown = _shown_effects(analysis, design)
    return Table(
        design=design.name,
        heading=f"{analysis.title}: {design.name}",
        progress=_progress(analysis, design),
        estimand=ESTIMANDS[design.name],
        columns=_arm_columns(analysis, design, rows, steps),
        rows=tuple(rows),
        places=digits.effects,
        notes=notes_of(analysis, design, number, spread=spread, shown=shown),
        bold=_bold(analysis, design),
    )


def _bold(analysis: Analysis, design: DesignResult) -> str:
    """Say what a mean in bold is, in the renderings that have bold."""
    if not design.best:
        return ""
    return (
        f"Bold: the best mean of {analysis.primary.label}, and those not shown to be worse (difference to the best, "
        f"Holm over those differences, alpha {plain(analysis.alpha)}; nor by a verdict of this table)."
    )


def row_numbers(analysis: Analysis, design: DesignResult) -> dict[str, int]:
    """Return the arms as the table of a design lists them, with the numbers of their rows.

    Leave-one-out goes by worth, the best first, and last what has no effect; a factorial by its models' means, from 1.
    """
    if design.name == "leave-one-out":
        names = [design.arms[0], *(each.arm for each in _by_worth(analysis, design))]
    elif design.components:
        names = [arm.name for arm in _by_mean(analysis, design)]
    else:
        names = list(design.arms)
    return {name: number for number, name in enumerate(names, start=1 if design.components else 0)}


def _by_worth(analysis: Analysis, design: DesignResult) -> list[Comparison]:
    sign = 1 if analysis.primary.goal == "max" else -1

    def place(comparison: Comparison) -> tuple[bool, float]:
        mean = comparison.effects[analysis.primary.name].mean
        return mean is None, -sign * (mean or 0.0)

    return sorted(design.comparisons, key=place)


def _progress(analysis: Analysis, design: DesignResult) -> str:
    counts = design.counts
    if counts.running + counts.waiting == 0:
        return ""
    have = f"{counts.done} of {counts.planned} trials have a result"
    when = "are of the last complete look" if analysis.looks else "wait for all planned seeds"
    return f"not finished: {have}; the numbers will change, and verdicts {when}"


def _row(
    analysis: Analysis,
    design: DesignResult,
    arm: ArmResult,
    number: Mapping[str, int],
    digits: Digits,
    steps: Sequence[str],
) -> Row:
    comparison = design.comparison(arm.name)
    cells: dict[str, Text] = {
        "number": str(number[arm.name]),
        "label": _label(design, arm, comparison, number),
        **_arm_cells(analysis, design, arm, digits),
    }
    effect = None if comparison is None else comparison.effects[analysis.primary.name]
    cells["effect"] = _marked(analysis, comparison, effect, difference_text(effect, digits.effects))
    if comparison is not None and comparison.claimed is not None:
        cells["claimed"] = signed(comparison.claimed, digits.effects)
    cells |= conclusion_cells(effect, analysis.primary, looks=len(analysis.looks))
    cells |= {f"step:{step}": "✓" if step in arm.steps else "·" for step in steps}
    is_branch = comparison is not None and comparison.branch
    return Row(str(number[arm.name]), cells, branch=is_branch, plot=plot_of(effect))


def _marked(analysis: Analysis, comparison: Comparison | None, effect: Effect | None, text: Text) -> Text:
    """Mark a difference of single runs that is no larger than what two runs of one configuration would show."""
    if comparison is None or effect is None or effect.mean is None or effect.n != 1:
        return text
    band = noise_band(analysis, comparison)
    return f"~{text}" if band is not None and abs(effect.mean) < band else text


def _arm_cells(analysis: Analysis, design: DesignResult, arm: ArmResult, digits: Digits) -> dict[str, Text]:
    cells: dict[str, Text] = {
        "n": count_text(arm, analysis),
    }
    if arm.seconds is not None:
        cells |= {"cost": duration(arm.seconds), "hours": f"{arm.seconds / 3600:.3g}"}
    if arm.energy_j is not None:
        cells["energy"] = energy(arm.energy_j)
    for metric in analysis.metrics:
        cells[f"metric:{metric.name}"] = value_text(arm, metric, digits.cells[metric.name], analysis)
        if metric.name in arm.published:
            cells[f"published:{metric.name}"] = plain(arm.published[metric.name])
    primary = cells[key := f"metric:{analysis.primary.name}"]
    if arm.name in design.best and isinstance(primary, Value):
        cells[key] = replace(primary, best=True)
    for fact in ("parameters", "flops", "images_per_s"):
        if fact in arm.facts:
            cells[fact] = quantity(arm.facts[fact])
    return cells


def _total_row(
    analysis: Analysis, design: DesignResult, total: Comparison, number: Mapping[str, int], digits: Digits
) -> Row:
    effect = total.effects[analysis.primary.name]
    last, first = number[total.minuend], number[total.subtrahend]
    planned = max(len(analysis.arm(name, design.role).trials) for name, _ in total.weights)
    cells: dict[str, Text] = {
        "label": f"total (row {last} − {first})",
        "n": str(effect.n) if effect.n == planned or analysis.is_adaptive else f"{effect.n}/{planned}",
        "effect": _marked(analysis, total, effect, difference_text(effect, digits.effects)),
    }
    return Row("", cells, total=True)


def _label(design: DesignResult, arm: ArmResult, comparison: Comparison | None, number: Mapping[str, int]) -> str:
    if comparison is None:
        return {"full": "full model (all steps)"}.get(arm.name, arm.title)
    if design.name == "path":
        return f"+ {comparison.title}"
    title = f"└ {arm.title}" if design.name == "ladder" and comparison.branch else arm.title
    expected = number[arm.name] - 1 if design.name == "ladder" else 0
    other = number[comparison.other]
    return title if other == expected else f"{title} (vs row {other}, {comparison.other})"


def _shown_effects(analysis: Analysis, design: DesignResult) -> tuple[Effect, ...]:
    """Return the effects that are printed with an interval."""
    return _with_interval(analysis, [*design.comparisons, *([design.total] if design.total else [])])


def _with_interval(analysis: Analysis, found: Sequence[Comparison]) -> tuple[Effect, ...]:
    effects = [each.effects[analysis.primary.name] for each in found]
    return tuple(effect for effect in effects if effect.interval is not None and effect.n >= SPREAD_FROM)


def _arm_columns(
    analysis: Analysis, design: DesignResult, rows: Sequence[Row], steps: Sequence[str]
) -> tuple[Column, ...]:
    columns = [
        Column("number", "#"),
        Column("label", "change" if design.name in ("ladder", "path") else "model", right=False),
        *step_columns(steps),
        Column("n", "n"),
        *metric_columns(analysis.primary, rank=0, published_rank=1),
        Column("claimed", "when chosen", rank=1),
        Column("effect", effect_title(analysis, EFFECT_TITLES[design.name], rows)),
        *conclusion_columns(analysis, rows),
        *(column for metric in analysis.metrics[1:] for column in metric_columns(metric, rank=4, published_rank=6)),
        *_cost_columns(analysis, sizes_rank=5),
    ]
    return filled(columns, rows)


def _cost_columns(analysis: Analysis, *, sizes_rank: int | None) -> Iterator[Column]:
    """Yield what a row costs; without a rank, the sizes of the network are there to be asked for."""
    device, asked = "GPU" if analysis.gpus else "CPU", sizes_rank is None
    yield Column("parameters", "params", rank=sizes_rank or 5, asked=asked)
    yield Column("flops", "FLOPs", rank=sizes_rank or 5, asked=asked)
    yield Column("images_per_s", "images/s", rank=5, asked=True)
    yield Column("cost", f"{device} time", rank=2)
    yield Column("hours", f"{device} hours", rank=2, asked=True)
    yield Column("energy", "GPU energy", rank=2, asked=True)


# --- one row per effect --------------------------------------------------------------------------------------------


def _effects(analysis: Analysis, design: DesignResult) -> Table:
    """The main effects and interactions of crossed steps; of higher interactions only the interval."""
    found = [row for row in design.comparisons if not row.arm and SHAPLEY not in row.name]
    number = {row.name: index for index, row in enumerate(found, start=1)}
    arms = [analysis.arm(name, design.role) for name in design.arms]
    digits = digits_of(analysis, arms, [row.effects[analysis.primary.name] for row in found])
    rows = [_effect_row(analysis, row, number[row.name], digits) for row in found]
    if design.name == "fractional" and _resolution(design, found) == 3:
        rows = [replace(row, cells={**row.cells, "verdict": f"{row.cells['verdict']} (the sum)"}) for row in rows]
    columns = [
        Column("number", "#"),
        Column("label", "effect", right=False),
        Column("n", "n"),
        Column("effect", effect_title(analysis, EFFECT_TITLES[design.name], rows)),
        *conclusion_columns(analysis, rows),
    ]
    return Table(
        design=design.name,
        heading=f"{analysis.title}: {design.name}",
        progress=_progress(analysis, design),
        estimand=ESTIMANDS[design.name],
        columns=filled(columns, rows),
        rows=tuple(rows),
        places=digits.effects,
        notes=(
            *row_notes(analysis, design, found, number),
            *general_notes(analysis, design, shown=_with_interval(analysis, found)),
            *_crossing_notes(design, found, analysis.primary.margin),
        ),
    )


def _effect_row(analysis: Analysis, row: Comparison, number: int, digits: Digits) -> Row:
    effect = row.effects[analysis.primary.name]
    cells: dict[str, Text] = {
        "number": str(number),
        "label": row.title,
        "n": str(effect.n),
        "effect": difference_text(effect, digits.effects),
        **conclusion_cells(effect, analysis.primary, looks=len(analysis.looks)),
    }
    return Row(str(number), cells, plot=plot_of(effect))


def _crossing_notes(design: DesignResult, found: Sequence[Comparison], margin: float | None) -> Iterator[Note]:
    steps = design.components
    if design.name == "fractional":
        # every effect stands for as many products as the fraction leaves models out
        resolution = _resolution(design, found)
        letters_of = ", ".join(f"{letters(steps, frozenset([step]))} {step}" for step in steps)
        screening = " Screening only: a main effect may be an interaction of two." if resolution == 3 else ""
        size = f"{len(design.arms)} of {2 ** len(steps)} models, resolution {ROMAN[resolution]}"
        yield Note(f"A fraction: {size}; {letters_of}.{screening}")
        return
    pairs = {f"{a} × {b}" for i, a in enumerate(steps) for b in steps[i + 1 :]}
    absent = sorted(pairs - {row.name for row in found})
    if absent:
        yield Note(f"Not estimable, for their steps can't all be combined: {', '.join(absent)}.")
    if any(row.name.count("×") > 1 for row in found):
        yield Note("Interactions of three or more steps are estimated and not tested.")
    if margin is not None:
        yield Note("An interaction is half of the change it makes, and the margin is held against that half.")


def _resolution(design: DesignResult, found: Sequence[Comparison]) -> int:
    """Return the resolution of a fraction: one more than the shortest product that a main effect is summed with."""
    aliases = [
        part.strip()
        for row in found
        if row.name in design.components
        for part in row.title.rpartition("[")[2].rstrip("]").split("+")[1:]
    ]
    return 1 + min(map(len, aliases))


def _any_order(analysis: Analysis, design: DesignResult) -> Table:
    """What each step gains in any order: its mean over all orders, and how far that depends on the order."""
    primary = analysis.primary.name
    arms = [analysis.arm(name, design.role) for name in design.arms]
    digits = digits_of(analysis, arms, [row.effects[primary] for row in design.comparisons])
    cells_of = {frozenset(arm.steps): arm.cells[primary] for arm in arms}
    means = {steps: cell.mean for steps, cell in cells_of.items() if cell.mean is not None and not cell.undefined}
    rows = []
    for row in design.comparisons:
        step = row.name.removesuffix(f" {SHAPLEY}")
        if step == row.name:
            continue
        effect = row.effects[primary]
        found = gains(step, means) if len(means) == len(arms) else []
        cells: dict[str, Text] = {"label": row.title, "effect": difference_text(effect, digits.effects)}
        if found:
            cells |= {"least": signed(min(found), digits.effects), "most": signed(max(found), digits.effects)}
        rows.append(Row("", cells, plot=plot_of(effect)))
    columns = [
        Column("label", "step", right=False),
        Column("effect", effect_title(analysis, "mean over orders", rows)),
        Column("least", "smallest"),
        Column("most", "largest"),
    ]
    return Table(
        design=design.name,
        heading=f"{analysis.title}: what each step gains, in any order",
        progress="",
        estimand="Mean over orders is what adding the step changes, in the mean over all orders in which the steps can "
        "be added (the Shapley value); the means sum to the total gain. Smallest and largest are over what "
        "else is on: one ladder shows a single one of these.",
        columns=filled(columns, rows),
        rows=tuple(rows),
        places=digits.effects,
        notes=(),
    )


def _by_mean(analysis: Analysis, design: DesignResult) -> list[ArmResult]:
    """Return the arms of a design with the best mean first, and last those without one."""
    sign = -1 if analysis.primary.goal == "max" else 1

    def place(arm: ArmResult) -> tuple[bool, float]:
        mean = arm.cells[analysis.primary.name].mean
        return mean is None, sign * (mean or 0.0)

    return sorted((analysis.arm(name, design.role) for name in design.arms), key=place)


def _models(analysis: Analysis, design: DesignResult) -> Table:
    """Every model that was trained, the best first, with the steps that it has."""
    primary = analysis.primary.name
    arms = _by_mean(analysis, design)
    digits = digits_of(analysis, arms, [row.effects[primary] for row in design.comparisons if row.arm])
    number = row_numbers(analysis, design)
    rows = []
    for arm in arms:
        row = design.comparison(arm.name)
        effect = row.effects[primary] if row else None
        cells: dict[str, Text] = {
            "number": str(number[arm.name]),
            "label": arm.title if len(arm.steps) < 2 else f"{len(arm.steps)} steps",
            **{f"step:{step}": "✓" if step in arm.steps else "·" for step in design.components},
            **_arm_cells(analysis, design, arm, digits),
            "effect": difference_text(effect, digits.effects),
        }
        rows.append(Row(str(number[arm.name]), cells, plot=plot_of(effect)))
    marks = [Column(f"step:{step}", letters(design.components, frozenset([step]))) for step in design.components]
    columns = [
        Column("number", "#"),
        Column("label", "model", right=False),
        *marks,
        Column("n", "n"),
        *metric_columns(analysis.primary, rank=0, published_rank=1),
        Column("effect", effect_title(analysis, "Δ vs largest", rows), rank=1),
        *(column for metric in analysis.metrics[1:] for column in metric_columns(metric, rank=4, published_rank=6)),
        *_cost_columns(analysis, sizes_rank=None),
    ]
    legend = ", ".join(f"{letters(design.components, frozenset([step]))} {step}" for step in design.components)
    return Table(
        design=design.name,
        heading=f"{analysis.title}: the models of the {_DESIGN_NOUNS[design.name]}, best first",
        progress="",
        estimand=f"✓ marks the steps that a model has: {legend}."
        + (" Δ is to the model with the most steps; not tested." if any(row.plot for row in rows) else ""),
        columns=filled(columns, rows),
        rows=tuple(rows),
        places=digits.effects,
        notes=notes_of(analysis, design, number, spread=True, shown=(), with_rows_only=True),
        bold=_bold(analysis, design),
    )


def _side_by_side(analysis: Analysis, design: DesignResult) -> Table:
    """Leave-one-out beside one-at-a-time: a step may be worth much alone and little in the final model."""
    primary = analysis.primary.name
    final = next(each for each in analysis.designs if each.name == "leave-one-out")
    alone = {
        step_of(row.arm): row for each in analysis.designs if each.name == "one-at-a-time" for row in each.comparisons
    }
    means = {row.name: row for row in design.comparisons}
    arms = [analysis.arm(name, design.role) for name in design.arms]
    effects = [row.effects[primary] for row in (*final.comparisons, *alone.values(), *design.comparisons)]
    digits = digits_of(analysis, arms, effects)
    rows = []
    for row in _by_worth(analysis, final):
        step = step_of(row.arm)
        effect = row.effects[primary]
        cells: dict[str, Text] = {
            "label": analysis.arm(row.arm, design.role).title.removeprefix("without "),
            "effect": difference_text(effect, digits.effects),
            **conclusion_cells(effect, analysis.primary, looks=len(analysis.looks)),
            "alone": difference_text(alone[step].effects[primary], digits.effects) if step in alone else "",
            "mean": difference_text(means[step].effects[primary], digits.effects) if step in means else "",
        }
        rows.append(Row("", cells, plot=plot_of(effect)))
    if REMAINDER in means:
        rest = means[REMAINDER].effects[primary]
        rows.append(Row("", {"label": "remainder", "mean": difference_text(rest, digits.effects)}, total=True))
    columns = [
        Column("label", "step", right=False),
        Column("effect", effect_title(analysis, "in the final model", rows)),
        *conclusion_columns(analysis, rows, rank=1),
        Column("alone", effect_title(analysis, "alone", rows, "alone")),
        Column("mean", effect_title(analysis, "mean", rows, "mean")),
    ]
    return Table(
        design=BOTH,
        heading=f"{analysis.title}: leave-one-out beside one-at-a-time",
        progress="",
        estimand=ESTIMANDS[BOTH],
        columns=filled(columns, rows),
        rows=tuple(rows),
        places=digits.effects,
        notes=_remainder_notes(analysis, design, means),
    )


def _remainder_notes(analysis: Analysis, design: DesignResult, means: Mapping[str, Comparison]) -> tuple[Note, ...]:
    if REMAINDER not in means:
        tied = "Steps that require others, or are required, have no mean: the two columns compare different things."
        return (Note(tied),) if len(means) < len(design.arms) // 2 else ()
    rest = means[REMAINDER].effects[analysis.primary.name].interval
    text = "Remainder: the total gain minus the sum of the means, which is zero where no three steps interact."
    if rest is None:
        return (Note(text),)
    if rest.low <= 0 <= rest.high:
        return (
            Note(f"{text} Its interval holds zero: nothing speaks against reading the means as shares of the gain."),
        )
    return (
        Note(f"{text} Its interval leaves zero out, as where three or more steps interact: read the means with care."),
    )


def _two_studies(analysis: Analysis, design: DesignResult) -> Table:
    """The same arms twice: in A and in B, with the difference."""
    metric = analysis.primary
    arms = [analysis.arm(name) for name in design.arms]
    digits = digits_of(analysis, arms, [row.effects[metric.name] for row in design.comparisons])
    number = {row.arm: index for index, row in enumerate(design.comparisons)}
    names = analysis.title.split(" and ")
    rows = []
    for row in design.comparisons:
        effect = row.effects[metric.name]
        old, new = analysis.arm(row.other), analysis.arm(row.arm)
        cells: dict[str, Text] = {
            "number": str(number[row.arm]),
            "label": row.title,
            "n": str(effect.n),
            "old": value_text(old, metric, digits.cells[metric.name], analysis),
            "new": value_text(new, metric, digits.cells[metric.name], analysis),
            "effect": difference_text(effect, digits.effects),
            **conclusion_cells(effect, metric),
        }
        rows.append(Row(str(number[row.arm]), cells, plot=plot_of(effect)))
    columns = [
        Column("number", "#"),
        Column("label", "arm", right=False),
        Column("n", "n"),
        Column("old", f"A: {names[0]}", foreign=True),
        Column("new", f"B: {names[1]}", foreign=True),
        Column("effect", effect_title(analysis, EFFECT_TITLES[COMPARE], rows)),
        *conclusion_columns(analysis, rows),
    ]
    sides = {arm: number[row.arm] for row in design.comparisons for arm in (row.other, row.arm)}
    return Table(
        design=COMPARE,
        heading=f"B, {names[1]}, against A, {names[0]}",
        progress="",
        estimand=ESTIMANDS[COMPARE],
        columns=filled(columns, rows),
        rows=tuple(rows),
        places=digits.effects,
        notes=(
            *notes_of(analysis, design, sides, spread=True, shown=(), with_rows_only=True),
            *general_notes(analysis, design, shown=_with_interval(analysis, design.comparisons), spread=True),
        ),
    )
